"""The pictures of an experiment: from its runs to arrays for `pyro_bvae.plots`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .. import plots
from ..build import load, make_transform
from ..evaluation import encode_data
from ..recipes import Recipe
from ..runs import load_run
from ..vae import evaluating, vae_device
from .measured import Outcome, label

_SHOWN = 8  # images of a row


def _compared(recipe: Recipe, outcomes: Sequence[Outcome]) -> Any:
    published = recipe.published or {}
    columns = [c for c in recipe.columns if any(c in cells for cells in published.values())]
    panels = {
        label(column): [(o.value(column), published.get(o.name, {}).get(column)) for o in outcomes]
        for column in columns
    }
    return plots.compared([outcome.name for outcome in outcomes], panels)


def _densities(recipe: Recipe, outcomes: Sequence[Outcome]) -> Any:
    """Of each setting the run whose first column is the median: the first may be the odd one out."""
    panels = []
    for outcome in _trained(outcomes):
        ranked = np.argsort([run.get(recipe.columns[0], np.nan) for run in outcome.numbers])
        run = load_run(outcome.runs[ranked[(len(ranked) - 1) // 2]])
        data = load(run.config)[recipe.on == "test"]
        with evaluating(run.vae, seed=0):
            codes = encode_data(run.vae, data, make_transform(run.config))
        name = f"{outcome.name}, seed {run.config.seed}" if len(ranked) > 1 else outcome.name
        panels.append((name, codes.loc.numpy(), codes.scale.numpy()))
    return plots.density_grid(panels, 4) if panels else None


def _reconstructions(recipe: Recipe, outcomes: Sequence[Outcome]) -> Any:
    rows: list[np.ndarray] = []
    names = []
    for outcome in _trained(outcomes):
        run = load_run(outcome.runs[0])
        with np.load(run.path / "examples.npz", allow_pickle=False) as examples:
            x, loc = examples["x"][:_SHOWN], examples["loc"][:_SHOWN]
            labels = examples["labels"][:_SHOWN] if run.vae.n_classes else None
        device = vae_device(run.vae)
        given = None if labels is None else torch.as_tensor(labels, device=device)
        with evaluating(run.vae):
            p_x = run.vae.p_x(torch.as_tensor(loc, device=device), given)
        if not rows:
            rows, names = [x], ["data"]
        elif not np.array_equal(x, rows[0]):  # of another seed, where an earlier one failed
            continue
        rows.append(p_x.mean.cpu().numpy())
        names.append(outcome.name)
    if not rows:
        return None
    return plots.traversals(np.stack(rows), names, title="held-out data and reconstructions")


def _against_alpha(recipe: Recipe, outcomes: Sequence[Outcome]) -> Any:
    """Hoyer with its nulls, E log p(x|z) and D against alpha, a line for each prior."""
    lines: dict[str, dict[float, Outcome]] = {}
    for outcome in _trained(outcomes):
        assert outcome.config is not None
        args = ", ".join(f"{k} {v}" for k, v in outcome.config.prior_args.items())
        lines.setdefault(args or outcome.config.prior, {})[outcome.config.alpha] = outcome
    panels: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for column in ("hoyer", "log_px_z", "divergence"):
        for name, by_alpha in lines.items():
            found = [(alpha, o.value(column)) for alpha, o in sorted(by_alpha.items())]
            # fewer than two latents that move have no sparsity
            if points := [(alpha, *_pair(value)) for alpha, value in found if value is not None]:
                panels.setdefault(label(column), {})[name] = points
    nulls = [
        (o.config.alpha, *_pair(value))
        for o in _trained(outcomes)
        if o.config is not None and (value := o.value("hoyer_null")) is not None
    ]
    # It hangs on how many latents move: one line for all only where all have as many.
    if nulls and np.ptp([value for _, value, _ in nulls]) < 0.005:
        panels.setdefault(label("hoyer"), {})[label("hoyer_null")] = sorted(nulls)
    return plots.against(panels, "α") if panels else None


def _score_against_distortion(recipe: Recipe, outcomes: Sequence[Outcome]) -> Any:
    names = "distortion", "scores.factor-vae-score"
    pairs = {o.name: _pairs(o, names) for o in _trained(outcomes)}
    points = [(name, found[0], found[1]) for name, found in pairs.items() if found]
    return plots.scores(points, *map(label, names)) if points else None


def _rate_distortion(recipe: Recipe, outcomes: Sequence[Outcome]) -> Any:
    points = []
    for outcome in _trained(outcomes):
        if pairs := _pairs(outcome, ("kl", "distortion")):
            (rate, rate_se), (distortion, se) = pairs
            points.append((outcome.name, rate, distortion, rate_se, se))
    return plots.rate_distortion(points, recipe.title) if points else None


def _trained(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.runs]


def _pair(value: tuple[float, float | None]) -> tuple[float, float]:
    """As plots take it: no error bar where there is no error."""
    return value[0], value[1] or 0.0


def _pairs(outcome: Outcome, names: Sequence[str]) -> list[tuple[float, float]]:
    """Of each column; none at all where one has no value."""
    found = [outcome.value(name) for name in names]
    return [_pair(value) for value in found if value is not None] if all(found) else []


FIGURES: dict[str, Callable[[Recipe, Sequence[Outcome]], Any]] = {
    "compared": _compared,
    "densities": _densities,
    "reconstructions": _reconstructions,
    "against-alpha": _against_alpha,
    "score-against-distortion": _score_against_distortion,
    "rate-distortion": _rate_distortion,
}
