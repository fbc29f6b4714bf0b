"""Data of the user's own are read as a person sees them, and what is not read is said."""

import json
import pickle
import time

import h5py
import numpy as np
import pytest
from PIL import Image

from pyro_bvae.build import build, load
from pyro_bvae.config import Config
from pyro_bvae.datasets import Data, h5_files, load_dataset, read_data
from pyro_bvae.datasets import folder as folders
from pyro_bvae.figures import run as pictures
from pyro_bvae.measuring import measure_baseline, measure_run
from pyro_bvae.runs import load_run, train
from pyro_bvae.sklearn import DecompositionVAE
from pyro_bvae.writing import read_class_names

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (10, 12, 9), dtype=np.uint8)
X = RNG.random((12, 3), dtype=np.float32)
CLASSES = ("ant", "bee", "cow")


def rows(data):
    return data.batch(np.arange(len(data)))


def tiny(dataset, **options):
    defaults = {"steps": 2, "latent_dim": 3, "batch_size": 12, "test_fraction": 0.3}
    return Config(str(dataset), device="cpu", **defaults | options)


# images


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_their_camera_says(tmp_path, suffix, orientation):
    """EXIF's definition: where row 0 and column 0 of the stored pixels are in the picture seen."""
    seen = np.zeros((16, 24), np.uint8)
    seen[:, :8], seen[:4, 16:] = 100, 250  # no turn and no mirror maps it to itself
    stored = {
        1: seen, 2: seen[:, ::-1], 3: seen[::-1, ::-1], 4: seen[::-1],
        5: seen.T, 6: np.rot90(seen), 7: seen[::-1, ::-1].T, 8: np.rot90(seen, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == ".webp" else {"quality": 95, "subsampling": 0}
    options = {} if suffix in (".png", ".tif") else options
    image = Image.fromarray(np.ascontiguousarray(stored))
    image.save(tmp_path / f"a{suffix}", exif=exif, **options)
    data = read_data(tmp_path)
    assert data.x_shape[1:] == (16, 24)
    assert np.abs(rows(data)[0].astype(int) - seen).max() <= (12 if suffix == ".jpg" else 0)


def test_sizes_are_checked_after_turning(tmp_path):
    upright, lying = Image.new("L", (9, 12), 7), Image.new("L", (12, 9), 7)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(tmp_path / "a.jpg")
    lying.save(tmp_path / "b.jpg", exif=exif)
    assert read_data(tmp_path).x_shape == (1, 12, 9)
    lying.save(tmp_path / "b.jpg")
    with pytest.raises(ValueError, match="images must share one size; got 9x12 .* and 12x9"):
        read_data(tmp_path)


def test_photos_of_odd_headers(tmp_path):
    """An orientation that is none; a telephone's photo with a small copy of itself in the file."""
    photo, small, exif = Image.new("RGB", (24, 16)), Image.new("RGB", (6, 4)), Image.Exif()
    for orientation in (0, 9):
        exif[0x0112] = orientation
        photo.save(tmp_path / f"{orientation}.jpg", exif=exif)
    photo.save(tmp_path / "b.jpg", format="MPO", save_all=True, append_images=[small])
    photo.save(tmp_path / "c.jpg", exif=b"Exif\0\0nonsense")
    data = read_data(tmp_path)
    assert data.x_shape == (3, 16, 24) and len(rows(data)) == 4


def palette():
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 10, 0, 0, 0])
    image.putpixel((1, 0), 1)
    return image


TRANSPARENT = {
    "RGBA": (Image.fromarray(np.array([[[200, 10, 10, 255], [1, 2, 3, 0]]], np.uint8)), {}),
    "half": (Image.fromarray(np.array([[[200, 10, 10, 255], [0, 0, 0, 51]]], np.uint8)), {}),
    "LA": (Image.fromarray(np.array([[[90, 255], [3, 0]]], np.uint8)), {}),
    "palette": (palette(), {"transparency": 1}),
    "palette of bytes": (palette(), {"transparency": bytes([255, 0])}),
    "one colour": (Image.fromarray(np.array([[[200, 10, 10], [1, 2, 3]]], np.uint8)),
                   {"transparency": (1, 2, 3)}),
    "one grey": (Image.fromarray(np.array([[90, 3]], np.uint8)), {"transparency": 3}),
    "gif": (palette(), {"transparency": 1}),
}  # fmt: skip


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_what_is_transparent_is_seen_on_white(tmp_path, kind):
    image, options = TRANSPARENT[kind]
    image.save(tmp_path / f"a.{'gif' if kind == 'gif' else 'png'}", **options)
    first = [90] if kind in ("LA", "one grey") else [200, 10, 10]
    ground = 204 if kind == "half" else 255  # .2 of black on white
    expected = np.stack([first, [ground] * len(first)], axis=1)[:, None]
    assert rows(read_data(tmp_path))[0].tolist() == expected.tolist()


OPAQUE = {
    "1": (Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), ".png", [[0], [255]]),
    "CMYK": (Image.new("CMYK", (2, 1), (0, 0, 0, 0)), ".tif", [[255] * 3] * 2),
    "16-bit colour": (None, ".png", [[255] * 3, [0] * 3]),
    "4-bit grey": (None, ".pgm", [[0], [255]]),
}


@pytest.mark.parametrize("kind", OPAQUE)
def test_other_modes_keep_their_brightness(tmp_path, kind):
    image, suffix, expected = OPAQUE[kind]
    if kind == "16-bit colour":
        write_png16(tmp_path / "a.png", np.array([[[65535] * 3, [255] * 3]], ">u2"))
    elif kind == "4-bit grey":
        (tmp_path / "a.pgm").write_bytes(b"P5 2 1 15\n\x00\x0f")
    else:
        image.save(tmp_path / f"a{suffix}")
    assert rows(read_data(tmp_path))[0, :, 0].T.tolist() == expected


def write_png16(path, pixels):
    import zlib

    def chunk(kind, content):
        crc = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + crc

    height, width = pixels.shape[:2]
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )  # fmt: skip


def test_other_suffixes_of_the_same_formats(tmp_path):
    for name in ("a.jfif", "b.JPE", "c.JPG", "d.Png", "e.pbm", "f.pnm"):
        kind = {"j": "JPEG", "p": "PNG"}[name[2].lower()]
        kind = "PPM" if name[2:] in ("pbm", "pnm") else kind
        Image.fromarray(GREY[0]).convert("1" if name == "e.pbm" else "L").save(
            tmp_path / name, format=kind
        )
    assert len(read_data(tmp_path)) == 6


# what a folder holds


def class_folder(path, names=CLASSES, n=8, offset=0):
    for k, name in enumerate(names):
        (path / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels = np.full((8, 8), 20 * k + i + offset, np.uint8)
            pixels[:, : 1 + i % 7] = 200
            Image.fromarray(pixels).save(path / name / f"{i}.png")
    return path


def test_what_a_folder_holds_beside_images_is_said(tmp_path):
    class_folder(tmp_path, n=2)
    for name in ("ant/a.heic", "ant/b.HEIC", "bee/notes.txt", "labels.csv"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "empty").mkdir()
    with pytest.warns(UserWarning) as caught:
        data = read_data(tmp_path)
    assert [str(w.message) for w in caught] == [
        f"{tmp_path}: 4 files were not read: 2 .heic, 1 .csv, 1 .txt. Images are read from "
        f"{' '.join(folders.SUFFIXES)}; convert the others.",
        f"{tmp_path}: 1 sub-folder without images is no class: empty.",
    ]
    assert data.class_names == CLASSES and len(data) == 6


def test_what_systems_leave_in_a_folder_is_not(tmp_path):
    class_folder(tmp_path, n=2)
    for name in (
        ".DS_Store",
        "ant/Thumbs.db",
        "ant/._0.png",
        "desktop.ini",
        "__MACOSX/ant/._0.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"none")
    assert read_data(tmp_path).class_names == CLASSES


def test_a_folder_with_no_image_lists_what_is_there(tmp_path):
    for name in ("a.heic", "b.heic", "c.avi"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"must hold images \(.*got 2 \.heic, 1 \.avi\. Convert"):
        read_data(tmp_path)


def test_class_folders_one_level_too_deep(tmp_path):
    class_folder(tmp_path / "train", n=2)
    class_folder(tmp_path / "test", n=2)
    sentence = "classes are test, train; .*the sub-folders inside them are not.*test/ant"
    with pytest.warns(UserWarning, match=sentence):
        assert read_data(tmp_path).class_names == ("test", "train")


def test_an_animation_is_its_first_picture(tmp_path):
    frames = [Image.fromarray(image) for image in GREY[:3]]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match=r"1 image holds more than one picture, .*first.*a\.gif"):
        assert len(read_data(tmp_path)) == 1


# classes by name


@pytest.fixture
def trained(tmp_path, without_figures):
    """A conditional run, and one that is not, on three classes."""
    source = class_folder(tmp_path / "source")
    train(tiny(source, conditional=True), tmp_path / "given")
    train(tiny(source), tmp_path / "plain")
    return tmp_path


def measure(path, on):
    run = load_run(path)
    return measure_run(run.path, run.config, run.vae, on=str(on), measures=[])[0]


def test_a_folder_that_lacks_a_class(trained):
    """Without bees, a cow stays class 2: by hand, the ELBO of the same rows with labels 0 and 2."""
    class_folder(trained / "fewer", ("ant", "cow"))
    by_name = measure(trained / "given", trained / "fewer")
    x = rows(read_data(trained / "fewer"))
    for name, labels in (("right", [0] * 8 + [2] * 8), ("wrong", [0] * 8 + [1] * 8)):
        np.savez(trained / f"{name}.npz", x=x, labels=labels)
    assert by_name["elbo"] == measure(trained / "given", trained / "right.npz")["elbo"]
    assert by_name["elbo"] != measure(trained / "given", trained / "wrong.npz")["elbo"]


def test_class_names_are_kept_with_the_run(trained):
    assert read_class_names(trained / "given") == CLASSES
    assert json.loads((trained / "given" / "classes.json").read_text())["names"] == [*CLASSES]
    (trained / "given" / "classes.json").write_text('{"names": [1]}')
    with pytest.raises(ValueError, match=r"classes\.json must hold the names of the classes"):
        measure(trained / "given", trained / "source")


def test_a_class_the_run_does_not_have(trained):
    class_folder(trained / "other", ("ant", "elk"))
    sentence = r"^--on .*other: classes must be among those of the run, ant, bee, cow; got elk\. Re"
    with pytest.raises(ValueError, match=sentence):
        measure(trained / "given", trained / "other")
    assert measure(trained / "plain", trained / "other")["n"] == 16  # labels do not enter its ELBO


def test_a_run_without_names_reads_folders_as_it_was_trained(trained):
    """Runs from before names were kept; or on numbered labels."""
    class_folder(trained / "fewer", ("ant", "cow"))
    expected = measure(trained / "given", trained / "source")["elbo"]
    (trained / "given" / "classes.json").unlink()
    assert read_class_names(trained / "given") == ()
    assert measure(trained / "given", trained / "source")["elbo"] == expected
    with pytest.raises(ValueError, match="keeps no names of its 3 classes.*got ant, cow"):
        measure(trained / "given", trained / "fewer")


def test_a_class_that_is_added_to_the_run_s_own_folder(trained):
    """`--on train` reads the folder again, in which "ape" comes before "bee" now."""
    class_folder(trained / "source", ("ape",))
    with pytest.raises(ValueError, match="classes must be among .* got ape"):
        measure(trained / "given", "train")
    assert measure(trained / "plain", "train")["n"] > 0


def test_an_untrained_baseline_sees_the_same_classes(tmp_path, without_figures):
    x, factors = rows(read_data(class_folder(tmp_path / "c"))), np.arange(24)[:, None] % 4
    names, labels = np.array(["bee", "cow", "ant"]), np.arange(24) % 3
    np.savez(tmp_path / "a.npz", x=x, labels=names[labels], factors=factors)
    fewer = labels < 2
    np.savez(tmp_path / "b.npz", x=x[fewer], labels=names[labels[fewer]], factors=factors[fewer])
    by_number = np.array([1, 2])[labels[fewer]]
    np.savez(tmp_path / "n.npz", x=x[fewer], labels=by_number, factors=factors[fewer])
    config = tiny(tmp_path / "a.npz", conditional=True, encode_labels=True)
    run = train(config, tmp_path / "run")
    scores = [
        measure_baseline(
            run.path, run.config, "untrained", on=str(tmp_path / name), measures=["mcc"]
        )[0]["scores"]
        for name in ("b.npz", "n.npz")
    ]
    assert scores[0] == scores[1]


def test_names_may_be_written_in_either_of_unicode_s_ways(tmp_path, without_figures):
    """macOS spells é with two characters, Linux with one."""
    class_folder(tmp_path / "linux", ("caf\u00e9", "bar"))
    class_folder(tmp_path / "mac", ("cafe\u0301", "bar"))
    train(tiny(tmp_path / "linux", conditional=True), tmp_path / "run")
    on_mac = measure(tmp_path / "run", tmp_path / "mac")
    assert on_mac["elbo"] == measure(tmp_path / "run", tmp_path / "linux")["elbo"]


def texts(figure):
    found = [*figure.texts, *(text for ax in figure.axes for text in ax.texts)]
    for ax in figure.axes:
        found += [ax.title, ax.yaxis.label, *ax.get_xticklabels()]
        legend = ax.get_legend()
        found += [] if legend is None else legend.get_texts()
    for legend in figure.legends:
        found += legend.get_texts()
    return " | ".join(text.get_text() for text in found)


@pytest.fixture
def drawn(monkeypatch):
    """The figures of a training by their names; saving them takes most of the time."""
    seen = {}

    def keep(figure, path):
        seen[path.name.split(".")[1]] = figure

    monkeypatch.setattr(pictures, "save_png", keep)
    return seen


@pytest.mark.parametrize("conditional", [False, True])
def test_pictures_show_the_names(tmp_path, drawn, conditional):
    labels = np.array(["$5 ^ {", "ant", "bee"])[np.arange(30) % 3]  # no formula
    np.savez(tmp_path / "x.npz", x=RNG.random((30, 8, 8), dtype=np.float32), labels=labels)
    train(tiny(tmp_path / "x.npz", conditional=conditional), tmp_path / "run")
    shown = {name: texts(figure) for name, figure in drawn.items()}
    assert "ant" in shown["aggregate_posterior"]
    if conditional:
        assert "ant" in shown["samples"] and "example 0, " in shown["traversals"]
    else:
        assert {"ant", "bee"} <= set(shown["class_means"].split(" | "))


# arrays


MASKED = np.ma.masked_array(X, mask=X > 2)


def test_masked_arrays_are_refused():
    x = MASKED.copy()
    x[4, 1] = x[7] = np.ma.masked
    sentence = "^Data: {} must have no masked values; got {}, the first in row {}. Fill"
    for read in (Data, load_dataset):
        with pytest.raises(ValueError, match=sentence.format("x", 4, 4)):
            read(x)
    labels = np.ma.masked_equal(np.arange(12), 3)
    with pytest.raises(ValueError, match=sentence.format("labels", 1, 3)):
        Data(X, labels)
    with pytest.raises(ValueError, match=sentence.format("labels", 1, 3)):
        load_dataset((X, labels))
    with pytest.raises(ValueError, match=sentence.format("factors", 1, 3)):
        Data(X, None, labels[:, None])
    with pytest.raises(ValueError, match="^DecompositionVAE: X must have no masked values; got 4"):
        DecompositionVAE().fit(x)
    assert type(Data(MASKED).x) is np.ndarray  # nothing is masked in it

    class Lazy:  # as netCDF's variables are
        shape, dtype = x.shape, x.dtype

        def __len__(self):
            return 12

        def __getitem__(self, index):
            return x[index]

    with pytest.raises(ValueError, match=sentence.format("x", 3, 1)):
        Data(Lazy()).batch(np.array([0, 7]))


def test_every_byte_order_and_layout_is_the_same_data(tmp_path):
    np.save(tmp_path / "x.npy", X.astype(">f4"))
    swapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    frozen = X.copy()
    frozen.flags.writeable = False
    for x in (X.astype(">f4"), swapped, np.asfortranarray(X), X[::-1][::-1], frozen):
        data = Data(x, np.arange(12).astype(">i2"))
        assert data.x.dtype == np.float32 and data.labels.dtype == np.int64
        found, labels = data.tensors(np.array([5, 3]))
        assert found.numpy().tolist() == X[[5, 3]].tolist() and labels.tolist() == [5, 3]
    assert not Data(swapped).resident
    pickle.dumps(Data(swapped).subset(np.array([1])))
    for dtype in (np.float16, np.float64, ">f8"):
        assert np.allclose(load_dataset(X.astype(dtype))[0].x.max(), X.max(), atol=0.1)


def test_whole_numbers_are_integers_whatever_their_type():
    for values in (np.arange(12), np.arange(12.0), np.arange(12, dtype=np.float32)):
        data = Data(X, values, values[:, None])
        assert data.labels.tolist() == data.factors[:, 0].tolist() == list(range(12))
        assert data.labels.dtype == data.factors.dtype == np.int64
    assert Data(X, np.arange(12)[:, None]).labels.tolist() == list(range(12))
    with pytest.raises(TypeError, match=r"labels must be integers; got 0\.5 in row 1"):
        Data(X, np.arange(12) / 2)
    with pytest.raises(ValueError, match=r"labels must have shape \(12,\); got \(12, 3\).*argmax"):
        Data(X, np.eye(3, dtype=int)[np.arange(12) % 3])


def test_factors_may_be_real_numbers(tmp_path, without_figures):
    factors = np.stack([np.arange(12) / 4, np.arange(12) % 3], axis=1).astype(np.float32)
    data = Data(X, None, factors)
    assert data.factors.dtype == np.float64 and data.factors.tolist() == factors.tolist()
    with pytest.raises(ValueError, match="factors must be finite; got .nan. in row 2"):
        Data(X, None, np.where(np.arange(12) == 2, np.nan, 0)[:, None])
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"], file["factors"] = X, factors
    assert read_data(tmp_path / "x.h5").factors.tolist() == factors.tolist()


def test_pictures_of_factors_are_of_those_with_few_values(tmp_path, drawn):
    factors = RNG.random((40, 2))
    np.savez(tmp_path / "x.npz", x=RNG.random((40, 8, 8), dtype=np.float32), factors=factors)
    train(tiny(tmp_path / "x.npz"), tmp_path / "run")
    assert "traversals" in drawn and not {*drawn} & {"factor_responses", "position_maps"}


# the default likelihood


@pytest.mark.parametrize("likelihood", [None, "normal", "laplace"])
def test_the_same_pixels_have_the_same_defaults(likelihood):
    images = RNG.integers(0, 256, (20, 8, 8), dtype=np.uint8)
    found = []
    for x in (images, images / np.float32(255)):
        found.append(default_config(x, likelihood))
    assert found[0] == found[1]
    assert found[0] == (likelihood or "bernoulli", None if likelihood is None else "0.1")


def default_config(x, likelihood=None):
    from pyro_bvae.build import _resolve_by_data, check_values

    data = load_dataset(x)[0]
    config = _resolve_by_data(tiny("array", likelihood=likelihood).resolved(), data)
    check_values(config, data)
    return config.likelihood, config.likelihood_scale


@pytest.mark.parametrize("likelihood", ["normal", "laplace"])
def test_images_of_any_range_train_under_a_normal(tmp_path, likelihood):
    x = RNG.normal(0, 3, (20, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    built = build(tiny(tmp_path / "x.npy", likelihood=likelihood))
    assert built.config.likelihood_scale == "learned"  # 0.1 is of pixels in [0, 1]
    for name in (None, "bernoulli", "continuous-bernoulli"):
        with pytest.raises(ValueError, match=r"in \[0, 1\]; got .* or use --likelihood normal"):
            build(tiny(tmp_path / "x.npy", likelihood=name))


# .npz and .h5


def write(path, **arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
        return path
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array.astype("S") if array.dtype.kind == "U" else array
    return path


@pytest.fixture(params=[".npz", ".h5"])
def own(tmp_path, request):
    return tmp_path / f"own{request.param}"


@pytest.mark.parametrize("x_key", ["x", "X", "images", "Data", "pixels"])
@pytest.mark.parametrize("key", ["labels", "label", "target", "targets", "y", "Y"])
def test_labels_by_any_of_their_names(own, x_key, key):
    data = read_data(write(own, **{x_key: GREY, key: np.arange(10) % 3}))
    assert (rows(data)[:, 0] == GREY).all() and data.labels.tolist() == [
        0,
        1,
        2,
        0,
        1,
        2,
        0,
        1,
        2,
        0,
    ]


@pytest.mark.parametrize("key", ["factors", "latents"])
@pytest.mark.parametrize("names_key", ["names", "factor_names"])
def test_factors_and_their_names(own, key, names_key):
    factors, names = np.arange(20).reshape(10, 2), np.array(["width", "height"])
    data = read_data(write(own, x=GREY, **{key: factors, names_key: names}))
    assert data.factors.tolist() == factors.tolist() and data.factor_names == ("width", "height")


@pytest.mark.parametrize("names_key", ["names", "class_names"])
def test_numbered_classes_and_their_names(own, names_key):
    labels = np.arange(10) % 3
    data = read_data(write(own, x=GREY, label=labels, **{names_key: np.array(CLASSES)}))
    assert data.labels.tolist() == labels.tolist() and data.class_names == CLASSES
    with pytest.warns(UserWarning, match="held also names, which was not read"):
        data = read_data(write(own, x=GREY, label=labels, names=np.array(list("abcdefghij"))))
    assert data.class_names == ()  # one name a row, as of files
    with pytest.raises(ValueError, match="class_names must name each class, 3 or more; got 2"):
        read_data(write(own, x=GREY, label=labels, class_names=np.array(["a", "b"])))


def test_labels_may_be_words(own):
    words = np.array(["bee", "ant", "bee", "cow", "ant"] * 2)
    data = read_data(write(own, x=GREY, labels=words))
    assert data.class_names == CLASSES and data.labels.tolist() == [1, 0, 1, 2, 0] * 2
    train_, test = load_dataset(own)
    assert train_.class_names == test.class_names == CLASSES


def test_words_as_h5py_writes_them(tmp_path):
    words = ["bee", "ant", "caf\u00e9"] * 3 + ["ant"]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"], file["labels"] = GREY, words
    data = read_data(tmp_path / "x.h5")
    assert [data.class_names[label] for label in data.labels] == words


def test_words_of_any_length_take_no_memory(tmp_path, monkeypatch):
    """A row of HDF5's text is a reference: a million rows may hold the same megabyte."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = GREY
        file["labels"] = ["a" * 1000] * 10
    with pytest.raises(
        ValueError, match="a class must have a name of at most 200 letters; got 1000"
    ):
        read_data(tmp_path / "x.h5")


def test_what_a_file_holds_beside_is_said(own):
    arrays = {"x": GREY, "y": np.arange(10), "targets": np.arange(10), "embedding": GREY[:, 0] / 2}
    sentence = r"own\.\w+: the file held also embedding, targets, which were not read\. Labels"
    with pytest.warns(UserWarning, match=sentence):
        data = read_data(write(own, **arrays))
    assert data.labels.tolist() == list(range(10))


def test_what_a_regression_aims_at_is_no_label(own):
    write(own, x=GREY, target=np.arange(10) / 4)
    with pytest.warns(
        UserWarning, match="held also target, which was not read. Labels, whole numbers"
    ):
        assert read_data(own).labels is None


def test_arrays_one_group_down(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["dataset/images"], file["dataset/labels"] = GREY, np.arange(10)
        file["dataset/names"] = np.arange(3)
    with pytest.warns(UserWarning, match="held also dataset/names, which was not read"):
        data = read_data(tmp_path / "x.h5")
    assert (rows(data)[:, 0] == GREY).all() and data.labels.tolist() == list(range(10))
    with h5py.File(tmp_path / "two.h5", "w") as file:
        for part in ("train", "test"):
            file[f"{part}/x"], file[f"{part}/y"] = GREY, np.arange(10)
        file.create_group("empty")
        file["deep/er/x"] = GREY
    sentence = r"two\.h5: .*got deep/er/\.\.\., test/x, test/y, train/x, train/y\. Rename"
    with pytest.raises(ValueError, match=sentence):
        read_data(tmp_path / "two.h5")


# compressed HDF5


def test_a_chunk_is_unpacked_once(tmp_path, monkeypatch):
    """HDF5 unpacks a chunk that exceeds its cache again for each slice of it."""
    x = RNG.integers(0, 256, (60, 4, 4), dtype=np.uint8)
    path, sliced, plain = tmp_path / "x.h5", [], h5py.Dataset.__getitem__
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=x, chunks=(20, 4, 4), compression="gzip")

    def seen(dataset, index):
        sliced.append(index)
        return plain(dataset, index)

    lazy = read_data(path).x.source
    monkeypatch.setattr(h5py.Dataset, "__getitem__", seen)
    monkeypatch.setattr(h5_files, "_AT_ONCE", 1)
    for rows, expected in (
        ([58, 3, 17, 3, 41], [(3, 18), (41, 59)]),  # chunks 0 and 2, and not the one between
        (RNG.permutation(60)[:40], 3),
    ):
        sliced.clear()
        assert (lazy[np.array(rows)] == x[rows]).all()
        found = [(index.start, index.stop) for index in sliced]
        assert found == expected or len(found) == expected
    monkeypatch.setattr(h5_files, "rows_that_fit", lambda row_bytes: 7)  # a chunk may be too large
    assert (lazy[np.arange(60)] == x).all() and all(i.stop - i.start <= 7 for i in sliced[-5:])


@pytest.mark.slow
def test_compressed_rows_are_read_within_five_times_h5py_s_own(tmp_path):
    x = RNG.integers(0, 4, (9000, 64, 64), dtype=np.uint8) * 60
    with h5py.File(tmp_path / "x.h5", "w") as file:  # chunks of 12 MB
        file.create_dataset("x", data=x, chunks=(3000, 64, 64), compression="gzip")
    began = time.process_time()
    with h5py.File(tmp_path / "x.h5", "r") as file:
        assert (file["x"][()] == x).all()
    alone = time.process_time() - began
    began = time.process_time()
    parts = load(tiny(tmp_path / "x.h5"))
    ours = time.process_time() - began
    assert sum(len(part) for part in parts) == 9000 and all(part.resident for part in parts)
    assert ours < 5 * alone, (ours, alone)
