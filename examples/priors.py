"""A picture of every built-in prior at two latents: its density on [-3, 3]^2.

python examples/priors.py                 under a minute: priors.png
python examples/priors.py --steps 20      whether it runs

`vamp` and `flow` have no shape of their own: they are trained on the spirals first.
"""

from __future__ import annotations

import argparse

import numpy as np
import pyro
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyro_bvae import VAE, DecompositionELBO, fit
from pyro_bvae.datasets import spirals
from pyro_bvae.likelihoods import Normal
from pyro_bvae.networks import mlp
from pyro_bvae.priors import PRIORS

NOTES = {
    "gaussian": "independence",
    "pca": "axes that matter unequally",
    "student-t": "fixed axes, df = 3",
    "laplace": "mild sparsity",
    "mixture": "clusters",
    "spike-slab": "sparsity",
    "cross": "one latent at a time",
    "vamp": "learned from the spirals",
    "flow": "learned from the spirals",
}
EXTENT = 3.0


def built(name: str, steps: int) -> nn.Module:
    """The prior at its defaults, but for a heavier tail where else it would look like a Gaussian."""
    x = spirals(seed=0).x
    if name == "pca":  # of data whose second direction has a quarter of the first one's variance
        return PRIORS[name](2, np.random.default_rng(0).normal(size=(5000, 2)) * [2.0, 1.0])
    if name == "student-t":
        return PRIORS[name](2, df=3.0)
    if name not in ("vamp", "flow"):
        return PRIORS[name](2)
    prior = PRIORS[name](2, n_components=20, x=x) if name == "vamp" else PRIORS[name](2)
    vae = VAE(*mlp((2,), 2, scale=True), prior, Normal("decoder"))
    fit(vae, DecompositionELBO(), spirals(seed=0), steps=steps, batch_size=400, lr=5e-3)
    return prior


def density(prior: nn.Module, n: int = 151) -> Tensor:
    """p(z) on a grid, (n, n)."""
    axis = torch.linspace(-EXTENT, EXTENT, n)
    up, across = torch.meshgrid(axis, axis, indexing="ij")
    with torch.no_grad():
        log_p = prior().log_prob(torch.stack([across, up], -1).reshape(-1, 2))
    return log_p.exp().reshape(n, n)


def main() -> None:
    parser = argparse.ArgumentParser(description="The density of every built-in prior.")
    parser.add_argument("--steps", type=int, default=1500, help="of training vamp and flow")
    parser.add_argument("--out", default="priors.png", help="where the figure goes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    figure = Figure(figsize=(7.2, 7.8), layout="constrained")
    ends = (-EXTENT, EXTENT, -EXTENT, EXTENT)
    for k, name in enumerate(PRIORS):
        pyro.set_rng_seed(0)
        p = density(built(name, args.steps))
        step = 2 * EXTENT / (len(p) - 1)
        mass = torch.trapezoid(torch.trapezoid(p, dx=step), dx=step).item()
        print(f"{name:10s}  {mass:6.1%} of its mass lies on the picture")
        ax = figure.add_subplot(3, 3, k + 1, xticks=[-2, 0, 2], yticks=[-2, 0, 2])
        norm = PowerNorm(0.5, vmin=0, vmax=float(p.quantile(0.999)))
        ax.imshow(p.numpy(), cmap="magma", norm=norm, extent=ends, origin="lower")
        ax.set_title(f"{name}\n{NOTES[name]}", fontsize=9)
        ax.tick_params(labelsize=7)
    figure.supxlabel("density of p(z), square-root colours, each on its own range", fontsize=8)
    figure.savefig(args.out, dpi=100)
    print(f"Wrote {args.out}")


if __name__ == "__main__":
    main()
