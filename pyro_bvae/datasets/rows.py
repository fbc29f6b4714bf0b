"""Arrays that are read from disk row by row, and look like arrays in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Rows(Protocol):
    """What a lazily read `x` must offer: the face of an array that is indexed by rows only."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Mapped:
    """Rows of `source` passed through `function` as they are read.

    Attributes:
        source: array or `Rows`, `(n, ...)`.
        function: takes the raw rows `(batch, ...)`, returns them `(batch, *shape[1:])`.
        shape: the shape `(n, ...)` after `function`.
        dtype: the dtype after `function`.
    """

    source: np.ndarray | Rows
    function: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return self.function(np.asarray(self.source[index]))


@dataclass(frozen=True)
class Subset:
    """The rows `indices` of a lazily read `source`, still read lazily."""

    source: np.ndarray | Rows
    indices: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.indices), *self.source.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.source.dtype

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return np.asarray(self.source[self.indices[index]])


def is_resident(x: object) -> bool:
    """True if `x` is an array in memory, False if it is memory-mapped or read lazily."""
    return isinstance(x, np.ndarray) and not isinstance(x, np.memmap)


def stretches(index: np.ndarray) -> Iterator[tuple[int, int]]:
    """Where in ``index`` rows follow each other, so that they can be read at once.

    Examples:
        >>> list(stretches(np.array([4, 5, 6, 2, 9, 10])))
        [(0, 3), (3, 4), (4, 6)]
    """
    cuts = (np.flatnonzero(np.diff(index) != 1) + 1).tolist()
    return zip([0, *cuts], [*cuts, len(index)], strict=True) if len(index) else iter(())


class Refused(ValueError):
    """One sentence for the user, which `reading` lets through."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong in reading the file at ``path`` into one sentence.

    Damaged files make numpy, zipfile and HDF5 raise errors of many kinds, and a file can change or
    vanish while it is in use.

    Raises:
        Refused: naming the file.
    """
    try:
        yield
    except Refused:
        raise
    except BlockingIOError as error:  # of HDF5, which locks what it writes
        raise Refused(
            f"{path}: the file must not be open for writing; another process has locked it. Close it there."
        ) from error
    except Exception as error:
        raise Refused(
            f"{path}: the file must be a complete {path.suffix} file without pickled objects; got one "
            f"that cannot be read ({type(error).__name__}). Save or copy it again."
        ) from error
