"""What every picture of a model needs: its own noise, arrays, and a place to write to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..vae import VAE


@contextmanager
def own_noise(vae: VAE, seed: int) -> Iterator[None]:
    """No gradients, a seed of its own, and the ambient generators left as they were."""
    device = next(vae.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        yield


def array(tensor: Tensor) -> np.ndarray:
    """The values of a tensor on whichever device."""
    return tensor.detach().cpu().numpy()


def check_place(path: Path, suffixes: tuple[str, ...]) -> None:
    """Make the folder of ``path`` and refuse a file that cannot be written, before any work.

    Raises:
        ValueError: another suffix.
        OSError: no folder can be made there, or nothing written in it.
    """
    if path.suffix not in suffixes:
        raise ValueError(f"--out must end in {' or '.join(suffixes)}; got {path.name!r}.")
    reason = "it is a directory" if path.is_dir() else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
    if reason is None and not os.access(path if path.exists() else path.parent, os.W_OK):
        reason = "Permission denied"
    if reason is not None:
        raise OSError(
            f"--out must lie where one can write; got {path} ({reason}). Choose another place."
        )
