"""The ambient generators of random numbers: their states, so that a training can go on with them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def noise_state(device: torch.device) -> dict[str, Any]:
    """The states of all ambient generators, as tensors, numbers and text."""
    python, (kind, keys, *rest) = random.getstate(), np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": [python[0], list(python[1]), python[2]],
        "numpy": [kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
    }


def set_noise(noise: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators back to where `noise_state` saw them."""
    torch.set_rng_state(noise["torch"])
    if device.type == "cuda" and noise["cuda"] is not None:
        torch.cuda.set_rng_state(noise["cuda"], device)
    version, keys, gauss = noise["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, numbers, *rest = noise["numpy"]
    np.random.set_state((kind, numbers.numpy().astype(np.uint32), *rest))
