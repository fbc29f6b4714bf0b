"""Codes no training made: principal components by numpy, sources unmixed, factors and pixels as they are."""

import numpy as np
import pytest

from pyro_bvae import config
from pyro_bvae.datasets import Data
from pyro_bvae.evaluation import BASELINES, baseline_codes, baselines, spaced
from pyro_bvae.metrics import mcc

RNG = np.random.default_rng(0)


def images(n, factors=None):
    return Data(RNG.integers(0, 256, (n, 1, 3, 3), dtype=np.uint8), factors=factors)


def test_every_name_is_a_choice_of_the_command():
    assert (*BASELINES, "untrained") == config.BASELINES


def test_pixels_are_flat_and_read_as_training_reads_them():
    data = images(7)
    codes = baseline_codes("pixels", images(5), data, 2)
    np.testing.assert_allclose(codes, data.x.reshape(7, 9) / 255, rtol=1e-6)


def test_factors_are_themselves():
    factors = RNG.integers(0, 9, (7, 4))
    codes = baseline_codes("factors", images(5), images(7, factors), 2)
    assert codes.dtype == np.float32 and np.array_equal(codes, factors)


@pytest.mark.parametrize("latent_dim, width", [(1, 1), (4, 4), (20, 9)])
def test_pca_is_that_of_a_singular_value_decomposition_of_the_training_rows(latent_dim, width):
    train, data = images(50), images(12)
    x = train.x.reshape(50, 9) / 255
    *_, axes = np.linalg.svd(x - x.mean(0), full_matrices=False)
    expected = (data.x.reshape(12, 9) / 255 - x.mean(0)) @ axes[:width].T
    codes = baseline_codes("pca", train, data, latent_dim)
    assert codes.dtype == np.float32 and codes.shape == (12, width)
    signs = np.sign((codes * expected).sum(0))  # of an axis: arbitrary
    np.testing.assert_allclose(codes * signs, expected, atol=1e-5)


def test_ica_unmixes_independent_sources_and_pca_does_not():
    """x = A s, s uniform: codes are the sources up to order, sign and scale."""
    n, mixing = 4000, np.array([[1.0, 0.8], [0.2, 1.0]])
    factors = RNG.integers(0, 20, (2 * n, 2))
    x = ((factors - 9.5) / 10 @ mixing.T).astype(np.float32)
    train, data = Data(x[:n]), Data(x[n:], factors=factors[n:])
    score = {
        name: mcc(baseline_codes(name, train, data, 2), factors[n:]).value for name in BASELINES
    }
    assert score["ica"] > 0.995 and score["factors"] == pytest.approx(1.0)
    assert score["pca"] < 0.9 and score["pixels"] < 0.98
    codes = baseline_codes("ica", train, data, 2)
    assert codes.dtype == np.float32
    # Scaled to unit variance on the training rows.
    assert codes.std(0) == pytest.approx(1, abs=4 * 0.45 / np.sqrt(n))  # sd of a uniform's square
    assert np.array_equal(codes, baseline_codes("ica", train, data, 2))


@pytest.mark.parametrize("name", ["pca", "ica"])
def test_no_more_rows_are_fitted_than_can_be_held(name, monkeypatch):
    train = Data(RNG.uniform(size=(901, 3)).astype(np.float32))
    data = Data(RNG.uniform(size=(20, 3)).astype(np.float32))
    expected = baseline_codes(name, train.subset(np.arange(0, 901, 20)), data, 2)
    monkeypatch.setattr(spaced, "__defaults__", (46,))
    assert np.array_equal(baseline_codes(name, train, data, 2), expected)


@pytest.mark.parametrize("n, most, rows", [(5, 5, range(5)), (5, 9, range(5)), (11, 3, [0, 5, 10])])
def test_rows_are_spaced_evenly(n, most, rows):
    assert spaced(images(n, np.arange(n)[:, None]), most).factors[:, 0].tolist() == list(rows)
    assert spaced.__defaults__ == (baselines.MAX_ROWS,)


def test_a_name_that_is_none():
    sentence = r"^--baseline must be one of factors, pixels, pca, ica, untrained; got 'lda'\.$"
    with pytest.raises(ValueError, match=sentence):
        baseline_codes("lda", images(5), images(5), 2)


def test_factors_of_data_without_them():
    sentence = r"^--baseline factors needs data with ground-truth factors; these have none\.$"
    with pytest.raises(ValueError, match=sentence):
        baseline_codes("factors", images(5, np.ones((5, 1), int)), images(5), 2)
