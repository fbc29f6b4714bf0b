"""D(q(z), p(z)): how far the aggregate posterior is from the prior.

Each is a function ``(q_z, p_z, z) -> ()``: ``q_z`` the batch of posteriors (batch_shape ``(B,)``),
``p_z`` the prior (batch_shape ``()``), ``z (n, latent_dim)`` samples of the aggregate posterior. A
plain function of this signature is a divergence of one's own. Gradients reach a learnable prior through
``rsample``; where it has none, D is detached from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.autograd.function import once_differentiable

Divergence = Callable[[TorchDistributionMixin, TorchDistributionMixin, Tensor], Tensor]

MMD_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
UNDERFLOW = -60.0  # exp of less is negligible beside 1, and below -87 fifty times slower on a CPU
_BLOCK = 1 << 18  # elements of one block of pairs: a few of them stay in a CPU's second-level cache


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
    weights = z_p.new_tensor(-math.log(q_z.batch_shape[0]))
    return (log_p - log_mixture(q_z, z_p, weights)).mean()


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
    log_weights = _log_weights(q_z, z, estimator, dataset_size)
    return (log_mixture(q_z, z, log_weights) - p_z.log_prob(z)).mean()


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
    log_weights = _log_weights(q_z, z, estimator, dataset_size)
    if isinstance(base, torch.distributions.Normal):
        joint: Tensor = _LogMixture.apply(z, base.loc, base.scale, log_weights)
        # One latent after another, so that no n x B x D tensor is held.
        for d in range(z.shape[1]):
            one = slice(d, d + 1)
            joint = joint - _LogMixture.apply(
                z[:, one], base.loc[:, one], base.scale[:, one], log_weights
            )
        return joint.mean()
    log_q_d = base.log_prob(z.unsqueeze(1))  # (n, B, D)
    joint = torch.logsumexp(log_q_d.sum(-1) + log_weights, 1)
    return (joint - torch.logsumexp(log_q_d + log_weights.unsqueeze(-1), 1).sum(-1)).mean()


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
    return _mmd(p_z, z, n_samples, _kernel_sum_joint, 2.0 * z.shape[1])


def mmd_per_dim(
    q_z: TorchDistributionMixin,
    p_z: TorchDistributionMixin,
    z: Tensor,
    *,
    n_samples: int | None = None,
) -> Tensor:
    """`mmd` of each latent dimension alone (C = 2 s on scalars), summed: matches the marginals.

    It does not see dependence between latents. Memory grows as O(B D): pairs are visited in blocks.

    Returns:
        Tensor ``()``, dimensionless.

    References: Mathieu 2019, appendix on the sparsity experiment.
    """
    return _mmd(p_z, z, n_samples, _kernel_sum_per_dim, 2.0)


DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "inclusive-kl": inclusive_kl,
    "exclusive-kl": exclusive_kl,
    "mmd": mmd,
    "mmd-per-dim": mmd_per_dim,
    "total-correlation": total_correlation,
}


def log_mixture(q_z: TorchDistributionMixin, z: Tensor, log_weights: Tensor) -> Tensor:
    """log sum_j w_ij q(z_i | x_j), in nats.

    Args:
        q_z: posteriors, batch_shape ``(B,)``. Diagonal Normals are visited in blocks with an analytic
            gradient, in O(B D) memory; others in O(n B D).
        z: ``(n, latent_dim)``.
        log_weights: log w, ``(n, B)`` or broadcastable to it.

    Returns:
        Tensor ``(n,)``.
    """
    base = getattr(q_z, "base_dist", None)
    if isinstance(base, torch.distributions.Normal) and len(q_z.event_shape) == 1:
        total: Tensor = _LogMixture.apply(z, base.loc, base.scale, log_weights)
        return total
    return torch.logsumexp(q_z.log_prob(z.unsqueeze(1)) + log_weights, 1)


def _log_weights(
    q_z: TorchDistributionMixin, z: Tensor, estimator: str, dataset_size: int | None
) -> Tensor:
    """Log mixture weights of component j for sample i, ``(n, B)``, rows summing to 1.

    ``()`` where they are all equal, since n x B weights can be larger than everything else.
    """
    batch = q_z.batch_shape[0]
    if estimator == "batch":
        own, other = 1 / batch, 1 / batch
    elif estimator == "leave_one_out":
        if batch < 2:
            raise ValueError(
                "leave_one_out: the batch must have at least 2 rows; got 1. Use estimator='batch'."
            )
        own, other = 0.0, 1 / (batch - 1)
    elif estimator == "mss":
        if dataset_size is None or dataset_size < batch:
            raise ValueError(
                f"mss: dataset_size must be the number of training rows, at least the batch's {batch}; "
                f"got {dataset_size}."
            )
        own = 1 / dataset_size if batch > 1 else 1.0  # a batch of one stands for all the data
        other = (1 - own) / max(1, batch - 1)
    else:
        raise ValueError(f"estimator must be 'batch', 'leave_one_out' or 'mss'; got {estimator!r}.")
    log_own = math.log(own) if own else -math.inf
    log_other = math.log(other) if other else -math.inf
    if own == other:
        return z.new_tensor(log_own)
    eye = torch.eye(len(z), batch, dtype=torch.bool, device=z.device)
    return torch.where(eye, z.new_tensor(log_own), z.new_tensor(log_other))


def _mmd(
    p_z: TorchDistributionMixin,
    z: Tensor,
    n_samples: int | None,
    kernel_sum: Callable[[Tensor, Tensor | None, float], Tensor],
    width: float,
) -> Tensor:
    m = n_samples or len(z)
    n = len(z)
    z_p = p_z.rsample((m,)) if p_z.has_rsample else p_z.sample((m,))
    if n < 2 or m < 2:
        return (0.0 * z).sum()
    within_q = kernel_sum(z, None, width) / (n * (n - 1))
    within_p = kernel_sum(z_p, None, width) / (m * (m - 1))
    return (within_q + within_p - 2 * kernel_sum(z, z_p, width) / (n * m)).to(z.dtype)


def _kernel_sum_joint(x: Tensor, y: Tensor | None, width: float) -> Tensor:
    """sum_s sum_ij k(x_i, y_j), over i != j where y is None: float64 ``()``."""
    other = x if y is None else y
    square = (x.square().sum(1)[:, None] + other.square().sum(1) - 2 * x @ other.T).clamp(min=0)
    if y is None:
        square = square.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), math.inf)
    total: Tensor = sum((c / (c + square)).sum(dtype=torch.float64) for c in _widths(width))  # type: ignore[assignment]
    return total


def _kernel_sum_per_dim(x: Tensor, y: Tensor | None, width: float) -> Tensor:
    """sum_s sum_d sum_ij k(x_id, y_jd), over i != j where y is None: float64 ``()``."""
    total: Tensor = _PairSum.apply(x, y, _widths(width))
    if y is None:
        total = total - x.numel() * float(len(MMD_SCALES))  # k(a, a) = 1 on the diagonal
    return total


def _widths(width: float) -> tuple[float, ...]:
    return tuple(width * s for s in MMD_SCALES)


class _PairSum(torch.autograd.Function):
    """sum_d sum_ij f(x_id - y_jd), f(a) = sum_c c/(c + a^2), with its gradient found in the same pass.

    Autograd through the direct form would keep 2 x 6 tensors of B x B x D.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor | None, widths: tuple[float, ...]) -> Tensor:
        other = x if y is None else y
        want_x, want_y = ctx.needs_input_grad[:2]
        total = x.new_zeros((), dtype=torch.float64)
        grad_x = torch.zeros_like(x) if want_x else None
        grad_y = torch.zeros_like(other) if want_y else None
        rows = max(1, _BLOCK // 4 // max(1, other.numel()))
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            difference = x[part, None] - other
            value, slope = _kernel_block(difference, widths, want_x or want_y)
            total += value
            if slope is not None:
                if grad_x is not None:
                    grad_x[part] = slope.sum(1)
                if grad_y is not None:
                    grad_y -= slope.sum(0)
        if grad_x is not None and y is None:
            grad_x *= 2  # x stands on both sides, and f is even
        ctx.save_for_backward(grad_x, grad_y)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_x, grad_y = ctx.saved_tensors
        scaled = [None if g is None else g * grad.to(g.dtype) for g in (grad_x, grad_y)]
        return scaled[0], scaled[1], None


class _LogMixture(torch.autograd.Function):
    """log sum_j w_ij N(z_i; loc_j, scale_j^2), one latent dimension after another.

    Autograd through the direct form would keep several n x B x D tensors; here only the result is kept,
    and the responsibilities are found again for the gradient.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, loc: Tensor, scale: Tensor, log_weights: Tensor) -> Tensor:
        total = torch.cat(
            [logsumexp_in_place(joint) for _, joint in _joint_blocks(z, loc, scale, log_weights)]
        )
        ctx.save_for_backward(z, loc, scale, log_weights, total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, loc, scale, log_weights, total = ctx.saved_tensors
        grad_z = torch.zeros_like(z)
        grad_loc, grad_scale = torch.zeros_like(loc.T), torch.zeros_like(scale.T)
        means, inverse = loc.T.contiguous(), scale.T.reciprocal().contiguous()
        for rows, joint in _joint_blocks(z, loc, scale, log_weights):
            joint -= total[rows, None]
            weight = joint.clamp_(min=UNDERFLOW).exp_().mul_(grad[rows, None])  # responsibilities
            mass = weight.sum(0)
            standard, pull = torch.empty_like(weight), torch.empty_like(weight)
            for d in range(z.shape[1]):
                torch.sub(z[rows, d, None], means[d], out=standard).mul_(inverse[d])
                torch.mul(weight, standard, out=pull)
                grad_z[rows, d] = -(pull @ inverse[d])
                grad_loc[d] += pull.sum(0)
                grad_scale[d] += pull.mul_(standard).sum(0) - mass
        return grad_z, (grad_loc * inverse).T, (grad_scale * inverse).T, None


def logsumexp_in_place(joint: Tensor) -> Tensor:
    """`torch.logsumexp` over columns, in place."""
    top = joint.amax(1)
    return joint.sub_(top[:, None]).clamp_(min=UNDERFLOW).exp_().sum(1).log_().add_(top)


def _joint_blocks(
    z: Tensor, loc: Tensor, scale: Tensor, log_weights: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Rows of z in blocks, and log w_ij + log N(z_i; loc_j, scale_j^2) for them: ``(rows, B)``."""
    means, inverse = loc.T.contiguous(), scale.T.reciprocal().contiguous()
    constant = -scale.log().sum(1) - 0.5 * loc.shape[1] * math.log(2 * math.pi)
    size = max(1, _BLOCK // len(loc))
    for start in range(0, len(z), size):
        rows = slice(start, start + size)
        weights = log_weights[rows] if log_weights.dim() == 2 else log_weights
        joint = (constant + weights).expand(len(z[rows]), -1).clone()
        standard = torch.empty_like(joint)
        for d in range(z.shape[1]):
            torch.sub(z[rows, d, None], means[d], out=standard).mul_(inverse[d])
            joint.addcmul_(standard, standard, value=-0.5)
        yield rows, joint


def _kernel_block(
    difference: Tensor, widths: tuple[float, ...], want_slope: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum of f over a block, and f' at each entry (in place of ``difference``)."""
    square = difference * difference
    value = torch.zeros_like(square)
    slope = torch.zeros_like(square) if want_slope else None
    inverse = torch.empty_like(square)
    for c in widths:
        torch.add(square, c, out=inverse).reciprocal_()
        value.add_(inverse, alpha=c)
        if slope is not None:
            slope.addcmul_(inverse, inverse, value=-2 * c)
    if slope is not None:
        slope.mul_(difference)
    return value.sum().double(), slope  # within a block float32 adds pairwise, to 1e-7
