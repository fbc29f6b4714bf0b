"""``pyro-bvae sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .errors import fail, one_line_notes, one_sentence
from .options import Place, examples, trust
from .process import Signals, choose_threads, tune_allocator
from .table import echo_table


@click.command("sweep", epilog=examples("sweep sweep.toml --jobs 4", "sweep sweep.toml --dry-run"))
@click.argument("file", metavar="SWEEP.toml", type=Place())
@click.option("--out", type=Place(), help="Folder of the runs [default: runs/<name of the file>].")
@click.option("--jobs", type=int, default=1, help="Processes; -1 for one per core. [default: 1]")
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="How often a run whose process dies is taken up again.",
)
@trust
@click.option("--dry-run", is_flag=True, help="List the runs and how they stand; train none.")
def command(
    file: str, out: str | None, jobs: int, retries: int, trust: bool, dry_run: bool
) -> None:
    """Train every run that SWEEP.toml names, and set them side by side.

    The same command goes on after an interruption: finished runs are left as they are, others go on
    from their checkpoint. OUT/sweep.csv holds every number, OUT/sweep.html shows them.

    \b
    seeds = 4            # of each setting; or a list, [0, 3, 5]
    [config]             # what all runs share: options of train, with _ for -
    dataset = "spirals"
    prior = "mixture"
    [grid]               # every combination; or [[list]], options of one run
    alpha = [0, 1, 3]
    beta = [0.1, 1.0]
    """
    folder = Path(out) if out else Path("runs") / Path(file).stem
    with one_sentence():
        # What needs no torch is refused before the seconds that importing it takes.
        from pyro_bvae.sweep import read_sweep
        from pyro_bvae.sweep.running import check, plan

        sweep = read_sweep(file)
        check(sweep, jobs, retries, trust or dry_run)
        rows = plan(sweep, folder)
    if dry_run:
        _list(rows)
        return
    tune_allocator()
    networks = {config.resolved().network for config in sweep.configs}
    if jobs == 1 and len(networks) == 1:
        choose_threads(networks.pop())
    _exit(run(sweep, folder, rows, jobs=jobs, retries=retries, trust=trust))


def _exit(rows: list[Any]) -> None:
    """With 1 where a run is missing."""
    if any(row.status != "finished" for row in rows):
        raise SystemExit(1)


def train_seeds(config: Any, n: int, out: str | None, jobs: int, trust: bool) -> None:
    """The smallest sweep: a configuration under ``n`` seeds, their means on the terminal."""
    from pyro_bvae.sweep import over_seeds
    from pyro_bvae.sweep.running import check, free_folder, plan

    prior = config.prior.replace(":", "-").replace(".", "-")
    stem = f"{Path(config.dataset).stem or 'data'}-{prior}-seeds"
    with one_sentence():
        sweep = over_seeds(config, n)
        check(sweep, jobs, 2, trust)
        folder = Path(out) if out else free_folder(sweep, Path("runs") / stem)
        rows = plan(sweep, folder)
    _exit(run(sweep, folder, rows, jobs=jobs, retries=2, trust=trust))


def _list(rows: list[Any]) -> None:
    width = max(len(row.path.name) for row in rows)
    for row in rows:
        begun = row.status == "pending" and (row.path / "config.json").exists()
        click.echo(f"{row.path.name:<{width}}  {'begun' if begun else row.status}")
    done = sum(row.status == "finished" for row in rows)
    click.echo(f"{len(rows)} runs: {done} finished, {len(rows) - done} to train.")


def run(sweep: Any, folder: Path, before: list[Any], **how: Any) -> list[Any]:
    """Train what is not finished, and tell of each run and of them all."""
    from pyro_bvae.sweep import run_sweep

    skipped = sum(row.status == "finished" for row in before)
    left, ended = len(before) - skipped, 0
    width = max(len(row.path.name) for row in before)

    def tell(row: Any) -> None:
        nonlocal ended
        ended += 1
        said = f"ELBO {row.metrics['elbo']:.2f}" if row.metrics else row.error
        click.echo(f"[{ended}/{left}] {row.path.name:<{width}}  {row.status}: {said}", err=True)

    click.echo(f"{left} runs to train, {skipped} finished before.", err=True)
    signals = Signals()
    try:
        with signals, one_sentence(), one_line_notes():
            rows = run_sweep(sweep, folder, on_run=tell, **how)
    except KeyboardInterrupt:
        fail(
            f"Interrupted. {folder} keeps what was trained; the same command goes on from there.",
            signals.code,
        )
    _summary(rows, sweep.varied, folder, skipped)
    return list(rows)


def _summary(rows: list[Any], varied: tuple[str, ...], folder: Path, skipped: int) -> None:
    counts = {s: sum(row.status == s for row in rows) for s in ("finished", "failed", "busy")}
    before = f" ({skipped} before)" if skipped else ""
    others = "".join(
        f", {n} {status}" for status, n in counts.items() if status != "finished" and n
    )
    click.echo(f"\n{counts['finished']} of {len(rows)} runs finished{before}{others}.")
    if varied or not counts["finished"]:
        _table(rows, varied)
    else:
        from pyro_bvae.sweep import mean_metrics

        click.echo("Held-out, nats per example, mean +- s.e. over seeds:")
        echo_table(mean_metrics(rows))
    for row in rows:
        if row.status in ("failed", "busy"):
            click.echo(f"{row.path.name}: {row.error}", err=True)
    click.echo(f"Runs: {folder}; numbers: {folder / 'sweep.csv'}; look at {folder / 'sweep.html'}")


def _table(rows: list[Any], varied: tuple[str, ...]) -> None:
    """A line for each setting: means over its seeds."""
    from pyro_bvae.report.sweep import measured, scores, settings, title
    from pyro_bvae.report.tables import number

    found = settings(rows, varied)
    keys = measured(found)
    shown = [key for key in keys if key[0] in ("elbo", "kl", "divergence")] + scores(keys)[:1]
    lines = [[*varied, "runs", *map(title, shown)]]
    for setting in found:
        cells = [number(*setting.cells[k]) if k in setting.cells else "-" for k in shown]
        lines.append([*setting.values, str(len(setting.finished)), *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  " + "  ".join(padded).replace("±", "+-").replace("–", "-").rstrip())
