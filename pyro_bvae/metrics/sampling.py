"""Which rows and columns a score looks at: draws that do not depend on how the latents are listed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


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


def shared_values(metric: str, factors: np.ndarray) -> list[SharedValue]:
    """One `SharedValue` for each factor ``(n, n_factors)``, its values numbered from 0.

    Raises:
        ValueError: a factor with another value in every row.
    """
    found = []
    for k, factor in enumerate(factors.T):
        size = np.bincount(factor)
        rows = np.argsort(factor, kind="stable")
        rows = rows[size[factor[rows]] > 1]
        if not len(rows):
            raise ValueError(
                f"{metric}: some rows must share each factor's value; factor {k} has {len(factor)} "
                f"values in {len(factor)} rows. Leave that column out, or give more rows."
            )
        counted = np.where(size > 1, size, 0)
        found.append(
            SharedValue(np.ascontiguousarray(factor), rows, np.cumsum(counted) - counted, size)
        )
    return found
