"""The boundary of every metric: codes and factors are checked once, and factor values numbered."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_BLOCK = (
    1 << 21
)  # numbers of one block of latents: raw pixels as codes would fill the memory at once


def check_codes(metric: str, codes: np.ndarray, what: str = "codes") -> np.ndarray:
    """Codes as float64 ``(n, latent_dim)``; float64 codes are not copied, so do not write to them.

    Raises:
        TypeError: they are no real numbers.
        ValueError: another shape, no row, or a value that is not finite.
    """
    codes = np.asarray(codes)
    if codes.dtype.kind not in "fiu":
        raise TypeError(
            f"{metric}: {what} must be real numbers; got dtype {codes.dtype}. Convert them to floats."
        )
    if codes.ndim != 2 or not codes.size:
        raise ValueError(
            f"{metric}: {what} must have shape (n, latent_dim), n >= 1; got {codes.shape}. Reshape them."
        )
    codes = codes.astype(np.float64, copy=False)
    finite = np.isfinite(codes)
    if not finite.all():
        bad, row = int(codes.size - finite.sum()), int(np.argmin(finite.all(1)))
        raise ValueError(
            f"{metric}: {what} must be finite; got {bad} NaN or infinite values, the first in row {row}. "
            "Drop those rows, or look at the model that made them."
        )
    return codes


def check_pair(
    metric: str, codes: np.ndarray, factors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Codes as float64 ``(n, latent_dim)``, factors as int64 ``(n, n_factors)``, classes from 0.

    Classes are numbered by first appearance, so that no metric depends on the values' names, not even
    through the order in which a seed draws them. Where their order counts, use the factors themselves.

    Raises:
        TypeError: codes are no numbers, or factors no integers.
        ValueError: shapes that do not fit, values that are not finite, a factor with one value.
    """
    codes = check_codes(metric, codes)
    factors = np.asarray(factors)
    if factors.dtype.kind not in "iu":
        raise TypeError(
            f"{metric}: factors must be integer classes; got dtype {factors.dtype}. Number the values "
            "of each column, for example with numpy.unique(column, return_inverse=True)[1]."
        )
    if factors.ndim != 2 or len(factors) != len(codes) or not factors.shape[1]:
        raise ValueError(
            f"{metric}: factors must have shape ({len(codes)}, n_factors), a row for each code; got "
            f"{factors.shape}. Give one column a factor."
        )
    numbered = np.empty(factors.shape, dtype=np.int64)
    for k, column in enumerate(factors.T):
        values, first, inverse = np.unique(column, return_index=True, return_inverse=True)
        if len(values) < 2:
            raise ValueError(
                f"{metric}: each factor must take at least 2 values; factor {k} is always {values[0]}. "
                "Leave that column out."
            )
        numbered[:, k] = np.argsort(np.argsort(first))[inverse]
    return codes, numbered


def latent_blocks(codes: np.ndarray) -> Iterator[slice]:
    """Slices of latents, each of at most some two million numbers, or of one latent."""
    step = max(1, _BLOCK // len(codes))
    for start in range(0, codes.shape[1], step):
        yield slice(start, start + step)
