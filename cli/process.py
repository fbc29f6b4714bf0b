"""What a command may set for its process, and a library may not: memory, threads, signals."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

# By the variable that glibc reads when a process starts: mallopt's number of it in malloc.h, and bytes.
_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 32 << 20),  # glibc refuses more
    "MALLOC_TRIM_THRESHOLD_": (-1, 1 << 30),
}


def tune_allocator() -> None:
    """Let glibc keep freed memory for the next step, instead of returning it to the kernel.

    By default each large tensor is mapped anew, and every page of it faults again, at every step. The
    processes that this one starts, such as those of --jobs, are told by their environment. Whoever
    tunes malloc by the environment, or preloads another one, is left alone; so is another C library.

    References: https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    own = ("GLIBC_TUNABLES", "MALLOC_TOP_PAD_", *_ALLOCATOR)
    preloaded = "malloc" in os.environ.get("LD_PRELOAD", "")  # jemalloc, tcmalloc, mimalloc
    if sys.platform != "linux" or preloaded or any(name in os.environ for name in own):
        return
    try:
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):  # musl has no mallopt worth the name
            for name, (number, size) in _ALLOCATOR.items():
                libc.mallopt(number, size)
                os.environ[name] = str(size)
    except (OSError, AttributeError):
        return


def choose_threads(network: str | None) -> None:
    """One thread for small networks: two cost more in waiting than they save."""
    import torch

    if network == "mlp":
        torch.set_num_threads(1)


def is_first() -> bool:
    """Whether this is the process that speaks and writes, of those that torchrun may have started."""
    return not os.environ.get("WORLD_SIZE") or (os.environ.get("RANK") or "0") == "0"


class Signals:
    """Ctrl-C, SIGTERM and SIGHUP end a training after its step, so that a checkpoint of it can be written.

    A second one, and one that comes before the first step or after the last, ends it at once. Either way
    as a KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._stepping = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        # Of several processes the first one stops, with its checkpoint, and so the others end.
        handler = self._ask if is_first() else signal.SIG_IGN
        if threading.current_thread() is not threading.main_thread():
            return self  # where Python lets nobody set handlers
        for name in (
            "SIGINT",
            "SIGTERM",
            "SIGHUP",
        ):  # the last when a terminal is gone; not on Windows
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked, number
        if again or not self._stepping:
            raise KeyboardInterrupt

    def at_step(self, state: Any) -> None:
        """Called after each step with the `TrainingState`."""
        self._stepping = state.step < state.total
        if self.asked:
            raise KeyboardInterrupt

    @property
    def code(self) -> int:
        """The exit code that shells give a process ended by this signal."""
        return 128 + (self.asked or signal.SIGINT)


def settle_streams() -> None:
    """Let closed standard streams lead nowhere, and show what the terminal's encoding lacks as an escape.

    Without it the next file that is opened, such as a checkpoint, would take the number of a closed
    stream, and receive what any library prints there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115
        elif name != "stdin" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
