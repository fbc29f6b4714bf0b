"""dSprites as drawn here: against the genuine images, against a slow drawing pixel by pixel, and its errors."""

import math
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pyro_bvae.datasets import dsprites, load_dataset, render_dsprites
from pyro_bvae.datasets.dsprites import FACTORS, N_IMAGES

ROOT = Path(os.environ.get("PYRO_BVAE_DATA") or Path(__file__).parents[2] / "shared" / "data")
FOLDER = ROOT / "dsprites"
SIZES = (1, 3, 6, 40, 32, 32)
needs_data = pytest.mark.skipif(
    not FOLDER.exists(), reason=f"{FOLDER} is absent; set PYRO_BVAE_DATA"
)


@pytest.fixture(scope="module")
def genuine():
    with np.load(FOLDER / "dsprites_genuine_64834.npz") as file:
        return {name: file[name] for name in file.files}


# Against the original


@needs_data
def test_genuine_images_to_the_pixel(genuine):
    assert len(genuine["imgs"]) == 64_834
    drawn = render_dsprites(genuine["original_index"])
    assert drawn.dtype == np.uint8 and drawn.shape == genuine["imgs"].shape
    off = np.zeros(len(drawn), int)
    for start in range(0, len(drawn), 8192):
        part = slice(start, start + 8192)
        off[part] = (drawn[part] != genuine["imgs"][part]).sum((1, 2))
    # Nine were measured: vertices within 1/1000 of a rounding tie of 1/256 pixel.
    assert off.max() == 1 and off.sum() == 9
    assert (off == 0).mean() >= 0.9998


@needs_data
def test_the_320_pictures_of_the_original_repository():
    with np.load(FOLDER / "dsprites_gif_320.npz") as file:
        assert len(file["imgs"]) == 320
        assert np.array_equal(render_dsprites(file["first_matching_index"]), file["imgs"])


@needs_data
def test_factors_are_those_of_the_original(genuine):
    classes = genuine["latents_classes"]
    assert np.array_equal(np.ravel_multi_index(classes.T, SIZES), genuine["original_index"])
    values = np.stack([v[classes[:, i]] for i, v in enumerate(FACTORS.values())], axis=1)
    assert np.abs(values - genuine["latents_values"]).max() < 1e-12


# Against a drawing that has no more in common with it than the rule


def outline(shape, scale, orientation, pos_x, pos_y):
    """Vertices in 256ths of a pixel, whole numbers, one at a time."""
    if shape == 0:
        points = [(-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5)]
    elif shape == 1:
        ts = [math.tau * i / 100 for i in range(100)]
        points = [(1.33 / 2 * math.cos(t), math.sin(t) / 2 / 1.33) for t in ts]
    else:
        ts = [math.tau * i / 150 for i in range(150)]
        points = [
            (
                math.sin(t) ** 3 / 2,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
                / 29
                - 0.075,
            )
            for t in ts
        ]
    theta, side = math.tau * orientation / 39, 19.2 * (0.5 + 0.1 * scale)
    cx, cy = 16 + 32 * pos_x / 31, 16 + 32 * pos_y / 31
    turned = [
        (
            cx + side * (u * math.cos(theta) + v * math.sin(theta)),
            cy + side * (v * math.cos(theta) - u * math.sin(theta)),
        )
        for u, v in points
    ]
    return [(math.floor(256 * x + 0.5), math.floor(256 * y + 0.5)) for x, y in turned]


def inside(polygon, row, column):
    """Whether an odd number of edges cross the row of centres at or left of this pixel's centre."""
    x, y = 256 * column + 128, 256 * row + 128
    odd = False
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        if (y0 < y) != (y1 < y):  # the centre lies below one end, and not below the other
            crossing = x0 + Fraction((y - y0) * (x1 - x0), y1 - y0)
            odd ^= crossing <= x
    return odd


def slowly(index):
    look = [int(i) for i in np.unravel_index(index, SIZES)]
    polygon = outline(*look[1:])
    xs, ys = zip(*polygon, strict=True)
    image = np.zeros((64, 64), np.uint8)
    for row in range(min(ys) // 256, max(ys) // 256 + 1):  # outside its box no edge crosses
        for column in range(min(xs) // 256, max(xs) // 256 + 1):
            image[row, column] = inside(polygon, row, column)
    return image


def some_indices():
    """A dozen at random, four of each shape, and squares whose edges run along rows of centres."""
    n_shape = N_IMAGES // 3
    drawn = np.random.default_rng(0).integers(0, n_shape, 12) + np.repeat([0, 1, 2], 4) * n_shape
    ties = [np.ravel_multi_index((0, 0, 1, 0, 5, y), SIZES) for y in (8, 23)]
    return np.array([*drawn, *ties])


def test_a_slow_drawing_agrees():
    indices = some_indices()
    drawn = render_dsprites(indices)
    assert (drawn.sum((1, 2)) > 40).all()
    for index, image in zip(indices, drawn, strict=True):
        assert np.array_equal(image, slowly(index)), f"image {index}"


# Any rows, in any order


def test_order_duplicates_and_single_rows():
    indices = np.array([*some_indices(), 7, 7, N_IMAGES - 1, 0])
    drawn = render_dsprites(indices)
    for i, index in enumerate(indices):
        assert np.array_equal(render_dsprites(np.array([index]))[0], drawn[i])
    order = np.random.default_rng(1).permutation(len(indices))
    assert np.array_equal(render_dsprites(indices[order]), drawn[order])
    assert np.array_equal(render_dsprites(indices.tolist()), drawn)
    assert np.array_equal(render_dsprites(indices.astype(np.uint32)), drawn)
    assert set(np.unique(drawn)) == {0, 1}


def test_no_rows():
    assert render_dsprites(np.array([], int)).shape == (0, 64, 64)


def test_the_first_and_the_last_orientation_look_alike():
    look = np.array([[0, s, c, o, 11, 20] for o in (0, 39) for s in range(3) for c in range(6)])
    first, last = np.split(render_dsprites(np.ravel_multi_index(look.T, SIZES)), 2)
    assert np.array_equal(first, last)


@pytest.mark.parametrize(
    "indices, error, message",
    [
        (np.array([0.0, 1.0]), TypeError, "indices must be integers; got float64"),
        (np.array([True]), TypeError, "indices must be integers; got bool.*flatnonzero"),
        (np.zeros((2, 3), int), ValueError, r"must be \(n,\), .*; got shape \(2, 3\)"),
        (np.array(5), ValueError, r"must be \(n,\), .*; got shape \(\)"),
        (np.array([3, -1]), ValueError, "each from 0 to 737279; got -1. Choose rows"),
        (np.array([N_IMAGES]), ValueError, "each from 0 to 737279; got 737280"),
        (np.array([2**64 - 1], np.uint64), ValueError, "got 18446744073709551615"),
    ],
)
def test_indices_that_are_none(indices, error, message):
    with pytest.raises(error, match=message):
        render_dsprites(indices)


# As a data set


@pytest.fixture(scope="module")
def parts():
    return load_dataset("dsprites", test_fraction=0.25, seed=3)


def test_dsprites_is_split_once(parts):
    train, test = parts
    assert (len(train), len(test)) == (552_960, 184_320)
    assert train.x_shape == test.x_shape == (1, 64, 64) and not train.resident
    assert train.factor_names == ("color", "shape", "scale", "orientation", "posX", "posY")
    rows = [np.ravel_multi_index(part.factors.T, SIZES) for part in parts]
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(N_IMAGES))


def test_each_row_is_drawn_as_its_factors_say(parts):
    for part in parts:
        index = np.random.default_rng(2).integers(0, len(part), 200)
        images = part.batch(index)
        rows = np.ravel_multi_index(part.factors[index].T, SIZES)
        assert images.dtype == np.uint8
        assert np.array_equal(images[:, 0], render_dsprites(rows) * 255)


def test_dsprites_resized(parts, monkeypatch):
    drawn = parts[0].x.source.source
    monkeypatch.setattr(dsprites, "_draw", lambda indices: drawn)  # seconds are not spent twice
    train, _ = load_dataset("dsprites", image_size=32, test_fraction=0.25, seed=3)
    index = np.arange(50)
    assert np.array_equal(train.factors[index], parts[0].factors[index])
    small, large = (part.batch(index).astype(float) for part in (train, parts[0]))
    assert small.shape == (50, 1, 32, 32)
    assert small.mean((1, 2, 3)) == pytest.approx(large.mean((1, 2, 3)), abs=0.5)  # of 255
    with pytest.raises(ValueError, match="dsprites: image_size must be 1 or more; got 0"):
        load_dataset("dsprites", image_size=0)
