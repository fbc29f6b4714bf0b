"""Does each code follow one factor, or, without factors, one code of another model?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .checks import check_codes, latent_blocks, standardised, warn_of_outliers
from .factors import check_pair
from .sampling import permuted_null
from .score import Score

QUANTILE = 0.99
"""Deviations within a value of a factor, for `irs`: this quantile stands for the largest."""
INFORMATIVE_KL = 0.01
"""Codes with a mean KL to the prior of at most this, in nats, are masked by `udr`."""
LASSO_ALPHA = 0.1
"""Weight of the L1 penalty of `udr`."""


def mcc(codes: np.ndarray, factors: np.ndarray, *, seed: int = 0) -> Score:
    """Mean absolute Pearson correlation of factors and codes, one code a factor; higher is better.

    Over the one-to-one assignment with the largest sum. Factors are numbers here: their values' order
    and distances count, so it suits no factor without an order, such as a shape, and changes when one
    is relabelled. With fewer latents than factors those left over count 0, as do constant codes.
    Unchanged by permuting, flipping and rescaling each code. Codes linear in the factors score 1. Noise
    scores above 0, the more the fewer the rows and the more the latents: see ``null``.

    Args:
        codes: ``(n, latent_dim)``.
        factors: numbers ``(n, n_factors)``, whole or not.
        seed: draws the permutations of ``null``.

    Returns:
        Score: in [0, 1]; details ``per_factor``, ``assigned`` (the latent of each factor, or None),
        ``null`` (the value of permuted rows), ``n``.

    Warns:
        UserWarning: a few rows carry the variance of a code or of a factor.

    References: Hyvarinen and Morioka 2016, https://arxiv.org/abs/1605.06336

    Examples:
        >>> codes = np.array([[0.0, 3], [-1, 3], [-2, 1], [0, 1]])
        >>> round(mcc(codes, np.array([[0], [1], [2], [0]])).value, 12)
        1.0
    """
    from scipy.optimize import linear_sum_assignment

    codes, given = check_pair("mcc", codes, factors, cut_real=False)
    warn_of_outliers("mcc", codes)
    warn_of_outliers("mcc", given.numbers, "factor")
    n_factors = given.numbers.shape[1]

    def assign(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        correlation = correlations(codes, given.numbers)
        latents, columns = linear_sum_assignment(correlation, maximize=True)
        per_factor, assigned = np.zeros(n_factors), np.full(n_factors, None, dtype=object)
        per_factor[columns], assigned[columns] = correlation[latents, columns], latents
        return per_factor, assigned

    per_factor, assigned = assign(codes)
    details = {
        "per_factor": per_factor.tolist(),
        "assigned": assigned.tolist(),
        **permuted_null(lambda z: float(assign(z)[0].mean()), codes, seed, always=True),
        "n": len(codes),
    }
    return Score(float(min(per_factor.mean(), 1.0)), details)


def irs(codes: np.ndarray, factors: np.ndarray, *, seed: int = 0) -> Score:
    """Interventional robustness score: how little a code moves while its factor is held; higher is better.

    Per code j and factor k, 1 - mean over values v of the .99-quantile of |z_j - E[z_j | v]| over the
    largest |z_j - E z_j|; then the best factor of each code, and the mean over codes weighted by that
    largest deviation. The weights depend on the codes' scales: unchanged by permuting, flipping and
    one common scale, and by relabelling factors, but not by scales of their own. Dead (constant) codes
    weigh nothing; when all are, 0. A value with few rows looks robust (with one row, perfectly).
    Noise scores about 1 - (.99-quantile of |z - E z|) / (largest), not 0: see ``null``.

    A factor of more than 20 values is cut in 20 bins of equal width first, as by Locatello 2019. Its
    values are then numbers: relabelling them changes the score.

    Args:
        codes: ``(n, latent_dim)``.
        factors: classes ``(n, n_factors)``; numbers where a factor has more than 20 values.
        seed: draws the permutations of ``null``.

    Returns:
        Score: at most 1, and below 0 where a code deviates more within a value than from its mean over
        all; details ``per_code``, ``best`` (the factor of each code; both None for dead codes), ``dead``,
        ``smallest_group`` (rows of the rarest value), ``null`` (the value of permuted rows), ``binned``
        (factors cut in bins), ``n``.

    Warns:
        UserWarning: a few rows carry the variance of a code: it looks robust to everything. Or most bins
            of a factor are empty.

    References: Suter 2019, https://arxiv.org/abs/1811.00007, quantile and weights of Locatello 2019,
    https://arxiv.org/abs/1811.12359

    Examples:
        >>> grid = np.indices((3, 4)).reshape(2, -1).T
        >>> irs(grid, grid).value
        1.0
    """
    codes, given = check_pair("irs", codes, factors, cut_whole=True)
    warn_of_outliers("irs", codes)
    groups = [_rows_by_value(column) for column in given.classes.T]
    robust, largest = _robustness(codes, groups)
    live = largest > 0
    best, per_code = robust.argmax(1).astype(object), robust.max(1).astype(object)
    best[~live] = per_code[~live] = None

    def value(robust: np.ndarray, largest: np.ndarray) -> float:
        return float(np.average(robust.max(1), weights=largest)) if live.any() else 0.0

    details = {
        "per_code": per_code.tolist(),
        "best": best.tolist(),
        "dead": int((~live).sum()),
        "smallest_group": min(len(rows) for rows_by_value in groups for rows in rows_by_value),
        **permuted_null(lambda z: value(*_robustness(z, groups)), codes, seed, always=True),
        "binned": given.binned,
        "n": len(codes),
    }
    return Score(value(robust, largest), details)


def udr(
    codes: Sequence[np.ndarray],
    kl: Sequence[np.ndarray] | None = None,
    *,
    method: str = "lasso",
) -> Score:
    """Unsupervised disentanglement ranking: do models of one configuration agree code by code?

    For models i and j, R_ab the absolute coefficient of code a of i in the regression of code b of j
    (codes standardised), or their absolute rank correlation:
    UDR_ij = (sum_b max_a R_ab^2 / sum_a R_ab + sum_a max_b R_ab^2 / sum_b R_ab) / (d_i + d_j), over
    the d_i and d_j informative codes. A model's score is the median over the others as i, the value the
    median over models; higher is better. Unchanged by permuting, flipping and rescaling codes. Models
    that agree exactly score 1 by rank correlation if their codes are uncorrelated in the sample, and
    .9 by the Lasso, whose penalty of .1 shrinks each coefficient; unrelated ones 0 by the Lasso.

    Args:
        codes: one array ``(n, latent_dim)`` a model, of the same n examples; widths may differ.
        kl: one array a model of each latent's KL in nats, ``(n, latent_dim)`` or its mean
            ``(latent_dim,)``: latents of at most .01 are masked. Without it only constant codes are.
        method: "lasso" or "spearman".

    Returns:
        Score: 0 to 1; details ``per_model``, ``pairs`` (row i, column j, None on the diagonal),
        ``informative`` (codes of each model), ``method``, ``n``, ``n_models``. A model without any
        informative code scores 0.

    Warns:
        UserWarning: a few rows carry the variance of a code, and ``method`` is "lasso".

    References: Duan 2020, https://arxiv.org/abs/1905.12614

    Examples:
        >>> z = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        >>> round(udr([z, -z[:, ::-1]]).value, 12)
        0.9
    """
    if method not in ("lasso", "spearman"):
        raise ValueError(f"udr: method must be 'lasso' or 'spearman'; got {method!r}. Choose one.")
    models = [check_codes("udr", z, f"codes[{i}]") for i, z in enumerate(codes)]
    if len(models) < 2 or len({len(z) for z in models}) > 1:
        raise ValueError(
            "udr: codes must be those of at least 2 models for the same examples; got rows "
            f"{[len(z) for z in models]}. Encode one data set with every model."
        )
    if kl is not None and len(kl) != len(models):
        raise ValueError(
            f"udr: kl must have one array a model, {len(models)}; got {len(kl)}. Pass all or none."
        )
    live = []
    for i, z in enumerate(models):
        if method == "lasso":  # ranks know no outlier
            warn_of_outliers("udr", z, f"codes[{i}], latent")
        mask = np.ptp(z, axis=0) > 0
        if kl is not None:
            mask &= mean_kl("udr", kl[i], z.shape[1]) > INFORMATIVE_KL
        live.append(standardised(_ranks(z[:, mask]) if method == "spearman" else z[:, mask]))
    relate = _rank_correlations if method == "spearman" else _lasso_coefficients
    m = len(live)
    pairs = [[_agreement(relate(a, b)) if a is not b else None for b in live] for a in live]
    scores = [float(np.median([pairs[i][j] for i in range(m) if i != j])) for j in range(m)]
    details: dict[str, Any] = {
        "per_model": scores,
        "pairs": pairs,
        "informative": [z.shape[1] for z in live],
        "method": method,
        "n": len(models[0]),
        "n_models": m,
    }
    return Score(float(np.median(scores)), details)


def mean_kl(metric: str, kl: np.ndarray, latent_dim: int) -> np.ndarray:
    """Mean KL of each latent ``(latent_dim,)``, from that or from ``(n, latent_dim)``."""
    kl = np.asarray(kl, dtype=np.float64)
    if kl.ndim not in (1, 2) or not kl.size or kl.shape[-1] != latent_dim or np.isnan(kl).any():
        raise ValueError(
            f"{metric}: kl must have shape ({latent_dim},) or (n, {latent_dim}), without NaN; got "
            f"{kl.shape}, {int(np.isnan(kl).sum())} NaN. Pass one KL in nats a latent."
        )
    return kl if kl.ndim == 1 else kl.mean(0)


def correlations(codes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Absolute Pearson correlations ``(latent_dim, columns of numbers)``, 0 for constants."""
    numbers = standardised(numbers)
    out = np.empty((codes.shape[1], numbers.shape[1]))
    for block in latent_blocks(codes):
        out[block] = np.abs(standardised(codes[:, block]).T @ numbers) / len(codes)
    return out


def _rows_by_value(column: np.ndarray) -> list[np.ndarray]:
    """Row numbers of each value, for values numbered from 0."""
    return np.split(np.argsort(column, kind="stable"), np.cumsum(np.bincount(column))[:-1])


def _robustness(codes: np.ndarray, groups: list[list[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Robustness of each code to all but each factor ``(latent_dim, n_factors)``, largest deviations."""
    robust = np.zeros((codes.shape[1], len(groups)))
    largest = np.zeros(codes.shape[1])
    for block in latent_blocks(codes):
        z = codes[:, block]
        # the mean of a constant can differ from it in the last digit; its range cannot
        deviation = np.abs(z - z.mean(0)).max(0) * (np.ptp(z, axis=0) > 0)
        for k, rows_by_value in enumerate(groups):
            within = np.mean([_deviation(z[rows]) for rows in rows_by_value], axis=0)
            robust[block, k] = 1 - within / np.where(deviation > 0, deviation, np.inf)
        largest[block] = deviation
    return robust, largest


def _deviation(group: np.ndarray) -> np.ndarray:
    return np.quantile(np.abs(group - group.mean(0)), QUANTILE, axis=0)


def _ranks(codes: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(codes, axis=0)


def _rank_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.T @ b) / len(a)


def _lasso_coefficients(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|coefficient| of each column of ``a`` for each of ``b``, ``(columns of a, columns of b)``."""
    from sklearn.linear_model import Lasso

    if not a.shape[1] or not b.shape[1]:
        return np.zeros((a.shape[1], b.shape[1]))
    model = Lasso(alpha=LASSO_ALPHA, fit_intercept=False, precompute=True).fit(a, b)
    return np.abs(np.atleast_2d(model.coef_)).T


def _agreement(r: np.ndarray) -> float:
    """Duan's score of one matrix of relations: 1 when each row and column has one entry, of 1."""
    if not r.size:
        return 0.0
    total = 0.0
    for axis in (0, 1):
        sums = r.sum(axis)
        total += float((r.max(axis) ** 2 / np.where(sums > 0, sums, 1.0)).sum())
    return total / sum(r.shape)
