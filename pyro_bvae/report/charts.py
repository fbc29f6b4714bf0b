"""Curves and scatters as SVG, drawn here: small, sharp at any size, and readable without scripts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_WIDTH, _HEIGHT = 330, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 8, 36
COLOURS = 8  # .c0 ... .c7 of page.css


class Line(NamedTuple):
    """``y`` over ``x`` in the colour of ``group``; ``dashed`` for held-out terms."""

    x: Array
    y: Array
    group: int
    name: str
    dashed: bool = False


class Point(NamedTuple):
    """A dot in the colour of ``group``."""

    x: float
    y: float
    group: int
    name: str


def thin(x: Array, y: Array, most: int) -> tuple[Array, Array]:
    """At most about ``most`` points: means over equal stretches, with the first and last as they are."""
    if len(x) <= most:
        return x, y
    edges = np.linspace(1, len(x) - 1, most - 1).astype(int)
    middle = [
        (x[a:b].mean(), y[a:b].mean()) for a, b in zip(edges, edges[1:], strict=False) if b > a
    ]
    points = np.array([(x[0], y[0]), *middle, (x[-1], y[-1])])
    return points[:, 0], points[:, 1]


def curves(title: str, lines: Sequence[Line], x_name: str, y_name: str) -> str:
    """Lines over a common axis; values far outside those of later steps are cut off."""
    x_limits = _limits([line.x for line in lines], 0)
    place = _Place(x_limits, _limits([_late(line.y) for line in lines], 0.06))
    body = []
    for line in lines:
        points = " ".join(f"{a:.0f},{b:.1f}" for a, b in place(line.x, line.y))
        look = f"c{line.group % COLOURS}" + " dashed" * line.dashed
        shape = f'<polyline class="{look}" points="{points}">'
        if len(line.x) == 1:
            a, b = place(line.x, line.y)[0]
            shape = f'<circle class="{look}" cx="{a:.1f}" cy="{b:.1f}" r="3">'
        body.append(f"{shape}<title>{escape(line.name)}</title></{shape[1:].split()[0]}>")
    return _frame(title, body, place, x_name, y_name)


def scatter(title: str, points: Sequence[Point], x_name: str, y_name: str) -> str:
    """Dots."""
    x, y = np.array([p.x for p in points]), np.array([p.y for p in points])
    place = _Place(_limits([x], 0.08), _limits([y], 0.08))
    body = []
    for point, (a, b) in zip(points, place(x, y), strict=True):
        look = f"c{point.group % COLOURS}"
        circle = f'<circle class="{look}" cx="{a:.1f}" cy="{b:.1f}" r="4">'
        body.append(f"{circle}<title>{escape(point.name)}</title></circle>")
    return _frame(title, body, place, x_name, y_name)


class _Place:
    """From values to places in the picture."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x, self.y = x, y

    def __call__(self, x: Array, y: Array) -> Array:
        right, down = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        a = _LEFT + (x - self.x[0]) / (self.x[1] - self.x[0]) * right
        b = _TOP + (self.y[1] - y) / (self.y[1] - self.y[0]) * down
        # Far outside the frame a number would only be long.
        return np.stack([a, b.clip(-_HEIGHT, 2 * _HEIGHT)], 1)


def _late(y: Array) -> Array:
    """Without the first tenth, where it would flatten the rest."""
    kept = y[len(y) // 10 :]
    return y if np.ptp(y) < 3 * np.ptp(kept) or np.ptp(kept) == 0 else kept


def _limits(values: Sequence[Array], margin: float) -> tuple[float, float]:
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    room = margin * (high - low) or 0.05 * abs(high) or 1.0
    return (low - room, high + room) if margin or low == high else (low, high)


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers within the limits."""
    power = 10 ** math.floor(math.log10((high - low) / 3))
    step = next(power * m for m in (5, 2, 1) if (high - low) / (power * m) >= 3)
    first = math.ceil(low / step)
    return [step * k for k in range(first, math.floor(high / step) + 1)]


def _frame(title: str, body: Sequence[str], place: _Place, x_name: str, y_name: str) -> str:
    """Axes around ``body``; what lies outside is cut off by the inner svg."""
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in _ticks(*place.y):
        y = place(np.zeros(1), np.array([tick]))[0, 1]
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
        parts.append(
            f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>'
        )
    for tick in _ticks(*place.x):
        x = place(np.array([tick]), np.zeros(1))[0, 0]
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{_short(tick)}</text>'
        )
    box = f'x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" height="{bottom - _TOP}"'
    view = f'viewBox="{_LEFT} {_TOP} {right - _LEFT} {bottom - _TOP}"'
    parts.append(f'<svg {box} {view} overflow="hidden">{"".join(body)}</svg>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>')
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x_name)}</text>'
        f'<text transform="translate(11 {middle}) rotate(-90)" text-anchor="middle">{escape(y_name)}</text>'
    )
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _short(value: float) -> str:
    if abs(value) >= 1e4:
        return f"{value / 1e3:g}k" if abs(value) < 1e6 else f"{value / 1e6:g}M"
    return f"{value:.6g}"
