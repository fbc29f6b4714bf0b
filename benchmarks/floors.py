"""Training steps as one would write them by hand: torch alone, no Pyro, no distribution objects.

The networks, the data and the optimiser are those of the step that they are compared with, and so is
D, whose plain form is `pyro_bvae.pairwise`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_bvae import VAE
from pyro_bvae.divergences import MMD_SCALES
from pyro_bvae.pairwise import mean_log_mixture, mmd

LOG_2_PI = math.log(2 * math.pi)
WIDTHS = tuple(2 * s for s in MMD_SCALES)
Sampled = tuple[
    Tensor, Tensor, Tensor, Tensor
]  # loss without D, z, loc, scale: summed over the batch


def standard_normal_bernoulli(vae: VAE, beta: float) -> Callable[[Tensor], Sampled]:
    """dSprites: KL to N(0, I) in closed form, cross-entropy."""

    def step(x: Tensor) -> Sampled:
        loc, scale = vae.encoder(x)
        z = loc + scale * torch.randn_like(loc)
        error = F.binary_cross_entropy_with_logits(vae.decoder(z), x, reduction="sum")
        kl = (0.5 * (loc.square() + scale.square() - 1) - scale.log()).sum()
        return error + beta * kl, z, loc, scale

    return step


def spike_slab_laplace(vae: VAE, beta: float) -> Callable[[Tensor], Sampled]:
    """Fashion-MNIST: KL by Monte Carlo, absolute error."""
    device = next(vae.parameters()).device
    log_weights = torch.tensor([0.8, 0.2], device=device).log()
    scales = torch.tensor([0.05, 1.0], device=device)

    def step(x: Tensor) -> Sampled:
        loc, scale = vae.encoder(x)
        noise = torch.randn_like(loc)
        z = loc + scale * noise
        error = ((x - vae.decoder(z)).abs() / 0.1 + math.log(0.2)).sum()
        standard = z.unsqueeze(-1) / scales
        log_p = torch.logsumexp(log_weights - scales.log() - 0.5 * standard.square(), -1).sum()
        log_q = (-0.5 * noise.square() - scale.log()).sum()
        return error + beta * (log_q - log_p), z, loc, scale

    return step


def mixture_normal(vae: VAE, beta: float) -> Callable[[Tensor], Sampled]:
    """Spirals: KL by Monte Carlo to four Gaussians, a scale per coordinate."""

    def step(x: Tensor) -> Sampled:
        loc, scale = vae.encoder(x)
        noise = torch.randn_like(loc)
        z = loc + scale * noise
        mean, spread = vae.decoder(z)
        spread = spread.clamp(min=1e-3)
        error = (0.5 * ((x - mean) / spread).square() + spread.log() + 0.5 * LOG_2_PI).sum()
        log_q = (-0.5 * noise.square() - scale.log() - 0.5 * LOG_2_PI).sum()
        return error + beta * (log_q - log_four(z).sum()), z, loc, scale

    return step


CENTRES = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])


def log_four(z: Tensor) -> Tensor:
    square = (z.unsqueeze(1) - CENTRES.to(z.device)).square().sum(2) / 0.03
    return torch.logsumexp(-0.5 * square, 1) - LOG_2_PI - math.log(4 * 0.03)


def inclusive_kl_of_four(z: Tensor, loc: Tensor, scale: Tensor, compiled: bool) -> Tensor:
    z_p = CENTRES.to(z.device)[torch.randint(4, (len(z),))] + math.sqrt(0.03) * torch.randn_like(z)
    return log_four(z_p).mean() - mean_log_mixture(z_p, loc, scale)


def mmd_of_spike_slab(z: Tensor, loc: Tensor, scale: Tensor, compiled: bool) -> Tensor:
    spike = torch.rand_like(z) < 0.8
    z_p = torch.randn_like(z) * torch.where(spike, 0.05, 1.0)
    return compiled_mmd(z, z_p) if compiled else mmd(z, z_p, WIDTHS, per_dim=True)


def compiled_mmd(z: Tensor, z_p: Tensor) -> Tensor:
    """MMD per dimension by the compiled loop over pairs, with its gradient to z."""
    value, gradient, _ = torch.ops.pyro_bvae.mmd_per_dim(
        z.detach(), z_p, list(WIDTHS), [True, False]
    )
    path = (z * gradient).sum()
    return value + (path - path.detach())


def trainer(
    terms: Callable[[Tensor], Sampled],
    divergence: Callable[[Tensor, Tensor, Tensor, bool], Tensor] | None,
    alpha: float,
    modules: nn.Module,
    x: Tensor,
    lr: float,
    compiled: bool,
) -> Callable[[], Tensor]:
    """One optimiser step a call, with one fused Adam; ``compiled`` also takes D's compiled form."""
    terms = torch.compile(terms, dynamic=False) if compiled else terms
    optimiser = torch.optim.Adam(modules.parameters(), lr=lr, amsgrad=True, fused=True)

    def step() -> Tensor:
        loss, z, loc, scale = terms(x)
        loss = loss / len(x)
        if divergence is not None and alpha > 0:
            loss = loss + alpha * divergence(z, loc, scale, compiled)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step
