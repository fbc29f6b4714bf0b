"""Click options made from the fields of `Config`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import click

from pyro_bvae.config import Config, flag

_TYPES = {"int": int, "float": float, "str": str}


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Config)}
_CAPACITY = ("gamma", "capacity", "capacity_ramp", "penalty", "reduction")
# Who types one of the first has another objective in mind than the one the others belong to.
_OBJECTIVES = (
    (("gamma", "capacity"), ("beta", "alpha", "divergence", "beta_tc", "estimator")),
    (("beta_tc",), ("beta", "alpha", "divergence", "gamma", "capacity")),
)

trust = click.option(
    "--trust", is_flag=True, help="Import the code of one's own that the run names."
)


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for every field of `Config`, in its order."""
    for field in reversed(dataclasses.fields(Config)):
        command = _option(field)(command)
    return command


def _option(field: dataclasses.Field[Any]) -> Callable[..., Any]:
    kind = str(field.type).split(" ")[0]
    text = field.metadata["help"]
    choices = field.metadata["choices"]
    default = None if field.default is dataclasses.MISSING else field.default
    if choices and field.metadata["open"]:
        text += f" One of: {', '.join(choices)}."
    shown = f"{default:.3g}" if isinstance(default, float) else str(default)
    if default is not None and default is not False and "[default" not in text:
        text += f" [default: {shown}]"
    if field.name == "prior_args":
        return click.option(
            flag(field.name), field.name, multiple=True, metavar="KEY=VALUE", help=text
        )
    if kind == "bool":
        name = flag(field.name)
        both = f"{name}/--no-{name[2:]}" if default is None else name
        return click.option(both, field.name, is_flag=True, default=default, help=text)
    type_: Any = _TYPES[kind]
    if choices and not field.metadata["open"]:
        type_ = click.Choice(choices)
    return click.option(flag(field.name), field.name, type=type_, default=default, help=text)


def make_config(values: dict[str, Any]) -> Config:
    """The configuration of a command line's options."""
    values = dict(values)
    values["prior_args"] = dict(_pair(text) for text in values["prior_args"])
    return Config(**values)


def change_config(config: Config, typed: dict[str, Any]) -> Config:
    """``config`` with the options that were ``typed``; what they make meaningless goes."""
    values = dataclasses.asdict(config)
    if "steps" in typed or "epochs" in typed:
        values |= {"steps": None, "epochs": None}
    if typed.get("prior", config.prior) != config.prior:
        values["prior_args"] = {}
    for names, others in _OBJECTIVES:
        if any(name in typed for name in names):
            values |= {name: _DEFAULTS[name] for name in others}
    args = dict(_pair(text) for text in typed.pop("prior_args", ()))
    return Config(**{**values, **typed, "prior_args": values["prior_args"] | args})


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"--prior-arg must be KEY=VALUE; got {text!r}. For example df=5.")
    try:
        return name.replace("-", "_"), json.loads(value)
    except (ValueError, RecursionError):  # text, or a number or lists that nothing can hold
        return name.replace("-", "_"), value
