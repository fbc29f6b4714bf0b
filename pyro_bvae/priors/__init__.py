"""p(z): modules whose ``forward()`` returns a Pyro distribution over one z.

Every prior takes ``latent_dim`` first; its distribution has ``batch_shape ()`` and ``event_shape
(latent_dim,)``. Parameters and buffers are the module's, so devices and checkpoints come for free.
One's own prior is any such module; `check_prior` says whether it will do.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .check import check_prior
from .factorised import Gaussian, Laplace, SpikeSlab, StudentT
from .learned import Flow, VampPrior
from .mixture import Cross, Mixture

PRIORS: dict[str, Callable[..., nn.Module]] = {
    "gaussian": Gaussian,
    "pca": Gaussian.from_pca,
    "student-t": StudentT,
    "laplace": Laplace,
    "mixture": Mixture,
    "spike-slab": SpikeSlab,
    "cross": Cross,
    "vamp": VampPrior,
    "flow": Flow,
}

__all__ = [
    "PRIORS",
    "Cross",
    "Flow",
    "Gaussian",
    "Laplace",
    "Mixture",
    "SpikeSlab",
    "StudentT",
    "VampPrior",
    "check_prior",
]
