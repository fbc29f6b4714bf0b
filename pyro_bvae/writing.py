"""Places on disk: refused before any work, written under a temporary name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def check_file(path: Path, suffixes: tuple[str, ...]) -> None:
    """Make the folder of ``path`` and refuse a file that cannot be written, before any work.

    Raises:
        ValueError: another suffix.
        OSError: no folder can be made there, or nothing written in it.
    """
    if path.suffix not in suffixes:
        raise ValueError(f"--out must end in {' or '.join(suffixes)}; got {path.name!r}.")
    reason = "it is a directory" if path.is_dir() else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
    if reason is None and not os.access(path if path.exists() else path.parent, os.W_OK):
        reason = "Permission denied"
    if reason is not None:
        raise OSError(
            f"--out must lie where one can write; got {path} ({reason}). Choose another place."
        )


def check_directory(path: Path) -> None:
    """Refuse a directory that could not be made or written, without making it.

    Raises:
        PermissionError: nothing can be written there.
    """
    parent = path
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise PermissionError(
            f"--out must lie where one can write; {parent} is not writable. Choose another place."
        )


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``value``, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name of the same suffix, which takes the place of ``path`` once all is written."""
    temporary = path.with_name(f"{path.stem}.new{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
