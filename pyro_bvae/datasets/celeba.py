"""CelebA: photographs of faces, aligned, with the official split and 40 attributes."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import numpy as np

from ._torchvision import import_torchvision
from .data import Data
from .decoded import decoded
from .folder import ImageFiles, image_size_of
from .images import check_image_size

N_IMAGES = 202_599
_SIZE = (178, 218)
_CROP = 148
_PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
_IMAGES, _SPLIT, _ATTRIBUTES = "img_align_celeba", "list_eval_partition.txt", "list_attr_celeba.txt"
_TEST = 2


def load_celeba(
    data_dir: Path, download: bool = False, image_size: int | None = None
) -> tuple[Data, Data]:
    """Load CelebA's 202,599 aligned faces; the first time all are decoded, which takes minutes.

    The central 148×148 pixels of each 178×218 image, which leave out most of the background, are resized.
    They are kept as `celeba/celeba-<image_size>.npy` where the folder can be written, else decoded at
    every reading.

    Args:
        data_dir: the folder that holds `celeba/img_align_celeba/*.jpg` and
            `celeba/list_eval_partition.txt`.
        download: let torchvision fetch files that are absent, and check their md5.
        image_size: height and width in pixels, 64 if None.

    Returns:
        `(train, test)`, the official training and validation images, and the official test images:
        `x` uint8 `(n, 3, image_size, image_size)`, read lazily. Where `celeba/list_attr_celeba.txt` is there,
        its 40 attributes are factors of 0 and 1.

    Raises:
        FileNotFoundError: files are absent and could not or must not be downloaded.
        ValueError: a file is damaged, or not the published one.

    References:
        Liu et al. 2015, https://arxiv.org/abs/1411.7766.
    """
    check_image_size(image_size, "celeba")
    folder = Path(data_dir) / "celeba"
    absent = [name for name in (_IMAGES, _SPLIT) if not os.path.exists(folder / name)]
    if absent and download:
        _download(data_dir, folder)
    elif absent:
        raise FileNotFoundError(
            f"celeba: {folder} must hold {_IMAGES} and {_SPLIT}; got no {' and no '.join(absent)}. Pass "
            f"--download, or fetch them from {_PAGE}, or pass --data-dir DIR (or set PYRO_BVAE_DATA) for the "
            "folder that holds celeba."
        )
    names, parts = _read_split(folder)
    side = image_size or 64
    paths = tuple(folder / _IMAGES / name for name in names)
    x = decoded(ImageFiles(paths, (3, side, side), _CROP), folder / f"celeba-{side}.npy")
    data = Data(x, None, *_read_attributes(folder / _ATTRIBUTES, names))
    train, test = (data.subset(np.flatnonzero(part)) for part in (parts != _TEST, parts == _TEST))
    return train, test


def _download(data_dir: Path, folder: Path) -> None:
    import_torchvision()
    dataset_class = importlib.import_module("torchvision.datasets").CelebA
    try:
        dataset_class(root=data_dir, download=True)
    except Exception as error:  # of any kind: it asks gdown, which need not be installed
        raise FileNotFoundError(
            f"celeba: the download into {folder} must succeed; got: {' '.join(str(error).split())}. Try "
            f"again, or fetch {_IMAGES}.zip and {_SPLIT} from {_PAGE} and unpack them there."
        ) from error


def _read_split(folder: Path) -> tuple[list[str], np.ndarray]:
    """Names of the images, and for each 0 (training), 1 (validation) or 2 (test)."""
    table = [line.split() for line in _lines(folder / _SPLIT)]
    good = all(len(row) == 2 and row[1] in ("0", "1", "2") for row in table)
    if not good or not len({row[0] for row in table}) == len(table) == N_IMAGES:
        raise ValueError(
            f"{folder / _SPLIT}: the file must give 0, 1 or 2 to each of {N_IMAGES} images; got "
            f"{len(table)} lines, or others. Fetch it again from {_PAGE}."
        )
    # Only what a listing shows is opened: a name in the file may be a path to anywhere.
    try:
        there = set(os.listdir(folder / _IMAGES))
    except OSError as error:
        raise ValueError(
            f"{folder / _IMAGES}: it must be a folder that can be read; got {type(error).__name__}. "
            f"Unpack {_IMAGES}.zip there."
        ) from error
    missing = [name for name, _ in table if name not in there]
    if missing:
        raise ValueError(
            f"{folder / _IMAGES}: the folder must hold the {N_IMAGES} images of {_SPLIT}; got no "
            f"{missing[0][:40]!r}, among {len(missing)} missing. Unpack {_IMAGES}.zip again."
        )
    first = folder / _IMAGES / table[0][0]
    size = image_size_of(first)
    if size != _SIZE:
        raise ValueError(
            f"{first}: the image must have {_SIZE[0]}x{_SIZE[1]} pixels, as those aligned and cropped; got "
            f"{size[0]}x{size[1]}. Fetch {_IMAGES}.zip from {_PAGE}."
        )
    return [name for name, _ in table], np.array([int(part) for _, part in table])


def _read_attributes(path: Path, names: list[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """0 and 1 for -1 and 1, `(n, 40)`, and the attributes' names; nothing where there is no such file."""
    if not os.path.exists(path):
        return None, ()
    _, header, *lines = [*_lines(path), "", ""]
    attributes = tuple(header.split())
    factors = np.empty((len(names), len(attributes)), np.int64)
    for row, name, line in zip(factors, names, lines, strict=False):
        found, *values = line.split() or [""]
        good = found == name and 0 < len(values) == len(row) and {*values} <= {"-1", "1"}
        if not good:
            raise ValueError(
                f"{path}: the file must give -1 or 1 to each image for each attribute of its second line; got "
                f"another line for {name}. Fetch it again from {_PAGE}."
            )
        row[:] = [value == "1" for value in values]
    return factors, attributes


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: the file must be a readable text file; got {type(error).__name__}. "
            f"Fetch it again from {_PAGE}."
        ) from error
