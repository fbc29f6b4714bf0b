"""What every picture shares: colours, and what its arrays must be."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray


def _import_matplotlib() -> None:
    """Import it whatever MPLBACKEND says, such as a notebook's backend that is not installed here.

    Pictures here need no backend. For the user's own pyplot the variable means what it always does.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):  # one that matplotlib does not know
            matplotlib.rcParams["backend"] = backend


if "matplotlib" not in sys.modules:
    _import_matplotlib()

Array = NDArray[Any]
Names = Sequence[str]
Extent = tuple[float, float, float, float]  # left, right, bottom, top, as imshow takes it

# Okabe and Ito's colour-blind-safe colours, without black: density maps are dark.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")


def require(condition: bool, thing: str, rule: str, got: object) -> None:
    if not condition:
        raise ValueError(f"plots: {thing} must {rule}; got {got}. Check the array passed.")


def checked(name: str, values: Array, *ndims: int) -> Array:
    array = np.asarray(values)
    rule = f"be a non-empty array of {' or '.join(map(str, ndims))} dimensions"
    require(array.ndim in ndims and array.size > 0, name, rule, f"shape {array.shape}")
    bad = array.size - np.isfinite(array).sum()
    require(bad == 0, name, "be finite", f"{bad} NaN or infinite values of {array.size}")
    if array.ndim >= 4:
        require(array.shape[-3] in (1, 3), name, "have 1 or 3 channels", f"shape {array.shape}")
        raw = array.dtype.kind in "iu" and array.max() > 1
        require(not raw, name, "be images in [0, 1]", f"integers up to {array.max()}")
    return array.astype(float)


def checked_posterior(loc: Array, scale: Array) -> tuple[Array, Array]:
    loc, scale = checked("loc", loc, 2), checked("scale", scale, 2)
    shapes = loc.shape, scale.shape
    require(shapes[0] == shapes[1] == (len(loc), 2), "loc and scale", "both be (n, 2)", shapes)
    require(scale.min() > 0, "scale", "be positive", f"a least value of {scale.min():g}")
    return loc, scale
