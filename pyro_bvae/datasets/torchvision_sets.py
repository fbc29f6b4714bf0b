"""MNIST and Fashion-MNIST, read by torchvision's own classes from files that stay untouched.

torchvision reads unpacked files only and unpacks beside the .gz it finds, which a read-only or
shared folder forbids. So the files are checked (md5) and unpacked into a temporary folder first.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import tempfile
from pathlib import Path
from typing import Any

from ._torchvision import import_torchvision
from .data import Data
from .images import check_image_size, resize

_LARGEST_FILE = 64 << 20
"""Bytes; unpacked, the largest official file has 47,040,016. What is larger is not read at all."""


def load_mnist(
    data_dir: Path, download: bool = False, image_size: int | None = None
) -> tuple[Data, Data]:
    """Load MNIST's 60,000 training and 10,000 test images.

    Args:
        data_dir: the folder that holds `MNIST/raw/`.
        download: let torchvision fetch files that are absent.
        image_size: height and width in pixels, 32 if None.

    Returns:
        `(train, test)`, the official split, `x` uint8 `(n, 1, image_size, image_size)`.

    Raises:
        FileNotFoundError: files are absent and could not or must not be downloaded.
        ValueError: a file is damaged.
    """
    return _load("mnist", "MNIST", Path(data_dir), download, image_size)


def load_fashion_mnist(
    data_dir: Path, download: bool = False, image_size: int | None = None
) -> tuple[Data, Data]:
    """Load Fashion-MNIST's 60,000 training and 10,000 test images; arguments as `load_mnist`."""
    return _load("fashion-mnist", "FashionMNIST", Path(data_dir), download, image_size)


def _load(
    name: str, class_name: str, data_dir: Path, download: bool, image_size: int | None
) -> tuple[Data, Data]:
    check_image_size(image_size, name)
    import_torchvision()
    dataset_class = getattr(importlib.import_module("torchvision.datasets"), class_name)
    raw = data_dir / class_name / "raw"
    absent = _absent(raw, dataset_class)
    if absent and download:
        _download(name, dataset_class, data_dir, raw)
    elif absent:
        raise FileNotFoundError(
            f"{name}: {raw} must hold all {len(_file_names(dataset_class))} files of the data set; "
            f"got no {', '.join(absent)}. Pass --download, or --data-dir DIR (or set PYRO_BVAE_DATA) to "
            f"the folder that holds {class_name}/raw."
        )
    with tempfile.TemporaryDirectory() as temporary:
        _unpack(name, dataset_class, raw, Path(temporary) / class_name / "raw")
        try:
            parts = [dataset_class(root=temporary, train=train) for train in (True, False)]
        except Exception as error:  # torchvision trusts the sizes in a file, and asserts
            raise ValueError(
                f"{name}: the files in {raw} must be complete idx files; got one that torchvision "
                f"cannot read ({type(error).__name__}). Delete them and pass --download."
            ) from error
    if any(len(p.data) != len(p.targets) for p in parts):
        raise ValueError(
            f"{name}: the files in {raw} must hold a label for each image; got "
            f"{[(len(p.data), len(p.targets)) for p in parts]}. Delete them and pass --download."
        )
    train, test = (
        resize(Data(p.data[:, None].numpy(), p.targets.numpy()), image_size or 32, name)
        for p in parts
    )
    return train, test


def _file_names(dataset_class: Any) -> list[str]:
    return [file_name for file_name, _ in dataset_class.resources]


def _absent(raw: Path, dataset_class: Any) -> list[str]:
    """Names of the .gz files of which neither the packed nor the unpacked form is in `raw`."""
    return [
        file_name
        for file_name in _file_names(dataset_class)
        if not (raw / file_name).is_file() and not (raw / file_name).with_suffix("").is_file()
    ]


def _download(name: str, dataset_class: Any, data_dir: Path, raw: Path) -> None:
    try:
        dataset_class(root=data_dir, download=True)
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"{name}: the download into {raw} must succeed; got: "
            f"{' '.join(str(error).split())}. Try again, or put "
            f"{', '.join(_file_names(dataset_class))} there by hand."
        ) from error


def _unpack(name: str, dataset_class: Any, raw: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for file_name, md5 in dataset_class.resources:
        packed = raw / file_name
        unpacked = packed.with_suffix("")
        if not packed.is_file():
            (target / unpacked.name).write_bytes(_read(name, unpacked))
            continue
        content = _read(name, packed)
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != md5:
            raise ValueError(
                f"{name}: {packed} must be the official file with md5 {md5}; got {found} "
                f"({len(content)} bytes). Delete it and pass --download."
            )
        (target / unpacked.name).write_bytes(gzip.decompress(content))


def _read(name: str, path: Path) -> bytes:
    """The bytes of a file no larger than an official one."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ValueError(
            f"{name}: {path} must be readable; got {type(error).__name__}. Check its rights."
        ) from error
    if len(content) > _LARGEST_FILE:
        raise ValueError(
            f"{name}: {path} must have at most {_LARGEST_FILE} bytes; got more. "
            "Delete it and pass --download."
        )
    return content
