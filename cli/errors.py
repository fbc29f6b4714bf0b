"""Errors a user can mend, as one sentence and an exit code instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

USAGE = 2
INTERRUPTED = 130


@contextmanager
def one_sentence() -> Iterator[None]:
    """Print the library's sentence for a bad value, kind or file, and exit 2."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        fail(" ".join(str(error).split()))


def fail(sentence: str, code: int = USAGE) -> None:
    """Print ``sentence`` on standard error and exit."""
    click.echo(f"Error: {sentence}", err=True)
    sys.exit(code)
