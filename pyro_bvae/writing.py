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


def check_new_directory(path: Path) -> None:
    """Refuse a directory that holds something or cannot be written, before any work.

    Raises:
        FileExistsError: a file, or a directory that is not empty.
        PermissionError: nothing can be written there.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise FileExistsError(
            f"--out must be a new or empty directory; {path} is not. Choose another name."
        )
    check_directory(path)


def check_run(path: Path, name: str = "config.json", hint: str = "Is it a run?") -> None:
    """Refuse a directory that is no run, or a run without the file ``name``.

    Raises:
        FileNotFoundError: one sentence, which ends in ``hint`` where the file is missing.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"load_run: {path} must be a run's directory; it is none.")
    if not (path / name).is_file():
        raise FileNotFoundError(f"load_run: {path} must hold {name}; it does not. {hint}")


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
