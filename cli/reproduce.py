"""``pyro-bvae reproduce``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import click

from pyro_bvae.recipes import SCALES

from .errors import fail, one_line_notes, one_sentence
from .options import Place, examples, one_of
from .process import Signals, choose_threads, tune_allocator


@click.command(
    "reproduce",
    epilog=examples(
        "reproduce spirals-clustering --jobs 2",
        "reproduce mnist-objectives --scale small --seeds 3",
    ),
)
@click.argument("experiment")
@click.option(
    "--scale",
    **one_of(SCALES),
    default="full",
    help="full as published, small for two cores. [default: full]",
)
@click.option("--seeds", type=int, help="Runs of each setting [default: the recipe's].")
@click.option("--jobs", type=int, default=1, help="Processes; -1 for one per core. [default: 1]")
@click.option("--out", type=Place(), help="Folder of the runs [default: runs/EXPERIMENT-SCALE].")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="cpu, cuda, cuda:1, ...; auto takes CUDA where there is one.",
)
@click.option(
    "--data-dir",
    type=Place(),
    help="Folder holding the data sets, for those that lie in files [default: $PYRO_BVAE_DATA, else ./data].",
)
@click.option(
    "--download",
    is_flag=True,
    help="Fetch the data set into the data folder where it is missing, and where its source allows it.",
)
def command(
    experiment: str,
    scale: str,
    seeds: int | None,
    jobs: int,
    out: str | None,
    device: str,
    data_dir: str | None,
    download: bool,
) -> None:
    """Make a published EXPERIMENT again: train its settings, measure them, and set ours beside the published.

    pyro-bvae list recipes names them all, with their cost. It is a sweep: the same command goes on after an
    interruption. OUT/results.md has the table and the pictures.
    """
    with one_sentence():
        # What needs no torch is refused before the seconds that importing it takes.
        from pyro_bvae.datasets import find_loader
        from pyro_bvae.recipes import experiment_sweep, read_recipe
        from pyro_bvae.sweep.running import check, plan

        recipe = read_recipe(experiment, scale)
        _, loader = find_loader(next(iter(recipe.settings.values())).dataset)
        given = {"data_dir": data_dir, "download": download}
        # The recipe chose the data: one line of options serves those made or drawn here too.
        taken = {k: given[k] for k in given if k in inspect.signature(loader).parameters}
        sweep = experiment_sweep(recipe, seeds, device=device, **taken)
        check(sweep, jobs, 2, False)
        folder = Path(out) if out else Path("runs") / f"{experiment}-{scale}"
        before = plan(sweep, folder)
    click.echo(f"{recipe.title}\n{recipe.cites}\nCost: {recipe.cost}.", err=True)
    tune_allocator()
    if jobs == 1:
        choose_threads(sweep.configs[0].resolved().network)
    if any(row.status != "finished" for row in before):
        with one_sentence():
            from pyro_bvae.build import load
            from pyro_bvae.device import choose_device

            choose_device(device)
            load(sweep.configs[0])  # absent or damaged data are said once, before any run
    from .sweep import run

    rows = run(sweep, folder, before, jobs=jobs, retries=2)
    _results(recipe, rows, folder)
    if any(row.status != "finished" for row in rows):
        raise SystemExit(1)


def _results(recipe: Any, rows: list[Any], folder: Path) -> None:
    from pyro_bvae.reproduce import measure_experiment, results_table, write_results

    def tell(text: str) -> None:
        click.echo(f"Measuring {text} ...", err=True)

    signals = Signals()
    try:
        with signals, one_sentence(), one_line_notes():
            outcomes = measure_experiment(recipe, rows, tell)
            page = write_results(recipe, outcomes, folder)
    except KeyboardInterrupt:
        fail(
            f"Interrupted. {folder} keeps what was measured; the same command goes on from there.",
            signals.code,
        )
    lines = results_table(recipe, outcomes)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    click.echo()
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  " + "  ".join(padded).rstrip())
    click.echo(f"Results: {page}")
