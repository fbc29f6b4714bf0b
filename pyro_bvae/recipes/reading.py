"""From an experiment's TOML file to its configurations."""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ..config import Config, brief

SCALES = ("full", "small")


@dataclass(frozen=True)
class Recipe:
    """One experiment: its settings, and the table and pictures that are made of their runs.

    Attributes:
        name: the stem of its file.
        title: one line.
        cites: who published it, with address.
        cost: what it takes, at either scale.
        note: what a reader must know to compare ours with the published numbers.
        scale: ``"full"``, as published, or ``"small"``, reduced for two cores.
        settings: a configuration for each row of the table.
        seeds: runs of each.
        columns: keys of metrics.json, ``distortion`` (-E log p(x|z)) and ``scores.<metric>``.
        on: the rows they are measured on, ``"test"`` or ``"train"``.
        measures: what `pyro_bvae.evaluation.evaluate` adds to what every run has.
        baselines: rows of the table for codes that are not learned.
        figures: pictures of all settings.
        run_figures: pictures of single runs that are shown too, the first run of each setting.
        published: by row and column, a value and what stands after ±, or None; nats and shares, as ours.
    """

    name: str
    title: str
    cites: str
    cost: str
    note: str
    scale: str
    settings: dict[str, Config]
    seeds: int
    columns: tuple[str, ...]
    on: str = "test"
    measures: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    run_figures: tuple[str, ...] = ()
    published: dict[str, dict[str, tuple[float, float | None]]] | None = None


def recipe_names() -> list[str]:
    """All experiments.

    Examples:
        >>> "spirals-clustering" in recipe_names()
        True
    """
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in resources.files(__package__).iterdir()
        if entry.name.endswith(".toml")
    )


def read_recipe(name: str, scale: str = "full") -> Recipe:
    """The experiment ``name``.

    Raises:
        ValueError: no experiment or scale of that name.
    """
    if scale not in SCALES:
        raise ValueError(f"--scale must be one of {', '.join(SCALES)}; got {brief(scale)}.")
    values = _parse(name)
    small = values.pop("small", {})
    changed = small if scale == "small" else {}
    other = changed.pop("config", {})
    shared = values.pop("config", {})
    if "steps" in other:  # in the place of epochs
        shared.pop("epochs", None)
    shared |= other
    settings = values.pop("settings")
    kept = changed.pop("settings", list(settings))
    published = {
        row: {key: _value(entry) for key, entry in cells.items()}
        for row, cells in values.pop("published", {}).items()
    }
    lists = ("columns", "measures", "baselines", "figures", "run_figures")
    values |= changed
    values |= {key: tuple(values[key]) for key in lists if key in values}
    return Recipe(
        name=name,
        scale=scale,
        settings={row: Config.from_dict({**shared, **settings[row]}) for row in kept},
        published=published,
        **values,
    )


def read_setting(name: str) -> Config:
    """The configuration ``experiment/setting`` as published; an experiment's first where it names none.

    Examples:
        >>> read_setting("spirals-clustering/alpha-5").alpha
        5

    Raises:
        ValueError: no experiment or setting of that name.
    """
    experiment, slash, setting = name.partition("/")
    settings = read_recipe(experiment).settings
    if not slash:
        return next(iter(settings.values()))
    if setting not in settings:
        raise ValueError(_unknown(f"--recipe {experiment}/SETTING", setting, list(settings)))
    return settings[setting]


def _parse(name: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    if name not in recipe_names():
        raise ValueError(_unknown("an experiment", name, recipe_names()))
    text = (resources.files(__package__) / f"{name}.toml").read_text("utf-8")
    return tomllib.loads(text)


def _value(entry: float | list[float]) -> tuple[float, float | None]:
    """``76.72``, or ``[0.99, 0.01]`` for .99 ± .01."""
    return (entry[0], entry[1]) if isinstance(entry, list) else (entry, None)


def _unknown(what: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"{what} must be one of {', '.join(known)}; got {brief(name)}.{hint}"
