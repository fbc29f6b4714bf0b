"""Latents against what is known of the data: classes and ground-truth factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .base import PALETTE, Array, Names, checked, require


def class_means(codes: Array, labels: Array, class_names: Names | None = None) -> Figure:
    """Show the mean |z| of every latent dimension, one row of bars per class.

    Args:
        codes: `(n, latent_dim)`.
        labels: `(n,)`.
        class_names: `class_names[label]` is shown instead of "class" and the (integer) label.
    """
    codes, labels, classes = checked("codes", codes, 2), np.asarray(labels), np.unique(labels)
    require(labels.shape == codes.shape[:1], "labels", f"be ({len(codes)},)", labels.shape)
    known = class_names is None or len(class_names) > classes.max()
    require(known, "class_names", f"name labels up to {classes[-1]}", class_names)
    size = (min(max(0.16 * codes.shape[1] + 1.6, 4.0), 12.0), 0.62 * len(classes) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(classes), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for ax, label in zip(panels, classes, strict=True):
        ax.bar(range(codes.shape[1]), np.abs(codes[labels == label]).mean(0), color=PALETTE[0])
        name = f"class {label}" if class_names is None else class_names[label]
        ax.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
        ax.spines[["top", "right"]].set_visible(False)
    panels[-1].set(xlabel="latent dimension", xlim=(-0.6, codes.shape[1] - 0.4))
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle("mean |z| per class")
    return figure


def factor_responses(
    codes: Array,
    factors: Array,
    factor_names: Names | None = None,
    *,
    order: Sequence[int] | None = None,
    row_labels: Names | None = None,
) -> Figure:
    """Show how each latent answers to each factor: its mean, and one standard deviation around it.

    Both are over all rows with that value of the factor, whatever the others are. A latent that
    holds one factor moves in that column with a narrow band, and is flat in the others with a band
    as wide as its whole range. Factors that have one value only get no column.

    Args:
        codes: `(n, latent_dim)`.
        factors: `(n, n_factors)` integers.
        factor_names: One name a column of `factors`. Default: factor 0, factor 1, ...
        order: The latents to show, one a row. Default: the ten whose codes vary most.
        row_labels: One name a row. Default: z3, z0, ...
    """
    codes, order, texts = _checked_latents(codes, order, row_labels)
    factors = checked("factors", factors, 2)
    require(len(factors) == len(codes), "factors", f"have {len(codes)} rows", factors.shape)
    names = list(factor_names or [f"factor {k}" for k in range(factors.shape[1])])
    require(len(names) == factors.shape[1], "factor_names", f"be {factors.shape[1]}", names)
    shown = [k for k in range(len(names)) if np.ptp(factors[:, k]) > 0]
    require(bool(shown), "factors", "vary", "one value in each column")
    width, height = 1.6 * len(shown) + 1.2, 0.95 * len(order) + 1.1
    figure = Figure(figsize=(width, height))
    panels = figure.subplots(len(order), len(shown), sharex="col", sharey=True, squeeze=False)
    # In inches: a layout engine needs seconds for fifty axes.
    figure.subplots_adjust(1.05 / width, 0.6 / height, 1 - 0.1 / width, 1 - 0.6 / height)
    for column, k in zip(panels.T, shown, strict=True):
        values, mean, deviation = _response(codes[:, order], factors[:, k])
        for ax, m, s in zip(column, mean.T, deviation.T, strict=True):
            ax.fill_between(values, m - s, m + s, color=PALETTE[4], alpha=0.4, lw=0)
            ax.plot(
                values, m, color=PALETTE[0], lw=1.4, marker="o" if len(values) < 9 else "", ms=3
            )
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(labelsize=7)
        column[0].set_title(names[k], fontsize=9)
        column[-1].xaxis.get_major_locator().set_params(integer=True, nbins=4)
    for ax, text in zip(panels[:, 0], texts, strict=True):
        ax.set_ylabel(text.replace("  ", "\n"), rotation=0, ha="right", va="center", fontsize=8)
    figure.suptitle("mean code ± 1 s.d. against each factor", y=1 - 0.12 / height, fontsize=11)
    said = "value of the factor, as numbered in the data"
    figure.supxlabel(said, y=0.12 / height, fontsize=8)
    return figure


def position_maps(
    codes: Array,
    row_factor: Array,
    column_factor: Array,
    *,
    names: tuple[str, str] = ("posY", "posX"),
    order: Sequence[int] | None = None,
    row_labels: Names | None = None,
) -> Figure:
    """Show the mean code of each latent as a map over two factors, one panel a latent.

    One range of colours, symmetric about 0, serves all panels; it holds 99 % of the cells. A cell
    without a row of the data is grey. Neighbouring values share a cell where there would be fewer
    than eight rows a cell, and are named by the first and the last: 4–7. The row factor grows downwards,
    as the rows of an image do.

    Args:
        codes: `(n, latent_dim)`.
        row_factor: `(n,)` integers, as the y position in an image.
        column_factor: `(n,)` integers, as the x position.
        names: Names of the two factors.
        order: The latents to show. Default: the ten whose codes vary most.
        row_labels: One name a latent shown.
    """
    codes, order, texts = _checked_latents(codes, order, row_labels)
    values, indices = [], []
    for name, factor in (("row_factor", row_factor), ("column_factor", column_factor)):
        factor = checked(name, factor, 1)
        require(len(factor) == len(codes), name, f"be ({len(codes)},)", factor.shape)
        value, index = np.unique(factor, return_inverse=True)
        values.append(value)
        indices.append(index)
    merged = math.ceil(math.sqrt(8 * len(values[0]) * len(values[1]) / len(codes)))
    maps = _cell_means(codes[:, order], indices[0] // merged, indices[1] // merged)
    n_rows = -(-len(maps) // 5)
    n_columns = -(-len(maps) // n_rows)
    figure = Figure(figsize=(1.7 * n_columns + 1.2, 1.8 * n_rows + 0.9), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    limit = np.nanpercentile(np.abs(maps), 99) or 1.0
    rows, columns = maps.shape[1] * merged, maps.shape[2] * merged
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)  # in places of the values, however far apart
    for ax in panels.flat[len(maps) :]:
        ax.set_visible(False)
    for ax, cells, text in zip(panels.flat, maps, texts, strict=False):
        ax.set_facecolor("0.8")
        style: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
        image = ax.imshow(cells, extent=extent, interpolation="none", aspect="auto", **style)
        ax.set_title(text, fontsize=8)
        ax.tick_params(labelsize=7)
    panels[0, 0].set_yticks(*_ticks(values[0], merged))  # the panels share their axes
    panels[0, 0].set_xticks(*_ticks(values[1], merged))
    figure.colorbar(image, ax=panels, label="mean code", extend="both")
    figure.supxlabel(names[1], fontsize=9)
    figure.supylabel(names[0], fontsize=9)
    shared = f", {merged} × {merged} values a cell" if merged > 1 else ""
    figure.suptitle(f"mean code over {names[1]} and {names[0]}{shared}", fontsize=11)
    return figure


def _checked_latents(
    codes: Array, order: Sequence[int] | None, row_labels: Names | None
) -> tuple[Array, list[int], list[str]]:
    """Return the codes, the latents to show and their names."""
    codes = checked("codes", codes, 2)
    latents = np.argsort(-codes.var(0), kind="stable")[:10] if order is None else np.asarray(order)
    known = latents.size > 0 and latents.min() >= 0 and latents.max() < codes.shape[1]
    require(bool(known), "order", f"name latents from 0 to {codes.shape[1] - 1}", order)
    texts = [f"z{k}" for k in latents] if row_labels is None else list(row_labels)
    require(len(texts) == len(latents), "row_labels", f"number {len(latents)}", len(texts))
    return codes, [int(k) for k in latents], texts


def _response(codes: Array, factor: Array) -> tuple[Array, Array, Array]:
    """Return the factor's values `(v,)`, and mean and deviation of the codes at each, `(v, k)`."""
    values, index = np.unique(factor, return_inverse=True)
    groups = [codes[index == k] for k in range(len(values))]
    return values, np.stack([g.mean(0) for g in groups]), np.stack([g.std(0) for g in groups])


def _ticks(values: Array, merged: int) -> tuple[list[float], list[str]]:
    """Return places and names of at most four cells of ``merged`` neighbours each."""
    cells = np.array_split(values, range(merged, len(values), merged))
    shown = sorted({round(k) for k in np.linspace(0, len(cells) - 1, 4)})
    names = ["–".join(f"{v:g}" for v in np.unique(cells[k][[0, -1]])) for k in shown]
    return [k * merged + (merged - 1) / 2 for k in shown], names


def _cell_means(codes: Array, rows: Array, columns: Array) -> Array:
    """Return the mean code in each cell, `(latents, rows, columns)`; NaN where no example lies."""
    shape = (rows.max() + 1, columns.max() + 1)
    cell = rows * shape[1] + columns
    count = np.bincount(cell, minlength=shape[0] * shape[1])
    sums = np.stack([np.bincount(cell, c, minlength=len(count)) for c in codes.T])
    means = np.full(sums.shape, np.nan)
    np.divide(sums, count, out=means, where=count > 0)
    return means.reshape(-1, *shape)
