"""p(x|z): modules that turn the decoder's output into a Pyro distribution over x.

``likelihood(parameters, event_dim)``: ``parameters`` is what the decoder returned, a mean or logits
``(*batch, *x_shape)``, or the pair ``(loc, scale)`` where the scale is per pixel; ``event_dim`` is
the number of dimensions of one x, over which log p(x|z) is summed (nats per example). Where x must lie in a
range, ``support`` is that constraint of torch's, and `fit` and `evaluate` refuse other x.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

SCALE_FLOOR = 1e-3
"""Smallest scale a decoder or a learned scale may give: without a floor log p(x|z) has no upper
bound once beta = 0."""

_SCALES = (1e-6, 1e6)  # of a fixed scale: its square stays in float32


class Bernoulli(nn.Module):
    """Cross-entropy of pixels in [0, 1] against logits, summed: x log p + (1 - x) log(1 - p).

    Grey values are allowed, as is usual for MNIST; the result is then no normalised density.
    """

    support = constraints.unit_interval

    def forward(self, parameters: Tensor, event_dim: int) -> TorchDistributionMixin:
        # Validation would refuse grey values, which the cross-entropy serves as they are.
        return dist.Bernoulli(logits=parameters, validate_args=False).to_event(event_dim)


class ContinuousBernoulli(nn.Module):
    """The density on [0, 1] proportional to p^x (1-p)^(1-x), normalised.

    References: Loaiza-Ganem & Cunningham 2019, https://arxiv.org/abs/1907.06845
    """

    support = constraints.unit_interval

    def forward(self, parameters: Tensor, event_dim: int) -> TorchDistributionMixin:
        return dist.ContinuousBernoulli(logits=parameters, validate_args=False).to_event(event_dim)


class _LocScale(nn.Module):
    """A location-scale family with a fixed, a learned, or the decoder's own scale."""

    fixed_scale: Tensor
    family: Callable[..., TorchDistributionMixin]

    def __init__(self, scale: float | str = 0.1) -> None:
        super().__init__()
        name = type(self).__name__
        self.per_pixel = scale == "decoder"
        if isinstance(scale, str) and scale not in ("learned", "decoder"):
            raise ValueError(
                f"{name}: scale must be a number > 0, 'learned' or 'decoder'; got {scale!r:.40}."
            )
        if not isinstance(scale, (str, int, float)) or isinstance(scale, bool):
            raise TypeError(
                f"{name}: scale must be a number, 'learned' or 'decoder'; got {type(scale).__name__}."
            )
        if not isinstance(scale, str) and not 0 < scale < float("inf"):
            raise ValueError(f"{name}: scale must be a finite number > 0; got {scale}.")
        if not isinstance(scale, str) and not _SCALES[0] <= scale <= _SCALES[1]:
            raise ValueError(
                f"{name}: scale must lie in [{_SCALES[0]:g}, {_SCALES[1]:g}]; got {scale!r:.40}."
            )
        if scale == "learned":
            self.raw_scale = nn.Parameter(torch.zeros(()))
        elif not self.per_pixel:
            self.register_buffer("fixed_scale", torch.tensor(float(scale)))

    def forward(
        self, parameters: Tensor | tuple[Tensor, Tensor], event_dim: int
    ) -> TorchDistributionMixin:
        loc, scale = self._loc_scale(parameters)
        return self.family(loc, scale.expand_as(loc)).to_event(event_dim)

    def _loc_scale(self, parameters: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if isinstance(parameters, tuple) != self.per_pixel:
            got = "(loc, scale)" if isinstance(parameters, tuple) else "one tensor"
            raise TypeError(
                f"{type(self).__name__}: decoder must return "
                f"{'(loc, scale)' if self.per_pixel else 'one tensor, the mean'}; got {got}. "
                "Use scale='decoder' exactly for decoders that return a scale per pixel."
            )
        if isinstance(parameters, tuple):
            return parameters[0], parameters[1].clamp(min=SCALE_FLOOR)
        if hasattr(self, "raw_scale"):
            return parameters, F.softplus(self.raw_scale) + SCALE_FLOOR
        return parameters, self.fixed_scale.to(parameters.dtype)


class Normal(_LocScale):
    """N(x; loc, scale^2) per pixel; ``scale`` is a number, ``"learned"`` (one for all pixels) or
    ``"decoder"`` (one per pixel, floored at ``SCALE_FLOOR``).

    At a fixed scale s, log p(x|z) is -|x - loc|^2 / (2 s^2) plus a constant: squared error.
    """

    family = staticmethod(dist.Normal)


class Laplace(_LocScale):
    """Laplace(x; loc, scale) per pixel: absolute error over ``scale``; same choices as `Normal`."""

    family = staticmethod(dist.Laplace)


LIKELIHOODS: dict[str, Callable[..., nn.Module]] = {
    "normal": Normal,
    "laplace": Laplace,
    "bernoulli": Bernoulli,
    "continuous-bernoulli": ContinuousBernoulli,
}
