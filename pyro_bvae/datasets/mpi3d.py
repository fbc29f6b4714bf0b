"""MPI3D: an object on a robot's arm, for every combination of seven factors, rendered or photographed."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from .data import Data, split
from .images import check_image_size
from .memory import check_fits
from .numpy_files import read_npy, read_npz
from .published import IMAGE, check_present, data_of_grid
from .rows import Refused, Rows, reading

FACTORS = {
    "object_color": 6,
    "object_shape": 6,
    "object_size": 2,
    "camera_height": 3,
    "background_color": 3,
    "horizontal_axis": 40,
    "vertical_axis": 40,
}
"""How many values each factor has; the last changes fastest from one image to the next."""

VARIANTS = ("toy", "realistic", "real")
_PAGE = "https://github.com/rr-learning/disentanglement_dataset"


def load_mpi3d(
    variant: str,
    data_dir: Path,
    image_size: int | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> tuple[Data, Data]:
    """Load the 1,036,800 images of one part of MPI3D.

    Args:
        variant: one of `VARIANTS`.
        data_dir: the folder that holds `mpi3d/mpi3d_<variant>.npz`, the published file, which takes
            12.7 GB of memory; or beside it `mpi3d_<variant>.npy`, the member `images.npy` taken out,
            which is read lazily and preferred.
        image_size: resize images to this height and width, in pixels.
        test_fraction: share of the rows held out.
        seed: of the split.

    Returns:
        `(train, test)` with seven factors, `x` uint8 `(n, 3, 64, 64)`.

    Raises:
        FileNotFoundError: both files are absent.
        ValueError: a file is damaged, or not the published one, or the .npz does not fit in half of the
            machine's memory.

    References:
        Gondal et al. 2019, https://arxiv.org/abs/1906.03292;
        https://github.com/rr-learning/disentanglement_dataset.
    """
    name = f"mpi3d-{variant}"
    check_image_size(image_size, name)
    npz = Path(data_dir) / "mpi3d" / f"mpi3d_{variant}.npz"
    npy = npz.with_suffix(".npy")
    if os.path.isfile(npy):
        with reading(npy):
            x = read_npy(npy, lazily=True)
        data = data_of_grid(x, FACTORS, npy, image_size)
    else:
        check_present(name, npz, _PAGE)
        data = data_of_grid(_read_npz(npz, npy), FACTORS, npz, image_size)
    return split(data, test_fraction, seed)


def _read_npz(npz: Path, npy: Path) -> np.ndarray | Rows:
    def images(found: list[str]) -> list[str | None]:
        if "images" not in found:
            raise Refused(
                f"{npz}: the file must hold images; got none. Fetch it again from {_PAGE}."
            )
        return ["images"]

    shape = (math.prod(FACTORS.values()), *IMAGE)
    try:
        check_fits(str(npz), shape, np.dtype(np.uint8))
    except Refused as error:
        raise ValueError(
            f"{npz}: the images must fit in half of this machine's memory; got {math.prod(shape) / 1e9:.3g} "
            f"GB. Take them out, to be read as needed: unzip -p {npz} images.npy > {npy}"
        ) from error
    with reading(npz):
        (x,) = read_npz(npz, images)
    assert x is not None
    return x
