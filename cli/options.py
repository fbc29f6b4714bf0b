"""Click options made from the fields of `Config`, and the layout of help."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any

import click

from pyro_bvae.config import DATASET_DEFAULTS, Config, flag, unknown

_TYPES = {"int": int, "float": float, "str": str}


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Config)}
_BY_DATASET = {name for defaults in DATASET_DEFAULTS.values() for name in defaults}
_COLUMN = 24  # of an option's name in help under headings; text beside a longer one begins below it
_CAPACITY = ("gamma", "capacity", "capacity_ramp", "penalty", "reduction")
# Who types one of the first has another objective in mind than the one the others belong to.
_OBJECTIVES = (
    (("gamma", "capacity"), ("beta", "alpha", "divergence", "beta_tc", "estimator")),
    (("beta_tc",), ("beta", "alpha", "divergence", "gamma", "capacity")),
)


class Place(click.Path):
    """A path; "~" is the user's home, also where a shell leaves it as it is: in --out=~/x."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:  # an empty variable of a shell, which would mean the current folder
            self.fail("it must name a path; got an empty text.", param, ctx)
        return super().convert(os.path.expanduser(value), param, ctx)


trust = click.option(
    "--trust", is_flag=True, help="Import the code of one's own that the run names."
)


class Sections(click.Command):
    """A command whose options stand under ``headings``, each of which begins at the option it names."""

    def __init__(self, *args: Any, headings: dict[str, str], **more: Any) -> None:
        super().__init__(*args, **more)
        self.headings = headings

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        starts = {first: heading for heading, first in self.headings.items()}
        heading = "Options"
        for option in self.get_params(ctx):
            heading = starts.get(str(option.name), heading)
            record = option.get_help_record(ctx)
            if record is not None:  # that of an argument
                name, text = record
                sections.setdefault(heading, []).append((f"{name:<{_COLUMN}}", text))
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records, col_max=_COLUMN)


def examples(*lines: str) -> str:
    """The end of a command's help: command lines, each without the program's name."""
    return "\b\nExamples:\n" + "\n".join(f"  pyro-bvae {line}" for line in lines)


def one_of(names: tuple[str, ...]) -> dict[str, Any]:
    """Settings of an option that takes one of ``names``; the refusal of another has the nearest."""

    def check(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
        if value is None or value in names:
            return value
        raise click.UsageError(unknown(option.opts[0], value, names), context)

    def complete(context: click.Context, option: click.Parameter, begun: str) -> list[str]:
        return [name for name in names if name.startswith(begun)]

    return {
        "metavar": f"[{'|'.join(names)}]", "callback": check, "shell_complete": complete,
    }  # fmt: skip


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
    if field.name in _BY_DATASET:
        text += " [default: by data set]"
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
    more: dict[str, Any] = {"metavar": "NAME"} if choices else {}
    if choices and not field.metadata["open"]:
        more = one_of(choices)
    return click.option(
        flag(field.name), field.name, type=_TYPES[kind], default=default, help=text, **more
    )


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
