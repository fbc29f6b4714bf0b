"""Codes with their factors, checked once: factors as classes and as numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .binning import cut, warn_of_empty_bins
from .checks import check_codes, unmasked

MOST_VALUES = 20
"""Real-valued factors of more values than this are cut in as many bins of equal width."""


class Factors(NamedTuple):
    """Factors as metrics read them; all arrays have shape ``(n, n_factors)``."""

    classes: np.ndarray
    """int64, numbered from 0 by first appearance: the names and the order of values have no effect."""
    numbers: np.ndarray
    """float64, as given."""
    real: list[int]
    """Columns with values that are not whole: metrics of numbers take them as they are."""
    binned: list[int]
    """Columns whose classes are bins."""


def check_pair(
    metric: str,
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    cut_real: bool = True,
    cut_whole: bool = False,
) -> tuple[np.ndarray, Factors]:
    """Codes as float64 ``(n, latent_dim)``, and their factors as classes and numbers.

    Whole numbers are classes, whatever their dtype. A column with other values is real. Columns of more
    than 20 values can be cut in 20 bins of equal width; with fewer, each value is a class.

    Args:
        metric: begins the errors.
        codes: ``(n, latent_dim)``.
        factors: numbers ``(n, n_factors)``.
        cut_real: cut real columns; not where they are taken as numbers.
        cut_whole: cut columns of whole numbers too.

    Raises:
        TypeError: codes or factors are no real numbers.
        ValueError: shapes that do not fit, values that are not finite, a factor with one value.

    Warns:
        UserWarning: most bins of a factor are empty.
    """
    codes = check_codes(metric, codes)
    numbers = check_factors(metric, factors)
    if numbers.ndim != 2 or len(numbers) != len(codes) or not numbers.shape[1]:
        raise ValueError(
            f"{metric}: factors must have shape ({len(codes)}, n_factors), a row for each code; got "
            f"{numbers.shape}. Give a column for each factor."
        )
    real = np.flatnonzero((numbers != np.floor(numbers)).any(0)).tolist()
    classes, binned = np.empty(numbers.shape, dtype=np.int64), []
    # as given: as floats, whole numbers above 2^53 can become equal
    for k, column in enumerate(np.asarray(factors).T):
        values, first, inverse = np.unique(column, return_index=True, return_inverse=True)
        if len(values) < 2:
            raise ValueError(
                f"{metric}: each factor must take at least 2 values; factor {k} is always {values[0]:g}. "
                "Leave that column out."
            )
        if len(values) > MOST_VALUES and (cut_real if k in real else cut_whole):
            binned.append(k)
            cells = cut(numbers[:, k, None], MOST_VALUES)[:, 0]
            warn_of_empty_bins(
                metric,
                "factor",
                numbers[:, k, None],
                np.bincount(cells, minlength=MOST_VALUES)[None],
                "Drop the outliers, or number the values of this factor as classes.",
                number=k,
                stacklevel=4,
            )
            _, first, inverse = np.unique(cells, return_index=True, return_inverse=True)
        classes[:, k] = np.argsort(np.argsort(first))[inverse]
    return codes, Factors(classes, numbers, real, binned)


def check_factors(metric: str, factors: np.ndarray) -> np.ndarray:
    """Factors as float64, whatever their shape.

    Raises:
        TypeError: they are no real numbers.
        ValueError: a value that is masked, NaN or infinite.
    """
    factors = unmasked(metric, "factors", factors)
    if factors.dtype.kind not in "fiub":
        raise TypeError(
            f"{metric}: factors must be numbers; got dtype {factors.dtype}. Number the values of each "
            "column, for example with numpy.unique(column, return_inverse=True)[1]."
        )
    numbers = factors.astype(np.float64)
    finite = np.isfinite(numbers)
    if not finite.all():
        raise ValueError(
            f"{metric}: factors must be finite; got {int((~finite).sum())} NaN or infinite values, the first "
            f"in row {int(np.argwhere(~finite)[0][0])}. Drop those rows."
        )
    return numbers
