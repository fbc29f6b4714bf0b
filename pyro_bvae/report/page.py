"""Everything the page says in words, numbers and curves; its heavy parts are added elsewhere."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from .charts import COLOURS, Line, Point, curves, scatter, thin
from .tables import Column, Group, comparable, options, table

if TYPE_CHECKING:
    from ..runs import Run

_TERMS = {
    "log_px_z": ("E log p(x|z): how well x comes back", "nats"),
    "kl": ("KL(q(z|x) ‖ p(z)): the rate", "nats"),
    "elbo": ("ELBO: the first minus the second", "nats"),
    "divergence": ("D(q(z), p(z)): codes against prior", "D"),
    "beta": ("β, weight of the KL", ""),
    "alpha": ("α, weight of D", ""),
    "capacity": ("C, the KL aimed at", "nats"),
}
_SCHEDULED = ("beta", "alpha", "capacity")


def context(runs: Sequence[Run], groups: Sequence[Group]) -> dict[str, Any]:
    """Values of the template; ``runs`` have no pictures and no latent space yet."""
    columns, rows = table(groups)
    names = display_names(runs)
    of = {id(run): i for i, g in enumerate(groups) for run in g.runs}
    differ, alike, default = options(groups)
    together = comparable(groups)
    return {
        "title": _title(runs),
        "lede": _lede(runs, groups),
        "version": __version__,
        "groups": groups,
        "many": len(groups) > 1,
        "comparable": together,
        "notes": _notes(runs, names),
        "rows_measured": _rows_measured(runs),
        "other_rows": any(column.other_rows for column in columns),
        "errors": _errors(columns, groups),
        "columns": _heads(columns),
        "rows": rows,
        "charts": _charts(runs, names, of),
        "rate_distortion": _rate_distortion(runs, names, of)
        if together and len(groups) > 1
        else "",
        "differ": differ,
        "alike": alike,
        "default": default,
        "runs": [_entry(run, name) for run, name in zip(runs, names, strict=True)],
    }


def display_names(runs: Sequence[Run]) -> list[str]:
    """The shortest ends of the runs' paths that tell them apart."""
    parts = [run.path.resolve().parts for run in runs]
    shortest = 2 if len(runs) > 1 and all(p[-1].isdigit() for p in parts) else 1
    for depth in range(shortest, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names


def _title(runs: Sequence[Run]) -> str:
    datasets = " and ".join(sorted({Path(run.config.dataset).name for run in runs}))
    if len(runs) > 1:
        return f"{len(runs)} runs on {datasets}"
    return f"{datasets}, {runs[0].config.prior} prior"


def _lede(runs: Sequence[Run], groups: Sequence[Group]) -> str:
    c = groups[0].runs[0].config
    if len(groups) > 1:
        seeds = "; runs of one configuration differ only in their seed" * (len(runs) > len(groups))
        return f"{len(groups)} configurations side by side{seeds}."
    weights = f"β {c.beta:g}" + (f" and α {c.alpha:g}" if c.alpha else "")
    if c.gamma is not None:
        weights = f"γ {c.gamma:g} and C {c.capacity:g} nats"
    elif c.beta_tc is not None:
        weights = f"total correlation weighed {c.beta_tc:g} times"
    who = "One configuration with several seeds" if len(runs) > 1 else f"Run {runs[0].path.name}"
    labels = ", given the class label" if c.conditional else ""
    return f"{who}: {c.latent_dim} latents, network {c.network}, {weights}{labels}."


def _notes(runs: Sequence[Run], names: Sequence[str]) -> list[dict[str, str]]:
    """Sentences of `diagnose`; one that several runs share stands once. And seeds used twice."""
    said: dict[str, list[str]] = {}
    for run, name in zip(runs, names, strict=True):
        for sentence in run.metrics.get("diagnosis", []):
            said.setdefault(sentence, []).append(name)
    everyone = len(runs) > 1
    return [
        {"text": text, "of": (_some(by) if len(by) < len(runs) else "all runs") if everyone else ""}
        for text, by in said.items()
    ]


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 5 else f"{len(names)} runs"


def _rows_measured(runs: Sequence[Run]) -> str:
    counts = sorted({int(run.metrics["n"]) for run in runs})
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _errors(columns: Sequence[Column], groups: Sequence[Group]) -> str:
    several = any(len(column.per_run) > 1 for column in columns)
    text = "± is a standard error" + (
        ": over runs where a column has several, else over rows."
        if several
        else " over those rows."
    )
    twice = [
        (g.label, seed)
        for g in groups
        for seed, n in Counter(run.config.seed for run in g.runs).items()
        if n > 1
    ]
    if twice:
        seeds = ", ".join(f"{seed} ({label})" for label, seed in twice)
        text += f" Seeds that occur more than once, so that ± is too small: {seeds}."
    return text


def _heads(columns: Sequence[Column]) -> list[dict[str, Any]]:
    return [
        {
            "label": column.label,
            "baseline": column.baseline,
            "colour": column.group % COLOURS,
            "n": len(column.per_run),
        }
        for column in columns
    ]


def _charts(runs: Sequence[Run], names: Sequence[str], of: dict[int, int]) -> list[str]:
    """Every term that some run recorded, and every scheduled number that moved."""
    most = max(20, min(200, 4000 // len(runs)))
    out = []
    for key, (title, unit) in _TERMS.items():
        lines = []
        for run, name in zip(runs, names, strict=True):
            for field, dashed in ((key, False), (f"test_{key}", True)):
                x, y = _series(run.history, field)
                if len(x) == 0 or (key in _SCHEDULED and np.ptp(y) == 0):
                    continue
                text = f"{name}, {'held out' if dashed else 'training'}"
                lines.append(Line(*thin(x, y, most), of[id(run)], text, dashed))
        if lines:
            out.append(curves(title, lines, "step", unit))
    return out


def _series(history: Sequence[dict[str, Any]], key: str) -> tuple[Any, Any]:
    """Steps and values of the records where ``key`` is a finite number."""
    pairs = [(row.get("step"), row.get(key)) for row in history]
    both = np.array(pairs, float).reshape(-1, 2)  # None becomes NaN
    steps, values = both[np.isfinite(both).all(1)].T
    return steps, values


def _rate_distortion(runs: Sequence[Run], names: Sequence[str], of: dict[int, int]) -> str:
    points = [
        Point(run.metrics["kl"], -run.metrics["log_px_z"], of[id(run)], name)
        for run, name in zip(runs, names, strict=True)
    ]
    return scatter("Distortion over rate", points, "rate, nats", "distortion, nats")


def _entry(run: Run, name: str) -> dict[str, Any]:
    made, seconds = _environment(run), run.metrics.get("training_seconds")
    command = made.get("command")
    where = [str(made[key]) for key in ("gpu", "device") if made.get(key)][:1]
    torch_version = [f"torch {made['torch']}"] if made.get("torch") else []
    return {
        "name": name,
        "seed": run.config.seed,
        "seconds": "unknown" if seconds is None else f"{seconds:.1f} s",
        "machine": ", ".join(where + torch_version) or "unknown",
        "command": shlex.join(map(str, command)) if isinstance(command, list) else "unknown",
        "pictures": [],
        "no_pictures": "None were kept.",
        "json": "",
    }


def _environment(run: Run) -> dict[str, Any]:
    """environment.json, or nothing: it is for the record only."""
    try:
        found = json.loads((run.path / "environment.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
