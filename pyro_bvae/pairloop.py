"""Sums over pairs of scalars as one compiled loop, which holds one pair at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

_loops: dict[Any, Callable[..., Any]] = {}


def row_sums(
    widths: tuple[float, ...], want_slope: bool, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor | None]:
    """sum_j f(a_di - b_dj) for each d and i, f(u) = sum_c c/(c + u^2); and sum_j f' / 2.

    Each shape is compiled at its first call, which takes seconds and on a CPU a C++ compiler.

    Args:
        widths: each c.
        want_slope: else the second is None.
        a: ``(D, n)``.
        b: ``(D, m)``.

    Returns:
        Two tensors ``(D, n)``.
    """
    key = (widths, want_slope, a.shape, b.shape, a.dtype, a.device)
    if key not in _loops:
        sums = functools.partial(_sums, _quotient(widths), want_slope)
        inputs = [torch.empty_like(a), torch.empty_like(b)]  # a and b may be one tensor
        _loops[key] = _compile(make_fx(sums, tracing_mode="fake")(*inputs), inputs)
    value, *slope = _loops[key](a, b)
    return value, slope[0] if slope else None


def _sums(
    quotient: tuple[list[float], list[float]], want_slope: bool, a: Tensor, b: Tensor
) -> tuple[Tensor, ...]:
    top, bottom = quotient  # division is the slowest operation: one serves all the kernels
    far = 1e18 ** (1 / (len(bottom) - 1))  # no further: the polynomials are finite in float32
    difference = (a[:, :, None] - b[:, None, :]).clamp(-far, far)
    square = difference.square()
    inverse = _polynomial(bottom, square).reciprocal()
    value = _polynomial(top, square) * inverse
    if not want_slope:
        return (value.sum(2),)
    change, turn = (
        _polynomial([i * c for i, c in enumerate(p)][1:], square) for p in (top, bottom)
    )
    return value.sum(2), ((change - value * turn) * inverse * difference).sum(2)


def _compile(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    """By Inductor itself: `torch.compile` gives up after some shapes."""
    from torch._inductor import compile, config

    fused = "fast" if isinstance(config.cpp.enable_floating_point_contract_flag, str) else True
    options: dict[str, Any] = {
        # The loop must not be split: it holds one element at a time, not all the pairs.
        "realize_opcount_threshold": 1 << 20,
        "cpp.enable_floating_point_contract_flag": fused,  # fused multiply-add: .6 of the time
    }
    return compile(graph, inputs, options=options)


def _quotient(widths: tuple[float, ...]) -> tuple[list[float], list[float]]:
    """P and Q with sum_c c/(c + u) = P(u)/Q(u): their coefficients, the constant first."""
    top, bottom = [0.0], [1.0]
    for c in widths:  # P/Q + c/(c + u) = (P (c + u) + c Q) / (Q (c + u))
        padded = zip([*top, 0.0], [0.0, *top], [*bottom, 0.0], [0.0, *bottom], strict=True)
        rows = [(c * p + p_u + c * q, c * q + q_u) for p, p_u, q, q_u in padded]
        top, bottom = [row[0] for row in rows], [row[1] for row in rows]
    return top[:-1], bottom


def _polynomial(coefficients: list[float], u: Tensor) -> Tensor:
    value = torch.full_like(u, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * u + c
    return value
