"""Errors a user can mend, as one sentence and an exit code instead of a traceback; warnings as a line."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

USAGE = 2


@contextmanager
def one_sentence() -> Iterator[None]:
    """Print the library's sentence for a bad value, kind or file, and exit 2; for too little memory, 1."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        fail(" ".join(str(error).split()))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        fail(" ".join(str(error).split()) or "Memory must suffice; it did not. Take less data.", 1)


@contextmanager
def one_usage_sentence() -> Iterator[None]:
    """Click's refusals as one line, like ours: without its lines of usage."""
    try:
        yield
    except click.UsageError as error:
        if error.ctx is None:
            raise
        text = " ".join(error.format_message().split())
        stop = "" if text.endswith(".") or "?" in text[-2:] else "."
        see = f"{text}{stop} See {error.ctx.command_path} --help."
        raise click.UsageError(see) from None


def fail(sentence: str, code: int = USAGE) -> None:
    """Print ``sentence`` on standard error and exit."""
    rank = os.environ.get("RANK") or "0"  # of several processes that torchrun started
    click.echo(f"{'' if rank == '0' else f'[rank {rank}] '}Error: {sentence}", err=True)
    sys.exit(code)


@contextmanager
def one_line_notes() -> Iterator[None]:
    """Print warnings, and what the library logs, as one line each on standard error."""
    logger, handler = logging.getLogger("pyro_bvae"), _Lines()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _line(record.getMessage())


def _show(message: Warning | str, *where: Any, **more: Any) -> None:
    _line(f"Note: {' '.join(str(message).split())}")


def _line(text: str) -> None:
    from tqdm import tqdm

    # A note that nobody can read any more must not end a training.
    with suppress(OSError), tqdm.external_write_mode(sys.stderr):  # above a progress bar
        click.echo(text, err=True)
