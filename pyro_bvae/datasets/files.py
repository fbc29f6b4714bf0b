"""Data of the user's own: arrays, .npy, .npz and .h5 files, folders of images."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .data import Data, split
from .folder import read_folder
from .images import resize, to_rows
from .rows import Rows

X_KEYS = ("x", "images", "imgs", "data")
LABEL_KEYS = ("labels", "y")
FACTOR_KEYS = ("factors", "latents_classes")
SUFFIXES = (".npy", ".npz", ".h5", ".hdf5")
_Arrays = tuple[np.ndarray | Rows, np.ndarray | None, np.ndarray | None]
_READ_ERRORS = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class H5Rows:
    """One data set of an HDF5 file as lazily read rows.

    The file is opened for each read, so that an instance can be pickled and shared by processes.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        import h5py

        # h5py takes increasing indices only, and a slice far faster than a list.
        rows, inverse = np.unique(index, return_inverse=True)
        consecutive = len(rows) > 0 and rows[-1] - rows[0] + 1 == len(rows)
        selection = slice(rows[0], rows[-1] + 1) if consecutive else rows
        try:
            with h5py.File(self.path, "r") as file:
                found: np.ndarray = file[self.key][selection][inverse]
        except (OSError, KeyError) as error:
            raise _unreadable(self.path, error) from error
        return found


def load_file(
    path: Path, image_size: int | None = None, test_fraction: float = 0.1, seed: int = 0
) -> tuple[Data, Data]:
    """Load a file or folder of the user's own and split it.

    Args:
        path: .npy (memory-mapped), .npz (read into memory), .h5 or .hdf5 (read lazily) or a
            folder of images (read lazily). In .npz and .h5, x is the first of `X_KEYS` present,
            or the only array; labels and factors the first of `LABEL_KEYS`, `FACTOR_KEYS`.
        image_size: resize images to this height and width, in pixels.
        test_fraction: share of the rows held out.
        seed: of the split.

    Raises:
        FileNotFoundError: nothing is at `path`.
        ValueError: the kind is not known, or the content is damaged or unsuitable.
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
    x, labels, factors = reader(path)
    return _data(x, labels, factors, str(path), image_size)


def check_there(path: Path) -> None:
    """Refuse a path at which there is nothing.

    Raises:
        FileNotFoundError: one sentence.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: the file or folder must exist; got nothing there. Check the path."
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
) -> Data:
    return resize(Data(to_rows(x, owner), labels, factors), image_size, owner)


def _read_npy(path: Path) -> _Arrays:
    with _reading(path):
        return np.lib.format.open_memmap(path, mode="r"), None, None


def _read_npz(path: Path) -> _Arrays:
    # An open file, not a path: numpy leaves a path's handle open when the archive is damaged.
    with path.open("rb") as opened:
        with _reading(path):
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a .npy file by another name")
        x_key, *others = _choose_keys(path, file.files)
        with _reading(path):
            labels, factors = (None if key is None else file[key] for key in others)
            return file[x_key], labels, factors


def _read_h5(path: Path) -> _Arrays:
    import h5py

    with _reading(path):
        file = h5py.File(path, "r")
    with file:
        arrays = [key for key in file if isinstance(file[key], h5py.Dataset)]
        x_key, *others = _choose_keys(path, arrays)
        x = H5Rows(path, x_key, file[x_key].shape, file[x_key].dtype)
        with _reading(path):
            labels, factors = (None if key is None else file[key][()] for key in others)
    return x, labels, factors


def _choose_keys(path: Path, found: list[str]) -> tuple[str, str | None, str | None]:
    """Return the keys of x, labels and factors among those `found`."""
    if len(found) == 1:
        return found[0], None, None
    x, labels, factors = (
        next((key for key in wanted if key in found), None)
        for wanted in (X_KEYS, LABEL_KEYS, FACTOR_KEYS)
    )
    if x is None:
        raise ValueError(
            f"{path}: the file must hold x under one of {', '.join(X_KEYS)}, or one array only; "
            f"got {', '.join(found) or 'no array'}. Rename the array to x."
        )
    return x, labels, factors


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path}: the file must be a complete {path.suffix} file without pickled objects; got one "
        f"that cannot be read ({type(error).__name__}). Save or copy it again."
    )
