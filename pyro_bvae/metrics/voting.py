"""Scores from groups of rows that share one factor's value: which factor is it, seen from the codes?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .checks import spread, warn_of_outliers
from .factors import check_pair
from .sampling import (
    SharedValue,
    check_size,
    own_order,
    permuted_null,
    shared_values,
    split_rows,
)
from .score import Score

ROWS_A_DRAW = 2**18
"""Rows drawn at once; fixed, so that a seed draws the same rows for codes of any width."""
FLOATS_A_BLOCK = 2**22
"""Numbers gathered at once."""


def beta_vae_score(
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    n_train: int = 10_000,
    n_eval: int = 5_000,
    n_pairs: int = 64,
    pool: str = "mean",
    classifier: str = "logistic",
    seed: int = 0,
) -> Score:
    """BetaVAE (Higgins) score: can a linear classifier name the factor on which pairs of rows agree?

    For each point draw a factor k uniformly and ``n_pairs`` pairs of different rows that agree on k (on the
    value of a random row); its features are the mean over pairs of ``|z1 - z2|``, one a latent, its label
    is k. The value is a classifier's accuracy on points of rows it has not seen (a random third of the
    rows, the training points are of the others), in [0, 1], higher is better; codes that tell nothing,
    and dead ones, score about 1 / n_factors, one factor alone scores 1.
    It does not ask for one latent a factor: two latents turned by 30 degrees still score 1.

    Unchanged by the order and the signs of the latents and by the names of factor values. Not by their
    scale: the regression is regularised, and perfect codes divided by 1000 can score half of 1.

    Args:
        codes: ``(n, latent_dim)``, posterior means unless you say otherwise.
        factors: classes ``(n, n_factors)``; real numbers are cut in 20 bins of equal width.
        n_train: points the classifier is fitted on.
        n_eval: points of the accuracy.
        n_pairs: pairs a point.
        pool: "mean" over the pairs, or their "sum" (a weaker regularisation).
        classifier: "logistic" regression or "linear-svm", with scikit-learn's defaults.
        seed: draws the points.

    Returns:
        Score: details ``train_accuracy``, ``factor_accuracy`` (evaluation points of each factor; None
        where none was drawn), ``chance``, ``null`` (the value of permuted rows, below 1,000 rows),
        ``binned`` (factors cut in bins) and the arguments.

    Raises:
        ValueError: a size below 1, an unknown pool or classifier, a factor no two rows share.

    Warns:
        UserWarning: a few rows carry the variance of a code.

    References:
        Higgins et al. 2017, https://openreview.net/forum?id=Sy2fzU9gl; defaults of Locatello et al. 2019,
        https://arxiv.org/abs/1811.12359

    Examples:
        >>> factors = np.random.default_rng(0).integers(4, size=(1000, 2))
        >>> beta_vae_score(factors * 1.0, factors, n_train=500, n_eval=100).value
        1.0
    """
    name = "beta_vae_score"
    codes, given = check_pair(name, codes, factors)
    for argument, size in (("n_train", n_train), ("n_eval", n_eval), ("n_pairs", n_pairs)):
        check_size(name, argument, size, 1)
    _check_choice(name, "pool", pool, ("mean", "sum"))
    _check_choice(name, "classifier", classifier, ("logistic", "linear-svm"))
    warn_of_outliers(name, codes)
    parts = _disjoint(name, given.classes, seed, held_out=True)

    def measure(codes: np.ndarray) -> tuple[np.ndarray, ...]:
        """Whether each training point and each evaluation point is named rightly, and the latter's labels."""
        rng = np.random.default_rng(seed)
        order, _ = own_order(codes)
        points = []
        for groups, size in zip(parts, (n_train, n_eval), strict=True):
            labels = np.sort(rng.integers(len(groups), size=size))
            features = _differences(codes, order, groups, labels, n_pairs, rng)
            points.append((features * n_pairs if pool == "sum" else features, labels))
        predict = _linear(classifier, *points[0])
        return *(predict(features) == labels for features, labels in points), points[1][1]

    hit_train, hit, labels = measure(codes)
    n_factors = given.classes.shape[1]
    details: dict[str, Any] = {
        "train_accuracy": float(hit_train.mean()),
        "factor_accuracy": _per_factor(hit, labels, n_factors),
        "chance": 1 / n_factors,
        **permuted_null(lambda z: float(measure(z)[1].mean()), codes, seed),
        "binned": given.binned,
        "n": len(codes),
        "n_train": n_train,
        "n_eval": n_eval,
        "n_pairs": n_pairs,
        "pool": pool,
        "classifier": classifier,
        "seed": seed,
    }
    return Score(float(hit.mean()), details)


def factor_vae_score(
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    n_train: int = 10_000,
    n_eval: int = 5_000,
    n_rows: int = 64,
    n_variance: int = 10_000,
    min_std: float = 0.05,
    seed: int = 0,
) -> Score:
    """FactorVAE score: does the latent that varies least name the factor that is held fixed?

    A vote draws a factor k uniformly and ``n_rows`` rows that share k's value (that of a random row), and goes
    to the latent argmin_j Var_rows(z_j) / Var(z_j). Each latent is given the factor it most often voted
    for in the training votes; the value is the share of held-out votes that this names rightly (votes
    of a random third of the rows, the training votes are of the others), in [0, 1], higher is better.
    Codes that tell nothing score about 1 / n_factors; no live code scores 0.

    Unchanged by the order and the signs of the latents and by the names of factor values. Not by their
    scale: latents with a standard deviation below ``min_std`` are dropped. A latent that is dropped
    changes nothing; kept at ``min_std=0``, one that is constant but for a few rows takes most votes.

    Mathieu et al. 2019 use ``n_rows=1000, n_train=20_000, n_eval=0``: the accuracy on the training votes
    themselves, which flatters (random codes score .44 on 50 votes). Under a Student-t prior they
    first map codes to a Normal: ``scipy.stats.norm.ppf(scipy.stats.t.cdf(codes / scale, df))``.

    Args:
        codes: ``(n, latent_dim)``, posterior means unless you say otherwise.
        factors: classes ``(n, n_factors)``; real numbers are cut in 20 bins of equal width.
        n_train: votes for the map from latents to factors.
        n_eval: held-out votes; 0 scores the training votes.
        n_rows: rows a vote, drawn with replacement.
        n_variance: random rows for the variance of each latent, all where there are fewer.
        min_std: drop latents below this standard deviation; constant ones are always dropped.
        seed: draws the rows.

    Returns:
        Score: details ``train_accuracy``, ``held_out`` (False: the value is that in-sample accuracy),
        ``factor_accuracy`` (None where no vote was drawn), ``votes`` (training votes, latents x factors),
        ``dead`` (latents dropped), ``chance``, ``null`` (the value of permuted rows, below 1,000 rows),
        ``binned`` (factors cut in bins) and the arguments.

    Raises:
        ValueError: a size too small, a negative ``min_std``, a factor no two rows share.

    Warns:
        UserWarning: every code is below ``min_std``, or a few rows carry the variance of a code, so that
            it takes every vote without them.

    References:
        Kim and Mnih 2018, https://arxiv.org/abs/1802.05983; Mathieu et al. 2019,
        https://arxiv.org/abs/1812.02833

    Examples:
        >>> factors = np.random.default_rng(0).integers(4, size=(1000, 2))
        >>> factor_vae_score(factors * 1.0, factors, n_train=500, n_eval=100).value
        1.0
    """
    name = "factor_vae_score"
    codes, given = check_pair(name, codes, factors)
    sizes = {"n_train": n_train, "n_eval": n_eval, "n_rows": n_rows, "n_variance": n_variance}
    for (argument, size), least in zip(sizes.items(), (1, 0, 2, 2), strict=True):
        check_size(name, argument, size, least)
    if not min_std >= 0:
        raise ValueError(f"{name}: min_std must be at least 0; got {min_std}. Use 0 to drop none.")
    n, n_factors = given.classes.shape
    parts = _disjoint(name, given.classes, seed, held_out=n_eval > 0)

    def measure(codes: np.ndarray) -> tuple[np.ndarray, ...]:
        """Live latents, training votes, whether these and the scored votes are right, labels of the latter."""
        rng = np.random.default_rng(seed)
        table, live = _standardised(codes, n_variance, min_std, rng)
        labels = rng.integers(n_factors, size=n_train)
        winners = _votes(table, live, parts[0], labels, n_rows, rng)
        votes = np.zeros((codes.shape[1] + 1, n_factors), dtype=np.int64)
        np.add.at(votes, (winners, labels), 1)
        named = np.where(votes.any(1), votes.argmax(1), -1)  # without a training vote: no factor
        named[-1] = -1  # where no latent lives
        hit = in_sample = named[winners] == labels
        if n_eval:
            labels = rng.integers(n_factors, size=n_eval)
            hit = named[_votes(table, live, parts[1], labels, n_rows, rng)] == labels
        return live, votes[:-1], in_sample, hit, labels

    live, votes, in_sample, hit, labels = measure(codes)
    if not len(live):
        warnings.warn(
            f"{name}: no code has a standard deviation of at least {min_std:g}, so no vote counts; scale "
            "the codes up, or lower min_std.",
            UserWarning,
            stacklevel=2,
        )
    warn_of_outliers(name, codes, among=live.tolist())
    details: dict[str, Any] = {
        "train_accuracy": float(in_sample.mean()),
        "held_out": n_eval > 0,
        "factor_accuracy": _per_factor(hit, labels, n_factors),
        "votes": votes.tolist(),
        "dead": np.setdiff1d(np.arange(codes.shape[1]), live).tolist(),
        "chance": 1 / n_factors,
        **permuted_null(lambda z: float(measure(z)[3].mean()), codes, seed),
        "binned": given.binned,
        "n": n,
        **sizes,
        "n_variance": min(n_variance, n),
        "min_std": min_std,
        "seed": seed,
    }
    return Score(float(hit.mean()), details)


def _disjoint(
    metric: str, classes: np.ndarray, seed: int, held_out: bool
) -> list[list[SharedValue]]:
    """Groups of two thirds of the rows, to train on, and of the others; of all rows unless ``held_out``."""
    if not held_out:
        return [shared_values(metric, classes)]
    n = len(classes)
    n_train = n * 2 // 3
    # another stream than that of the points
    rows = split_rows(metric, n, n_train, n - n_train, np.random.default_rng((seed, 1)))
    return [
        shared_values(metric, classes, np.sort(part), purpose)
        for part, purpose in zip(rows, (" to train on", " to evaluate on"), strict=True)
    ]


def _check_choice(metric: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"{metric}: {name} must be one of {', '.join(choices)}; got {value!r}. Name one."
        )


def _per_factor(hit: np.ndarray, labels: np.ndarray, n_factors: int) -> list[float | None]:
    """Share of hits among the points of each factor, None for a factor without a point."""
    drawn = np.bincount(labels, minlength=n_factors)
    hits = np.bincount(labels, weights=hit, minlength=n_factors)
    return [float(h / d) if d else None for h, d in zip(hits, drawn, strict=True)]


def _by_factor(labels: np.ndarray, n_factors: int, n_rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """Each factor with the points that bear its label, a draw of rows at a time."""
    step = max(1, ROWS_A_DRAW // n_rows)
    for k in range(n_factors):
        points = np.flatnonzero(labels == k)
        for i in range(0, len(points), step):
            yield k, points[i : i + step]


def _blocks(rows: np.ndarray, width: int) -> Iterator[slice]:
    """Slices of the points ``(points, n_rows)`` whose codes of this width fit into a block."""
    step = max(1, FLOATS_A_BLOCK // (rows.shape[1] * width))
    for i in range(0, len(rows), step):
        yield slice(i, i + step)


def _differences(
    codes: np.ndarray,
    order: np.ndarray,
    groups: list[SharedValue],
    labels: np.ndarray,
    n_pairs: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Mean absolute difference over pairs that agree on the factor of each label, latents in ``order``."""
    features = np.empty((len(labels), codes.shape[1]))
    for k, points in _by_factor(labels, len(groups), n_pairs):
        first, second = groups[k].draw_pairs(len(points), n_pairs, rng)
        for block in _blocks(first, codes.shape[1]):
            gap = codes.take(first[block], axis=0)  # (points, n_pairs, D)
            gap -= codes.take(second[block], axis=0)
            features[points[block]] = np.abs(gap, out=gap).mean(1)[:, order]
    return features


def _linear(
    classifier: str, features: np.ndarray, labels: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """What the fitted classifier predicts from features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    if len(np.unique(labels)) == 1:  # one factor, or so few points that only one was drawn
        return lambda rows: np.full(len(rows), labels[0])
    # Defaults but for the iterations: those end before the solvers do.
    if classifier == "logistic":
        return LogisticRegression(max_iter=100_000).fit(features, labels).predict
    return LinearSVC(dual=False, max_iter=100_000).fit(features, labels).predict


def _standardised(
    codes: np.ndarray, n_variance: int, min_std: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Live codes in single precision, of mean 0 and variance 1 ``(n, n_live)``, and which they are."""
    n, latent_dim = codes.shape
    rows = rng.choice(n, n_variance, replace=False) if n_variance < n else np.arange(n)
    mean, std = np.empty((2, latent_dim))
    step = max(1, FLOATS_A_BLOCK // len(rows))
    for i in range(0, latent_dim, step):
        columns = slice(i, i + step)
        sample = codes[:, columns][rows]
        mean[columns], std[columns] = sample.mean(0), spread(sample, ddof=1)
    live = np.flatnonzero((std >= min_std) & (std > 0))
    table = np.empty((n, len(live)), dtype=np.float32)
    step = max(1, FLOATS_A_BLOCK // latent_dim)
    for i in range(0, n, step):
        table[i : i + step] = (codes[i : i + step, live] - mean[live]) / std[live]
    return table, live


def _votes(
    table: np.ndarray,
    live: np.ndarray,
    groups: list[SharedValue],
    labels: np.ndarray,
    n_rows: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """The latent of least variance for each label ``(votes,)``, -1 where none lives."""
    winners = np.full(len(labels), -1)
    if not len(live):
        return winners
    order, _ = own_order(table)
    ones = np.ones((1, n_rows), dtype=np.float32)
    for k, points in _by_factor(labels, len(groups), n_rows):
        rows = groups[k].draw(len(points), n_rows, rng)
        for block in _blocks(rows, len(live)):
            z = table.take(rows[block], axis=0)  # (votes, n_rows, n_live)
            # Seen from its own first row: a small variance is not lost beside a large mean.
            z -= z[:, :1].copy()
            mean = (ones @ z)[:, 0] / n_rows
            variance = np.einsum("vrd,vrd->vd", z, z) / n_rows - mean**2
            winners[points[block]] = live[order[variance[:, order].argmin(1)]]
    return winners
