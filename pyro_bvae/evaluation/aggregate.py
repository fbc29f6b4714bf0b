"""The aggregate posterior q(z) = (1/M) sum_m q(z|x_m), all M rows as its components."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..device import widest
from ..divergences import inclusive_kl, mmd, mmd_per_dim
from ..pairwise import UNDERFLOW
from ..vae import VAE
from .codes import Codes

MAX_ROWS = 2_000
"""Rows whose sample of z estimates an expectation over q(z)."""
_BLOCK = 1 << 19  # entries of one block of pairs


def aggregate_divergence(
    vae: VAE, codes: Codes, divergence: Callable[..., Tensor], max_rows: int = MAX_ROWS
) -> dict[str, Any]:
    """D(q(z), p(z)) with all the rows as components of q(z), not a batch.

    ``divergence`` sees every posterior and samples z of ``max_rows`` of them; `inclusive_kl` draws up to
    20,000 samples of the prior. MMD is unbiased at any number of rows. The KLs are not: half the rows
    are measured too, and where the two differ the value is still falling towards its limit.

    Returns:
        ``divergence`` and ``divergence_at_half``, None for a KL where the posteriors are not diagonal
        Normals; ``divergence_components``, the number of rows; ``rate_minus_log_components``, nats: what the
        exclusive KL cannot fall below where posteriors do not overlap; for the inclusive KL
        ``divergence_outside``, see `outside`.
    """
    n = len(codes.loc)
    out: dict[str, Any] = {"divergence": None, "divergence_at_half": None}
    out["divergence_components"] = n
    out["rate_minus_log_components"] = codes.kl.mean().item() - math.log(n)
    order = torch.randperm(n).to(codes.loc.device)
    for name, m in (("divergence", n), ("divergence_at_half", max(1, n // 2))):
        out[name] = _divergence(vae, codes, divergence, order[:m], max_rows)
    if codes.diagonal and getattr(divergence, "func", divergence) is inclusive_kl:
        with torch.random.fork_rng([codes.loc.device] if codes.loc.is_cuda else []):
            out["divergence_outside"] = outside(codes.loc, codes.scale, vae.p_z().sample((1000,)))
    return out


def outside(loc: Tensor, scale: Tensor, z: Tensor) -> float:
    """The share of ``z``, samples of the prior, that lie outside every posterior.

    Outside means farther from the mean than all but .001 of the posterior's own samples, in its own scales:
    there q(z) is read off the tail of one posterior, whose distance says little of the aggregate.

    Args:
        loc: ``(M, D)``.
        scale: ``(M, D)``.
        z: ``(n, D)``.
    """
    d = z.shape[1]
    # the square distance is chi-squared with D degrees: its quantile, by Wilson and Hilferty (1931)
    limit = d * (1 - 2 / (9 * d) + 3.09 * math.sqrt(2 / (9 * d))) ** 3
    dtype = widest(loc.device)
    loc, precision = loc.to(dtype), scale.to(dtype).pow(-2).T
    pull = loc.T * precision
    constant = (loc.T * pull).sum(0)
    nearest = [
        (block.square() @ precision - 2 * block @ pull + constant).amin(1)
        for block in z.to(dtype).split(max(1, _BLOCK // len(loc)))
    ]
    return (torch.cat(nearest) > limit).float().mean().item()


def divergences(
    vae: VAE, codes: Codes, by_name: Mapping[str, Callable[..., Tensor]]
) -> dict[str, Any]:
    """D(q(z), p(z)) by several divergences, all the rows as components; None as in `aggregate_divergence`."""
    n = len(codes.loc)
    rows = torch.randperm(n).to(codes.loc.device)
    values = {
        name: _divergence(vae, codes, divergence, rows, MAX_ROWS)
        for name, divergence in by_name.items()
    }
    return {"divergences": values, "divergences_components": n}


def _divergence(
    vae: VAE, codes: Codes, divergence: Callable[..., Tensor], rows: Tensor, max_rows: int
) -> float | None:
    n, latent_dim = codes.loc.shape
    function = getattr(divergence, "func", divergence)
    bound = getattr(divergence, "keywords", {})
    if not codes.diagonal and function not in (mmd, mmd_per_dim):  # these look at z alone
        return None
    options: dict[str, Any] = {}
    if function is inclusive_kl and not bound.get("n_samples"):
        options["n_samples"] = max(1000, min(20_000, 10**9 // (n * latent_dim)))
    if "dataset_size" in bound:  # the rows are all there is, be they a half
        options["dataset_size"] = len(rows)
    q_z = dist.Normal(codes.loc[rows], codes.scale[rows]).to_event(1)
    return divergence(q_z, vae.p_z(), codes.z[rows[:max_rows]], **options).item()


def information(vae: VAE, codes: Codes, max_rows: int = MAX_ROWS) -> dict[str, Any]:
    """Where the rate goes: E KL = I(x;z) + KL(q(z) || p(z)), the latter TC + dimension-wise KL.

    I(x;z) = E[log q(z|x) - log q(z)], TC = E[log q(z) - sum_d log q(z_d)] and the dimension-wise KL
    E[sum_d log q(z_d) - log p(z)], in nats, over one z of each of ``max_rows`` random rows (the
    split of Hoffman & Johnson 2016 and Chen 2018). Each z's own posterior is among the M components:
    I is biased down and cannot exceed log M, and KL(q(z) || p(z)) is biased up by as much.

    The overlap exp E_z H[p(n|z)], p(n|z) = q(z|x_n) / sum_m q(z|x_m), is the effective number of the M
    points a code could belong to: 1 for a look-up table, M for a collapsed posterior.

    Returns:
        ``mutual_information``, ``aggregate_kl``, ``total_correlation``, ``dimension_wise_kl`` (None where
        the prior does not factorise), each with ``*_se``; ``overlap``; ``aggregate_components`` M,
        ``aggregate_samples``, ``log_components`` and ``information_bounded``, whether I > log M - 1: I is
        then only a lower bound, and KL(q(z) || p(z)) an upper one. All None where the posteriors are not
        diagonal Normals.

    References: https://arxiv.org/abs/1802.04942, https://arxiv.org/abs/1812.02833 (overlap)
    """
    n = len(codes.loc)
    rows = torch.randperm(n).to(codes.loc.device)[:max_rows]
    out: dict[str, Any] = {
        "aggregate_components": n,
        "aggregate_samples": len(rows),
        "log_components": math.log(n),
    }
    names = ("mutual_information", "aggregate_kl", "total_correlation", "dimension_wise_kl")
    if not codes.diagonal:
        empty = (*names, *(f"{name}_se" for name in names), "overlap", "information_bounded")
        return out | dict.fromkeys(empty)
    z, p_z = codes.z[rows], vae.p_z()
    own = dist.Normal(codes.loc[rows], codes.scale[rows]).log_prob(z).sum(1)
    joint, product, entropy = _log_densities(z, codes.loc, codes.scale)
    log_p = p_z.log_prob(z)
    base = getattr(p_z, "base_dist", None)
    factorised = base is not None and base.batch_shape == p_z.event_shape and not base.event_shape
    terms = (
        own - joint,
        joint - log_p,
        joint - product,
        product - log_p if factorised else None,
    )
    for name, values in zip(names, terms, strict=True):
        out[name] = None if values is None else values.mean().item()
        out[f"{name}_se"] = None if values is None else standard_error(values)
    out["overlap"] = math.exp(entropy.mean().item())
    out["information_bounded"] = out["mutual_information"] > out["log_components"] - 1
    return out


def standard_error(values: Tensor) -> float | None:
    """Of the mean over rows; None for a single one."""
    n = len(values)
    return values.std(correction=1).item() / math.sqrt(n) if n > 1 else None


def _log_densities(z: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log q(z), sum_d log q(z_d), and H[p(m|z)] for each z, ``(n,)`` in nats, in blocks of rows."""
    means, inverse = loc.T.contiguous(), scale.T.reciprocal().contiguous()
    constant = inverse.log() - 0.5 * math.log(2 * math.pi)  # (latent_dim, M)
    log_m = math.log(len(loc))
    parts = []
    size = max(1, _BLOCK // len(loc))
    for block in z.split(size):
        joint = z.new_zeros(len(block), len(loc))
        product = z.new_zeros(len(block))
        for d in range(z.shape[1]):
            one = (
                ((block[:, d, None] - means[d]) * inverse[d]).square_().mul_(-0.5).add_(constant[d])
            )
            joint += one
            product += _logsumexp(one) - log_m
        total = _logsumexp(joint.clone())
        share = joint.sub_(total[:, None])  # log p(m|z)
        entropy = -(share.clamp(min=UNDERFLOW).exp() * share).sum(1)
        parts.append((total - log_m, product, entropy))
    whole = [torch.cat(group) for group in zip(*parts, strict=True)]
    return whole[0], whole[1], whole[2]


def _logsumexp(joint: Tensor) -> Tensor:
    """`torch.logsumexp` over columns, in place."""
    top = joint.amax(1)
    return joint.sub_(top[:, None]).clamp_(min=UNDERFLOW).exp_().sum(1).log_().add_(top)
