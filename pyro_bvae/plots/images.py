"""Rows of images, tiled into one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from .base import Array, Names


def image_figure(
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
    inches = min(0.8, 9 / n_columns, 24 / len(rows))
    letters = max((len(line) for text in row_labels for line in text.split("\n")), default=0)
    width_of_names = 0.4 + 0.07 * letters
    around = 0.6 + 0.2 * title.count("\n")
    size = (
        max(n_columns * inches, 2.5) + width_of_names,
        len(rows) * inches * step / stride + around,
    )
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1))
    ax = figure.add_subplot(title=title)
    ax.imshow(canvas, vmin=0, vmax=1, interpolation="none")
    ax.set_yticks(height / 2 + step * np.arange(len(row_labels)), row_labels, fontsize=8)
    ax.set_xticks(width / 2 + stride * np.arange(len(column_labels)), column_labels, fontsize=8)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    return figure
