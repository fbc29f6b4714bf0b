"""A prior of one's own in ten lines: a ring, with a radius that is learned.

python examples/custom_prior.py
pyro-bvae train --prior custom_prior:Ring --alpha 5        (run in examples/)
"""

from __future__ import annotations

import argparse
import math

import pyro.distributions as dist
import torch
from torch import nn

from pyro_bvae import VAE, DecompositionELBO, fit
from pyro_bvae.datasets import spirals
from pyro_bvae.divergences import inclusive_kl
from pyro_bvae.evaluation import encode_data
from pyro_bvae.likelihoods import Normal
from pyro_bvae.networks import mlp
from pyro_bvae.plots import aggregate_posterior
from pyro_bvae.priors import check_prior


class Ring(nn.Module):
    """Sixteen Gaussians around a circle whose radius is a parameter."""

    def __init__(self, latent_dim: int = 2, radius: float = 1.0, scale: float = 0.2) -> None:
        super().__init__()
        self.radius = nn.Parameter(torch.tensor(float(radius)))
        angles = torch.arange(16) * (2 * math.pi / 16)
        self.register_buffer("directions", torch.stack([angles.cos(), angles.sin()], 1))
        self.register_buffer("scales", torch.full((16, 2), scale))

    def forward(self) -> dist.TorchDistribution:
        locs = self.radius * self.directions
        return dist.MixtureOfDiagNormals(locs, self.scales, torch.zeros_like(locs[:, 0]))


def main() -> None:
    parser = argparse.ArgumentParser(description="A ring-shaped prior on the pinwheel data.")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", default="ring.png", help="where the figure goes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ring = Ring()
    print(check_prior(ring, latent_dim=2))

    data = spirals(seed=0)
    vae = VAE(*mlp((2,), 2, scale=True), ring, Normal("decoder"), beta=0.1)
    objective = DecompositionELBO(alpha=5.0, divergence=inclusive_kl)
    history = fit(vae, objective, data, steps=args.steps, batch_size=400, lr=3e-3)
    print(f"D {history[0]['divergence']:.2f} -> {history[-1]['divergence']:.2f}")
    print(f"radius 1.00 -> {ring.radius.item():.2f}: the prior learned with the rest")

    codes = encode_data(vae, data)

    def log_prior(z):
        with torch.no_grad():
            return ring().log_prob(torch.as_tensor(z, dtype=torch.float32)).numpy()

    loc, scale = codes.loc.numpy(), codes.scale.numpy()
    figure = aggregate_posterior(loc, scale, prior=log_prior, labels=data.labels)
    figure.savefig(args.out, dpi=150)
    print(f"Wrote {args.out}")


if __name__ == "__main__":
    main()
