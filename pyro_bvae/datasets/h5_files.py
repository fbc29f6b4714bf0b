"""HDF5, which anyone may have made: nothing outside the file is read, and no size without memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .memory import check_fits, rows_that_fit
from .rows import Refused, reading

if TYPE_CHECKING:
    import h5py

_AT_ONCE = 256
_SLICE_BYTES = 1 << 16  # are copied in less time than h5py takes for a slice
_LONGEST = 200  # letters of a word


@dataclass(frozen=True)
class H5Rows:
    """One data set of an HDF5 file as lazily read rows.

    The file is opened for each read, so that an instance can be pickled and shared by processes.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: int = 1  # rows that are unpacked together, or read as quickly as one

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
            for start, stop in self._slices(rows):
                first, last = rows[start], rows[stop - 1]
                found[start:stop] = dataset[first : last + 1][rows[start:stop] - first]
            if self.path.stat().st_size < file.id.get_filesize():  # HDF5 read zeros beyond the end
                raise EOFError("truncated while it was open")
        return found[inverse]

    def _slices(self, rows: np.ndarray) -> Iterator[tuple[int, int]]:
        """Where in the sorted ``rows`` to read from one to the next, so that each chunk is unpacked once.

        HDF5 unpacks a chunk again for each slice of it, if it is larger than its cache. Between two
        rows of a slice no whole chunk lies that is not wanted.
        """
        block = self.chunk * max(1, _AT_ONCE // self.chunk)
        block = min(block, rows_that_fit(math.prod(self.shape[1:]) * self.dtype.itemsize))
        cut = (np.diff(rows // self.chunk) > 1) | (np.diff(rows // block) > 0)
        cuts = (np.flatnonzero(cut) + 1).tolist()
        return zip([0, *cuts], [*cuts, len(rows)], strict=True) if len(rows) else iter(())


def list_h5(file: h5py.File) -> list[str]:
    """Names of the arrays at the top of the open file, then of those one group down, `group/name`.

    What lies deeper is `group/group/...`. Links are not followed: they count as arrays.
    """
    import h5py

    top = [key for key in file if _is_array(file, key)]
    groups = [key for key in file if key not in top and isinstance(file[key], h5py.Group)]
    down = []
    for key in (f"{group}/{name}" for group in groups for name in file[group]):
        if _is_array(file, key):
            down.append(key)
        elif isinstance(file[key], h5py.Group) and len(file[key]):
            down.append(f"{key}/...")
    return top + down


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


def is_text(file: h5py.File, key: str) -> bool:
    """Whether the array ``key`` is one of words."""
    import h5py

    return _is_hard(file, key) and h5py.check_string_dtype(file[key].dtype) is not None


def h5_rows(path: Path, file: h5py.File, key: str) -> H5Rows:
    """The data set ``key`` as rows, one of which has been read.

    Raises:
        Refused: its values lie in other files, or do not fit in memory.
        Exception: of any kind where the file is damaged, or its compression unknown here.
    """
    dataset = _own_dataset(path, file, key)
    row_bytes = math.prod((dataset.shape or ())[1:]) * dataset.dtype.itemsize
    chunk = (dataset.chunks or (_SLICE_BYTES // max(1, row_bytes),))[0]
    rows = H5Rows(path, key, dataset.shape or (), dataset.dtype, max(1, chunk))
    if math.prod(rows.shape) and rows.shape:
        _check_sizes(path, dataset, _AT_ONCE)
        dataset[0]
    return rows


def h5_values(path: Path, file: h5py.File, key: str) -> np.ndarray:
    """The whole data set ``key``, numbers or words; errors as `h5_rows`, and where it holds others."""
    import h5py

    dataset = _own_dataset(path, file, key)
    if dataset.shape and h5py.check_string_dtype(dataset.dtype) is not None:
        return _words(path, dataset)
    if dataset.dtype.kind not in "iuf" or not dataset.shape:
        raise Refused(
            f"{path}: {key} must be an array of numbers or words; got {dataset.dtype.name} of shape "
            f"{dataset.shape}. Number the values from 0, for example with "
            "numpy.unique(..., return_inverse=True)."
        )
    _check_sizes(path, dataset, None)
    values: np.ndarray = dataset[()]
    return values


def _words(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    """An array of text; few rows at a time, since each may refer to the same megabytes of the file."""
    check_fits(str(path), dataset.shape, np.dtype(f"U{_LONGEST}"))
    _check_sizes(path, dataset, None)
    step = rows_that_fit(path.stat().st_size)
    words = np.empty(dataset.shape, f"U{_LONGEST}")
    for start in range(0, len(dataset), step):
        part = dataset.asstr(errors="replace")[start : start + step]
        longest = max(map(len, part.ravel()), default=0)
        if longest > _LONGEST:
            raise Refused(
                f"{path}: a class must have a name of at most {_LONGEST} letters; got {longest}. "
                "Shorten it."
            )
        words[start : start + step] = part
    return words


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
