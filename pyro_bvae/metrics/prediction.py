"""Scores from predictors of the factors: how well do codes tell them, from one latent or from all?"""

from __future__ import annotations

import numpy as np

from .alignment import correlations
from .checks import spread, standardised, warn_of_outliers
from .factors import check_pair
from .sampling import own_order, permuted_null, sizes, split_rows
from .score import Score

DEAD_VARIANCE = 1e-12
"""A code whose variance does not exceed this predicts nothing in `sap`."""
MAX_ITER = 100_000
"""Solvers end before this many iterations, where scikit-learn's default can stop them early."""


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
    i alone, on rows it has not seen; for factors with values that are not whole, and for all where
    ``continuous``, the squared Pearson correlation of the two on all rows. The value is the mean over
    factors of the largest S_ij minus the second largest, in [0, 1], higher is better.
    Dead codes (variance up to 1e-12) have S = 0, and so does the second of one latent.

    Perfect codes do not score 1 where factors are classes: the second latent guesses, at about one in the
    number of values, and one threshold a value finds the outer of many values only.

    Unchanged by the order and the signs of the latents; by the names of factor values where those are
    classes; by scale only where no factor is (and no code is dead).

    Args:
        codes: ``(n, latent_dim)``, posterior means unless you say otherwise.
        factors: numbers ``(n, n_factors)``: whole ones are classes unless ``continuous``.
        n_train: rows the SVMs are fitted on; by default 10,000, or two thirds of fewer rows.
        n_test: rows of the accuracy; by default 5,000, or one third of fewer rows. A value that no
            training row has counts as predicted wrongly.
        continuous: correlate whole numbers too; there is then no sample to size.
        seed: draws the rows.

    Returns:
        Score: details ``scores`` (S, latents x factors), ``factor_gap``, ``dead``, ``continuous`` (the
        factors correlated), ``null`` (the value of permuted rows, below 1,000 rows), sizes and seed.

    Raises:
        ValueError: more rows asked for than there are, or sizes where all factors are correlated.

    Warns:
        UserWarning: a few rows carry the variance of a code, or of a factor that is correlated.

    References:
        Kumar et al. 2018, https://arxiv.org/abs/1711.00848

    Examples:
        >>> factors = np.random.default_rng(0).integers(4, size=(1000, 2))
        >>> round(sap(factors * 1.0, factors, continuous=True).value, 2)
        1.0
    """
    codes, given = check_pair("sap", codes, factors, cut_real=False)
    n_factors = given.classes.shape[1]
    numeric = list(range(n_factors)) if continuous else given.real
    named = np.setdiff1d(np.arange(n_factors), numeric)
    warn_of_outliers("sap", codes)
    warn_of_outliers("sap", given.numbers, "factor", numeric)
    drawn: dict[str, int] = {"n": len(codes), "seed": seed}
    if len(named):
        train, test = split_rows("sap", len(codes), n_train, n_test, np.random.default_rng(seed))
        drawn = sizes(codes, train, test, seed)
    elif n_train is not None or n_test is not None:
        raise ValueError(
            "sap: n_train and n_test must be None where all factors are correlated, on all rows; got "
            f"{n_train} and {n_test}. Leave them out."
        )
    live = np.flatnonzero(spread(codes) ** 2 > DEAD_VARIANCE)

    def measure(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """S (latents, factors), and each factor's gap."""
        scores = np.zeros((codes.shape[1], n_factors))
        if numeric:
            related = correlations(codes[:, live], given.numbers[:, numeric])
            scores[live[:, None], numeric] = related**2
        for j in named:
            y = given.classes[:, j]
            for i in live:
                scores[i, j] = _svm_accuracy(codes[train, i], y[train], codes[test, i], y[test])
        # A row of zeros is the second of one latent.
        ranked = np.sort(np.vstack([scores, np.zeros_like(scores[:1])]), axis=0)
        return scores, ranked[-1] - ranked[-2]

    scores, gap = measure(codes)
    details = {
        "scores": scores.tolist(),
        "factor_gap": gap.tolist(),
        "dead": np.setdiff1d(np.arange(codes.shape[1]), live).tolist(),
        "continuous": numeric,
        **permuted_null(lambda z: float(measure(z)[1].mean()), codes, seed),
        **drawn,
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
        factors: classes ``(n, n_factors)``; real numbers are cut in 20 bins of equal width.
        n_train: rows the regressions are fitted on; by default 10,000, or two thirds of fewer rows.
        n_test: rows of the curves; by default 5,000, or one third of fewer rows.
        seed: draws the rows.

    Returns:
        Score: details ``normalised`` (2 AUC - 1: 0 is chance), ``factor_auc``, ``values_scored`` (how
        many of each factor's values), ``null`` (the value of permuted rows, below 1,000 rows), ``binned``
        (factors cut in bins), sizes and seed.

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

    codes, given = check_pair("explicitness", codes, factors)
    train, test = split_rows(
        "explicitness", len(codes), n_train, n_test, np.random.default_rng(seed)
    )
    warn_of_outliers("explicitness", codes)

    def measure(codes: np.ndarray) -> tuple[list[float], list[int]]:
        """Mean area under the curves of each factor, and how many curves."""
        rows = codes[train]
        x, x_test = standardised(rows), standardised(codes[test], rows)
        order, _ = own_order(x)
        x, x_test = x[:, order], x_test[:, order]
        auc, scored = [], []
        for factor in given.classes.T:
            likely = np.zeros((len(test), factor.max() + 1))
            seen = np.unique(factor[train])
            if len(seen) > 1 and x.any():
                model = LogisticRegression(max_iter=MAX_ITER).fit(x, factor[train])
                likely[:, seen] = model.predict_proba(x_test)
            areas = _areas(likely, factor[test])
            scored.append(len(areas))
            auc.append(float(areas.mean()) if len(areas) else 0.5)
        return auc, scored

    auc, scored = measure(codes)
    value = float(np.mean(auc))
    details = {
        "normalised": 2 * value - 1,
        "factor_auc": auc,
        "values_scored": scored,
        **permuted_null(lambda z: float(np.mean(measure(z)[0])), codes, seed),
        "binned": given.binned,
        **sizes(codes, train, test, seed),
    }
    return Score(value, details)


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
