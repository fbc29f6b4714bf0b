"""``pyro-bvae train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pyro_bvae.config import GROUPS

from .errors import fail, one_line_notes, one_sentence
from .options import Place, Sections, change_config, config_options, examples, make_config, trust
from .process import Signals, choose_threads, is_first, tune_allocator
from .table import echo_table


@click.command(
    "train",
    cls=Sections,
    headings={**GROUPS, "Output": "out", "Other": "trust"},
    epilog=examples(
        "train --prior mixture --alpha 1",
        "train --dataset mnist --gamma 10 --capacity 20",
        "train --prior rings:Ring --prior-arg radius=2 --alpha 5",
        "train --resume runs/spirals-mixture-1",
    ),
)
@config_options
@click.option(
    "--resume",
    metavar="RUN",
    type=Place(),
    help="Go on with a run that was interrupted, by its own options.",
)
@click.option(
    "--checkpoint-every",
    metavar="STEPS",
    type=int,
    help="Steps between two checkpoints [default: by time, about ten seconds].",
)
@click.option(
    "--recipe",
    metavar="EXPERIMENT/SETTING",
    help="Options of a published experiment (pyro-bvae list recipes); those typed beside it take their place.",
)
@click.option(
    "--seeds",
    type=int,
    help="Train under so many seeds, from --seed on: means and standard errors [default: one run].",
)
@click.option("--jobs", type=int, default=1, help="With --seeds: processes. [default: 1]")
@click.option("--out", type=Place(), help="Run directory [default: runs/DATASET-PRIOR-N].")
@click.option(
    "--report/--no-report",
    default=True,
    help="Write RUN/report.html at the end, if the decoder can run in it (at most 2 M weights). "
    "[default: --report]",
)
@click.option(
    "--tensorboard",
    metavar="FOLDER",
    type=Place(),
    help="Write every record to this folder, one of the run's own, for tensorboard --logdir.",
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
@trust
@click.pass_context
def command(
    context: click.Context,
    /,
    out: str | None,
    resume: str | None,
    recipe: str | None,
    checkpoint_every: int | None,
    seeds: int | None,
    jobs: int,
    report: bool,
    tensorboard: str | None,
    quiet: bool,
    trust: bool,
    **values: Any,
) -> None:
    """Train a model and see its numbers and pictures.

    \b
    The objective, in nats per example, is
        E log p(x|z) - beta KL(q(z|x) || p(z)) - alpha D(q(z), p(z))
    or, with --gamma and --capacity,
        E log p(x|z) - gamma |KL(q(z|x) || p(z)) - C|

    beta rises from 0 over the first two thirds of training unless --beta-warmup says otherwise; beside
    --gamma it is 1 throughout. Whatever stops a run, --resume goes on to the numbers it would have had.
    pyro-bvae list has the defaults by data set.
    """
    with one_sentence():
        # What needs no torch is refused before the seconds that importing it takes.
        if resume is None:
            _check_seeds(context, seeds)
            config = make_config(values) if recipe is None else _of_recipe(context, recipe)
            _check_new(config, out if is_first() and seeds is None else None)
        else:
            _check_alone(context)
            config = _of_run(Path(resume))
        tune_allocator()
        if resume is None:
            choose_threads(config.resolved().network)
        else:
            _same_threads(Path(resume))
    if seeds is not None:
        from .sweep import train_seeds

        train_seeds(config, seeds, out, jobs, trust=True)  # what it names was typed here
        return
    from pyro_bvae import runs

    bar, signals, finished = _Bar(quiet or not is_first()), Signals(), False

    def on_step(state: Any) -> None:
        bar.step(state)
        signals.at_step(state)

    callbacks: list[Any] = [bar.record]
    if tensorboard is not None and is_first():
        callbacks.append(_tensorboard(tensorboard))
    hooks: Any = {
        "callbacks": callbacks, "on_step": on_step, "checkpoint_every": checkpoint_every,
    }  # fmt: skip
    if is_first():
        click.echo("Loading data and building the model ...", err=True)
    try:
        with one_sentence(), one_line_notes(), signals:
            if resume is None:
                run = runs.train(config, out, **hooks)
            else:
                finished = runs.is_finished(resume)
                given = {"device": values["device"], "data_dir": values["data_dir"]}
                typed = click.core.ParameterSource.COMMANDLINE
                moved = {k: v for k, v in given.items() if context.get_parameter_source(k) is typed}
                run = runs.resume(resume, trust=trust, **moved, **hooks)
    except FloatingPointError as error:
        bar.close()
        fail(str(error), 1)
    except KeyboardInterrupt as error:
        bar.close()
        fail(str(error) or "Interrupted.", signals.code)
    bar.close()
    if not is_first():
        return
    if finished:
        click.echo(f"Note: {resume} is finished; nothing was trained.", err=True)
    try:
        _summary(run, report and _write_report(run))
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        if not finished:  # its files were written a moment ago
            raise
        reason = f"{type(error).__name__}: {error}"
        fail(f"{run.path}: its files must be what training wrote; they are not ({reason}).")


def _of_recipe(context: click.Context, name: str) -> Any:
    """The recipe's options, with those that were typed."""
    from pyro_bvae.config import Config
    from pyro_bvae.recipes import read_setting

    given = click.core.ParameterSource.COMMANDLINE
    typed = {
        option: value
        for option, value in context.params.items()
        if option in Config.__dataclass_fields__ and context.get_parameter_source(option) is given
    }
    return change_config(read_setting(name), typed)


def _check_new(config: Any, out: str | None) -> None:
    from pyro_bvae.datasets import find_loader
    from pyro_bvae.writing import check_new_directory

    find_loader(config.dataset)
    if out is not None:
        check_new_directory(Path(out))


def _check_alone(context: click.Context) -> None:
    """A run goes on by its own options: others beside --resume would be ignored."""
    beside = (
        "resume", "checkpoint_every", "report", "tensorboard", "quiet", "trust", "device", "data_dir",
    )  # fmt: skip
    typed = click.core.ParameterSource.COMMANDLINE
    for option in context.command.params:
        name = str(option.name)
        if name not in beside and context.get_parameter_source(name) is typed:
            raise ValueError(
                f"--resume goes on by the options that the run was started with; got "
                f"{_typed(context, option)} beside it. Leave it out, or train anew without --resume."
            )


def _check_seeds(context: click.Context, seeds: int | None) -> None:
    """Options that would be ignored are refused."""
    typed = click.core.ParameterSource.COMMANDLINE
    without = (
        ("checkpoint_every", "report", "tensorboard", "quiet") if seeds is not None else ("jobs",)
    )
    for option in context.command.params:
        if option.name in without and context.get_parameter_source(option.name) is typed:
            name = _typed(context, option)
            if seeds is None:
                raise ValueError(f"{name} must stand beside --seeds. Add it, or leave {name} out.")
            raise ValueError(f"{name} must stand without --seeds. Leave one of them out.")


def _typed(context: click.Context, option: click.Parameter) -> str:
    """The option as it was typed: --no-report, not --report."""
    off = bool(option.secondary_opts) and context.params[str(option.name)] is False
    return (option.secondary_opts if off else option.opts)[0]


def _tensorboard(folder: str) -> Any:
    from pyro_bvae.tensorboard import tensorboard

    with one_sentence():
        try:
            return tensorboard(folder)
        except ModuleNotFoundError as error:
            fail(str(error))


def _same_threads(path: Path) -> None:
    """As many as the run began with: sums over rows come out the same to the last bit only so."""
    import torch

    from pyro_bvae.writing import read_json

    try:
        threads = read_json(path / "environment.json").get("threads")
    except (ValueError, FileNotFoundError):
        return
    if isinstance(threads, int) and 1 <= threads <= 1024:
        torch.set_num_threads(threads)


def _of_run(path: Path) -> Any:
    from pyro_bvae.writing import check_run

    check_run(path)
    from pyro_bvae.runs import read_config

    return read_config(path)


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

    def step(self, state: Any) -> None:
        if self.quiet:
            return
        if self.bar is None:
            from tqdm import tqdm

            # None: no bar in a log file, where it would be a line a step
            self.bar = tqdm(
                total=state.total, initial=state.step - 1, unit=" steps", mininterval=0.2, leave=False,
                disable=None,
            )  # fmt: skip
        self.bar.update(1)

    def record(self, record: dict[str, float], state: Any) -> None:
        if self.bar is not None:
            shown = {"log_px_z": "E log p", "kl": "KL", "divergence": "D", "beta": "beta"}
            terms = {text: f"{record[name]:.2f}" for name, text in shown.items() if name in record}
            self.bar.set_postfix(terms, refresh=False)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _weights(run: Any) -> str:
    """What weighed the terms at the end of the training."""
    c, norm = run.config, run.metrics.get("beta_norm")
    if c.gamma is not None:
        return f"Final gamma {c.gamma:g}, C {c.capacity:g} nats"
    if c.beta_tc is not None:
        return f"Final beta_tc {c.beta_tc:g}"
    beta = f"Final beta {run.vae.beta:g}" + ("" if norm is None else f" (beta_norm {norm:.3g})")
    return beta + (f", alpha {c.alpha:g}" if c.alpha > 0 else "")


def _summary(run: Any, report: bool) -> None:
    m, c = run.metrics, run.config
    seconds = m["training_seconds"]
    click.echo(
        f"\nTrained {c.dataset} with the {c.prior} prior: {int(run.history[-1]['step'])} steps in "
        f"{seconds:.1f} s on {next(run.vae.parameters()).device}. {_weights(run)}.\n"
        f"Model: {c.latent_dim} latents, network {c.network}, likelihood {c.likelihood}."
    )
    click.echo(f"Held-out, nats per example (n = {m['n']}):")
    echo_table(m)
    shown = run.path / ("report.html" if report else "figures")
    click.echo(f"Run: {run.path}; look at {shown} first")
    trust = " --trust" if ":" in c.prior + c.network else ""
    click.echo(f"Next: pyro-bvae evaluate {run.path}{trust}")
