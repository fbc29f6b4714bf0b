"""Priors that are mixtures of Gaussians: clusters, and a cross."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from .arguments import floats, positive, whole
from .factorised import log_parameter
from .normal_mixture import DiagNormalMixture, NormalMixture


def _default_locs(latent_dim: int, n_components: int) -> Tensor:
    """``(n_components, latent_dim)`` points at distance 1 from the origin, evenly spread."""
    if latent_dim == 1:
        return (
            torch.linspace(-1, 1, n_components).unsqueeze(1)
            if n_components > 1
            else torch.zeros(1, 1)
        )
    if latent_dim == 2:
        angles = [2 * math.pi * k / n_components for k in range(n_components)]
        return torch.tensor([[math.cos(angle), math.sin(angle)] for angle in angles])
    if n_components > 2 * latent_dim:
        raise ValueError(
            f"Mixture: n_components must be at most 2 * latent_dim = {2 * latent_dim} when locs are "
            f"not given; got {n_components}. Pass locs, a tensor (n_components, latent_dim)."
        )
    axes = torch.eye(latent_dim)
    return torch.stack([axes, -axes], 1).reshape(-1, latent_dim)[:n_components]


class Mixture(nn.Module):
    """sum_k w_k N(z; loc_k, scale^2 I), equal weights at first; K = 1 at the origin is a Gaussian.

    By default the prior of the pinwheel experiment of Mathieu 2019 (section 6.1): four components at
    +-e_1 and +-e_2 with variance .03. At two dimensions K components stand evenly on the unit circle,
    above on the signed axes. KL by Monte Carlo.

    Args:
        latent_dim: D.
        n_components: K.
        scale: standard deviation of every component.
        locs: ``(K, D)`` means of one's own; K is then taken from them.
        learned: train means, scales and weights.
    """

    locs: Tensor
    log_scales: Tensor
    logits: Tensor

    def __init__(
        self,
        latent_dim: int,
        n_components: int = 4,
        scale: float = math.sqrt(0.03),
        locs: Tensor | None = None,
        learned: bool = False,
    ) -> None:
        super().__init__()
        whole(self, "latent_dim", latent_dim)
        if locs is not None:
            locs = floats(self, "locs", locs)
            if locs.dim() != 2 or locs.shape[1] != latent_dim:
                raise ValueError(
                    f"Mixture: locs must have shape (n_components, {latent_dim}); "
                    f"got {tuple(locs.shape)}."
                )
            n_components = len(locs)
        whole(self, "n_components", n_components)
        means = _default_locs(latent_dim, n_components) if locs is None else locs.clone()
        scales = torch.full((n_components, latent_dim), positive(self, "scale", scale))
        log_parameter(self, "log_scales", scales, learned)
        if learned:
            self.locs = nn.Parameter(means)
            self.logits = nn.Parameter(torch.zeros(n_components))
        else:
            self.register_buffer("locs", means)
            self.register_buffer("logits", torch.zeros(n_components))

    @property
    def n_components(self) -> int:
        return len(self.logits)

    def forward(self) -> TorchDistributionMixin:
        scales = self.log_scales.exp()
        if self.locs.shape[1] == 1:  # MixtureOfDiagNormals has no gradient at one dimension
            log_weights = self.logits.log_softmax(0).unsqueeze(0)
            return NormalMixture(log_weights, self.locs.T, scales.T).to_event(1)
        return DiagNormalMixture(self.locs, scales, self.logits)

    def assign(self, z: Tensor) -> Tensor:
        """Index of the most responsible component for each ``z (n, D)``: int64 ``(n,)``."""
        components = dist.Normal(self.locs, self.log_scales.exp()).to_event(1)
        return (components.log_prob(z.unsqueeze(1)) + self.logits).argmax(1)


class Cross(nn.Module):
    """(1/D) sum_d N(z; 0, diag v_d), v_d slab^2 at d and spike^2 elsewhere: one latent is in use at a time.

    At two dimensions a cross, the sparse prior of the sketch of overlap in Mathieu 2019 (figure 1). Unlike
    `SpikeSlab`, whose latents are on or off independently, no two are ever on. KL by Monte Carlo.

    Args:
        latent_dim: D, 2 or more.
        spike: standard deviation of latents that are off.
        slab: standard deviation of the one that is on.

    References: https://arxiv.org/abs/1812.02833
    """

    scales: Tensor

    def __init__(self, latent_dim: int, spike: float = 0.05, slab: float = 1.0) -> None:
        super().__init__()
        whole(self, "latent_dim", latent_dim)
        if latent_dim < 2:
            raise ValueError(
                f"Cross: latent_dim must be 2 or more; got {latent_dim}. Use Gaussian."
            )
        scales = torch.full((latent_dim, latent_dim), positive(self, "spike", spike))
        scales.fill_diagonal_(positive(self, "slab", slab))
        self.register_buffer("scales", scales)

    def forward(self) -> TorchDistributionMixin:
        zeros = torch.zeros_like(self.scales)
        return DiagNormalMixture(zeros, self.scales, zeros[0])
