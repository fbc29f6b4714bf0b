"""What the decoder makes of places in the latent space: traversals and the learned manifold."""

from __future__ import annotations

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from .base import PALETTE, Array, Names, checked, require
from .images import image_figure
from .points import faint, plane

_LINES = 15  # of a mesh in each direction: more run together


def traversals(
    images: Array,
    row_labels: Names,
    column_labels: Names | None = None,
    title: str = "latent traversals",
) -> Figure:
    """Show `(rows, columns, channels, height, width)` images; the first column may be x itself."""
    images = checked("images", images, 5)
    shape, n_labels = images.shape[:2], (len(row_labels), len(column_labels or images[0]))
    require(shape == n_labels, "labels", f"number {shape}, as rows and columns do", n_labels)
    return image_figure(list(images), row_labels, column_labels or (), title)


def traversal_curves(
    x: Array,
    row_labels: Names,
    column_labels: Names,
    *,
    start: Array | None = None,
    reference: Array | None = None,
    reference_label: str = "data",
    title: str = "latent traversals",
) -> Figure:
    """Show the curve that each latent draws through the points it is decoded to.

    Vectors of other than two dimensions are shown by the first two principal components of
    `reference`, or of `x` itself without one.

    Args:
        x: `(rows, columns, d)`, one row a latent, one column a value of it.
        row_labels: One name a latent, for the legend.
        column_labels: One name a value; the first and the last stand in the legend.
        start: `(d,)`, the example that the traversal starts from, drawn as a cross.
        reference: `(m, d)` points drawn faintly below.
        reference_label: Their name in the legend.
        title: Title of the figure.
    """
    x = checked("x", x, 3)
    shape, n_labels = x.shape[:2], (len(row_labels), len(column_labels))
    require(shape == n_labels, "labels", f"number {shape}, as rows and columns do", n_labels)
    d = x.shape[2]
    flat = x.reshape(-1, d)
    base = flat if reference is None else _vectors("reference", reference, d)
    project, names = plane(base)
    ax = Figure(figsize=(6.4, 4.6), layout="constrained").add_subplot()
    ax.set_title(title, fontsize=10)
    if reference is not None:
        faint(ax, project(base), reference_label)
    for k, (points, label) in enumerate(zip(x, row_labels, strict=True)):
        # Six colours that show on white, then the same ones dashed, then dotted.
        color, dashes = PALETTE[k % 6], ("-", "--", ":")[k // 6 % 3]
        curve = project(points)
        ax.plot(*curve.T, color=color, ls=dashes, lw=1.6, label=label)
        ax.plot(*curve[0], "o", color=color, mfc="white", ms=5)
        ax.plot(*curve[-1], "o", color=color, ms=5)
    ax.plot([], [], "o", color="0.3", mfc="white", ms=5, label=column_labels[0])
    ax.plot([], [], "o", color="0.3", ms=5, label=column_labels[-1])
    if start is not None:
        (at,) = project(_vectors("start", np.atleast_2d(start), d))
        ax.plot(*at, "x", ms=8, mew=2, color="black", label="x")
    ax.set(xlabel=names[0], ylabel=names[1])
    if d == 2:  # by the limits: a smaller box would push the labels out of the picture
        ax.set_aspect("equal", adjustable="datalim")
    ax.figure.figure.legend(loc="outside right upper", fontsize=8, ncols=1 + len(x) // 20)
    return ax.figure.figure


def manifold(
    x: Array,
    values: tuple[Array, Array],
    *,
    names: tuple[str, str] = ("z0", "z1"),
    reference: Array | None = None,
    title: str = "learned manifold",
) -> Figure:
    """Show what a grid over two latents is decoded to.

    Images are tiled, z1 growing upwards as in `aggregate_posterior`. Points become two panels of
    mesh lines in the plane of the data, coloured by the value of one latent each; vectors of other
    than two dimensions are shown by principal components.

    Args:
        x: Means of p(x|z), `(n1, n0, channels, height, width)` or `(n1, n0, d)`.
        values: The grid, values of z0 `(n0,)` and of z1 `(n1,)`: `x[i, j]` is decoded from
            `z0 = values[0][j]`, `z1 = values[1][i]`.
        names: Names of the two latents.
        reference: `(m, d)` points drawn faintly below; images do not use it.
        title: Title of the figure.
    """
    x = checked("x", x, 3, 5)
    across, up = (checked("values", v, 1) for v in values)
    got = (len(up), len(across))
    require(x.shape[:2] == got, "values", f"number {x.shape[:2]}, as the grid does", got)
    if x.ndim == 3:
        return _mesh_figure(x, (across, up), names, reference, title)
    texts = [[f"{v:.1f}" if k % 2 == 0 else "" for k, v in enumerate(vs)] for vs in (up, across)]
    figure = image_figure(list(x[::-1]), texts[0][::-1], texts[1], title)
    figure.axes[0].tick_params(labeltop=False, labelbottom=True)
    figure.axes[0].set(xlabel=names[0], ylabel=names[1])
    return figure


def _mesh_figure(
    x: Array,
    values: tuple[Array, Array],
    names: tuple[str, str],
    reference: Array | None,
    title: str,
) -> Figure:
    d = x.shape[2]
    base = x.reshape(-1, d) if reference is None else _vectors("reference", reference, d)
    project, plane_names = plane(base)
    mesh = project(x.reshape(-1, d)).reshape(*x.shape[:2], 2)
    # Square limits in square panels, placed by hand: a layout engine would take longer than the rest.
    figure = Figure(figsize=(9.2, 4.2))
    axes = figure.subplots(1, 3, width_ratios=(20, 20, 1))
    figure.subplots_adjust(0.08, 0.13, 0.92, 0.92, wspace=0.12)
    everything = np.concatenate([base, x.reshape(-1, d)])
    low, high = project(everything).min(0), project(everything).max(0)
    limits = (low + high)[:, None] / 2 + np.array([-0.54, 0.54]) * (high - low).max()
    norm = Normalize(min(v.min() for v in values), max(v.max() for v in values))
    # Along the lines of the first family z0 stands still: x[:, j].
    for ax, k, lines in zip(axes[:2], (0, 1), (mesh.swapaxes(0, 1), mesh), strict=True):
        if reference is not None:
            faint(ax, project(base))
        shown = np.unique(np.linspace(0, len(lines) - 1, min(len(lines), _LINES)).astype(int))
        drawn = LineCollection(list(lines[shown]), cmap="viridis", norm=norm, lw=1.2)
        drawn.set_array(values[k][shown])
        ax.add_collection(drawn)
        ax.set(xlim=limits[0], ylim=limits[1], aspect="equal", xlabel=plane_names[0])
        ax.set_title(f"{title}: lines of equal {names[k]}", fontsize=10)
    axes[0].set_ylabel(plane_names[1])
    axes[1].tick_params(labelleft=False)
    figure.colorbar(ScalarMappable(norm, "viridis"), cax=axes[2], label="value of the latent")
    return figure


def _vectors(name: str, values: Array, d: int) -> Array:
    array = checked(name, values, 2)
    require(array.shape[1] == d, name, f"have {d} columns, as x has", array.shape)
    return array
