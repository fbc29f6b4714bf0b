"""3D Shapes: a room with one object, rendered for every combination of six factors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .data import Data, split
from .h5_files import H5Rows, h5_rows, list_h5
from .images import check_image_size
from .published import check_present, data_of_grid
from .rows import Refused, reading

FACTORS = {
    "floor_hue": 10,
    "wall_hue": 10,
    "object_hue": 10,
    "scale": 8,
    "shape": 4,
    "orientation": 15,
}
"""How many values each factor has; the last changes fastest from one image to the next."""

_PAGE = "https://github.com/google-deepmind/3d-shapes"
_KEYS = ("images", "labels")


def load_3d_shapes(
    data_dir: Path, image_size: int | None = None, test_fraction: float = 0.1, seed: int = 0
) -> tuple[Data, Data]:
    """Load the 480,000 images of 3D Shapes.

    Args:
        data_dir: the folder that holds `3dshapes/3dshapes.h5`, the published file.
        image_size: resize images to this height and width, in pixels.
        test_fraction: share of the rows held out.
        seed: of the split.

    Returns:
        `(train, test)` with six factors, `x` uint8 `(n, 3, 64, 64)`, read lazily.

    Raises:
        FileNotFoundError: the file is absent.
        ValueError: it is damaged, or not the published one.

    References:
        Kim & Mnih 2018, https://arxiv.org/abs/1802.05983;
        https://github.com/google-deepmind/3d-shapes.
    """
    check_image_size(image_size, "3d-shapes")
    path = Path(data_dir) / "3dshapes" / "3dshapes.h5"
    check_present("3d-shapes", path, _PAGE)
    images, labels = _open(path)
    data = data_of_grid(images, FACTORS, path, image_size)
    assert data.factors is not None
    _check_labels(path, labels, data.factors)
    return split(data, test_fraction, seed)


def _open(path: Path) -> tuple[H5Rows, H5Rows]:
    import h5py

    with reading(path), h5py.File(path, "r") as file:
        missing = [key for key in _KEYS if key not in list_h5(file)]
        if missing:
            raise Refused(
                f"{path}: the file must hold images and labels; got no {' and no '.join(missing)}. "
                f"Fetch it again from {_PAGE}."
            )
        images, labels = (h5_rows(path, file, key) for key in _KEYS)
    return images, labels


def _check_labels(path: Path, labels: H5Rows, factors: np.ndarray) -> None:
    """The stored values of the factors must follow the order that gave the classes."""
    agree = labels.shape == factors.shape and labels.dtype.kind == "f"
    if agree:
        values = labels[np.arange(len(labels))].round(6)  # what is equal may not be so to the bit
        classes = [np.unique(column, return_inverse=True)[1] for column in values.T]
        agree = np.array_equal(np.stack(classes, axis=1), factors)
    if not agree:
        raise ValueError(
            f"{path}: labels must hold the values of {', '.join(FACTORS)}, a row for each image, the last "
            f"changing fastest; got {labels.dtype} of shape {labels.shape} in another order or number. "
            "Fetch the file again."
        )
