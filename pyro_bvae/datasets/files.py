"""Data of the user's own: arrays, .npy, .npz and .h5 files, folders of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .data import Data, split, unmasked
from .folder import read_folder
from .h5_files import h5_rows, h5_values, is_text, list_h5
from .images import resize, to_rows
from .keys import Named, choose_keys, interpret
from .numpy_files import read_npy, read_npz
from .rows import Rows, reading

SUFFIXES = (".npy", ".npz", ".h5", ".hdf5")
_Arrays = tuple[np.ndarray | Rows, Named]


def load_file(
    path: Path, image_size: int | None = None, test_fraction: float = 0.1, seed: int = 0
) -> tuple[Data, Data]:
    """Load a file or folder of the user's own and split it.

    Args:
        path: .npy (read lazily, if in C order), .npz (read into memory), .h5 or .hdf5 (read lazily) or a
            folder of images (read lazily). Which arrays of .npz and .h5 are read: see `choose_keys` and
            `interpret`. The published files of dSprites are such; their factors get names.
        image_size: resize images to this height and width, in pixels.
        test_fraction: share of the rows held out.
        seed: of the split.

    Raises:
        FileNotFoundError: nothing is at `path`.
        ValueError: the kind is not known, the content is damaged, unsuitable or leads to other files, or
            an array (of lazily read data, its rows of a batch) exceeds half of the machine's memory.
        TypeError: an array has an unsuitable dtype.
    """
    return split(read_file(path, image_size), test_fraction, seed)


def read_file(path: Path, image_size: int | None = None) -> Data:
    """All rows of a file or folder, as `load_file` reads them."""
    check_there(path)
    if path.is_dir():
        return read_folder(path, image_size)
    readers = dict(zip(SUFFIXES, (_read_npy, _read_npz, _read_h5, _read_h5), strict=True))
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{path}: the file must be one of {' '.join(SUFFIXES)} or a folder of images; got "
            f"{path.suffix or 'no suffix'}. Convert it, for example with numpy.savez."
        )
    x, named = reader(path)
    return _data(x, named, str(path), image_size)


def check_there(path: Path) -> None:
    """Refuse a path at which there is nothing, or what is neither a file nor a folder.

    Raises:
        FileNotFoundError, ValueError: one sentence.
    """
    # os.path and not Path, which raises where a folder on the way may not be entered
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"{path}: the file or folder must exist; got nothing there. Check the path."
        )
    if not os.path.isfile(path) and not os.path.isdir(path):
        raise ValueError(
            f"{path}: the path must be an ordinary file or a folder; got a pipe, a socket or a device. "
            "Write its content into a file."
        )


def load_array(
    x: np.ndarray,
    labels: np.ndarray | None = None,
    image_size: int | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> tuple[Data, Data]:
    """Split an array `(n, ...)`, with or without labels; as `load_file` otherwise."""
    named = Named(labels, None, (), ())
    return split(_data(unmasked("x", x), named, "array", image_size), test_fraction, seed)


def _data(x: np.ndarray | Rows, named: Named, owner: str, image_size: int | None) -> Data:
    return resize(Data(to_rows(x, owner), *named), image_size, owner)


def _read_npy(path: Path) -> _Arrays:
    with reading(path):
        return read_npy(path, lazily=True), Named(None, None, (), ())


def _read_npz(path: Path) -> _Arrays:
    found: list[str] = []

    def choose(names: list[str]) -> Sequence[str | None]:
        found.extend(names)
        return choose_keys(path, names)[:3]

    with reading(path):
        values = read_npz(path, choose)
    keys = choose_keys(path, found)
    arrays: dict[str | None, np.ndarray | None] = dict(zip(keys[:3], values, strict=True))
    arrays |= {key: _read_names(path, key) for key in keys[3:] if key is not None}
    x = arrays[keys.x]
    assert x is not None
    return x, interpret(path, found, keys, arrays)


def _read_names(path: Path, key: str) -> np.ndarray | None:
    """Names that may be pickled objects: they are left out then, and the rest is read."""
    try:
        return read_npz(path, lambda _: [key])[0]
    except Exception:
        return None


def _read_h5(path: Path) -> _Arrays:
    import h5py

    with reading(path), h5py.File(path, "r") as file:
        found = list_h5(file)
        keys = choose_keys(path, found)
        x = h5_rows(path, file, keys.x)
        wanted = [*keys[1:3], *(key for key in keys[3:] if key and is_text(file, key))]
        arrays: dict[str | None, np.ndarray | None] = {
            key: h5_values(path, file, key) for key in wanted if key is not None
        }
    return x, interpret(path, found, keys, arrays)
