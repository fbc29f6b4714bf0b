"""A folder of images, opened one by one as they are asked for."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .data import Data
from .images import check_image_size
from .memory import check_fits

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
# What the suffixes promise, whatever a file is: Pillow would hand others to programs outside (EPS).
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_GREY_MODES = ("1", "L", "LA")
# Pillow clips these to 8 bits instead of scaling them, so they are refused.
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class ImageFiles:
    """Image files as lazily read rows, uint8 `(n, channels, height, width)`.

    With ``crop``, only so many pixels in the centre, in height and width, are read; a smaller image is
    taken whole.
    """

    paths: tuple[Path, ...]
    row_shape: tuple[int, int, int]
    crop: int | None = None
    dtype: np.dtype[Any] = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.paths), *self.row_shape)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        rows = np.empty((len(index), *self.row_shape), np.uint8)
        for row, i in zip(rows, index, strict=True):
            row[:] = self._read(self.paths[i])
        return rows

    def _read(self, path: Path) -> np.ndarray:
        from PIL import Image

        channels, height, width = self.row_shape
        with _opened(path) as image:
            pixels = image.convert("L" if channels == 1 else "RGB")
            if self.crop is not None:
                pixels = _centre(pixels, self.crop)
            if pixels.size != (width, height):
                pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(pixels).reshape(height, width, channels).transpose(2, 0, 1)


def _centre(image: Image, size: int) -> Image:
    width, height = min(image.width, size), min(image.height, size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def read_folder(folder: Path, image_size: int | None) -> Data:
    """Read a folder of images; class sub-folders, in sorted order, become labels 0, 1, ….

    Args:
        folder: holds images, or one sub-folder of images per class.
        image_size: every image is resized (and, if oblong, squashed) bilinearly to this height
            and width; None requires images of one size.

    Returns:
        `x` read lazily, uint8, 1 channel if every image is grey, else 3.

    Raises:
        ValueError: no image, images both beside and inside sub-folders, an unreadable image, one
            of more than 8 bits a channel, or sizes that differ without `image_size`.
    """
    check_image_size(image_size, str(folder))
    paths, labels = _find(folder)
    grey = True
    sizes: dict[tuple[int, int], Path] = {}
    with warnings.catch_warnings():
        _refuse_bombs()
        for path in paths:
            mode, size = _header(path)
            grey = grey and mode in _GREY_MODES
            sizes.setdefault(size, path)
    if image_size is None and len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise ValueError(
            f"{folder}: images must share one size; got {one[0]}x{one[1]} ({first.name}) and "
            f"{other[0]}x{other[1]} ({second.name}). Pass --image-size to resize them."
        )
    width, height = (image_size, image_size) if image_size else next(iter(sizes))
    rows = ImageFiles(tuple(paths), (1 if grey else 3, height, width))
    check_fits(str(folder), rows.shape, rows.dtype, at_once=1)
    return Data(rows, labels)


def _refuse_bombs() -> None:
    from PIL import Image

    warnings.simplefilter("error", Image.DecompressionBombWarning)


def _find(folder: Path) -> tuple[list[Path], np.ndarray | None]:
    try:
        flat = _images(folder, deep=False)
        classes = [d for d in sorted(folder.iterdir()) if d.is_dir() and not d.name.startswith(".")]
        for d in classes:
            if folder.resolve().is_relative_to(d.resolve()):
                raise ValueError(
                    f"{d}: a class sub-folder must not hold the data folder itself; got a link to "
                    f"{d.resolve()}. Remove it."
                )
        per_class = [found for d in classes if (found := _images(d, deep=True))]
    except (OSError, RecursionError) as error:
        raise OSError(
            f"{folder}: the folder and its sub-folders must be readable; got {type(error).__name__}. "
            "Check the rights, and how deep it goes."
        ) from error
    if flat and per_class:
        raise ValueError(
            f"{folder}: images must lie either all in the folder or all in class sub-folders; got "
            f"{len(flat)} beside {len(per_class)} such sub-folders. Move the former."
        )
    if not flat and not per_class:
        raise ValueError(
            f"{folder}: the folder must hold images ({' '.join(SUFFIXES)}); got none. "
            "Put images there, or one sub-folder of images per class."
        )
    if flat:
        return flat, None
    paths = [path for found in per_class for path in found]
    return paths, np.repeat(np.arange(len(per_class)), [len(found) for found in per_class])


def _images(folder: Path, deep: bool) -> list[Path]:
    """Images in the folder, sorted; links to folders are followed at the top only."""

    def fail(error: OSError) -> None:
        raise error

    found: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=fail):
        if not deep:
            folders.clear()
        found += [Path(place, name) for name in names]
    return sorted(
        path
        for path in found
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def image_size_of(path: Path) -> tuple[int, int]:
    """Width and height in pixels of the image at ``path``; errors as `read_folder`."""
    return _header(path)[1]


def _header(path: Path) -> tuple[str, tuple[int, int]]:
    with _opened(path) as image:
        mode, size = image.mode, image.size
    if mode in _DEEP_MODES:
        raise ValueError(
            f"{path}: the image must have 8 bits a channel; got mode {mode}. "
            "Convert the folder to 8 bits."
        )
    return mode, size


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """The image at ``path``; whatever damage makes Pillow raise, one sentence."""
    from PIL import Image

    try:
        with Image.open(path, formats=_FORMATS) as image:
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{path}: the image must have at most {Image.MAX_IMAGE_PIXELS} pixels (Pillow's limit); got "
            "more, which a few bytes can claim. Scale it down or remove it."
        ) from error
    except Exception as error:
        raise ValueError(
            f"{path}: the file must be a complete image; got one that cannot be read "
            f"({type(error).__name__}). Replace or remove it."
        ) from error
