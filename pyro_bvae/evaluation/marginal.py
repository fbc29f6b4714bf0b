"""log p(x) by importance sampling."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..device import widest
from ..vae import VAE

_DECODED = 1 << 18  # entries of x decoded at a time: memory depends on neither K nor the rows


def log_marginal(
    vae: VAE, x: Tensor, labels: Tensor | None = None, *, n_samples: int = 1000
) -> Tensor:
    """The importance-weighted bound log (1/K) sum_k p(x, z_k) / q(z_k|x), z_k ~ q(z|x), K = ``n_samples``.

    Below log p(x) on average, at K = 1 the ELBO (beta = 1 whatever was trained), and rising to log p(x)
    with K. The samples are streamed: memory does not grow with K.

    Args:
        vae: the model, used in the mode it is in; call ``vae.eval()`` first.
        x: ``(batch, *x_shape)``.
        labels: int64 ``(batch,)`` for a conditional model; the bound is then on log p(x|y).
        n_samples: K, at least 1.

    Returns:
        Tensor ``(batch,)``, nats per example, higher is better, without gradient.

    Raises:
        ValueError: ``n_samples`` is less than 1.

    References: Burda 2016, https://arxiv.org/abs/1509.00519
    """
    if n_samples < 1:
        raise ValueError(
            f"log_marginal: n_samples must be at least 1; got {n_samples}. The usual value is 1000."
        )
    size = max(1, _DECODED // math.prod(x.shape[1:]))
    with torch.no_grad():
        parts = [
            _bound(
                vae, x[i : i + size], None if labels is None else labels[i : i + size], n_samples
            )
            for i in range(0, len(x), size)
        ]
    return torch.cat(parts)


def _bound(vae: VAE, x: Tensor, labels: Tensor | None, n_samples: int) -> Tensor:
    q_z, p_z = vae.q_z(x, labels), vae.p_z()
    at_once = max(1, _DECODED // x.numel())
    total = x.new_full((len(x),), -math.inf, dtype=widest(x.device))
    for start in range(0, n_samples, at_once):
        z = q_z.sample((min(at_once, n_samples - start),))  # (k, batch, latent_dim)
        log_w = vae.log_px_z(x, z, labels) + p_z.log_prob(z) - q_z.log_prob(z)
        total = torch.logaddexp(total, log_w.to(total.dtype).logsumexp(0))
    return (total - math.log(n_samples)).to(x.dtype)
