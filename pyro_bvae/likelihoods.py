"""p(x|z): modules that turn the decoder's output into a Pyro distribution over x.

``likelihood(parameters, event_dim)``: ``parameters`` is what the decoder returned, a mean or logits
``(*batch, *x_shape)``, or the pair ``(loc, scale)`` where the scale is per pixel; ``event_dim`` is
the number of dimensions of one x, over which log p(x|z) is summed (nats per example). Where x must lie in a
range, ``support`` is that constraint of torch's, and `fit` and `evaluate` refuse other x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    """The density on [0, 1] proportional to p^x (1-p)^(1-x), normalised; the decoder gives logits.

    In terms of the logit l: log p(x|z) = l x - log((e^l - 1) / l), exact at every l.

    References: Loaiza-Ganem & Cunningham 2019, https://arxiv.org/abs/1907.06845
    """

    support = constraints.unit_interval

    def forward(self, parameters: Tensor, event_dim: int) -> TorchDistributionMixin:
        return _FromLogits(logits=parameters, validate_args=False).to_event(event_dim)


# B_2n / (2n)!, n = 1 to 6: log((e^l - 1) / l) = l/2 + sum_n B_2n / (2n)! l^2n / (2n)
_BERNOULLI = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000)
_NEAR = 0.5  # below this |l| the closed forms cancel; the sums above are exact to 1e-13


class _FromLogits(dist.ContinuousBernoulli):  # type: ignore[misc]
    """The continuous Bernoulli as an exponential family in its logit l: the mean is the derivative of
    log((e^l - 1) / l), the variance the second one.

    torch computes from the probability, which rounds to 0 or 1 at |l| > 16: its density then integrates
    to less than 1 (.32 at l = -50) and its mean stays at .06. Near l = 0 its mean loses digits.
    """

    def _parts(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Whether l is near 0, l where it is, and else |l| and e^-|l|: no branch is infinite."""
        near = logits.abs() < _NEAR
        size = logits.abs().masked_fill(near, 1.0)
        return near, logits.masked_fill(~near, 0.0), size, (-size).exp()

    def log_prob(self, value: Tensor) -> Tensor:
        logits, value = torch.broadcast_tensors(self.logits, value)
        near, small, size, shrunk = self._parts(logits)
        series = _series(small, [c / (2 * n) for n, c in enumerate(_BERNOULLI, 1)])
        close = small * (value - 0.5) - small**2 * series
        far = logits * value - logits.relu() + (size / (1 - shrunk)).log()
        return torch.where(near, close, far)

    @property
    def mean(self) -> Tensor:
        near, small, size, shrunk = self._parts(self.logits)
        lower = 1 / size - shrunk / (1 - shrunk)  # at -|l|
        far = torch.where(self.logits > 0, 1 - lower, lower)
        return torch.where(near, 0.5 + small * _series(small, _BERNOULLI), far)

    @property
    def variance(self) -> Tensor:
        near, small, size, shrunk = self._parts(self.logits)
        close = _series(small, [c * (2 * n - 1) for n, c in enumerate(_BERNOULLI, 1)])
        return torch.where(near, close, size**-2 - shrunk / (1 - shrunk) ** 2)

    def entropy(self) -> Tensor:
        return -self.log_prob(self.mean)  # log p is linear in x

    def cdf(self, value: Tensor) -> Tensor:
        size = self.logits.abs().clamp(min=1e-6)
        upper = self.logits > 0
        x = torch.where(upper, 1 - value, value).clamp(0, 1)
        below = (-size * x).expm1() / (-size).expm1()
        return torch.where(upper, 1 - below, below)

    def icdf(self, value: Tensor) -> Tensor:
        size = self.logits.abs().clamp(min=1e-6)
        upper = self.logits > 0
        u = torch.where(upper, 1 - value, value)
        x = (-(u * (-size).expm1()).log1p() / size).clamp(max=1)
        return torch.where(upper, 1 - x, x)


def _series(logits: Tensor, coefficients: Sequence[float]) -> Tensor:
    """sum_n c_n l^(2n - 2)."""
    total = torch.full_like(logits, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * logits**2 + c
    return total


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
