"""``pyro-bvae train``."""

from __future__ import annotations

from typing import Any

import click

from pyro_bvae.config import Config

from .errors import INTERRUPTED, fail, one_sentence
from .options import config_options, make_config


@click.command("train")
@config_options
@click.option("--out", type=click.Path(), help="Run directory [default: runs/DATASET-PRIOR-N].")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(out: str | None, quiet: bool, **values: Any) -> None:
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
        _choose_threads(config)
    from pyro_bvae.runs import train

    bar = _Bar(quiet)
    click.echo("Loading data and building the model ...", err=True)
    try:
        with one_sentence():
            run = train(config, out, on_step=bar.step, callbacks=[bar.record])
    except FloatingPointError as error:
        bar.close()
        fail(str(error), 1)
    except KeyboardInterrupt as error:
        bar.close()
        fail(str(error) or "Interrupted.", INTERRUPTED)
    bar.close()
    _summary(run)


def _choose_threads(config: Config) -> None:
    """One thread for small networks: two cost more in waiting than they save."""
    network = config.resolved().network
    import torch

    if network == "mlp":
        torch.set_num_threads(1)


class _Bar:
    """A progress bar with the terms of the last epoch."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Any = None

    def step(self, step: int, total: int, loss: float) -> None:
        if self.quiet:
            return
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(total=total, unit=" steps", mininterval=0.2, leave=False)
        self.bar.update(1)

    def record(self, record: dict[str, float], state: Any) -> None:
        if self.bar is not None:
            shown = {"log_px_z": "E log p", "kl": "KL", "divergence": "D", "beta": "beta"}
            terms = {text: f"{record[name]:.2f}" for name, text in shown.items() if name in record}
            self.bar.set_postfix(terms, refresh=False)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _summary(run: Any) -> None:
    m, c = run.metrics, run.config
    seconds = m["training_seconds"]
    norm = f" (beta_norm {m['beta_norm']:.3g})" if "beta_norm" in m else ""
    click.echo(
        f"\nTrained {c.dataset} with the {c.prior} prior: {int(run.history[-1]['step'])} steps in "
        f"{seconds:.1f} s on {next(run.vae.parameters()).device}. Final beta {run.vae.beta:g}{norm}."
    )
    click.echo(f"Held-out, nats per example (n = {m['n']}):")
    rows = summary_rows(m)
    width = max(len(text) for text, _ in rows)
    for text, value in rows:
        click.echo(f"  {text:<{width}} {value}")
    for sentence in m["diagnosis"]:
        click.echo(f"Note: {sentence}")
    first = run.path / "figures" / "aggregate_posterior.png"
    look = f"look at {first} first" if first.exists() else f"pictures in {first.parent}"
    click.echo(f"Run: {run.path}; {look}")
    trust = " --trust" if ":" in c.prior + c.network else ""
    click.echo(f"Next: pyro-bvae sample {run.path}{trust}")


def summary_rows(m: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and value of each line of the summary table."""
    given = "z, y" if m["bound_on"] == "log p(x|y)" else "z"
    rows = [
        (label, f"{m[key]:9.3f} +- {m[key + '_se']:.3f}")
        for key, label in (
            ("log_px_z", f"E log p(x|{given})  (-distortion)"),
            ("kl", "KL(q(z|x) || p(z))  (rate)"),
            ("elbo", f"ELBO at beta = 1, below {m['bound_on']}"),
        )
    ]
    if m["divergence"] is not None:
        rows.append((f"D(q(z), p(z))  {m['divergence_name']}", f"{m['divergence']:9.3f}"))
    if m["kl_estimator"] != "closed form":
        rows.append(("KL estimated by", f"    {m['kl_estimator']}"))
    if "purity" in m:
        rows.append(("cluster purity", f"{m['purity']:9.3f}"))
        rows.append(("components used", f"{m['components_used']:5d} of {m['components']}"))
    criterion = "KL > .01 nats" if m["kl_per_latent"] is not None else "variance of means > .01"
    rows.append((f"active latents, {criterion}", f"{m['active_units']:5d} of {m['latents']}"))
    if "hoyer" in m:
        rows.append(
            ("Hoyer sparsity (Gaussian null)", f"{m['hoyer']:9.3f}  ({m['hoyer_null']:.3f})")
        )
    return rows
