"""The table of an experiment, ours beside the published, and the page it stands on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import Config
from ..figures.base import save_png
from ..recipes import Recipe, varied_options
from ..report.tables import number
from ..writing import read_json, replacing, write_text
from .measured import Outcome, label
from .pictures import FIGURES

_OF_THE_MACHINE = ("data_dir", "device", "download", "seed")
_OF_CAPACITY = ("capacity", "capacity_ramp", "penalty", "reduction")  # idle without gamma


def write_results(recipe: Recipe, outcomes: Sequence[Outcome], out: Path) -> Path:
    """Write the table and the pictures of an experiment.

    Args:
        recipe: of `read_recipe`.
        outcomes: of `measure_experiment`.
        out: the sweep's folder; pictures are written beside the page, as PNG.

    Returns:
        The page, ``out / "results.md"``.
    """
    pictures = []
    for name in recipe.figures:
        target = out / f"{name}.png"
        figure = FIGURES[name](recipe, outcomes)
        if figure is None:  # no run has what it shows
            continue
        with replacing(target) as temporary:
            save_png(figure, temporary)
        pictures.append((target.name, name.replace("-", " ")))
    for outcome in outcomes:
        for name in recipe.run_figures:
            source = outcome.runs[0] / "figures" / f"{name}.png" if outcome.runs else None
            if source is not None and source.exists():
                target = out / f"{outcome.name}-{name.replace('_', '-')}.png"
                with replacing(target) as temporary:
                    shutil.copyfile(source, temporary)
                pictures.append((target.name, f"{outcome.name}: {name.replace('_', ' ')}"))
    page = out / "results.md"
    with replacing(page) as temporary:
        write_text(temporary, _page(recipe, outcomes, pictures))
    return page


def results_table(recipe: Recipe, outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Head and lines: a row for each outcome, and after a column of ours the published one if there is any."""
    published = recipe.published or {}
    columns = [
        c
        for c in recipe.columns
        if any(o.value(c) or c in published.get(o.name, {}) for o in outcomes)
    ]
    beside = [c for c in columns if any(c in cells for cells in published.values())]
    head = ["", "runs"]
    for column in columns:
        head += [label(column), *(["published"] if column in beside else [])]
    lines = [head]
    for outcome in outcomes:
        ours = outcome.numbers or outcome.name in (*recipe.settings, *recipe.baselines)
        line = [outcome.name, str(len(outcome.numbers)) if ours else "not ours"]
        for column in columns:
            value = outcome.value(column)
            line.append("–" if value is None else number(*value))
            if column in beside:
                theirs = published.get(outcome.name, {}).get(column)
                line.append("–" if theirs is None else _as_published(*theirs))
        lines.append(line)
    return lines


def _as_published(value: float, error: float | None) -> str:
    """With the digits that it was published with, and no fewer."""
    return f"{value:.10g}" if error is None else f"{value:.10g} ± {error:.10g}"


def _page(recipe: Recipe, outcomes: Sequence[Outcome], pictures: Sequence[tuple[str, str]]) -> str:
    head, *lines = results_table(recipe, outcomes)
    table = [head, ["---"] * len(head), *lines]
    shown = [f"![{text}]({name})\n\n*{text}*\n" for name, text in pictures]
    seeds = max((len(outcome.runs) for outcome in outcomes), default=0)
    return "\n".join(
        [
            f"# {recipe.title}\n",
            f"{recipe.cites}\n",
            f"    pyro-bvae reproduce {recipe.name} --scale {recipe.scale} --seeds {seeds}\n",
            f"{_made(outcomes)}\n",
            f"{_settings(recipe)}\n",
            *("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table),
            "",
            f"{_error(seeds)}; nats per example, on the {recipe.on} rows.",
            f"{recipe.note.strip()}\n",
            *shown,
        ]
    )  # fmt: skip


def _error(seeds: int) -> str:
    if seeds > 1:
        return "Ours: means ± standard errors over seeds"
    return "Ours: one run a setting, so no standard errors"


def _made(outcomes: Sequence[Outcome]) -> str:
    """Where and when, and how long a run took."""
    runs = [path for outcome in outcomes for path in outcome.runs]
    if not runs:
        return "No run has finished."
    about = [read_json(path / "environment.json") for path in runs]
    seconds = [read_json(path / "metrics.json")["training_seconds"] for path in runs]
    parts = [each for one in about for each in (one, *one.get("resumed", []))]
    days = sorted({str(each["started"])[:10] for each in parts})
    where = {
        f"{each['gpu'] or each['device'] + ', threads: ' + str(each['threads'])}, torch {each['torch']}, "
        f"Pyro {each['pyro']}"
        for each in parts
    }
    return (
        f"Runs: {len(runs)}; seconds of training: {min(seconds):,.0f} to {max(seconds):,.0f} each; "
        f"on {' and on '.join(sorted(where))}; {' to '.join(dict.fromkeys((days[0], days[-1])))}."
    )


def _settings(recipe: Recipe) -> str:
    """What all settings share and is no default, then what each changes."""
    settings = recipe.settings
    varied = varied_options(settings.values())

    def said(config: Config, names: Sequence[str], default: Config | None) -> str:
        return ", ".join(
            f"{name} {_text(getattr(config, name))}"
            for name in names
            if getattr(config, name) not in (default and getattr(default, name), {})
            and (config.gamma is not None or name not in _OF_CAPACITY)
        )

    first = next(iter(settings.values()))
    names = [n for n in Config.__dataclass_fields__ if n not in (*varied, *_OF_THE_MACHINE)]
    rows = [
        f"- {row}: {said(config, varied, None) or 'as above'}" for row, config in settings.items()
    ]
    return f"Settings, all: {said(first, names, Config())}.\n\n" + "\n".join(rows)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={entry}" for key, entry in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
