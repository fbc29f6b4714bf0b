"""The posteriors of a data set, computed once and shared by every measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from ..datasets import Data
from ..datasets.data import DataLike
from ..guard import first_batch
from ..kl import closed_form
from ..vae import VAE, evaluating, vae_device, vae_dtype

BATCH = 500
Transform = Callable[[Tensor], Tensor] | None


class Codes(NamedTuple):
    """The posteriors of a data set, and the terms of its ELBO. Arrays over the same n rows."""

    loc: Tensor  # (n, latent_dim): posterior means
    scale: Tensor  # (n, latent_dim): posterior standard deviations
    z: Tensor  # (n, latent_dim): one sample each
    log_px_z: Tensor  # (n,) nats, at z
    kl: Tensor  # (n,) nats; at z where it is not in closed form
    kl_per_latent: Tensor | None  # (latent_dim,) nats; None where it does not split
    kl_closed_form: bool
    diagonal: bool  # loc and scale say all: the posteriors are diagonal Normals


def encode_data(vae: VAE, data: DataLike, transform: Transform = None) -> Codes:
    """Posteriors and ELBO terms of every row, in evaluation mode and batches, at beta = 1.

    Args:
        vae: the model.
        data: `Data`, an array or a tensor `(n, *x_shape)`, or the pair (x, labels).
        transform: as in `pyro_bvae.fit`.

    Raises:
        ValueError, TypeError: one sentence, where the rows do not fit the model.
    """
    data = first_batch(vae, data, "encode_data", transform).data
    parts: list[tuple[Tensor, ...]] = []
    split: list[Tensor | None] = []
    closed = diagonal = True
    with evaluating(vae):
        p_z = vae.p_z()
        for x, labels in batches(vae, data, transform):
            q_z = vae.q_z(x, labels)
            z = q_z.sample()
            kl = closed_form(q_z, p_z)
            if kl is None:
                kl, closed = q_z.log_prob(z) - p_z.log_prob(z), False
            log_px_z = vae.log_px_z(x, z, labels)
            parts.append((q_z.mean, q_z.variance.sqrt(), z, log_px_z, kl))
            split.append(_kl_per_latent(q_z, p_z))
            base = getattr(q_z, "base_dist", None)
            diagonal &= isinstance(base, torch.distributions.Normal)
    loc, scale, z, log_px_z, kl = (torch.cat(group) for group in zip(*parts, strict=True))
    per_latent = None
    if all(part is not None for part in split):
        per_latent = torch.stack([part for part in split if part is not None]).sum(0) / len(data)
    return Codes(loc, scale, z, log_px_z, kl, per_latent, closed, diagonal)


def batches(
    vae: VAE, data: Data, transform: Transform = None, size: int = BATCH
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """x and, for a conditional model, labels, on the model's device."""
    device, dtype = vae_device(vae), vae_dtype(vae)
    for start in range(0, len(data), size):
        rows = np.arange(start, min(start + size, len(data)))
        x, labels = data.tensors(rows, device, dtype)
        yield x if transform is None else transform(x), labels if vae.n_classes else None


def _kl_per_latent(q_z: TorchDistributionMixin, p_z: TorchDistributionMixin) -> Tensor | None:
    """Sum over rows of the KL of each latent: (latent_dim,); None where either does not factorise."""
    q, p = getattr(q_z, "base_dist", None), getattr(p_z, "base_dist", None)
    if q is None or p is None or len(p.batch_shape) != 1 or q.event_shape or p.event_shape:
        return None
    kl = closed_form(q, p)
    if kl is None:
        z = q.sample()
        kl = q.log_prob(z) - p.log_prob(z)
    return kl.sum(0)
