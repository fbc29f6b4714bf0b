"""What every picture of a model needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

_DPI = 150


def array(tensor: Tensor) -> np.ndarray:
    """The values of a tensor on whichever device."""
    return tensor.detach().cpu().numpy()


def save_png(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib at 150 dots an inch.

    The pixels are those of ``figure.savefig(path, dpi=150)``, which draws a figure with a layout twice:
    once without output, only to lay it out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    opaque = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
    Image.fromarray(opaque).save(path, dpi=(_DPI, _DPI))
