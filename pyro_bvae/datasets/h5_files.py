"""HDF5, which anyone may have made: nothing outside the file is read, and no size without memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .memory import check_fits
from .rows import Refused, reading, stretches

if TYPE_CHECKING:
    import h5py

_AT_ONCE = 256


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

        # In the file's order, and by slices: h5py takes a list of rows many times more slowly.
        rows, inverse = np.unique(index, return_inverse=True)
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        with reading(self.path), h5py.File(self.path, "r") as file:
            dataset = file[self.key]
            if (dataset.shape, dataset.dtype) != (self.shape, self.dtype):
                raise ValueError("another data set than before")
            for start, stop in stretches(rows):
                found[start:stop] = dataset[rows[start] : rows[stop - 1] + 1]
            if self.path.stat().st_size < file.id.get_filesize():  # HDF5 read zeros beyond the end
                raise EOFError("truncated while it was open")
        return found[inverse]


def list_h5(file: h5py.File) -> list[str]:
    """Names at the top of the open file, without those of groups; links are not followed."""
    return [key for key in file if _is_array(file, key)]


def in_group(file: h5py.File, key: str) -> bool:
    """Whether ``key``, `group/name`, is listed as `list_h5` would in a group of the file itself."""
    import h5py

    group, _, name = key.rpartition("/")
    if not _is_hard(file, group) or not isinstance(file[group], h5py.Group):
        return False
    return name in file[group] and _is_array(file, key)


def _is_array(file: h5py.File, key: str) -> bool:
    """Whether ``key`` is a data set, or a link, which is refused where it is asked for."""
    import h5py

    return not _is_hard(file, key) or isinstance(file[key], h5py.Dataset)


def _is_hard(file: h5py.File, key: str) -> bool:
    """Whether nothing but hard links, which stay in the file, lead to ``key``; others are not followed."""
    import h5py

    steps = key.split("/")
    return all(
        isinstance(file.get("/".join(steps[: i + 1]), getlink=True), h5py.HardLink)
        for i in range(len(steps))
    )


def h5_rows(path: Path, file: h5py.File, key: str) -> H5Rows:
    """The data set ``key`` as rows, one of which has been read.

    Raises:
        Refused: its values lie in other files, or do not fit in memory.
        Exception: of any kind where the file is damaged, or its compression unknown here.
    """
    dataset = _own_dataset(path, file, key)
    rows = H5Rows(path, key, dataset.shape or (), dataset.dtype)
    if math.prod(rows.shape) and rows.shape:
        _check_sizes(path, dataset, _AT_ONCE)
        dataset[0]
    return rows


def h5_integers(path: Path, file: h5py.File, key: str) -> np.ndarray:
    """The whole data set ``key``: labels or factors; errors as `h5_rows`, and where it holds others."""
    dataset = _own_dataset(path, file, key)
    if dataset.dtype.kind not in "iu" or not dataset.shape:
        raise Refused(
            f"{path}: {key} must be an array of integers; got {dataset.dtype.name}. Number the values "
            "from 0, for example with numpy.unique(..., return_inverse=True)."
        )
    _check_sizes(path, dataset, None)
    values: np.ndarray = dataset[()]
    return values


def _check_sizes(path: Path, dataset: h5py.Dataset, at_once: int | None) -> None:
    check_fits(str(path), dataset.shape, dataset.dtype, at_once)
    # A chunk is unpacked whole, for one row too.
    check_fits(str(path), (1, math.prod(dataset.chunks or (1,))), dataset.dtype)


def _own_dataset(path: Path, file: h5py.File, key: str) -> h5py.Dataset:
    """The data set ``key``, whose values are known to lie in this file itself."""
    dataset = file[key] if _is_hard(file, key) else None
    if dataset is None or dataset.is_virtual or dataset.external:
        raise Refused(
            f"{path}: {key} must be a data set of this file; got a link, a virtual data set or one stored "
            "outside, which can lead to any file. Copy the values into one file."
        )
    return dataset
