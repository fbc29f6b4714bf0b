"""Research data sets, on small files of the published layout made for the purpose, and on genuine 3D Shapes."""

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from PIL import Image

from pyro_bvae.datasets import (
    celeba,
    chairs,
    decoded,
    load_dataset,
    memory,
    mpi3d,
    read_data,
    shapes3d,
)
from pyro_bvae.datasets.celeba import load_celeba
from pyro_bvae.datasets.dsprites import FACTORS as DSPRITES
from pyro_bvae.datasets.dsprites import render_dsprites
from pyro_bvae.datasets.published import combinations

ROOT = Path(os.environ.get("PYRO_BVAE_DATA") or Path(__file__).parents[2] / "shared" / "data")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (50, 64, 64, 3), dtype=np.uint8)


def whole(parts):
    """x, factors and names of train and test together, in the order of the factors."""
    x = np.concatenate([part.batch(np.arange(len(part))) for part in parts])
    factors = np.concatenate([part.factors for part in parts])
    order = np.lexsort(factors.T[::-1])
    return x[order], factors[order], parts[0].factor_names


def test_combinations_count_as_an_odometer():
    rows = combinations((2, 3, 4))
    by_hand = [[a, b, c] for a in range(2) for b in range(3) for c in range(4)]
    assert rows.tolist() == by_hand and rows.dtype == np.int64


# dSprites as published


def dsprites_arrays(n=40):
    """Rows of the archive: of every shape, and the last one."""
    rows = np.unique([*RNG.integers(0, 737_280, n - 1), 737_279])
    classes = np.stack(np.unravel_index(rows, [len(v) for v in DSPRITES.values()]), axis=1)
    values = np.stack([v[classes[:, i]] for i, v in enumerate(DSPRITES.values())], axis=1)
    return render_dsprites(rows), classes, values


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def write_dsprites(path, images, classes, values):
    if path.suffix == ".npz":
        metadata = np.array({"title": Bomb()}, dtype=object)
        np.savez_compressed(
            path, metadata=metadata, imgs=images, latents_classes=classes, latents_values=values
        )
        return
    with h5py.File(path, "w") as file:
        file.create_dataset("imgs", data=images, chunks=(7, 64, 64), compression="gzip")
        file["latents/classes"], file["latents/values"] = classes, values


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_published_dsprites(tmp_path, suffix):
    images, classes, values = dsprites_arrays()
    path = tmp_path / f"dsprites_ndarray_co1sh3sc6or40x32y32_64x64{suffix}"
    write_dsprites(path, images, classes, values)
    data = read_data(path)
    assert data.resident == (suffix == ".npz")
    assert data.factor_names == ("color", "shape", "scale", "orientation", "posX", "posY")
    assert np.array_equal(data.factors, classes) and data.labels is None
    assert np.array_equal(data.batch(np.arange(len(data)))[:, 0], images * 255)
    found, factors, names = whole(load_dataset(str(path), test_fraction=0.3))
    assert np.array_equal(found[:, 0], images * 255) and np.array_equal(factors, classes)
    assert names == tuple(DSPRITES)


def test_factors_that_are_not_those_of_dsprites_have_no_names(tmp_path):
    images, classes, _ = dsprites_arrays()
    for other in (classes[:, :5], classes + [0, 1, 0, 0, 0, 0]):
        np.savez(tmp_path / "x.npz", imgs=images, latents_classes=other)
        assert read_data(tmp_path / "x.npz").factor_names == ()
    np.savez(tmp_path / "x.npz", imgs=images, factors=classes)
    assert read_data(tmp_path / "x.npz").factor_names == ()
    np.savez(tmp_path / "x.npz", imgs=images, latents_classes=classes * 0.5)
    assert read_data(tmp_path / "x.npz").factor_names == ()
    np.savez(tmp_path / "x.npz", imgs=images, latents_classes=classes.astype(str))
    with pytest.raises(TypeError, match="factors must be numbers; got str"):
        read_data(tmp_path / "x.npz")


def test_grouped_classes_do_not_crowd_out_others(tmp_path):
    """A key at the top comes first, and one array only is x, whatever lies in groups."""
    images, classes, _ = dsprites_arrays()
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["odd"], file["latents/classes"], file["latents/more"] = images, classes, classes
    with pytest.warns(UserWarning, match="held also latents/more, which was not read"):
        assert np.array_equal(read_data(tmp_path / "x.h5").factors, classes)
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["factors"], file["x"] = classes[:, :2], images
    with pytest.warns(
        UserWarning, match="held also latents/classes, latents/more, odd, which were"
    ):
        assert read_data(tmp_path / "x.h5").factors.shape[1] == 2
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["x"] = images
        file.create_group("latents/classes")
    assert read_data(tmp_path / "y.h5").factors is None


@pytest.mark.parametrize("kind", ["soft", "external", "group", "virtual", "storage"])
def test_grouped_classes_lead_to_no_other_file(tmp_path, kind):
    images, classes, _ = dsprites_arrays()
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["latents/classes"] = classes
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["imgs"] = images
        if kind == "group":  # the group itself lies elsewhere: it is not looked into
            file["latents"] = h5py.ExternalLink("secret.h5", "/latents")
        elif kind == "external":
            file.create_group("latents")["classes"] = h5py.ExternalLink(
                "secret.h5", "latents/classes"
            )
        elif kind == "soft":
            file["other"] = h5py.ExternalLink("secret.h5", "/")
            file.create_group("latents")["classes"] = h5py.SoftLink("/other/latents/classes")
        elif kind == "virtual":
            layout = h5py.VirtualLayout(classes.shape, "i8")
            layout[:] = h5py.VirtualSource("secret.h5", "latents/classes", classes.shape)
            file.create_virtual_dataset("latents/classes", layout)
        else:
            outside = [("secret.h5", 0, classes.nbytes)]
            file.create_dataset("latents/classes", classes.shape, "i8", external=outside)
    with pytest.raises(
        ValueError, match="latents(/classes)? must be a data set of this file; got a l"
    ):
        read_data(tmp_path / "x.h5")


# 3D Shapes

SMALL_ROOM = {
    "floor_hue": 1, "wall_hue": 5, "object_hue": 1, "scale": 2, "shape": 1, "orientation": 5,
}  # fmt: skip


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A folder with a 3dshapes.h5 of 50 images; a function that writes it anew."""
    monkeypatch.setattr(shapes3d, "FACTORS", SMALL_ROOM)

    def write(images=IMAGES, labels=None, **names):
        (tmp_path / "3dshapes").mkdir(exist_ok=True)
        with h5py.File(tmp_path / "3dshapes" / "3dshapes.h5", "w") as file:
            file.create_dataset(names.get("images", "images"), data=images)
            file[names.get("labels", "labels")] = room_labels() if labels is None else labels
        return tmp_path

    return write


def room_labels():
    classes = combinations(tuple(SMALL_ROOM.values()))
    labels = classes * [0.1, 0.1, 0.1, 1 / 14, 1.0, 15.0] + [0, 0, 0, 0.75, 0, -30]
    return np.where(
        np.arange(50)[:, None] % 2, labels, np.nextafter(labels, 2)
    )  # equal but for a bit


def test_3d_shapes(room):
    parts = load_dataset("3d-shapes", data_dir=room(), test_fraction=0.2, seed=4)
    assert [len(part) for part in parts] == [40, 10] and not parts[0].resident
    x, factors, names = whole(parts)
    assert names == tuple(SMALL_ROOM) and factors[:7, 5].tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert factors.max(0).tolist() == [0, 4, 0, 1, 0, 4]
    assert np.array_equal(x, IMAGES.transpose(0, 3, 1, 2))
    small, _ = load_dataset("3d-shapes", data_dir=room(), image_size=32)
    assert small.batch(np.array([3, 1])).shape == (2, 3, 32, 32)


@pytest.mark.skipif(not (ROOT / "3dshapes").exists(), reason="3dshapes_50.npz is absent")
def test_genuine_3d_shapes(room):
    with np.load(ROOT / "3dshapes" / "3dshapes_50.npz") as file:
        genuine = file["images"]
    x, _, _ = whole(load_dataset("3d-shapes", data_dir=room(genuine)))
    assert np.array_equal(x.transpose(0, 2, 3, 1), genuine)


def test_published_sizes():
    assert (np.prod([*shapes3d.FACTORS.values()]), len(shapes3d.FACTORS)) == (480_000, 6)
    assert (np.prod([*mpi3d.FACTORS.values()]), len(mpi3d.FACTORS)) == (1_036_800, 7)
    assert chairs.N_MODELS * chairs.N_VIEWS == 86_366 and celeba.N_IMAGES == 202_599


def test_3d_shapes_that_are_not_those_published(room):
    shuffled = RNG.permutation(room_labels())
    nan = room_labels()
    nan[3, 1] = np.nan
    for arguments, message in (
        ({"images": IMAGES[:49]}, r"images must be uint8 of shape \(50, 64, 64, 3\), .* got uint8 of"),
        ({"images": IMAGES[:, :32]}, r"got uint8 of shape \(50, 32, 64, 3\)\. Fetch"),
        ({"images": IMAGES / 255}, r"got float64 of shape \(50, 64, 64, 3\)"),
        ({"labels": shuffled}, r"labels must hold the values of floor_hue, .* in another order"),
        ({"labels": nan}, "labels must hold the values of floor_hue"),
        ({"labels": room_labels()[:49]}, r"got float64 of shape \(49, 6\)"),
        ({"labels": room_labels().astype(int)}, r"got int64 of shape \(50, 6\)"),
        ({"labels": 1.5}, r"got float64 of shape \(\)"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"3dshapes\.h5: .*{message}"):
            load_dataset("3d-shapes", data_dir=room(**arguments))
    for names, missing in (({"images": "x"}, "images"), ({"labels": "y"}, "labels")):
        room(IMAGES, room_labels())
        path = room() / "3dshapes" / "3dshapes.h5"
        with h5py.File(path, "a") as file:
            file.move(missing, names[missing])
        with pytest.raises(ValueError, match=f"must hold images and labels; got no {missing}. Fet"):
            load_dataset("3d-shapes", data_dir=path.parents[1])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"3dshapes\.h5: the file must be a complete .h5 file"):
        load_dataset("3d-shapes", data_dir=path.parents[1])


# MPI3D

SMALL_ARM = dict(zip(mpi3d.FACTORS, (1, 5, 1, 1, 1, 2, 5), strict=True))


@pytest.fixture
def arm(tmp_path, monkeypatch):
    monkeypatch.setattr(mpi3d, "FACTORS", SMALL_ARM)
    (tmp_path / "mpi3d").mkdir()
    return tmp_path / "mpi3d"


@pytest.mark.parametrize("variant", mpi3d.VARIANTS)
@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_mpi3d(arm, variant, suffix):
    path = arm / f"mpi3d_{variant}{suffix}"
    np.savez_compressed(path, images=IMAGES) if suffix == ".npz" else np.save(path, IMAGES)
    parts = load_dataset(f"mpi3d-{variant}", data_dir=arm.parent, test_fraction=0.3)
    assert [len(part) for part in parts] == [35, 15]
    x, factors, names = whole(parts)
    assert names == tuple(mpi3d.FACTORS) and np.array_equal(x, IMAGES.transpose(0, 3, 1, 2))
    assert np.array_equal(factors, combinations(tuple(SMALL_ARM.values())))
    small, _ = load_dataset(f"mpi3d-{variant}", data_dir=arm.parent, image_size=32)
    assert small.x_shape == (3, 32, 32)


def test_mpi3d_taken_out_of_an_archive_too_large_for_memory(arm, monkeypatch):
    np.savez_compressed(arm / "mpi3d_toy.npz", images=IMAGES)
    monkeypatch.setattr(memory, "_memory", lambda: 2 * IMAGES.nbytes - 1)
    out = arm / "mpi3d_toy.npy"
    command = f"unzip -p {arm / 'mpi3d_toy.npz'} images.npy > {out}"
    with pytest.raises(ValueError, match="must fit in half of this machine's memory") as caught:
        load_dataset("mpi3d-toy", data_dir=arm.parent)
    assert str(caught.value).endswith(
        f"got 0.000614 GB. Take them out, to be read as needed: {command}"
    )
    if shutil.which("unzip"):
        assert os.system(command) == 0
    else:
        np.save(out, IMAGES)
    monkeypatch.setattr(memory, "_memory", lambda: 1 << 24)
    (arm / "mpi3d_toy.npz").unlink()
    x, _, _ = whole(load_dataset("mpi3d-toy", data_dir=arm.parent))
    assert np.array_equal(x, IMAGES.transpose(0, 3, 1, 2))


def test_mpi3d_that_is_not_that_published(arm):
    npz, npy = arm / "mpi3d_real.npz", arm / "mpi3d_real.npy"
    np.savez(npz, x=IMAGES)
    with pytest.raises(ValueError, match=r"mpi3d_real\.npz: the file must hold images; got none"):
        load_dataset("mpi3d-real", data_dir=arm.parent)
    np.savez(npz, images=IMAGES)
    content = npz.read_bytes()
    npz.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"mpi3d_real\.npz: the file must be a complete .npz"):
        load_dataset("mpi3d-real", data_dir=arm.parent)
    np.save(npy, IMAGES[:40])  # it is preferred
    with pytest.raises(ValueError, match=r"mpi3d_real\.npy: images must .*\(40, 64, 64, 3\)"):
        load_dataset("mpi3d-real", data_dir=arm.parent)
    os.truncate(npy, 1000)
    with pytest.raises(ValueError, match=r"mpi3d_real\.npy: the file must be a complete .npy"):
        load_dataset("mpi3d-real", data_dir=arm.parent)


# 3D Chairs


@pytest.fixture
def showroom(tmp_path, monkeypatch):
    """Three chairs, from two heights and three sides; pixels tell which image it is."""
    monkeypatch.setattr(chairs, "N_MODELS", 3)
    monkeypatch.setattr(chairs, "N_VIEWS", 6)
    for m, model in enumerate(("c0ffee", "1ab", "beef")):
        renders = tmp_path / "rendered_chairs" / model / "renders"
        renders.mkdir(parents=True)
        for v in range(6):
            name = f"image_{v + v // 3:03}_p0{20 + v // 3 * 10}_t{(0, 11, 348)[v % 3]:03}_r096.png"
            Image.new("RGB", (100, 100), (m, v, 255)).save(renders / name)
    (tmp_path / "rendered_chairs" / "all_chair_names.mat").write_bytes(b"names")
    return tmp_path


@pytest.fixture
def unwritable(monkeypatch):
    """No file can be made; asking for one in a read-only folder fails so."""
    opened = Path.open

    def refuse(self, mode="r", *args, **kwargs):
        if "x" in mode or "w" in mode:
            raise PermissionError(13, "Permission denied")
        return opened(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)


def assert_chairs(parts, side):
    x, factors, names = whole(parts)
    assert names == ("model", "elevation", "azimuth") and x.shape == (18, 3, side, side)
    assert np.array_equal(factors, combinations((3, 2, 3)))
    by_name = [1, 2, 0]  # 1ab, beef, c0ffee
    assert [by_name[m] for m in factors[:, 0]] == x[:, 0, 5, 5].tolist()
    assert (factors[:, 1] * 3 + factors[:, 2]).tolist() == x[:, 1, 5, 5].tolist()


def test_3d_chairs(showroom):
    parts = load_dataset("3d-chairs", data_dir=showroom, test_fraction=0.3)
    cache = showroom / "rendered_chairs" / "chairs-64.npy"
    assert [len(part) for part in parts] == [13, 5] and not parts[0].resident
    assert_chairs(parts, 64)
    assert np.load(cache).shape == (18, 3, 64, 64)
    assert_chairs(load_dataset("3d-chairs", data_dir=showroom, image_size=32), 32)
    left = sorted(p.name for p in cache.parent.iterdir() if not p.is_dir())
    assert left == ["all_chair_names.mat", "chairs-32.npy", "chairs-64.npy"]


def test_chairs_that_are_missing(showroom):
    folder = showroom / "rendered_chairs"
    gone = folder / "beef" / "renders" / "image_001_p020_t011_r096.png"
    gone.rename(gone.with_name("image_001_p020_t012_r096.png"))
    with pytest.raises(ValueError, match="the same 6 views; got 6 of .*, and 8 among all. Unpack"):
        load_dataset("3d-chairs", data_dir=showroom)
    gone.with_name("image_001_p020_t012_r096.png").unlink()
    with pytest.raises(ValueError, match="the same 6 views; got 5 of beef, and 6 among all"):
        load_dataset("3d-chairs", data_dir=showroom)
    shutil.rmtree(folder / "beef")
    with pytest.raises(ValueError, match="must hold the renders of 3 models; got 2. Unpack https:"):
        load_dataset("3d-chairs", data_dir=showroom)


# The file of decoded images


def test_decoded_images_are_read_from_their_file(showroom, monkeypatch):
    load_dataset("3d-chairs", data_dir=showroom)
    monkeypatch.setattr(decoded, "_write", lambda *args: pytest.fail("decoded again"))
    monkeypatch.setattr(decoded.ImageFiles, "__getitem__", lambda *args: pytest.fail("decoded"))
    assert_chairs(load_dataset("3d-chairs", data_dir=showroom), 64)


@pytest.mark.parametrize("damage", ["fewer", "another type", "cut", "no numpy"])
def test_a_file_of_other_images_is_written_anew(showroom, damage):
    cache = showroom / "rendered_chairs" / "chairs-64.npy"
    if damage == "fewer":
        np.save(cache, np.zeros((17, 3, 64, 64), np.uint8))
    elif damage == "another type":
        np.save(cache, np.zeros((18, 3, 64, 64), np.float32))
    elif damage == "cut":
        np.save(cache, np.zeros((18, 3, 64, 64), np.uint8))
        os.truncate(cache, 5000)
    else:
        cache.write_bytes(b"no numpy")
    assert_chairs(load_dataset("3d-chairs", data_dir=showroom), 64)
    assert len(np.load(cache)) == 18


def test_chunks_of_decoded_images_keep_their_order(showroom, monkeypatch):
    monkeypatch.setattr(decoded, "_CHUNK", 4)
    assert_chairs(load_dataset("3d-chairs", data_dir=showroom), 64)


def test_images_in_a_folder_that_cannot_be_written(showroom, unwritable):
    assert_chairs(load_dataset("3d-chairs", data_dir=showroom), 64)
    assert not list(showroom.rglob("*.npy*"))


def test_a_disk_is_not_filled(showroom, monkeypatch):
    needed = 18 * 3 * 64 * 64
    for free, written in ((2 * needed - 1, False), (2 * needed, True)):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(decoded.shutil, "disk_usage", lambda path, usage=usage: usage)
        assert_chairs(load_dataset("3d-chairs", data_dir=showroom), 64)
        assert bool(list(showroom.rglob("*.npy"))) == written


def test_a_damaged_image_leaves_no_file(showroom):
    damaged = showroom / "rendered_chairs" / "beef" / "renders" / "image_000_p020_t000_r096.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    with pytest.raises(ValueError, match=f"^{damaged}: the file must be a complete image"):
        load_dataset("3d-chairs", data_dir=showroom)
    assert not list(showroom.rglob("*.npy*"))


# CelebA


def faces(n=10):
    """The centre of 148x148 has a colour of its own in each image; what surrounds it is white."""
    pixels = np.full((n, 218, 178, 3), 255, np.uint8)
    pixels[:, 35:183, 15:163] = np.arange(n)[:, None, None, None] * [10, 5, 2]
    return pixels


@pytest.fixture
def album(tmp_path, monkeypatch):
    monkeypatch.setattr(celeba, "N_IMAGES", 10)
    folder = tmp_path / "celeba"
    write_album(folder)
    return folder


def write_album(folder):
    (folder / "img_align_celeba").mkdir(parents=True)
    for i, pixels in enumerate(faces()):
        path = folder / "img_align_celeba" / f"{i + 1:06}.jpg"
        Image.fromarray(pixels).save(path, quality=100, subsampling=0)
    split = [f"{i + 1:06}.jpg {part}" for i, part in enumerate([0] * 5 + [1] * 2 + [2] * 3)]
    (folder / "list_eval_partition.txt").write_text("\n".join(split) + "\n")


def write_attributes(folder):
    lines = ["10", "Bald Smiling Young "]
    lines += [f"{i + 1:06}.jpg {(-1, 1)[i % 2]}  1 {(-1, 1)[i // 5]}" for i in range(10)]
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")


def test_celeba(album):
    train, test = load_dataset("celeba", data_dir=album.parent)
    assert [len(train), len(test)] == [7, 3] and train.x_shape == (3, 64, 64)
    assert train.factors is None and not train.resident
    x = np.concatenate([part.batch(np.arange(len(part))) for part in (train, test)]).astype(int)
    expected = np.arange(10)[:, None, None, None] * np.array([10, 5, 2])[:, None, None]
    assert np.abs(x[:, :, 2:-2, 2:-2] - expected).max() <= 3  # JPEG
    assert np.load(album / "celeba-64.npy").shape == (10, 3, 64, 64)
    write_attributes(album)
    train, test = load_dataset("celeba", data_dir=album.parent, image_size=32)
    assert train.factor_names == ("Bald", "Smiling", "Young") and train.x_shape == (3, 32, 32)
    assert train.factors[:, 0].tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert test.factors.tolist() == [[1, 1, 1], [0, 1, 1], [1, 1, 1]]


def test_celeba_is_cropped_before_it_is_resized(album):
    _, test = load_dataset("celeba", data_dir=album.parent, image_size=37)
    with Image.open(album / "img_align_celeba" / "000009.jpg") as image:
        cut = Image.fromarray(np.asarray(image)[35:183, 15:163])
    expected = np.asarray(cut.resize((37, 37), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(test.batch(np.array([1]))[0], expected)


def test_celeba_that_is_not_that_published(album):
    split, images = album / "list_eval_partition.txt", album / "img_align_celeba"
    lines = split.read_text().splitlines()
    for changed in (
        lines[:9], [*lines, "000011.jpg 0"], ["000001.jpg 3", *lines[1:]], ["a b c", *lines[1:]],
        ["000001.jpg 01", *lines[1:]], [lines[1], *lines[1:]], ["", *lines[1:]], [],
    ):  # fmt: skip
        split.write_text("\n".join(changed))
        with pytest.raises(ValueError, match="must give 0, 1 or 2 to each of 10 images; got"):
            load_celeba(album.parent)
    (album / "elsewhere.jpg").write_bytes((images / "000001.jpg").read_bytes())
    split.write_text("\n".join(["../elsewhere.jpg 0", *lines[1:]]))
    with pytest.raises(ValueError, match=r"got no '\.\./elsewhere\.jpg', among 1 missing"):
        load_celeba(album.parent)
    split.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="must be a readable text file; got UnicodeDecodeError"):
        load_celeba(album.parent)
    split.write_text("\n".join(lines))
    (images / "000004.jpg").rename(images / "4.jpg")
    with pytest.raises(ValueError, match="hold the 10 images of .* got no '000004.jpg', among 1 m"):
        load_celeba(album.parent)
    (images / "4.jpg").rename(images / "000004.jpg")
    Image.new("RGB", (64, 64)).save(images / "000001.jpg")
    with pytest.raises(ValueError, match=r"000001\.jpg: the image must have 178x218 .* got 64x64"):
        load_celeba(album.parent)


@pytest.mark.parametrize("line, text", [
    (5, "000004.jpg 1 0 1"), (5, "000004.jpg 1 1"), (5, "000005.jpg 1 1 1"), (5, ""), (1, ""),
    (1, "Bald Smiling"), (0, "10\nBald Smiling Young"),
])  # fmt: skip
def test_attributes_that_are_none(album, line, text):
    write_attributes(album)
    path = album / "list_attr_celeba.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:line], text, *lines[line + 1 :]]))
    with pytest.raises(
        ValueError, match="must give -1 or 1 to each image .* another line for 0000"
    ):
        load_celeba(album.parent)
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(ValueError, match=r"another line for 000010\.jpg\. Fetch it again"):
        load_celeba(album.parent)


def test_celeba_is_downloaded_by_torchvision(tmp_path, monkeypatch):
    """A stub of torchvision's class: what it writes is found, what it raises is one sentence."""
    calls = []

    def fetch(root, download):
        calls.append((root, download))
        if len(calls) > 1:
            raise RuntimeError("gdown is\n required")
        write_album(Path(root) / "celeba")

    stub = SimpleNamespace(CelebA=fetch)
    monkeypatch.setattr(celeba, "N_IMAGES", 10)
    monkeypatch.setattr(celeba, "import_torchvision", lambda: None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", stub)
    train, _ = load_dataset("celeba", data_dir=tmp_path, download=True)
    assert calls == [(tmp_path, True)] and len(train) == 7
    load_dataset("celeba", data_dir=tmp_path, download=True)  # it is there: nothing is fetched
    assert len(calls) == 1
    (tmp_path / "celeba" / "list_eval_partition.txt").unlink()
    match = (
        "^celeba: the download into .*celeba must succeed; got: gdown is required. Try again, or"
    )
    with pytest.raises(FileNotFoundError, match=match):
        load_dataset("celeba", data_dir=tmp_path, download=True)


def test_torchvision_still_has_the_class_that_is_called():
    """Its signature, its folder and the file that gives the split."""
    from pyro_bvae.datasets import import_torchvision

    import_torchvision()
    from torchvision.datasets import CelebA

    assert CelebA.base_folder == "celeba"
    names = [entry[-1] for entry in CelebA.file_list]
    assert {"img_align_celeba.zip", celeba._SPLIT, celeba._ATTRIBUTES} <= set(names)
    assert {"root", "download"} <= set(CelebA.__init__.__annotations__)


# What is not there


@pytest.mark.parametrize("name, place, page", [
    ("3d-shapes", "3dshapes/3dshapes.h5", "github.com/google-deepmind/3d-shapes"),
    ("mpi3d-toy", "mpi3d/mpi3d_toy.npz", "github.com/rr-learning/disentanglement_dataset"),
    ("mpi3d-realistic", "mpi3d/mpi3d_realistic.npz", "github.com/rr-learning/disentanglement"),
    ("mpi3d-real", "mpi3d/mpi3d_real.npz", "github.com/rr-learning/disentanglement_dataset"),
    ("3d-chairs", "rendered_chairs", "www.di.ens.fr/willow/research/seeing3Dchairs/"),
])  # fmt: skip
def test_absent_files_say_where_they_belong(tmp_path, name, place, page):
    match = (
        f"^{name}: {tmp_path / place} must exist; got nothing there. Fetch it from https://{page}"
        f".*for the folder that holds {place}[.]$"
    )
    with pytest.raises(FileNotFoundError, match=match):
        load_dataset(name, data_dir=tmp_path)
    for option in ({"download": True}, {"image_size": 0}):
        with pytest.raises(ValueError, match=f"{name}: {next(iter(option))} must be "):
            load_dataset(name, data_dir=tmp_path, **option)


def test_absent_celeba(tmp_path):
    match = (
        "must hold img_align_celeba and list_eval_partition.txt; got no {}Pass --download, or fetch"
    )
    with pytest.raises(FileNotFoundError, match=match.format("img_.* and no list_.*")):
        load_dataset("celeba", data_dir=tmp_path)
    (tmp_path / "celeba" / "img_align_celeba").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=match.format("list_eval_partition.txt. ")):
        load_dataset("celeba", data_dir=tmp_path)
    with pytest.raises(ValueError, match="celeba: test_fraction must be left out"):
        load_dataset("celeba", data_dir=tmp_path, test_fraction=0.2)
    with pytest.raises(ValueError, match="celeba: image_size must be 1 or more; got 0"):
        load_dataset("celeba", data_dir=tmp_path, image_size=0)
