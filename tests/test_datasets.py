"""Data sets: hand-computed values, Pillow, the real files, and every documented error."""

import gzip
import hashlib
import importlib
import os
import pickle
import re
import subprocess
import sys
import zipfile
import zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import convolve

from pyro_bvae.datasets import (
    DATASETS,
    Data,
    h5_files,
    load_dataset,
    memory,
    read_data,
    spirals,
    to_float,
)
from pyro_bvae.datasets import _torchvision as guarded
from pyro_bvae.datasets.data import split
from pyro_bvae.datasets.images import resize, to_rows
from pyro_bvae.datasets.numpy_files import read_npy

ROOT = Path(os.environ.get("PYRO_BVAE_DATA") or Path(__file__).parents[2] / "shared" / "data")
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (10, 12, 9), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (10, 12, 9, 3), dtype=np.uint8)


def needs(folder):
    found = (ROOT / folder).exists()
    return pytest.mark.skipif(not found, reason=f"{ROOT / folder} is absent; set PYRO_BVAE_DATA")


def rows_of(*parts):
    """All rows, as a sorted list, so that data before and after a split can be compared."""
    return sorted(
        row.tobytes() for part in parts for row in part.batch(np.arange(len(part), dtype=np.int64))
    )


# Data


def test_data_properties():
    data = Data(
        np.zeros((4, 3, 8, 6), np.uint8),
        np.array([0, 2, 0, 1], np.uint8),
        np.arange(8, dtype=np.int32).reshape(4, 2),
        ("shape", "scale"),
    )
    assert (len(data), data.x_shape, data.n_classes, data.resident) == (4, (3, 8, 6), 3, True)
    assert data.labels.dtype == np.int64 and data.factors.dtype == np.int64
    part = data.subset(np.array([3, 1]))
    assert part.labels.tolist() == [1, 2] and part.factors.tolist() == [[6, 7], [2, 3]]
    assert part.factor_names == ("shape", "scale")
    assert Data(np.zeros((1, 2), np.float32)).n_classes == 0


def nan_rows():
    x = np.zeros((6, 2), np.float32)
    x[4], x[2, 1] = np.nan, np.inf
    return x


X = np.zeros((3, 2), np.float32)


@pytest.mark.parametrize(
    "error, message, arguments",
    [
        (TypeError, "x must be a numpy array .* got list", ([[1.0]],)),
        (TypeError, "x must be a numpy array .* got Tensor", (torch.zeros(3, 2),)),
        (TypeError, "x must be uint8, float32 or float64; got float16", (X.astype(np.float16),)),
        (ValueError, r"x must have at least one row .* got shape \(0, 2\)", (X[:0],)),
        (ValueError, r"x must have at least one row .* got shape \(3,\)", (X[:, 0],)),
        (ValueError, "got 3 NaN or infinite values, the first in row 2", (nan_rows(),)),
        (TypeError, r"labels must be integers; got 0\.5 in row 0", (X, np.full(3, 0.5))),
        (ValueError, r"labels must have shape \(3,\); got \(2,\)", (X, np.zeros(2, int))),
        (ValueError, "labels must be 0 or more; got -1 in row 1", (X, np.array([0, -1, 2]))),
        (TypeError, "factors must be numbers; got bool", (X, None, np.zeros((3, 1), bool))),
        (
            ValueError,
            r"factors must have shape \(3, n_factors\); got \(3,\)",
            (X, None, np.zeros(3, int)),
        ),
        (
            ValueError,
            r"factors must have shape \(3, 1\); got \(2, 1\)",
            (X, None, np.zeros((2, 1), int)),
        ),
        (
            ValueError,
            r"factor_names must name each column of factors \(1\)",
            (X, None, np.zeros((3, 1), int), ("a", "b")),
        ),
        (ValueError, r"each column of factors \(0\); got \('a',\)", (X, None, None, ("a",))),
    ],
)
def test_data_errors(error, message, arguments):
    with pytest.raises(error, match=message):
        Data(*arguments)


def test_subset_errors():
    with pytest.raises(ValueError, match="indices must lie in 0 to 2; got 3"):
        Data(X).subset(np.array([0, 3]))
    with pytest.raises(TypeError, match="indices must be integers; got bool.*flatnonzero"):
        Data(X).subset(np.array([True, False, True]))


@pytest.mark.parametrize("n, fraction, n_test", [(10, 0.2, 2), (2, 0.01, 1), (3, 0.99, 2)])
def test_split_partitions_the_rows(n, fraction, n_test):
    data = Data(np.arange(n, dtype=np.float32)[:, None], np.arange(n))
    train, test = split(data, fraction, 0)
    assert len(test) == n_test
    assert sorted([*train.labels, *test.labels]) == list(range(n))
    assert (train.x[:, 0] == train.labels).all()
    assert (split(data, fraction, 0)[0].labels == train.labels).all()


def test_split_errors():
    with pytest.raises(ValueError, match="test_fraction must lie between 0 and 1; got 1"):
        split(Data(X), 1, 0)
    with pytest.raises(ValueError, match="at least 2 rows"):
        split(Data(X[:1]), 0.5, 0)


def test_to_float():
    levels = to_float(torch.arange(256, dtype=torch.uint8))
    assert levels.dtype == torch.float32
    assert torch.equal(levels, torch.arange(256, dtype=torch.float32) / 255)
    assert torch.equal(to_float(torch.tensor([-3.5, 700.0])), torch.tensor([-3.5, 700.0]))


def test_import_is_light():
    code = (
        "import sys, pyro_bvae.datasets; "
        "print({'torchvision', 'h5py', 'sklearn', 'PIL', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"


# spirals and digits


def test_spirals_rotation_by_hand(monkeypatch):
    """Without noise x = (1, 0), and arm k lies on the unit circle at angle 2πk/4 + e/4."""

    class Noiseless:
        def normal(self, mean, scale, size):
            assert mean == (1.0, 0.0) and scale == (0.3, 0.1)
            return np.broadcast_to(mean, size)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Noiseless())
    data = spirals(n_per_arm=1)
    # e/4 = 0.679570 rad; cos and sin by their series; each further arm is a quarter turn on.
    c, s = 0.777843, 0.628459
    assert data.x == pytest.approx(np.array([[c, s], [-s, c], [-c, -s], [s, -c]]), abs=2e-6)
    assert data.labels.tolist() == [0, 1, 2, 3]


def test_spirals_unrotated_moments():
    data = spirals(n_per_arm=20_000, n_arms=3, seed=5)
    assert data.x.dtype == np.float32 and (np.bincount(data.labels) == 20_000).all()
    # E r² = 1 + .3² + .1² is kept by any rotation; its standard error here is .0026.
    assert (data.x.astype(float) ** 2).sum(1).mean() == pytest.approx(1.10, abs=0.011)
    # Arms are turned by a third of a circle each, so the mean of all points is 0.
    assert data.x.mean(axis=0) == pytest.approx(np.zeros(2), abs=0.015)


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_spirals_train_and_test_differ(seed):
    train, test = load_dataset("spirals", seed=seed)
    assert train.x.shape == test.x.shape == (400, 2)
    assert not set(rows_of(train)) & set(rows_of(test))
    assert (load_dataset("spirals", seed=seed)[1].x == test.x).all()


def test_spirals_errors():
    with pytest.raises(ValueError, match="spirals: n_arms must be 1 or more; got 0"):
        spirals(n_arms=0)


def test_digits():
    train, test = load_dataset("digits", test_fraction=0.25, seed=3)
    assert train.x.dtype == np.uint8 and train.x_shape == (1, 8, 8) and train.n_classes == 10
    assert len(train) == 1348 and len(test) == 449
    from sklearn.datasets import load_digits

    stored = load_digits().images.astype(int)
    expected = Data(((stored * 255 + 8) // 16).astype(np.uint8)[:, None])
    assert rows_of(train, test) == rows_of(expected)
    assert load_dataset("digits", image_size=32)[0].x_shape == (1, 32, 32)


# images


@pytest.mark.parametrize("size", [5, 16, 32])
def test_resize_agrees_with_pillow(size):
    data = Data(np.ascontiguousarray(COLOUR.transpose(0, 3, 1, 2)))
    got = resize(data, size, "test").x.transpose(0, 2, 3, 1).astype(int)
    pillow = [
        Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR) for image in COLOUR
    ]
    assert np.abs(got - np.stack([np.asarray(image) for image in pillow])).max() <= 1


def test_resize_errors():
    with pytest.raises(ValueError, match="test: image_size must be left out for vectors; got 8"):
        resize(Data(X), 8, "test")
    with pytest.raises(ValueError, match="digits: image_size must be 1 or more; got 0"):
        load_dataset("digits", image_size=0)


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((5, 7, 6), (5, 1, 7, 6)),
        ((5, 7, 6, 1), (5, 1, 7, 6)),
        ((5, 7, 6, 3), (5, 3, 7, 6)),
        ((5, 4, 6, 3), (5, 3, 4, 6)),
        ((5, 3, 7, 6), (5, 3, 7, 6)),
        ((5, 3, 7, 3), (5, 3, 7, 3)),
        ((5, 1, 7, 6), (5, 1, 7, 6)),
        ((5, 1, 7, 4), (5, 1, 7, 4)),
        ((5, 9), (5, 9)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float64, ">f4"])
def test_layouts(shape, expected, dtype):
    x = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    got = to_rows(x, "test")
    assert got.shape == expected and got.dtype == (np.uint8 if dtype is np.uint8 else np.float32)
    if len(shape) == 4 and expected != shape:
        assert (got[:, -1] == x[..., -1]).all()
    else:
        assert (got.ravel() == x.ravel()).all()


@pytest.mark.parametrize("shape", [(5, 7, 6, 4), (5, 2, 7, 6), (5, 4, 7, 6), (5, 7, 6, 2)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_have_1_or_3_channels(shape, dtype):
    sentence = (
        rf"^array: images must have 1 or 3 channels; got shape {re.escape(str(shape))}\. Drop"
    )
    with pytest.raises(ValueError, match=sentence):
        load_dataset(np.full(shape, 0.5).astype(dtype))


def test_layout_errors():
    with pytest.raises(TypeError, match="array: x must be uint8 or floating point; got int64"):
        load_dataset(np.zeros((4, 2), int))
    with pytest.raises(ValueError, match=r"x must be shaped \(n, d\).*got \(4,\)"):
        load_dataset(np.zeros(4))
    with pytest.raises(ValueError, match="got 1 NaN or infinite values, the first in row 1"):
        load_dataset(np.array([[1.0], [1e300]]))


def test_binary_images_are_scaled():
    train, test = load_dataset(GREY % 2)
    assert set(np.unique(train.x)) == {0, 255}
    assert rows_of(train, test) == rows_of(Data((GREY % 2 * 255)[:, None]))


def test_binarize():
    x = np.array([[0, 127, 128, 255]] * 2, np.uint8)
    assert load_dataset(x, binarize="static")[0].x.tolist() == [[0, 0, 255, 255]]


# files of the user's own


def test_an_h5_file_that_is_truncated_while_it_is_read(tmp_path, monkeypatch):
    """HDF5 reads zeros beyond the end of a file it has opened."""
    path = tmp_path / "rows.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.ones((4000, 6), np.float32)
    train, _ = load_dataset(path)
    slices = h5_files.H5Rows._slices

    def truncated(*args):
        os.truncate(path, 5000)
        return slices(*args)

    monkeypatch.setattr(h5_files.H5Rows, "_slices", truncated)
    with pytest.raises(ValueError, match=r"rows\.h5.*cannot be read \(EOFError\)"):
        train.batch(np.arange(len(train)))


@pytest.mark.parametrize("kind", ["array", "npy", "npz", "h5", "hdf5"])
@pytest.mark.parametrize("binary", [False, True])
def test_every_file_kind_gives_the_same_data(tmp_path, kind, binary):
    images, labels = (GREY % 2 if binary else GREY), np.arange(10, dtype=np.uint8)
    path = tmp_path / f"own.{kind}"
    if kind == "array":
        path = (images, labels)
    elif kind == "npy":
        np.save(path, images)
    elif kind == "npz":
        np.savez(path, images=images, y=labels, factors=labels[:, None])
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("images", data=images, chunks=(4, 12, 9), compression="gzip")
            file["labels"], file["latents_classes"] = labels, labels[:, None]
            file.create_group("other")
    train, test = load_dataset(path if kind == "array" else str(path), test_fraction=0.3, seed=1)
    assert train.resident == (kind in ("array", "npz")) and train.x.dtype == np.uint8
    assert (len(train), len(test), train.x_shape) == (7, 3, (1, 12, 9))
    assert rows_of(train, test) == rows_of(Data((images * (255 if binary else 1))[:, None]))
    if kind != "npy":
        index = np.array([5, 0, 5, 2])
        expected = images[train.labels[index]] * (255 if binary else 1)
        assert (train.batch(index)[:, 0] == expected).all()
    if kind in ("npz", "h5", "hdf5"):
        assert (test.factors[:, 0] == test.labels).all()


def test_a_file_can_be_read_whole(tmp_path):
    labels, factors = np.arange(10) % 3, np.arange(20).reshape(10, 2)
    np.savez(tmp_path / "mine.npz", x=GREY, labels=labels, factors=factors)
    data = read_data(tmp_path / "mine.npz")
    assert np.array_equal(data.x, GREY[:, None])  # in the file's order
    assert np.array_equal(data.labels, labels) and np.array_equal(data.factors, factors)
    assert rows_of(data) == rows_of(*load_dataset(tmp_path / "mine.npz"))
    small = read_data(str(tmp_path / "mine.npz"), image_size=8)
    assert np.array_equal(small.x, resize(data, 8, "mine").x)
    binary = read_data(tmp_path / "mine.npz", binarize="static")
    assert set(np.unique(binary.x)) == {0, 255} and not np.array_equal(binary.x, data.x)
    np.save(tmp_path / "one.npy", np.zeros((1, 2), np.float32))  # nothing is split off
    assert len(read_data(tmp_path / "one.npy")) == 1
    with pytest.raises(FileNotFoundError, match=r"spirals: the file or folder must exist"):
        read_data("spirals")


def test_lazy_data_is_resized_binarised_and_pickled(tmp_path):
    path = tmp_path / "own.h5"
    with h5py.File(path, "w") as file:
        file["only_array"] = COLOUR
    train, _ = load_dataset(path, image_size=16, binarize="static")
    assert not train.resident and train.x.shape == (9, 3, 16, 16)
    resident, _ = load_dataset(COLOUR, image_size=16, binarize="static")
    assert (train.batch(np.arange(9)) == resident.x).all()
    again = pickle.loads(pickle.dumps(train))
    assert (again.batch(np.array([3])) == resident.x[3]).all()
    assert not train.subset(np.array([1])).resident


def test_lazy_rows_that_only_looked_binary(tmp_path):
    x = np.zeros((1000, 2), np.uint8)
    x[1] = 200  # between two of the 256 rows that are probed
    np.save(tmp_path / "x.npy", x)
    train, test = load_dataset(tmp_path / "x.npy")
    with pytest.raises(ValueError, match="x must hold either only 0 and 1 .* got 200"):
        rows_of(train, test)


def test_damaged_files(tmp_path):
    np.save(tmp_path / "whole.npy", GREY)
    np.savez_compressed(tmp_path / "whole.npz", x=GREY, y=np.arange(10))
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        file["x"] = GREY
    for whole in list(tmp_path.iterdir()):
        content = whole.read_bytes()
        for damage in (b"", b"no such format" * 9, content[: len(content) // 2]):
            broken = tmp_path / f"broken{whole.suffix}"
            broken.write_bytes(damage)
            match = rf"broken\{whole.suffix}: the file must be a complete \{whole.suffix} file"
            with pytest.raises(ValueError, match=match):
                load_dataset(broken)
    flipped = bytearray((tmp_path / "whole.npz").read_bytes())
    flipped[200] ^= 255
    (tmp_path / "broken.npz").write_bytes(flipped)
    with pytest.raises(ValueError, match="broken.npz: the file must be a complete"):
        load_dataset(tmp_path / "broken.npz")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_nothing_is_unpickled(tmp_path, suffix):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    path = tmp_path / f"bomb.{suffix}"
    objects = np.array([Bomb()], dtype=object)
    np.save(path, objects) if suffix == "npy" else np.savez(path, x=objects)
    with pytest.raises(ValueError, match="without pickled objects"):
        load_dataset(path)
    path.write_bytes(pickle.dumps(objects))
    with pytest.raises(ValueError, match="without pickled objects"):
        load_dataset(path)


def test_keys(tmp_path):
    np.savez(tmp_path / "odd.npz", a=GREY, b=GREY)
    with pytest.raises(ValueError, match="x under one of x, images, imgs, data.*got a, b"):
        load_dataset(tmp_path / "odd.npz")
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file.create_group("x")
    with pytest.raises(ValueError, match="got no array"):
        load_dataset(tmp_path / "none.h5")


def test_npy_file_named_npz(tmp_path):
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, GREY)
    with pytest.raises(ValueError, match="complete .npz file"):
        load_dataset(tmp_path / "x.npz")


def test_names_and_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match="fashion-mnist.*got 'mnits'. Did you mean mnist?"):
        load_dataset("mnits")
    with pytest.raises(FileNotFoundError, match="must be one of spirals.*'qqq'. Choose one"):
        load_dataset("qqq")
    with pytest.raises(FileNotFoundError, match="must be one of spirals.*got ''. Choose one"):
        load_dataset("")  # and not the folder one stands in
    for path in ("absent.npy", "no/such/folder", tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match=f"{path}: the file or folder must exist"):
            load_dataset(path)
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"one of .npy .npz .h5 .hdf5 or a folder.*got .csv"):
        load_dataset(tmp_path / "x.csv")
    with pytest.raises(TypeError, match="name_or_path must be a name.*got list"):
        load_dataset([1, 2])


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("spirals", {"image_size": 8}, "spirals: image_size must be left out.*got 8. Drop --image"),
        ("spirals", {"test_fraction": 0.2}, "spirals: test_fraction must be left out.*got 0.2"),
        ("spirals", {"binarize": "static"}, "spirals: binarize must be 'none' for float32 data"),
        ("spirals", {"binarize": "dynamic"}, "binarize must be 'none' or 'static'; got 'dynamic'"),
        ("spirals", {"seed": -1}, "seed must be 0 or more; got -1"),
        ("digits", {"download": True}, "digits: download must be left out.*Drop --download"),
        ("digits", {"data_dir": "d"}, "digits: data_dir must be left out.*got d. Drop --data-dir"),
        ("mnist", {"test_fraction": 0.2}, "mnist: test_fraction must be left out"),
    ],
)
def test_options_that_do_not_apply(name, options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(name, **options)


# folders of images


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_class_folders(tmp_path):
    for i, pixels in enumerate(GREY):
        save(tmp_path / ("cat" if i < 4 else "dog") / f"{i}.png", pixels)
    train, test = load_dataset(tmp_path, test_fraction=0.4)
    assert not train.resident and train.x_shape == (1, 12, 9)
    assert rows_of(train, test) == rows_of(Data(GREY[:, None]))
    every = [tuple(r.ravel()) for r in GREY]
    for part in (train, test):
        batch = part.batch(np.arange(len(part)))
        found = [every.index(tuple(row.ravel())) for row in batch]
        assert part.labels.tolist() == [int(i >= 4) for i in found]


def test_flat_folder_mixes_grey_and_colour(tmp_path):
    save(tmp_path / "a.png", GREY[0])
    save(tmp_path / "b.bmp", COLOUR[0])
    train, test = load_dataset(str(tmp_path), test_fraction=0.5)
    assert train.labels is None and train.x_shape == (3, 12, 9)
    expected = Data(np.stack([np.stack([GREY[0]] * 3), COLOUR[0].transpose(2, 0, 1)]))
    assert rows_of(train, test) == rows_of(expected)


def test_folder_is_resized_by_pillow(tmp_path):
    save(tmp_path / "a.png", GREY[0])
    save(tmp_path / "b.png", GREY[1, :8])
    with pytest.raises(ValueError, match=r"share one size; got 9x12 \(a.png\) and 9x8 \(b.png\)"):
        load_dataset(tmp_path)
    pillow = [
        np.asarray(Image.fromarray(pixels).resize((6, 6), Image.Resampling.BILINEAR))[None]
        for pixels in (GREY[0], GREY[1, :8])
    ]
    parts = load_dataset(tmp_path, image_size=6, test_fraction=0.5)
    assert rows_of(*parts) == rows_of(Data(np.stack(pillow)))


def test_folder_errors(tmp_path):
    with pytest.raises(ValueError, match=r"must hold images \(.png .jpg.*got none"):
        load_dataset(tmp_path)
    save(tmp_path / "a.png", GREY[0])
    save(tmp_path / "c" / "b.png", GREY[1])
    with pytest.raises(ValueError, match="all in the folder or all in class sub-folders; got 1"):
        load_dataset(tmp_path)
    (tmp_path / "c" / "a.png").write_bytes(b"not a png")
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="a.png: the file must be a complete image.*Replace"):
        load_dataset(tmp_path)
    save(tmp_path / "c" / "a.png", GREY[0].astype(np.uint16) * 256)
    with pytest.raises(ValueError, match="must have 8 bits a channel; got mode I;16"):
        load_dataset(tmp_path)


def test_truncated_image_is_named_when_read(tmp_path):
    noise = RNG.integers(0, 256, (64, 64), dtype=np.uint8)
    for name in ("a.png", "b.png"):
        save(tmp_path / name, noise)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    train, _ = load_dataset(tmp_path)
    with pytest.raises(ValueError, match=r"[ab].png: the file must be a complete image"):
        train.batch(np.array([0]))


# files of a stranger's


def write_header(file, shape, descr="|u1", fortran_order=False):
    header = {"descr": descr, "fortran_order": fortran_order, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def sparse(path, shape):
    """A .npy file as long as its header says, of which almost nothing is on the disk."""
    with path.open("wb") as file:
        write_header(file, shape)
        file.truncate(file.tell() + int(np.prod(shape, dtype=object)))


@pytest.mark.parametrize("name", ["pipe.npy", "pipe.npz", "pipe.h5", "device.npy", "device.csv"])
def test_what_is_neither_file_nor_folder_is_not_opened(tmp_path, name):
    path = tmp_path / name
    path.symlink_to("/dev/zero") if "device" in name else os.mkfifo(path)
    match = f"^{path}: the path must be an ordinary file or a folder; got a pipe, a socket or a dev"
    with pytest.raises(ValueError, match=match):
        load_dataset(path)


@pytest.mark.parametrize("name", ["loop.npy", "dangling.npy", "x" * 300 + ".npy", "nul\0.npy"])
def test_names_that_lead_nowhere(tmp_path, name):
    if name.startswith(("loop", "dangling")):
        (tmp_path / name).symlink_to({"l": "loop.npy", "d": "gone"}[name[0]])
    with pytest.raises(FileNotFoundError, match="the file or folder must exist; got nothing there"):
        load_dataset(tmp_path / name)


def test_a_header_that_claims_more_than_the_file_holds(tmp_path):
    for shape in [(10**15, 2), (2**62, 2**62), (-1, 2), (10**30, 0), (2,) * 9]:
        with (tmp_path / "x.npy").open("wb") as file:
            write_header(file, shape)
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.write(tmp_path / "x.npy", "x.npy")
        for suffix in (".npy", ".npz"):
            with pytest.raises(ValueError, match=rf"x\{suffix}: the file must be a complete"):
                load_dataset(tmp_path / f"x{suffix}")


@pytest.mark.parametrize("shape", [(10**8, 1), (2, 10**8)])
def test_a_sparse_file_must_fit_in_memory(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(memory, "_memory", lambda: 1 << 24)
    sparse(tmp_path / "x.npy", shape)
    with pytest.raises(
        ValueError, match=r"x\.npy: the array must fit in half of .* got shape \(\d+, "
    ):
        load_dataset(tmp_path / "x.npy")


def test_what_unpacks_to_more_than_memory_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_memory", lambda: 1 << 20)
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((1000, 1000), np.uint8))
    assert (tmp_path / "x.npz").stat().st_size < 3000
    np.save(tmp_path / "x.npy", np.zeros((1000, 1000), np.uint8).T)  # read at once for its order
    for suffix in (".npz", ".npy"):
        with pytest.raises(
            ValueError, match=rf"x\{suffix}: the array must fit .*0\.000524 GB; got"
        ):
            load_dataset(tmp_path / f"x{suffix}")
    np.save(tmp_path / "x.npy", np.zeros((1000, 1000), np.uint8))
    assert len(read_data(tmp_path / "x.npy")) == 1000  # read row by row


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_npz_is_unpacked_by_numpys_own_methods_only(tmp_path, method):
    with (
        zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive,
        archive.open("x.npy", "w") as member,
    ):
        np.save(member, GREY)
    with pytest.raises(ValueError, match="x.npz: the file must be a complete .npz file"):
        load_dataset(tmp_path / "x.npz")


def test_npy_in_fortran_order_and_with_more_behind_it(tmp_path):
    np.save(tmp_path / "f.npy", np.asfortranarray(GREY))
    assert rows_of(read_data(tmp_path / "f.npy")) == rows_of(Data(GREY[:, None]))
    with (tmp_path / "two.npy").open("wb") as file:
        np.save(file, GREY)
        np.save(file, np.arange(10))  # numpy reads the first, too
    assert rows_of(read_data(tmp_path / "two.npy")) == rows_of(Data(GREY[:, None]))


def test_rows_of_npy_are_those_of_a_memory_map(tmp_path):
    x = RNG.normal(size=(100, 3)).astype(">f4")
    np.save(tmp_path / "x.npy", x)
    lazy = read_npy(tmp_path / "x.npy", lazily=True)
    for index in ([], [5], [7, 8, 9, 3, 3, 99, 0], np.arange(100), np.arange(100)[::-1]):
        index = np.asarray(index, dtype=np.int64)
        assert np.array_equal(lazy[index], x[index]) and lazy[index].dtype == x.dtype
    assert pickle.loads(pickle.dumps(lazy))[np.array([4])].tolist() == x[[4]].tolist()


@pytest.mark.parametrize("change", ["cut", "gone", "another"])
@pytest.mark.parametrize("suffix", [".npy", ".h5", ".png"])
def test_a_file_that_changes_while_it_is_in_use_is_named(tmp_path, suffix, change):
    path = tmp_path / f"x{suffix}"

    def write(pixels):
        if suffix == ".npy":
            np.save(path, pixels)
        elif suffix == ".png":
            save(path, pixels[0])
        else:
            with h5py.File(path, "w") as file:
                file["x"] = pixels

    write(np.repeat(GREY, 500, axis=0))
    data = read_data(tmp_path if suffix == ".png" else path)
    if change == "cut":
        os.truncate(path, 60)
    elif change == "gone":
        path.unlink()
    else:
        write(GREY[:1, :2]) if suffix != ".png" else path.write_text("no image")
    with pytest.raises(ValueError, match=rf"^{path}: the file must be a complete"):
        data.batch(np.arange(len(data)))


def elsewhere(path, kind):
    """An HDF5 file whose x leads to another file, or nowhere."""
    with h5py.File(path.with_name("secret.h5"), "w") as file:
        file["x"] = GREY
    with h5py.File(path, "w") as file:
        if kind == "external link":
            file["x"] = h5py.ExternalLink("secret.h5", "/x")
        elif kind == "soft link":
            file["other"] = h5py.ExternalLink("secret.h5", "/")
            file["x"] = h5py.SoftLink("/other/x")
        elif kind == "virtual":
            layout = h5py.VirtualLayout(GREY.shape, "u1")
            layout[:] = h5py.VirtualSource("secret.h5", "x", GREY.shape)
            file.create_virtual_dataset("x", layout)
        else:
            file.create_dataset("x", GREY.shape, "u1", external=[("secret.h5", 0, GREY.size)])


@pytest.mark.parametrize("kind", ["external link", "soft link", "virtual", "external storage"])
def test_h5_leads_to_no_other_file(tmp_path, kind):
    elsewhere(tmp_path / "x.h5", kind)
    with pytest.raises(
        ValueError, match=r"x\.h5: x must be a data set of this file; got a link, a vir"
    ):
        load_dataset(tmp_path / "x.h5")


@pytest.mark.parametrize(
    "name, arguments, error, message",
    [
        (
            "x",
            {"shape": (10**14, 2), "dtype": "u1", "chunks": (9, 2)},
            ValueError,
            "must fit in half",
        ),
        (
            "x",
            {"shape": (9, 10**6), "dtype": "u1", "chunks": (9, 10**6)},
            ValueError,
            "must fit in",
        ),
        (
            "labels",
            {"shape": (10**12,), "dtype": "i8", "chunks": (9,)},
            ValueError,
            "must fit in half",
        ),
        (
            "labels",
            {"data": np.zeros(10, [("a", "f4")])},
            ValueError,
            "labels must be an array of numbers or words; got void32",
        ),
        ("labels", {"data": 1}, ValueError, "must be an array of numbers or words; got int64"),
        ("labels", {"data": "a"}, ValueError, "must be an array of numbers or words; got object"),
        ("x", {"data": ["a", "b"]}, TypeError, "x must be uint8 or floating point; got object"),
        ("x", {"data": np.zeros(3, [("a", "f4")])}, TypeError, "floating point; got void32"),
        ("x", {"data": h5py.Empty("f4")}, ValueError, r"must be shaped \(n, d\).*got \(\)"),
    ],
)
def test_h5_data_sets_that_do_not_serve(tmp_path, monkeypatch, name, arguments, error, message):
    monkeypatch.setattr(memory, "_memory", lambda: 1 << 22)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        if name != "x":
            file["x"] = GREY
        file.create_dataset(name, **arguments)
    with pytest.raises(error, match=message):
        load_dataset(tmp_path / "x.h5")


def test_h5_in_a_compression_that_is_not_here(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        options.set_chunk((5, 2))
        options.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, ())  # Blosc, without its plug-in
        space = h5py.h5s.create_simple((10, 2))
        made = h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_UINT8, space, options)
        h5py.Dataset(made).id.write_direct_chunk((0, 0), b"packed", 0)
    with pytest.raises(ValueError, match=r"x\.h5: the file must be a complete .h5 file"):
        load_dataset(tmp_path / "x.h5")


def test_names_in_a_file_are_shown_on_one_short_line(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for i in range(100):
            archive.writestr(f"a\n{i}{'b' * 60}.npy", b"")
    with pytest.raises(
        ValueError, match=r"^[^\n]*got 'a\\n0b+\.\.\., .*, 92 more\. Rename"
    ) as caught:
        load_dataset(tmp_path / "x.npz")
    assert len(str(caught.value)) < 500


def test_signalling_nan_is_refused_without_a_warning():
    x = np.frombuffer(np.array([0x7FF4000000000000] * 4, np.uint64).tobytes(), np.float64)
    with pytest.raises(ValueError, match="Data: x must be finite; got 4 NaN"):
        load_dataset(x.reshape(2, 2))


def png_header(width, height):
    def chunk(kind, content):
        crc = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + crc

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + bytes([8, 0, 0, 0, 0]))
    return start + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 60_000])  # where Pillow warns, and where it refuses
def test_an_image_that_claims_too_many_pixels(tmp_path, side):
    (tmp_path / "a.png").write_bytes(png_header(side, side))
    with pytest.raises(ValueError, match=r"a\.png: the image must have at most \d+ pixels"):
        load_dataset(tmp_path)


def test_an_image_is_opened_as_its_suffix_promises_only(tmp_path, monkeypatch):
    """Pillow would hand a PostScript file to Ghostscript, whatever it is called."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(
        EpsImagePlugin, "Ghostscript", lambda *args: pytest.fail("a program was run")
    )
    lines = [
        "%!PS-Adobe-3.0 EPSF-3.0",
        "%%BoundingBox: 0 0 9 9",
        "%%EndComments",
        "showpage",
        "%%EOF",
    ]
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"a\.png: the file must be a complete image"):
        load_dataset(tmp_path)[0].batch(np.array([0]))


def test_links_in_a_folder(tmp_path):
    """Images and classes may be links to elsewhere; a pipe is no image, and nothing is walked for ever."""
    save(tmp_path / "store" / "a.png", GREY[0])
    save(tmp_path / "data" / "one" / "a.png", GREY[1])
    (tmp_path / "data" / "two").symlink_to(tmp_path / "store")
    os.mkfifo(tmp_path / "data" / "one" / "pipe.png")
    (tmp_path / "data" / "one" / "gone.png").symlink_to("nowhere")
    (tmp_path / "data" / "one" / "again").symlink_to(tmp_path / "data")
    assert rows_of(read_data(tmp_path / "data")) == rows_of(Data(GREY[:2, None]))
    for target in ("/", ".", tmp_path):
        (tmp_path / "data" / "up").symlink_to(target)
        with pytest.raises(
            ValueError, match="up: a class sub-folder must not hold the data folder"
        ):
            read_data(tmp_path / "data")
        (tmp_path / "data" / "up").unlink()


def test_a_folder_too_deep_to_be_walked(tmp_path, monkeypatch):
    (tmp_path / "c").mkdir()

    def walk(*args, **kwargs):
        raise RecursionError

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(
        OSError, match="the folder and its sub-folders must be readable; got Recursion"
    ):
        read_data(tmp_path)


@pytest.mark.parametrize(
    "error, message, options",
    [
        (TypeError, "seed must be a whole number; got float", {"seed": 1.5}),
        (TypeError, "seed must be a whole number; got NoneType", {"seed": None}),
        (TypeError, "image_size must be a whole number; got float", {"image_size": 8.0}),
        (TypeError, "test_fraction must be a number; got str", {"test_fraction": "0.1"}),
        (ValueError, "test_fraction must lie between 0 and 1; got nan", {"test_fraction": np.nan}),
        (ValueError, "digits: the array must fit in half of this", {"image_size": 10**6}),
        (ValueError, "digits: the array must fit in half of this", {"image_size": 10**30}),
    ],
)
def test_options_of_the_wrong_kind_or_size(error, message, options):
    with pytest.raises(error, match=message):
        load_dataset("digits", **options)


# torchvision


def test_torchvision_imports_here():
    assert guarded.import_torchvision() is sys.modules["torchvision"]
    assert importlib.import_module("torchvision.datasets").MNIST.resources


def simulate(monkeypatch, messages):
    """Let importing torchvision raise these messages in turn, then succeed."""
    before = {name: m for name, m in sys.modules.items() if name.split(".")[0] == "torchvision"}
    messages, healthy, left_behind = list(messages), object(), []

    def import_module(name):
        assert name == "torchvision"
        left_behind.append("torchvision.half" in sys.modules)
        if messages:
            monkeypatch.setitem(sys.modules, "torchvision.half", object())
            raise RuntimeError(messages.pop(0))
        return healthy

    monkeypatch.setattr(guarded, "_libraries", [])
    monkeypatch.setattr(guarded.importlib, "import_module", import_module)
    for name, module in before.items():  # put back at the end of the test
        monkeypatch.setitem(sys.modules, name, module)
    return healthy, left_behind


def test_guard_leaves_a_healthy_install_alone(monkeypatch):
    healthy, _ = simulate(monkeypatch, [])
    assert guarded.import_torchvision() is healthy
    assert guarded._libraries == []


def test_guard_declares_what_is_missing(monkeypatch):
    names = ["bvae_test_one", "bvae_test_two"]
    healthy, left_behind = simulate(
        monkeypatch, [f"operator torchvision::{name} does not exist" for name in names]
    )
    assert guarded.import_torchvision() is healthy
    assert left_behind == [False, False, False] and len(guarded._libraries) == 2
    assert all(hasattr(torch.ops.torchvision, name) for name in names)


def test_guard_lets_other_errors_through(monkeypatch):
    simulate(monkeypatch, ["CUDA versions differ"])
    with pytest.raises(RuntimeError, match="CUDA versions differ"):
        guarded.import_torchvision()
    assert guarded._libraries == []


def test_guard_gives_up(monkeypatch):
    missing = [f"operator torchvision::bvae_test_n{i} does not exist" for i in range(40)]
    simulate(monkeypatch, missing)
    with pytest.raises(RuntimeError, match="bvae_test_n16 does not exist"):
        guarded.import_torchvision()


@pytest.mark.parametrize("name, folder", [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_absent_files(tmp_path, monkeypatch, name, folder):
    monkeypatch.setenv("PYRO_BVAE_DATA", str(tmp_path))
    match = (
        f"{name}: {tmp_path}/{folder}/raw must hold all 4 files of the data set; got no .*"
        f"Pass --download, or --data-dir DIR .or set PYRO_BVAE_DATA"
    )
    with pytest.raises(FileNotFoundError, match=match):
        load_dataset(name)
    monkeypatch.delenv("PYRO_BVAE_DATA")
    with pytest.raises(FileNotFoundError, match=f"mnist: data/{folder}/raw must hold"):
        load_dataset(name)


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def small_mnist(monkeypatch, raw):
    """Write a four-file MNIST of 6 + 2 images and make torchvision expect its md5 sums."""
    guarded.import_torchvision()
    from torchvision.datasets import MNIST

    raw.mkdir(parents=True)
    images = RNG.integers(0, 256, (8, 28, 28), dtype=np.uint8)
    labels = np.arange(8, dtype=np.uint8)
    arrays = (images[:6], labels[:6], images[6:], labels[6:])
    resources = []
    for (file_name, _), array in zip(MNIST.resources, arrays, strict=True):
        content = gzip.compress(idx(array))
        (raw / file_name).write_bytes(content)
        resources.append((file_name, hashlib.md5(content).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", resources)
    return images


def test_packed_files_are_read_in_place(tmp_path, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    images = small_mnist(monkeypatch, raw)
    before = sorted(tmp_path.rglob("*"))
    train, test = load_dataset("mnist", data_dir=tmp_path, image_size=28, download=True)
    assert (train.x[:, 0] == images[:6]).all() and test.labels.tolist() == [6, 7]
    assert sorted(tmp_path.rglob("*")) == before
    for packed in list(raw.iterdir()):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    unpacked, _ = load_dataset("mnist", data_dir=tmp_path, image_size=28)
    assert (unpacked.x == train.x).all()


def test_damaged_torchvision_files(tmp_path, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    small_mnist(monkeypatch, raw)
    packed = raw / "t10k-images-idx3-ubyte.gz"
    content = packed.read_bytes()
    packed.write_bytes(content[:-5])
    match = r"mnist: .*t10k-images-idx3-ubyte.gz must be the official file with md5 .*got"
    with pytest.raises(ValueError, match=match):
        load_dataset("mnist", data_dir=tmp_path)
    packed.unlink()
    for damage in (b"", gzip.decompress(content)[:-5]):
        packed.with_suffix("").write_bytes(damage)
        with pytest.raises(ValueError, match="the files in .* must be complete idx files"):
            load_dataset("mnist", data_dir=tmp_path)


def test_idx_files_whose_sizes_do_not_fit(tmp_path, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    small_mnist(monkeypatch, raw)
    for packed in list(raw.iterdir()):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    path = raw / "train-labels-idx1-ubyte"
    whole = path.read_bytes()
    few = idx(np.arange(4, dtype=np.uint8))
    for content, message in (
        (whole[:4] + b"\x7f\xff\xff\xff" + whole[8:], "the files in .* must be complete idx files"),
        (b"\0\0\x08\x09" + whole[4:], "the files in .* must be complete idx files"),
        (whole + b"more", "the files in .* must be complete idx files"),
        (few, r"the files in .* must hold a label for each image; got \[\(6, 4\), \(2, 2\)\]"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"^mnist: {message}"):
            load_dataset("mnist", data_dir=tmp_path)
    for name in (path.name, f"{path.name}.gz"):  # the second is asked for first
        with (raw / name).open("wb") as file:
            file.truncate(10**8)
        match = rf"mnist: .*{name} must have at most 67108864 bytes; got more"
        with pytest.raises(ValueError, match=match):
            load_dataset("mnist", data_dir=tmp_path)


def test_download_is_torchvisions(tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "target"
    images = small_mnist(monkeypatch, source / "MNIST" / "raw")
    from torchvision.datasets import MNIST

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=source)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        mirror = f"http://127.0.0.1:{server.server_port}/MNIST/raw/"
        monkeypatch.setattr(MNIST, "mirrors", [mirror])
        _, test = load_dataset("mnist", data_dir=target, download=True, image_size=28)
        server.shutdown()
    match = "mnist: the download into .* must succeed; got: .*refused.* Try again, or put train-"
    with pytest.raises(FileNotFoundError, match=match):
        load_dataset("mnist", data_dir=tmp_path / "other", download=True)
    assert (test.x[:, 0] == images[6:]).all()
    assert (target / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz").is_file()


@needs("MNIST")
def test_mnist_itself():
    train, test = load_dataset("mnist", data_dir=ROOT)
    assert train.x.shape == (60000, 1, 32, 32) and test.x.shape == (10000, 1, 32, 32)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert np.bincount(test.labels)[:2].tolist() == [980, 1135]
    kernel = np.array([[[0, 1, 0], [1, -4, 1], [0, 1, 0]]], float)
    response = convolve(test.x[:, 0].astype(np.float32), kernel, mode="mirror")
    # mission.md, experiment 1: the originals' sharpness is 3,483.
    assert response.var(axis=(1, 2)).mean() == pytest.approx(3483, rel=0.01)
    original = load_dataset("mnist", data_dir=ROOT, image_size=28)[1]
    for i in range(50):
        pillow = Image.fromarray(original.x[i, 0]).resize((32, 32), Image.Resampling.BILINEAR)
        assert np.abs(test.x[i, 0].astype(int) - np.asarray(pillow)).max() <= 1


@needs("FashionMNIST")
def test_fashion_mnist_itself():
    train, test = load_dataset("fashion-mnist", data_dir=ROOT, binarize="static")
    assert train.labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert set(np.unique(test.x)) == {0, 255}


@needs("3dshapes")
def test_npz_of_colour_images():
    train, test = load_dataset(ROOT / "3dshapes" / "3dshapes_50.npz")
    assert train.x.shape == (45, 3, 64, 64) and test.x.shape == (5, 3, 64, 64)


@needs("dsprites")
def test_npz_of_binary_images_with_factors():
    with pytest.warns(UserWarning, match="held also original_index, which was not read"):
        train, test = load_dataset(
            ROOT / "dsprites" / "dsprites_genuine_64834.npz", binarize="static"
        )
    assert len(train) + len(test) == 64834 and train.x_shape == (1, 64, 64)
    assert set(np.unique(test.x)) == {0, 255}
    factors = np.concatenate([train.factors, test.factors])
    assert (factors.max(axis=0) + 1 <= [1, 3, 6, 40, 32, 32]).all()


def test_registry_names():
    assert {"spirals", "digits", "mnist", "fashion-mnist"} <= set(DATASETS)
