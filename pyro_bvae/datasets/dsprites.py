"""dSprites, drawn from its rule in seconds: no download is needed.

The 737,280 images of https://github.com/google-deepmind/dsprites-dataset (Matthey et al. 2017) follow a
rule: a polygon at sub-pixel places, filled without antialiasing. Its measured closeness to genuine
images stands in ``tests/test_dsprites.py``.
"""

from __future__ import annotations

import math

import numpy as np

from .data import Data, split
from .images import check_image_size, resize
from .rows import Mapped

FACTORS = {
    "color": np.ones(1),
    "shape": np.arange(1.0, 4.0),  # square, ellipse, heart
    "scale": np.linspace(0.5, 1, 6),
    "orientation": np.linspace(0, 2 * np.pi, 40),  # both ends: the first and the last look alike
    "posX": np.linspace(0, 1, 32),
    "posY": np.linspace(0, 1, 32),
}
"""The values of each factor; the last changes fastest from one image to the next."""

SIZES = tuple(len(values) for values in FACTORS.values())
N_IMAGES = math.prod(SIZES)
_SIDE = 64
_GRID = 256  # vertices lie on a grid of 1/256 pixel
# Row k has the pixels from k on; a row of pixels is one number, its lowest bit leftmost.
_FROM = np.array([((1 << _SIDE) - 1) >> k << k for k in range(_SIDE + 1)], dtype="<u8")


def render_dsprites(indices: np.ndarray | None = None) -> np.ndarray:
    """Draw images of dSprites.

    Args:
        indices: integers `(n,)`, rows of the original archive, 0 to 737,279; None for all of them, which
            take 3 GB.

    Returns:
        uint8 `(n, 64, 64)` of 0 and 1. About 1 image in 7,000 differs from the original in one pixel,
        where a vertex lies within 1/1000 of a rounding tie.

    Raises:
        TypeError: `indices` are not integers.
        ValueError: they are not `(n,)`, or one lies outside the archive.

    Examples:
        >>> square = render_dsprites(np.array([0]))[0]
        >>> square.shape, int(square.sum())
        ((64, 64), 100)
    """
    indices = np.arange(N_IMAGES) if indices is None else _check(indices)
    return _unpack(_draw(indices))


def load_dsprites(
    image_size: int | None = None, test_fraction: float = 0.1, seed: int = 0
) -> tuple[Data, Data]:
    """Draw all of dSprites and split it; the images take 377 MB, a bit a pixel.

    Args:
        image_size: resize images to this height and width, in pixels.
        test_fraction: share of the rows held out.
        seed: of the split.

    Returns:
        `(train, test)` with six factors, `x` `(n, 1, 64, 64)` of 0 and 255, unpacked as read.
    """
    check_image_size(image_size, "dsprites")
    rows = _draw(np.arange(N_IMAGES))
    x = Mapped(rows, _images, (N_IMAGES, 1, _SIDE, _SIDE), np.dtype(np.uint8))
    factors = np.stack(np.unravel_index(np.arange(N_IMAGES), SIZES), axis=1)
    data = Data(x, factors=factors, factor_names=tuple(FACTORS))
    return split(resize(data, image_size, "dsprites"), test_fraction, seed)


def _check(indices: np.ndarray) -> np.ndarray:
    indices = np.asarray(indices)
    if indices.dtype.kind not in "iu":
        raise TypeError(
            f"render_dsprites: indices must be integers; got {indices.dtype}. "
            "Turn a mask into indices with numpy.flatnonzero."
        )
    outside = indices[(indices < 0) | (indices >= N_IMAGES)]
    if indices.ndim != 1 or outside.size:
        got = f"shape {indices.shape}" if indices.ndim != 1 else str(outside[0])
        raise ValueError(
            f"render_dsprites: indices must be (n,), each from 0 to {N_IMAGES - 1}; got {got}. "
            "Choose rows of the original archive."
        )
    return indices.astype(np.int64)


def _unpack(rows: np.ndarray) -> np.ndarray:
    """Rows of pixels `(n, 64)` as numbers to `(n, 64, 64)`."""
    bits = np.unpackbits(np.ascontiguousarray(rows).view(np.uint8), bitorder="little")
    return bits.reshape(len(rows), _SIDE, _SIDE)


def _images(rows: np.ndarray) -> np.ndarray:
    return _unpack(rows)[:, None] * np.uint8(255)


def _draw(indices: np.ndarray) -> np.ndarray:
    """Rows of pixels as numbers, uint64 `(n, 64)`, of images that stand in the archive at ``indices``."""
    out = np.zeros((len(indices), _SIDE), "<u8")
    order = np.argsort(indices, kind="stable")
    looks, places = np.divmod(indices[order], SIZES[4] * SIZES[5])
    cuts = np.flatnonzero(np.diff(looks)) + 1
    for rows, group in zip(np.split(order, cuts), np.split(places, cuts), strict=True):
        if not len(rows):
            continue
        look = np.unravel_index(indices[rows[0]] // (SIZES[4] * SIZES[5]), SIZES[:4])
        column, row = np.divmod(group, SIZES[5])
        columns, column = np.unique(column, return_inverse=True)
        lines, line = np.unique(row, return_inverse=True)
        out[rows] = _fill(_outline(*(int(i) for i in look[1:])), columns, lines)[column, line]
    return out


def _outline(shape: int, scale: int, orientation: int) -> np.ndarray:
    """The polygon around its centre, `(n_vertices, 2)` pixels, y down, turned to the left."""
    if shape == 0:
        u, v = np.array([-1, 1, 1, -1]) / 2, np.array([-1, -1, 1, 1]) / 2
    elif shape == 1:
        t = 2 * np.pi * np.arange(100) / 100
        u, v = 0.5 * 1.33 * np.cos(t), 0.5 * np.sin(t) / 1.33
    else:
        t = 2 * np.pi * np.arange(150) / 150
        u = 16 * np.sin(t) ** 3 / 32
        v = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 29 - 0.075
    theta = FACTORS["orientation"][orientation]
    side = 0.3 * _SIDE * FACTORS["scale"][scale]
    x = u * np.cos(theta) + v * np.sin(theta)
    y = -u * np.sin(theta) + v * np.cos(theta)
    return np.asarray(side * np.stack([x, y], axis=1))


def _fill(outline: np.ndarray, columns: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """The polygon at each of posX times each of posY: uint64 `(len(columns), len(lines), 64)`.

    A pixel is in where an odd number of edges cross its row of centres at or left of its centre. Each
    crossing so inverts the pixels from some place on.
    """
    x0, x1 = _edges(16 + 32 * FACTORS["posX"][columns], outline[:, 0])
    y0, y1 = _edges(16 + 32 * FACTORS["posY"][lines], outline[:, 1])
    # Rows of centres above an edge's lower end, and at or below its upper: ties as OpenGL has them.
    half = _GRID // 2
    first = (np.minimum(y0, y1) - half) // _GRID + 1
    count = (np.maximum(y0, y1) - half) // _GRID + 1 - first
    line, edge = np.nonzero(count)
    count = count[line, edge]
    row = np.repeat(first[line, edge], count) + _ramps(count)
    line, edge = np.repeat(line, count), np.repeat(edge, count)
    rise, run = (y1 - y0)[line, edge], (x1 - x0)[:, edge]
    # The first pixel whose centre is not left of the crossing; whole numbers, hence exact.
    down = (row * _GRID + half) - y0[line, edge]
    across = down * run + (x0[:, edge] - half) * rise
    pixel = -(-across // (_GRID * rise))
    out = np.zeros((len(columns), len(lines), _SIDE), "<u8")
    column = np.arange(len(columns))[:, None]
    np.bitwise_xor.at(out, (column, line, row), _FROM[pixel])
    return out


def _edges(centres: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of each edge, `(len(centres), n_vertices)`, on the grid."""
    ends = np.floor(_GRID * (centres[:, None] + offsets) + 0.5).astype(np.int64)
    return ends, np.roll(ends, -1, axis=1)


def _ramps(count: np.ndarray) -> np.ndarray:
    """0 to n - 1 for each n of ``count``, one after another."""
    return np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
