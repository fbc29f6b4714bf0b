"""What an experiment's table needs of its runs, measured where it is not there yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..config import Config
from ..measuring import measure_baseline, measure_run
from ..recipes import Recipe
from ..report.tables import summarise
from ..runs import load_run
from ..sweep import Row
from ..sweep.rows import numbers
from ..writing import read_json

_LABELS = {
    "distortion": "distortion −E log p(x|z)", "log_px_z": "E log p(x|z)", "kl": "rate E KL",
    "elbo": "ELBO", "divergence": "D(q(z), p(z))", "hoyer": "Hoyer", "hoyer_null": "Hoyer of Gaussian codes",
    "hoyer_prior": "Hoyer of the prior", "sharpness_data": "sharpness of the data",
    "active_units": "active latents", "posterior_scale": "mean posterior σ",
    "scores.beta-vae-score": "BetaVAE score", "scores.factor-vae-score": "FactorVAE score",
    "scores.mig": "MIG",
}  # fmt: skip
_GIVES = {"aggregate": "overlap", "log-marginal": "log_marginal", "sharpness": "sharpness"}


def label(column: str) -> str:
    """What a column is called."""
    return _LABELS.get(column, column.removeprefix("scores.").replace("_", " "))


class Outcome(NamedTuple):
    """A row of the table: a setting, a baseline, or what others have published alone."""

    name: str
    config: Config | None  # of a setting
    runs: list[Path]
    numbers: list[dict[str, float]]  # by column, one a run

    def value(self, column: str) -> tuple[float, float | None] | None:
        """Mean over the runs and its standard error; None where some run has no finite value."""
        mean, se, n = summarise([run[column] for run in self.numbers if column in run], None)
        return (mean, se) if n == len(self.numbers) > 0 else None


def measure_experiment(
    recipe: Recipe, rows: Sequence[Row], on_measure: Callable[[str], None] | None = None
) -> list[Outcome]:
    """Measure the finished runs as ``recipe`` asks, and its baselines on the data of a setting.

    What was measured before stays, so that calling this again is how to go on.

    Args:
        recipe: of `read_recipe`.
        rows: of `run_sweep` for its `experiment_sweep`, all of them.
        on_measure: told what is measured next.

    Returns:
        Settings, baselines, and rows that only the publication has, in this order.
    """
    tell = on_measure or (lambda text: None)
    each = len(rows) // len(recipe.settings)
    groups = [
        [row for row in rows[i : i + each] if row.status == "finished"]
        for i in range(0, len(rows), each)
    ]
    found = []
    for name, done in zip(recipe.settings, groups, strict=True):
        measured = [_measured(recipe, row, f"{name}, {row.path.name}", tell) for row in done]
        config = done[0].config if done else recipe.settings[name]
        found.append(Outcome(name, config, [row.path for row in done], measured))
    first = next((group for group in groups if group), [])
    for name in recipe.baselines:
        measured = [_baseline(recipe, row, name, tell) for row in first]
        found.append(Outcome(name, None, [], measured))
    known = [outcome.name for outcome in found]
    others = [name for name in recipe.published or {} if name not in known]
    return found + [Outcome(name, None, [], []) for name in others]


def _measured(recipe: Recipe, row: Row, name: str, tell: Callable[[str], None]) -> dict[str, float]:
    path = row.path
    target = path / ("metrics.json" if recipe.on == "test" else f"metrics-on-{recipe.on}.json")
    metrics = read_json(target) if target.exists() else {}
    missing = [measure for measure in recipe.measures if not _has(metrics, measure)]
    if missing or not metrics:
        tell(name)
        run = load_run(path)
        metrics, _ = measure_run(
            path, _here(run.config, row), run.vae, on=recipe.on, measures=missing
        )
    return _numbers(metrics)


def _baseline(recipe: Recipe, row: Row, name: str, tell: Callable[[str], None]) -> dict[str, float]:
    path = row.path
    rows = "" if recipe.on == "test" else f"-on-{recipe.on}"
    target = path / f"metrics-baseline-{name}{rows}.json"
    metrics = read_json(target) if target.exists() else {}
    if not all(_has(metrics, measure) for measure in recipe.measures):
        tell(f"{name}, {path.name}")
        config = _here(load_run(path).config, row)
        metrics, _ = measure_baseline(path, config, name, on=recipe.on, measures=recipe.measures)
    return _numbers(metrics)


def _here(config: Config, row: Row) -> Config:
    """A run's configuration, with the data where they are now."""
    return dataclasses.replace(config, data_dir=row.config.data_dir or config.data_dir)


def _has(metrics: dict[str, Any], measure: str) -> bool:
    return measure in metrics.get("scores", {}) or _GIVES.get(measure) in metrics


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    found = numbers(metrics)
    if "log_px_z" in found:
        found["distortion"] = -found["log_px_z"]
    return found
