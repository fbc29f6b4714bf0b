"""What a command may set for its process, and a library may not: how memory is kept, and threads."""

from __future__ import annotations

import ctypes
import os
import sys

# mallopt's parameters, as malloc.h of glibc numbers them, and their values in bytes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20  # glibc refuses more
_KEPT = 1 << 30


def tune_allocator() -> None:
    """Let glibc keep freed memory for the next step, instead of returning it to the kernel.

    By default each large tensor is mapped anew, and every page of it faults again, at every step. Whoever
    tunes malloc by the environment, or preloads another one, is left alone; so is another C library.

    References: https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    own = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
    preloaded = "malloc" in os.environ.get("LD_PRELOAD", "")  # jemalloc, tcmalloc, mimalloc
    if sys.platform != "linux" or preloaded or any(name in os.environ for name in own):
        return
    try:
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):  # musl has no mallopt worth the name
            libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
            libc.mallopt(_TRIM_THRESHOLD, _KEPT)
    except (OSError, AttributeError):
        return


def choose_threads(network: str | None) -> None:
    """One thread for small networks: two cost more in waiting than they save."""
    import torch

    if network == "mlp":
        torch.set_num_threads(1)
