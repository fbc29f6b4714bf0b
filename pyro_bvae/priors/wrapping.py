"""torch's distributions as Pyro's."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch.distributions import Distribution


def as_pyro(distribution: Any, what: str) -> TorchDistributionMixin:
    """Return the distribution as Pyro's class of the same name, with the same tensors.

    A distribution of Pyro's is returned as it is. One of torch's becomes Pyro's subclass of it, and so do
    the distributions that it is made of. Density, samples and gradients stay the same.

    Args:
        distribution: Pyro's or torch's.
        what: names it in the error.

    Raises:
        TypeError: no distribution, or one of a class that Pyro does not have.

    Examples:
        >>> import torch
        >>> type(as_pyro(torch.distributions.Normal(0.0, 1.0), "noise")).__module__
        'pyro.distributions.torch'
    """
    if isinstance(distribution, TorchDistributionMixin):
        return distribution
    own = _pyros(distribution)
    if own is None:
        kind = type(distribution)
        raise TypeError(
            f"{what} must be a distribution from pyro.distributions, or one of torch's that Pyro has too; got "
            f"{kind.__module__}.{kind.__name__}. Derive it from pyro.distributions.TorchDistribution."
        )
    if "__init__" in vars(own):  # it keeps more than torch's
        return own(**{name: getattr(distribution, name) for name in distribution.arg_constraints})
    wrapped: Any = object.__new__(own)
    for name, value in vars(distribution).items():
        inner = isinstance(value, TorchDistributionMixin) or _pyros(value) is not None
        wrapped.__dict__[name] = as_pyro(value, what) if inner else value
    return wrapped


def _pyros(value: Any) -> Any:
    """Pyro's subclass of the same name, or None."""
    own: Any = getattr(dist, type(value).__name__, None)
    found = isinstance(value, Distribution) and isinstance(own, type)
    return own if found and own.__base__ is type(value) else None
