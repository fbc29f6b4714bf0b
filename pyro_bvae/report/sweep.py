"""A sweep as one HTML file: settings in a table, heat maps, and measures held against each other."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from .. import __version__
from ..config import flag
from ..evaluation import measures
from ..writing import replacing, write_text
from .charts import COLOURS, Point, scatter
from .tables import comparable, group, number, options, summarise

if TYPE_CHECKING:
    from ..sweep.rows import Row

_SHOWN = {
    "elbo": "ELBO", "kl": "KL, the rate", "log_px_z": "E log p(x|z)", "divergence": "D",
    "log_marginal": "log p(x)", "mutual_information": "I(x; z)", "total_correlation": "total correlation",
    "purity": "purity", "nmi": "NMI", "hoyer": "Hoyer sparsity", "active_units": "active latents",
}  # fmt: skip
_MOST_SETTINGS, _MOST_POINTS, _MOST_MAPS, _MOST_FAILED = 500, 2000, 8, 200
_MOST_CELLS = 900  # of a heat map

Key = tuple[str, str]  # of a measure: its key, and the kind of D where it is one


class Setting(NamedTuple):
    """Runs that differ only in their seed."""

    label: str
    values: list[str]  # of the varied options
    rows: list[Row]
    cells: dict[
        Key, tuple[float, float | None]
    ]  # mean over the finished runs, and its standard error

    @property
    def finished(self) -> list[Row]:
        return [row for row in self.rows if row.status == "finished"]


def settings(rows: Sequence[Row], varied: Sequence[str]) -> list[Setting]:
    """The settings in their order, each with the means of its finished runs."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        key = json.dumps(row.config.to_dict() | {"seed": 0}, sort_keys=True)
        found.setdefault(key, []).append(row)
    out = []
    for members in found.values():
        shown = [_text(getattr(members[0].config, name)) for name in varied]
        values = [_values(row) for row in members if row.status == "finished"]
        cells = {}
        for name in dict.fromkeys(name for run in values for name in run):
            got = [run[name] for run in values if name in run]
            mean, se, n = summarise(got, None)
            # a run that came to no finite number is not left out of the mean
            cells[name] = (mean, se) if n == len(got) else (math.nan, None)
        label = ", ".join(f"{n} {v}" for n, v in zip(varied, shown, strict=True)) or "all runs"
        out.append(Setting(label, shown, members, cells))
    return out


def measured(found: Sequence[Setting]) -> list[Key]:
    """What some run has, in the order of the page."""
    keys = dict.fromkeys(key for setting in found for key in setting.cells)
    order = [*_SHOWN]
    return sorted(keys, key=lambda k: order.index(k[0]) if k[0] in order else len(order))


def title(key: Key) -> str:
    """What a measure is called."""
    name, label = key
    return f"{_SHOWN[name]}, {label}" if name == "divergence" else _SHOWN.get(name, label)


def scores(keys: Sequence[Key]) -> list[Key]:
    """The measures of structure: scores against known factors, else clusters against classes."""
    known = [key for key in keys if key[0].startswith("scores.") and key[0].count(".") == 1]
    return known or [key for key in keys if key[0] in ("purity", "nmi")]


def write_sweep_report(rows: Sequence[Row], varied: Sequence[str], out: str | Path) -> Path:
    """Write one self-contained HTML file about a sweep, however many of its runs have finished.

    Args:
        rows: of `run_sweep`.
        varied: the options that tell settings apart, as in `Sweep`.
        out: the file.

    Returns:
        ``out``.
    """
    import jinja2
    from markupsafe import Markup

    folder = resources.files(__package__)
    page, css = [(folder / name).read_text("utf-8") for name in ("sweep.html", "page.css")]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    values = _context(rows, varied)
    for name in ("over", "against"):
        values[name] = [Markup(chart) for chart in values[name]]
    with replacing(Path(out)) as temporary:
        text = environment.from_string(page).render(values | {"css": Markup(css)})
        write_text(temporary, text)
    return Path(out)


def _context(rows: Sequence[Row], varied: Sequence[str]) -> dict[str, Any]:
    """Values of the template."""
    found = settings(rows, varied)
    keys = measured(found)
    finished = [row for row in rows if row.status == "finished"]
    colours, legend = _colours(found, varied)
    axes = _axes(rows, varied)
    groups = group(cast("Any", finished)) if finished else []  # a row has what of a run it reads
    maps = _maps(found, varied, axes, keys) if len(axes) == 2 else []
    return {
        "title": f"Sweep of {len(found)} settings" if len(found) > 1 else "Sweep over seeds",
        "lede": _lede(rows, found),
        "version": __version__,
        "comparable": not groups or comparable(groups),
        "varied": list(varied),
        "heads": [title(key) for key in keys],
        "settings": [_line(setting, keys) for setting in found[:_MOST_SETTINGS]],
        "left_out": max(0, len(found) - _MOST_SETTINGS),
        "maps": maps,
        "axes": axes,
        "over": _over(found, axes, keys, colours) if len(axes) == 1 else [],
        "against": _against(found, keys, colours),
        "thinned": len(finished) > _MOST_POINTS,
        "most_points": _MOST_POINTS,
        "legend": legend,
        "unfinished": [
            {"run": row.path.name, "status": row.status, "error": row.error[:1000]}
            for row in rows
            if row.status in ("failed", "busy")
        ][:_MOST_FAILED],
        "alike": [o for o in options(groups[:1])[1] if o.flag not in map(flag, varied)]
        if groups
        else [],
    }


def _lede(rows: Sequence[Row], found: Sequence[Setting]) -> str:
    data = " and ".join(sorted({Path(row.config.dataset).name for row in rows}))
    names = {"busy": "in the hands of another process", "pending": "to come"}
    counts = Counter(row.status for row in rows)
    order = ("finished", "failed", "busy", "pending")
    said = ", ".join(f"{counts[name]} {names.get(name, name)}" for name in order if counts[name])
    seeds = sorted({len(setting.rows) for setting in found})
    each = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    runs = "run" if each == "1" else "runs"
    return f"{data}: {each} {runs} of each setting, {len(rows)} in all: {said}."


def _line(setting: Setting, keys: Sequence[Key]) -> dict[str, Any]:
    done, whole = len(setting.finished), len(setting.rows)
    cells = [number(*setting.cells[key]) if key in setting.cells else "–" for key in keys]
    runs = f"{done}" if done == whole else f"{done} of {whole}"
    return {"values": setting.values, "runs": runs, "cells": cells}


def _values(row: Row) -> dict[Key, float]:
    """What the page shows of a run, by key; another D is another measure."""
    return {
        (m.key, m.label.rpartition("  ")[2] if m.key == "divergence" else m.label): m.value
        for m in measures(row.metrics)
        if m.key in _SHOWN or m.key.startswith("scores.")
    }


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}={_text(v)}" for k, v in value.items()) or "none"
    if value is None or isinstance(value, bool):
        return {None: "default", True: "yes", False: "no"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _numeric(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _axes(rows: Sequence[Row], varied: Sequence[str]) -> list[str]:
    """Alpha and beta where both vary, else the first two options whose values are numbers."""
    numeric = [n for n in varied if all(_numeric(getattr(row.config, n)) for row in rows)]
    return ["alpha", "beta"] if {"alpha", "beta"} <= set(numeric) else numeric[:2]


def _colours(
    found: Sequence[Setting], varied: Sequence[str]
) -> tuple[list[int], list[dict[str, Any]]]:
    """A colour for each setting, and the legend: by setting, or by one option where they are many."""
    labels = [setting.label for setting in found]
    if len(found) > COLOURS:
        columns = {name: [setting.values[i] for setting in found] for i, name in enumerate(varied)}
        few = [n for n, values in columns.items() if len(set(values)) <= COLOURS]
        labels = [f"{few[0]} {value}" for value in columns[few[0]]] if few else [""] * len(found)
    distinct = list(dict.fromkeys(labels))
    legend = [{"colour": i, "label": label} for i, label in enumerate(distinct)]
    return [distinct.index(label) for label in labels], legend if len(distinct) > 1 else []


def _compared(keys: Sequence[Key]) -> list[Key]:
    """The measures that stand for the rest."""
    return [key for key in keys if key[0] in ("elbo", "divergence")] + scores(keys)[:3]


def _maps(
    found: Sequence[Setting], varied: Sequence[str], axes: Sequence[str], keys: Sequence[Key]
) -> list[dict[str, Any]]:
    """Heat maps of each measure: the first axis down, the second across; one for each value of what
    else varies, all in the same colours."""
    rest = [i for i, name in enumerate(varied) if name not in axes]
    sides = [sorted({getattr(s.rows[0].config, axis) for s in found}) for axis in axes]
    if len(sides[0]) * len(sides[1]) > _MOST_CELLS:
        return []
    out = []
    for key in _compared(keys):
        parts: dict[str, dict[tuple[Any, ...], tuple[float, float | None]]] = {}
        for s in found:
            part = ", ".join(f"{varied[i]} {s.values[i]}" for i in rest)
            place = tuple(getattr(s.rows[0].config, axis) for axis in axes)
            parts.setdefault(part, {})[place] = s.cells.get(key, (math.nan, None))
        means = [mean for cells in parts.values() for mean, _ in cells.values()]
        means = [mean for mean in means if math.isfinite(mean)]
        tables = [
            {
                "of": part,
                "rows": [
                    {"head": _text(y), "cells": [_heat(cells.get((y, x)), means) for x in sides[1]]}
                    for y in sides[0]
                ],
            }
            for part, cells in parts.items()
        ]
        out.append(
            {
                "title": title(key),
                "log": _wide(means),
                "columns": [_text(x) for x in sides[1]],
                "tables": tables[:_MOST_MAPS],
                "left_out": len(tables[_MOST_MAPS:]),
            }
        )
    return out


def _heat(cell: tuple[float, float | None] | None, means: Sequence[float]) -> dict[str, Any]:
    """A cell's text, and how far its mean lies from the least to the largest, in percent."""
    if cell is None or not math.isfinite(cell[0]):
        return {"text": "–", "error": "", "heat": 0}
    value, _, error = number(*cell).partition(" ± ")
    place = math.log if _wide(means) else float
    low, high = place(min(means)), place(max(means))
    heat = 0.5 if high == low else (place(cell[0]) - low) / (high - low)
    return {"text": value, "error": error, "heat": round(60 * heat)}


def _wide(means: Sequence[float]) -> bool:
    """Whether only a logarithm tells the smaller ones apart."""
    return min(means, default=0) > 0 and max(means) > 30 * min(means)


def _points(
    found: Sequence[Setting], colours: Sequence[int]
) -> list[tuple[Row, dict[Key, float], int, str]]:
    """Each finished run with its measures, colour and name; of too many, evenly spaced ones."""
    every = [
        (row, colour, f"{setting.label}, seed {row.config.seed}")
        for setting, colour in zip(found, colours, strict=True)
        for row in setting.finished
    ]
    step = max(1, math.ceil(len(every) / _MOST_POINTS))
    return [(row, _values(row), colour, name) for row, colour, name in every[::step]]


def _over(
    found: Sequence[Setting], axes: Sequence[str], keys: Sequence[Key], colours: Sequence[int]
) -> list[str]:
    """Measures over the one option whose values are numbers."""
    runs, (axis,) = _points(found, colours), axes
    out = []
    for key in _compared(keys):
        x = [float(getattr(row.config, axis)) for row, *_ in runs]
        y = [values.get(key, math.nan) for _, values, *_ in runs]
        out.append(_scatter(runs, (x, axis), _scaled(y, title(key)), f"{title(key)} over {axis}"))
    return out


def _against(found: Sequence[Setting], keys: Sequence[Key], colours: Sequence[int]) -> list[str]:
    """Distortion over rate, then pairs of measures of which both move."""
    runs, first = _points(found, colours), {key[0]: key for key in keys}
    if not runs:
        return []
    every = {key: [values.get(key, math.nan) for _, values, *_ in runs] for key in keys}
    out = []
    if {"kl", "log_px_z"} <= set(first):
        rate = every[first["kl"]], "rate KL, nats"
        distortion = [-value for value in every[first["log_px_z"]]], "distortion, nats"
        out.append(_scatter(runs, rate, distortion, "Distortion over rate"))
    pairs = [("divergence", "elbo"), ("kl", "active_units"), ("kl", "divergence")]
    wanted = [(first[x], first[y]) for x, y in pairs if x in first and y in first]
    wanted += [(first["elbo"], key) for key in scores(keys)[:3] if "elbo" in first]
    for x, y in wanted:
        if all(len({v for v in every[key] if math.isfinite(v)}) > 1 for key in (x, y)):
            both = _scaled(every[x], title(x)), _scaled(every[y], title(y))
            out.append(_scatter(runs, *both, f"{title(y)} over {title(x)}"))
    return out


def _scaled(values: Sequence[float], name: str) -> tuple[list[float], str]:
    """The values of an axis, or their logarithm, and its name."""
    if _wide([value for value in values if math.isfinite(value)]):
        return [
            math.log10(value) if value > 0 else math.nan for value in values
        ], f"log10 of {name}"
    return list(values), name


def _scatter(
    runs: Sequence[tuple[Row, dict[Key, float], int, str]],
    x: tuple[Sequence[float], str],
    y: tuple[Sequence[float], str],
    name: str,
) -> str:
    points = [
        Point(a, b, colour, run)
        for a, b, (_, _, colour, run) in zip(x[0], y[0], runs, strict=True)
        if math.isfinite(a) and math.isfinite(b)
    ]
    return scatter(name, points, x[1], y[1]) if points else ""
