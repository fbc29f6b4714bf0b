"""Gradient-boosted trees, exact and fast on few columns: what `dci` asks about the codes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

EPSILON = float(np.finfo(np.float64).eps)
TIED = 1e-9
"""Gains that differ by less than this share of the larger differ by rounding."""


class Boosted(NamedTuple):
    """What boosting one factor gives."""

    importances: np.ndarray
    """Share of the squared error taken away by each column's splits ``(n_columns,)``, sum 1 (0 if none)."""
    train: np.ndarray
    """Predicted class, or number, of each training row ``(n_train,)``."""
    test: np.ndarray
    """Predicted class, or number, of each test row ``(n_test,)``."""


class _Node(NamedTuple):
    """The rows of a node, in the order of each column, and their targets in that order."""

    order: np.ndarray  # (n_columns, m) row numbers
    target: np.ndarray  # (n_columns, m)


def boost(
    x: np.ndarray,
    y: np.ndarray,
    x_test: np.ndarray,
    stages: int = 100,
    depth: int = 3,
    regress: bool = False,
) -> Boosted:
    """Gradient boosting with scikit-learn's defaults (`GradientBoostingClassifier`, or `...Regressor`).

    Each stage fits one least-squares tree a class (one in all, for two classes) to the negative gradient
    y - p of the log loss, and adds a tenth of each leaf's Newton step; for numbers one tree to the
    residuals, and a tenth of each leaf's mean. Splits are the exact best ones. Columns that tie for a
    split share its gain, where scikit-learn gives it to one of them at random: the importances are
    scikit-learn's in the mean over its seeds, except that values closer than 1e-7 are told apart here. 5 to
    10 times faster, because columns are sorted once and not again in each node of each tree.

    Args:
        x: columns to split ``(n_train, n_columns)``.
        y: class of each row, integers ``(n_train,)``, or numbers where ``regress``.
        x_test: rows to predict ``(n_test, n_columns)``.
        stages: trees a class.
        depth: splits between the root and a leaf.
        regress: predict numbers.

    References:
        Friedman 2001, Greedy function approximation, https://doi.org/10.1214/aos/1013203451

    Examples:
        >>> x = np.arange(8.0)[:, None]
        >>> boost(x, np.repeat([0, 1], 4), x).test
        array([0, 0, 0, 0, 1, 1, 1, 1])
    """
    classes = np.unique(y)
    if len(classes) == 1:
        same = classes[np.zeros(len(x) + len(x_test), dtype=np.int64)]
        return Boosted(np.zeros(x.shape[1]), same[: len(x)], same[len(x) :])
    target, score, newton = _start(y, classes, regress)
    x = np.ascontiguousarray(x.T)
    order = np.argsort(x, axis=1, kind="stable")
    in_order = np.take_along_axis(x, order, 1)
    ties = bool((in_order[:, 1:] == in_order[:, :-1]).any())
    score_test = np.repeat(score[:, None], x_test.shape[0], 1)  # (trees, n_test)
    score = np.repeat(score[:, None], len(y), 1)  # (trees, n_train)
    gains = np.zeros(len(x))
    x_test = np.ascontiguousarray(x_test.T)
    for _ in range(stages):
        for k, gradient in enumerate(target - (score if regress else _probabilities(score))):
            root = _Node(order, gradient.take(order, mode="clip"))
            leaves = _grow(root, np.arange(x_test.shape[1]), x, x_test, ties, depth, gains)
            for rows, rows_test in leaves:
                g = gradient[rows]
                # p (1 - p), whatever y is
                curvature = len(g) if regress else (np.abs(g) * (1 - np.abs(g))).sum()
                step = newton * g.sum() / curvature if curvature > 1e-150 else 0.0
                score[k, rows] += step
                score_test[k, rows_test] += step
    total = gains.sum()
    importances = gains / total if total > 0 else gains
    if regress:
        return Boosted(importances, score[0], score_test[0])
    return Boosted(importances, classes[_best(score)], classes[_best(score_test)])


def _start(
    y: np.ndarray, classes: np.ndarray, regress: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    """Target ``(trees, n_train)``, first score ``(trees,)`` and factor of a Newton step."""
    if regress:
        return y[None], y.mean(keepdims=True), 0.1
    hot = y == classes[:, None]
    prior = np.log(hot.mean(1))
    if len(classes) == 2:
        return hot[1:], prior[1:] - prior[:1], 0.1
    return hot, prior, 0.1 * (1 - 1 / len(classes))


def _probabilities(score: np.ndarray) -> np.ndarray:
    if len(score) == 1:
        return np.exp(-np.logaddexp(0, -score))  # no overflow
    p = np.exp(score - score.max(0))
    return p / p.sum(0)


def _best(score: np.ndarray) -> np.ndarray:
    return (score[0] >= 0).astype(np.int64) if len(score) == 1 else score.argmax(0)


def _grow(
    node: _Node,
    rows_test: np.ndarray,
    x: np.ndarray,
    x_test: np.ndarray,
    ties: bool,
    depth: int,
    gains: np.ndarray,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Leaves of one tree as (training rows, test rows); adds what its splits gain to ``gains``."""
    split = _split(node, x if ties else None) if depth else None
    if split is None:
        return [(node.order[0], rows_test)]
    column, size, gain, tied = split
    gains[tied] += gain / tied.sum()
    rows = node.order[column]
    # Halved before they are added, so that the sum cannot overflow.
    threshold = x[column, rows[size - 1]] / 2 + x[column, rows[size]] / 2
    left_test = x_test[column, rows_test] <= threshold
    if depth == 1:  # no order is needed in a leaf
        leaves = [_Node(rows[None, :size], node.target), _Node(rows[None, size:], node.target)]
    else:
        goes_left = np.zeros(x.shape[1], dtype=bool)
        goes_left[rows[:size]] = True
        left = goes_left.take(node.order, mode="clip").ravel()
        leaves = [_part(node, np.flatnonzero(side)) for side in (left, ~left)]
    return [
        leaf
        for child, side in zip(leaves, (left_test, ~left_test), strict=True)
        for leaf in _grow(child, rows_test[side], x, x_test, ties, depth - 1, gains)
    ]


def _part(node: _Node, kept: np.ndarray) -> _Node:
    """A child: the same rows of every column, at these positions of the flattened order."""
    # Positions and take(mode="clip"): three times faster than a two-dimensional boolean index.
    shape = (len(node.order), -1)
    return _Node(
        node.order.ravel().take(kept, mode="clip").reshape(shape),
        node.target.ravel().take(kept, mode="clip").reshape(shape),
    )


def _split(node: _Node, x: np.ndarray | None) -> tuple[int, int, float, np.ndarray] | None:
    """Column, rows on the left and gain of the split that takes away most squared error; None: a leaf.

    Last, which columns have a split of this gain ``(n_columns,)``.
    ``x`` is given where values may be tied: there is no split between equal values.
    """
    m = node.order.shape[1]
    if m == 1:
        return None
    row = node.target[0]
    total = row.sum()
    if row @ row - total * total / m <= EPSILON * m:
        return None
    left = np.arange(1.0, m)
    # The gain m_l m_r / m (mean_l - mean_r)^2, written with the sum of the left side alone.
    gain = np.cumsum(node.target[:, :-1], axis=1)
    gain -= left * (total / m)
    gain *= gain
    gain *= m / (left * (m - left))
    if x is not None:
        value = np.take_along_axis(x, node.order, 1)
        gain[value[:, 1:] == value[:, :-1]] = -1.0
    best = gain.max(1)
    column = int(best.argmax())
    if best[column] < 0:
        return None
    tied = best >= best[column] * (1 - TIED)
    return column, int(gain[column].argmax()) + 1, float(best[column]), tied
