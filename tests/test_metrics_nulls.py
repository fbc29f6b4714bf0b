"""Metrics that would flatter or fall in silence: few rows, outliers, empty bins, real-valued factors."""

import functools
import warnings

import numpy as np
import pytest

from pyro_bvae.evaluation import score_codes
from pyro_bvae.metrics import (
    METRICS,
    aam,
    gaussian_total_correlation,
    irs,
    mcc,
    mig,
    mig_chen,
    modularity,
    sampling,
    sap,
    udr,
)
from pyro_bvae.metrics.binning import cut
from pyro_bvae.metrics.factors import check_pair

BIASED = pytest.mark.filterwarnings("ignore:.*mutual information is biased")
SIZES = {
    "beta-vae-score": {"n_train": 200, "n_eval": 300, "n_pairs": 16},
    "factor-vae-score": {"n_train": 500, "n_eval": 500},
}


def score(name, codes, factors, **more):
    return METRICS[name](codes, factors, **SIZES.get(name, {}), **more)


def draw(n, noise=0.05, seed=0):
    rng = np.random.default_rng(seed)
    factors = np.stack([rng.integers(4, size=n), rng.integers(6, size=n)], axis=1)
    return factors + noise * rng.normal(size=factors.shape), factors


@functools.cache
def uniform(n=3000):
    """Two real factors, and codes that are linear in them."""
    factors = np.random.default_rng(0).uniform(size=(n, 2))
    return factors * [3.0, -7] + 1, factors


# Few rows


@pytest.mark.parametrize(("name", "n_draws"), [("beta-vae-score", 5), ("factor-vae-score", 20)])
def test_noise_of_100_rows_scores_chance(name, n_draws, monkeypatch):
    """10 columns, 3 factors of 6 values: above .5 where training and evaluation share their rows."""
    monkeypatch.setattr(sampling, "FEW_ROWS", 0)  # its null is below
    values = []
    for seed in range(n_draws):
        rng = np.random.default_rng(seed)
        factors, codes = rng.integers(0, 6, size=(100, 3)), rng.normal(size=(100, 10))
        values.append(score(name, codes, factors, seed=seed).value)
    error = np.std(values, ddof=1) / np.sqrt(n_draws)
    assert abs(np.mean(values) - 1 / 3) < 4 * error < 0.2


@BIASED
@pytest.mark.parametrize("name", sorted(set(METRICS) - {"dci"}))
def test_few_rows_carry_the_score_of_noise(name, monkeypatch):
    codes, factors = draw(90, noise=1.0)
    null = score(name, codes, factors).details["null"]
    monkeypatch.setattr(sampling, "FEW_ROWS", 0)
    noise = [score(name, np.random.default_rng(s).normal(size=(90, 2)), factors) for s in range(5)]
    values = [each.value for each in noise]
    error = np.std(values, ddof=1) * np.sqrt(1 / 3 + 1 / 5)
    assert abs(null - np.mean(values)) < 4 * error + 0.03  # where all noise scores the same
    assert np.std(values) < 0.15


def test_the_parts_of_dci_have_nulls():
    factors = draw(90)[1] % 2
    codes = factors + 0.05 * np.random.default_rng(1).normal(size=(90, 2))
    details = score("dci", codes, factors).details
    assert details["completeness"] > 0.9 > 0.3 > details["null_completeness"]
    guess = details["null_informativeness_test"]
    assert details["informativeness_test"] > 0.85 and abs(guess - 0.5) < 0.25


@BIASED
def test_many_rows_carry_a_null_where_noise_scores_above_0():
    codes, factors = draw(1000, noise=1.0)
    for name in METRICS:
        if name != "dci":
            assert ("null" in score(name, codes, factors).details) == (name in ("irs", "mcc")), name
    # 4 correlations of deviation 1 / sqrt(n), of which two are chosen
    assert 0 < mcc(codes, factors).details["null"] < 3 / np.sqrt(1000)
    noise = [irs(codes[np.random.default_rng(s).permutation(1000)], factors) for s in range(5)]
    expected = np.mean([each.value for each in noise])
    assert irs(codes, factors).details["null"] == pytest.approx(expected, abs=0.03)


# Outliers and empty bins


def outlier(codes, columns=slice(None)):
    codes = codes.copy()
    codes[3, columns] = 1e6
    return codes


@pytest.mark.parametrize("metric", [mig, aam, modularity])
def test_bins_that_an_outlier_empties(metric):
    codes, factors = draw(1500)
    good = metric(codes, factors).value
    sentence = (
        r"most bins are empty: all but a few rows of code 0 lie in 1 of 20 .* to 1e\+06\. Drop"
    )
    with pytest.warns(UserWarning, match=f"^{metric.__name__}: {sentence}"):
        fallen = metric(outlier(codes), factors)
    kept = metric(outlier(codes), factors, bins="equal-frequency")
    assert (
        good > 0.98 and fallen.value < 0.5 and kept.value > 0.9
    )  # a value's rows lie in 3 to 5 bins
    assert (kept.details["bins"], fallen.details["bins"]) == ("equal-frequency", "equal-width")


@BIASED
def test_bins_of_equal_frequency():
    codes = np.random.default_rng(0).normal(size=(1000, 2))
    cells = cut(codes, 20, "equal-frequency")
    assert (np.bincount(cells[:, 0]) == 50).all()
    assert np.array_equal(np.argsort(codes[:, 0]) // 1, np.lexsort([codes[:, 0], cells[:, 0]]))
    assert np.array_equal(cut(np.exp(3 * codes), 20, "equal-frequency"), cells)
    tied = np.repeat([5.0, 7, 8], [10, 60, 30])[:, None]  # middle ranks 5, 40 and 85 of 100
    assert np.unique(cut(tied, 10, "equal-frequency")).tolist() == [0, 4, 8]
    z, factors = draw(400, noise=1.0)
    flipped = mig(-z, factors, bins="equal-frequency").value
    assert mig(z, factors, bins="equal-frequency").value == pytest.approx(flipped, abs=1e-12)
    with pytest.raises(ValueError, match="mig: bins must be one of equal-width, .*; got 'width'"):
        mig(z, factors, bins="width")


def test_bins_of_whole_numbers_are_those_of_numpy():
    """A number on the edge of a bin belongs to the upper one; .07 * 100 is above 7."""
    for n in (20, 40, 41, 61, 101, 137):
        v = np.arange(n) * 1.0
        expected = np.digitize(v, np.linspace(0, n - 1, 21)[:-1]) - 1
        assert np.array_equal(cut(v[:, None], 20)[:, 0], expected)


@pytest.mark.parametrize("name", ["factor-vae-score", "irs", "mcc", "explicitness", "sap"])
def test_an_outlier_in_one_latent(name):
    """FactorVAE and MCC fall, and IRS rises, whatever the other rows are."""
    codes, factors = draw(1500, noise=0.5)
    good = score(name, codes, factors).value
    with pytest.warns(UserWarning, match="1 of 1500 rows carry the variance of code 0, .*Drop or"):
        other = score(name, outlier(codes, 0), factors).value
    if name == "irs":
        assert good < 0.8 < 0.99 < other
    elif name != "explicitness" and name != "sap":
        assert other < good - 0.3


def test_an_outlier_where_there_are_no_factors():
    codes, _ = draw(300, noise=0.5)
    far = outlier(codes)
    assert gaussian_total_correlation(codes).value < 0.1
    with pytest.warns(UserWarning, match="^gaussian_total_correlation: 1 of 300 rows carry"):
        assert gaussian_total_correlation(far).value > 5
    assert udr([codes, -codes[:, ::-1]]).value > 0.85
    with pytest.warns(UserWarning, match=r"^udr: 1 of 300 rows carry .* codes\[1\], latent 0"):
        udr([codes, outlier(codes, 0)])
    assert udr([codes, far], method="spearman").value > 0.9


@BIASED
def test_a_few_outliers_of_a_code_or_of_a_factor():
    codes, factors = uniform()
    far = codes.copy()
    far[:5, 1] = 1e4
    with pytest.warns(UserWarning, match="5 of 3000 rows carry the variance of code 1"):
        mcc(far, factors)
    with pytest.warns(UserWarning, match="mcc: 5 of 3000 rows carry the variance of factor 1"):
        mcc(codes, far)
    with pytest.warns(UserWarning, match="sap: 5 of 3000 rows carry the variance of factor 1"):
        sap(codes, far)
    with pytest.warns(UserWarning, match="irs: most bins are empty: .* factor 1 .* as classes"):
        irs(codes, far)
    with pytest.warns(UserWarning, match="most bins are empty: .* factor 1 lie in 1 of 20"):
        mig(codes, far, bins="equal-frequency")


def test_codes_that_are_no_outliers_are_not_warned_of():
    rng = np.random.default_rng(0)
    rare = (rng.uniform(size=(3000, 1)) < 0.02) * 1.0
    clusters = 1e-3 * rng.normal(size=(3000, 1)) + rng.integers(3, size=(3000, 1))
    sparse = rng.normal(size=(3000, 1)) * (rng.uniform(size=(3000, 1)) < 0.1)
    normal, laplace = rng.normal(size=(3000, 1)), rng.laplace(size=(3000, 1))
    codes = np.c_[normal, laplace, rare, clusters, sparse, np.full((3000, 1), 0.1)]
    factors = rng.integers(4, size=(3000, 2))
    few = slice(15)  # too few to tell
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scale in (1, 1e-200, 1e48):
            mig(codes * scale, factors)
            mcc(codes * scale, factors)
        warnings.filterwarnings("ignore", message=".*biased")
        mcc(outlier(codes)[few], factors[few])
        mig(outlier(codes)[few], factors[few])


# Real-valued factors


def test_perfect_codes_of_real_factors():
    codes, factors = uniform()
    assert mcc(codes, factors).value == pytest.approx(1, abs=1e-12)
    squared = np.corrcoef(factors.T)[0, 1] ** 2
    score = sap(codes, factors)
    assert score.value == pytest.approx(1 - squared, abs=1e-12) and squared < 0.01
    assert score.details["continuous"] == [0, 1] and "n_train" not in score.details
    with pytest.raises(ValueError, match="sap: n_train and n_test must be None where all factors"):
        sap(codes, factors, n_train=100)


@BIASED
def test_real_factors_are_cut_in_20_bins_where_classes_are_needed():
    codes, factors = uniform()
    codes = codes + np.random.default_rng(1).normal(size=codes.shape)
    cells = np.stack([np.digitize(v, np.histogram(v, 20)[1][:-1]) for v in factors.T], axis=1)
    for name in METRICS:
        if name not in ("mcc", "sap", "dci"):
            real, whole = score(name, codes, factors), score(name, codes, cells)
            assert real.value == whole.value, name
            assert (real.details["binned"], whole.details["binned"]) == ([0, 1], []), name
    loc, scale = codes[:200], np.ones((200, 2))
    real = mig_chen(loc, scale, factors[:200])
    edges = np.linspace(factors[:200].min(0), factors[:200].max(0), 21)
    few = np.stack([np.digitize(factors[:200, k], edges[:-1, k]) for k in (0, 1)], axis=1)
    assert real.value == mig_chen(loc, scale, few).value


def test_kinds_of_columns():
    """Whole floats are classes, few real values too; booleans are 0 and 1; names have no effect."""
    n = 60
    codes = np.zeros((n, 1))
    rng = np.random.default_rng(0)
    scales, whole = rng.integers(6, size=n) / 10 + 0.5, rng.integers(-20, 30, size=n) * 1.0
    real = rng.normal(size=n)
    _, given = check_pair("m", codes, np.stack([whole, scales, real], axis=1))
    assert (given.real, given.binned) == ([1, 2], [2])
    assert given.classes.max(0).tolist()[:2] == [len(np.unique(whole)) - 1, 5]
    _, same = check_pair("m", codes, (3 * whole - 7).astype(int)[:, None])
    assert np.array_equal(same.classes[:, 0], given.classes[:, 0])
    _, given = check_pair("m", codes, (whole > 0)[:, None])
    assert given.real == [] and set(given.numbers[:, 0]) == {0.0, 1.0}
    huge = 2**60 + (np.arange(n) % 2)[:, None]  # equal as floats
    assert check_pair("m", codes, huge)[1].classes.max() == 1


def test_sap_of_real_and_whole_factors_together():
    codes, factors = draw(900, noise=0.3)
    both = np.c_[factors[:, 0], codes[:, 1] + 0.01]
    score = sap(codes, both)
    assert score.details["continuous"] == [1] and score.details["n_train"] == 600
    table = np.array(score.details["scores"])
    assert table[:, 0].tolist() == np.array(sap(codes, factors).details["scores"])[:, 0].tolist()
    assert table[:, 1] == pytest.approx(np.corrcoef(codes.T, both[:, 1])[:2, 2] ** 2)


# In an evaluation


@BIASED
def test_an_evaluation_says_how_to_read_few_rows_and_real_factors():
    codes, factors = uniform()
    names = ["mig", "mcc", "irs"]
    out = score_codes(codes[:200], np.c_[factors[:200], np.ones(200)], names, seed=1)
    assert out["factors_left_out"] == ["factor 2"]
    assert out["notes"][:2] == [
        "With 200 rows noise scores well above its chance at times: compare each score with that of "
        "permuted factors.",
        "Cut in 20 bins of equal width by mig, irs: factor 0, factor 1.",
    ]
    assert score_codes(codes, factors * 9 // 1, names)["notes"] == []


@pytest.mark.parametrize(
    ("factors", "error", "message"),
    [
        (np.array([[0, np.nan]] * 9 + [[1, 2]]), ValueError, "finite; got 9 NaN .* first in row 0"),
        (np.array([["a", "b"]] * 10), TypeError, "numbers; got dtype <U1. Number the values"),
        (np.array([[None, 1]] * 10), TypeError, "numbers; got dtype object. Number the values"),
    ],
)
def test_factors_that_an_evaluation_refuses(factors, error, message):
    """A NaN in a column would make it seem to have one value."""
    with pytest.raises(error, match=f"^evaluate: factors must be {message}"):
        score_codes(np.zeros((10, 2)), factors, ["mcc"])
