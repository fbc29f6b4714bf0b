"""The handwritten digits bundled with scikit-learn: no download."""

from __future__ import annotations

import numpy as np

from .data import Data, split
from .images import resize


def load_digits(
    image_size: int | None = None, test_fraction: float = 0.1, seed: int = 0
) -> tuple[Data, Data]:
    """Load the 1,797 digits, 8×8 unless `image_size` asks for another size.

    The stored grey values 0 to 16 become round(v·255/16).

    Returns:
        `(train, test)` with `x` uint8 `(n, 1, 8, 8)`, 10 classes.
    """
    from sklearn import datasets

    bunch = datasets.load_digits()
    x = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    data = resize(Data(x, bunch.target), image_size, "digits")
    return split(data, test_fraction, seed)
