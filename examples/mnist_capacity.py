"""Capacity control on MNIST (Burgess 2018): does the code hold the C nats it is told to?

Trains E log p(x|z) - gamma |KL - C|, or its one-sided form, with C rising 0 -> 20 nats over the first third of
training (conv-bn, 10 latents, Adam lr 5e-4, batch 64), measures the KL of held-out images in evaluation mode
along the way and draws it against C. --gif shows the latents come into use meanwhile: each moves from -3 to 3,
the others held at one image's code.

    python examples/mnist_capacity.py --gamma 100 --penalty absolute
    python examples/mnist_capacity.py --gamma 1000 --penalty relu --gif latents.gif
    python examples/mnist_capacity.py --gamma 100 --reduction example

https://arxiv.org/abs/1804.03599
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from pyro_bvae import VAE, CapacityELBO, Config, fit
from pyro_bvae.build import build
from pyro_bvae.evaluation import Codes, encode_data
from pyro_bvae.plots import traversals
from pyro_bvae.training import TrainingState
from pyro_bvae.traversal import traversal

VALUES = torch.linspace(-3, 3, 9)


def picture(vae: VAE, codes: Codes, capacity: float) -> Image.Image:
    """The traversal from the first image's code, every latent in its own row throughout."""
    x = traversal(vae, codes.loc[0], range(codes.loc.shape[1]), VALUES).numpy()
    assert codes.kl_per_latent is not None
    rows = [f"z{k}  {kl:4.1f} nats" for k, kl in enumerate(codes.kl_per_latent.tolist())]
    title = f"C = {capacity:4.1f}, KL = {codes.kl.mean():4.1f} nats"
    canvas = FigureCanvasAgg(traversals(x, rows, [f"{v:g}" for v in VALUES.tolist()], title))
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def write_gif(path: Path, frames: Sequence[Image.Image]) -> None:
    """A quarter of a second each, the last for three; they are all as large as the last."""
    size = frames[-1].size
    grey: list[Any] = [frame.resize(size).convert("L").quantize(32) for frame in frames]
    times = [250] * (len(grey) - 1) + [3000]
    grey[0].save(path, save_all=True, append_images=grey[1:], duration=times, loop=0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Capacity control on MNIST.")
    parser.add_argument("--gamma", type=float, default=100.0)
    parser.add_argument("--penalty", choices=["absolute", "relu"], default="absolute")
    parser.add_argument("--reduction", choices=["batch", "example"], default="batch")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir")
    parser.add_argument("--out", help="where the figure goes")
    parser.add_argument("--gif", type=Path, help="where the moving picture of the latents goes")
    args = parser.parse_args()
    for path in (args.out, args.gif):  # a folder that cannot be made is told before the training
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
    config = Config(
        dataset="mnist",
        data_dir=args.data_dir,
        gamma=args.gamma,
        capacity=20.0,
        penalty=args.penalty,
        reduction=args.reduction,
        epochs=args.epochs,
        seed=args.seed,
    )
    pyro.set_rng_seed(args.seed)
    built = build(config)
    objective = built.objective
    assert isinstance(objective, CapacityELBO)
    held_out = built.test.subset(np.arange(0, len(built.test), 5))
    steps_an_epoch = -(-len(built.train) // 64)
    rows: list[tuple[float, ...]] = []
    frames: list[Image.Image] = []

    def measure(state: TrainingState) -> None:
        step = state.step
        last = step > state.total - steps_an_epoch
        if step % (100 if last else 400) == 0 or step == state.total:
            codes = encode_data(built.vae, held_out)
            rows.append((step, objective.capacity, codes.kl.mean().item(), codes.kl.std().item(),
                         codes.log_px_z.mean().item()))  # fmt: skip
            if args.gif is not None and (step % 400 == 0 or step == state.total):
                frames.append(picture(built.vae, codes, objective.capacity))

    history = fit(
        built.vae, objective, built.train, epochs=args.epochs, batch_size=64, lr=5e-4,
        schedules=built.schedules, on_step=measure, seed=args.seed,
        compile=bool(built.config.compile),
    )  # fmt: skip
    step, capacity, kl, spread, log_px_z = np.array(rows).T
    last = step > step[-1] - steps_an_epoch
    seconds = sum(record["seconds"] for record in history) / args.epochs
    name = f"{args.penalty}, {args.reduction}, gamma {args.gamma:g}"
    print(
        f"{name}: last epoch, {int(last.sum())} measurements on {len(held_out)} held-out images: "
        f"KL {kl[last].mean():.2f} (from {kl[last].min():.2f} to {kl[last].max():.2f}), s.d. over x "
        f"{spread[last].mean():.2f}, E log p(x|z) {log_px_z[last].mean():.1f} nats; largest KL - C "
        f"{(kl - capacity).max():.2f}, largest KL {kl.max():.2f}; {seconds:.0f} s an epoch",
        flush=True,
    )
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(step, capacity, color="black", linestyle="--", label="C")
    axes.plot(step, kl, color="#0072B2", label="held-out KL")
    axes.fill_between(
        step, kl - spread, kl + spread, color="#0072B2", alpha=0.2, lw=0, label="± s.d. over x"
    )
    axes.set(xlabel="step", ylabel="nats per example", title=f"MNIST, {name}")
    axes.legend()
    out = args.out or f"mnist-capacity-{args.penalty}-{args.reduction}-{args.gamma:g}.png"
    figure.savefig(out, dpi=150)
    print(f"Wrote {out}")
    if args.gif is not None:
        write_gif(args.gif, frames)
        print(f"Wrote {args.gif}")


if __name__ == "__main__":
    main()
