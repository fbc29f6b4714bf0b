"""3D Chairs: drawings of chair models, each from 31 sides and two heights."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from .data import Data, split
from .decoded import decoded
from .folder import ImageFiles
from .images import check_image_size
from .published import check_present, combinations

N_MODELS = 1393
N_VIEWS = 62
_PAGE = "https://www.di.ens.fr/willow/research/seeing3Dchairs/data/rendered_chairs.tar"
_VIEW = re.compile(r"image_\d+_p(\d+)_t(\d+)_r\d+\.png")


def load_3d_chairs(
    data_dir: Path, image_size: int | None = None, test_fraction: float = 0.1, seed: int = 0
) -> tuple[Data, Data]:
    """Load the 86,366 images of 3D Chairs; the first time all are decoded, which takes minutes.

    The published 600×600 images are resized whole, their white margins included. They are kept as
    `rendered_chairs/chairs-<image_size>.npy` where the folder can be written, else decoded at every reading.

    Args:
        data_dir: the folder that holds `rendered_chairs/<model>/renders/image_*_p*_t*_r*.png`.
        image_size: height and width in pixels, 64 if None.
        test_fraction: share of the rows held out.
        seed: of the split.

    Returns:
        `(train, test)`, `x` uint8 `(n, 3, image_size, image_size)`, read lazily, and factors: model
        (in the order of their names), elevation (20 and 30 degrees) and azimuth.

    Raises:
        FileNotFoundError: the folder is absent.
        ValueError: models or views are missing, or an image cannot be read.

    References:
        Aubry et al. 2014, https://www.di.ens.fr/willow/research/seeing3Dchairs/.
    """
    check_image_size(image_size, "3d-chairs")
    folder = Path(data_dir) / "rendered_chairs"
    check_present("3d-chairs", folder, _PAGE, Path(data_dir))
    paths, sizes = _find(folder)
    side = image_size or 64
    x = decoded(ImageFiles(tuple(paths), (3, side, side)), folder / f"chairs-{side}.npy")
    names = ("model", "elevation", "azimuth")
    return split(Data(x, None, combinations(sizes), names), test_fraction, seed)


def _find(folder: Path) -> tuple[list[Path], tuple[int, int, int]]:
    """The images of every combination of model, elevation and azimuth, and how many there are of each."""
    models: dict[str, dict[tuple[int, int], Path]] = {}
    for path in folder.glob("*/renders/*.png"):
        view = _VIEW.fullmatch(path.name)
        if view:
            views = models.setdefault(path.parts[-3], {})
            views[int(view[1]), int(view[2])] = path
    if len(models) != N_MODELS:
        raise ValueError(
            f"{folder}: the folder must hold the renders of {N_MODELS} models; got {len(models)}. "
            f"Unpack {_PAGE} again."
        )
    seen = np.array(sorted({view for views in models.values() for view in views}))
    elevations, azimuths = np.unique(seen[:, 0]), np.unique(seen[:, 1])
    n_grid = len(elevations) * len(azimuths)
    for name, views in models.items():
        if not len(views) == n_grid == N_VIEWS:
            raise ValueError(
                f"{folder}: each model must have the same {N_VIEWS} views; got {len(views)} of {name}, and "
                f"{n_grid} among all. Unpack {_PAGE} again."
            )
    paths = [models[name][view] for name in sorted(models) for view in sorted(models[name])]
    return paths, (N_MODELS, len(elevations), len(azimuths))
