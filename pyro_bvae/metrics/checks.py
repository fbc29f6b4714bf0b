"""The boundary of every metric: codes and factors checked once, codes standardised at any scale."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

LARGEST = 1e50
"""Larger codes are refused: solvers take their fourth powers, and do not end where those overflow."""
# numbers of one block of latents: raw pixels as codes would fill the memory at once
_BLOCK = 1 << 21


def check_known(names: Sequence[str], known: Sequence[str], what: str) -> None:
    """Refuse a name that is not among ``known``.

    Raises:
        ValueError: one sentence.
    """
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(f"{what} must be among {', '.join(known)}; got {name!r}.{hint}")


def check_array(option: str, path: Path) -> None:
    """Refuse a file of codes or factors that is not there.

    Raises:
        FileNotFoundError: one sentence.
    """
    if not os.path.isfile(path):  # Path's raises where a folder on the way may not be entered
        raise FileNotFoundError(f"{option} must name a .npy or .npz file; {path} is not there.")


def check_codes(metric: str, codes: np.ndarray, what: str = "codes") -> np.ndarray:
    """Codes as float64 ``(n, latent_dim)``; float64 codes are not copied, so do not write to them.

    Raises:
        TypeError: they are no real numbers.
        ValueError: another shape, no row, or a value that is not finite or above `LARGEST` in size.
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
    size = max(codes.max(), -codes.min())
    if size > LARGEST:
        raise ValueError(
            f"{metric}: {what} must be at most {LARGEST:g} in size; got {size:.4g}. Scale them down."
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
            f"{factors.shape}. Give a column for each factor."
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


def spread(codes: np.ndarray, ddof: int = 0) -> np.ndarray:
    """Standard deviation of each column ``(latent_dim,)``, exactly 0 where it is constant.

    Computed plainly, that of a constant can be 1e-17, and that of tiny codes 0.

    Examples:
        >>> spread(np.array([[0.1, 1e-200], [0.1, 3e-200], [0.1, 2e-200]]), ddof=1)
        array([0.e+000, 1.e-200])
    """
    std = np.empty(codes.shape[1])
    for block in latent_blocks(codes):
        z = codes[:, block]
        width = np.ptp(z, axis=0)
        # by the range first, so that squares do not underflow
        z = (z - z.mean(0)) / np.where(width > 0, width, 1.0)
        std[block] = width * z.std(0, ddof=ddof)
    return std


def standardised(codes: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
    """Codes of mean 0 and variance 1 per column, or with these of ``reference``; 0 where it is constant."""
    reference = codes if reference is None else reference
    std = spread(reference)
    z = codes - reference.mean(0)
    z *= std > 0
    z /= np.where(std > 0, std, 1.0)
    return z


def latent_blocks(codes: np.ndarray) -> Iterator[slice]:
    """Slices of latents, each of at most some two million numbers, or of one latent."""
    step = max(1, _BLOCK // len(codes))
    for start in range(0, codes.shape[1], step):
        yield slice(start, start + step)
