"""The sparsity experiment of Mathieu 2019 (fig. 4 and 5) on Fashion-MNIST.

A spike-and-slab prior (w = .8; w = 0 is the Gaussian) over 50 latents, per-dimension MMD, beta = 1. Does
sparsity rise with alpha, only under the sparse prior, at little cost in reconstruction?

    python examples/fashion_mnist.py                        short: 5 epochs, w = .8, alpha in 0, 100
    python examples/fashion_mnist.py --full                 80 epochs, (w, alpha) in {0, .8} x {0, 100}, and
                                                            alpha = 1000 at w = .8
    python examples/fashion_mnist.py --epochs 20 --w 0 0.8 --alpha 0 100 1000

The same command continues after an interruption.

Needs the Fashion-MNIST files (--data-dir, PYRO_BVAE_DATA or --download). The official code clamps pixels to
[1e-6, 1 - 1e-6]; at b = .1 that moves log p(x|z) by .01 nats at most, and is left out here.
https://arxiv.org/abs/1812.02833
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from pyro_bvae import Config, Run, resume, train
from pyro_bvae.build import load
from pyro_bvae.evaluation import encode_data
from pyro_bvae.plots import class_means, traversals
from pyro_bvae.training import TrainingState

CLASSES = [
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
]
SHORT = {"epochs": 5, "w": [0.8], "alpha": [0.0, 100.0]}


def run_one(w: float, alpha: float, args: argparse.Namespace) -> Run:
    """Train one setting at the published hyper-parameters."""
    config = Config(
        dataset="fashion-mnist",
        data_dir=args.data_dir,
        download=args.download,
        prior="spike-slab",
        prior_args={"spike_weight": w},
        alpha=alpha,
        beta_warmup=0.0,
        epochs=args.epochs,
        seed=args.seed,
        device=args.device,
    )
    out = Path(args.out) / f"w{w:g}-alpha{alpha:g}-epochs{args.epochs}-seed{args.seed}"
    with tqdm(desc=out.name, unit=" steps", mininterval=0.2) as bar:

        def show(state: TrainingState) -> None:
            bar.total = state.total
            bar.update(state.step - bar.n)

        if (out / "config.json").exists():  # finished: read it back; interrupted: continue it
            run = resume(out, device=args.device, data_dir=args.data_dir, on_step=show)
        else:
            run = train(config, out, on_step=show)
    draw(run)
    return run


def draw(run: Run) -> None:
    """Class-mean |z| bars, and traversals of the latents most active in some class."""
    _, test = load(run.config)
    codes = encode_data(run.vae, test)
    loc = codes.loc.cpu().numpy()
    figure = class_means(loc, np.asarray(test.labels), CLASSES)
    figure.savefig(run.path / "figures" / "class_means.png", dpi=150)
    mean_size = np.stack([np.abs(loc[test.labels == k]).mean(0) for k in range(10)])
    rows, names = [], []
    for k in (1, 5, 7, 8):
        latent = int((mean_size[k] - mean_size.mean(0)).argmax())
        z = codes.loc[int(np.flatnonzero(test.labels == k)[0])].repeat(8, 1)
        z[1:, latent] = torch.linspace(-3, 3, 7)
        with torch.no_grad():
            rows.append(run.vae.p_x(z).mean.cpu().numpy().clip(0, 1))
        names.append(f"{CLASSES[k]}, z{latent}")
    columns = ["code", *(f"{v:g}" for v in range(-3, 4))]
    figure = traversals(
        np.stack(rows), names, columns, title="the latent most active in each class"
    )
    figure.savefig(run.path / "figures" / "class_traversals.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="Sparse representations of Fashion-MNIST.")
    parser.add_argument("--full", action="store_true", help="the published 80 epochs and settings")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--w", type=float, nargs="+", help="spike weights")
    parser.add_argument("--alpha", type=float, nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data-dir")
    parser.add_argument("--download", action="store_true")
    parser.add_argument("--out", default="runs/fashion-sparsity")
    args = parser.parse_args()
    given = args.w is not None or args.alpha is not None
    grid = [(w, a) for w in args.w or SHORT["w"] for a in args.alpha or SHORT["alpha"]]
    if args.full and not given:
        grid = [(0.0, 0.0), (0.0, 100.0), (0.8, 0.0), (0.8, 100.0), (0.8, 1000.0)]
    args.epochs = args.epochs or (80 if args.full else SHORT["epochs"])
    print("   w  alpha    E log p       KL      MMD    Hoyer (Gaussian null, prior)  s/epoch")
    for w, alpha in grid:
        run = run_one(w, alpha, args)
        m = run.metrics
        seconds = m["training_seconds"] / args.epochs
        # Absent where fewer than two latents move: there is nothing to compare.
        sparsity = [m.get(name, float("nan")) for name in ("hoyer", "hoyer_null", "hoyer_prior")]
        print(
            f"{w:4g} {alpha:6g} {m['log_px_z']:10.1f} {m['kl']:8.2f} {m['divergence']:8.4f} "
            "{:8.3f} ({:.3f}, {:.3f})".format(*sparsity)
            + f" {seconds:16.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
