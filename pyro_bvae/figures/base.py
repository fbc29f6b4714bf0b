"""What every picture of a model needs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..datasets.names import listed

_DPI = 150


def array(tensor: Tensor) -> np.ndarray:
    """The values of a tensor on whichever device."""
    return tensor.detach().cpu().numpy()


def called(label: int, class_names: Sequence[str] = ()) -> str:
    """What a picture calls a class: by its name where it has one, else by its number."""
    if label >= len(class_names):
        return f"class {label}"
    name = listed([class_names[label]])
    # matplotlib reads formulas between dollars, and leaves names that begin with _ out of legends.
    return " " * name.startswith("_") + name.replace("$", r"\$")


def named(labels: np.ndarray | None, class_names: Sequence[str]) -> np.ndarray | None:
    """Each label by its name, where classes have names."""
    if labels is None or not class_names:
        return labels
    return np.array([called(k, class_names) for k in range(len(class_names))])[labels]


def save_png(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib at 150 dots an inch.

    The pixels are those of ``figure.savefig(path, dpi=150)``, which draws a figure with a layout twice:
    once without output, only to lay it out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # one for each letter of a name
        canvas.draw()
    opaque = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
    Image.fromarray(opaque).save(path, dpi=(_DPI, _DPI))
