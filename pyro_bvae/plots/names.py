"""Names written into a picture where they cover nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from .base import Array

_SIZE = 8  # points, of the letters
# Where a name may stand, from near to far: right, left, above, below, then between those.
_DIRECTIONS = np.deg2rad([0, 180, 90, 270, 45, 135, 315, 225])
_DISTANCES = (6, 16, 28, 44, 64)


def name_ends(ax: Axes, ends: Mapping[str, float]) -> None:
    """Write each name beside the axes at the height of its curve's end, apart from each other."""
    figure = ax.figure.figure
    figure.draw_without_rendering()  # the layout decides how high the axes are
    low, high = ax.get_ylim()
    gap = 1.25 * _SIZE * figure.dpi / 72 / ax.bbox.height * (high - low)
    heights = spread(np.array(list(ends.values())), gap, low + gap / 2, high - gap / 2)
    for line in ax.lines:
        if (name := str(line.get_label())) in ends:
            at = 1.02, heights[list(ends).index(name)]
            color = line.get_color()
            where = ax.get_yaxis_transform()  # x in axes, y in data
            ax.text(*at, name, transform=where, color=color, fontsize=_SIZE, va="center")


def spread(values: Array, gap: float, low: float, high: float) -> Array:
    """Move values apart, by as little as a sweep up and a sweep down need, within low and high.

    Examples:
        >>> spread(np.array([1.0, 0.0, 0.1]), 0.5, 0.0, 2.0).tolist()
        [1.0, 0.0, 0.5]
    """
    order = np.argsort(values, kind="stable")
    placed = np.maximum(values[order], low)
    for k in range(1, len(placed)):
        placed[k] = max(placed[k], placed[k - 1] + gap)
    for k in reversed(range(len(placed))):
        placed[k] = min(placed[k], high - gap * (len(placed) - 1 - k))
    out = np.empty_like(placed)
    out[order] = placed
    return out


def name_points(ax: Axes, x: Array, y: Array, names: Sequence[str]) -> None:
    """Write a name near each point, on none of the points and on no other name."""
    figure = ax.figure.figure
    figure.draw_without_rendering()
    pixels = ax.transData.transform(np.column_stack([x, y]))
    unit = figure.dpi / 72  # pixels a point
    inside = np.array([[ax.bbox.x0, ax.bbox.y0], [ax.bbox.x1, ax.bbox.y1]])
    taken: list[Array] = []  # boxes [[left, bottom], [right, top]] of names written before
    if legend := ax.get_legend():
        taken.append(legend.get_window_extent().get_points())
    for (px, py), name in zip(pixels, names, strict=True):
        measured = ax.text(0, 0, name, fontsize=_SIZE)
        half = np.ptp(measured.get_window_extent().get_points(), axis=0) / 2 + unit
        measured.remove()
        costs = []
        for distance in _DISTANCES:
            for angle in _DIRECTIONS:
                way = np.array([np.cos(angle), np.sin(angle)])
                centre = np.array([px, py]) + way * (half + distance * unit)
                box = np.stack([centre - half, centre + half])
                cost = _collisions(box, pixels, taken, inside, 4 * unit)
                # A name as near to another point could be read as that one's.
                own = _gaps(box, np.array([[px, py]]))
                cost += 0.5 * bool((_gaps(box, pixels) <= own).sum() > 1)
                costs.append((cost, distance, box))
        _, distance, box = min(costs, key=lambda c: (c[0], c[1]))
        taken.append(box)
        offset = (box.mean(0) - (px, py)) / unit
        ax.annotate(
            name,
            tuple(ax.transData.inverted().transform((px, py))),
            xytext=tuple(offset),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_SIZE,
            arrowprops={"arrowstyle": "-", "color": "0.5", "lw": 0.6} if distance > 6 else None,
        )


def _collisions(
    box: Array, points: Array, taken: Sequence[Array], inside: Array, margin: float
) -> float:
    """Count the points and names that a box covers; leaving the axes counts as two."""
    covered = ((points > box[0] - margin) & (points < box[1] + margin)).all(1).sum()
    names = sum(bool(((box[0] < b[1]) & (box[1] > b[0])).all()) for b in taken)
    outside = bool((box[0] < inside[0]).any() or (box[1] > inside[1]).any())
    return float(covered + names + 2 * outside)


def _gaps(box: Array, points: Array) -> Array:
    """Return the distance of each point `(n, 2)` from the box, `(n,)`."""
    return np.asarray(np.hypot(*np.maximum(box[0] - points, points - box[1]).clip(0).T))
