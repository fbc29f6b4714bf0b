"""The runs of an experiment. No torch is imported here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from ..config import Config
from ..sweep import Sweep
from ..sweep.reading import check_count
from .reading import Recipe


def experiment_sweep(recipe: Recipe, seeds: int | None = None, **changed: Any) -> Sweep:
    """Every setting of ``recipe`` under seeds 0, 1, ...; those of one setting follow each other.

    Args:
        recipe: of `read_recipe`.
        seeds: how many; None for as many as the recipe says.
        changed: options of all runs that hang on the machine: data_dir, device, download.

    Raises:
        ValueError, TypeError: ``seeds`` is not a whole number of at least 1, or makes too many runs.
    """
    n = recipe.seeds if seeds is None else seeds
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"--seeds must be a whole number; got {n!r}.")
    if n < 1:
        raise ValueError(f"--seeds must be at least 1; got {n}.")
    check_count(n * len(recipe.settings))
    settings = [dataclasses.replace(c, **changed) for c in recipe.settings.values()]
    configs = (dataclasses.replace(c, seed=c.seed + i) for c in settings for i in range(n))
    return Sweep(tuple(configs), varied_options(settings))


def varied_options(configs: Iterable[Config]) -> tuple[str, ...]:
    """The options that are not the same everywhere, but for the seed."""
    values = [config.to_dict() for config in configs]
    return tuple(
        name
        for name in Config.__dataclass_fields__
        if name != "seed" and len({json.dumps(each[name]) for each in values}) > 1
    )
