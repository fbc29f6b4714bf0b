"""Image files decoded once: a data set of small pictures is then one file, read row by row."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .folder import ImageFiles
from .memory import check_fits
from .numpy_files import read_npy
from .rows import Refused, Rows, reading

_CHUNK = 256


def decoded(images: ImageFiles, cache: Path) -> np.ndarray | Rows:
    """The rows of ``images``, from a .npy file at ``cache`` that is written where it is not there yet.

    A file of another number or size of images is written anew. It takes a name of its own until it is
    complete. Where none can be written, or it would take more than half of the free disk, the
    images are decoded at every reading.

    Returns:
        Rows uint8 `(n, channels, height, width)`.

    Raises:
        ValueError: an image cannot be read; nothing is written then.
    """
    check_fits(str(cache.parent), images.shape, images.dtype, _CHUNK)
    stored = _stored(images, cache)
    if stored is None and _write(images, cache):
        stored = _stored(images, cache)
    return images if stored is None else stored


def _stored(images: ImageFiles, cache: Path) -> np.ndarray | Rows | None:
    if not os.path.isfile(cache):
        return None
    try:
        with reading(cache):
            rows = read_npy(cache, lazily=True)
    except Refused:
        return None
    return rows if (tuple(rows.shape), rows.dtype) == (images.shape, images.dtype) else None


def _write(images: ImageFiles, cache: Path) -> bool:
    """Whether there was place and permission."""
    temporary = cache.with_name(f".{cache.name}.{secrets.token_hex(4)}")
    chunks = np.array_split(np.arange(len(images)), -(-len(images) // _CHUNK))
    header = {"descr": "|u1", "fortran_order": False, "shape": images.shape}
    pool = ThreadPoolExecutor()
    try:
        if math.prod(images.shape) > shutil.disk_usage(cache.parent).free // 2:
            return False
        with temporary.open("xb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for rows in pool.map(images.__getitem__, chunks):
                file.write(rows.data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, cache)
    except OSError:
        return False
    finally:
        pool.shutdown(cancel_futures=True)
        # Nothing to remove, in a folder that cannot be written, is an error too.
        with contextlib.suppress(OSError):
            temporary.unlink()
    return True
