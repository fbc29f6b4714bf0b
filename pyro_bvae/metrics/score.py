"""What a metric returns."""

from __future__ import annotations

from typing import Any, NamedTuple


class Score(NamedTuple):
    """A metric's value, and what is needed to judge it: nulls, sample sizes, parts.

    Examples:
        >>> float(Score(0.5, {"n": 10}))
        0.5
    """

    value: float
    details: dict[str, Any]

    def __float__(self) -> float:
        return float(self.value)
