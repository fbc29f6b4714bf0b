"""``pyro-bvae list``."""

from __future__ import annotations

import click

from pyro_bvae import config

from .options import examples


@click.command("list", epilog=examples("list", "list recipes"))
@click.argument("what", required=False, type=click.Choice(["recipes"]))
def command(what: str | None) -> None:
    """What can be chosen: data sets, priors, divergences, likelihoods, networks and metrics.

    With "recipes": the published experiments, for reproduce and for train --recipe.
    """
    if what == "recipes":
        _list_recipes()
        return
    for option, names in (
        ("--dataset", config.DATASETS),
        ("--prior", config.PRIORS),
        ("--divergence", config.DIVERGENCES),
        ("--likelihood", config.LIKELIHOODS),
        ("--network", config.NETWORKS),
        ("--metrics", (*config.MEASURES, *config.METRICS)),
        ("--baseline", config.BASELINES),
    ):
        click.echo(f"{option:<17}{', '.join(names)}")
    click.echo(
        "Your own: --dataset PATH, --prior package.module:Class, --network package.module:function."
    )
    click.echo("Defaults by data set:")
    own = (
        "latent_dim 10 or fewer, batch_size 64, lr 0.001, epochs 20, or as many as make 2,000 steps"
    )
    click.echo(f"  {'your own':<17}{own}")
    for name, defaults in config.DATASET_DEFAULTS.items():
        chosen = ", ".join(f"{option} {value}" for option, value in defaults.items())
        click.echo(f"  {name:<17}{chosen}")


def _list_recipes() -> None:
    from pyro_bvae.recipes import read_recipe, recipe_names

    for name in recipe_names():
        recipe = read_recipe(name)
        click.echo(f"{name}\n  {recipe.title}\n  {recipe.cites}\n  cost: {recipe.cost}")
        click.echo(f"  settings: {', '.join(recipe.settings)}\n")
    click.echo(
        "pyro-bvae reproduce NAME [--scale small] makes one again, with its table and pictures;"
    )
    click.echo(
        "pyro-bvae train --recipe NAME/SETTING trains one setting, with whatever else is said."
    )
