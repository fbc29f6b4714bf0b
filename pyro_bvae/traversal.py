"""Latent traversals: what is decoded as one latent moves and the others stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .vae import VAE, evaluating

_BATCH = 500


def traversal(
    vae: VAE,
    z: Tensor,
    latents: Sequence[int],
    values: Tensor,
    labels: Tensor | int | None = None,
) -> Tensor:
    """Decode ``z`` again and again with one latent set to each of ``values`` in turn.

    Args:
        vae: the model; decoded in evaluation mode, and left as it was.
        z: ``(latent_dim,)``, where the other latents stay.
        latents: those that move, one a row.
        values: ``(columns,)`` for every row, or ``(rows, columns)``.
        labels: the class held, for a conditional model.

    Returns:
        Means of p(x|z), ``(rows, columns, *x_shape)``.

    Raises:
        ValueError: z is not one code, a latent does not exist, or values do not fit the rows.
    """
    if z.dim() != 1:
        raise ValueError(
            f"traversal: z must be one code, (latent_dim,); got shape {tuple(z.shape)}. Pass one row."
        )
    if not latents or min(latents) < 0 or max(latents) >= len(z):
        raise ValueError(
            f"traversal: latents must be numbers from 0 to {len(z) - 1}; got {list(latents)}."
        )
    if values.dim() not in (1, 2) or (values.dim() == 2 and len(values) != len(latents)):
        raise ValueError(
            f"traversal: values must have shape (columns,) or ({len(latents)}, columns); got "
            f"{tuple(values.shape)}. Give one row a latent."
        )
    codes = z.repeat(len(latents), values.shape[-1], 1)  # (rows, columns, latent_dim)
    values = values.to(codes).expand(codes.shape[:2])
    for row, latent in enumerate(latents):
        codes[row, :, latent] = values[row]
    return decode(vae, codes, labels)


def manifold(vae: VAE, across: Tensor, up: Tensor, labels: Tensor | int | None = None) -> Tensor:
    """Decode the grid over the two latents of a two-dimensional model.

    Args:
        vae: the model, of two latents.
        across: ``(n0,)``, values of z0.
        up: ``(n1,)``, values of z1.
        labels: the class held, for a conditional model.

    Returns:
        Means of p(x|z), ``(n1, n0, *x_shape)``: row i, column j is decoded from
        (across[j], up[i]).
    """
    z1, z0 = torch.meshgrid(up, across, indexing="ij")
    return decode(vae, torch.stack([z0, z1], -1), labels)


def decode(vae: VAE, codes: Tensor, labels: Tensor | int | None = None) -> Tensor:
    """Means of p(x|z) at ``codes (*batch, latent_dim)``: ``(*batch, *x_shape)``, all of one class."""
    means = []
    with evaluating(vae):
        for z in codes.reshape(-1, codes.shape[-1]).split(_BATCH):
            given = None
            if labels is not None:
                given = torch.as_tensor(labels, device=z.device).reshape(-1).expand(len(z))
            means.append(vae.p_x(z, given).mean)
    x = torch.cat(means)
    return x.reshape(*codes.shape[:-1], *x.shape[1:])


def prior_range(vae: VAE, tail: float = 0.01, n: int = 10_000) -> Tensor:
    """Quantiles ``tail`` and 1 - ``tail`` of every latent under the prior, from ``n`` samples.

    Returns:
        Tensor ``(2, latent_dim)``. The ambient generators are left as they were.
    """
    with evaluating(vae, seed=0):
        z = vae.p_z().sample((n,))
    levels = torch.tensor([tail, 1 - tail], device=z.device, dtype=z.dtype)
    return torch.quantile(z, levels, dim=0)


def latent_order(
    metrics: Mapping[str, Any], active: bool = False
) -> tuple[list[int], list[str], str]:
    """Order the latents by what they carry, from a run's metrics.

    Args:
        metrics: ``latents``, their number, and where known ``kl_per_latent``, in nats, or else
            ``signal_per_latent``, the variance of posterior means over the mean posterior variance;
            for ``active``, ``active_latents``.
        active: leave out the latents that are not among ``active_latents``.

    Returns:
        The latents, most first; a text for each, as ``z3  2.1 nats``; and how they were ordered.

    Raises:
        ValueError: ``active`` where it is not known which are, or where none is.

    Examples:
        >>> latent_order({"latents": 2, "kl_per_latent": [0.5, 2.125]})
        ([1, 0], ['z1  2.1 nats', 'z0  0.5 nats'], 'ordered by KL')
    """
    kl, signal = metrics.get("kl_per_latent"), metrics.get("signal_per_latent")
    if kl is not None:
        values, how = kl, "ordered by KL"
        texts = [f"z{k}  {value:.{1 if value >= 0.1 else 2}f} nats" for k, value in enumerate(kl)]
    elif signal is not None:
        values, how = signal, "ordered by Var(μ) / E(σ²)"
        texts = [f"z{k}  signal {value:.3g}" for k, value in enumerate(signal)]
    else:
        values, how = [0.0] * metrics["latents"], "in their own order"
        texts = [f"z{k}" for k in range(len(values))]
    order = sorted(range(len(values)), key=lambda k: -values[k])
    if active:
        order = _active(order, metrics.get("active_latents"))
    return order, [texts[k] for k in order], how


def _active(order: list[int], active: Sequence[int] | None) -> list[int]:
    if active is None:
        raise ValueError(
            "traversal: active latents must be in metrics.json; got none there. Measure the run first: "
            "pyro-bvae evaluate RUN"
        )
    kept = [k for k in order if k in active]
    if not kept:
        raise ValueError(
            f"traversal: active latents must be 1 or more; got 0 of {len(order)}. "
            "Leave --active out to see them all."
        )
    return kept
