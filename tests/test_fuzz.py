"""What a stranger may hand us: it works, or it is one sentence, and nothing on disk has changed.

By default some hundred cases of each property, the same at every run; twenty times as many, new ones at
every run, with ``python -m pytest tests/test_fuzz.py --hypothesis-profile=thorough``.
"""

import dataclasses
import functools
import gzip
import io
import json
import math
import re
import struct
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, assume, event, settings
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st
from PIL import Image
from pyro_bvae.cli.main import main

from pyro_bvae import networks, runs
from pyro_bvae.build import make_prior
from pyro_bvae.config import Config, flag
from pyro_bvae.datasets import load_dataset, memory, read_data
from pyro_bvae.evaluation import read_codes
from pyro_bvae.metrics import METRICS
from pyro_bvae.priors import PRIORS
from pyro_bvae.priors.check import prior_distribution

FACTOR = settings.default.max_examples // 100  # the profile's, where one is chosen
LONGEST = 500  # characters of a sentence, without the paths in it
OURS = (ValueError, TypeError, OSError)
FIELDS = dataclasses.fields(Config)


def cases(n, *strategies, **named):
    """``hypothesis.given``, with ``n`` cases by default."""

    def decorate(test):
        chosen = settings(
            max_examples=n * FACTOR,
            derandomize=FACTOR == 1,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        )
        return chosen(hypothesis_given(*strategies, **named)(test))

    return decorate


def check_sentence(error, *paths):
    """One line that says what must be, short whatever was given."""
    event("refused")  # its share: --hypothesis-show-statistics
    text = str(error)
    for path in paths:
        text = text.replace(str(path), "PATH")
    assert type(error) in (ValueError, TypeError) or isinstance(error, (ValueError, OSError)), error
    assert "\n" not in text and len(text) <= LONGEST, text
    assert re.match(r"(--[a-z-]+,?|[\w. -]+:|PATH:?) ", text), text
    assert re.search(r"\b(must|needs?|exclude|has no|sets|cannot)\b", text), text
    assert text[-1] in ".?", text


# Values of any kind, as JSON and as Python hold them.

NUMBERS = (
    st.sampled_from([0, 1, -1, 2, 10, 2**31, 2**63, 10**30, 10**400, 10**4000, 0.5, 1e-30, 1e30])
    | st.integers()
    | st.floats()
)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=20) | st.just("long\n" * 999)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | SCALARS, inner, max_size=3)
    ),
    max_leaves=6,
)


def nested(depth):
    value = 0
    for _ in range(depth):
        value = [value]
    return value


def field_values(field):
    """Values that may well do, and any others."""
    kind = str(field.type).split(" ")[0]
    plausible = {
        "int": st.integers(1, 100),
        "float": st.floats(0, 1) | st.floats(0, 1e6),
        "bool": st.booleans(),
        "str": st.sampled_from((*field.metadata["choices"], "own:thing", "0.5", "decoder")),
        "dict[str,": st.dictionaries(st.text(max_size=5), VALUES | st.just(nested(90)), max_size=2),
    }[kind]
    return st.none() | plausible | plausible | VALUES


CONFIGS = st.lists(st.sampled_from(FIELDS), max_size=4, unique_by=lambda f: f.name).flatmap(
    lambda fields: st.fixed_dictionaries({field.name: field_values(field) for field in fields})
)


def as_json(config):
    return json.loads(json.dumps(config.to_dict(), allow_nan=False))


@cases(300, CONFIGS)
def test_a_config_is_refused_or_survives_json(values):
    try:
        config = Config(**values)
    except OURS as error:
        return check_sentence(error)
    assert Config.from_dict(as_json(config)) == config
    assert config.to_dict() == as_json(config)
    try:
        resolved = config.resolved()
    except OURS as error:
        return check_sentence(error)
    assert resolved.resolved() == resolved == Config.from_dict(as_json(resolved))


@cases(
    150, VALUES | st.dictionaries(st.sampled_from(["format", "beta", "prior"]) | st.text(), VALUES)
)
def test_any_json_is_a_config_or_refused(values):
    try:
        config = Config.from_dict(values)
    except OURS as error:
        return check_sentence(error)
    assert Config.from_dict(as_json(config)) == config


# The command line

TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)
WRONG = {  # refused whatever the other options are
    "int": st.sampled_from(["-1", "x", "1.5", "nan", "", "9" * 30, "9" * 6000]),
    "float": st.sampled_from(["-1", "nan", "inf", "x", "", "1e999", "-1e-300"]),
    "str": st.sampled_from(["no such", "", "x" * 5000, "a\nb", "\x1b[31m"]),
    "dict[str,": st.sampled_from(["x", "=1", "", "x=NaN"]),
    "bool": st.just("surely not a switch"),
}
SAFE = st.sampled_from(
    ["--quiet", "--no-report", "--beta=2", "--seed=3", "--steps=5", "--device=cpu"]
)


def is_open(field):
    """Any text may be right."""
    return field.name in ("data_dir", "device")


@st.composite
def wrong_option(draw):
    field = draw(st.sampled_from([field for field in FIELDS if not is_open(field)]))
    kind = str(field.type).split(" ")[0]
    value = draw(WRONG[kind])
    return f"{flag(field.name)}={value}"


def invoke(arguments, monkeypatch):
    """Run ``train`` up to the library's call; its exit code is 1 where that was reached."""

    def stub(*args, **kwargs):
        raise FloatingPointError("reached")

    monkeypatch.setattr(runs, "train", stub)
    monkeypatch.setattr("pyro_bvae.cli.train.tune_allocator", lambda: None)
    monkeypatch.setattr("pyro_bvae.cli.train.choose_threads", lambda network: None)
    result = CliRunner().invoke(main, ["train", *arguments])
    assert isinstance(result.exception, (SystemExit, type(None))), result.exception
    return result


@cases(60, wrong_option(), st.lists(SAFE, max_size=2, unique=True))
def test_a_wrong_option_is_refused_before_any_work(empty_cwd, wrong, others):
    with pytest.MonkeyPatch.context() as monkeypatch:
        result = invoke([*others, wrong], monkeypatch)
    assert result.exit_code == 2, (wrong, result.output)
    last = result.stderr.rstrip("\n").split("\n\n")[-1]  # below click's usage, where it prints it
    assert last.startswith("Error: ") and "Traceback" not in result.output
    assert len(last) <= LONGEST or wrong.split("=")[1][:40] in last  # click's own repeat the value
    assert not list(empty_cwd.iterdir())


@cases(60, st.lists(st.tuples(st.sampled_from(FIELDS), TEXTS), max_size=3))
def test_any_options_are_taken_or_refused(empty_cwd, chosen):
    arguments = [f"{flag(field.name)}={text}" for field, text in chosen]
    with pytest.MonkeyPatch.context() as monkeypatch:
        result = invoke(arguments, monkeypatch)
    assert result.exit_code == (1 if "reached" in result.stderr else 2), result.output
    assert not list(empty_cwd.iterdir())


@pytest.fixture
def empty_cwd(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Priors

ARGUMENTS = (
    "scale", "df", "learned", "spike_weight", "spike_scale", "slab_scale", "n_components", "locs",
    "n_transforms", "hidden", "x_shape", "x", "latent_dim",
)  # fmt: skip
PRIOR_VALUES = (
    st.sampled_from(
        [1e-30, 1e-6, 1e-3, 0.1, 0.5, 1, 2, 3, 4, 9.0, 1000, 1e6, 1e30, 10**400, True, 0.0]
    )
    | st.lists(st.lists(st.floats(-9, 9) | SCALARS, min_size=1, max_size=2), max_size=3)
    | st.floats(1e-7, 1e7)
    | VALUES
)
X = np.random.default_rng(0).random((600, 6), dtype=np.float32)


@cases(
    100,
    st.sampled_from(sorted(PRIORS)),
    st.sampled_from([1, 2, 3, 512]),
    st.dictionaries(st.sampled_from(ARGUMENTS), PRIOR_VALUES, max_size=2),
    st.booleans(),
)
def test_a_prior_is_refused_or_has_a_finite_density(name, latent_dim, arguments, with_data):
    try:
        config = Config(prior=name, prior_args=arguments, latent_dim=latent_dim)
        prior = make_prior(config, (6,), X if with_data else None)
        if hasattr(prior, "bind"):
            prior.bind(networks.mlp((6,), latent_dim)[0])
        p_z = prior_distribution(prior, latent_dim)
    except (ValueError, TypeError) as error:
        return check_sentence(error)
    z = p_z.sample((100,))
    assert z.shape == (100, latent_dim) and torch.isfinite(z).all()
    log_p = p_z.log_prob(z)
    assert log_p.shape == (100,) and torch.isfinite(log_p).all()


# Metrics of codes

HUGE = st.sampled_from([0.0, -0.0, 1e-300, 1e300, -1e300, 1e49, 1e-320, 1e51, np.inf, np.nan])
DTYPES = ("f8", "f4", "f2", ">f8", "i8", "u1", "u8", "?", "c16", "O", "U3", "M8[s]", "V4")


@st.composite
def odd_arrays(draw, integers, n):
    """An array ``(n, d)`` that may serve, or is odd in one way or two."""
    oddities = [
        "rows",
        "empty",
        "huge",
        "scaled",
        "constant",
        "dtype",
        "strided",
        "flat",
        "cube",
        "list",
    ]
    odd = draw(st.just([]) | st.just([]) | st.lists(st.sampled_from(oddities), max_size=2))
    n, d = (
        draw(st.integers(0, 5)) if "rows" in odd else n,
        draw(st.integers(1, 4)) * ("empty" not in odd),
    )
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    array = rng.integers(-1, 2, (n, d)) if integers else rng.normal(size=(n, d))
    if "huge" in odd and array.size and not integers:
        array.flat[draw(st.integers(0, array.size - 1))] = draw(HUGE)
    if "scaled" in odd and not integers:
        with np.errstate(all="ignore"):
            array *= draw(st.sampled_from([0, 1e-200, 1e40, 1e100]))
    if "constant" in odd and array.size:
        array[:, draw(st.integers(0, d - 1))] = array.flat[0]
    if "dtype" in odd:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                array = array.astype(draw(st.sampled_from(DTYPES)))
            except (TypeError, ValueError):
                assume(False)
    if "strided" in odd:
        array = np.asfortranarray(np.repeat(array, 2, axis=0))[::2]
    if "flat" in odd or "cube" in odd:
        array = array.ravel() if "flat" in odd else array[None]
    return array.tolist() if "list" in odd else array


CODES_AND_FACTORS = st.sampled_from([1, 2, 3, 12, 30, 60]).flatmap(
    lambda n: st.tuples(odd_arrays(False, n), odd_arrays(True, n))
)


@cases(100, st.sampled_from(sorted(METRICS)), CODES_AND_FACTORS)
def test_a_metric_gives_a_score_in_its_range_or_refuses(name, arrays):
    codes, factors = arrays
    before = np.array(codes, copy=True), np.array(factors, copy=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # ours, of few rows
        try:
            score = METRICS[name](codes, factors, seed=0)
        except (ValueError, TypeError) as error:
            return check_sentence(error)
    assert math.isnan(score.value) or -1e-9 <= score.value <= 1 + 1e-9, score
    json.dumps(score.details)
    for array, copy in zip((codes, factors), before, strict=True):
        assert np.array_equal(np.asarray(array), copy)


# Damaged files


def saved(write):
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def save_h5(buffer, **options):
    with h5py.File(buffer, "w") as file:
        file.create_dataset("x", data=PIXELS, **options)
        file["labels"] = np.arange(10)


RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (10, 6, 5), dtype=np.uint8)
COLOUR = Image.fromarray(RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8))
CODES, CLASSES = RNG.normal(size=(10, 3)), np.arange(20).reshape(10, 2) % 3


@functools.cache
def whole(suffix):
    """The bytes of files that are as they should be."""
    if suffix == ".npy":
        arrays = (PIXELS, CODES, CODES.T, CODES.astype("f4"))
        return [saved(lambda b, a=a: np.save(b, a)) for a in arrays]
    if suffix == ".npz":
        return [
            saved(lambda b: np.savez(b, x=PIXELS, labels=np.arange(10))),
            saved(lambda b: np.savez_compressed(b, images=PIXELS, y=np.arange(10))),
        ]
    if suffix == ".h5":
        return [saved(save_h5), saved(lambda b: save_h5(b, chunks=(4, 6, 5), compression="gzip"))]
    kind = {".jpg": "JPEG", ".tif": "TIFF", ".ppm": "PPM"}.get(suffix, suffix[1:].upper())
    images = [COLOUR] if kind in ("JPEG", "PPM", "WEBP") else [COLOUR, COLOUR.convert("P")]
    files = [saved(lambda b, i=i: i.save(b, kind)) for i in images]
    if kind == "TIFF":
        files.append(saved(lambda b: COLOUR.save(b, kind, compression="tiff_lzw")))
    return files


SPECIAL = [0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1]


@st.composite
def damages(draw):
    """A function of bytes to damaged bytes; the places are shares of the length, or near its ends."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(
                    ["flip", "flip", "set", "number", "cut", "drop", "repeat", "append"]
                ),
                st.floats(0, 1, exclude_max=True) | st.integers(0, 300) | st.integers(-120, -1),
                st.integers(0, 255),
                st.sampled_from(SPECIAL),
                st.sampled_from(["<B", "<H", "<I", "<Q", ">H", ">I", ">Q"]),
            ),
            min_size=1,
            max_size=3,
        )
    )

    def damage(content):
        content = bytearray(content)
        for kind, place, byte, number, form in steps:
            n = len(content)
            if not n:
                break
            at = int(place * n) if isinstance(place, float) else place % n
            if kind == "flip":
                content[at] ^= 1 << byte % 8
            elif kind == "set":
                content[at] = byte
            elif kind == "number":
                size = struct.calcsize(form)
                content[at : at + size] = struct.pack(form, number % 256**size)
            elif kind == "cut":
                del content[at:]
            elif kind == "drop":
                del content[at : at + byte]
            elif kind == "repeat":
                content[at:at] = content[at : at + byte]
            else:
                content += bytes([byte]) * (number % 999)
        return bytes(content)

    return damage


def open_files():
    listed = Path("/proc/self/fd")
    return len(list(listed.iterdir())) if listed.is_dir() else 0


def assert_read_or_refused(path, read):
    """``read()`` succeeds or is one sentence; no file is left open, none has changed."""
    place = path if path.is_dir() else path.parent
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    opened = open_files()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's, of what it could mend
        try:
            read()
        except OURS as error:
            check_sentence(error, *before, path)
    assert open_files() <= opened
    assert {p: p.read_bytes() for p in place.rglob("*") if p.is_file()} == before


def read_all(path):
    data = read_data(path)
    assert len(data) >= 1 and 0 not in data.x_shape
    x = data.batch(np.arange(min(len(data), 20)))
    assert x.shape[1:] == data.x_shape and x.dtype in (np.uint8, np.float32)


@pytest.fixture
def small_memory(monkeypatch):
    """Of a machine on which a file's claim is soon too large; this one never gets near it."""
    monkeypatch.setattr(memory, "_memory", lambda: 1 << 28)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
@cases(150, st.integers(0, 99), damages())
def test_a_damaged_file_is_data_or_refused(small_memory, tmp_path, suffix, which, damage):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(damage(whole(suffix)[which % len(whole(suffix))]))
    assert_read_or_refused(path, lambda: read_all(path))


HEADERS = st.fixed_dictionaries(
    {
        "descr": st.sampled_from(
            ["|u1", "<f4", "|O", ">f2", "<U9", "|V0", "", [("a", "<i4")], "<g"]
        )
        | st.text(max_size=4)
        | VALUES,
        "fortran_order": st.booleans() | SCALARS,
        "shape": st.lists(
            st.integers(-1, 12) | st.sampled_from([2**31, 2**62, 2**64, 10**30, True, None]),
            max_size=5,
        ).map(tuple)
        | VALUES,
    }
)


@cases(150, HEADERS, st.integers(0, 400), st.sampled_from([(1, 0), (2, 0), (3, 0), (9, 9)]))
def test_a_header_of_npy_may_claim_anything(small_memory, tmp_path, header, size, version):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            text = repr(header).encode()
        except ValueError:  # an integer that Python does not print
            assume(False)
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text) % 2**16)
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY" + bytes(version) + length + text + b"\x01" * size)
    assert_read_or_refused(path, lambda: read_all(path))
    np.save(tmp_path / "f.npy", CLASSES)
    assert_read_or_refused(path, lambda: read_codes(path, tmp_path / "f.npy"))


@cases(150, st.sampled_from([".npy", ".npz"]), st.integers(0, 99), damages(), st.booleans())
def test_damaged_codes_are_codes_or_refused(
    small_memory, tmp_path, suffix, which, damage, as_codes
):
    good = {".npy": np.save, ".npz": lambda b, a: np.savez(b, codes=a, factors=a)}
    paths = [tmp_path / f"{name}{suffix}" for name in ("codes", "factors")]
    for path, array, damaged in zip(paths, (CODES, CLASSES), (as_codes, not as_codes), strict=True):
        content = saved(lambda b, a=array: good[suffix](b, a))
        path.write_bytes(damage(content) if damaged else content)
    assert_read_or_refused(paths[0], lambda: read_codes(*paths))


@cases(150, st.sampled_from([".png", ".jpg", ".gif", ".tif", ".bmp", ".ppm", ".webp"]), st.integers(0, 9),
       damages(), st.booleans())  # fmt: skip
def test_a_damaged_image_is_data_or_refused(small_memory, tmp_path, suffix, which, damage, alone):
    kinds = whole(suffix)
    folder = tmp_path / "images"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    (folder / f"b{suffix}").write_bytes(damage(kinds[which % len(kinds)]))
    if not alone:
        (folder / "a.png").write_bytes(whole(".png")[0])
    assert_read_or_refused(folder, lambda: read_all(folder))


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


@cases(60, st.sampled_from(["train-images-idx3", "train-labels-idx1", "t10k-images-idx3"]), damages(),
       st.booleans())  # fmt: skip
def test_damaged_idx_files_are_data_or_refused(small_memory, tmp_path, name, damage, packed):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for part, n in (("train", 6), ("t10k", 3)):
        labels, images = np.arange(n, dtype=np.uint8), np.zeros((n, 28, 28), np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
    path = raw / f"{name}-ubyte"
    path.with_suffix(".gz").unlink(missing_ok=True)
    content = damage(path.read_bytes())
    if packed:  # of the right name, and not the official file
        Path(f"{path}.gz").write_bytes(damage(gzip.compress(content, mtime=0)))
    else:
        Path(f"{path}.gz").unlink(missing_ok=True)
        path.write_bytes(content)
    assert_read_or_refused(raw, lambda: load_dataset("mnist", data_dir=tmp_path))
    Path(f"{path}.gz").unlink(missing_ok=True)
