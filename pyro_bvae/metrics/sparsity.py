"""How many latents does one code use?"""

from __future__ import annotations

import math

import numpy as np

from .checks import check_codes, spread
from .score import Score

DEAD = 0.01
"""A latent whose posterior means have a standard deviation below this is dead."""


def hoyer(codes: np.ndarray, drop_dead: bool = True) -> Score:
    """Normalised Hoyer sparsity of codes, in [0, 1]: 1 for one-hot codes, 0 for equal magnitudes.

    (sqrt(D) - mean |z|_1 / |z|_2) / (sqrt(D) - 1) of z divided by its standard deviation per dimension,
    not centred (Mathieu 2019, section 6.2). Gaussian codes score well above 0: compare with the null.

    Args:
        codes: posterior means ``(n, D)``.
        drop_dead: leave out dimensions with standard deviation below ``DEAD``; D is then the number
            kept. Kept, they would be blown up to unit variance.

    Returns:
        Score: NaN-free value, 0 where fewer than two dimensions live; details ``null`` (the expectation
        for N(0, I) codes), ``kept`` (their indices), ``dimensions`` (how many), ``dead``, and
        ``unnormalised`` (without the division).

    Examples:
        >>> round(hoyer(np.eye(4)).value, 6)
        1.0
    """
    codes = check_codes("hoyer", codes)
    std = spread(codes)
    keep = std >= DEAD if drop_dead else std > 0
    live = codes[:, keep]
    details = {
        "null": gaussian_null(live.shape[1]),
        "kept": np.flatnonzero(keep).tolist(),
        "dimensions": int(live.shape[1]),
        "dead": int((~keep).sum()),
        "unnormalised": _mean_hoyer(live),
    }
    return Score(_mean_hoyer(live / std[keep]), details)


def gaussian_null(dim: int) -> float:
    """Expected Hoyer sparsity of N(0, I) codes: .2307 at 50 dimensions, .266 at 10."""
    if dim < 2:
        return 0.0
    ratio = math.exp(math.lgamma(dim / 2) - math.lgamma((dim + 1) / 2))
    return (math.sqrt(dim) - dim * ratio / math.sqrt(math.pi)) / (math.sqrt(dim) - 1)


def _mean_hoyer(codes: np.ndarray) -> float:
    dim = codes.shape[1]
    if dim < 2:
        return 0.0
    rows = codes.any(1)  # a code of zeros has no direction
    if not rows.any():
        return 0.0
    size = np.abs(codes[rows])
    size /= size.max(1, keepdims=True)  # so that squares do not underflow
    ratio = size.sum(1) / np.linalg.norm(size, axis=1)
    return float((math.sqrt(dim) - ratio.mean()) / (math.sqrt(dim) - 1))
