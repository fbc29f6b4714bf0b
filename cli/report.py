"""``pyro-bvae report``."""

from __future__ import annotations

from pathlib import Path

import click

from pyro_bvae.writing import check_run

from .errors import one_sentence
from .options import Place, examples, trust


@click.command(
    "report",
    epilog=examples(
        "report runs/spirals-mixture-1",
        "report runs/mnist-gaussian-1 runs/mnist-gaussian-2 --out both.html",
    ),
)
@click.argument("runs", metavar="RUN [RUN ...]", nargs=-1, required=True, type=Place())
@click.option(
    "--out",
    type=Place(),
    help="HTML file to write [default: RUN/report.html; ./report.html for several runs].",
)
@trust
def command(runs: tuple[str, ...], out: str | None, trust: bool) -> None:
    """Show trained RUNs in one HTML file: measures, curves, pictures, and a live traversal.

    Runs that differ only in their seed are averaged. The file stands alone and needs no network.
    """
    default = Path(runs[0]) / "report.html" if len(runs) == 1 else Path("report.html")
    with one_sentence():
        for run in runs:
            check_run(Path(run))
        from pyro_bvae.report import write_report
        from pyro_bvae.runs import load_run

        path = write_report(
            [load_run(run, trust=trust) for run in runs], Path(out) if out else default
        )
    click.echo(f"Wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
