"""Bins of equal width or of equal frequency, and whether they are of use."""

from __future__ import annotations

import warnings

import numpy as np

from .checks import MIN_ROWS

BINS = ("equal-width", "equal-frequency")


def cut(columns: np.ndarray, n_bins: int, bins: str = "equal-width") -> np.ndarray:
    """Bin of each value, 0 to ``n_bins`` - 1, column by column ``(n, columns)``.

    Equal-width bins run from the smallest to the largest value; a constant column is in bin 0. Bins of
    equal frequency are those of the ranks, so that equal values share a bin.

    Examples:
        >>> column = np.array([[0.0], [1.0], [2.0], [1e6]])
        >>> cut(column, 4).T, cut(column, 4, "equal-frequency").T
        (array([[0, 0, 0, 3]]), array([[0, 1, 2, 3]]))
    """
    if bins == "equal-frequency":
        from scipy.stats import rankdata

        place, width = rankdata(columns, axis=0) - 0.5, np.float64(len(columns))
    else:
        place, width = columns - columns.min(0), np.ptp(columns, axis=0)
    # Multiplied first: whole numbers on the edge of a bin then fall on the right side of it.
    cell = (place * n_bins / np.where(width > 0, width, 1.0)).astype(np.int64)
    return np.minimum(cell, n_bins - 1)


def warn_of_empty_bins(
    metric: str,
    what: str,
    columns: np.ndarray,
    counts: np.ndarray,
    remedy: str,
    *,
    number: int = 0,
    stacklevel: int,
) -> None:
    """Warn where equal-width bins tell little: 98 % of the rows lie in a quarter of a column's bins.

    Not of a column whose rows in these bins have no more values than there are bins: nothing is lost.

    Args:
        metric, what, remedy: words of the warning; ``what`` is "code" or "factor".
        columns: ``(n, columns)``, cut from the smallest to the largest value.
        counts: rows in each bin ``(columns, n_bins)``.
        number: of the first column.
        stacklevel: of the warning.
    """
    n, n_bins = len(columns), counts.shape[1]
    if n < MIN_ROWS:
        return
    outside, below = max(2, n // 100), counts.cumsum(1)
    first, last = (below <= outside).sum(1), (below < n - outside).sum(1)
    for j in np.flatnonzero(last - first < n_bins // 4):
        z, span = columns[:, j], int(last[j] - first[j]) + 1
        cell = cut(z[:, None], n_bins)[:, 0]
        if len(np.unique(z[(cell >= first[j]) & (cell <= last[j])])) > span:
            warnings.warn(
                f"{metric}: most bins are empty: all but a few rows of {what} {number + j} lie in {span} of "
                f"{n_bins} equal-width bins, which reach from {z.min():.3g} to {z.max():.3g}. {remedy}",
                UserWarning,
                stacklevel=stacklevel,
            )
            return
