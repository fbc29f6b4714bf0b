"""The aggregate posterior q(z) over two latents, as a density."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from .base import Array, Extent, checked_posterior, require
from .points import scatter


def aggregate_density(loc: Array, scale: Array, extent: Extent, n: int = 300) -> Array:
    """Compute the density of q(z) = mean_i N(z; loc_i, diag(scale_i^2)) on a grid.

    Each cell holds its exact average density, the product of two differences of the normal CDF
    over the cell's area, so that posteriors much narrower than a cell keep their mass.

    Args:
        loc: `(n_examples, 2)` posterior means.
        scale: `(n_examples, 2)` posterior standard deviations, positive.
        extent: Left, right, bottom and top of the grid.
        n: Cells per side.

    Returns:
        Array `(n, n)`, rows from bottom to top; it integrates to the mass inside the extent.
    """
    from scipy.special import ndtr

    loc, scale = checked_posterior(loc, scale)
    x, y = np.linspace(extent[0], extent[1], n + 1), np.linspace(extent[2], extent[3], n + 1)
    mass = np.zeros((n, n))
    for i in range(0, len(loc), 4096):  # bounds the memory: two (4096, n) arrays at a time
        mu, sigma = loc[i : i + 4096, :, None], scale[i : i + 4096, :, None]
        in_x, in_y = (np.diff(ndtr((e - mu[:, k]) / sigma[:, k])) for k, e in enumerate((x, y)))
        mass += in_y.T @ in_x
    return np.asarray(mass / (len(loc) * (x[1] - x[0]) * (y[1] - y[0])))


def aggregate_posterior(
    loc: Array,
    scale: Array,
    *,
    prior: Callable[[Array], Array] | None = None,
    labels: Array | None = None,
    extent: Extent | None = None,
    names: tuple[str, str] = ("z0", "z1"),
    title: str = "aggregate posterior q(z)",
    ax: Axes | None = None,
) -> Figure:
    """Show the density of the aggregate posterior in two latent dimensions.

    Args:
        loc: `(n, 2)` posterior means.
        scale: `(n, 2)` posterior standard deviations, positive.
        prior: Log density `(m, 2) -> (m,)`; lines enclose 50 % and 90 % of its mass on the grid.
        labels: `(n,)`; shows the means, at most 2,000 of them, as dots coloured by class.
        extent: Left, right, bottom, top. Default: the square that holds [-2, 2]^2 and every mean
            with three median standard deviations around it.
        names: Labels of the two axes.
        title: Title of the axes.
        ax: Axes to draw in; their figure is returned. Default: a new figure.
    """
    loc, scale = checked_posterior(loc, scale)
    if extent is None:
        margin = 3 * np.median(scale, axis=0)
        low, high = (loc - margin).min(0).clip(max=-2), (loc + margin).max(0).clip(min=2)
        (left, bottom), (right, top) = (low + high + np.array([[-1], [1]]) * (high - low).max()) / 2
        extent = (left, right, bottom, top)
    figure = Figure(figsize=(6.8, 5.6), layout="constrained") if ax is None else ax.figure.figure
    place, ax = ("upper right", ax) if ax else ("outside lower center", figure.add_subplot())
    image, clipped = _show_density(ax, aggregate_density(loc, scale, extent), extent)
    bar = figure.colorbar(image, ax=ax, extend="max" if clipped else "neither")
    bar.set_label("density, square-root colours" + ", highest peaks clipped" * clipped)
    if labels is not None:
        scatter(ax, loc, labels, over_density=True)
    if prior is not None:
        _prior_lines(ax, prior, extent)
    if handles := ax.get_legend_handles_labels()[0]:  # dark, because the prior's line is white
        style: dict[str, Any] = {"facecolor": "0.25", "labelcolor": "white", "fontsize": 8}
        style |= {"handles": handles, "loc": place, "ncols": min(len(handles), 6), "markerscale": 2}
        (figure if place.startswith("outside") else ax).legend(**style)
    ax.set(xlabel=names[0], ylabel=names[1], title=title, xlim=extent[:2], ylim=extent[2:])
    return figure


def density_grid(panels: Sequence[tuple[str, Array, Array]], n_columns: int) -> Figure:
    """Show aggregate posteriors on [-2, 2]^2 side by side, `panels` of `(title, loc, scale)`."""
    require(min(len(panels), n_columns) > 0, "panels", "not be empty", (len(panels), n_columns))
    n_columns = min(n_columns, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure = Figure(figsize=(2.1 * n_columns, 2.3 * n_rows + 0.3), layout="constrained")
    for k, (title, loc, scale) in enumerate(panels):
        ax = figure.add_subplot(n_rows, n_columns, k + 1, title=title, xticks=[], yticks=[])
        # 150 cells a side, two pixels each at 150 dpi: smaller ones would be lost in print
        _show_density(ax, aggregate_density(loc, scale, (-2, 2, -2, 2), 150), (-2, 2, -2, 2))
    text = "density of q(z) on [-2, 2]², square-root colours, each panel on its own range"
    figure.supxlabel(text, fontsize=8)
    return figure


def _show_density(ax: Axes, density: Array, extent: Extent) -> tuple[AxesImage, bool]:
    """Draw the density; a few far higher peaks are clipped, or all else would be black."""
    occupied = density[density > 0.01 * density.mean()]
    high = np.percentile(occupied, 99.5) if occupied.size else 1.0
    clipped = bool(density.max() > 2 * high)
    norm = PowerNorm(0.5, vmin=0, vmax=high if clipped else max(density.max(), 1e-12))
    return ax.imshow(density, cmap="magma", norm=norm, extent=extent, origin="lower"), clipped


def _prior_lines(ax: Axes, prior: Callable[[Array], Array], extent: Extent, n: int = 200) -> None:
    edges = np.linspace(extent[::2], extent[1::2], n + 1)  # (n + 1, 2)
    x, y = ((edges[1:] + edges[:-1]) / 2).T
    log_p = np.asarray(prior(np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)), dtype=float)
    require(log_p.shape == (n * n,), "prior", f"return shape ({n * n},)", log_p.shape)
    require(bool(np.isfinite(log_p.max())), "prior", "have a finite maximum", log_p.max())
    p = np.exp(log_p - log_p.max())
    ranked = np.sort(p)[::-1]
    inside = np.cumsum(ranked) / ranked.sum()
    levels = np.unique(ranked[np.searchsorted(inside, (0.5, 0.9))])
    levels = levels[(levels > p.min()) & (levels < p.max())]  # a flat prior has no lines
    if levels.size:
        ax.contour(x, y, p.reshape(n, n), levels, colors="white", linewidths=0.8)
        ax.plot([], [], color="white", lw=0.8, label="prior, 50 % and 90 % mass")
