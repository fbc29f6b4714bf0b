"""Scores from predictors of the factors: how well do codes give them away, and how many does it take?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .alignment import correlations
from .boosting import boost
from .checks import check_pair, spread, standardised
from .sampling import own_order, split_rows
from .score import Score

DEAD_VARIANCE = 1e-12
"""A code whose variance does not exceed this predicts nothing in `sap`."""
MAX_ITER = 100_000
"""Solvers end before this many iterations, where scikit-learn's default can stop them early."""


def dci(
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    n_train: int | None = None,
    n_test: int | None = None,
    estimator: Any = None,
    n_jobs: int | None = None,
    seed: int = 0,
) -> Score:
    """Disentanglement of DCI: does each latent serve to predict one factor only?

    One classifier a factor gives importances R_ij >= 0 of latent i for factor j. With P_ij = R_ij / sum_j R_ij
    and rho_i = sum_j R_ij / sum R,

        disentanglement = sum_i rho_i (1 - H_K(P_i)),   H in base K, the number of factors;

    completeness is the same with latents and factors exchanged (base: the number of latents), and
    informativeness the mean accuracy on rows the classifiers have not seen. All lie in [0, 1], higher is
    better. Where the logarithm's base would be 1 (one factor, or one latent) there is nothing to mix
    and the entropy counts as 0; where no latent is of any importance (all dead) both are 0.

    Unchanged by the order of the latents, by any strictly monotone function of each (so by their signs and
    scales) and by the names of factor values: codes enter as ranks among the rows drawn.

    The classifiers are gradient-boosted trees with scikit-learn's defaults, as in the literature, from
    `pyro_bvae.metrics.boosting`. Cost grows with rows x latents x values of all factors: about a minute
    at the default sizes for 10 latents and 113 values, hours for raw pixels.

    Args:
        codes: ``(n, latent_dim)``, posterior means unless you say otherwise.
        factors: integer classes ``(n, n_factors)``.
        n_train: rows the classifiers are fitted on; by default 10,000, or two thirds of fewer rows.
        n_test: rows of the informativeness; by default 5,000, or one third of fewer rows. A value that
            no training row has counts as predicted wrongly.
        estimator: another scikit-learn classifier with ``feature_importances_``, cloned for each factor.
        n_jobs: processes (joblib), one factor each at a time.
        seed: draws the rows, and seeds ``estimator`` where it takes a ``random_state``.

    Returns:
        Score: details ``completeness``, ``informativeness_test``, ``informativeness_train``,
        ``importance`` (latents x factors, each column summing to 1), ``latent_disentanglement``,
        ``factor_completeness``, ``factor_accuracy``, sizes and seed.

    Raises:
        ValueError: more rows asked for than there are.

    References:
        Eastwood and Williams 2018, https://openreview.net/forum?id=By-7dz-AZ; defaults of Locatello et
        al. 2019, https://arxiv.org/abs/1811.12359

    Examples:
        >>> factors = np.random.default_rng(0).integers(4, size=(300, 2))
        >>> dci(factors * 1.0, factors).value
        1.0
    """
    from sklearn.utils.parallel import Parallel, delayed

    codes, factors = check_pair("dci", codes, factors)
    train, test = split_rows("dci", len(codes), n_train, n_test, np.random.default_rng(seed))
    ranks = _ranks(codes[np.concatenate([train, test])])
    order, signs = own_order(ranks)
    x = ranks[:, order] * signs
    fits = Parallel(n_jobs=n_jobs)(
        delayed(_fit)(x[: len(train)], y[train], x[len(train) :], y[test], estimator, seed)
        for y in factors.T
    )
    importance = np.empty((codes.shape[1], factors.shape[1]))
    importance[order] = np.stack([fit[0] for fit in fits], axis=1)
    per_latent, disentanglement = concentration(importance)
    per_factor, completeness = concentration(importance.T)
    accuracy = [fit[2] for fit in fits]
    details = {
        "completeness": completeness,
        "informativeness_test": float(np.mean(accuracy)),
        "informativeness_train": float(np.mean([fit[1] for fit in fits])),
        "importance": importance.tolist(),
        "latent_disentanglement": per_latent.tolist(),
        "factor_completeness": per_factor.tolist(),
        "factor_accuracy": accuracy,
        "estimator": "boost" if estimator is None else type(estimator).__name__,
        **_sizes(codes, train, test, seed),
    }
    return Score(disentanglement, details)


def sap(
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    n_train: int | None = None,
    n_test: int | None = None,
    continuous: bool = False,
    seed: int = 0,
) -> Score:
    """Separated attribute predictability: how far is the best latent for a factor ahead of the second?

    S_ij is the accuracy with which a linear SVM (C = .01, balanced classes) predicts factor j from latent
    i alone, on rows it has not seen; with ``continuous``, the squared Pearson correlation of the two on
    all rows. The value is the mean over factors of the largest S_ij minus the second largest, in [0, 1],
    higher is better. Dead codes (variance up to 1e-12) have S = 0, and so does the second of one latent.

    Perfect codes do not score 1 unless ``continuous``: the second latent guesses, at about one in the
    number of values, and one threshold a value finds the outer of many values only.

    Unchanged by the order and the signs of the latents; by the names of factor values unless
    ``continuous``, when those are numbers; by scale only if ``continuous`` (and no code is dead).

    Args:
        codes: ``(n, latent_dim)``, posterior means unless you say otherwise.
        factors: integer classes ``(n, n_factors)``, or whole numbers where ``continuous``.
        n_train: rows the SVMs are fitted on; by default 10,000, or two thirds of fewer rows.
        n_test: rows of the accuracy; by default 5,000, or one third of fewer rows. A value that no
            training row has counts as predicted wrongly.
        continuous: correlate instead of classifying; there is then no sample to size.
        seed: draws the rows.

    Returns:
        Score: details ``scores`` (S, latents x factors), ``factor_gap``, ``dead``, sizes and seed.

    Raises:
        ValueError: more rows asked for than there are, or sizes where ``continuous``.

    References:
        Kumar et al. 2018, https://arxiv.org/abs/1711.00848

    Examples:
        >>> factors = np.random.default_rng(0).integers(4, size=(1000, 2))
        >>> round(sap(factors * 1.0, factors, continuous=True).value, 2)
        1.0
    """
    numbers = factors
    codes, factors = check_pair("sap", codes, factors)
    live = np.flatnonzero(spread(codes) ** 2 > DEAD_VARIANCE)
    scores = np.zeros((codes.shape[1], factors.shape[1]))
    if continuous:
        if n_train is not None or n_test is not None:
            raise ValueError(
                f"sap: n_train and n_test must be None where continuous is True, which correlates all "
                f"rows; got {n_train} and {n_test}. Leave them out."
            )
        scores[live] = correlations(codes[:, live], np.asarray(numbers, dtype=np.float64)) ** 2
        sizes = {"n": len(codes), "seed": seed}
    else:
        train, test = split_rows("sap", len(codes), n_train, n_test, np.random.default_rng(seed))
        for i in live:
            for j, y in enumerate(factors.T):
                scores[i, j] = _svm_accuracy(codes[train, i], y[train], codes[test, i], y[test])
        sizes = _sizes(codes, train, test, seed)
    # A row of zeros is the second of one latent.
    ranked = np.sort(np.vstack([scores, np.zeros_like(scores[:1])]), axis=0)
    gap = ranked[-1] - ranked[-2]
    details = {
        "scores": scores.tolist(),
        "factor_gap": gap.tolist(),
        "dead": np.setdiff1d(np.arange(codes.shape[1]), live).tolist(),
        "continuous": continuous,
        **sizes,
    }
    return Score(float(gap.mean()), details)


def explicitness(
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    n_train: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
) -> Score:
    """Explicitness: can a linear classifier read each factor off all the codes together?

    A logistic regression a factor (multinomial, scikit-learn's defaults) on codes standardised by their
    training rows; on the test rows, the area under the ROC curve of each value against the others. The
    value is its mean over values, then over factors, in [0, 1], higher is better: 1 is perfect and .5 is
    chance, which is also what dead codes score. It asks nothing of single latents: rotating the codes
    changes little. Values without a test row (or with nothing else there) are left out of the mean; a
    value without a training row scores .5.

    Unchanged by the order, the signs and the scales of the latents and by the names of factor values.

    Args:
        codes: ``(n, latent_dim)``, posterior means unless you say otherwise.
        factors: integer classes ``(n, n_factors)``.
        n_train: rows the regressions are fitted on; by default 10,000, or two thirds of fewer rows.
        n_test: rows of the curves; by default 5,000, or one third of fewer rows.
        seed: draws the rows.

    Returns:
        Score: details ``normalised`` (2 AUC - 1: 0 is chance), ``factor_auc``, ``values_scored`` (how
        many of each factor's values), sizes and seed.

    Raises:
        ValueError: more rows asked for than there are.

    References:
        Ridgeway and Mozer 2018, https://arxiv.org/abs/1802.05312

    Examples:
        >>> factors = np.random.default_rng(0).integers(3, size=(1000, 2))
        >>> explicitness(np.eye(3)[factors].reshape(1000, 6), factors).value
        1.0
    """
    from sklearn.linear_model import LogisticRegression

    codes, factors = check_pair("explicitness", codes, factors)
    train, test = split_rows(
        "explicitness", len(codes), n_train, n_test, np.random.default_rng(seed)
    )
    rows = codes[train]
    x, x_test = standardised(rows), standardised(codes[test], rows)
    order, _ = own_order(x)
    x, x_test = x[:, order], x_test[:, order]
    auc, scored = [], []
    for factor in factors.T:
        likely = np.zeros((len(test), factor.max() + 1))
        seen = np.unique(factor[train])
        if len(seen) > 1 and x.any():
            model = LogisticRegression(max_iter=MAX_ITER).fit(x, factor[train])
            likely[:, seen] = model.predict_proba(x_test)
        areas = _areas(likely, factor[test])
        scored.append(len(areas))
        auc.append(float(areas.mean()) if len(areas) else 0.5)
    value = float(np.mean(auc))
    details = {
        "normalised": 2 * value - 1,
        "factor_auc": auc,
        "values_scored": scored,
        **_sizes(codes, train, test, seed),
    }
    return Score(value, details)


def concentration(importance: np.ndarray) -> tuple[np.ndarray, float]:
    """One minus the entropy of each row's shares, in base of their number, and its weighted mean.

    A row of zeros scores 0 and weighs nothing; a row of one entry has entropy 0.

    Examples:
        >>> concentration(np.array([[3.0, 0.0], [0.5, 0.5]]))
        (array([1., 0.]), 0.75)
    """
    total = importance.sum(1)
    share = importance / np.where(total > 0, total, 1)[:, None]
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    base = math.log(share.shape[1]) if share.shape[1] > 1 else 1.0
    # Equal shares may come out at -1e-16.
    rows = np.where(total > 0, np.clip(1 + (share * logs).sum(1) / base, 0, 1), 0.0)
    return rows, float(rows @ total / total.sum()) if total.any() else 0.0


def _sizes(codes: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int) -> dict[str, int]:
    return {"n": len(codes), "n_train": len(train), "n_test": len(test), "seed": seed}


def _ranks(codes: np.ndarray) -> np.ndarray:
    """Rank of each code among those of its latent, ties equal, twice over and centred ``(n, D)``.

    Whole numbers, symmetric about 0: a decreasing function of the codes gives exactly their negatives.
    """
    ranks = np.empty_like(codes)
    for i, column in enumerate(codes.T):
        values, rank = np.unique(column, return_inverse=True)
        ranks[:, i] = 2 * rank - (len(values) - 1)
    return ranks


def _fit(
    x: np.ndarray,
    y: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    estimator: Any,
    seed: int,
) -> tuple[np.ndarray, float, float]:
    """Importances of the columns for one factor, accuracy on the training and on the test rows."""
    if estimator is None or len(np.unique(y)) == 1:
        importances, predicted, predicted_test = boost(x, y, x_test)
    else:
        from sklearn.base import clone

        model = clone(estimator)
        if "random_state" in model.get_params():
            model.set_params(random_state=seed)
        model.fit(x, y)
        importances = np.abs(model.feature_importances_)
        predicted, predicted_test = model.predict(x), model.predict(x_test)
    return importances, float(np.mean(predicted == y)), float(np.mean(predicted_test == y_test))


def _svm_accuracy(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> float:
    from sklearn.svm import LinearSVC

    if len(np.unique(y)) == 1:
        return float(np.mean(y_test == y[0]))
    # The primal form: twice as fast with more rows than columns, and no random start.
    model = LinearSVC(C=0.01, class_weight="balanced", dual=False, max_iter=MAX_ITER)
    return float(np.mean(model.fit(x[:, None], y).predict(x_test[:, None]) == y_test))


def _areas(likely: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Area under each column's ROC curve ``(values scored,)``, the Mann-Whitney statistic of ranks."""
    from scipy.stats import rankdata

    positive = y[:, None] == np.arange(likely.shape[1])
    n = positive.sum(0)
    scored = (n > 0) & (n < len(y))
    above = (rankdata(likely, axis=0) * positive).sum(0) - n * (n + 1) / 2
    return above[scored] / (n * (len(y) - n))[scored]
