"""The arguments of priors: checked once, whoever gives them; float32 can compute with what is let through."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCALES = (1e-6, 1e6)
"""Scales and means a prior may start with: an encoder's are no narrower, and squares stay in float32."""
_MOST = {"latent_dim": 1 << 16, "n_components": 10_000, "n_transforms": 1000, "hidden": 10_000}


def positive(
    owner: object, name: str, value: float, limits: tuple[float, float] = SCALES, hint: str = ""
) -> float:
    """``value`` as a float; raises where it is not a finite number > 0 within ``limits``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and 0 < value < math.inf):
        raise ValueError(f"{_name(owner)}: {name} must be a finite number > 0; got {brief(value)}.")
    if not limits[0] <= value <= limits[1]:
        raise ValueError(
            f"{_name(owner)}: {name} must lie in [{limits[0]:g}, {limits[1]:g}]; got "
            f"{brief(value)}.{hint}"
        )
    return float(value)


def whole(owner: object, name: str, value: int) -> int:
    """``value``; raises where it is not an integer >= 1, or one of which memory holds too few."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{_name(owner)}: {name} must be an integer >= 1; got {brief(value)}.")
    if value > _MOST[name]:
        raise ValueError(
            f"{_name(owner)}: {name} must be at most {_MOST[name]}; got {brief(value)}."
        )
    return value


def floats(owner: object, name: str, value: object) -> Tensor:
    """``value``, a number, tensor or list of them, as a tensor of finite numbers no larger than `SCALES`."""
    try:
        found = torch.as_tensor(value, dtype=torch.get_default_dtype())
    except Exception as error:  # torch has one kind for text, one for ragged lists, one for size
        raise ValueError(
            f"{_name(owner)}: {name} must be numbers in rows of equal length; got {brief(value)}."
        ) from error
    if not (found.abs() <= SCALES[1]).all():
        raise ValueError(
            f"{_name(owner)}: {name} must be finite and at most {SCALES[1]:g} in size; got "
            f"{brief(found.tolist())}."
        )
    return found


def brief(value: object) -> str:
    """``repr`` on one short line."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # an int of more than 4300 digits; lists within lists
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:60]} ..."


def _name(owner: object) -> str:
    return owner if isinstance(owner, str) else type(owner).__name__
