"""Moving pictures: every latent goes through its values and back, all of them side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_MILLISECONDS = 80  # a frame
_CELL = 72  # pixels, about the width of an image: its name below needs as much
_BLUE = (0, 114, 178)
_TEXT, _SLIDER, _GAP = 12, 8, 6  # pixels: heights of a name and of the line below it, space between


def animate_images(
    path: Path, x: np.ndarray, names: Sequence[str], start: np.ndarray | None = None
) -> None:
    """Write a GIF that loops for ever: one cell a latent, with its name and where it stands.

    Args:
        path: the file.
        x: ``(latents, values, channels, height, width)`` in [0, 1].
        names: one a latent.
        start: ``(2, channels, height, width)``, the example and its reconstruction, in the first cells.
    """
    still = [] if start is None else [("x", start[0]), ("recon.", start[1])]
    n_columns = min(10, math.ceil(math.sqrt(1.6 * (len(x) + len(still)))))
    n_values = x.shape[1]
    frames = []
    for k in _there_and_back(n_values):
        cells: list[tuple[str, np.ndarray, float | None]] = [(n, image, None) for n, image in still]
        cells += [(n, row[k], k / (n_values - 1)) for n, row in zip(names, x, strict=True)]
        frames.append(_frame(cells, n_columns))
    _write(path, frames, _greys() if x.shape[2] == 1 else _few_colors(frames, 128))


def animate_points(path: Path, figure: Any, x: np.ndarray, reference: np.ndarray | None) -> None:
    """Write a GIF of a dot moving along each curve of a traversal through points.

    Args:
        path: the file.
        figure: of `plots.traversal_curves`.
        x: its points, ``(latents, values, d)``.
        reference: its reference.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    from ..plots import PALETTE
    from ..plots.points import plane

    d = x.shape[2]
    project, _ = plane(x.reshape(-1, d) if reference is None else reference)
    figure.set_dpi(90)
    colors = [PALETTE[k % 6] for k in range(len(x))]  # those of the curves
    style: dict[str, Any] = {"s": 70, "c": colors, "edgecolors": "black", "zorder": 5}
    ax = figure.axes[0]
    dots = ax.scatter(*project(x[:, 0]).T, animated=True, **style)
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # the layout needs a pass to know the ticks
    canvas.draw()
    still = canvas.copy_from_bbox(figure.bbox)
    frames = []
    for k in _there_and_back(x.shape[1]):
        canvas.restore_region(still)
        dots.set_offsets(project(x[:, k]))
        ax.draw_artist(dots)
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    _write(path, frames, _few_colors(frames, 256))


def _there_and_back(n: int) -> list[int]:
    return [*range(n), *range(n - 2, 0, -1)]


def _frame(cells: Sequence[tuple[str, np.ndarray, float | None]], n_columns: int) -> Any:
    """Tile ``(name, image, position from 0 to 1)`` cells into one picture."""
    from PIL import Image, ImageDraw

    height, width = cells[0][1].shape[-2:]
    factor = max(1, round(_CELL / width))
    height, width = factor * height, factor * width
    step = height + _TEXT + _SLIDER + _GAP, width + _GAP
    size = (n_columns * step[1] + _GAP, -(-len(cells) // n_columns) * step[0] + _GAP)
    frame = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(frame)
    for k, (name, x, position) in enumerate(cells):
        top, left = (_GAP + s * p for s, p in zip(step, divmod(k, n_columns), strict=True))
        levels = (255 * x.clip(0, 1)).round().astype(np.uint8).transpose(1, 2, 0)
        image = Image.fromarray(np.broadcast_to(levels, (*levels.shape[:2], 3)).copy())
        frame.paste(image.resize((width, height), Image.Resampling.NEAREST), (left, top))
        pen.text((left, top + height), name, fill="black")
        if position is not None:
            middle, at = top + height + _TEXT + _SLIDER // 2, left + 3 + position * (width - 6)
            pen.line((left, middle, left + width, middle), fill=(190, 190, 190))
            pen.ellipse((at - 3, middle - 3, at + 3, middle + 3), fill=_BLUE)
    return frame


def _few_colors(frames: Sequence[Any], n: int) -> Any:
    """A palette for all frames, from the first, the middle and the last place they show."""
    from PIL import Image

    chosen = [np.asarray(frames[k]) for k in (0, len(frames) // 4, len(frames) // 2)]
    return Image.fromarray(np.concatenate(chosen)).quantize(n, dither=Image.Dither.NONE)


def _greys(n: int = 31) -> Any:
    """A palette of even greys, and the slider's blue: half of what 64 levels would weigh."""
    from PIL import Image

    palette = Image.new("P", (1, 1))
    levels = [value for k in range(n) for value in [round(255 * k / (n - 1))] * 3]
    palette.putpalette([*levels, *_BLUE])
    return palette


def _write(path: Path, frames: Sequence[Any], palette: Any) -> None:
    """Write the frames with one palette: each frame's own would flicker, and weigh more."""
    from PIL import Image

    flat = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    flat[0].save(path, save_all=True, append_images=flat[1:], duration=_MILLISECONDS, loop=0)
