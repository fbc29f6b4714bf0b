"""Places on disk: refused before any work, locked by one writer, written under a temporary name."""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_LOCK = ".lock"
_MOST_BYTES = 1 << 28  # of a file of text


def check_file(path: Path, suffixes: tuple[str, ...]) -> None:
    """Make the folder of ``path`` and refuse a file that cannot be written, before any work.

    Raises:
        ValueError: another suffix.
        OSError: no folder can be made there, or nothing written in it.
    """
    if path.suffix not in suffixes:
        raise ValueError(f"--out must end in {' or '.join(suffixes)}; got {path.name!r}.")
    _check_name(path, "--out")
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


def check_directory(path: Path, option: str = "--out") -> None:
    """Refuse a directory that could not be made or written, without making it; ``option`` named it.

    Raises:
        PermissionError: nothing can be written there.
    """
    _check_name(path, option)
    parent = path
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise PermissionError(
            f"{option} must lie where one can write; {parent} is not writable. Choose another place."
        )


def check_new_directory(path: Path) -> None:
    """Refuse a directory that holds something or cannot be written, before any work.

    Raises:
        FileExistsError: a file, or a directory that is not empty.
        PermissionError: nothing can be written there.
    """
    _check_name(path, "--out")
    if path.is_file() or (path.is_dir() and not all(map(_is_ours, path.iterdir()))):
        raise FileExistsError(
            f"--out must be a new or empty directory; {path} is not. Choose another name."
        )
    check_directory(path)


def _check_name(path: Path, option: str) -> None:
    """Refuse a name that is too long, or lies where one may not look."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise OSError(
            f"{option} must lie where one can write; got {path} ({error.strerror}). Choose another place."
        ) from error


def make_run_directory(dataset: str, prior: str, out: str | Path | None) -> Path:
    """The run directory, made; without a name the next free number, which nobody else can take."""
    if out is not None:
        try:
            Path(out).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"--out must lie where one can write; got {out} ({error.strerror}). Choose another place."
            ) from error
        return Path(out)
    plain = prior.replace(":", "-").replace(".", "-")
    stem = f"{Path(dataset).stem or 'data'}-{plain}"
    check_directory(Path("runs"))
    for n in itertools.count(1):
        path = Path("runs") / f"{stem}-{n}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable")


def _is_ours(path: Path) -> bool:
    """Whether a directory with this in it is still as good as empty."""
    return path.name == _LOCK or _is_leftover(path)


def _is_leftover(path: Path) -> bool:
    return path.name.startswith(".") and ".new." in path.name


def check_run(path: Path, name: str = "config.json", hint: str = "Is it a run?") -> None:
    """Refuse a directory that is no run, or a run without the file ``name``.

    Raises:
        FileNotFoundError: one sentence, which ends in ``hint`` where the file is missing.
        ValueError: a link leads out of the directory.
    """
    if not os.path.isdir(path):  # Path's raises for a name that is too long
        raise FileNotFoundError(
            f"load_run: {path} must be a run's directory; it is not a directory."
        )
    check_inside(path / name)
    if not (path / name).is_file():
        raise FileNotFoundError(f"load_run: {path} must hold {name}; it does not. {hint}")


def check_inside(path: Path) -> None:
    """Refuse a link out of the directory that it stands in: a stranger's run would read or write there.

    Raises:
        ValueError: one sentence.
    """
    if not path.is_symlink():
        return
    try:
        inside = path.resolve(strict=True).is_relative_to(path.parent.resolve())
    except (OSError, RuntimeError):  # a link to nothing, or to itself
        inside = False
    if not inside:
        raise ValueError(
            f"load_run: {path} must be part of its run; it is a link that leads elsewhere. Copy what it "
            "stands for in its place, if you know it."
        )


def read_text(path: Path, most: int = _MOST_BYTES) -> str:
    """The text of a file.

    Raises:
        ValueError: it is no text, or larger than any that we write.
    """
    size = path.stat().st_size
    if size > most:
        raise ValueError(f"{path} must hold at most {most:,} bytes; got {size:,}. Restore it.")
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8; {error}. Restore it.") from error


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Be the directory's only writer meanwhile. The lock is the system's, and dies with the process.

    Raises:
        BlockingIOError: another process writes there.
    """
    from filelock import FileLock, Timeout

    check_inside(directory / _LOCK)
    try:
        with FileLock(directory / _LOCK, timeout=0):
            yield
    except Timeout as error:
        raise BlockingIOError(
            f"{directory} must have one writer; another process is writing it now. Wait for it, or choose "
            "another --out."
        ) from error


def read_json(path: Path, hint: str = "Is it a run?") -> dict[str, Any]:
    """The JSON object that a run's file holds.

    Raises:
        FileNotFoundError: no run, or no such file: the sentence ends in ``hint``.
        ValueError: it is damaged.
    """
    check_run(path.parent, path.name, hint)
    try:
        value = json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError(f"load_run: {path} is nested too deep. Restore it.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"load_run: {path} must be JSON; {error}. Restore it.") from error
    except ValueError as error:
        raise ValueError(f"load_run: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"load_run: {path} must hold a JSON object; got {type(value).__name__}.")
    return value


def write_class_names(directory: Path, names: Sequence[str]) -> None:
    """Keep the names of a run's classes, where its data gave names."""
    if names:
        write_json(directory / "classes.json", {"format": 1, "names": list(names)})


def read_class_names(directory: Path) -> tuple[str, ...]:
    """Names of a run's classes, in the order of their numbers; none where its data gave none.

    Raises:
        ValueError: the file is damaged.
    """
    path = directory / "classes.json"
    check_inside(path)
    if not path.is_file():
        return ()
    names = read_json(path).get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"load_run: {path} must hold the names of the classes, a list of text; got {names!r:.60}. "
            "Restore it."
        )
    return tuple(names)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``value``, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8; parts of a path that are no text become an escape."""
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name of the same suffix, which takes the place of ``path`` once all is on the disk.

    Raises:
        OSError: it cannot be written; what stood at ``path`` still does.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.new{path.suffix}")
    try:
        temporary.unlink(missing_ok=True)
        temporary.open("xb").close()  # ours, and no link that waits there
        yield temporary
        synchronise(temporary)
        os.replace(temporary, path)
        synchronise(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def synchronise(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no directories
        return
    opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(opened)
    except OSError as error:  # some file systems do not synchronise directories
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(opened)


def unwritable(path: Path, error: OSError) -> OSError:
    """One sentence for a failed write."""
    reason = error.strerror or str(error)
    return OSError(
        f"--out: {path} must be writable; got {reason}. Free or open the place, or choose another."
    )


def remove_leftovers(directory: Path) -> None:
    """Delete temporary files of writers that were killed; the caller holds the lock."""
    for path in filter(_is_leftover, directory.iterdir()):
        path.unlink(missing_ok=True)
