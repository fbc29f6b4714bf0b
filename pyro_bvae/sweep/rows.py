"""The runs of a sweep as rows: sweep.csv, and means over them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import Config
from ..writing import replacing

_TEXTS = ("divergence_name",)  # which measure `divergence` is


@dataclass(frozen=True)
class Row:
    """One run of a sweep.

    Attributes:
        path: the run's directory.
        config: with the data set's defaults filled in.
        status: ``finished``, ``failed``, ``busy`` (another process trains it) or ``pending``.
        error: why it failed, as a sentence; else empty.
        metrics: contents of metrics.json once it is finished.
    """

    path: Path
    config: Config
    status: str = "pending"
    error: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)


def numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Every number of metrics.json by one name; scores and further divergences as ``scores.mig``."""
    from ..evaluation import measures

    flat = {
        name: value for name, value in metrics.items() if name != "format" and _is_number(value)
    }
    nested = {m.key: m.value for m in measures(metrics) if "." in m.key} if metrics else {}
    return flat | nested


def write_csv(rows: Sequence[Row], varied: Sequence[str], path: Path) -> None:
    """One line a run: where it lies, how it stands, its options and its numbers."""
    options = (*varied, "seed")
    found = [numbers(row.metrics) for row in rows]
    names = [n for n in dict.fromkeys(n for values in found for n in values) if n not in options]
    said = [text for text in _TEXTS if any(text in row.metrics for row in rows)]
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as opened,
    ):
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(["run", "status", "error", *options, *said, *names])
        for row, values in zip(rows, found, strict=True):
            settings = [_plain(getattr(row.config, name)) for name in options]
            where = row.path.relative_to(path.parent).as_posix()
            measured = [values.get(name) for name in names]
            kinds = [row.metrics.get(text) for text in said]
            writer.writerow([where, row.status, row.error, *settings, *kinds, *measured])


def mean_metrics(rows: Sequence[Row]) -> dict[str, Any]:
    """The metrics of one setting over its finished runs, in the shape of metrics.json.

    A number becomes its mean over the runs that have it, ``<name>_se`` the standard error of that
    mean: the standard deviation over runs, with n - 1, over the square root of n; of one run there is
    none. Where a run has NaN or infinity, so has the mean. Whole numbers, text and lists on which all
    runs agree stay as they are; other lists are averaged entry by entry; sentences of single runs,
    and the seed, are left out.

    Args:
        rows: of `run_sweep`; those that did not finish are passed over.

    Returns:
        As metrics.json, with ``runs``, the number averaged over; empty where none finished.
    """
    found = [row.metrics for row in rows if row.status == "finished"]
    if not found:
        return {}
    return {"runs": len(found), **_merged(found)}


def _merged(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    from ..report.tables import summarise

    out: dict[str, Any] = {}
    for name in dict.fromkeys(name for metrics in found for name in metrics):
        values = [metrics[name] for metrics in found if metrics.get(name) is not None]
        if (
            not values
            or name == "seed"
            or (name.endswith("_se") and any(name[:-3] in metrics for metrics in found))
        ):
            continue
        alike = all(value == values[0] for value in values)
        if all(isinstance(value, dict) for value in values):
            out[name] = _merged(values)
        elif alike and not isinstance(values[0], float):
            out[name] = values[0]
        elif all(_is_number(value) for value in values):
            mean, se, n = summarise([float(v) for v in values], None)
            # A run that came to no finite number is no run to leave out of the mean.
            out[name] = mean if n == len(values) else float(sum(values))
            if se is not None and n == len(values):
                out[f"{name}_se"] = se
        elif all(_is_list(value) and len(value) == len(values[0]) for value in values):
            out[name] = [sum(of_runs) / len(values) for of_runs in zip(*values, strict=True)]
    return out


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (dict, list)) else value


def sentence(error: BaseException) -> str:
    """An exception as one line, with its kind where that is not one a user is meant to mend."""
    said = re.sub(r"\s+", " ", str(error)).strip()
    meant = isinstance(error, (ValueError, TypeError, OSError, FloatingPointError))
    return said if meant and said else ": ".join(filter(None, (type(error).__name__, said)))
