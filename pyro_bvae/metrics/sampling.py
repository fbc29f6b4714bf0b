"""Which rows and columns a score looks at: draws that do not depend on how the latents are listed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

FEW_ROWS = 1000
"""With fewer rows every score of `METRICS` carries its null."""
NULL_DRAWS = 3
"""Permutations of the null of few rows."""


def check_size(metric: str, name: str, value: int, least: int) -> None:
    """Raises a ValueError unless ``value``, the argument ``name`` of ``metric``, reaches ``least``."""
    if value < least:
        raise ValueError(f"{metric}: {name} must be at least {least}; got {value}. Raise it.")


def own_order(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A permutation ``(latent_dim,)`` and signs ``(latent_dim,)`` that depend on the columns' content.

    ``codes[:, permutation] * signs`` is the same for every order of the columns, and for every choice of
    their signs: an iterative solver stops at the same bits, and a tie falls to the same code. Columns
    equal up to sign may swap, which no score can see.
    """
    # Random weights tell any two columns apart, where a mean or a first row would not.
    key = np.random.default_rng(0).normal(size=len(codes)).astype(codes.dtype) @ codes
    order = np.argsort(np.abs(key), kind="stable")
    return order, np.where(key[order] < 0, -1.0, 1.0)


def split_rows(
    metric: str, n: int, n_train: int | None, n_test: int | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint random rows to train and to test on, drawn without regard to factors.

    Sizes of None mean 10,000 and 5,000, or two thirds and one third of fewer rows; one of them alone
    means at most that many of the rows the other leaves.

    Raises:
        ValueError: a size below 1, or more rows asked for than there are.
    """
    for name, size in (("n_train", n_train), ("n_test", n_test)):
        if size is not None:
            check_size(metric, name, size, 1)
    if n_train is None:
        n_train = min(10_000, n * 2 // 3 if n_test is None else n - n_test)
    if n_test is None:
        n_test = min(5_000, n - n_train)
    if min(n_train, n_test) < 1 or n_train + n_test > n:
        raise ValueError(
            f"{metric}: n_train + n_test must leave a row to each and not exceed the {n} rows; got "
            f"{n_train} + {n_test}. Ask for fewer, or give more rows."
        )
    rows = rng.permutation(n)
    return rows[:n_train], rows[n_train : n_train + n_test]


def sizes(codes: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int) -> dict[str, int]:
    """How many rows there are, and how many were drawn, for ``details``."""
    return {"n": len(codes), "n_train": len(train), "n_test": len(test), "seed": seed}


def permuted_null(
    score: Callable[[np.ndarray], float | list[float]],
    codes: np.ndarray,
    seed: int,
    always: bool = False,
    draws: int = NULL_DRAWS,
    names: tuple[str, ...] = ("null",),
) -> dict[str, float]:
    """What ``score`` makes of codes that know nothing: its mean over permutations of their rows.

    Codes and factors keep their distributions, and lose what they have to do with each other.

    Args:
        score: of codes ``(n, latent_dim)``: a value, or one for each of ``names``.
        codes: ``(n, latent_dim)``.
        seed: draws the permutations.
        always: also where the rows are many; one permutation is then enough.
        draws: permutations where they are few.
        names: keys of the result.

    Returns:
        The means by name; empty where the rows are not few, unless ``always``.
    """
    few = len(codes) < FEW_ROWS
    if not few and not always:
        return {}
    rng = np.random.default_rng((seed, len(codes)))
    orders = [rng.permutation(len(codes)) for _ in range(draws if few else 1)]
    values = [np.atleast_1d(score(codes[order])) for order in orders]
    return dict(zip(names, np.mean(values, axis=0).tolist(), strict=True))


class SharedValue(NamedTuple):
    """The rows of one factor, sorted by its value: those that share a value are a slice."""

    factor: np.ndarray
    """Value of each row ``(n,)``, from 0."""
    rows: np.ndarray
    """Rows whose value occurs at least twice, by value ``(m,)``."""
    start: np.ndarray
    """Where in ``rows`` each value begins ``(n_values,)``."""
    size: np.ndarray
    """How many rows each value has ``(n_values,)``."""

    def draw(self, points: int, n_rows: int, rng: np.random.Generator) -> np.ndarray:
        """Rows ``(points, n_rows)``, with replacement, that share the value of a random row."""
        value = self.factor[self.rows[rng.integers(len(self.rows), size=(points, 1))]]
        inside = (rng.random((points, n_rows)) * self.size[value]).astype(np.int64)
        return self.rows.take(self.start[value] + inside)

    def draw_pairs(
        self, points: int, n_pairs: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Two different rows of one value, twice ``(points, n_pairs)``; the value of a random row."""
        first = rng.integers(len(self.rows), size=(points, n_pairs))
        value = self.factor[self.rows[first]]
        inside = rng.random((points, n_pairs)) * (self.size[value] - 1)
        second = self.start[value] + inside.astype(np.int64)
        second += second >= first
        return self.rows.take(first), self.rows.take(second)


def shared_values(
    metric: str, factors: np.ndarray, rows: np.ndarray | None = None, purpose: str = ""
) -> list[SharedValue]:
    """One `SharedValue` for each factor ``(n, n_factors)``, its values numbered from 0.

    Args:
        metric: begins the errors.
        factors: classes.
        rows: the rows to draw from, by default all.
        purpose: what these rows are for, in the error.

    Raises:
        ValueError: a factor with another value in every row.
    """
    part = np.arange(len(factors)) if rows is None else rows
    found = []
    for k, factor in enumerate(factors.T):
        of_part = factor[part]
        size = np.bincount(of_part, minlength=factor.max() + 1)
        order = np.argsort(of_part, kind="stable")
        order = order[size[of_part[order]] > 1]
        if not len(order):
            raise ValueError(
                f"{metric}: some rows must share each factor's value; factor {k} has {len(part)} "
                f"values in {len(part)} rows{purpose}. Leave that column out, cut it in bins, or give more "
                "rows."
            )
        counted = np.where(size > 1, size, 0)
        start = np.cumsum(counted) - counted
        found.append(SharedValue(np.ascontiguousarray(factor), part[order], start, size))
    return found
