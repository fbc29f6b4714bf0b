"""What a file claims to hold against what this machine could: checked before anything is allocated."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence

import numpy as np

from .rows import Refused

# Of each row of a file, whatever its width: its place in the order of the split and of an epoch.
_ROW_OVERHEAD = 64


def check_fits(
    owner: str, shape: Sequence[int], dtype: np.dtype[np.generic], at_once: int | None = None
) -> None:
    """Refuse an array that takes more than half of the machine's memory, since work on it takes a copy.

    A file of a few bytes may claim any size: compressed, sparse, or never written at all.

    Args:
        owner: names the data in the error.
        shape: `(n, ...)`.
        dtype: of the array.
        at_once: rows in memory at a time, where they are read from disk; None means all.

    Raises:
        Refused: one sentence.
    """
    n = shape[0] if shape else 1
    held = n if at_once is None else min(n, at_once)
    needed = held * math.prod(shape[1:]) * dtype.itemsize + n * _ROW_OVERHEAD
    limit = _memory() // 2
    if needed > limit:
        lazily = "" if at_once is not None else " Rows of .npy and .h5 files are read as needed."
        raise Refused(
            f"{owner}: the array must fit in half of this machine's memory, {limit / 1e9:.3g} GB; got "
            f"shape {tuple(shape)}, which takes {needed / 1e9:.3g} GB. Take fewer or smaller rows (see also "
            f"--image-size).{lazily}"
        )


def rows_that_fit(row_bytes: int) -> int:
    """How many rows of ``row_bytes`` take an eighth of the machine's memory; at least one."""
    return max(1, _memory() // 8 // max(1, row_bytes))


def _memory() -> int:
    """Bytes of physical memory; without a limit where the system does not say (Windows)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize
