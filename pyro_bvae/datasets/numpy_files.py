"""NumPy's .npy and .npz, which anyone may have made: no pickle, and no size without its bytes."""

from __future__ import annotations

import io
import math
import sys
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from .memory import check_fits
from .rows import Rows, reading, stretches

# The longest header that numpy itself accepts is 10,000 bytes.
_HEADER_BYTES = 1 << 14
_MOST_DIMENSIONS = 8
_AT_ONCE = 256
# Those that numpy writes; others can ask for gigabytes to unpack a few bytes.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Header(NamedTuple):
    """What stands before the values of a .npy file, and how many bytes it takes itself."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    offset: int

    @property
    def size(self) -> int:
        """Bytes of the values, as the header claims."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class NpyRows:
    """The array of a .npy file as lazily read rows.

    Not a memory map, which ends the process where the file has become shorter meanwhile. The file is
    opened for each read, so that an instance can be pickled and shared by processes.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        out = np.empty((len(index), *self.shape[1:]), self.dtype)
        width = math.prod(self.shape[1:]) * self.dtype.itemsize
        raw = out.reshape(-1).view(np.uint8).data
        with reading(self.path), self.path.open("rb", buffering=0) as file:
            for start, stop in stretches(index):
                first = self.offset + int(index[start]) * width
                _fill(file, first, raw[start * width : stop * width])
        return out


def _fill(file: io.FileIO, first: int, view: memoryview) -> None:
    """Fill ``view`` with the bytes of the file from ``first`` on."""
    file.seek(first)
    while got := file.readinto(view):  # one call reads at most 2 GB
        view = view[got:]
    if len(view):
        raise EOFError


def read_npy(path: Path, lazily: bool = False) -> np.ndarray | Rows:
    """The array of a .npy file: in memory, or as `Rows` where `lazily` and its order of values allow.

    Raises:
        Refused: the array does not fit in memory.
        Exception: of any kind where the file is damaged, shorter than its header claims, or holds objects.
    """
    with path.open("rb") as file:
        header = read_header(file)
        if file.seek(0, io.SEEK_END) < header.offset + header.size:
            raise EOFError
        if lazily and not header.fortran_order and header.shape and header.size:
            check_fits(str(path), header.shape, header.dtype, _AT_ONCE)
            return NpyRows(path, header.offset, header.shape, header.dtype)
        check_fits(str(path), header.shape, header.dtype)
        file.seek(0)
        return _read_array(file)


def read_npz(
    path: Path, choose: Callable[[list[str]], Sequence[str | None]]
) -> list[np.ndarray | None]:
    """Some arrays of a .npz file.

    Args:
        path: the file.
        choose: is given the names of all arrays, and returns those to be read; None stays None.

    Raises:
        Refused, Exception: as `read_npy`; and what ``choose`` raises.
    """
    # An open file, not a path: zipfile leaves a path's handle open when the archive is damaged.
    with path.open("rb") as opened, zipfile.ZipFile(opened) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist()}
        return [
            None if key is None else _read_member(path, archive, members[key])
            for key in choose(list(members))
        ]


def _read_member(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    info = archive.getinfo(name)
    if info.compress_type not in _METHODS:
        raise ValueError("a method that numpy does not write")
    with archive.open(info) as member:
        header = read_header(member)
    if info.file_size != header.offset + header.size:
        raise EOFError
    check_fits(str(path), header.shape, header.dtype)
    with archive.open(info) as member:
        return _read_array(member)


def read_header(file: IO[bytes]) -> Header:
    """The header of the .npy file that starts here; only its own bytes are read.

    Raises:
        EOFError, ValueError, KeyError: it is none, or one of objects, which would be pickled.
    """
    start = io.BytesIO(file.read(_HEADER_BYTES))
    if not start.getbuffer().nbytes:
        raise EOFError
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spellings of older numpys and Pythons
        version = np.lib.format.read_magic(start)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran_order, dtype = read(start)
    sizes = len(shape) <= _MOST_DIMENSIONS and all(0 <= size <= sys.maxsize for size in shape)
    if dtype.hasobject or not sizes:
        raise ValueError("objects, or sizes that no array has")
    return Header(shape, fortran_order, dtype, start.tell())


def _read_array(file: IO[bytes]) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return array
