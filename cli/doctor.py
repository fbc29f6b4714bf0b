"""``pyro-bvae doctor``."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections.abc import Callable

import click

from .options import Place, examples

_PACKAGES = ("torch", "torchvision", "pyro-ppl", "numpy", "h5py", "scikit-learn", "matplotlib")


@click.command("doctor", epilog=examples("doctor", "doctor --data-dir data"))
@click.option(
    "--data-dir",
    type=Place(),
    help="Folder holding the data sets [default: $PYRO_BVAE_DATA, else ./data].",
)
def command(data_dir: str | None) -> None:
    """Check this installation, its devices and its data; exit 1 where something is broken."""
    click.echo(f"python {platform.python_version()} on {platform.platform()}")
    for package in _PACKAGES:
        try:
            click.echo(f"  {package:<14}{importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            click.echo(f"  {package:<14}not installed")
    failed = [
        name
        for name, check in (
            ("devices", _devices),
            ("torchvision", _torchvision),
            ("one training step", _train_a_step),
        )
        if not _report(name, check)
    ]
    for name in ("mnist", "fashion-mnist"):
        _report(f"data: {name}", functools.partial(_data, name, data_dir))
    if failed:
        click.echo(f"Broken: {', '.join(failed)}.")
        raise SystemExit(1)
    click.echo("All that is needed works. Next: pyro-bvae train --prior mixture --alpha 1")


def _report(name: str, check: Callable[[], str]) -> bool:
    try:
        click.echo(f"ok       {name}: {check()}")
    except Exception as error:  # whatever is broken is the answer
        click.echo(f"missing  {name}: {' '.join(str(error).split())}")
        return False
    return True


def _devices() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"CPU, {torch.get_num_threads()} threads; no CUDA device"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _torchvision() -> str:
    from pyro_bvae.datasets import import_torchvision

    return f"{import_torchvision().__version__}, data sets usable"


def _train_a_step() -> str:
    from pyro_bvae.build import build
    from pyro_bvae.config import Config
    from pyro_bvae.training import fit

    built = build(Config(prior="mixture", alpha=1.0, steps=1))
    record = fit(built.vae, built.objective, built.train, steps=1, batch_size=400)[0]
    return f"loss {record['loss']:.2f} on {next(built.vae.parameters()).device}"


def _data(name: str, data_dir: str | None) -> str:
    from pyro_bvae.datasets import load_dataset

    train, test = load_dataset(name, data_dir=data_dir)
    return f"{len(train)} + {len(test)} images"
