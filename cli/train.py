"""``pyro-bvae train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .errors import INTERRUPTED, fail, one_line_notes, one_sentence
from .options import config_options, make_config
from .process import choose_threads, tune_allocator
from .table import echo_table


@click.command("train")
@config_options
@click.option("--out", type=click.Path(), help="Run directory [default: runs/DATASET-PRIOR-N].")
@click.option(
    "--report/--no-report",
    default=True,
    help="Write RUN/report.html at the end, where its decoder can run in the page (2 M weights).",
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(out: str | None, report: bool, quiet: bool, **values: Any) -> None:
    """Train a model and see its numbers and pictures.

    The objective is E log p(x|z) - beta KL(q(z|x) || p(z)) - alpha D(q(z), p(z)); with --gamma and
    --capacity it is E log p(x|z) - gamma |KL - C|. All in nats per example. beta rises from 0 over the
    first two thirds of training unless --beta-warmup says otherwise (0 switches it off); beside
    --gamma, beta is 1 throughout.

    \b
    pyro-bvae train --prior mixture --alpha 1
    pyro-bvae train --dataset fashion-mnist --prior spike-slab --alpha 100
    pyro-bvae train --dataset mnist --gamma 100 --capacity 20
    pyro-bvae train --prior mypackage.priors:Ring --prior-arg radius=2 --alpha 1
    """
    with one_sentence():
        config = make_config(values)
        # What needs no torch is refused before the seconds that importing it takes.
        from pyro_bvae.datasets import find_loader
        from pyro_bvae.writing import check_new_directory

        find_loader(config.dataset)
        if out is not None:
            check_new_directory(Path(out))
        tune_allocator()
        choose_threads(config.resolved().network)
    from pyro_bvae.runs import train

    bar = _Bar(quiet)
    click.echo("Loading data and building the model ...", err=True)
    try:
        with one_sentence(), one_line_notes():
            run = train(config, out, on_step=bar.step, callbacks=[bar.record])
    except FloatingPointError as error:
        bar.close()
        fail(str(error), 1)
    except KeyboardInterrupt as error:
        bar.close()
        fail(str(error) or "Interrupted.", INTERRUPTED)
    bar.close()
    _summary(run, report and _write_report(run))


def _write_report(run: Any) -> bool:
    """The page of the run, unless pictures would have to be decoded for it: that can take long."""
    from pyro_bvae.report import live, write_report

    if not live(run.vae):
        return False
    with one_sentence():
        write_report([run], run.path / "report.html")
    return True


class _Bar:
    """A progress bar with the terms of the last epoch."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Any = None

    def step(self, step: int, total: int) -> None:
        if self.quiet:
            return
        if self.bar is None:
            from tqdm import tqdm

            # None: no bar in a log file, where it would be a line a step
            self.bar = tqdm(total=total, unit=" steps", mininterval=0.2, leave=False, disable=None)
        self.bar.update(1)

    def record(self, record: dict[str, float], state: Any) -> None:
        if self.bar is not None:
            shown = {"log_px_z": "E log p", "kl": "KL", "divergence": "D", "beta": "beta"}
            terms = {text: f"{record[name]:.2f}" for name, text in shown.items() if name in record}
            self.bar.set_postfix(terms, refresh=False)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _summary(run: Any, report: bool) -> None:
    m, c = run.metrics, run.config
    seconds = m["training_seconds"]
    norm = f" (beta_norm {m['beta_norm']:.3g})" if "beta_norm" in m else ""
    click.echo(
        f"\nTrained {c.dataset} with the {c.prior} prior: {int(run.history[-1]['step'])} steps in "
        f"{seconds:.1f} s on {next(run.vae.parameters()).device}. Final beta {run.vae.beta:g}{norm}."
    )
    click.echo(f"Held-out, nats per example (n = {m['n']}):")
    echo_table(m)
    shown = run.path / ("report.html" if report else "figures")
    click.echo(f"Run: {run.path}; look at {shown} first")
    trust = " --trust" if ":" in c.prior + c.network else ""
    click.echo(f"Next: pyro-bvae evaluate {run.path}{trust}")
