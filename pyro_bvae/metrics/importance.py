"""DCI: which latents serve to predict which factors?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .boosting import boost
from .checks import spread, standardised
from .factors import check_pair
from .sampling import own_order, permuted_null, sizes, split_rows
from .score import Score


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

    One predictor a factor gives importances R_ij >= 0 of latent i for factor j. With P_ij = R_ij / sum_j R_ij
    and rho_i = sum_j R_ij / sum R,

        disentanglement = sum_i rho_i (1 - H_K(P_i)),   H in base K, the number of factors;

    completeness is the same with latents and factors exchanged (base: the number of latents), and
    informativeness the mean over factors of the accuracy, or of R^2 for numbers, on rows the predictors
    have not seen. Higher is better, 1 is best; all lie in [0, 1], only R^2 can be negative. Where the
    logarithm's base would be 1 (one factor, or one latent) there is nothing to mix and the entropy counts
    as 0; where no latent is of any importance (all dead) both are 0.

    By default the predictors are gradient-boosted trees with scikit-learn's defaults, as in the literature,
    from `pyro_bvae.metrics.boosting`: classifiers, or regressors for factors that are not whole numbers.
    Redundant latents share their importance: codes that hold each of K latents twice have
    completeness 1 - log 2 / log 2K at best.

    Unchanged by the order of the latents, by any strictly monotone function of each (so by their signs and
    scales) and by the names of factor values: codes enter as ranks among the rows drawn. An ``estimator``
    gets the codes with mean 0 and variance 1.

    Cost grows with rows x latents x values of all factors: about a minute at the default sizes for 10 latents
    and 113 values, hours for raw pixels.

    Args:
        codes: ``(n, latent_dim)``, posterior means unless you say otherwise.
        factors: numbers ``(n, n_factors)``: whole ones are classes, others are predicted as numbers.
        n_train: rows the predictors are fitted on; by default 10,000, or two thirds of fewer rows.
        n_test: rows of the informativeness; by default 5,000, or one third of fewer rows. A value that
            no training row has counts as predicted wrongly.
        estimator: another scikit-learn predictor, cloned for each factor. A regressor predicts every factor
            as a number of variance 1, a classifier its classes (real numbers cut in 20 bins). Its
            importances are ``feature_importances_``, or the mean over classes of \\|``coef_``\\|; of a
            pipeline those of the last step, if the steps before it keep the latents, as a scaler does.
        n_jobs: processes (joblib), one factor each at a time.
        seed: draws the rows, and seeds ``estimator`` where it takes a ``random_state``.

    Returns:
        Score: details ``completeness``, ``informativeness_test``, ``informativeness_train``,
        ``importance`` (latents x factors; of trees, each column sums to 1), ``latent_disentanglement``,
        ``factor_completeness``, ``factor_accuracy`` (or R^2), ``regressed`` (factors predicted as numbers),
        ``binned`` (factors cut in bins), sizes and seed; below 1,000 rows ``null``,
        ``null_completeness`` and ``null_informativeness_test``, the values of permuted rows.

    Raises:
        TypeError: ``estimator`` is no predictor.
        ValueError: more rows asked for than there are; an estimator without importances.

    References:
        Eastwood and Williams 2018, https://openreview.net/forum?id=By-7dz-AZ; defaults of Locatello et
        al. 2019, https://arxiv.org/abs/1811.12359

    Examples:
        >>> factors = np.random.default_rng(0).integers(4, size=(300, 2))
        >>> dci(factors * 1.0, factors).value
        1.0
    """
    from sklearn.utils.parallel import Parallel, delayed

    kind = _kind(estimator)
    codes, given = check_pair("dci", codes, factors, cut_real=kind == "classes")
    train, test = split_rows("dci", len(codes), n_train, n_test, np.random.default_rng(seed))
    columns = list(range(given.classes.shape[1]))
    regressed = {"classes": [], "numbers": columns, "either": given.real}[kind]
    rows, split = np.concatenate([train, test]), len(train)
    targets = [given.classes[rows, k] for k in columns]
    for k in regressed:
        number = given.numbers[rows, k]
        std = spread(number[:split, None])[0]
        targets[k] = (number - number[:split].mean()) / (std if std > 0 else 1.0)

    def measure(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Importances (latents, factors), scores of the training and test rows (factors, 2)."""
        x = _ranks(codes[rows]) if estimator is None else standardised(codes[rows], codes[train])
        order, signs = own_order(x)
        x = x[:, order] * signs
        fits = Parallel(n_jobs=n_jobs)(
            delayed(_fit)(x, y, split, estimator, k in regressed, seed)
            for k, y in enumerate(targets)
        )
        importance = np.empty((codes.shape[1], len(targets)))
        importance[order] = np.stack([fit[0] for fit in fits], axis=1)
        return importance, np.array([fit[1:] for fit in fits])

    def values(codes: np.ndarray) -> list[float]:
        importance, scores = measure(codes)
        return [
            concentration(importance)[1],
            concentration(importance.T)[1],
            float(scores[:, 1].mean()),
        ]

    importance, scores = measure(codes)
    per_latent, disentanglement = concentration(importance)
    per_factor, completeness = concentration(importance.T)
    names = ("null", "null_completeness", "null_informativeness_test")
    details = {
        "completeness": completeness,
        "informativeness_test": float(scores[:, 1].mean()),
        "informativeness_train": float(scores[:, 0].mean()),
        "importance": importance.tolist(),
        "latent_disentanglement": per_latent.tolist(),
        "factor_completeness": per_factor.tolist(),
        "factor_accuracy": scores[:, 1].tolist(),
        "estimator": "boost" if estimator is None else type(estimator).__name__,
        "regressed": regressed,
        "binned": given.binned,
        **permuted_null(values, codes, seed, draws=1, names=names),  # each as long as the score
        **sizes(codes, train, test, seed),
    }
    return Score(disentanglement, details)


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


def _ranks(codes: np.ndarray) -> np.ndarray:
    """Rank of each code among those of its latent, ties equal, twice over and centred ``(n, D)``.

    Whole numbers, symmetric about 0: a decreasing function of the codes gives exactly their negatives.
    """
    ranks = np.empty_like(codes)
    for i, column in enumerate(codes.T):
        values, rank = np.unique(column, return_inverse=True)
        ranks[:, i] = 2 * rank - (len(values) - 1)
    return ranks


def _kind(estimator: Any) -> str:
    """What ``estimator`` predicts: classes, numbers, or either, as the factors are.

    Raises:
        TypeError: it is no predictor.
    """
    if estimator is None:
        return "either"
    from sklearn.base import is_classifier, is_regressor

    if not isinstance(estimator, type) and hasattr(estimator, "get_params"):
        if is_classifier(estimator):
            return "classes"
        if is_regressor(estimator):
            return "numbers"
    raise TypeError(
        f"dci: estimator must be a scikit-learn classifier or regressor; got {estimator!r}. Pass an "
        "instance, such as RandomForestClassifier()."
    )


def _fit(
    x: np.ndarray, y: np.ndarray, split: int, estimator: Any, regress: bool, seed: int
) -> tuple[np.ndarray, float, float]:
    """Importances of the columns for one factor, and how well its training and its test rows are predicted.

    The first ``split`` rows are those to train on.
    """
    x, x_test, y, y_test = x[:split], x[split:], y[:split], y[split:]
    if estimator is None or len(np.unique(y)) == 1:
        importances, predicted, predicted_test = boost(x, y, x_test, regress=regress)
    else:
        from sklearn.base import clone

        model = clone(estimator)
        seeds = [name for name in model.get_params() if name.split("__")[-1] == "random_state"]
        model.set_params(**dict.fromkeys(seeds, seed)).fit(x, y)
        importances = _importances(model, x.shape[1])
        predicted, predicted_test = model.predict(x), model.predict(x_test)
    agree = _r2 if regress else _accuracy
    return importances, agree(predicted, y), agree(predicted_test, y_test)


def _importances(model: Any, n_columns: int) -> np.ndarray:
    """Importance of each column for a fitted model ``(n_columns,)``."""
    last = model
    if hasattr(model, "named_steps"):  # a pipeline
        last, columns = model[-1], [f"z{i}" for i in range(n_columns)]
        try:
            kept = len(model) == 1 or list(model[:-1].get_feature_names_out(columns)) == columns
        except (AttributeError, ValueError):
            kept = False
        if not kept:
            raise ValueError(
                "dci: estimator must tell the importance of each latent; got a pipeline whose steps before "
                f"the last make other columns of them: {list(model.named_steps)}. Use scalers only."
            )
    values: Any = getattr(last, "feature_importances_", None)
    if values is None and hasattr(last, "coef_"):
        values = np.abs(np.atleast_2d(last.coef_)).mean(0)  # over classes
    if np.shape(values) != (n_columns,):
        raise ValueError(
            "dci: estimator must have feature_importances_ or coef_ when it is fitted, one for each latent; "
            f"got {type(last).__name__}. Pass trees or a linear model."
        )
    return np.abs(np.asarray(values))


def _accuracy(predicted: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(predicted == y))


def _r2(predicted: np.ndarray, y: np.ndarray) -> float:
    """1 - squared error / squared deviation; of constant numbers 1 where all are right, else 0."""
    error, total = ((predicted - y) ** 2).sum(), ((y - y.mean()) ** 2).sum()
    if total > 0:
        return float(1 - error / total)
    return float(error == 0)
