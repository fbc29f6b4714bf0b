"""Runs side by side: groups that differ only in their seed, their measures and their options."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..config import Config, flag
from ..evaluation import Measure, measures

if TYPE_CHECKING:
    from ..runs import Run

_MALFORMED = (AttributeError, KeyError, TypeError, ValueError)
_NOT_OF_THE_MODEL = ("seed", "data_dir", "device", "download")
_COUNT = re.compile(r"of \d+")  # a note that belongs behind its number
_NATS = {
    "log_px_z", "kl", "elbo", "log_marginal", "mutual_information", "aggregate_kl",
    "total_correlation", "dimension_wise_kl", "gaussian_total_correlation",
}  # fmt: skip
_MEANING = {
    "log_px_z": "how well the decoder explains x from its code; higher is better",
    "kl": "how much a code says about its x; lower is a shorter code",
    "elbo": "the two together: a lower bound; higher is better",
    "log_marginal": "a tighter bound; higher is better",
    "divergence": "how far all codes together are from the prior; 0 where they match",
    "mutual_information": "how much of the rate tells one x from another",
    "aggregate_kl": "the rest of the rate: how far all codes together are from the prior",
    "total_correlation": "how dependent the latents are; 0 where they are independent",
    "purity": "share of rows whose component belongs to their class; 1 is best",
    "components_used": "components of the prior that hold at least 1 % of the rows",
    "nmi": "agreement of components and classes; 1 is best",
    "ari": "agreement of components and classes, 0 by chance; 1 is best",
    "silhouette": "how far apart the components' codes lie; 1 is best",
    "active_units": "latents that carry anything",
    "hoyer": "0 where all latents are alike, 1 where one is in use",
    "sharpness": "higher is sharper",
}


_LONGEST = 60
"""Letters of a heading: a longer list of options gives way to the runs' names."""


class Group(NamedTuple):
    """Runs that differ only in their seed (or where they ran)."""

    label: str
    runs: list[Run]


class Column(NamedTuple):
    """A column of the table: a group's model or a baseline, on its held-out rows or on others."""

    label: str
    group: int
    baseline: bool
    other_rows: bool
    per_run: list[dict[tuple[str, str], Measure]]


class Cell(NamedTuple):
    """A value with its standard error: over runs where there are several, else over rows."""

    text: str
    note: str


class Row(NamedTuple):
    """One measure over all columns."""

    label: str
    unit: str
    meaning: str
    note: str
    cells: list[Cell]


class Option(NamedTuple):
    """One option of the configuration: a single value, or one for each group."""

    flag: str
    help: str
    values: list[str]


def group(runs: Sequence[Run]) -> list[Group]:
    """The runs by configuration, in the order given, each group named by the options that differ."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(json.dumps(_options(run), sort_keys=True), []).append(run)
    groups = list(found.values())
    differing = _differing(groups)
    labels = [_label(members[0], differing, unset=False) for members in groups]
    if len(groups) > 1 and (not all(labels) or len(set(labels)) < len(labels)):
        labels = [_label(members[0], differing, unset=True) for members in groups]
    if max(map(len, labels)) > _LONGEST:  # of other data, say: the options follow in a table
        labels = [_named(members) for members in groups]
    return [
        Group(label or ("this run" if len(members) == 1 else f"{len(members)} runs"), members)
        for label, members in zip(labels, groups, strict=True)
    ]


def check_metrics(run: Run) -> None:
    """Refuse a run whose metrics.json does not hold what the page needs.

    Raises:
        FileNotFoundError: there is none.
        ValueError: something is missing in it, or is not a number.
    """
    reason = _unusable(run.metrics)
    if reason:
        raise ValueError(
            f"report: {run.path / 'metrics.json'} must hold the measures of a run; got {reason}. "
            f"Measure it again: pyro-bvae evaluate {run.path}"
        )


def _unusable(metrics: dict[str, Any]) -> str:
    for key in ("n", "kl", "log_px_z"):
        if not isinstance(metrics.get(key), (int, float)):
            return f"no number {key!r}"
    try:
        measures(metrics)
    except _MALFORMED as error:
        return f"{type(error).__name__}: {error}"
    return ""


def table(groups: Sequence[Group]) -> tuple[list[Column], list[Row]]:
    """Every measure of every group: mean and standard error over its runs."""
    columns = [c for i in range(len(groups)) for c in _columns(groups, i)]
    keys: dict[tuple[str, str], Measure] = {}
    for column in columns:
        for found in column.per_run:
            for key, measure in found.items():
                keys.setdefault(key, measure)
    return columns, [_row(key, columns) for key in _in_order(list(keys), columns)]


def summarise(values: Sequence[float], se: float | None) -> tuple[float, float | None, int]:
    """Mean of the finite ``values``, its standard error, and how many there are.

    The standard error is that over ``values``, with n - 1. A value given alone has ``se``, its own; one
    left over of several has none, as it would be no error over runs.
    """
    finite = np.asarray([v for v in values if v is not None and math.isfinite(v)], float)
    if len(finite) == 0:
        return math.nan, None, 0
    if len(finite) == 1:
        return float(finite[0]), se if len(values) == 1 else None, 1
    return float(finite.mean()), float(finite.std(ddof=1) / math.sqrt(len(finite))), len(finite)


def number(value: float, se: float | None) -> str:
    """``value ± se`` to the two leading digits of the error; four digits where there is none.

    Examples:
        >>> number(1.88996, 0.0494), number(0.979793, 9e-6), number(-147.357, None)
        ('1.890 ± 0.049', '0.9798 ± <0.0001', '-147.4')
    """
    if not math.isfinite(value):
        return "–"
    if se is None or not math.isfinite(se) or se <= 0:
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    most = 4 if abs(value) >= 0.01 else 6
    decimals = min(most, max(0, 1 - math.floor(math.log10(se))))
    least = 10**-decimals
    error = f"<{least:.{decimals}f}" if se < least / 2 else f"{se:.{decimals}f}"
    return f"{value:.{decimals}f} ± {error}"


def options(groups: Sequence[Group]) -> tuple[list[Option], list[Option], list[Option]]:
    """Options that differ between the groups, those set alike in all, and those left at default."""
    differ, alike, default = [], [], []
    firsts = [g.runs[0].config for g in groups]
    defaults = [Config(dataset=config.dataset).resolved() for config in firsts]
    for name, field in Config.__dataclass_fields__.items():
        if name in _NOT_OF_THE_MODEL:
            continue
        values = [getattr(config, name) for config in firsts]
        texts = [_text(value) for value in values]
        option = Option(flag(name), field.metadata["help"], texts)
        usual = [getattr(config, name) for config in defaults]
        if len({json.dumps(value) for value in values}) > 1:
            differ.append(option)
        elif values == usual and name != "dataset":
            default.append(option._replace(values=texts[:1]))
        else:
            alike.append(option._replace(values=texts[:1]))
    return differ, alike, default


def comparable(groups: Sequence[Group]) -> bool:
    """Whether nats of one group can be held against another's: the same data and likelihood."""
    names = ("dataset", "image_size", "binarize", "likelihood", "likelihood_scale", "conditional")
    return len({json.dumps([getattr(g.runs[0].config, n) for n in names]) for g in groups}) == 1


def _options(run: Run) -> dict[str, Any]:
    values = run.config.to_dict()
    return {name: value for name, value in values.items() if name not in _NOT_OF_THE_MODEL}


def _differing(groups: Sequence[list[Run]]) -> list[str]:
    every = [_options(members[0]) for members in groups]
    return [name for name in every[0] if len({json.dumps(o.get(name)) for o in every}) > 1]


def _label(run: Run, names: Sequence[str], unset: bool) -> str:
    """``prior mixture, spike_weight=0.8, alpha 1``; what is not set only where ``unset``."""
    values = _options(run)
    parts = []
    for name in names:
        if not unset and values[name] in (None, {}):
            continue
        bare = name == "prior_args" and values[name]
        parts.append(_text(values[name]) if bare else f"{name} {_text(values[name])}")
    return ", ".join(parts)


def _named(members: Sequence[Run]) -> str:
    more = f" and {len(members) - 1} more" if len(members) > 1 else ""
    return members[0].path.name + more


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{k}={_text(v)}" for k, v in value.items()) or "none"
    return str(value)


def _columns(groups: Sequence[Group], index: int) -> list[Column]:
    """A group's own column, those of its model on other rows, and those of each baseline."""
    g, many = groups[index], len(groups) > 1
    own = [_keyed(run.metrics) for run in g.runs]
    columns = [Column(g.label if many else "this model", index, False, False, own)]
    besides = [_besides(run) for run in g.runs]
    every = {pair for found in besides for pair in found}
    pairs = sorted(every, key=lambda pair: (pair[0], pair[1] != "test", pair[1]))
    names = {on: Path(on).name for _, on in pairs}
    for baseline, on in pairs:
        name = names[on] if list(names.values()).count(names[on]) == 1 else on
        words = [f"baseline {baseline}" if baseline else "", f"on {name}" if on != "test" else ""]
        label = " ".join(filter(None, words)) + (f" ({g.label})" if many else "")
        found = [f[baseline, on] for f in besides if (baseline, on) in f]
        columns.append(Column(label, index, bool(baseline), on != "test", found))
    return columns


def _besides(run: Run) -> dict[tuple[str, str], dict[tuple[str, str], Measure]]:
    """What `measure_run` and `measure_baseline` wrote, by baseline ("" for the model) and rows."""
    out: dict[tuple[str, str], dict[tuple[str, str], Measure]] = {}
    for path in sorted(run.path.glob("metrics-*.json")):
        try:
            found = json.loads(path.read_text())
            # A file of another origin has no format of ours.
            if isinstance(found, dict) and type(found.get("format")) is int:
                pair = str(found.get("baseline") or ""), str(found["on"])
                out.setdefault(pair, _keyed(found))
        except (OSError, *_MALFORMED) as error:
            raise ValueError(
                f"report: {path} must be JSON that evaluate wrote; {type(error).__name__}: {error}. "
                "Restore or delete it."
            ) from error
    return out


def _keyed(metrics: dict[str, Any]) -> dict[tuple[str, str], Measure]:
    # Under one key the label may name another quantity, as D of another kind: a row of its own.
    return {(measure.key, measure.label): measure for measure in measures(metrics)}


def _in_order(keys: list[tuple[str, str]], columns: Sequence[Column]) -> list[tuple[str, str]]:
    """By place in the fullest run, so that rows only others have come where they belong: after
    their neighbours of the same key, else last."""
    fullest = max((list(f) for c in columns for f in c.per_run), key=len, default=[])
    place = {key: i for i, key in enumerate(fullest)}
    by_name = {key[0]: i for key, i in place.items()}
    return sorted(keys, key=lambda key: place.get(key, by_name.get(key[0], len(place)) + 0.5))


def _row(key: tuple[str, str], columns: Sequence[Column]) -> Row:
    found = [[f.get(key) for f in c.per_run] for c in columns]
    notes = [{m.note for m in cell if m and m.note} for cell in found]
    counts = [{note for note in own if _COUNT.fullmatch(note)} for own in notes]
    notes = [own - count for own, count in zip(notes, counts, strict=True)]
    bare = any(m and not m.note for cell in found for m in cell)
    shared = [] if bare else _common({note for own in notes for note in own})
    cells = []
    for cell, own, count in zip(found, notes, counts, strict=True):
        values = [m.value if m else math.nan for m in cell]
        value, se, n = summarise(values, cell[0].se if cell[0] else None)
        text = " ".join([number(value, se), *sorted(count)[:1]])
        if 0 < n < len(cell):
            text += f" ({n} of {len(cell)} runs)"
        said = _common(own)
        left = "; ".join(part for part in said if part not in shared)
        cells.append(Cell(text, left if said or not own else "by run"))
    name, label = key
    unit = "nats" if name in _NATS or (name.startswith("diverg") and "mmd" not in label) else ""
    meaning = _MEANING.get(name, "")
    return Row(" ".join(label.split()), unit, meaning, "; ".join(shared), cells)


def _common(notes: set[str]) -> list[str]:
    """The parts, between semicolons, that all ``notes`` share."""
    parts = [note.split("; ") for note in sorted(notes)]
    return [part for part in parts[0] if all(part in others for others in parts)] if parts else []
