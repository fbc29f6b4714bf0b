"""What every picture of a model needs: arrays, and a file that is whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor


def array(tensor: Tensor) -> np.ndarray:
    """The values of a tensor on whichever device."""
    return tensor.detach().cpu().numpy()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name of the same suffix, which takes the place of ``path`` once all is written."""
    temporary = path.with_name(f"{path.stem}.new{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
