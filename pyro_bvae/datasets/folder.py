"""A folder of images, opened one by one as they are asked for."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .data import Data
from .images import check_image_size
from .memory import check_fits
from .names import clean, listed

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pbm", ".pgm",
    ".ppm", ".pnm",
)  # fmt: skip
# What systems leave in a folder, which nobody put there.
_SYSTEM = ("thumbs.db", "desktop.ini", "__macosx")
# What the suffixes promise, whatever a file is: Pillow would hand others to programs outside (EPS).
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_GREY_MODES = ("1", "L", "LA", "La")
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_ORIENTATION = 0x0112  # EXIF's tag
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
            pixels = _as_seen(image).convert("L" if channels == 1 else "RGB")
            if self.crop is not None:
                pixels = _centre(pixels, self.crop)
            if pixels.size != (width, height):
                pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(pixels).reshape(height, width, channels).transpose(2, 0, 1)


def _as_seen(image: Image) -> Image:
    """Turned as its camera says, what is transparent on white: as a viewer shows it."""
    from PIL import Image, ImageOps

    if image.format != "TIFF" and _turn(image) > 1:  # Pillow turns TIFF as it loads it
        image = ImageOps.exif_transpose(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        seen = image.convert("RGBA")
        ground = Image.new("RGBA", seen.size, "white")
        return Image.alpha_composite(ground, seen)
    return image


def _turn(image: Image) -> int:
    """EXIF's orientation, 1 to 8; 5 and more swap width and height."""
    # Of PNG, Pillow would decode the pixels to look behind them.
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & set(image.info):
        return 1
    turn = image.getexif().get(_ORIENTATION)
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def _centre(image: Image, size: int) -> Image:
    width, height = min(image.width, size), min(image.height, size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def read_folder(folder: Path, image_size: int | None) -> Data:
    """Read a folder of images; class sub-folders, in sorted order, become labels 0, 1, ….

    Images are as a viewer shows them: turned by their EXIF orientation, transparent ones on white.

    Args:
        folder: holds images, or one sub-folder of images per class.
        image_size: every image is resized (and, if oblong, squashed) bilinearly to this height
            and width; None requires images of one size.

    Returns:
        `x` read lazily, uint8, 1 channel if every image is grey, else 3. A warning says what else the
        folder holds.

    Raises:
        ValueError: no image, images both beside and inside sub-folders, an unreadable image, one
            of more than 8 bits a channel, or sizes that differ without `image_size`.
    """
    check_image_size(image_size, str(folder))
    paths, labels, names = _find(folder)
    grey = True
    sizes: dict[tuple[int, int], Path] = {}
    several: list[Path] = []
    with warnings.catch_warnings():
        _refuse_bombs()
        for path in paths:
            mode, size, more = _header(path)
            grey = grey and mode in _GREY_MODES
            sizes.setdefault(size, path)
            several += [path] * more
    if image_size is None and len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise ValueError(
            f"{folder}: images must share one size; got {one[0]}x{one[1]} ({first.name}) and "
            f"{other[0]}x{other[1]} ({second.name}). Pass --image-size to resize them."
        )
    if several:
        hold = "1 image holds" if len(several) == 1 else f"{len(several)} images hold"
        warnings.warn(
            f"{folder}: {hold} more than one picture, of which the first is read, as {several[0].name}.",
            stacklevel=2,
        )
    width, height = (image_size, image_size) if image_size else next(iter(sizes))
    rows = ImageFiles(tuple(paths), (1 if grey else 3, height, width))
    check_fits(str(folder), rows.shape, rows.dtype, at_once=1)
    return Data(rows, labels, class_names=names)


def _refuse_bombs() -> None:
    from PIL import Image

    warnings.simplefilter("error", Image.DecompressionBombWarning)


def _find(folder: Path) -> tuple[list[Path], np.ndarray | None, tuple[str, ...]]:
    """The images, and of class sub-folders each image's label and the names; warn of other files."""
    try:
        flat, others = _images(folder, deep=False)
        classes = [d for d in sorted(folder.iterdir()) if d.is_dir() and not _of_system(d.name)]
        for d in classes:
            if folder.resolve().is_relative_to(d.resolve()):
                raise ValueError(
                    f"{d}: a class sub-folder must not hold the data folder itself; got a link to "
                    f"{d.resolve()}. Remove it."
                )
        found = [_images(d, deep=True) for d in classes]
    except (OSError, RecursionError) as error:
        raise OSError(
            f"{folder}: the folder and its sub-folders must be readable; got {type(error).__name__}. "
            "Check the rights, and how deep it goes."
        ) from error
    per_class = {d: images for d, (images, _) in zip(classes, found, strict=True) if images}
    others += [path for _, left in found for path in left]
    if flat and per_class:
        raise ValueError(
            f"{folder}: images must lie either all in the folder or all in class sub-folders; got "
            f"{len(flat)} beside {len(per_class)} such sub-folders. Move the former."
        )
    if not flat and not per_class:
        convert = f"{_counted(others)}. Convert them, or put" if others else "none. Put"
        raise ValueError(
            f"{folder}: the folder must hold images ({' '.join(SUFFIXES)}); got {convert} "
            "images there, or one sub-folder of images per class."
        )
    _say_what_is_left(folder, others, [d for d in classes if d not in per_class], per_class)
    if flat:
        return flat, None, ()
    paths = [path for images in per_class.values() for path in images]
    labels = np.repeat(np.arange(len(per_class)), [len(images) for images in per_class.values()])
    return paths, labels, tuple(clean(d.name) for d in per_class)


def _say_what_is_left(
    folder: Path, others: list[Path], empty: list[Path], per_class: dict[Path, list[Path]]
) -> None:
    """Warn of what a person would miss: files that are not read, and folders that are no classes."""
    said = []
    if others:
        are = "1 file was" if len(others) == 1 else f"{len(others)} files were"
        said.append(
            f"{are} not read: {_counted(others)}. Images are read from {' '.join(SUFFIXES)}; convert "
            "the others."
        )
    if empty:
        are = (
            "1 sub-folder without images is"
            if len(empty) == 1
            else f"{len(empty)} without images are"
        )
        said.append(f"{are} no class: {listed([d.name for d in empty])}.")
    deep = [path.parent for d, images in per_class.items() for path in images if path.parent != d]
    if deep and len(deep) == sum(map(len, per_class.values())):
        said.append(
            f"the classes are {listed([d.name for d in per_class])}; they hold no images themselves, and "
            f"the sub-folders inside them are not told apart, as {deep[0].relative_to(folder)}. Pass one "
            "of the classes as the data set to have its sub-folders for classes."
        )
    for sentence in said:
        warnings.warn(f"{folder}: {sentence}", stacklevel=3)


def _counted(paths: list[Path]) -> str:
    """How many there are of each suffix, those of which there are most first."""
    counts = Counter(path.suffix.lower() or "without suffix" for path in paths)
    most_first = sorted(counts, key=lambda suffix: (-counts[suffix], suffix))
    return listed([f"{counts[suffix]} {suffix}" for suffix in most_first])


def _images(folder: Path, deep: bool) -> tuple[list[Path], list[Path]]:
    """Images in the folder, sorted, and other files; links to folders are followed at the top only."""

    def fail(error: OSError) -> None:
        raise error

    images: list[Path] = []
    others: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if deep and name.lower() not in _SYSTEM]
        for name in names:
            path = Path(place, name)
            if not _of_system(name) and path.is_file():
                (images if path.suffix.lower() in SUFFIXES else others).append(path)
    return sorted(images), others


def _of_system(name: str) -> bool:
    """Hidden, or left by the system."""
    return name.startswith(".") or name.lower() in _SYSTEM


def image_size_of(path: Path) -> tuple[int, int]:
    """Width and height in pixels of the image at ``path``; errors as `read_folder`."""
    return _header(path)[1]


def _header(path: Path) -> tuple[str, tuple[int, int], bool]:
    """Mode, width and height as seen, and whether there are more pictures in the file."""
    from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

    with _opened(path) as image:
        mode, size = image.mode, image.size
        if isinstance(image, TiffImageFile):  # newer Pillows turn its size themselves
            size = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
        if _turn(image) > 4:
            size = size[1], size[0]
        # Photos of telephones hold a small copy of themselves.
        more = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    if mode in _DEEP_MODES:
        raise ValueError(
            f"{path}: the image must have 8 bits a channel; got mode {mode}. "
            "Convert the folder to 8 bits."
        )
    return mode, size, more


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """The image at ``path``; whatever damage makes Pillow raise, one sentence."""
    from PIL import Image

    try:
        # A file, not a path: what Pillow maps into memory, uncompressed TIFF, it turns wrongly.
        with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
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
