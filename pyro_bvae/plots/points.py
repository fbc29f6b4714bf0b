"""Points in the plane, and vectors by their first two principal components."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .base import PALETTE, Array, Names, require

_CLASS_COLOURS = (*PALETTE, "#B2DF8A", "#8C564B")  # ten: the digits


def scatter(ax: Axes, points: Array, labels: Array | None, over_density: bool = False) -> None:
    """Draw `(n, 2)` points, an even subsample of very many, with one legend entry per class."""
    size, edge, most = (7, 0.4, 2000) if over_density else (10, 0.0, 10_000)
    labels, named = (np.zeros(len(points)), False) if labels is None else (labels, True)
    kinds, index = np.unique(labels, return_inverse=True)
    require(index.shape == points.shape[:1], "labels", f"be ({len(points)},)", index.shape)
    shown = np.linspace(0, len(points) - 1, min(len(points), most)).astype(int)
    (x, y), index = points[shown].T, index[shown]
    if len(kinds) > 16:  # more than a legend holds, as of a continuous factor
        ax.scatter(x, y, s=size, c=index, cmap="viridis", linewidths=edge, edgecolors="black")
        return
    for k, label in enumerate(kinds):  # beyond ten, the colours repeat with another marker
        style: dict[str, Any] = {"marker": "os"[k // 10], "label": str(label) if named else None}
        style |= {"color": _CLASS_COLOURS[k % 10], "linewidths": edge, "edgecolors": "black"}
        ax.scatter(x[index == k], y[index == k], s=size, **style)


def plane(base: Array) -> tuple[Callable[[Array], Array], Names]:
    """Return what maps `(n, d)` onto the plane of a picture, `(n, 2)`, and the names of its axes.

    The plane is that of the points themselves at d = 2, else that of the first two principal
    components of `base`, `(m, d)`.
    """
    if base.shape[1] == 2:
        return (lambda x: x), ("x0", "x1")
    mean = base.mean(0)
    components = np.linalg.eigh((base - mean).T @ (base - mean))[1][:, ::-1]
    basis = np.pad(components, ((0, 0), (0, 1)))[:, :2]  # padded for points on a line, d = 1
    return (lambda x: (x - mean) @ basis), ("principal component 1", "principal component 2")


def faint(ax: Axes, points: Array, label: str = "data") -> None:
    """Draw `(n, 2)` points in light grey, below everything else."""
    ax.scatter(points[:, 0], points[:, 1], s=16, color="0.8", lw=0, label=label, zorder=0)


def point_figure(
    panels: Sequence[tuple[str, Array]], labels: Array | None, reference: Array | None = None
) -> Figure:
    """Draw `(title, (n, d) points)` panels on the same axes, in the plane of the first."""
    project, names = plane(panels[0][1] if reference is None else reference)
    figure = Figure(figsize=(4.4 * len(panels) + 0.8, 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for ax, (title, x) in zip(axes, panels, strict=True):
        if reference is not None:
            faint(ax, project(reference))
        scatter(ax, project(x), labels)
        ax.set(title=title, xlabel=names[0], ylabel=names[1], aspect="equal")
    if axes[-1].get_legend_handles_labels()[0]:
        handles = axes[-1].get_legend_handles_labels()
        figure.legend(*handles, loc="outside right upper", fontsize=8, markerscale=1.5)
    return figure
