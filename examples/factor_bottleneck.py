"""Which factors does a code of C nats hold? The bottleneck experiment of Burgess 2018 on dSprites.

The guide q(z|f) sees the ground-truth factors f in place of the image, each latent its own number:
z_k ~ N(a_k f_k, s_k^2) with a_k and s_k learned, f_k standardised; shape is three numbers (one a class),
orientation two (sine and cosine), scale and the two positions one each. The decoder draws the image from z.
Trained to maximise E log p(x|z) - gamma |KL - C| while C rises from 0, the code takes first what lowers the
reconstruction loss most per nat. Its KL is exact: a factor's values are equally frequent on the grid.

    python examples/factor_bottleneck.py                           under an hour: factor_bottleneck.png, .csv
    python examples/factor_bottleneck.py --steps 200               whether it runs, in a minute
    python examples/factor_bottleneck.py --encoder mlp             a small network a factor in place of a_k, s_k

Give it the steps: where C rises faster than the decoder learns, as in 2,000 steps to 25 nats, all KLs rise
together, since nothing yet says which pays. The default begins as --capacity 3 --steps 2400 does.

A square looks alike after a quarter turn and an ellipse after half a turn, so sine and cosine tell apart what
the image does not: a nat about orientation buys less than it would with names for what is seen, and for
squares next to nothing. The KL also exceeds what can be known (log 32 = 3.5 nats of a position) where a
Gaussian code spends nats on margins between the values. https://arxiv.org/abs/1804.03599
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure, SubFigure
from pyro.optim import Adam
from torch import Tensor, nn

from pyro_bvae import CapacityELBO
from pyro_bvae.datasets import Data, load_dataset
from pyro_bvae.datasets.dsprites import FACTORS
from pyro_bvae.networks import burgess
from pyro_bvae.plots import PALETTE
from pyro_bvae.schedules import linear
from pyro_bvae.svi import CompiledSVI

HELD = 0.5  # nats of KL from which a factor counts as held
SHOWN = 5  # values of C at which reconstructions are drawn
Row = dict[str, float]


def factor_values() -> dict[str, Tensor]:
    """What the guide sees of each factor's values: (n_values, n_latents), mean 0, variance 1."""
    angle = FACTORS["orientation"]
    values = {
        "shape": np.eye(3),
        "scale": FACTORS["scale"][:, None],
        "orientation": np.stack([np.sin(angle), np.cos(angle)], 1),
        "posX": FACTORS["posX"][:, None],
        "posY": FACTORS["posY"][:, None],
    }
    return {
        name: torch.tensor((v - v.mean(0)) / v.std(0), dtype=torch.float32)
        for name, v in values.items()
    }


VALUES = factor_values()
WIDTHS = [values.shape[1] for values in VALUES.values()]
LATENTS = sum(WIDTHS)


def features(data: Data, rows: np.ndarray) -> Tensor:
    """f of some rows, (batch, 8)."""
    assert data.factors is not None
    columns = [data.factor_names.index(name) for name in VALUES]
    levels = torch.as_tensor(data.factors[rows][:, columns])
    return torch.cat([v[levels[:, k]] for k, v in enumerate(VALUES.values())], 1)


class Linear(nn.Module):
    """N(a_k f_k, s_k^2). At a = 0, s = 1 the KL would have no slope: a begins a little above."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((width,), 0.1))
        self.log_scale = nn.Parameter(torch.zeros(width))

    def forward(self, f: Tensor) -> tuple[Tensor, Tensor]:
        return self.gain * f, self.log_scale.exp().expand_as(f)


class MLP(nn.Module):
    """A diagonal Normal whose means and scales are any function of one factor; near N(0, 1) at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Linear(64, 2 * width)
        nn.init.normal_(last.weight, 0.0, 0.02)
        nn.init.zeros_(last.bias)
        self.body = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), last)

    def forward(self, f: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.body(f).chunk(2, -1)
        return loc, log_scale.exp()


ENCODERS: dict[str, type[nn.Module]] = {"linear": Linear, "mlp": MLP}


def normal_kl(loc: Tensor, scale: Tensor) -> Tensor:
    """KL(N(loc, scale^2) || N(0, 1)) of each latent, in nats."""
    return (loc.square() + scale.square() - 1) / 2 - scale.log()


class Bottleneck:
    """p(z) p(x|z) and q(z|f): plain Pyro callables, as any model and guide of one's own."""

    def __init__(self, encoder: str = "linear") -> None:
        self.encoder = nn.ModuleDict({k: ENCODERS[encoder](v.shape[1]) for k, v in VALUES.items()})
        self.decoder = burgess((1, 64, 64), LATENTS)[1]

    def model(self, f: Tensor, x: Tensor) -> None:
        """p(z) = N(0, I), and x (batch, 1, 64, 64) observed; f is for the guide."""
        pyro.module("decoder", self.decoder)
        p_z = dist.Normal(torch.zeros(LATENTS), torch.ones(LATENTS)).to_event(1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", p_z)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(3), obs=x)

    def guide(self, f: Tensor, x: Tensor) -> None:
        """q(z|f) for f (batch, 8)."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*self.q_z(f)).to_event(1))

    def q_z(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Means and scales, (batch, 8) each."""
        parts = zip(self.encoder.values(), f.split(WIDTHS, 1), strict=True)
        locs, scales = zip(*(head(part) for head, part in parts), strict=True)
        return torch.cat(locs, 1), torch.cat(scales, 1)

    @torch.no_grad()
    def kl(self) -> dict[str, float]:
        """E KL of each factor's latents over the whole grid, in nats: all values count alike."""
        return {
            name: normal_kl(*self.encoder[name](values)).mean(0).sum().item()
            for name, values in VALUES.items()
        }


def batch(data: Data, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """f and the images of some rows, unpacked as they are asked for."""
    return features(data, rows), data.tensors(rows)[0]


@torch.no_grad()
def measure(net: Bottleneck, held_out: tuple[Tensor, Tensor], step: int, capacity: float) -> Row:
    """KL per factor, and the loss -E log p(x|z) on held-out images, with the same noise each time."""
    kl = net.kl()
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        terms = CapacityELBO(1.0, 0.0).terms(net.model, net.guide, *held_out)
    row: Row = {"step": step, "capacity": capacity, "kl": sum(kl.values())}
    row |= {f"kl_{name}": value for name, value in kl.items()}
    return row | {"reconstruction": -terms.log_px_z.mean().item()}


@torch.no_grad()
def reconstructions(net: Bottleneck, f: Tensor) -> np.ndarray:
    """Decoded samples of the code, (n, 64, 64): its means alone would show more than it holds."""
    loc, scale = net.q_z(f)
    noise = torch.randn(loc.shape, generator=torch.Generator().manual_seed(0))
    return np.asarray(net.decoder(loc + scale * noise).sigmoid()[:, 0])


def learning_rate(name: str) -> dict[str, float]:
    """Adam's, 5e-4; ten times that for the numbers a_k, log s_k, which have further to go."""
    return {"lr": 5e-3 if name.endswith(("gain", "log_scale")) else 5e-4}


def train(
    args: argparse.Namespace, data: Data, test: Data
) -> tuple[list[Row], dict[str, np.ndarray]]:
    """The measurements of each hundredth of the training, and the pictures at some values of C."""
    rng = np.random.default_rng(args.seed)
    pyro.set_rng_seed(args.seed)
    pyro.clear_param_store()  # else the parameters of an earlier training would be taken up
    net, objective = Bottleneck(args.encoder), CapacityELBO(args.gamma, 0.0)
    # compiling takes half a minute
    compiled = args.steps >= 1000
    svi = CompiledSVI(net.model, net.guide, Adam(learning_rate), objective, compile=compiled)
    capacity = linear(0.0, args.capacity, args.steps)
    held_out = batch(test, rng.choice(len(test), min(1024, len(test)), replace=False))
    few = held_out[0][:128], held_out[1][:128]
    examples = pick(test)
    pictures = {"image": test.tensors(examples)[0][:, 0].numpy()}
    shown = {round(args.steps * k / SHOWN) for k in range(1, SHOWN + 1)}
    rows = [measure(net, few, 0, 0.0)]
    start = time.perf_counter()
    for step in range(1, args.steps + 1):
        objective.capacity = capacity(step)
        with pyro.validation_enabled(step == 1):
            svi.update(*batch(data, rng.integers(len(data), size=64)))
        if step % max(1, args.steps // 100) == 0 or step == args.steps:
            images = held_out if step == args.steps else few
            rows.append(measure(net, images, step, objective.capacity))
            write_rows(Path(args.out).with_suffix(".csv"), rows)  # an interruption leaves them
        if step in shown:
            drawn = reconstructions(net, features(test, examples))
            pictures[f"C = {objective.capacity:.3g}"] = drawn
            took = (time.perf_counter() - start) / step * 1e3
            last = rows[-1]
            print(
                f"step {step:6d}  C {objective.capacity:5.2f}  KL {last['kl']:5.2f}  "
                f"reconstruction {last['reconstruction']:6.1f}  {took:4.0f} ms a step",
                flush=True,
            )
    return rows, pictures


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def pick(data: Data) -> np.ndarray:
    """Rows of nine images to draw: three of each shape, as far as there are."""
    assert data.factors is not None
    shape = data.factors[:, data.factor_names.index("shape")]
    return np.concatenate([np.flatnonzero(shape == k)[:3] for k in range(3)])


def thresholds(rows: Sequence[Row]) -> dict[str, float]:
    """The C at which each factor first holds more than `HELD` nats; NaN where none does."""
    return {
        name: next((r["capacity"] for r in rows if r[f"kl_{name}"] > HELD), float("nan"))
        for name in VALUES
    }


def draw(rows: Sequence[Row], pictures: dict[str, np.ndarray], title: str) -> Figure:
    """KL per factor and their sum against C on the left, reconstructions on the right."""
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.1, 1))
    figure.suptitle(title)
    draw_kl(left, rows)
    ax = right.add_subplot(title="held-out images, decoded from samples of the code")
    strip = [np.pad(p, ((0, 0), (0, 4), (0, 4)), constant_values=1) for p in pictures.values()]
    ax.imshow(
        np.concatenate([p.reshape(-1, p.shape[-1]) for p in strip], 1), "gray", vmin=0, vmax=1
    )
    ax.set_xticks(32 + 68 * np.arange(len(pictures)), list(pictures), fontsize=8)
    ax.set_yticks([])
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    return figure


def draw_kl(figure: SubFigure, rows: Sequence[Row]) -> None:
    capacity = np.array([row["capacity"] for row in rows])
    kl = {name: np.array([row[f"kl_{name}"] for row in rows]) for name in VALUES}
    colors = PALETTE[: len(VALUES)]
    above, below = figure.subplots(2, 1, sharex=True)
    for (name, values), color in zip(kl.items(), colors, strict=True):
        above.plot(capacity, values, color=color, ls="--" if name == "posY" else "-", label=name)
    above.axhline(HELD, color="0.7", lw=0.8, ls=":")
    above.set(ylabel="nats", title="KL of a factor's latents")
    above.legend(fontsize=8)
    below.stackplot(capacity, *kl.values(), labels=kl, colors=colors, alpha=0.8)
    below.plot(capacity, capacity, color="black", ls="--", lw=1, label="C")
    below.set(xlabel="C (nats)", ylabel="nats", title="their sum, and C", xlim=(0, capacity[-1]))
    handles, labels = below.get_legend_handles_labels()
    below.legend(handles[::-1], labels[::-1], fontsize=8, loc="upper left")


def main() -> None:
    parser = argparse.ArgumentParser(description="Which factors does a code of C nats hold?")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--gamma", type=float, default=100.0)
    parser.add_argument("--capacity", type=float, default=25.0, help="C at the end, in nats")
    parser.add_argument("--encoder", choices=ENCODERS, default="linear")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="factor_bottleneck.png", help="the .csv goes beside it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    rows, pictures = train(args, *load_dataset("dsprites"))

    first = thresholds(rows)
    print(f"factor       C where KL > {HELD:g}   KL at the end (nats)")
    for name in sorted(VALUES, key=lambda k: (np.isnan(first[k]), first[k])):
        print(f"{name:12} {first[name]:14.2f} {rows[-1]['kl_' + name]:22.2f}")
    print(f"all          {'':14} {rows[-1]['kl']:22.2f}   of C = {args.capacity:g}")
    print(f"held-out reconstruction loss {rows[-1]['reconstruction']:.1f} nats an image")

    title = f"dSprites, {args.encoder} guide on the factors, γ = {args.gamma:g}, {args.steps} steps"
    draw(rows, pictures, title).savefig(out, dpi=150)
    print(f"Wrote {out} and {out.with_suffix('.csv')}")


if __name__ == "__main__":
    main()
