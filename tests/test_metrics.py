"""Metrics on hand-made codes, on the nulls of metrics.md, and against scikit-learn."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
    silhouette_samples,
)

from pyro_bvae.metrics import cluster_scores, hoyer, images, sharpness
from pyro_bvae.metrics.clusters import SILHOUETTE_CODES, USED_SHARE
from pyro_bvae.metrics.sparsity import DEAD, gaussian_null
from pyro_bvae.priors import SpikeSlab

RNG = np.random.default_rng(0)
CODES = RNG.normal(size=(200, 6)) * (RNG.uniform(size=(200, 6)) < 0.4)


def row_values(codes):
    """Hoyer's sparsity of each row, for the error of the mean."""
    z = codes / codes.std(0)
    root = np.sqrt(codes.shape[1])
    return (root - np.abs(z).sum(1) / np.linalg.norm(z, axis=1)) / (root - 1)


# Hoyer


@pytest.mark.parametrize(("dim", "expected"), [(50, 0.2307), (10, 0.266)])
def test_hoyer_null(dim, expected):
    assert gaussian_null(dim) == pytest.approx(expected, abs=1e-4 if dim == 50 else 5e-4)
    codes = np.random.default_rng(dim).normal(size=(20_000, dim))
    score = hoyer(codes)
    error = row_values(codes).std() / np.sqrt(len(codes))
    assert abs(score.value - score.details["null"]) < 4 * error
    assert score.details["null"] == gaussian_null(dim)


def test_hoyer_of_the_sparse_prior():
    torch.manual_seed(0)
    codes = SpikeSlab(50, spike_weight=0.8)().sample((20_000,)).numpy()
    error = row_values(codes).std() / np.sqrt(len(codes))
    assert abs(hoyer(codes).value - 0.649) < 4 * error + 5e-4  # .649 is given to three digits


def test_hoyer_extremes():
    one_hot = np.eye(8)[np.arange(40) % 8]
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(40, 8))
    signs[:20], signs[20:] = signs[:20], -signs[:20]  # equal magnitudes also after the division
    for codes, expected in ((one_hot, 1.0), (signs, 0.0)):
        score = hoyer(codes)
        assert score.value == pytest.approx(expected, abs=1e-12)
        assert score.details["unnormalised"] == pytest.approx(expected, abs=1e-12)


def test_hoyer_by_hand():
    # columns (1, -1) and (2, 6): deviations 1 and 2, so rows (1, 1) and (-1, 3) after the division
    by_hand = (np.sqrt(2) - (2 / np.sqrt(2) + 4 / np.sqrt(10)) / 2) / (np.sqrt(2) - 1)
    score = hoyer(np.array([[1.0, 2.0], [-1.0, 6.0]]))
    assert score.value == pytest.approx(by_hand, abs=1e-12)
    raw = (np.sqrt(2) - (3 / np.sqrt(5) + 7 / np.sqrt(37)) / 2) / (np.sqrt(2) - 1)
    assert score.details["unnormalised"] == pytest.approx(raw, abs=1e-12)


def test_hoyer_invariances():
    expected = hoyer(CODES).value
    scales = np.array([0.5, 2, 3, 10, -1, 100])
    assert hoyer(CODES * scales).value == pytest.approx(expected, abs=1e-12)
    assert hoyer(CODES[:, [3, 0, 5, 1, 4, 2]]).value == pytest.approx(expected, abs=1e-12)
    assert hoyer(CODES[::-1]).value == pytest.approx(expected, abs=1e-12)
    assert abs(hoyer(CODES * scales).details["unnormalised"] - expected) > 0.05
    assert abs(hoyer(CODES + 1).value - expected) > 0.05  # not centred, as documented


def test_hoyer_drops_and_counts_dead_dimensions():
    dead = np.random.default_rng(1).normal(size=(200, 3)) * DEAD / 2
    mixed = np.c_[CODES, dead]
    score = hoyer(mixed)
    assert score.value == pytest.approx(hoyer(CODES).value, abs=1e-12)
    assert (score.details["dimensions"], score.details["dead"]) == (6, 3)
    assert score.details["kept"] == [0, 1, 2, 3, 4, 5]
    assert hoyer(mixed[:, ::-1]).details["kept"] == [3, 4, 5, 6, 7, 8]
    kept = hoyer(mixed, drop_dead=False)
    assert (kept.details["dimensions"], kept.details["dead"]) == (9, 0)
    assert kept.details["kept"] == list(range(9))
    assert kept.value < score.value - 0.05


@pytest.mark.parametrize("drop_dead", [True, False])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.3])
def test_hoyer_leaves_out_constant_codes(value, drop_dead):
    score = hoyer(np.c_[CODES[:10], np.full(10, value)], drop_dead)  # .1 has std 1e-17, not 0
    assert score.value == pytest.approx(hoyer(CODES[:10], drop_dead).value, abs=1e-12)
    assert score.details["dead"] == 1 and score.details["kept"] == [0, 1, 2, 3, 4, 5]


def test_hoyer_of_codes_whose_squares_underflow():
    expected, score = hoyer(CODES), hoyer(CODES * 1e-200, drop_dead=False)
    assert score.value == pytest.approx(expected.value, abs=1e-12)
    raw = expected.details["unnormalised"]
    assert score.details["unnormalised"] == pytest.approx(raw, abs=1e-12)
    assert hoyer(CODES * 1e-200).details["kept"] == []


@pytest.mark.parametrize(
    "codes", [np.full((5, 4), 0.1), np.zeros((5, 4)), np.ones((1, 3)), CODES[:, :1]]
)
@pytest.mark.parametrize("drop_dead", [True, False])
def test_hoyer_is_zero_where_fewer_than_two_dimensions_live(codes, drop_dead):
    score = hoyer(codes, drop_dead)
    assert score.value == 0.0 and score.details["unnormalised"] == 0.0
    assert score.details["dimensions"] + score.details["dead"] == codes.shape[1]


def test_hoyer_errors():
    with pytest.raises(ValueError, match=r"hoyer: codes must have shape \(n, latent_dim\).*\(5,\)"):
        hoyer(np.zeros(5))
    with pytest.raises(ValueError, match=r"hoyer: codes must have shape .* n >= 1; got \(0, 3\)"):
        hoyer(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="hoyer: codes must be finite; got 2 NaN.*first in row 1"):
        hoyer(np.array([[1.0, 0.0], [np.nan, np.inf]]))


# Clusters

ASSIGNMENTS = RNG.integers(0, 4, 300)
LABELS = np.where(RNG.uniform(size=300) < 0.7, ASSIGNMENTS, RNG.integers(0, 5, 300))


def test_purity_by_hand():
    assignments = np.array([7, 7, 7, 2, 2, 2, 2, 9])
    labels = np.array([0, 0, 1, 1, 1, 4, 4, 4])
    score = cluster_scores(assignments, labels)  # majorities 2 of 3, 2 of 4, 1 of 1
    assert score.value == 5 / 8 and float(score) == 5 / 8
    assert score.details["components_used"] == 3 and score.details["n"] == 8


def test_cluster_scores_agree_with_scikit_learn():
    score = cluster_scores(ASSIGNMENTS, LABELS)
    assert score.details["nmi"] == normalized_mutual_info_score(LABELS, ASSIGNMENTS)
    assert score.details["ari"] == adjusted_rand_score(LABELS, ASSIGNMENTS)
    majorities = [np.bincount(LABELS[np.equal(ASSIGNMENTS, k)]).max() for k in range(4)]
    assert score.value == sum(majorities) / 300


def test_cluster_scores_are_unchanged_by_relabelling_and_order():
    expected = cluster_scores(ASSIGNMENTS, LABELS)
    names, classes = np.array([40, -2, 7, 0]), np.array([3, 1, 100, 0, 2])
    order = np.random.default_rng(2).permutation(300)
    got = cluster_scores(names[ASSIGNMENTS][order], classes[LABELS][order])
    assert got.value == expected.value
    assert got.details == pytest.approx(expected.details, abs=1e-12)


def test_cluster_extremes():
    perfect = cluster_scores(LABELS, LABELS)
    assert perfect.value == 1.0 and perfect.details["nmi"] == pytest.approx(1.0)
    single = cluster_scores(np.arange(300), LABELS)  # pure by shattering: the other numbers tell
    assert single.value == 1.0 and single.details["components_used"] == 0
    one = cluster_scores(np.zeros(300, int), LABELS)
    assert one.value == np.bincount(LABELS).max() / 300
    assert one.details["nmi"] == 0.0 and one.details["ari"] == 0.0


def test_a_component_is_used_from_its_share_on():
    n = 500
    assignments = np.zeros(n, int)
    assignments[: int(USED_SHARE * n)] = 1
    assignments[-int(USED_SHARE * n) + 1 :] = 2
    assert cluster_scores(assignments, np.zeros(n, int)).details["components_used"] == 2


def test_cluster_errors():
    with pytest.raises(ValueError, match=r"cluster_scores: .*one shape \(n,\).*\(3,\) and \(4,\)"):
        cluster_scores(np.zeros(3, int), np.zeros(4, int))
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(2, 2\)"):
        cluster_scores(np.zeros((2, 2), int), np.zeros((2, 2), int))
    with pytest.raises(ValueError, match="n >= 1"):
        cluster_scores(np.zeros(0, int), np.zeros(0, int))


def test_silhouette_by_hand():
    """Two pairs, a unit wide and 10 apart: a = 1, b = 10.5 from the outer and 9.5 from the inner end."""
    codes, assignments = np.array([[0.0], [1], [10], [11]]), np.array([3, 3, 8, 8])
    score = cluster_scores(assignments, assignments, codes=codes)
    assert score.details["silhouette"] == pytest.approx((9.5 / 10.5 + 8.5 / 9.5) / 2, abs=1e-12)
    assert score.details["silhouette_codes"] == 4
    assert "silhouette" not in cluster_scores(assignments, assignments).details


def test_silhouette_of_many_codes_takes_evenly_spaced_ones():
    n = 2 * SILHOUETTE_CODES - 1  # every second one
    assignments = np.arange(n) // 2 % 2
    codes = np.random.default_rng(0).normal(size=(n, 2)) + assignments[:, None]
    details = cluster_scores(assignments, assignments, codes=codes).details
    expected = silhouette_samples(codes[::2], assignments[::2]).mean()
    assert details["silhouette_codes"] == SILHOUETTE_CODES
    assert details["silhouette"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("assignments", [np.zeros(5, int), np.arange(5)])
def test_silhouette_needs_clusters(assignments):
    details = cluster_scores(assignments, np.zeros(5, int), codes=np.ones((5, 2))).details
    assert details["silhouette"] is None


def test_silhouette_errors():
    with pytest.raises(ValueError, match="a row for each of the 3 assignments; got 4"):
        cluster_scores(np.arange(3), np.arange(3), codes=np.ones((4, 2)))
    with pytest.raises(ValueError, match="cluster_scores: codes must be finite"):
        cluster_scores(np.arange(3), np.arange(3), codes=np.full((3, 2), np.nan))


# Sharpness

NOISE = np.random.default_rng(3).integers(0, 256, size=(5, 7, 6), dtype=np.uint8)


def test_sharpness_by_hand():
    image = np.array([[10, 0, 0], [0, 0, 0], [0, 0, 20]], dtype=np.uint8)
    # mirrored about the outermost pixels: beside each corner stands its inner neighbour twice
    response = np.array([[-40, 10, 0], [10, 0, 20], [0, 20, -80]])
    assert sharpness(image[None]).value == pytest.approx(response.var(), abs=1e-12)


def test_sharpness_agrees_with_a_loop_and_with_scipy():
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    values, scipy_values = [], []
    for image in NOISE.astype(float):
        response = np.zeros_like(image)
        height, width = image.shape
        for i in range(height):
            for j in range(width):
                for di, dj in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                    # -1 -> 1 and height -> height - 2
                    y, x = abs(i + di), abs(j + dj)
                    y, x = min(y, 2 * (height - 1) - y), min(x, 2 * (width - 1) - x)
                    response[i, j] += image[y, x] - image[i, j]
        values.append(response.var())
        scipy_values.append(ndimage.convolve(image, kernel, mode="mirror").var())
    score = sharpness(NOISE)
    assert score.value == pytest.approx(np.mean(values), abs=1e-9)
    assert score.value == pytest.approx(np.mean(scipy_values), abs=1e-9)
    assert score.details["standard_error"] == pytest.approx(np.std(values) / np.sqrt(5), abs=1e-9)
    assert (score.details["n"], score.details["height"], score.details["width"]) == (5, 7, 6)


def test_sharpness_of_each_layout(monkeypatch):
    expected = sharpness(NOISE).value
    assert sharpness(NOISE[:, None]).value == expected
    assert sharpness(NOISE / 255).value == pytest.approx(expected, rel=1e-12)
    assert sharpness((NOISE / 255).astype(np.float32)).value == pytest.approx(expected, rel=1e-6)
    grey_as_colour = np.repeat(NOISE[:, None], 3, axis=1)
    assert sharpness(grey_as_colour).value == pytest.approx(expected, rel=1e-12)
    for channel, weight in enumerate((0.299, 0.587, 0.114)):  # ITU-R BT.601
        colour = np.zeros((5, 3, 7, 6))
        colour[:, channel] = NOISE / 255
        assert sharpness(colour).value == pytest.approx(weight**2 * expected, rel=1e-12)
    monkeypatch.setattr(images, "_BLOCK", 2 * 7 * 6)  # two images at a time
    assert sharpness(NOISE).value == expected
    assert sharpness(NOISE[:, ::-1]).value == pytest.approx(expected, rel=1e-12)
    assert sharpness(NOISE // 2 + 9).value != pytest.approx(expected, rel=0.1)
    assert sharpness(np.full((2, 4, 4), 0.3)).value == pytest.approx(0, abs=1e-20)


def test_sharpness_of_mnist():
    folder = Path(os.environ.get("PYRO_BVAE_DATA") or Path(__file__).parents[2] / "shared" / "data")
    file = folder / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"  # load_dataset would unpack all
    if not file.is_file():
        pytest.skip(f"{file} is absent; set PYRO_BVAE_DATA")
    pixels = np.frombuffer(
        gzip.decompress(file.read_bytes()), np.uint8, offset=16, count=2000 * 784
    )
    x = torch.from_numpy(pixels.reshape(2000, 1, 28, 28).copy()) / 255
    large = torch.nn.functional.interpolate(x, size=(32, 32), mode="bilinear")
    score = sharpness(large.numpy())
    assert abs(score.value - 3452) < 4 * score.details["standard_error"]  # 3,452 on all 10,000
    assert score.details["standard_error"] < 30


def test_sharpness_errors():
    with pytest.raises(TypeError, match=r"sharpness: images must be uint8 .* got dtype int64"):
        sharpness(NOISE.astype(np.int64))
    for shape in ((5, 5), (0, 4, 4), (2, 4, 4, 3), (2, 1, 4)):
        with pytest.raises(ValueError, match=r"sharpness: images must have shape .*second axis"):
            sharpness(np.zeros(shape))
    with pytest.raises(ValueError, match="floats must lie in .0, 1.; got 0 to 255"):
        sharpness(np.array([[[0, 255.0], [0, 0]]]))
    with pytest.raises(ValueError, match="got nan to nan"):
        sharpness(np.full((1, 2, 2), np.nan))
