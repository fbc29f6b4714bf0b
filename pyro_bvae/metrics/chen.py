"""The mutual information gap as Chen defined it: how many nats do samples of posteriors hold?"""

from __future__ import annotations

import math

import numpy as np

from .checks import check_codes
from .factors import check_pair
from .information import factor_entropies
from .score import Score

_BLOCK = 1 << 16  # elements of one block of pairs: they stay in a CPU's second-level cache


def mig_chen(
    loc: np.ndarray,
    scale: np.ndarray,
    factors: np.ndarray,
    *,
    n_samples: int = 1000,
    seed: int = 0,
) -> Score:
    """Mutual information gap of samples z of the posteriors N(loc, scale^2), higher is better.

    I(z_j; v_k) = H(z_j) - H(z_j | v_k) with q(z_j) = (1/n) sum_i q(z_j | x_i), and q(z_j | v_k) the same
    mean over the rows of that value; both entropies from the same samples, one each of ``n_samples``
    rows drawn without replacement. Not comparable with `mig`, which bins the posterior means: noise in
    z lowers I here. Where posteriors do not overlap, every code tells the row and with it every factor,
    so all I tend to H(v) and the gap to 0.

    Args:
        loc: posterior means ``(n, latent_dim)``.
        scale: posterior standard deviations, positive, the same shape.
        factors: classes ``(n, n_factors)``; real numbers are cut in 20 bins of equal width.
        n_samples: rows that give a sample, at most n.
        seed: of the rows and of the noise.

    Returns:
        Score: at most 1, can fall below 0 by no more than noise; details ``per_factor``, ``best``,
        ``entropies`` (nats), ``standard_error`` (of the value, from sampling), ``binned``
        (factors cut in bins), ``n_samples``, ``n``.

    References: Chen 2018, appendix C, https://arxiv.org/abs/1802.04942
    """
    loc, known = check_pair("mig_chen", loc, factors)
    numbered = known.classes
    scale = check_codes("mig_chen", scale, "scale")
    if scale.shape != loc.shape or not (scale > 0).all():
        raise ValueError(
            f"mig_chen: scale must be positive and of shape {loc.shape}, that of loc; got shape "
            f"{scale.shape}, smallest {scale.min():.4g}. Pass standard deviations."
        )
    if n_samples < 2:
        raise ValueError(f"mig_chen: n_samples must be at least 2; got {n_samples}. Take 1000.")
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(loc))[:n_samples]
    z = loc[rows] + scale[rows] * rng.standard_normal((len(rows), loc.shape[1]))
    # log q(z_j | v_k) - log q(z_j)
    gains = np.empty((len(rows), loc.shape[1], numbered.shape[1]))
    for j in range(loc.shape[1]):
        marginal = _log_mixture(z[:, j], loc[:, j], scale[:, j])
        for k, column in enumerate(numbered.T):
            for value in range(column.max() + 1):
                among, here = np.flatnonzero(column == value), column[rows] == value
                given = _log_mixture(z[here, j], loc[among, j], scale[among, j])
                gains[here, j, k] = given - marginal[here]
    entropies = factor_entropies(numbered)
    # the two most informative latents of each factor
    order = np.argsort(-gains.mean(0), axis=0)[:2]
    largest = np.take_along_axis(gains, order[None], axis=1)
    gap = largest[:, 0] - (largest[:, 1] if len(order) == 2 else 0.0)
    details = {
        "per_factor": (gap.mean(0) / entropies).tolist(),
        "best": order[0].tolist(),
        "entropies": entropies.tolist(),
        "standard_error": float((gap / entropies).mean(1).std(ddof=1) / math.sqrt(len(rows))),
        "binned": known.binned,
        "n_samples": len(rows),
        "n": len(loc),
    }
    return Score(float((gap / entropies).mean()), details)


def _log_mixture(z: np.ndarray, loc: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """log of the mean over components of N(z; loc, scale^2), ``(samples,)``, in bounded memory.

    No log-sum-exp: each z is drawn from one of the components, so the sum cannot vanish.
    """
    out, weights = np.empty(len(z)), 1 / scale
    step = max(1, _BLOCK // len(loc))
    for start in range(0, len(z), step):
        power = z[start : start + step, None] - loc  # (block, components)
        power *= weights * math.sqrt(0.5)
        power *= power
        np.negative(power, out=power)
        # exp of less is negligible beside the own component, and slow where it underflows
        np.maximum(power, -60.0, out=power)
        out[start : start + step] = np.exp(power, out=power) @ weights
    return np.log(out) - math.log(len(loc) * math.sqrt(2 * math.pi))
