"""Running a sweep: what is there already, what is left, and who trains it."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from ..config import Config
from ..writing import check_directory, check_new_directory, read_json, write_json
from .reading import FORMAT, Sweep, read_sweep
from .rows import Row, write_csv
from .workers import Task, train_all

_OFTEN = 200  # rows; of more, sweep.csv is written every _SECONDS and at the end
_SECONDS = 10.0
_OF_THE_MACHINE = ("device", "data_dir", "download")


def run_sweep(
    sweep: Sweep | str | Path,
    out: str | Path,
    *,
    jobs: int | None = None,
    retries: int = 2,
    trust: bool = False,
    on_run: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Train every run of a sweep that is not finished yet, each in a folder of ``out``.

    A run that stopped early goes on from its checkpoint, so that calling this again is how to go on. A
    run whose process dies (killed, or out of memory), or that meets an error of the system, is taken up
    again; one whose options are refused, or whose loss is not finite, is not, as it would end the same.
    The others go on. ``out`` also holds sweep.json (what is run), sweep.csv (a line a run, rewritten as
    runs end) and sweep.html (tables and pictures, at the end).

    On a cluster, joblib's backend takes the place of ``jobs``; ``out`` and the data must be seen by all
    its machines under the same path, and each process trains one run at a time::

        from dask.distributed import Client
        from joblib import parallel_config
        from pyro_bvae.sweep import run_sweep

        client = Client("tcp://127.0.0.1:8786")
        with parallel_config("dask"):
            rows = run_sweep("sweep.toml", "runs/sweep")

    Args:
        sweep: of `read_sweep` or `over_seeds`, or the file.
        out: a new or empty directory, or that of a sweep which this one goes on with or extends.
        jobs: processes on this machine, of one thread each unless ``OMP_NUM_THREADS`` says otherwise;
            -1 for one per core; 1 trains in this process. None leaves it to joblib's `parallel_config`,
            and is 1 without one.
        retries: how often a run is taken up again. Dask does so itself first, as often as its
            ``allowed-failures`` says.
        trust: import the ``module:name`` parts that the sweep names; without it they are refused.
        on_run: called in this process with the row of each run as it ends.

    Returns:
        A row for each run, in the order of the sweep.

    Raises:
        ValueError, TypeError, OSError: before any work.
        KeyboardInterrupt: stopped early; what was trained stays.
    """
    sweep = sweep if isinstance(sweep, Sweep) else read_sweep(sweep)
    check(sweep, jobs, retries, trust)
    rows = {row.path.name: row for row in plan(sweep, out)}
    out = Path(out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "sweep.json", _contents(sweep))
    tasks = [
        Task(name, config.to_dict(), str(out / name), trust)
        for (name, row), config in zip(rows.items(), sweep.configs, strict=True)
        if row.status != "finished"
    ]
    written = time.monotonic()
    write_csv(list(rows.values()), sweep.varied, out / "sweep.csv")
    try:
        with closing(train_all(tasks, jobs, retries)) as ended:
            for name, result in ended:
                rows[name] = dataclasses.replace(rows[name], **result)
                if len(rows) <= _OFTEN or time.monotonic() - written > _SECONDS:
                    write_csv(list(rows.values()), sweep.varied, out / "sweep.csv")
                    written = time.monotonic()
                if on_run is not None:
                    on_run(rows[name])
    except BaseException:
        with suppress(Exception):  # it must not take the place of what stopped the sweep
            _end(rows, sweep, out)
        raise
    _end(rows, sweep, out)
    return list(rows.values())


def _end(rows: dict[str, Row], sweep: Sweep, out: Path) -> None:
    """Runs that another process trained meanwhile are looked at again; then the table and the page."""
    for name, row in rows.items():
        if row.status == "busy" and (out / name / "metrics.json").exists():
            again = _standing(out / name, row.config)
            rows[name] = again if again.status == "finished" else row
    from ..report import write_sweep_report

    write_csv(list(rows.values()), sweep.varied, out / "sweep.csv")
    write_sweep_report(list(rows.values()), sweep.varied, out / "sweep.html")


def plan(sweep: Sweep, out: str | Path) -> list[Row]:
    """Every run as it stands, ``finished`` or ``pending``; nothing is written.

    Raises:
        ValueError: ``out`` holds another sweep, or one of its folders another run.
        OSError: something else lies there, or nothing can be written.
    """
    out = Path(out).resolve()
    if os.path.exists(out / "sweep.json"):
        _check_same(out / "sweep.json", sweep)
        check_directory(out)
    else:
        check_new_directory(out)
    return [
        _standing(out / name, config)
        for name, config in zip(sweep.names(), sweep.configs, strict=True)
    ]


def free_folder(sweep: Sweep, folder: Path) -> Path:
    """``folder``, or the first of folder-2, folder-3, ... that is new or holds this very sweep."""
    for n in itertools.count(1):
        path = folder if n == 1 else folder.with_name(f"{folder.name}-{n}")
        if not os.path.exists(path):
            return path
        with suppress(ValueError, FileExistsError):  # another sweep, or something else
            plan(sweep, path)
            return path
    raise AssertionError("unreachable")


def check(sweep: Sweep, jobs: int | None, retries: int, trust: bool) -> None:
    """Refuse what `run_sweep` cannot do with these.

    Raises:
        ValueError, TypeError: one sentence.
    """
    for name, value, least in (("jobs", jobs, -1), ("retries", retries, 0)):
        if name == "jobs" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"run_sweep: {name} must be a whole number; got {value!r}.")
        if value < least or (name == "jobs" and value == 0):
            rule = "at least 1, or -1 for one per core" if name == "jobs" else "at least 0"
            raise ValueError(f"run_sweep: {name} must be {rule}; got {value}.")
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ValueError(
            "run_sweep: a sweep must be started as one process; torchrun started "
            f"{os.environ['WORLD_SIZE']}. Start it without torchrun, with --jobs."
        )
    parts = [part for c in sweep.configs for part in (c.prior, c.network) if part and ":" in part]
    if parts and not trust:
        own = " and ".join(dict.fromkeys(parts))
        raise ValueError(
            f"run_sweep: the sweep names code to import, {own}; importing it runs it. "
            "Pass --trust if you know it (in Python: trust=True)."
        )


def _contents(sweep: Sweep) -> dict[str, Any]:
    """sweep.json."""
    runs = dict(zip(sweep.names(), (c.to_dict() for c in sweep.configs), strict=True))
    return {"format": FORMAT, "varied": list(sweep.varied), "runs": runs}


def _check_same(path: Path, sweep: Sweep) -> None:
    found = read_json(path)
    if isinstance(found.get("format"), int) and found["format"] > FORMAT:
        raise ValueError(
            f"run_sweep: {path} has format {found['format']}, newer than {FORMAT}. Upgrade pyro_bvae."
        )
    try:
        there = {name: Config.from_dict(values) for name, values in found["runs"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"run_sweep: {path} must be what run_sweep wrote; {error}. Restore it."
        ) from error
    here = dict(zip(sweep.names(), sweep.configs, strict=True))
    both = set(here) & set(there)
    if not both or any(_of_model(here[name]) != _of_model(there[name]) for name in both):
        raise ValueError(
            f"run_sweep: {path.parent} must be new, empty or of a sweep that this one extends; it holds "
            "another, as its sweep.json says. Choose another --out."
        )


def _of_model(config: Config) -> dict[str, Any]:
    """The options but for those of the machine: a sweep may go on elsewhere."""
    values = dataclasses.asdict(config)
    return {name: value for name, value in values.items() if name not in _OF_THE_MACHINE}


def _standing(path: Path, config: Config) -> Row:
    """A run as it lies on the disk."""
    row = Row(path, config.resolved())
    if not (path / "config.json").exists():
        check_new_directory(path)
        return row
    try:
        there = Config.from_dict(read_json(path / "config.json"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"run_sweep: {path} must be a run of this sweep; {error}") from error
    for name, value in _of_model(row.config).items():
        # What is left open here was settled when the run began.
        if value is not None and getattr(there, name) != value:
            raise ValueError(
                f"run_sweep: {path} must be a run of this sweep; its {name} is {getattr(there, name)!r}, "
                f"not {value!r}. Move it away, or choose another --out."
            )
    from ..runs import is_finished

    if not is_finished(path):
        return row
    return dataclasses.replace(row, status="finished", metrics=read_json(path / "metrics.json"))
