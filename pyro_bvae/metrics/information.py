"""How many nats does each code hold about each factor, and about the other codes?"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from .binning import BINS, cut, warn_of_empty_bins
from .checks import check_codes, latent_blocks, standardised, warn_of_outliers
from .factors import check_pair
from .sampling import permuted_null
from .score import Score

BIASED = 0.02
"""A bias of mutual information above this share of a factor's entropy is worth a warning."""
COLLINEAR = 1e-12
"""Eigenvalues of a correlation matrix below this are rounding."""
_ROUNDING = 1e-12  # nats: differences of entropies below this are no information


def mig(
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    n_bins: int = 20,
    bins: str = "equal-width",
    seed: int = 0,
) -> Score:
    """Mutual information gap: mean over factors of (I_1 - I_2) / H(factor), higher is better.

    I_1 and I_2 are the largest and second largest `mutual_information` between a code and the factor:
    1 when one code determines the factor and no other knows of it, 0 when two know as much. With one
    latent I_2 = 0. Unchanged by permuting, flipping and rescaling codes and by relabelling factors,
    but for codes that stand exactly on the edge of a bin.

    Args:
        codes: ``(n, latent_dim)``.
        factors: classes ``(n, n_factors)``; real numbers of more than 20 values are cut in 20 bins of
            equal width.
        n_bins: bins of each code.
        bins: "equal-width", from a code's smallest to its largest value, or "equal-frequency": as many
            rows in each, which no outlier and no monotone function of the codes changes.
        seed: draws the permutations of ``null``.

    Returns:
        Score: in [0, 1]; details ``per_factor``, ``best`` (each factor's most informative latent),
        ``entropies`` and ``mi_bias`` (nats), ``dead`` (constant codes), ``null`` (the value of permuted
        rows, below 1,000 rows), ``binned`` (factors cut in bins), ``n``, ``n_bins``, ``bins``.

    Warns:
        UserWarning: the bias of mutual information exceeds 2 % of a factor's entropy; or all but a few
            rows of a code or a factor lie in a quarter of its equal-width bins.

    References: Chen 2018, https://arxiv.org/abs/1802.04942, with the bins of Locatello 2019,
    https://arxiv.org/abs/1811.12359; `mig_chen` is another estimator.

    Examples:
        >>> grid = np.tile(np.indices((3, 4)).reshape(2, -1), 20).T
        >>> round(mig(grid, grid).value, 12)
        1.0
    """
    mi, entropies, details = _information("mig", codes, factors, n_bins, bins, seed, _gaps)
    gaps = _gaps(mi, entropies)
    details |= {"per_factor": gaps.tolist(), "best": mi.argmax(0).tolist()}
    return Score(float(gaps.mean()), details)


def aam(
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    n_bins: int = 20,
    bins: str = "equal-width",
    seed: int = 0,
) -> Score:
    """Attribute association: mean over factors of max(0, I_1 - sum_{j >= 2} I_j) / I_1, higher is better.

    Stricter than `mig`: the most informative code is set against all others together, I_j being the
    `mutual_information` of the factor and the code of rank j. 0 for a factor no code knows of. The bias
    of many uninformative codes adds up in the sum. Invariances, arguments, warning: as for `mig`.

    Returns:
        Score: in [0, 1]; details as of `mig`.

    Examples:
        >>> grid = np.tile(np.indices((3, 4)).reshape(2, -1), 20).T
        >>> round(aam(grid, grid).value, 12)
        1.0
    """
    mi, entropies, details = _information("aam", codes, factors, n_bins, bins, seed, _alone)
    alone = _alone(mi, entropies)
    details |= {"per_factor": alone.tolist(), "best": mi.argmax(0).tolist()}
    return Score(float(alone.mean()), details)


def modularity(
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    n_bins: int = 20,
    bins: str = "equal-width",
    seed: int = 0,
) -> Score:
    """Modularity: mean over codes of 1 - sum_{k != best} I_k^2 / (I_best^2 (K - 1)), higher is better.

    I_k is the `mutual_information` of the code and factor k of K: 1 when each code knows of one factor
    only, however many codes know of the same. Codes that know of none (dead ones among them) are left
    out and counted, where Locatello 2019 counts them as 0; when all do, the value is 0. With one factor
    there is no other to know of: 1. Invariances, arguments, warning: as for `mig`.

    Returns:
        Score: in [0, 1]; details ``per_code`` (None where left out), ``uninformative``, and as of `mig`.

    References: Ridgeway and Mozer 2018, https://arxiv.org/abs/1802.05312

    Examples:
        >>> grid = np.tile(np.indices((3, 4)).reshape(2, -1), 20).T
        >>> round(modularity(grid, grid).value, 12)
        1.0
    """
    mi, entropies, details = _information(
        "modularity", codes, factors, n_bins, bins, seed, _modular
    )
    scores, knows = _modular(mi, entropies), mi.max(1) > 0
    every = np.full(len(mi), None, dtype=object)
    every[knows] = scores
    details |= {"per_code": every.tolist(), "uninformative": int((~knows).sum())}
    return Score(float(scores.mean()) if len(scores) else 0.0, details)


def mutual_information(
    codes: np.ndarray, factors: np.ndarray, n_bins: int, bins: str = "equal-width"
) -> tuple[np.ndarray, np.ndarray]:
    """Plug-in I(code_j; factor_k) = H(code) + H(factor) - H(code, factor) of binned codes.

    Each code is cut in ``n_bins`` bins of equal width, or of equal frequency. Biased up
    by about (values - 1)(occupied bins - 1) / (2n) where there is no dependence; the formula itself is
    rough where cells hold few rows (n = 2,000, 40 values, 20 bins: .185, against a mean of .167 for Normal
    and .208 for uniform codes).

    Args:
        codes: as `check_pair` returns them.
        factors: likewise, values numbered from 0.
        n_bins: at least 2.
        bins: "equal-width" or "equal-frequency".

    Returns:
        Array ``(latent_dim, n_factors)``, nats, and the rows in each bin ``(latent_dim, n_bins)``.

    Examples:
        >>> mi, rows = mutual_information(np.array([[0.0], [1.0]]), np.array([[0], [1]]), 3)
        >>> bool(np.isclose(mi[0, 0], np.log(2))), rows.tolist()
        (True, [[1, 0, 1]])
    """
    mi = np.empty((codes.shape[1], factors.shape[1]))
    rows = np.empty((codes.shape[1], n_bins), dtype=np.int64)
    for block in latent_blocks(codes):
        cell = cut(codes[:, block], n_bins, bins)
        cell += n_bins * np.arange(cell.shape[1])  # a range of numbers for each latent
        for k, n_values in enumerate(factors.max(0) + 1):
            index = cell * n_values + factors[:, k, None]
            size = cell.shape[1] * n_bins * n_values
            joint = np.bincount(index.ravel(), minlength=size).reshape(-1, n_bins, n_values)
            of_factor = joint[0].sum(0)
            mi[block, k] = _entropy(joint.sum(2)) + _entropy(of_factor) - _entropy(joint)
        rows[block] = joint.sum(2)
    mi[mi < _ROUNDING] = 0.0
    return mi, rows


def gaussian_total_correlation(codes: np.ndarray) -> Score:
    """Total correlation of a Gaussian with the codes' covariance S, in nats; lower is better.

    1/2 (sum log diag S - log det S) = -1/2 sum log of the eigenvalues of the correlation matrix: 0 for
    uncorrelated codes. It sees linear dependence only. Dead (constant) codes are dropped and counted;
    with fewer than two left it is 0. Collinear codes would make it infinite: eigenvalues below 1e-12
    count as 1e-12, 13.8 nats each, and are counted, so that the value is then a lower bound.

    Args:
        codes: ``(n, latent_dim)``; needs n > latent_dim, or some are collinear.

    Warns:
        UserWarning: a few rows carry the variance of a code.

    Returns:
        Score: at least 0; details ``null`` (about what independent codes score at this n,
        D(D - 1)/(4n)), ``collinear``, ``dimensions`` (D, those kept), ``dead``, ``n``.

    References: Locatello 2019, https://arxiv.org/abs/1811.12359

    Examples:
        >>> gaussian_total_correlation(np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])).value
        0.0
    """
    codes = check_codes("gaussian_total_correlation", codes)
    warn_of_outliers("gaussian_total_correlation", codes)
    live, n = np.ptp(codes, axis=0) > 0, len(codes)
    z = standardised(codes[:, live])
    dim = z.shape[1]
    eigenvalues = np.linalg.eigvalsh(z.T @ z / n)
    value = -0.5 * float(np.log(np.maximum(eigenvalues, COLLINEAR)).sum())
    details = {
        "null": dim * (dim - 1) / (4 * n),
        "collinear": int((eigenvalues < COLLINEAR).sum()),
        "dimensions": dim,
        "dead": int((~live).sum()),
        "n": n,
    }
    return Score(max(0.0, value), details)


def _information(
    metric: str,
    codes: np.ndarray,
    factors: np.ndarray,
    n_bins: int,
    bins: str,
    seed: int,
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Information (latents, factors), entropies (factors,), what every score of them carries."""
    codes, given = check_pair(metric, codes, factors)
    if not isinstance(n_bins, (int, np.integer)) or n_bins < 2:
        raise ValueError(f"{metric}: n_bins must be an integer >= 2; got {n_bins!r}. Take 20.")
    if bins not in BINS:
        raise ValueError(
            f"{metric}: bins must be one of {', '.join(BINS)}; got {bins!r}. Name one."
        )
    classes = given.classes
    mi, rows = mutual_information(codes, classes, n_bins, bins)
    if bins == "equal-width":
        remedy = 'Drop the outliers, or use bins="equal-frequency".'
        warn_of_empty_bins(metric, "code", codes, rows, remedy, stacklevel=4)
    n, entropies, occupied = len(codes), factor_entropies(classes), (rows > 0).sum(1)
    # a factor's largest number is its number of values less one
    bias = classes.max(0) * (occupied.max() - 1) / (2 * n)
    worst = int((bias / entropies).argmax())
    if bias[worst] > BIASED * entropies[worst]:
        warnings.warn(
            f"{metric}: with n = {n} rows and {n_bins} bins mutual information is biased up by as much "
            f"as {bias[worst]:.3g} nats, over {BIASED:.0%} of the entropy of factor {worst} "
            f"({entropies[worst]:.3g}); use more rows or fewer bins.",
            UserWarning,
            stacklevel=3,
        )

    def permuted(z: np.ndarray) -> float:
        scores = score(mutual_information(z, classes, n_bins, bins)[0], entropies)
        return float(scores.mean()) if len(scores) else 0.0

    details: dict[str, Any] = {
        "entropies": entropies.tolist(),
        "mi_bias": bias.tolist(),
        "dead": int((occupied == 1).sum()),
        **permuted_null(permuted, codes, seed),
        "binned": given.binned,
        "n": n,
        "n_bins": int(n_bins),
        "bins": bins,
    }
    return mi, entropies, details


def _gaps(mi: np.ndarray, entropies: np.ndarray) -> np.ndarray:
    """MIG of each factor."""
    first, second = _two_largest(mi)
    return (first - second) / entropies


def _alone(mi: np.ndarray, entropies: np.ndarray) -> np.ndarray:
    """AAM of each factor."""
    first = mi.max(0)
    return np.maximum(0.0, 2 * first - mi.sum(0)) / np.where(first > 0, first, 1.0)


def _modular(mi: np.ndarray, entropies: np.ndarray) -> np.ndarray:
    """Modularity of each code that knows of a factor."""
    best = mi.max(1)
    squares = (mi[best > 0] / best[best > 0, None]) ** 2  # the best is 1, so no square underflows
    return 1 - (squares.sum(1) - 1) / max(mi.shape[1] - 1, 1)


def _entropy(counts: np.ndarray) -> Any:
    """Plug-in entropy in nats of counts ``(..., cells)`` or ``(latents, bins, values)``."""
    from scipy.special import xlogy

    cells = counts.reshape(len(counts), -1) if counts.ndim > 1 else counts
    n = cells.sum(-1)
    return np.log(n) - xlogy(cells, cells).sum(-1) / n


def factor_entropies(factors: np.ndarray) -> np.ndarray:
    """Plug-in entropies in nats of factors numbered from 0, ``(n_factors,)``."""
    return np.array([_entropy(np.bincount(column)) for column in factors.T])


def _two_largest(mi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ranked = np.sort(np.vstack([mi, np.zeros((1, mi.shape[1]))]), axis=0)
    return ranked[-1], ranked[-2]
