"""D(q(z), p(z)): how far the aggregate posterior is from the prior.

Each is a function ``(q_z, p_z, z) -> ()``: ``q_z`` the batch of posteriors (batch_shape ``(B,)``),
``p_z`` the prior (batch_shape ``()``), ``z (n, latent_dim)`` samples of the aggregate posterior. A
plain function of this signature is a divergence of one's own. Gradients reach a learnable prior through
``rsample``; where it has none, D is detached from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from . import pairwise
from .device import widest

Divergence = Callable[[TorchDistributionMixin, TorchDistributionMixin, Tensor], Tensor]

MMD_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def inclusive_kl(
    q_z: TorchDistributionMixin,
    p_z: TorchDistributionMixin,
    z: Tensor,
    *,
    n_samples: int | None = None,
) -> Tensor:
    """KL(p(z) || q(z)) = E_p[log p(z) - log (1/B) sum_i q(z|x_i)], in nats.

    Biased up, by Jensen's inequality: a batch stands for all the data. The bias grows with the
    dimension and with narrow posteriors, and has no correction.

    Args:
        q_z: posteriors, batch_shape ``(B,)``.
        p_z: prior.
        z: only its length is used.
        n_samples: fresh samples of the prior, as many as z by default.

    Returns:
        Tensor ``()``.

    References: Mathieu 2019, section 5, https://arxiv.org/abs/1812.02833
    """
    n = n_samples or len(z)
    if p_z.has_rsample:
        z_p = p_z.rsample((n,))
        log_p = p_z.log_prob(z_p)
    else:  # without the path of the samples, the gradient of log p alone would be wrong
        z_p = p_z.sample((n,))
        log_p = p_z.log_prob(z_p).detach()
    return log_p.mean() - mean_log_mixture(q_z, z_p)


def exclusive_kl(
    q_z: TorchDistributionMixin,
    p_z: TorchDistributionMixin,
    z: Tensor,
    *,
    estimator: str = "batch",
    dataset_size: int | None = None,
) -> Tensor:
    """KL(q(z) || p(z)) = E_q[log q(z) - log p(z)], in nats.

    Where posteriors do not overlap this is rate - log B: a KL term under another name.

    Args:
        q_z: posteriors, batch_shape ``(B,)``.
        p_z: prior.
        z: one sample each of the first n <= B posteriors, ``(n, latent_dim)``.
        estimator: of q(z): ``"batch"``, all B components (biased up); ``"leave_one_out"``, the others
            only (biased down, needs B >= 2); ``"mss"``, own component 1/N, others sharing 1 - 1/N
            (unbiased for q, Chen 2018 with the odd one out spread evenly).
        dataset_size: N, for ``"mss"``.

    Returns:
        Tensor ``()``.
    """
    own = _own_weight(q_z.batch_shape[0], estimator, dataset_size)
    return mean_log_mixture(q_z, z, own) - p_z.log_prob(z).mean()


def total_correlation(
    q_z: TorchDistributionMixin,
    p_z: TorchDistributionMixin,
    z: Tensor,
    *,
    estimator: str = "mss",
    dataset_size: int | None = None,
) -> Tensor:
    """TC(z) = KL(q(z) || prod_d q(z_d)), in nats: dependence between latents; the prior is unused.

    With alpha = beta_tc - 1 and beta = 1 this is the beta-TCVAE. Estimators as `exclusive_kl`; on small
    batches ``"mss"`` can be negative, which total correlation is not.

    Returns:
        Tensor ``()``.

    Raises:
        TypeError: the posterior is no product of scalar distributions.

    References: Chen 2018, https://arxiv.org/abs/1802.04942
    """
    base = getattr(q_z, "base_dist", None)
    if base is None or base.batch_shape[1:] != z.shape[1:] or base.event_shape:
        raise TypeError(
            f"total_correlation: the posterior must be a product over latents, such as "
            f"Normal(loc, scale).to_event(1); got {type(q_z).__name__}. Use exclusive-kl or mmd."
        )
    own = _own_weight(q_z.batch_shape[0], estimator, dataset_size)
    if _has_blocks(base):
        of = (z, base.loc, base.scale, own)
        joint, marginals = (pairwise.mean_log_mixture(*of, per_dim) for per_dim in (False, True))
        return (joint - marginals).to(z.dtype)
    log_q_d = base.log_prob(z.unsqueeze(1))  # (n, B, D)
    log_w = _log_weights(log_q_d[..., 0], own)
    log_q = torch.logsumexp(log_q_d.sum(-1) + log_w, 1)
    return (log_q - torch.logsumexp(log_q_d + log_w.unsqueeze(-1), 1).sum(-1)).mean()


def mmd(
    q_z: TorchDistributionMixin,
    p_z: TorchDistributionMixin,
    z: Tensor,
    *,
    n_samples: int | None = None,
) -> Tensor:
    """MMD^2 between samples of q(z) and p(z) with an inverse-multiquadric kernel, U-statistic.

    sum_s [mean_{i != j} k(z_i, z_j) + mean_{i != j} k(p_i, p_j) - 2 mean_ij k(z_i, p_j)] with k(a, b) =
    C/(C + |a - b|^2), C = 2 D s, s in ``MMD_SCALES``. Dimensionless, unbiased, so it may be slightly
    negative; one sample gives 0.

    Args:
        q_z: unused.
        p_z: prior.
        z: samples of q(z), ``(n, D)``.
        n_samples: prior samples, n by default.

    Returns:
        Tensor ``()``.

    References: Tolstikhin 2018, https://arxiv.org/abs/1711.01558
    """
    return _mmd(p_z, z, n_samples, per_dim=False)


def mmd_per_dim(
    q_z: TorchDistributionMixin,
    p_z: TorchDistributionMixin,
    z: Tensor,
    *,
    n_samples: int | None = None,
) -> Tensor:
    """`mmd` of each latent dimension alone (C = 2 s on scalars), summed: matches the marginals.

    It does not see dependence between latents.

    Returns:
        Tensor ``()``, dimensionless.

    References: Mathieu 2019, appendix on the sparsity experiment.
    """
    return _mmd(p_z, z, n_samples, per_dim=True)


DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "inclusive-kl": inclusive_kl,
    "exclusive-kl": exclusive_kl,
    "mmd": mmd,
    "mmd-per-dim": mmd_per_dim,
    "total-correlation": total_correlation,
}


def mean_log_mixture(q_z: TorchDistributionMixin, z: Tensor, own: float | None = None) -> Tensor:
    """mean_i log sum_j w_ij q(z_i | x_j), in nats.

    Args:
        q_z: posteriors, batch_shape ``(B,)``. Diagonal Normals are visited in blocks with an analytic
            gradient, in O(B D) memory; others, and all on a device without float64, in O(n B D).
        z: ``(n, latent_dim)``.
        own: w_ii, 1/B by default; the others of row i share the rest equally.

    Returns:
        Tensor ``()``.
    """
    base: Any = getattr(q_z, "base_dist", None)
    if _has_blocks(base) and len(q_z.event_shape) == 1:
        return pairwise.mean_log_mixture(z, base.loc, base.scale, own).to(z.dtype)
    log_q = q_z.log_prob(z.unsqueeze(1))
    return torch.logsumexp(log_q + _log_weights(log_q, own), 1).mean()


def _has_blocks(base: Any) -> bool:
    """Whether `pairwise.mean_log_mixture` serves: float32 is too narrow for its expanded squares."""
    return isinstance(base, torch.distributions.Normal) and widest(base.loc.device) is torch.float64


def _own_weight(batch: int, estimator: str, dataset_size: int | None) -> float | None:
    """Weight of a sample's own posterior in the mixture; None: that of all the others."""
    if estimator == "batch":
        return None
    if estimator == "leave_one_out":
        if batch < 2:
            raise ValueError(
                "leave_one_out: the batch must have at least 2 rows; got 1. Use estimator='batch'."
            )
        return 0.0
    if estimator == "mss":
        if dataset_size is None or dataset_size < batch:
            raise ValueError(
                f"mss: dataset_size must be the number of training rows, at least the batch's {batch}; "
                f"got {dataset_size}."
            )
        return 1 / dataset_size if batch > 1 else None  # a batch of one stands for all the data
    raise ValueError(f"estimator must be 'batch', 'leave_one_out' or 'mss'; got {estimator!r}.")


def _log_weights(log_q: Tensor, own: float | None) -> Tensor:
    """Log mixture weights of component j for sample i, ``(n, B)``, rows summing to 1."""
    n, batch = log_q.shape
    if own is None:
        return log_q.new_full((), -math.log(batch))
    weights = log_q.new_full((n, batch), (1 - own) / (batch - 1))
    weights.diagonal().fill_(own)
    return weights.log()


def _mmd(p_z: TorchDistributionMixin, z: Tensor, n_samples: int | None, per_dim: bool) -> Tensor:
    m = n_samples or len(z)
    z_p = p_z.rsample((m,)) if p_z.has_rsample else p_z.sample((m,))
    if len(z) < 2 or m < 2:
        return (0.0 * z).sum()
    widths = tuple(2.0 * s * (1 if per_dim else z.shape[1]) for s in MMD_SCALES)
    return pairwise.mmd(z, z_p, widths, per_dim).to(z.dtype)
