"""Data of the user's own: arrays, .npy, .npz and .h5 files, folders of images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .data import Data, split
from .dsprites import FACTORS as DSPRITES
from .folder import read_folder
from .h5_files import h5_integers, h5_rows, in_group, list_h5
from .images import resize, to_rows
from .numpy_files import read_npy, read_npz
from .rows import Refused, Rows, reading

X_KEYS = ("x", "images", "imgs", "data")
LABEL_KEYS = ("labels", "y")
FACTOR_KEYS = ("factors", "latents_classes")
_GROUPED = "latents/classes"  # of the published dSprites as .hdf5; latents_classes as .npz
SUFFIXES = (".npy", ".npz", ".h5", ".hdf5")
_Arrays = tuple[np.ndarray | Rows, np.ndarray | None, np.ndarray | None, tuple[str, ...]]
_LISTED = 8


def load_file(
    path: Path, image_size: int | None = None, test_fraction: float = 0.1, seed: int = 0
) -> tuple[Data, Data]:
    """Load a file or folder of the user's own and split it.

    Args:
        path: .npy (read lazily, if in C order), .npz (read into memory), .h5 or .hdf5 (read lazily) or a
            folder of images (read lazily). In .npz and .h5, x is the first of `X_KEYS` present,
            or the only array; labels and factors the first of `LABEL_KEYS`, `FACTOR_KEYS`. The published
            files of dSprites are such; their factors get names.
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
    x, labels, factors, names = reader(path)
    return _data(x, labels, factors, str(path), image_size, names)


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
    return split(_data(x, labels, None, "array", image_size), test_fraction, seed)


def _data(
    x: np.ndarray | Rows,
    labels: np.ndarray | None,
    factors: np.ndarray | None,
    owner: str,
    image_size: int | None,
    factor_names: tuple[str, ...] = (),
) -> Data:
    return resize(Data(to_rows(x, owner), labels, factors, factor_names), image_size, owner)


def _read_npy(path: Path) -> _Arrays:
    with reading(path):
        return read_npy(path, lazily=True), None, None, ()


def _read_npz(path: Path) -> _Arrays:
    keys: list[str | None] = []

    def choose(found: list[str]) -> list[str | None]:
        keys.extend(_choose_keys(path, found))
        return keys

    with reading(path):
        x, labels, factors = read_npz(path, choose)
    assert x is not None  # its key is never None
    return x, labels, factors, _names(keys[2], factors)


def _read_h5(path: Path) -> _Arrays:
    import h5py

    with reading(path), h5py.File(path, "r") as file:
        x_key, label_key, factor_key = _choose_keys(path, list_h5(file))
        if factor_key is None and in_group(file, _GROUPED):
            factor_key = _GROUPED
        x = h5_rows(path, file, x_key)
        labels, factors = (
            None if key is None else h5_integers(path, file, key) for key in (label_key, factor_key)
        )
    return x, labels, factors, _names(factor_key, factors)


def _names(key: str | None, factors: np.ndarray | None) -> tuple[str, ...]:
    """Those of dSprites, for classes under a key of dSprites and within its ranges."""
    sizes = [len(values) for values in DSPRITES.values()]
    if factors is None or key not in ("latents_classes", _GROUPED):
        return ()
    if factors.dtype.kind not in "iu" or factors.shape[1:] != (len(sizes),) or not len(factors):
        return ()
    return tuple(DSPRITES) if (factors.max(axis=0) < sizes).all() else ()


def _choose_keys(path: Path, found: list[str]) -> tuple[str, str | None, str | None]:
    """Return the keys of x, labels and factors among those `found`."""
    if len(found) == 1:
        return found[0], None, None
    x, labels, factors = (
        next((key for key in wanted if key in found), None)
        for wanted in (X_KEYS, LABEL_KEYS, FACTOR_KEYS)
    )
    if x is None:
        raise Refused(
            f"{path}: the file must hold x under one of {', '.join(X_KEYS)}, or one array only; "
            f"got {listed(found) or 'no array'}. Rename the array to x."
        )
    return x, labels, factors


def listed(names: list[str]) -> str:
    """The first of the names a file holds, on one line whatever they are."""
    shown = [name if name.isprintable() else repr(name) for name in names[:_LISTED]]
    more = [f"{len(names) - _LISTED} more"] if len(names) > _LISTED else []
    return ", ".join([name if len(name) <= 30 else name[:27] + "..." for name in shown] + more)
