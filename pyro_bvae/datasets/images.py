"""Images of any layout to uint8 or float32 `(n, channels, height, width)`, resized or binarised.

Each operation takes an array at once and `Rows` as they are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from .data import Data
from .memory import check_fits
from .rows import Mapped, Rows, is_resident

_CHUNK = 4096
# A 0/1 coding is recognised in a file too large to scan from this many rows, evenly spaced.
_PROBED_ROWS = 256


def to_rows(x: np.ndarray | Rows, owner: str) -> np.ndarray | Rows:
    """Bring an array of the user's own to the layout and dtype of `Data.x`.

    Images `(n, h, w)`, `(n, h, w, c)` with c in {1, 3}, and `(n, c, h, w)` become
    `(n, c, h, w)`; uint8 that holds only 0 and 1 becomes 0 and 255; other floats become float32.

    Args:
        x: `(n, ...)`, an array or `Rows`.
        owner: names the data in errors.

    Returns:
        An array where `x` is one in memory, else `Rows`.

    Raises:
        TypeError: the dtype is neither uint8 nor floating point.
        ValueError: `x` is no `(n, d)` and no layout of images, or is empty.
    """
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise TypeError(
            f"{owner}: x must be uint8 or floating point; got {x.dtype.name}. "
            "Scale grey values to uint8 0 to 255, or convert with x.astype(numpy.float32)."
        )
    if len(x.shape) not in (2, 3, 4) or 0 in x.shape:
        raise ValueError(
            f"{owner}: x must be shaped (n, d), (n, height, width), (n, height, width, channels) "
            f"or (n, channels, height, width), none of them 0; got {tuple(x.shape)}. Reshape it."
        )
    channels = (1, 3)
    channels_last = len(x.shape) == 4 and x.shape[3] in channels and x.shape[1] not in channels
    found = x.shape[3 if channels_last else 1] if len(x.shape) == 4 else 1
    if found not in channels:
        raise ValueError(
            f"{owner}: images must have 1 or 3 channels; got shape {tuple(x.shape)}. "
            "Drop the transparency channel, or choose channels."
        )
    # One row first: it mostly shows that they are grey, and the others need not be read for it.
    binary = x.dtype == np.uint8 and x[np.arange(1)].max() <= 1 and _probe(x).max() <= 1
    convert = partial(_convert, channels_last=channels_last, binary=binary, owner=owner)
    shape = tuple(x.shape)
    if len(shape) == 3:
        shape = (shape[0], 1, *shape[1:])
    elif channels_last:
        shape = (shape[0], shape[3], *shape[1:3])
    return _map(x, convert, shape, np.dtype(np.uint8 if x.dtype == np.uint8 else np.float32))


def resize(data: Data, image_size: int | None, owner: str) -> Data:
    """Resize images bilinearly to a square, as `PIL.Image.resize` does (within one grey level).

    Args:
        data: images `(n, channels, height, width)`.
        image_size: new height and width, in pixels; None keeps the size.
        owner: names the data in errors.

    Raises:
        ValueError: `image_size` is below 1, or `data` holds vectors.
    """
    check_image_size(image_size, owner)
    if image_size is None or data.x_shape[1:] == (image_size, image_size):
        return data
    if len(data.x_shape) != 3:
        raise ValueError(
            f"{owner}: image_size must be left out for vectors; got {image_size} for rows of "
            f"shape {data.x_shape}. Drop --image-size."
        )
    shape = (len(data), data.x_shape[0], image_size, image_size)
    check_fits(owner, shape, data.x.dtype, None if data.resident else 1)
    x = _map(data.x, partial(_resize, size=image_size), shape, data.x.dtype)
    return replace(data, x=x)


def check_image_size(image_size: int | None, owner: str) -> None:
    """Raise ValueError if `image_size` is given and below 1, TypeError if it is no whole number."""
    if image_size is None:
        return
    if isinstance(image_size, bool) or not isinstance(image_size, (int, np.integer)):
        raise TypeError(
            f"{owner}: image_size must be a whole number; got {type(image_size).__name__}. "
            "Try --image-size 32."
        )
    if image_size < 1:
        raise ValueError(
            f"{owner}: image_size must be 1 or more; got {image_size}. Try --image-size 32."
        )


def binarize_static(data: Data, owner: str) -> Data:
    """Turn uint8 values of 128 or more into 255 and the others into 0.

    Raises:
        ValueError: `x` is not uint8.
    """
    if data.x.dtype != np.uint8:
        raise ValueError(
            f"{owner}: binarize must be 'none' for {data.x.dtype} data; got 'static'. "
            "Drop --binarize."
        )
    x = _map(data.x, _threshold, tuple(data.x.shape), data.x.dtype)
    return replace(data, x=x)


def _map(
    x: np.ndarray | Rows,
    function: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
) -> np.ndarray | Rows:
    if isinstance(x, np.ndarray) and is_resident(x):
        return function(x)
    return Mapped(x, function, shape, dtype)


def _probe(x: np.ndarray | Rows) -> np.ndarray:
    if isinstance(x, np.ndarray) and is_resident(x):
        return x
    n = len(x)
    return np.asarray(x[np.unique(np.linspace(0, n - 1, min(n, _PROBED_ROWS)).astype(np.int64))])


def _convert(rows: np.ndarray, *, channels_last: bool, binary: bool, owner: str) -> np.ndarray:
    if rows.ndim == 3:
        rows = rows[:, None]
    elif channels_last:
        rows = np.moveaxis(rows, 3, 1)
    if rows.dtype.kind == "f":
        # What float32 does not hold becomes infinite or NaN here, and is refused by Data.
        with np.errstate(over="ignore", invalid="ignore"):
            rows = rows.astype(np.float32, copy=False)
    if binary:
        if rows.size and rows.max() > 1:
            raise ValueError(
                f"{owner}: x must hold either only 0 and 1 or values up to 255 throughout; got "
                f"{rows.max()} among rows that looked binary. Multiply the 0/1 rows by 255."
            )
        rows = rows * np.uint8(255)
    return np.ascontiguousarray(rows)


def _resize(rows: np.ndarray, *, size: int) -> np.ndarray:
    import torch

    out = np.empty((*rows.shape[:2], size, size), rows.dtype)
    for start in range(0, len(rows), _CHUNK):
        # torch's antialiased uint8 kernel rounds as Pillow's does.
        out[start : start + _CHUNK] = torch.nn.functional.interpolate(
            torch.from_numpy(np.ascontiguousarray(rows[start : start + _CHUNK])),
            size=(size, size),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        ).numpy()
    return out


def _threshold(rows: np.ndarray) -> np.ndarray:
    return np.where(rows >= 128, np.uint8(255), np.uint8(0))
