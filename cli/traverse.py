"""``pyro-bvae traverse``."""

from __future__ import annotations

from pathlib import Path

import click

from pyro_bvae.writing import check_run, read_class_names

from .errors import one_sentence
from .options import Place, examples, trust


@click.command(
    "traverse",
    epilog=examples(
        "traverse runs/mnist-gaussian-1 --active",
        "traverse runs/mnist-gaussian-1 --example 3 --out latents.gif",
    ),
)
@click.argument("run", type=Place())
@click.option(
    "--example",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Held-out example whose code is varied, one of those that the run holds.",
)
@click.option(
    "--span",
    type=float,
    help="From -SPAN to SPAN [default: 3; --quantiles where the prior is not about N(0, I)].",
)
@click.option("--quantiles", is_flag=True, help="From the prior's 1 % quantile to its 99 %.")
@click.option(
    "--columns",
    type=click.IntRange(2),
    help="Values of a latent [default: 9; 25 of points; 16 in a GIF].",
)
@click.option("--active", is_flag=True, help="Only latents that evaluate counts as active.")
@click.option(
    "--label",
    type=click.IntRange(0),
    help="Class held, for a conditional model [default: the example's].",
)
@click.option(
    "--out",
    type=Place(),
    help="PNG, or GIF to see it move [default: RUN/figures/traversal-EXAMPLE.png].",
)
@trust
def command(
    run: str,
    example: int,
    span: float | None,
    quantiles: bool,
    columns: int | None,
    active: bool,
    label: int | None,
    out: str | None,
    trust: bool,
) -> None:
    """Move one latent of a trained RUN at a time and show what is decoded."""
    with one_sentence():
        check_run(Path(run))
        from pyro_bvae.figures import save_traversal
        from pyro_bvae.runs import load_run

        path = Path(out) if out else Path(run) / "figures" / f"traversal-{example}.png"
        loaded = load_run(run, trust=trust)
        measured = (loaded.path / "metrics.json").is_file()  # not where the training was stopped
        examples = loaded.examples
        save_traversal(
            path,
            loaded.vae,
            loaded.metrics if measured else {},
            examples,
            example=example,
            span=span,
            quantiles=quantiles,
            columns=columns,
            active=active,
            label=label,
            class_names=read_class_names(loaded.path),
        )
    if examples is None:
        click.echo("The run holds no examples: z starts at 0.")
    click.echo(f"Wrote {path}")
