"""How many latents does a model use?"""

from __future__ import annotations

from typing import Any

import numpy as np

from .alignment import INFORMATIVE_KL, mean_kl
from .checks import check_codes
from .score import Score

ACTIVE_VARIANCE = 0.01
"""A latent is active when its posterior mean varies by more than this over the data."""


def active_units(loc: np.ndarray, kl: np.ndarray | None = None) -> Score:
    """Active units: the number of latents whose posterior mean has a variance above .01.

    Var_x(E[z_j | x]) > .01, for a prior of about unit scale: it depends on the codes' scale. More is
    not better in itself; beside it stands the number of latents that cost more than .01 nats.

    Args:
        loc: posterior means ``(n, latent_dim)``.
        kl: each latent's KL to the prior in nats, ``(n, latent_dim)`` or its mean ``(latent_dim,)``,
            where prior and posterior factorise.

    Returns:
        Score: the number, as a float; details ``active`` (their indices), ``latent_dim``,
        ``variance_threshold``, ``n``, and with ``kl``: ``active_by_kl`` (number of latents),
        ``active_by_kl_indices`` and ``kl_threshold``.

    References: Burda 2016, https://arxiv.org/abs/1509.00519

    Examples:
        >>> active_units(np.array([[0.0, 1.0], [0.0, -1.0]])).value
        1.0
    """
    loc = check_codes("active_units", loc, "loc")
    active = np.flatnonzero(loc.var(0) > ACTIVE_VARIANCE)
    details: dict[str, Any] = {
        "active": active.tolist(),
        "latent_dim": loc.shape[1],
        "variance_threshold": ACTIVE_VARIANCE,
        "n": len(loc),
    }
    if kl is not None:
        costly = np.flatnonzero(mean_kl("active_units", kl, loc.shape[1]) > INFORMATIVE_KL)
        details |= {
            "active_by_kl": len(costly),
            "active_by_kl_indices": costly.tolist(),
            "kl_threshold": INFORMATIVE_KL,
        }
    return Score(float(len(active)), details)
