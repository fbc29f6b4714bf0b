"""What the data sets that others publish have in common: fetched by hand, one image for each combination."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from .data import Data
from .images import resize
from .rows import Mapped, Rows

IMAGE = (64, 64, 3)


def check_present(name: str, path: Path, page: str, folder: Path | None = None) -> None:
    """Refuse a data set whose file or folder is not there, since nothing fetches it.

    Args:
        name: key of the data set.
        path: the file or folder that must be there.
        page: where the public finds it.
        folder: the data folder `path` lies in; two above it by default.

    Raises:
        FileNotFoundError: one sentence.
    """
    if not os.path.isfile(path) and not os.path.isdir(path):
        raise FileNotFoundError(
            f"{name}: {path} must exist; got nothing there. Fetch it from {page}, or pass --data-dir DIR "
            f"(or set PYRO_BVAE_DATA) for the folder that holds "
            f"{path.relative_to(folder or path.parents[1])}."
        )


def combinations(sizes: tuple[int, ...]) -> np.ndarray:
    """Every combination of classes, the last changing fastest: int64 `(n, len(sizes))`.

    Examples:
        >>> combinations((2, 3)).tolist()
        [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    """
    return np.stack(np.unravel_index(np.arange(math.prod(sizes)), sizes), axis=1)


def data_of_grid(
    x: np.ndarray | Rows, factors: dict[str, int], path: Path, image_size: int | None
) -> Data:
    """Images of every combination of ``factors``, in the order of `combinations`.

    Args:
        x: uint8 `(n, 64, 64, 3)`, in memory or read lazily; not copied.
        factors: how many values each has.
        path: names the data in errors.
        image_size: resize images to this height and width, in pixels.

    Returns:
        `x` `(n, 3, 64, 64)`, its axes brought to this order as it is read.

    Raises:
        ValueError: the images are of another shape or dtype.
    """
    sizes = tuple(factors.values())
    expected = (math.prod(sizes), *IMAGE)
    if tuple(x.shape) != expected or x.dtype != np.uint8:
        raise ValueError(
            f"{path}: images must be uint8 of shape {expected}, one for each combination of factors; got "
            f"{x.dtype} of shape {tuple(x.shape)}. Fetch the file again."
        )
    height, width, channels = IMAGE
    rows = Mapped(x, _channels_first, (len(x), channels, height, width), np.dtype(np.uint8))
    data = Data(rows, factors=combinations(sizes), factor_names=tuple(factors))
    return resize(data, image_size, str(path))


def _channels_first(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(rows, 3, 1))
