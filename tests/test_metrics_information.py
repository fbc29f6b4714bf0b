"""Information-based metrics: hand-counted tables, scikit-learn, quadrature and closed forms."""

import math

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm
from sklearn.metrics import mutual_info_score

from pyro_bvae.metrics import aam, checks, gaussian_total_correlation, mig, mig_chen, modularity
from pyro_bvae.metrics.chen import _log_mixture
from pyro_bvae.metrics.information import mutual_information

LN2 = math.log(2)
# Two classes of four; a names the class in 6 of 8, b is independent of it, c is the class.
V = np.tile([0, 0, 0, 0, 1, 1, 1, 1], 100)
A = np.tile([0, 0, 0, 1, 1, 1, 1, 0], 100)
B = np.tile([0, 0, 1, 1, 0, 0, 1, 1], 100)
I_A = LN2 + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)  # log 2 - H(3/4)


def columns(*arrays):
    return np.stack(arrays, axis=1)


def mixed(n, seed=0):
    """Three codes, each a mixture of two of three factors."""
    rng = np.random.default_rng(seed)
    factors = rng.integers(0, (2, 3, 4), size=(n, 3))
    codes = factors @ np.array([[1, 0.3, 0], [0, 1, 0.3], [0.3, 0, 1]])
    return codes + rng.normal(scale=0.3, size=codes.shape), factors


# Mutual information


def test_mutual_information_agrees_with_scikit_learn():
    codes, factors = mixed(500)
    mi, rows = mutual_information(codes, factors, 7)
    for j, code in enumerate(codes.T):
        bins = np.digitize(code, np.linspace(code.min(), code.max(), 8)[1:-1])
        assert rows[j].tolist() == np.bincount(bins, minlength=7).tolist()
        for k, factor in enumerate(factors.T):
            assert mi[j, k] == pytest.approx(mutual_info_score(bins, factor), abs=1e-12)


def test_mutual_information_is_the_same_in_blocks(monkeypatch):
    codes, factors = mixed(500)
    codes = np.tile(codes, 3) * np.arange(1, 10)
    whole = mutual_information(codes, factors, 20)
    monkeypatch.setattr(checks, "_BLOCK", 1100)  # two latents at a time: nine make five blocks
    assert len(list(checks.latent_blocks(codes))) == 5
    for got, expected in zip(mutual_information(codes, factors, 20), whole, strict=True):
        assert np.array_equal(got, expected)


def test_bias_of_noise():
    """The figures of n = 2,000, 40 values, 20 bins: formula .185, measured .158."""
    rng = np.random.default_rng(0)
    codes, factors = rng.normal(size=(2000, 100)), rng.integers(0, 40, size=(2000, 1))
    mi, rows = mutual_information(codes, factors, 20)
    assert abs(mi.mean() - 0.158) < 2 * mi.std(ddof=1)  # .158 was one draw
    assert (
        abs(mi.mean() - 0.167) < 4 * mi.std(ddof=1) / 10 + 5e-4
    )  # the docstring's, of three digits
    mi, _ = mutual_information(rng.uniform(size=(2000, 100)), factors, 20)
    assert abs(mi.mean() - 0.208) < 4 * mi.std(ddof=1) / 10 + 5e-4
    with pytest.warns(
        UserWarning, match=r"n = 2000 rows and 20 bins.*0\.185 nats.*factor 0 \(3\.6"
    ):
        score = mig(codes, factors)
    assert (rows > 0).sum(1).max() == 20
    assert score.details["mi_bias"] == [pytest.approx(39 * 19 / 4000, abs=1e-15)]


def test_warning_from_two_percent_of_the_entropy():
    """Two balanced values and bins: bias 1/(2n) above .02 log 2 up to n = 36."""
    for n, warned in ((36, True), (38, False)):
        v = np.arange(n)[:, None] % 2
        assert (1 / (2 * n) > 0.02 * LN2) == warned
        if warned:
            with pytest.warns(UserWarning, match="use more rows or fewer bins"):
                aam(v, v)
        else:
            aam(v, v)


# MIG, AAM, modularity by hand


@pytest.mark.parametrize(
    ("codes", "gap", "alone"),
    [
        ((A, B), I_A / LN2, 1),
        ((A, V), 1 - I_A / LN2, 1 - I_A / LN2),
        ((A, V, A), 1 - I_A / LN2, 1 - 2 * I_A / LN2),
        ((A, -A, A), 0, 0),  # A's two copies outweigh it
        ((B, B), 0, 0),
        ((B,), 0, 0),
        ((V,), 1, 1),
        ((V, V), 0, 0),
    ],
)
def test_gaps_by_hand(codes, gap, alone):
    codes, factors = columns(*codes).astype(float), columns(V)
    assert mig(codes, factors).value == pytest.approx(gap, abs=1e-12)
    assert aam(codes, factors).value == pytest.approx(alone, abs=1e-12)


def test_means_over_factors_and_details():
    score = mig(columns(A, V, B), columns(V, B))
    assert score.details["per_factor"] == pytest.approx([1 - I_A / LN2, 1], abs=1e-12)
    assert score.value == pytest.approx(1 - I_A / LN2 / 2, abs=1e-12)
    assert score.details["best"] == [1, 2] and score.details["dead"] == 0
    assert score.details["entropies"] == pytest.approx([LN2, LN2], abs=1e-12)
    assert score.details["mi_bias"] == [1 / 1600, 1 / 1600]
    assert (score.details["n"], score.details["n_bins"]) == (800, 20)
    assert aam(columns(A, V, B), columns(V, B)).details["best"] == [1, 2]
    rare = columns(np.arange(800) % 5 == 0).astype(int)  # a gap is a share of the sample's entropy
    assert mig(rare, rare).value == pytest.approx(1, abs=1e-12)


def test_modularity_by_hand():
    both = V + 2 * B
    factors = columns(V, B, both)
    score = modularity(columns(A, V, both), factors)
    # V + 2B tells A where it is 0 or 1 and leaves a coin where it is 2 or 3: LN2 / 2
    of_a = 1 - (I_A**2 + 0) / ((LN2 / 2) ** 2 * 2)
    of_v = 1 - (LN2**2 + 0) / (LN2**2 * 2)
    of_both = 1 - (LN2**2 + LN2**2) / ((2 * LN2) ** 2 * 2)
    assert score.details["per_code"] == pytest.approx([of_a, of_v, of_both], abs=1e-12)
    assert score.value == pytest.approx((of_a + of_v + of_both) / 3, abs=1e-12)


def test_modularity_leaves_out_codes_that_know_nothing():
    noise = np.tile([0, 1], 400)  # independent of V and of B
    codes = columns(V, noise, np.full(800, 0.1), B)
    score = modularity(codes, columns(V, B))
    assert score.value == pytest.approx(1, abs=1e-12)
    assert score.details["per_code"] == [pytest.approx(1), None, None, pytest.approx(1)]
    assert (score.details["uninformative"], score.details["dead"]) == (2, 1)
    assert modularity(codes[:, 1:3], columns(V, B)).value == 0
    assert modularity(columns(A), columns(V)).value == 1  # one factor


def test_bins_are_of_equal_width_per_code():
    """Ten bins of 0 to 10 hold one integer each but the last, which takes 9 and 10."""
    code = np.repeat(np.arange(11), 100)[:, None]
    assert mig(code, code, n_bins=10).value == pytest.approx(
        1 - 2 / 11 * LN2 / math.log(11), abs=1e-12
    )
    assert mig(code, code, n_bins=11).value == pytest.approx(1, abs=1e-12)
    assert mig(code * 1e-320, code, n_bins=11).value == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("n_bins", [1, 2.5, "20"])
def test_bins_are_checked(n_bins):
    with pytest.raises(ValueError, match=r"aam: n_bins must be an integer >= 2; got .* Take 20\."):
        aam(columns(A), columns(V), n_bins=n_bins)


# Chen's estimator


def exact_information(loc, scale, factors):
    """I(z_j; v_k) of the same mixtures by quadrature, (latents, factors)."""
    out = np.zeros((loc.shape[1], factors.shape[1]))
    for j in range(loc.shape[1]):
        low, high = (loc[:, j] - 9 * scale[:, j]).min(), (loc[:, j] + 9 * scale[:, j]).max()
        z, step = np.linspace(low, high, 4001, retstep=True)
        density = norm.pdf(z[:, None], loc[:, j], scale[:, j])
        marginal = density.mean(1)
        for k, column in enumerate(factors.T):
            for value in np.unique(column):
                given = density[:, column == value].mean(1)
                ratio = np.log(np.where(given > 0, given, 1) / np.where(given > 0, marginal, 1))
                out[j, k] += (column == value).mean() * (given * ratio).sum() * step
    return out


@pytest.mark.parametrize("m", [0.5, 1.0, 2.0])
def test_mig_chen_of_two_normals(m):
    """I = H(mixture) - H(Normal) of +-m; the other code has one posterior, so it knows nothing."""
    v = np.random.default_rng(1).permutation(np.arange(2000) % 2)
    loc, scale = columns(m * (2 * v - 1.0), np.full(2000, 0.3)), np.ones((2000, 2))
    z, step = np.linspace(-m - 9, m + 9, 8001, retstep=True)
    mixture = (norm.pdf(z, m) + norm.pdf(z, -m)) / 2
    information = -(mixture * np.log(mixture)).sum() * step - 0.5 * math.log(2 * math.pi * math.e)
    score = mig_chen(loc, scale, columns(v), n_samples=2000)
    assert abs(score.value - information / LN2) < 4 * score.details["standard_error"]
    assert score.details["standard_error"] < 0.02
    assert score.details["best"] == [0] and score.details["n_samples"] == 2000
    assert mig_chen(loc[:, 1:], scale[:, 1:], columns(v)).value == pytest.approx(0, abs=1e-12)


def test_mig_chen_agrees_with_quadrature():
    """Unsorted factors of unequal sizes, posteriors of different widths: nothing else gives these."""
    loc, factors = mixed(600)
    scale = np.random.default_rng(3).uniform(0.05, 0.5, size=loc.shape)
    score = mig_chen(loc, scale, factors, n_samples=600, seed=4)
    information = exact_information(loc, scale, factors)
    ranked = np.sort(information, axis=0)
    entropies = [-sum(p * math.log(p) for p in np.bincount(f) / 600) for f in factors.T]
    gaps = (ranked[-1] - ranked[-2]) / entropies
    assert score.details["entropies"] == pytest.approx(entropies, abs=1e-12)
    assert score.details["best"] == information.argmax(0).tolist()
    assert abs(score.value - gaps.mean()) < 4 * score.details["standard_error"]
    assert score.details["per_factor"] == pytest.approx(gaps, abs=0.15)
    one = mig_chen(loc[:, :1], scale[:, :1], factors, n_samples=600)
    expected = (information[0] / entropies).mean()
    assert abs(one.value - expected) < 4 * one.details["standard_error"]


def test_log_mixture_agrees_with_log_sum_exp():
    rng = np.random.default_rng(0)
    loc, scale = rng.normal(size=700) * 5, 10 ** rng.uniform(-3, 0, size=700)
    z = loc[:200] + scale[:200] * rng.normal(size=200)
    expected = logsumexp(norm.logpdf(z[:, None], loc, scale), axis=1) - math.log(700)
    assert np.allclose(_log_mixture(z, loc, scale), expected, rtol=0, atol=1e-11)


def test_mig_chen_orders_codes_as_mig_does():
    rng = np.random.default_rng(5)
    factors = rng.integers(0, 4, size=(1200, 2))
    scale = np.full((1200, 2), 0.3)
    noise = rng.normal(size=(1200, 2))
    rotated = factors @ np.array([[0.9, -0.4], [0.4, 0.9]]) + 0.4 * noise
    sets = [noise, rotated, factors.astype(float)]
    for scores in ([mig(z, factors) for z in sets], [mig_chen(z, scale, factors) for z in sets]):
        assert scores[0].value < 0.05 < scores[1].value < 0.8 < scores[2].value


def test_mig_chen_of_posteriors_that_do_not_overlap():
    """Each code tells the row: all know of every factor what there is to know, and the gap is 0."""
    loc, factors = mixed(400)
    assert abs(mig_chen(loc, np.full_like(loc, 1e-9), factors).value) < 1e-6
    alone = mig_chen(loc[:, :1], np.full((400, 1), 1e-9), factors, n_samples=400)
    assert alone.details["per_factor"] == pytest.approx([1, 1, 1], abs=1e-6)


def test_mig_chen_draws_its_rows_at_random():
    """A row of the common value gains log(1/.8), of the rare one log(1/.2): the first 300 are common."""
    v = np.repeat([0, 1], [800, 200])[:, None]
    score = mig_chen(10.0 * v, np.ones((1000, 1)), v, n_samples=300)
    assert abs(score.value - 1) < 4 * score.details["standard_error"] < 0.4


def test_mig_chen_is_determined_by_its_seed():
    loc, factors = mixed(300)
    scale = np.full_like(loc, 0.2)
    first, again, other = (mig_chen(loc, scale, factors, seed=s, n_samples=99) for s in (0, 0, 1))
    assert first == again and first.value != other.value
    dead = mig_chen(np.zeros_like(loc), np.ones_like(loc), factors)
    assert dead.value == pytest.approx(0, abs=1e-12)


def test_mig_chen_errors():
    loc, factors = mixed(50)
    with pytest.raises(ValueError, match=r"scale must be positive.*\(50, 3\).*smallest -1"):
        mig_chen(loc, np.full_like(loc, -1), factors)
    with pytest.raises(ValueError, match=r"shape \(50, 2\), smallest 1"):
        mig_chen(loc, np.ones((50, 2)), factors)
    with pytest.raises(ValueError, match="mig_chen: scale must be finite"):
        mig_chen(loc, np.full_like(loc, np.inf), factors)
    with pytest.raises(ValueError, match="n_samples must be at least 2; got 1"):
        mig_chen(loc, np.ones_like(loc), factors, n_samples=1)
    with pytest.raises(TypeError, match="mig_chen: factors must be numbers; got dtype <U"):
        mig_chen(loc, np.ones_like(loc), factors.astype(str))


# Gaussian total correlation


def uncorrelated(n, dim, seed=0):
    """Columns whose sample means are 0 and whose sample covariance is the identity."""
    codes = np.random.default_rng(seed).normal(size=(n, dim))
    q, _ = np.linalg.qr(codes - codes.mean(0))
    return q * math.sqrt(n)


@pytest.mark.parametrize("rho", [0.0, 0.5, -0.99])
def test_total_correlation_of_two(rho):
    a, b = uncorrelated(100, 2).T
    codes = columns(a, rho * a + math.sqrt(1 - rho**2) * b)
    expected = -0.5 * math.log(1 - rho**2)
    assert gaussian_total_correlation(codes).value == pytest.approx(expected, abs=1e-12)


def test_total_correlation_is_that_of_the_covariance():
    codes, _ = mixed(200)
    covariance = np.cov(codes.T)
    by_hand = 0.5 * (np.log(np.diag(covariance)).sum() - np.linalg.slogdet(covariance)[1])
    for same in (codes, codes[:, [2, 0, 1]], codes * [3, -0.01, 1e-170], codes + 5, codes * 1e49):
        assert gaussian_total_correlation(same).value == pytest.approx(by_hand, abs=1e-9)
    with_dead = gaussian_total_correlation(np.c_[codes, np.full(200, 0.1)])
    assert with_dead.value == pytest.approx(by_hand, abs=1e-12)
    assert (with_dead.details["dead"], with_dead.details["dimensions"]) == (1, 3)


def test_total_correlation_of_independent_codes_is_its_null():
    n, dim = 5000, 20
    score = gaussian_total_correlation(np.random.default_rng(0).normal(size=(n, dim)))
    pairs = dim * (dim - 1) / 2  # 2 n TC is about chi-square with one degree of freedom a pair
    assert score.details["null"] == pytest.approx(pairs / (2 * n), abs=1e-15)
    assert abs(score.value - score.details["null"]) < 4 * math.sqrt(2 * pairs) / (2 * n)


def test_total_correlation_of_collinear_codes_has_a_floor():
    a, b = uncorrelated(50, 2).T
    score = gaussian_total_correlation(columns(a, b, -2 * a))
    assert score.details["collinear"] == 1
    assert score.value == pytest.approx(-0.5 * (math.log(1e-12) + LN2), abs=1e-9)
    few = gaussian_total_correlation(np.random.default_rng(0).normal(size=(4, 9)))
    assert few.details["collinear"] == 6 and math.isfinite(few.value)  # 4 centred rows: rank 3


@pytest.mark.parametrize("codes", [np.zeros((5, 3)), np.ones((1, 2)), np.c_[:5, np.ones(5)]])
def test_total_correlation_is_zero_where_fewer_than_two_live(codes):
    assert gaussian_total_correlation(codes).value == pytest.approx(0, abs=1e-15)


def test_total_correlation_errors():
    with pytest.raises(ValueError, match="gaussian_total_correlation: codes must be finite; got 1"):
        gaussian_total_correlation(np.array([[1.0, np.nan]]))
