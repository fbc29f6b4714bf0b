"""The boundary of every metric: codes checked once, and standardised at any scale."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

LARGEST = 1e50
"""Larger codes are refused: solvers take their fourth powers, and do not end where those overflow."""
# numbers of one block of latents: raw pixels as codes would fill the memory at once
_BLOCK = 1 << 21
MIN_ROWS = 20
"""With fewer rows an outlier cannot be told from the others."""


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
    codes = unmasked(metric, what, codes)
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


def unmasked(metric: str, what: str, values: np.ndarray) -> np.ndarray:
    """The values as an array.

    Raises:
        ValueError: some are masked, which numpy.asarray would forget.
    """
    if np.ma.is_masked(values):
        raise ValueError(
            f"{metric}: {what} must have no masked values; got {int(np.ma.count_masked(values))}. Drop "
            "those rows."
        )
    return np.asarray(values)


def warn_of_outliers(
    metric: str, codes: np.ndarray, what: str = "code", among: Sequence[int] | None = None
) -> None:
    """Warn where a few rows carry the variance of a column: what is divided by it is about those rows.

    With d the distances from the mean, (sum d^2)^2 / sum d^4 rows carry it in effect: n / 3 of a Normal,
    1 of a single outlier. Fewer than n / 300, or than 2, are worth the warning.

    Args:
        metric, what: words of the warning.
        codes: ``(n, columns)``.
        among: columns to look at, by default all.
    """
    n, known = len(codes), range(codes.shape[1]) if among is None else among
    codes = codes if among is None else codes[:, among]
    least = max(2.0, n / 300)
    if n < MIN_ROWS:
        return
    for block in latent_blocks(codes):
        z = codes[:, block]
        d = z - z.mean(0)
        width = np.maximum(d.max(0), -d.min(0))
        # sum d^4 is at most width^2 sum d^2, so that most columns need no fourth power
        for j in np.flatnonzero(np.einsum("nd,nd->d", d, d) <= least * width**2):
            # a power of a share neither under- nor overflows; a constant's deviations are rounding
            square = (d[:, j] / width[j]) ** 2 if np.ptp(z[:, j]) > 0 else np.ones(n)
            rows = square.sum() ** 2 / (square @ square)
            if rows < least:
                warnings.warn(
                    f"{metric}: {max(1, round(rows))} of {n} rows carry the variance of {what} "
                    f"{known[block.start + j]}, which reaches from {z[:, j].min():.3g} to {z[:, j].max():.3g}: "
                    "the score is about these rows. Drop or clip them if they are outliers.",
                    UserWarning,
                    stacklevel=3,
                )
                return


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
