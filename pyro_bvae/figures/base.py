"""What every picture of a model needs."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def array(tensor: Tensor) -> np.ndarray:
    """The values of a tensor on whichever device."""
    return tensor.detach().cpu().numpy()
