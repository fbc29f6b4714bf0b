"""Is a module fit to be a prior? The test our own priors pass, for everyone's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ..kl import closed_form, family, inside, leaves_support
from .wrapping import as_pyro

_N = 50_000
_KERNELS = 500
_DF = 3.0
_MAX_DIM = 5


def check_prior(prior: nn.Module, latent_dim: int) -> str:
    """Check that ``prior`` keeps the contract of a prior over ``latent_dim`` latents.

    Checked: a module returning a Pyro distribution of ``batch_shape ()`` and ``event_shape
    (latent_dim,)`` without sample sites of its own; finite samples with finite log-density; a density,
    0 outside the distribution's support, that integrates to 1 and agrees with the samples (importance
    sampling, in few dimensions); a gradient for every parameter.

    Returns:
        One line: ``"ok: integrates to 1.000, KL by Monte Carlo"``, the KL from a Normal posterior. It says
        what could not be checked, and where a posterior must stay within the prior's support.

    Raises:
        TypeError: not a module, no Pyro distribution, or a sample site in forward().
        ValueError: wrong shapes, values or density; integers, or a circle; the sentence says which.

    Examples:
        >>> from pyro_bvae.priors import SpikeSlab
        >>> check_prior(SpikeSlab(2), 2)
        'ok: integrates to 1.00..., KL by Monte Carlo'
    """
    name = type(prior).__name__
    with pyro.get_param_store().scope():
        p_z = prior_distribution(prior, latent_dim)
    with _own_noise(prior), torch.no_grad():
        z = p_z.sample((_N,))
        log_p = p_z.log_prob(z)
        _check_values(name, z, log_p, latent_dim)
        q_z = dist.Normal(torch.zeros_like(z[0]), 1.0).to_event(1)
        kl = "by Monte Carlo" if closed_form(q_z, p_z) is None else "in closed form"
        notes = [_check_density(name, p_z, z)]
        leaves = leaves_support(q_z.expand([_N]), p_z)
        notes += ["the posterior must lie in its support" if leaves else f"KL {kl}"]
    _check_gradients(name, prior)
    if not p_z.has_rsample:
        notes.append("no rsample: D gives it no gradient")
    return "ok: " + ", ".join(notes)


class _NoSites(Messenger):
    """Refuse `pyro.sample` inside a prior: the guide has no such site."""

    def __init__(self, prior: nn.Module) -> None:
        super().__init__()
        self.owner = type(prior).__name__

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            # Pyro would add the shapes of its trace to a ValueError.
            raise TypeError(
                f"{self.owner}: forward() must not call pyro.sample, since no guide samples its sites; got "
                f"site {msg['name']!r}. Return a distribution that holds what is random."
            )


def call_prior(prior: nn.Module) -> TorchDistributionMixin:
    """``prior()`` as a distribution of Pyro's; its forward() must have no sample sites.

    Raises:
        TypeError: it has one, or it returns no distribution that Pyro has.
    """
    with _NoSites(prior):
        return as_pyro(prior(), f"{type(prior).__name__}: what forward() returns")


def prior_distribution(prior: nn.Module, latent_dim: int) -> TorchDistributionMixin:
    """``prior()``, after checking its kind and shapes."""
    name = type(prior).__name__
    if not isinstance(prior, nn.Module):
        raise TypeError(
            f"{name}: a prior must be an nn.Module whose forward() returns a Pyro distribution; "
            f"got a {name}. Wrap it in a module."
        )
    nan = [k for k, p in prior.named_parameters() if torch.isnan(p).any()]
    if nan:
        raise ValueError(
            f"{name}: parameters must not be NaN; got NaN in {', '.join(nan)}. "
            "Lower the learning rate, or start from other values."
        )
    p_z = call_prior(prior)
    if _discrete(p_z):
        raise ValueError(
            f"{name}: a prior must have a density; got {family(p_z)}, whose values are integers. Use a "
            "continuous distribution."
        )
    if p_z.batch_shape != () or p_z.event_shape != (latent_dim,):
        raise ValueError(
            f"{name}: the distribution must have batch_shape () and event_shape ({latent_dim},); got "
            f"{tuple(p_z.batch_shape)} and {tuple(p_z.event_shape)}. Use .to_event(1) for "
            "independent dimensions, and parameters of length latent_dim."
        )
    return p_z


def _discrete(p_z: TorchDistributionMixin) -> bool:
    try:
        return bool(p_z.support.is_discrete)
    except NotImplementedError:
        return False


def _check_values(name: str, z: Tensor, log_p: Tensor, latent_dim: int) -> None:
    if z.shape != (len(z), latent_dim) or not torch.isfinite(z).all():
        raise ValueError(
            f"{name}: samples must be finite and of shape (n, {latent_dim}); "
            f"got shape {tuple(z.shape)}, {int((~torch.isfinite(z)).sum())} not finite."
        )
    if log_p.shape != (len(z),) or not torch.isfinite(log_p).all():
        raise ValueError(
            f"{name}: log_prob of n samples must be finite and of shape (n,); "
            f"got shape {tuple(log_p.shape)}, {int((~torch.isfinite(log_p)).sum())} not finite."
        )


def _check_density(name: str, p_z: TorchDistributionMixin, z: Tensor) -> str:
    """Integral of p and its first two moments by importance sampling, against the samples."""
    dim = z.shape[1]
    unchecked = f"integral not checkable in {dim} dimensions (try fewer)"
    if dim > _MAX_DIM:
        return unchecked
    # The proposal: a Student-t on each of some samples of p, as heavy-tailed as any prior worth the
    # name and as wide as the gap to that sample's neighbours, so that narrow parts are covered too.
    centres = z[:_KERNELS]
    gaps = _distances(centres, z[_KERNELS : 5 * _KERNELS]).kthvalue(10, dim=1).values
    widths = 2 * gaps.clamp(min=1e-6) / math.sqrt(dim)
    chi2 = dist.Chi2(z.new_tensor(_DF)).sample((_N, 1))
    shift = torch.randn_like(z) / (chi2 / _DF).sqrt()
    kernel = torch.randint(_KERNELS, (_N,), device=z.device)
    points = centres[kernel] + widths[kernel, None] * shift
    constant = (
        math.lgamma((_DF + dim) / 2)
        - math.lgamma(_DF / 2)
        - dim * math.log(_DF * math.pi) / 2
        - math.log(_KERNELS)
    )
    log_r = torch.cat(
        [
            _distances(part, centres)
            .div_(widths * math.sqrt(_DF))
            .square_()
            .log1p_()
            .mul_(-(_DF + dim) / 2)
            .sub_(dim * widths.log())
            .logsumexp(1)
            for part in points.split(5000)
        ]
    ).add_(constant)
    within = inside(p_z, points)
    if not within.all():
        moved = z + 1e-3 * z.std(0).max() * torch.randn_like(z)
        if inside(p_z, moved).float().mean() < 0.5:  # samples about their own place
            return "integral not checkable on a support without volume"
    weights = torch.zeros_like(log_r)
    weights[within] = (p_z.log_prob(points[within]) - log_r[within]).exp()
    total = weights.mean().item()
    error = weights.std().item() / math.sqrt(_N)
    if not error < 0.02 * max(total, 1.0):
        return unchecked
    if abs(total - 1) > 5 * error + 0.005:
        raise ValueError(
            f"{name}: exp(log_prob) must integrate to 1; got {total:.3f} +- {error:.3f}. "
            "Normalise the density."
        )
    _check_moments(name, z, points, weights)
    return f"integrates to {total:.3f}"


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Of all pairs; torch's default subtracts squares, which in float32 loses those below about .001."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _check_moments(name: str, z: Tensor, points: Tensor, weights: Tensor) -> None:
    """tanh of z and z^2 under the density and in the samples: bounded, so heavy tails do no harm."""
    for label, f in (("tanh(z)", torch.tanh), ("tanh(z^2)", lambda v: torch.tanh(v * v))):
        inside, sampled = f(points) * weights.unsqueeze(1), f(z)
        gap = (inside.mean(0) - sampled.mean(0)).abs()
        error = ((inside.var(0) + sampled.var(0)) / _N).sqrt()
        if (gap > 6 * error + 0.005).any():
            worst = int((gap - 6 * error).argmax())
            raise ValueError(
                f"{name}: samples must follow exp(log_prob); the mean of {label} in dimension {worst} "
                f"is {sampled.mean(0)[worst]:.3f} in samples and {inside.mean(0)[worst]:.3f} under "
                "the density. Make sample() and log_prob() describe one distribution."
            )


@contextmanager
def _own_noise(prior: nn.Module) -> Iterator[None]:
    """A seed of the check's own; the ambient generators are left as they were."""
    devices = {p.device for p in prior.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=devices), pyro.get_param_store().scope():
        torch.manual_seed(0)
        yield


def _check_gradients(name: str, prior: nn.Module) -> None:
    with torch.enable_grad(), _own_noise(prior):
        p_z = prior()
        own = {k: p for k, p in prior.named_parameters() if p.requires_grad}
        parameters = own | {
            k: p
            for k, p in pyro.get_param_store().named_parameters()
            if not any(p is held for held in own.values())
        }
        if not parameters:
            return
        # A clone: a transformed distribution remembers its own samples together with their path.
        loss = p_z.log_prob(p_z.sample((100,)).clone()).sum()
        if not loss.requires_grad:
            grads: tuple[Tensor | None, ...] = (None,) * len(parameters)
        else:
            grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    without = [k for k, g in zip(parameters, grads, strict=True) if g is None]
    if without:
        raise ValueError(
            f"{name}: log_prob must depend on every parameter; {', '.join(without)} got no gradient. "
            "Compute the distribution's parameters inside forward(), not in __init__."
        )
