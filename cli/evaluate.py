"""``pyro-bvae evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pyro_bvae.config import BASELINES, MEASURES, METRICS
from pyro_bvae.writing import check_file, check_run, write_json

from .errors import one_line_notes, one_sentence
from .options import Place, examples, one_of, trust
from .process import tune_allocator
from .table import echo_table


@click.command(
    "evaluate",
    epilog=examples(
        "evaluate runs/mnist-gaussian-1",
        "evaluate runs/shapes-gaussian-1 --metrics mig,dci --on train",
        "evaluate runs/shapes-gaussian-1 --baseline pca",
        "evaluate --codes codes.npz --factors factors.npz",
    ),
)
@click.argument("words", metavar="[RUN]", nargs=-1, type=Place())
@click.option(
    "--metrics",
    multiple=True,
    metavar="NAME",
    help="Measure only this beyond the basic terms; repeatable, or separated by commas; see "
    "pyro-bvae list [default: all that apply but dci, which takes minutes].",
)
@click.option(
    "--on",
    default="test",
    show_default=True,
    metavar="test|train|FILE",
    help="Rows to measure on.",
)
@click.option(
    "--baseline",
    **one_of(BASELINES),
    help="Measure these codes of the run's data in place of the model's.",
)
@click.option(
    "--samples",
    type=click.IntRange(1),
    help="K, samples a row of the importance-weighted log p(x) [default: 1000].",
)
@click.option(
    "--rows",
    type=click.IntRange(1),
    help="Rows log p(x) is estimated on [default: as many as take minutes].",
)
@click.option(
    "--codes",
    type=Place(),
    help="Without RUN: .npy or .npz of codes (n, latents), of any library.",
)
@click.option(
    "--factors",
    type=Place(),
    help="With --codes: .npy or .npz of integer factors (n, factors).",
)
@click.option("--out", type=Place(), help="With --codes: JSON file to write as well.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    help="Of the noise and of the metrics' draws [default: the run's].",
)
@trust
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(words: tuple[str, ...], codes: str | None, factors: str | None, **options: Any) -> None:
    """Measure a trained RUN on held-out data, or codes of any library against known factors."""
    names = [name.strip() for text in options["metrics"] for name in text.split(",")] or None
    with one_sentence(), one_line_notes():
        run = _one_run(words, names)
        if run is None:
            _evaluate_codes(codes, factors, names, options)
            return
        if codes is not None or factors is not None or options["out"] is not None:
            raise ValueError("--codes, --factors and --out go without RUN. Leave either out.")
        _evaluate_run(run, names, options)


def _one_run(words: tuple[str, ...], names: list[str] | None) -> str | None:
    """The one RUN; names of metrics that a space keeps from --metrics are refused."""
    metrics = [word for word in words if word in (*MEASURES, *METRICS) and not Path(word).is_dir()]
    if names and metrics:
        typed = [*names, *metrics]
        raise ValueError(
            f"--metrics must be separated by commas; got {' '.join(typed)}. Write --metrics {','.join(typed)}."
        )
    if len(words) > 1:
        raise ValueError(
            f"evaluate takes one RUN; got {' '.join(words)}. Evaluate them one by one."
        )
    return words[0] if words else None


def _evaluate_run(run: str, names: list[str] | None, options: dict[str, Any]) -> None:
    if options["baseline"] is not None:
        _refuse(options, ("samples", "rows"), "beside --baseline")
    elif names is not None and "log-marginal" not in names:
        _refuse(options, ("samples", "rows"), "without --metrics log-marginal")
    _check_names(names, of_codes=options["baseline"] is not None)
    check_run(Path(run))
    tune_allocator()
    from pyro_bvae.measuring import measure_baseline, measure_run
    from pyro_bvae.runs import load_run

    loaded = load_run(run, trust=options["trust"])
    click.echo("Loading data and encoding it ...", err=True)
    chosen = {"on": options["on"], "measures": names, "seed": options["seed"]}
    with _bar(options["quiet"]) as step:
        if options["baseline"] is not None:
            m, path = measure_baseline(
                loaded.path, loaded.config, options["baseline"], on_progress=step, **chosen
            )
        else:
            m, path = measure_run(
                loaded.path,
                loaded.config,
                loaded.vae,
                n_samples=options["samples"] or 1000,
                n_rows=options["rows"],
                on_progress=step,
                **chosen,
            )
    if "baseline" in m:
        click.echo(f"baseline {m['baseline']} on {m['on']} (n = {m['n']}):")
    else:
        click.echo(f"{run} on {m['on']}, nats per example where no unit is said (n = {m['n']}):")
    _echo(m, names)
    click.echo(f"Wrote {path}")


def _evaluate_codes(
    codes: str | None, factors: str | None, names: list[str] | None, options: dict[str, Any]
) -> None:
    if codes is None or factors is None:
        raise ValueError(
            "evaluate needs a RUN, or both --codes and --factors. Give one or the other."
        )
    _refuse(options, ("baseline", "rows", "samples", "trust"), "beside --codes")
    if options["on"] != "test":
        raise ValueError("--on has no meaning beside --codes. Leave it out.")
    _check_names(names, of_codes=True)
    from pyro_bvae.metrics.checks import check_array

    check_array("--codes", Path(codes))
    check_array("--factors", Path(factors))
    from pyro_bvae.measuring import measure_codes

    out = None if options["out"] is None else Path(options["out"])
    if out is not None:
        check_file(out, (".json",))
    with _bar(options["quiet"]) as step:
        m = measure_codes(
            Path(codes), Path(factors), names, on_progress=step, seed=options["seed"] or 0
        )
    click.echo(f"{codes} (n = {m['n']}, {m['latents']} latents):")
    _echo(m, names)
    if out is not None:
        write_json(out, m)
        click.echo(f"Wrote {out}")


def _check_names(names: list[str] | None, of_codes: bool) -> None:
    """Refuse unknown metrics before the seconds that importing torch takes."""
    from pyro_bvae.metrics.checks import check_known

    if of_codes:
        check_known(names or (), METRICS, "--metrics of codes")
    else:
        check_known(names or (), (*MEASURES, *METRICS), "--metrics")


def _echo(m: dict[str, Any], names: list[str] | None) -> None:
    echo_table(m)
    if names is None and "scores" in m and "dci" not in m["scores"]:
        click.echo("Left out, as it can take minutes: --metrics dci")


def _refuse(options: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    """Refuse options that would be ignored."""
    for name in names:
        if options[name]:
            raise ValueError(f"--{name} has no meaning {where}. Leave it out.")


@contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """A progress bar that says which measure is being taken."""
    from tqdm import tqdm

    shown = "{l_bar}{bar}| {elapsed}"
    # None: no bar in a log file
    with tqdm(total=1.0, leave=False, disable=quiet or None, bar_format=shown) as bar:

        def step(name: str, share: float) -> None:
            bar.set_description(name, refresh=False)
            bar.n = share
            bar.refresh()

        yield step
