"""Pictures of data, codes and training: numpy arrays in, a matplotlib `Figure` out.

Nothing here saves, shows, sees a model or touches pyplot. Sizes suit `savefig(path, dpi=150)`.
Images are `(channels, height, width)` floats in [0, 1], clipped. Bad input raises `ValueError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from scipy.special import ndtr

Array = NDArray[Any]
Names = Sequence[str]
Extent = tuple[float, float, float, float]  # left, right, bottom, top, as imshow takes it

# Okabe and Ito's colour-blind-safe colours, without black: density maps are dark.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
TERMS = {"log_px_z": "E log p(x|z)", "kl": "KL(q(z|x) ‖ p(z))", "divergence": "D", "elbo": "ELBO"}
SCHEDULED = {"β": "beta", "α": "alpha", "C (nats)": "capacity"}


def data(x: Array, labels: Array | None = None, title: str = "data") -> Figure:
    """Show points as a scatter, or up to 64 images as a grid.

    Args:
        x: `(n, 2)` points, `(n, d)` vectors (their first two principal components are shown), or
            `(n, channels, height, width)` images.
        labels: `(n,)`, colours of the points; images do not use it.
        title: Title of the figure.
    """
    x = _checked("x", x, 2, 4)
    if x.ndim == 2:
        return _point_figure([(title, x)], labels)
    return _image_figure([x[i : i + 8] for i in range(0, min(len(x), 64), 8)], title=title)


def reconstructions(x: Array, x_hat: Array, labels: Array | None = None) -> Figure:
    """Show originals `x` beside `x_hat`, both shaped as for `data`; 30 images, in pairs of rows."""
    x, x_hat = _checked("x", x, 2, 4), _checked("x_hat", x_hat, 2, 4)
    _require(x.shape == x_hat.shape, "x_hat", f"have the shape of x, {x.shape}", x_hat.shape)
    if x.ndim == 2:
        return _point_figure([("x", x), ("reconstruction", x_hat)], labels)
    starts = range(0, min(len(x), 30), 10)
    rows = [images[i : i + 10] for i in starts for images in (x, x_hat)]
    return _image_figure(rows, ["x", "reconstruction"] * len(starts), title="reconstructions")


def samples(
    x: Array, title: str = "samples from the prior", *, reference: Array | None = None
) -> Figure:
    """Show generated `x` as `data` does; real points `reference`, `(m, d)`, faintly below."""
    x = _checked("x", x, 2, 4)
    if x.ndim == 4:
        return data(x, title=title)
    if reference is not None:
        reference = _checked("reference", reference, 2)
        d, got = x.shape[1], reference.shape
        _require(got[1] == d, "reference", f"have shape (m, {d}), as x has", got)
    return _point_figure([(title, x)], None, reference)


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
    loc, scale = _checked_posterior(loc, scale)
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
    loc, scale = _checked_posterior(loc, scale)
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
        _scatter(ax, loc, labels, over_density=True)
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
    _require(min(len(panels), n_columns) > 0, "panels", "not be empty", (len(panels), n_columns))
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


def training_curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Show every recorded term against the step, and the scheduled numbers that vary.

    First values so large that they would flatten the rest lie outside the panel.

    Args:
        history: Records with `step` and any of `log_px_z`, `kl`, `divergence`, `elbo`, the same
            after `test_`, and `beta`, `alpha`, `capacity`; each missing, None or NaN at will.
    """
    panels = [(TERMS[t], {"train": t, "held out": f"test_{t}"}, 1) for t in TERMS]
    drawn = []
    for title, keys, least in [*panels, ("scheduled", SCHEDULED, 2)]:
        lines = {name: _series(history, key) for name, key in keys.items()}
        lines = {name: line for name, line in lines.items() if len(np.unique(line[1])) >= least}
        drawn += [(title, lines)] if lines else []
    units = {"D": "D(q(z), p(z))", "scheduled": "value"}  # D has none: MMD is dimensionless
    _require(bool(drawn), "history", "have finite terms at some steps", f"{len(history)} records")
    n_columns = 2 if len(drawn) == 4 else min(len(drawn), 3)
    n_rows = -(-len(drawn) // n_columns)
    figure = Figure(figsize=(3.4 * n_columns, 2.7 * n_rows), layout="constrained")
    for k, (title, lines) in enumerate(drawn):
        ax = figure.add_subplot(n_rows, n_columns, k + 1, title=title, xlabel="step")
        for name, (steps, values) in lines.items():
            marker = "o" if len(steps) == 1 or (name == "held out" and len(steps) <= 30) else ""
            color = PALETTE[{"train": 0, "held out": 5}.get(name, len(ax.lines))]
            ax.plot(steps, values, marker=marker, ms=3.5, lw=1.3, color=color, label=name)
        limits = _limits([values for _, values in lines.values()])
        ax.set(ylabel=units.get(title, "nats per example"), ylim=limits)
        ax.legend(fontsize=8)
    return figure


def class_means(codes: Array, labels: Array, class_names: Names | None = None) -> Figure:
    """Show the mean |z| of every latent dimension, one row of bars per class.

    Args:
        codes: `(n, latent_dim)`.
        labels: `(n,)`.
        class_names: `class_names[label]` is shown instead of the (integer) label.
    """
    codes, labels, classes = _checked("codes", codes, 2), np.asarray(labels), np.unique(labels)
    _require(labels.shape == codes.shape[:1], "labels", f"be ({len(codes)},)", labels.shape)
    known = class_names is None or len(class_names) > classes.max()
    _require(known, "class_names", f"name labels up to {classes[-1]}", class_names)
    size = (min(max(0.16 * codes.shape[1] + 1.6, 4.0), 12.0), 0.62 * len(classes) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(classes), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for ax, label in zip(panels, classes, strict=True):
        ax.bar(range(codes.shape[1]), np.abs(codes[labels == label]).mean(0), color=PALETTE[0])
        name = str(label) if class_names is None else class_names[label]
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
        ax.spines[["top", "right"]].set_visible(False)
    panels[-1].set(xlabel="latent dimension", xlim=(-0.6, codes.shape[1] - 0.4))
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle("mean |z| per class")
    return figure


def traversals(
    images: Array,
    row_labels: Names,
    column_labels: Names | None = None,
    title: str = "latent traversals",
) -> Figure:
    """Show `(rows, columns, channels, height, width)` images; the first column may be x itself."""
    images = _checked("images", images, 5)
    shape, n_labels = images.shape[:2], (len(row_labels), len(column_labels or images[0]))
    _require(shape == n_labels, "labels", f"number {shape}, as rows and columns do", n_labels)
    return _image_figure(list(images), row_labels, column_labels or (), title)


def _require(condition: bool, thing: str, rule: str, got: object) -> None:
    if not condition:
        raise ValueError(f"plots: {thing} must {rule}; got {got}. Check the array passed.")


def _checked(name: str, values: Array, *ndims: int) -> Array:
    array = np.asarray(values)
    rule = f"be a non-empty array of {' or '.join(map(str, ndims))} dimensions"
    _require(array.ndim in ndims and array.size > 0, name, rule, f"shape {array.shape}")
    bad = array.size - np.isfinite(array).sum()
    _require(bad == 0, name, "be finite", f"{bad} NaN or infinite values of {array.size}")
    if array.ndim >= 4:
        _require(array.shape[-3] in (1, 3), name, "have 1 or 3 channels", f"shape {array.shape}")
        raw = array.dtype.kind in "iu" and array.max() > 1
        _require(not raw, name, "be images in [0, 1]", f"integers up to {array.max()}")
    return array.astype(float)


def _checked_posterior(loc: Array, scale: Array) -> tuple[Array, Array]:
    loc, scale = _checked("loc", loc, 2), _checked("scale", scale, 2)
    shapes = loc.shape, scale.shape
    _require(shapes[0] == shapes[1] == (len(loc), 2), "loc and scale", "both be (n, 2)", shapes)
    _require(scale.min() > 0, "scale", "be positive", f"a least value of {scale.min():g}")
    return loc, scale


def _scatter(ax: Axes, points: Array, labels: Array | None, over_density: bool = False) -> None:
    """Draw `(n, 2)` points, an even subsample of very many, with one legend entry per class."""
    size, edge, most = (7, 0.4, 2000) if over_density else (10, 0.0, 10_000)
    labels, named = (np.zeros(len(points)), False) if labels is None else (labels, True)
    kinds, index = np.unique(labels, return_inverse=True)
    _require(index.shape == points.shape[:1], "labels", f"be ({len(points)},)", index.shape)
    shown = np.linspace(0, len(points) - 1, min(len(points), most)).astype(int)
    (x, y), index = points[shown].T, index[shown]
    if len(kinds) > 16:  # more than a legend holds, as of a continuous factor
        ax.scatter(x, y, s=size, c=index, cmap="viridis", linewidths=edge, edgecolors="black")
        return
    for k, label in enumerate(kinds):  # beyond eight, the colours repeat with another marker
        style: dict[str, Any] = {"marker": "os"[k // 8], "label": str(label) if named else None}
        style |= {"color": PALETTE[k % 8], "linewidths": edge, "edgecolors": "black"}
        ax.scatter(x[index == k], y[index == k], s=size, **style)


def _point_figure(
    panels: Sequence[tuple[str, Array]], labels: Array | None, reference: Array | None = None
) -> Figure:
    """Draw `(title, (n, d) points)` panels on the same axes, in the first's two components."""
    base = panels[0][1] if reference is None else reference
    names, mean, basis = ("x0", "x1"), np.zeros(base.shape[1]), np.eye(base.shape[1])
    if base.shape[1] != 2:
        names, mean = ("principal component 1", "principal component 2"), base.mean(0)
        axes_of_x = np.linalg.eigh((base - mean).T @ (base - mean))[1][:, ::-1]
        basis = np.pad(axes_of_x, ((0, 0), (0, 1)))[:, :2]  # padded for points on a line, d = 1
    figure = Figure(figsize=(4.4 * len(panels) + 0.8, 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for ax, (title, x) in zip(axes, panels, strict=True):
        if reference is not None:
            ax.scatter(*((reference - mean) @ basis).T, s=16, color="0.8", lw=0, label="data")
        _scatter(ax, (x - mean) @ basis, labels)
        ax.set(title=title, xlabel=names[0], ylabel=names[1], aspect="equal")
    if axes[-1].get_legend_handles_labels()[0]:
        handles = axes[-1].get_legend_handles_labels()
        figure.legend(*handles, loc="outside right upper", fontsize=8, markerscale=1.5)
    return figure


def _image_figure(
    rows: Sequence[Array], row_labels: Names = (), column_labels: Names = (), title: str = ""
) -> Figure:
    """Tile rows of `(k, channels, height, width)` images, k may differ, into one drawn image."""
    n_columns, (height, width) = max(map(len, rows)), rows[0].shape[-2:]
    gap = max(1, height // 16)
    step, stride = height + gap, width + gap
    canvas = np.ones((len(rows) * step - gap, n_columns * stride - gap, 3))
    for i, row in enumerate(rows):
        for j, image in enumerate(row.clip(0, 1)):  # one channel is spread over three: grey
            place = slice(i * step, i * step + height), slice(j * stride, j * stride + width)
            canvas[place] = image.transpose(1, 2, 0)
    inches = min(0.8, 9 / n_columns)
    size = (max(n_columns * inches, 2.5) + 1, len(rows) * inches * step / stride + 0.6)
    ax = Figure(figsize=size, layout="constrained").add_subplot(title=title)
    ax.imshow(canvas, vmin=0, vmax=1, interpolation="none")
    ax.set_yticks(height / 2 + step * np.arange(len(row_labels)), row_labels, fontsize=8)
    ax.set_xticks(width / 2 + stride * np.arange(len(column_labels)), column_labels, fontsize=8)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    return ax.figure.figure


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
    _require(log_p.shape == (n * n,), "prior", f"return shape ({n * n},)", log_p.shape)
    _require(bool(np.isfinite(log_p.max())), "prior", "have a finite maximum", log_p.max())
    p = np.exp(log_p - log_p.max())
    ranked = np.sort(p)[::-1]
    inside = np.cumsum(ranked) / ranked.sum()
    levels = np.unique(ranked[np.searchsorted(inside, (0.5, 0.9))])
    levels = levels[(levels > p.min()) & (levels < p.max())]  # a flat prior has no lines
    if levels.size:
        ax.contour(x, y, p.reshape(n, n), levels, colors="white", linewidths=0.8)
        ax.plot([], [], color="white", lw=0.8, label="prior, 50 % and 90 % mass")


def _series(history: Sequence[Mapping[str, Any]], key: str) -> tuple[Array, Array]:
    """Return the steps `(m,)` and values `(m,)` of the records where the key is finite."""
    table = np.array([(row.get("step"), row.get(key)) for row in history], float).reshape(-1, 2)
    steps, values = table[np.isfinite(table).all(1)].T  # numpy reads None as NaN
    return steps, values


def _limits(lines: list[Array]) -> tuple[float, float]:
    """Return y limits that hold every line's last value, without an outlying first tenth."""
    tails = [v[-(-len(v) // 10) :] if len(v) > 2 else v for v in lines]
    kept = np.hstack([(*np.percentile(v, (1, 99)), v[-1]) for v in tails])
    if np.ptp(np.hstack(lines)) < 3 * np.ptp(kept):  # nothing lies far outside: show it all
        kept = np.hstack(lines)
    margin = 0.08 * np.ptp(kept) or 0.05 * abs(kept.max()) or 1.0
    return kept.min() - margin, kept.max() + margin
