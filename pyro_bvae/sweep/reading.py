"""What a sweep is, and the file that says it. No torch is imported here."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import Config

FORMAT = 1
MOST_RUNS = 10_000
_MOST_BYTES = 1_000_000
_LONGEST = 100  # letters of a run's name
_KEYS = ("format", "seeds", "config", "grid", "list")
_OPTIONS = tuple(Config.__dataclass_fields__)


@dataclass(frozen=True)
class Sweep:
    """Trainings that belong together.

    Attributes:
        configs: one for each run; no two alike.
        varied: the options that tell settings apart, besides the seed.

    Raises:
        ValueError: no run, more than 10,000, the same run twice, or a name that is no option.
    """

    configs: tuple[Config, ...]
    varied: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_count(len(self.configs))
        for name in self.varied:
            _check_option(name)
        seen = Counter(_canonical(config) for config in self.configs)
        for config in self.configs:
            if seen[_canonical(config)] > 1:
                raise ValueError(
                    f"Sweep: every run must occur once; got {describe(config, self.varied)} "
                    f"{seen[_canonical(config)]} times. Leave out all but one."
                )

    def names(self) -> list[str]:
        """A folder's name for each run: what is varied and the seed, in safe characters.

        Examples:
            >>> over_seeds(Config(), 2).names()
            ['seed-0', 'seed-1']
        """
        plain = [_name(config, self.varied) for config in self.configs]
        # Some file systems do not tell capitals apart.
        times = Counter(name.lower() for name in plain)
        return [
            name if times[name.lower()] == 1 and len(name) <= _LONGEST else _hashed(name, config)
            for name, config in zip(plain, self.configs, strict=True)
        ]


def over_seeds(config: Config, n: int) -> Sweep:
    """``n`` runs of one configuration, with its seed and those that follow.

    Examples:
        >>> [c.seed for c in over_seeds(Config(seed=3), 2).configs]
        [3, 4]

    Raises:
        ValueError, TypeError: ``n`` is not a whole number of at least 1, or makes too many runs.
    """
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"over_seeds: n must be a whole number; got {n!r}.")
    check_count(n)
    return Sweep(tuple(_replace(config, seed=config.seed + i) for i in range(n)))


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep from a TOML file.

    ``[config]`` holds what all runs share; ``[grid]`` lists of values, of which every combination is
    run; ``[[list]]``, in place of a grid, the options of one run each; ``seeds`` a number of seeds, from
    that of ``[config]`` on, or a list of them. A value takes the place of that of ``[config]``, whole
    tables such as ``prior_args`` included.

    Args:
        path: the file.

    Returns:
        The runs: settings in the order of the file, the seeds of each together.

    Raises:
        FileNotFoundError: no file there, or no data set of that name.
        ValueError, TypeError: it is no sweep, or a run's options are refused.
    """
    from ..datasets import find_loader

    path = Path(path)
    try:
        values = _parse(path)
        settings = _settings(values)
        check_count(len(settings) * _n_seeds(values.get("seeds", 1)))
        names = list(dict.fromkeys(name for setting in settings for name in setting))
        shared = values.get("config", {})
        configs = [_config(shared, {**s, **seed}) for s in settings for seed in _seeds(values, s)]
        for dataset in dict.fromkeys(config.dataset for config in configs):
            find_loader(dataset)
        return Sweep(tuple(configs), _varied(configs, names))
    except (ValueError, TypeError, FileNotFoundError) as error:
        # UnicodeDecodeError and its like take other arguments, but are reworded where they arise.
        raise type(error)(f"{path}: {error}") from error


def describe(config: Config, varied: Sequence[str]) -> str:
    """``beta 0.1, alpha 3, seed 0``: how a sentence names a run."""
    return ", ".join(f"{name} {text(getattr(config, name))}" for name in (*varied, "seed"))


def text(value: Any) -> str:
    """A value of an option as the file would have it."""
    if value is None:
        return "default"
    return value if isinstance(value, str) else json.dumps(value)


def _parse(path: Path) -> dict[str, Any]:
    """The file's tables, of known names and kinds."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    if not path.exists():
        raise FileNotFoundError("a sweep's file must be there; there is none. Check its name.")
    if not path.is_file():
        raise ValueError("a sweep must be a TOML file; this is none. Name the file.")
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(
            f"a sweep must be a TOML file of at most 1 MB; got {path.stat().st_size:,} bytes."
        )
    try:
        values = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # of TOML and of UTF-8 alike
        reason = str(error).rstrip(".") or "nested too deep"
        raise ValueError(f"a sweep must be TOML in UTF-8; {reason}.") from None
    for name in values:
        if name not in _KEYS:
            raise ValueError(_unknown_key(name))
    written = values.get("format", FORMAT)
    if isinstance(written, bool) or not isinstance(written, int) or not 1 <= written <= FORMAT:
        raise ValueError(
            f"format must be at most {FORMAT}; got {written!r}. A newer pyro_bvae reads newer ones."
        )
    for name in ("config", "grid"):
        if not isinstance(values.get(name, {}), dict):
            raise TypeError(
                f"{name} must be a table; got {values[name]!r}. Write [{name}] above it."
            )
    for name, value in values.get("config", {}).items():
        if name != "format":  # as config.json has it
            _check_option(name)
        if isinstance(value, list):
            raise TypeError(
                f"[config] {name} must be one value; got {value!r}. Write lists of them below [grid]."
            )
    return values


def _unknown_key(name: str) -> str:
    if name in _OPTIONS:
        hint = f" Write {name} below [config], or its values below [grid]."
    else:
        close = difflib.get_close_matches(name, _KEYS, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
    return f"a key must be one of {', '.join(_KEYS)}; got {name!r}.{hint}"


def _settings(values: dict[str, Any]) -> list[dict[str, Any]]:
    """What each setting changes, but for the seeds."""
    if "grid" in values and "list" in values:
        raise ValueError("[grid] and [[list]] exclude each other; got both. Keep one.")
    if "list" in values:
        return _listed(values["list"])
    grid = values.get("grid", {})
    for name, choices in grid.items():
        _check_option(name)
        if not isinstance(choices, list):
            like = f"[{choices}]" if isinstance(choices, (int, float)) else "[...]"
            raise TypeError(
                f"[grid] {name} must be a list of values; got {choices!r}. Write {name} = {like.lower()}."
            )
        if not choices:
            raise ValueError(f"[grid] {name} must hold at least one value; got []. Leave it out.")
    check_count(math.prod(map(len, grid.values())))
    return [dict(zip(grid, chosen, strict=True)) for chosen in itertools.product(*grid.values())]


def _listed(tables: Any) -> list[dict[str, Any]]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise TypeError(
            f"list must be tables of options; got {tables!r}. Write [[list]] above each."
        )
    if not tables:
        raise ValueError("list must hold at least one table; got []. Write [[list]] above each.")
    for table in tables:
        for name in table:
            _check_option(name)
    check_count(len(tables))
    return tables


def _n_seeds(seeds: Any) -> int:
    """How many a setting has."""
    if isinstance(seeds, list) and seeds:
        return len(seeds)
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise ValueError(
            f"seeds must be how many, at least 1, or a list of them; got {seeds!r}. Write seeds = 4."
        )
    return seeds


def _seeds(values: dict[str, Any], setting: dict[str, Any]) -> list[dict[str, Any]]:
    """What each of a setting's runs changes besides."""
    if "seeds" not in values:
        return [{}]
    seeds, given = values["seeds"], {**values.get("config", {}), **setting}
    if isinstance(seeds, list):
        if "seed" in given:
            raise ValueError("a list of seeds and seed exclude each other; got both. Keep one.")
        return [{"seed": seed} for seed in seeds]
    if "seed" in values.get("grid", {}):
        raise ValueError("seeds and seed of [grid] exclude each other; got both. Keep one.")
    first = given.get("seed", 0)
    if not isinstance(first, int):
        return [{}]  # Config says what is wrong with it
    return [{"seed": first + i} for i in range(seeds)]


def _config(shared: dict[str, Any], changed: dict[str, Any]) -> Config:
    """One run's configuration; a refusal names the run."""
    try:
        return Config.from_dict({**shared, **changed})
    except (ValueError, TypeError) as error:
        run = ", ".join(f"{name} {_shown(value)}" for name, value in changed.items())
        raise type(error)(f"the run of {run}: {error}" if run else str(error)) from error


def _shown(value: Any) -> str:
    try:
        return text(value)
    except (TypeError, ValueError):  # a date of TOML, which JSON does not have
        return str(value)


def _varied(configs: Sequence[Config], names: Iterable[str]) -> tuple[str, ...]:
    """Of ``names`` those that differ."""
    return tuple(
        name
        for name in names
        if name != "seed" and len({json.dumps(getattr(c, name)) for c in configs}) > 1
    )


def _check_option(name: str) -> None:
    if name not in _OPTIONS:
        Config.from_dict({name: None})  # raises, with the name it takes for the one meant


def check_count(n: int) -> None:
    """Refuse more runs than a sweep may have, before they are made."""
    if not 1 <= n <= MOST_RUNS:
        raise ValueError(
            f"Sweep: there must be 1 to {MOST_RUNS:,} runs; got {n:,}. Split it, or leave values out."
        )


def _replace(config: Config, **changed: Any) -> Config:
    return dataclasses.replace(config, **changed)


def _canonical(config: Config) -> str:
    """Text that is the same for configurations that train the same: 1 is 1.0, defaults are filled in."""
    values = json.dumps(config.resolved().to_dict())
    return json.dumps(json.loads(values, parse_int=float), sort_keys=True)


def _name(config: Config, varied: Sequence[str]) -> str:
    parts = [f"{name}-{text(getattr(config, name))}" for name in (*varied, "seed")]
    return "_".join(re.sub(r"[^A-Za-z0-9.+_]+", "-", part).strip("-") for part in parts)


def _hashed(name: str, config: Config) -> str:
    """Cut, and told apart by a digest."""
    digest = hashlib.sha256(_canonical(config).encode()).hexdigest()[:12]
    return f"{name[: _LONGEST - 13]}-{digest}"
