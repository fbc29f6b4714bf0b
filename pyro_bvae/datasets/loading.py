"""From the name of a data set, a path or an array to training and test data."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .celeba import load_celeba
from .chairs import load_3d_chairs
from .data import Data
from .digits import load_digits
from .dsprites import load_dsprites
from .files import check_there, load_array, load_file, read_file
from .images import binarize_static
from .mpi3d import VARIANTS, load_mpi3d
from .shapes3d import load_3d_shapes
from .spirals import load_spirals
from .torchvision_sets import load_fashion_mnist, load_mnist

# A loader returns (train, test). It takes by name those options of `load_dataset` that it
# understands: data_dir, download, image_size, test_fraction, seed; the others are refused.
DATASETS: dict[str, Callable[..., tuple[Data, Data]]] = {
    "spirals": load_spirals,
    "digits": load_digits,
    "mnist": load_mnist,
    "fashion-mnist": load_fashion_mnist,
    "dsprites": load_dsprites,
    "3d-shapes": load_3d_shapes,
    **{f"mpi3d-{variant}": partial(load_mpi3d, variant) for variant in VARIANTS},
    "3d-chairs": load_3d_chairs,
    "celeba": load_celeba,
}


def load_dataset(
    name_or_path: str | Path | np.ndarray | tuple[np.ndarray, np.ndarray],
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    binarize: str = "none",
    test_fraction: float = 0.1,
    seed: int = 0,
) -> tuple[Data, Data]:
    """Load a data set and its held-out split.

    Args:
        name_or_path: a key of `DATASETS`; a .npy, .npz, .h5 or .hdf5 file; a folder of images,
            with or without class sub-folders; an array `(n, ...)`; or a pair (array, labels).
        data_dir: where downloaded sets lie, those of torchvision as it lays them out
            (`<data_dir>/MNIST/raw/*.gz`); None means `$PYRO_BVAE_DATA`, else `data` here.
        download: fetch files that are absent.
        image_size: resize images bilinearly to this height and width; None means 32 for mnist and
            fashion-mnist, 64 for 3d-chairs and celeba, and no resizing elsewhere.
        binarize: "static" turns uint8 values of 128 or more into 255 and others into 0; "none"
            leaves them.
        test_fraction: share of the rows held out, for data without a split of their own.
        seed: of the split, and of the points of spirals; 0 or more.

    Returns:
        `(train, test)`.

    Raises:
        FileNotFoundError: files are absent, or no data set has this name.
        ValueError: an option is out of range or does not apply to this data, or a file is damaged.
        TypeError: an array has an unsuitable dtype.

    Examples:
        >>> train, test = load_dataset("digits", test_fraction=0.2)
        >>> len(train), len(test), train.x_shape, train.n_classes
        (1438, 359, (1, 8, 8), 10)
    """
    if binarize not in ("none", "static"):
        raise ValueError(
            f"load_dataset: binarize must be 'none' or 'static'; got {binarize!r}. Choose one."
        )
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(
            f"load_dataset: seed must be a whole number; got {type(seed).__name__}. Try --seed 0."
        )
    if seed < 0:
        raise ValueError(f"load_dataset: seed must be 0 or more; got {seed}. Try --seed 0.")
    name, loader = find_loader(name_or_path)
    accepted = inspect.signature(loader).parameters
    options: dict[str, Any] = {
        "data_dir": data_dir,
        "download": download,
        "image_size": image_size,
        "test_fraction": test_fraction,
    }
    for option, value in options.items():
        default = inspect.signature(load_dataset).parameters[option].default
        if option not in accepted and value != default:
            raise ValueError(
                f"{name}: {option} must be left out, as it does not apply to this data; got "
                f"{value}. Drop --{option.replace('_', '-')}."
            )
    options["data_dir"] = _path(data_dir or os.environ.get("PYRO_BVAE_DATA") or "data")
    options["seed"] = seed
    train, test = loader(**{key: options[key] for key in options if key in accepted})
    if binarize == "static":
        train, test = binarize_static(train, name), binarize_static(test, name)
    return train, test


def read_data(path: str | Path, *, image_size: int | None = None, binarize: str = "none") -> Data:
    """All rows of one's own file or folder, without a split; images and errors as in `load_dataset`."""
    data = read_file(_path(path), image_size)
    return binarize_static(data, str(path)) if binarize == "static" else data


def _path(text: str | Path) -> Path:
    """With the user's home for "~"."""
    return Path(os.path.expanduser(text))


def find_loader(
    source: str | Path | np.ndarray | tuple[np.ndarray, np.ndarray],
) -> tuple[str, Callable[..., tuple[Data, Data]]]:
    """The name of a data set for errors, and its loader; nothing is read yet, and torch not imported.

    Raises:
        FileNotFoundError: no data set has this name, or nothing is at this path.
        TypeError: neither a name, a path nor arrays.
    """
    if isinstance(source, np.ndarray):
        return "array", partial(load_array, source)
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], np.ndarray):
        return "array", partial(load_array, *source)
    if not isinstance(source, (str, Path)):
        raise TypeError(
            "load_dataset: name_or_path must be a name, a path, an array or a pair "
            f"(array, labels); got {type(source).__name__}. Convert it with numpy.asarray."
        )
    if isinstance(source, str) and source in DATASETS:
        return source, DATASETS[source]
    path = _path(source)
    # Path("") is the folder one stands in, which an empty shell variable does not mean
    if isinstance(source, Path) or (
        source and (os.path.exists(path) or path.suffix or len(path.parts) != 1)
    ):
        check_there(path)
        return str(path), partial(load_file, path)
    close = difflib.get_close_matches(source, DATASETS, n=1)
    raise FileNotFoundError(
        f"load_dataset: the data set must be one of {', '.join(DATASETS)}, or an existing path; "
        f"got {source!r}. " + (f"Did you mean {close[0]}?" if close else "Choose one of them.")
    )
