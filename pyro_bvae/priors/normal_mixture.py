"""Mixtures of Normals whose reparameterised samples have the right gradient: Pyro's has none at one
dimension, and a wrong one to the weights above."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

_Shape = torch.Size | list[int] | tuple[int, ...]


class NormalMixture(TorchDistribution):
    """sum_k w_k N(z; loc_k, scale_k^2) for scalar z.

    ``rsample`` differentiates by the implicit function theorem: F(z; theta) stays fixed, so
    dz/dtheta = -(dF/dtheta) / p(z) (Figurnov 2018, https://arxiv.org/abs/1805.08498).

    Args:
        log_weights: ``(*batch, K)``, normalised; -inf removes a component.
        locs: ``(*batch, K)``.
        scales: ``(*batch, K)``, > 0.
    """

    has_rsample = True
    support = constraints.real
    arg_constraints = {"locs": constraints.real_vector, "scales": constraints.positive}

    def __init__(self, log_weights: Tensor, locs: Tensor, scales: Tensor) -> None:
        self.log_weights, self.locs, self.scales = torch.broadcast_tensors(
            log_weights, locs, scales
        )
        super().__init__(self.locs.shape[:-1], torch.Size(), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return (self.log_weights.exp() * self.locs).sum(-1)

    @property
    def variance(self) -> Tensor:
        second = (self.log_weights.exp() * (self.locs**2 + self.scales**2)).sum(-1)
        return second - self.mean**2

    def expand(self, batch_shape: _Shape, _instance: object = None) -> NormalMixture:
        shape = torch.Size(batch_shape) + self.locs.shape[-1:]
        return NormalMixture(
            self.log_weights.expand(shape), self.locs.expand(shape), self.scales.expand(shape)
        )

    def log_prob(self, value: Tensor) -> Tensor:
        standard = (value.unsqueeze(-1) - self.locs) / self.scales
        log_component = -0.5 * standard**2 - self.scales.log() - 0.5 * math.log(2 * math.pi)
        return torch.logsumexp(self.log_weights + log_component, -1)

    def cdf(self, value: Tensor) -> Tensor:
        standard = (value.unsqueeze(-1) - self.locs) / self.scales
        return (self.log_weights.exp() * torch.special.ndtr(standard)).sum(-1)

    def rsample(self, sample_shape: _Shape = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            component = dist.Categorical(logits=self.log_weights).sample(torch.Size(sample_shape))
            pick = component.unsqueeze(-1)
            loc = self.locs.expand(shape + self.locs.shape[-1:]).gather(-1, pick).squeeze(-1)
            scale = self.scales.expand(shape + self.scales.shape[-1:]).gather(-1, pick).squeeze(-1)
            z = torch.normal(loc, scale)
        learnable = (self.log_weights, self.locs, self.scales)
        if not (torch.is_grad_enabled() and any(p.requires_grad for p in learnable)):
            return z
        return self.follow(z)

    def follow(self, z: Tensor) -> Tensor:
        """``z``, a sample already drawn, with its implicit gradient to the parameters."""
        cdf = self.cdf(z)
        return z - (cdf - cdf.detach()) / self.log_prob(z).detach().exp()


class DiagNormalMixture(dist.MixtureOfDiagNormals):
    """Pyro's ``MixtureOfDiagNormals`` with another gradient of ``rsample``; the draws are the same.

    Pyro 1.9.2's gradient to the weights is wrong unless every scale is 1 (distances between means are
    not divided by it), NaN where two means coincide, and all three overflow in float32 in high
    dimensions. Here means and scales move z with the responsibilities, as in Pyro but in log space;
    the weights move it one dimension after another by the implicit gradient of its conditional.
    """

    def rsample(self, sample_shape: _Shape = ()) -> Tensor:
        with torch.no_grad():
            z: Tensor = super().rsample(torch.Size(sample_shape))
        logits = self.categorical.logits
        learnable = (self.locs, self.coord_scale, logits)
        if not (torch.is_grad_enabled() and any(p.requires_grad for p in learnable)):
            return z
        locs, scales = self.locs.detach(), self.coord_scale.detach()
        standard = (z.unsqueeze(-2) - locs) / scales  # (*sample, *batch, K, D)
        log_joint = logits.detach() - (0.5 * standard**2 + scales.log()).sum(-1)
        share = log_joint.softmax(-1).unsqueeze(-1)
        path = (share * (self.locs + self.coord_scale * standard)).sum(-2)
        moved = z + (path - path.detach())
        if logits.requires_grad:
            moved = moved + (self._follow_weights(z, logits, locs, scales) - z)
        return moved

    @staticmethod
    def _follow_weights(z: Tensor, logits: Tensor, locs: Tensor, scales: Tensor) -> Tensor:
        columns = []
        for d in range(z.shape[-1]):
            loc, scale = locs[..., d], scales[..., d]
            column = NormalMixture(logits, loc, scale).follow(z[..., d])
            columns.append(column)
            standard = (column.unsqueeze(-1) - loc) / scale
            logits = (logits - 0.5 * standard**2 - scale.log()).log_softmax(-1)
        return torch.stack(columns, -1)
