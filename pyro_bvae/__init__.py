"""Beta-VAEs and decomposition in Pyro: a chosen overlap, a chosen structure, and their measures."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_bvae.config import Config as Config
    from pyro_bvae.elbo import CapacityELBO as CapacityELBO
    from pyro_bvae.elbo import DecompositionELBO as DecompositionELBO
    from pyro_bvae.runs import Run as Run
    from pyro_bvae.runs import load_run as load_run
    from pyro_bvae.runs import resume as resume
    from pyro_bvae.runs import train as train
    from pyro_bvae.terms import ElboTerms as ElboTerms
    from pyro_bvae.training import fit as fit
    from pyro_bvae.vae import VAE as VAE

    from . import datasets as datasets
    from . import divergences as divergences
    from . import evaluation as evaluation
    from . import likelihoods as likelihoods
    from . import metrics as metrics
    from . import networks as networks
    from . import plots as plots
    from . import priors as priors
    from . import report as report
    from . import schedules as schedules
    from . import sklearn as sklearn
    from . import svi as svi
    from . import sweep as sweep
    from . import tensorboard as tensorboard

__version__ = "0.1.0"

_HOME = {
    "VAE": "vae",
    "CapacityELBO": "elbo",
    "DecompositionELBO": "elbo",
    "ElboTerms": "terms",
    "fit": "training",
    "train": "runs",
    "Run": "runs",
    "load_run": "runs",
    "resume": "runs",
    "Config": "config",
}
_MODULES = (
    "priors",
    "likelihoods",
    "divergences",
    "networks",
    "schedules",
    "svi",
    "datasets",
    "metrics",
    "evaluation",
    "plots",
    "report",
    "sweep",
    "sklearn",
    "tensorboard",
)
__all__ = [*_HOME, *_MODULES]  # noqa: PLE0604


if not TYPE_CHECKING:  # a type checker has the imports above, and is to see a name that is in none
    # Resolved on first use (PEP 562), so that `pyro-bvae --help` need not import torch.
    def __getattr__(name: str) -> Any:
        if name in _HOME:
            return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        if name in _MODULES:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
