"""Means over all pairs of two batches, in O(B D) memory, with their gradients found in the same pass.

Autograd through the direct forms would keep several tensors of B x B or B x B x D. Here pairs are
visited in blocks. While a training step is recorded by `torch.fx`, each function is one opaque operator
of the graph, since its loops, unrolled, would be thousands of nodes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .device import widest
from .pairloop import row_sums

UNDERFLOW = -60.0  # exp of less is negligible beside 1, and below -87 fifty times slower on a CPU
_BLOCK = 1 << 16  # pairs in a block: a few such tensors stay in a CPU's second-level cache


def mean_log_mixture(
    z: Tensor, loc: Tensor, scale: Tensor, own: float | None = None, per_dim: bool = False
) -> Tensor:
    """mean_i log sum_j w_ij N(z_i; loc_j, diag scale_j^2), in nats.

    The square (z - loc)^2 / scale^2 is expanded, which makes all pairs one matrix product: in float64,
    since its terms cancel. Exponentials are in the dtype of z.

    Args:
        z: ``(n, D)``.
        loc: ``(B, D)``.
        scale: ``(B, D)``.
        own: w_ii; each other component of row i has (1 - w_ii)/(B - 1). All have 1/B by default.
        per_dim: the sum over d of this for coordinate d alone.

    Returns:
        Tensor ``()``, float64.
    """
    if own is None or len(loc) == 1:
        share = other = 1 / len(loc)
    else:
        share, other = own, (1 - own) / (len(loc) - 1)

    def compute(*inputs: Tensor, want: list[bool]) -> tuple[Tensor, ...]:
        return _MIXTURE(*inputs, share, other, per_dim, want)

    return _with_gradients(compute, z, loc, scale)


def mmd(x: Tensor, y: Tensor, widths: tuple[float, ...], per_dim: bool = False) -> Tensor:
    """Squared MMD of x and y as a U-statistic, k(a, b) = sum_c c/(c + |a - b|^2); dimensionless.

    Args:
        x: ``(n, D)``, n >= 2.
        y: ``(m, D)``, m >= 2.
        widths: each c, positive.
        per_dim: the sum over d of this for coordinate d alone.

    Returns:
        Tensor ``()``, of the `widest` dtype; kernels, and per dimension the gradients, are in the dtype of x.
    """

    def compute(*inputs: Tensor, want: list[bool]) -> tuple[Tensor, ...]:
        return (_MMD_PER_DIM if per_dim else _MMD)(*inputs, list(widths), want)

    return _with_gradients(compute, x, y)


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> Tensor:
        value, *gradients = compute(*inputs, want=list(ctx.needs_input_grad[1:]))
        ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        return None, *(g * grad.to(g.dtype) if want else None for g, want in wanted)


def _with_gradients(compute: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> Tensor:
    """The first result of ``compute``; the others are its gradients by ``inputs``, where wanted."""
    if not torch.is_grad_enabled():
        inputs = tuple(tensor.detach() for tensor in inputs)
    value: Tensor = _WithGradients.apply(compute, *inputs)
    return value


def _opaque(
    name: str,
    arguments: str,
    function: Callable[..., Any],
    replayed: Callable[..., Any] | None = None,
) -> Callable[..., tuple[Tensor, ...]]:
    """``function``, or while a graph is recorded the operator that stands there for it.

    ``arguments`` is its schema, tensors first; ``bool[] want`` follows, whose gradients are wanted. It runs
    ``replayed``, if given. Where nothing is recorded it would only cost its 30 microseconds a call.
    """
    count = arguments.count("Tensor")
    schema = f"({arguments}, bool[] want) -> ({', '.join(['Tensor'] * (count + 1))})"
    body, name = replayed or function, f"pyro_bvae::{name}"
    operator = torch.library.custom_op(name, body, mutates_args=(), schema=schema)
    operator.register_fake(lambda *args: _outputs(args[:count], args[-1]))

    def call(*args: Any) -> tuple[Tensor, ...]:
        return (function if get_proxy_mode() is None else operator)(*args)

    return call


def _outputs(inputs: tuple[Tensor, ...], want: list[bool]) -> tuple[Tensor, ...]:
    """Room for a value, and for a gradient of each input; none where it is not wanted."""
    value = inputs[0].new_zeros((), dtype=widest(inputs[0].device))
    gradients = (t.new_zeros(t.shape if w else (0,)) for t, w in zip(inputs, want, strict=True))
    return value, *gradients


def _mixture(
    z: Tensor,
    loc: Tensor,
    scale: Tensor,
    own: float,
    other: float,
    per_dim: bool,
    want: list[bool],
) -> tuple[Tensor, ...]:
    groups = [t.double().T[..., None] if per_dim else t.double()[None] for t in (z, loc, scale)]
    components, samples = _factors(math.log(other), *groups)
    wanted = (want[0], want[1] or want[2])
    added = math.log(own / other) if own else -math.inf
    value, sums, moments = _responsibilities(components, samples, added, z.dtype, *wanted)
    _, *outputs = _outputs((z, loc, scale), want)
    if any(want):
        gradients = _mixture_gradients(components, sums, moments, *groups)
        for output, gradient, w in zip(outputs, gradients, want, strict=True):
            if w:
                output.copy_(gradient[..., 0].T if per_dim else gradient[0])
    return value / len(z), *outputs


def _factors(log_weight: float, z: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """``(G, B, 2 K + 2)`` and ``(G, n, 2 K + 2)``, whose products are log w N(z; loc, scale^2)."""
    precision = scale.pow(-2)
    pull = loc * precision
    constant = (precision.log() - loc * pull).sum(2, keepdim=True).mul_(0.5)
    constant += log_weight - 0.5 * z.shape[2] * math.log(2 * math.pi)
    ones, one = torch.ones_like(constant), torch.ones_like(z[..., :1])
    # The column of ones is for the sum of the weights, in the product that the gradient needs.
    components = torch.cat([precision, pull, ones, constant], 2)
    return components, torch.cat([-0.5 * z.square(), z, torch.zeros_like(one), one], 2)


def _responsibilities(
    components: Tensor, samples: Tensor, added: float, dtype: torch.dtype, by_z: bool, by_q: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of log sum_j, and ``components`` and ``samples`` summed under the responsibilities.

    The former are left to be divided by their column of ones. Weights are rounded once, to ``dtype``: the
    same stand in each column, and the differences between columns are taken in float64.
    """
    sums, moments = torch.zeros_like(samples), torch.zeros_like(components)
    tops = torch.empty_like(samples[..., :1])
    column = samples.shape[2] - 2  # of ones
    size = min(samples.shape[1], max(1, 4 * _block(samples) // components.shape[1]))
    # once: fresh pages cost as much as the work
    room = samples.new_empty(size, components.shape[1])
    narrow = torch.empty_like(room, dtype=dtype)
    for g, of in enumerate(components):
        for start in range(0, samples.shape[1], size):
            rows = slice(start, start + size)
            points, total = samples[g, rows], sums[g, rows]
            joint = torch.mm(points, of.T, out=room[: len(points)])
            if added:
                joint.diagonal(start).add_(added)
            top = torch.amax(joint, 1, keepdim=True, out=tops[g, rows])
            weight = narrow[: len(points)].copy_(joint.sub_(top)).clamp_(min=UNDERFLOW).exp_()
            if not (by_z or by_q):
                total[:, column] = weight.sum(1)
                continue
            weight = joint.copy_(weight)
            torch.mm(weight, of, out=total)
            if by_q:
                moments[g].addmm_(weight.T, points / total[:, column, None])
    return (sums[..., column, None].log() + tops).sum(), sums, moments


def _mixture_gradients(
    components: Tensor, sums: Tensor, moments: Tensor, z: Tensor, loc: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """By z, loc and scale, from what `_responsibilities` sums; those without sums mean nothing."""
    n, dim = z.shape[1:]
    precision = components[..., :dim]
    by_z = (sums[..., dim:-2] - z * sums[..., :dim]) / (n * sums[..., -2, None])
    half_square, first, mass = moments[..., :dim], moments[..., dim:-2], moments[..., -1:]
    by_loc = (first - loc * mass) * precision / n
    square = -2 * half_square - loc * (2 * first - loc * mass)  # sum of (z - loc)^2
    return by_z, by_loc, (square * precision - mass) / (n * scale)


def _u_statistic(
    pairs: Callable[..., Any], x: Tensor, y: Tensor, widths: list[float], want: list[bool]
) -> tuple[Tensor, ...]:
    """MMD from three sums over pairs: of x, of y, between them."""
    n, m = len(x), len(y)
    value, *gradients = _outputs((x, y), want)
    for i, one in enumerate((x, y)):
        part, gradient, _ = pairs(one, None, widths, [want[i], False])
        share = 1 / (len(one) * (len(one) - 1))
        value.add_(part, alpha=share)
        if gradient is not None:
            gradients[i].add_(gradient, alpha=share)
    part, *between = pairs(x, y, widths, want)
    value.add_(part, alpha=-2 / (n * m))
    for whole, gradient in zip(gradients, between, strict=True):
        if gradient is not None:
            whole.add_(gradient, alpha=-2 / (n * m))
    return value, *gradients


def _joint_pairs(
    x: Tensor, y: Tensor | None, widths: list[float], want: list[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """sum_ij k(x_i, y_j), or of x over i != j, and its gradients: those and the squares `widest`."""
    dim, a = x.shape[1], _with_square(x)
    b = a if y is None else _with_square(y)
    # (-2 b, |b|^2, 1) . (a, 1, |a|^2) = |a - b|^2
    flipped = torch.cat([-2 * b[:, :dim], b[:, -1:], b[:, dim:-1]], 1)
    total = a.new_zeros(())
    pull_x = torch.zeros_like(a[:, :-1])
    pull_y = pull_x if y is None else torch.zeros_like(b[:, :-1])
    for rows, columns, twice in _tiles(len(a), len(b), math.isqrt(_block(a)), y is None):
        square = (a[rows] @ flipped[columns].T).to(x.dtype).clamp_(min=0)
        value, slope = _kernels(square, widths, any(want))
        total.add_(value, alpha=2 if twice else 1)
        if slope is None:
            continue
        slope = slope.to(a.dtype)  # the same on both sides of the difference below
        if want[0]:
            pull_x[rows].addmm_(slope, b[columns, :-1])
        if want[1] or (want[0] and twice):
            pull_y[columns].addmm_(slope.T, a[rows, :-1])
    if y is None:
        total -= float(len(a) * len(widths))  # k(a, a) = 1
    factor = 4 if y is None else 2  # there x stands on both sides
    by_x, by_y = (
        factor * (pull[:, -1:] * point[:, :dim] - pull[:, :-1]) if w else None
        for w, pull, point in ((want[0], pull_x, a), (want[1], pull_y, b))
    )
    return total, by_x, by_y


def _with_square(x: Tensor) -> Tensor:
    """(x, 1, |x|^2) in the `widest` dtype."""
    wide = x.to(widest(x.device))
    square = wide.square().sum(1, keepdim=True)
    return torch.cat([wide, torch.ones_like(square), square], 1)


def _per_dim_pairs(
    x: Tensor, y: Tensor | None, widths: list[float], want: list[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """sum_d sum_ij k(x_id, y_jd), or of x over i != j, and its gradients."""
    a = x.T.contiguous()
    b = a if y is None else y.T.contiguous()
    total = x.new_zeros((), dtype=widest(x.device))
    by_x = torch.zeros_like(a)
    by_y = by_x if y is None else torch.zeros_like(b)
    side = max(1, math.isqrt(_block(a)) // 2)
    dims = max(1, _block(a) // (min(side, len(x)) * min(side, b.shape[1])))
    for start in range(0, len(a), dims):
        d = slice(start, start + dims)
        for rows, columns, twice in _tiles(a.shape[1], b.shape[1], side, y is None):
            difference = a[d, rows, None] - b[d, None, columns]
            value, slope = _kernels(difference.square(), widths, any(want))
            total.add_(value, alpha=2 if twice else 1)
            if slope is None:
                continue
            slope.mul_(difference)
            if want[0]:
                by_x[d, rows] += slope.sum(2)
            if want[1] or (want[0] and twice):
                by_y[d, columns] -= slope.sum(1)
    if y is None:
        total -= float(a.numel() * len(widths))
    factor = 4 if y is None else 2
    first, second = (factor * g.T if w else None for w, g in zip(want, (by_x, by_y), strict=True))
    return total, first, second


def _block(tensor: Tensor) -> int:
    # on a GPU, starting a kernel costs as much as a million pairs
    return _BLOCK << (0 if tensor.device.type == "cpu" else 6)


def _tiles(n: int, m: int, side: int, within: bool) -> Iterator[tuple[slice, slice, bool]]:
    """Rows and columns of blocks of an n x m matrix, and whether a block counts twice.

    Of a symmetric matrix, ``within``, the blocks below the diagonal are left out.
    """
    for row in range(0, n, side):
        for column in range(row if within else 0, m, side):
            yield slice(row, row + side), slice(column, column + side), within and column > row


def _kernels(square: Tensor, widths: list[float], want_slope: bool) -> tuple[Tensor, Tensor | None]:
    """Sum of f(square) = sum_c c/(c + square) in the `widest` dtype ``()``, and f' of each entry."""
    inverse, value = torch.empty_like(square), torch.zeros_like(square)
    slope = torch.zeros_like(square) if want_slope else None
    for c in widths:
        torch.add(square, square.new_full((), c), out=inverse).reciprocal_()
        value.add_(inverse, alpha=c)
        if slope is not None:
            slope.addcmul_(inverse, inverse, value=-c)
    # within a block float32 adds pairwise, to 1e-7
    return value.sum().to(widest(value.device)), slope


def _compiled_pairs(
    x: Tensor, y: Tensor | None, widths: list[float], want: list[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`_per_dim_pairs` as one compiled loop over pairs."""
    if torch.fx._symbolic_trace._is_fx_tracing_flag:  # a compiled function refuses to run there
        return _per_dim_pairs(x, y, widths, want)
    a = x.T.contiguous()
    b = a if y is None else y.T.contiguous()
    with torch.no_grad():
        value, by_x = row_sums(tuple(widths), want[0], a, b)
        by_y = row_sums(tuple(widths), True, b, a)[1] if want[1] else None
    total = value.sum(dtype=widest(value.device))
    if y is None:
        total -= float(a.numel() * len(widths))
    factor = 4 if y is None else 2
    first, second = (None if g is None else factor * g.T for g in (by_x, by_y))
    return total, first, second


_THREE = "Tensor z, Tensor loc, Tensor scale, float own, float other, bool per_dim"
_MIXTURE = _opaque("mean_log_mixture", _THREE, _mixture)
_TWO = "Tensor x, Tensor y, float[] widths"
_MMD = _opaque("mmd", _TWO, functools.partial(_u_statistic, _joint_pairs))
_MMD_PER_DIM = _opaque(
    "mmd_per_dim",
    _TWO,
    functools.partial(_u_statistic, _per_dim_pairs),
    replayed=functools.partial(_u_statistic, _compiled_pairs),
)
