"""Measures of a representation: arrays in, `Score` out; codes may come from any library.

`METRICS` holds those of codes and factors, ``f(codes (n, latent_dim), factors (n, n_factors), *, seed=0)``,
higher is better. The others take what they measure: images, posteriors, several models.
"""

from __future__ import annotations

from collections.abc import Callable

from .activity import active_units
from .alignment import irs, mcc, udr
from .chen import mig_chen
from .clusters import cluster_scores
from .images import sharpness
from .importance import dci
from .information import aam, gaussian_total_correlation, mig, modularity
from .prediction import explicitness, sap
from .score import Score
from .sparsity import hoyer
from .voting import beta_vae_score, factor_vae_score

METRICS: dict[str, Callable[..., Score]] = {
    "beta-vae-score": beta_vae_score,
    "factor-vae-score": factor_vae_score,
    "mig": mig,
    "aam": aam,
    "dci": dci,
    "sap": sap,
    "modularity": modularity,
    "explicitness": explicitness,
    "irs": irs,
    "mcc": mcc,
}

_ALL = frozenset({"permute", "flip", "rescale", "rescale-each", "relabel"})
INVARIANCES: dict[str, frozenset[str]] = {
    "beta-vae-score": frozenset({"permute", "flip", "relabel"}),
    "factor-vae-score": frozenset({"permute", "flip", "relabel"}),
    "mig": _ALL,
    "aam": _ALL,
    "dci": _ALL,
    "sap": frozenset({"permute", "flip", "relabel"}),
    "modularity": _ALL,
    "explicitness": _ALL,
    "irs": _ALL - {"rescale-each"},
    "mcc": _ALL - {"relabel"},
}
"""What leaves a metric's value unchanged: permuting latents, flipping their signs, rescaling all by one
positive number or each by its own, and relabelling the values of factors."""

__all__ = [
    "INVARIANCES",
    "METRICS",
    "Score",
    "aam",
    "active_units",
    "beta_vae_score",
    "cluster_scores",
    "dci",
    "explicitness",
    "factor_vae_score",
    "gaussian_total_correlation",
    "hoyer",
    "irs",
    "mcc",
    "mig",
    "mig_chen",
    "modularity",
    "sap",
    "sharpness",
    "udr",
]
