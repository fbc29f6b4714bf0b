"""``pyro-bvae sample``."""

from __future__ import annotations

from pathlib import Path

import click

from pyro_bvae.writing import check_run, read_class_names

from .errors import one_sentence
from .options import Place, examples, trust


@click.command(
    "sample",
    epilog=examples(
        "sample runs/spirals-mixture-1", "sample runs/spirals-mixture-1 -n 1000 --out x.npz"
    ),
)
@click.argument("run", type=Place())
@click.option(
    "-n",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    help="How many; a PNG shows at most 64.",
)
@click.option("--label", type=click.IntRange(0), help="Class to draw, for a conditional model.")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2**32 - 1),
    help="Seed of the draws.",
)
@click.option(
    "--out",
    type=Place(),
    help="PNG, or NPZ for the numbers [default: RUN/figures/samples-SEED.png].",
)
@trust
def command(run: str, n: int, label: int | None, seed: int, out: str | None, trust: bool) -> None:
    """Draw z from the prior and show p(x|z) of a trained RUN."""
    with one_sentence():
        check_run(Path(run))
        from pyro_bvae.figures import save_samples
        from pyro_bvae.runs import load_run

        loaded = load_run(run, trust=trust)
        path = Path(out) if out else loaded.path / "figures" / f"samples-{seed}.png"
        save_samples(path, loaded.vae, n, label, seed, read_class_names(loaded.path))
    click.echo(f"Wrote {path}")
