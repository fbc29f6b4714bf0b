"""The ``pyro-bvae`` command group; each command is imported when it is used."""

from __future__ import annotations

import importlib
import os
from typing import Any

import click

from pyro_bvae import __version__
from pyro_bvae.config import unknown

from .errors import one_usage_sentence
from .process import settle_streams

COMMANDS = {
    "train": "Train a model and see its numbers and pictures.",
    "sweep": "Train many models from one file, and set them side by side.",
    "reproduce": "Make a published experiment again, with its table and pictures.",
    "evaluate": "Measure a trained model, or codes of any library.",
    "report": "One page of a run, or of several side by side.",
    "traverse": "Move one latent at a time and see what changes.",
    "sample": "Draw from a trained model.",
    "export": "Write encoder and decoder as ONNX.",
    "list": "What can be chosen: data sets, priors, divergences, metrics, ...",
    "doctor": "Check this installation, its devices and its data.",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            if ctx.resilient_parsing:  # a shell asks for completions
                return None
            ctx.fail(unknown("a command", name, tuple(COMMANDS)))
        module = importlib.import_module(f".{'listing' if name == 'list' else name}", __package__)
        command: click.Command = module.command
        return command

    def main(self, *args: Any, **more: Any) -> Any:
        settle_streams()
        return super().main(*args, **more)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:  # asks for help, which click raises
            return super().parse_args(ctx, args)
        with one_usage_sentence():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with one_usage_sentence():
            try:
                os.getcwd()
            except FileNotFoundError:  # torch's libraries end the process there without a reason
                ctx.fail("The current folder must exist; it was deleted. Change to another one.")
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pyro-bvae")
def main() -> None:
    """Beta-VAEs and decomposition in Pyro: latents with a chosen overlap and a chosen structure.

    Start with:  pyro-bvae train --prior mixture --alpha 1
    """
