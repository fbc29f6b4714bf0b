"""Several models side by side: ours beside the published, and measures against an option or each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .base import PALETTE, Names, checked, require
from .names import name_points

Error = tuple[float, float]  # a value and its standard error
Value = tuple[float, float | None]  # the same, where it may have none


def compared(
    rows: Names, panels: Mapping[str, Sequence[tuple[Value | None, Value | None]]]
) -> Figure:
    """Show what was measured beside what was published, a panel a measure and a line a row.

    Args:
        rows: names of models.
        panels: by measure, for each row ours and the published value, each with its standard error
            or None; None where there is none.
    """
    require(len(rows) > 0 and len(panels) > 0, "rows and panels", "not be empty", len(rows))
    counts = {len(values) for values in panels.values()}
    require(counts == {len(rows)}, "panels", f"have {len(rows)} rows each", counts)
    size = (1.4 + 2.9 * len(panels), 0.9 + 0.3 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    shown = {"published": (1, "s", "none"), "ours": (0, "o", PALETTE[0])}
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    at = np.arange(len(rows))[::-1]
    for ax, (title, values) in zip(axes, panels.items(), strict=True):
        for name, (which, marker, face) in shown.items():
            found = [(y, row[which]) for y, row in zip(at, values, strict=True)]
            marks = [(y, pair[0], pair[1] or 0.0) for y, pair in found if pair is not None]
            y, x, error = np.array(marks, float).reshape(-1, 3).T
            ax.errorbar(
                x, y, xerr=error if error.any() else None, fmt=marker, color=PALETTE[5 * which], ms=6,
                mfc=face, capsize=2, elinewidth=1, label=name,
            )  # fmt: skip
        ax.set(xlabel=title, ylim=(-0.6, len(rows) - 0.4))
        ax.grid(axis="y", color="0.9", lw=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(at, rows)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def against(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]], option: str
) -> Figure:
    """Show measures against an option, a panel a measure and a line a kind of model.

    Args:
        panels: by measure and kind, points (value of the option, measure, standard error or 0). The
            option's values stand at equal distances, in order.
        option: its name.
    """
    lines = [points for kinds in panels.values() for points in kinds.values()]
    require(bool(lines) and all(lines), "panels", "not be empty", f"{len(lines)} lines")
    places = sorted({point[0] for points in lines for point in points})
    names = list(dict.fromkeys(name for kinds in panels.values() for name in kinds))
    shown = {}
    figure = Figure(figsize=(3.1 * len(panels), 2.9), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, kinds) in zip(axes, panels.items(), strict=True):
        for name, points in kinds.items():
            value, measure, error = checked(name, np.array(points, float), 2).T
            x = np.searchsorted(places, value)
            color = PALETTE[names.index(name) % 6]
            bars = error if error.any() else None
            shown[name] = ax.errorbar(
                x, measure, bars, fmt="o-", color=color, ms=5, lw=1.3, capsize=2
            )
        ax.set_xticks(range(len(places)), [f"{place:g}" for place in places])
        ax.set(xlabel=option, title=title, xlim=(-0.3, len(places) - 0.7))
        ax.spines[["top", "right"]].set_visible(False)
    where: dict[str, Any] = {"loc": "outside lower center", "ncols": 3, "fontsize": 8}
    figure.legend(list(shown.values()), list(shown), **where)
    return figure


def scores(points: Sequence[tuple[str, Error, Error]], x_label: str, y_label: str) -> Figure:
    """Show one measure of several models against another, each point with its name.

    Args:
        points: (name, x, y), x and y each with its standard error or 0.
        x_label: what x is.
        y_label: what y is.
    """
    require(len(points) > 0, "points", "not be empty", points)
    table = checked("points", np.array([[*x, *y] for _, x, y in points], float), 2)
    x, x_error, y, y_error = table.T
    ax = Figure(figsize=(6.4, 4.4), layout="constrained").add_subplot()
    ax.errorbar(x, y, y_error, x_error, "o", color=PALETTE[0], ms=5, elinewidth=1, capsize=2)
    ax.set(xlabel=x_label, ylabel=y_label)
    ax.margins(0.15)
    ax.spines[["top", "right"]].set_visible(False)
    name_points(ax, x, y, [name for name, _, _ in points])
    return ax.figure.figure
