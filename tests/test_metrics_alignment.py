"""MCC, IRS, UDR and active units: brute force, closed forms, and cases counted by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import Lasso

from pyro_bvae.metrics import active_units, checks, irs, mcc, udr
from pyro_bvae.metrics.alignment import _agreement, _lasso_coefficients

# Three codes with 5 values each, uncorrelated in the sample, also by rank.
GRID = np.indices((5, 5, 5)).reshape(3, -1).T.astype(float)


def mixed(n=60, seed=0):
    """Four codes, each of several factors, and three factors."""
    rng = np.random.default_rng(seed)
    factors = rng.integers(0, (2, 3, 4), size=(n, 3))
    return factors @ rng.normal(size=(3, 4)) + rng.normal(size=(n, 4)), factors


# MCC


@pytest.mark.parametrize("latents", [[0, 1, 2, 3], [0, 1, 2], [2, 1], [3]])
def test_mcc_agrees_with_brute_force(latents):
    codes, factors = mixed()
    codes = codes[:, latents]
    table = np.array([[abs(pearsonr(z, v)[0]) for v in factors.T] for z in codes.T])
    slots = list(range(len(latents))) + [None] * 3  # a factor may stay without a latent

    def total(choice):
        return sum(table[j, k] for k, j in enumerate(choice) if j is not None)

    best = max(itertools.permutations(slots, 3), key=total)
    score = mcc(codes, factors)
    assert score.value == pytest.approx(total(best) / 3, abs=1e-12)
    assert score.details["assigned"] == list(best)
    assert score.details["per_factor"] == pytest.approx(
        [0 if j is None else table[j, k] for k, j in enumerate(best)], abs=1e-12
    )


def test_mcc_of_dead_codes():
    codes, factors = mixed()
    dead = np.full((60, 1), 0.1)
    assert mcc(np.c_[dead, codes], factors).value == pytest.approx(mcc(codes, factors).value)
    assert mcc(dead, factors).value == 0.0


def test_mcc_reads_factors_as_numbers():
    """Doubling the distance between values 1 and 2 changes it, a new origin or unit does not."""
    codes, factors = mixed()
    assert mcc(codes, 7 - 3 * factors).value == pytest.approx(mcc(codes, factors).value, abs=1e-12)
    assert abs(mcc(codes, factors + (factors > 1)).value - mcc(codes, factors).value) > 1e-3


@pytest.mark.parametrize("metric", [mcc, irs])
def test_wide_codes_are_taken_in_blocks(metric, monkeypatch):
    codes, factors = mixed()
    expected = metric(codes, factors)
    monkeypatch.setattr(checks, "_BLOCK", 60)  # one latent at a time
    got = metric(codes, factors)
    assert got.value == pytest.approx(expected.value, abs=1e-12)
    assert got.details.keys() == expected.details.keys()


# IRS


def brute_irs(codes, factors):
    scores, weights = [], []
    for z in codes.T:
        largest = max(abs(x - z.mean()) for x in z)
        if largest == 0:
            continue
        robust = []
        for column in factors.T:
            deviations = []
            for value in set(column):
                group = z[column == value]
                ranked = sorted(abs(x - group.mean()) for x in group)
                place = 0.99 * (len(ranked) - 1)  # the quantile, interpolated linearly
                low = int(place)
                high = min(low + 1, len(ranked) - 1)
                deviations.append(ranked[low] + (place - low) * (ranked[high] - ranked[low]))
            robust.append(1 - np.mean(deviations) / largest)
        scores.append(max(robust))
        weights.append(largest)
    return scores, np.average(scores, weights=weights)


def test_irs_agrees_with_brute_force():
    codes, factors = mixed()
    codes *= [1, 10, 0.1, 3]  # weights
    scores, value = brute_irs(codes, factors)
    score = irs(codes, factors)
    assert score.value == pytest.approx(value, abs=1e-12)
    assert score.details["per_code"] == pytest.approx(scores, abs=1e-12)
    assert abs(score.value - np.mean(scores)) > 1e-3
    assert score.details["smallest_group"] == min(np.bincount(v).min() for v in factors.T)


def test_irs_by_hand():
    """Held at 0 or 1 the first code moves by 1 of 3, the second by all it ever moves."""
    factor = np.repeat([0, 1], 100)[:, None]
    sign = np.tile([-1.0, 1.0], 100)
    score = irs(np.c_[2 * sign[factor[:, 0]] + sign, 6 * sign], factor)
    assert score.details["per_code"] == pytest.approx([2 / 3, 0], abs=1e-12)
    assert score.value == pytest.approx((2 / 3 * 3 + 0 * 6) / 9, abs=1e-12)
    assert score.details["best"] == [0, 0]


def test_irs_can_be_negative():
    """One of 10 rows deviates: by .9 from its group's mean, .1 the others, and .5 at most from all."""
    one_of_ten = np.arange(20) % 10 == 9
    factor = np.repeat([0, 1], 10)
    quantile = 0.1 + (0.99 * 9 - 8) * (0.9 - 0.1)  # between the ninth and the tenth
    score = irs((one_of_ten ^ factor)[:, None] * 1.0, factor[:, None])
    assert score.value == pytest.approx(1 - quantile / 0.5, abs=1e-12)
    assert score.value == pytest.approx(-0.656, abs=1e-12)


def test_irs_cuts_factors_of_many_values_as_numpy_histograms():
    """Whole numbers and real ones; up to 20 values stay as they are."""
    codes, few = mixed(300)
    rng = np.random.default_rng(1)
    many = np.c_[rng.integers(40, size=300), rng.integers(41, size=300), rng.uniform(size=300)]
    cut = [np.digitize(v, np.histogram(v, 20)[1][:-1]) for v in many.T]
    codes[:, :2] += 0.2 * many[:, :2]
    score = irs(codes, np.c_[few, many])
    assert score.details["binned"] == [3, 4, 5]
    by_hand = np.c_[few, np.stack(cut, axis=1)]
    assert score.value == pytest.approx(brute_irs(codes, by_hand)[1], abs=1e-12)
    whole = np.c_[few, many[:, :2], np.unique(many[:, 2], return_inverse=True)[1]]
    assert score.value < brute_irs(codes, whole)[1] - 0.02  # a value of few rows looks robust


def test_irs_in_bins_by_hand():
    """40 values, of two rows each: bins of two values, in which half the values' distance remains."""
    factor = np.repeat(np.arange(40), 2)
    score = irs(factor[:, None] * 1.0, factor[:, None])  # from 0 to 39: 19.5 from the mean at most
    assert score.value == pytest.approx(1 - 0.5 / 19.5, abs=1e-12)
    assert score.details["smallest_group"] == 4
    assert irs(factor[:, None] // 2 * 1.0, factor[:, None] // 2).value == pytest.approx(1)


def test_irs_of_dead_codes():
    codes, factors = mixed()
    dead = np.full((60, 1), 0.1)  # its mean differs from it in the last digit
    score = irs(np.c_[codes, dead], factors)
    assert score.value == pytest.approx(irs(codes, factors).value, abs=1e-12)
    assert score.details["dead"] == 1
    assert score.details["per_code"][-1] is None and score.details["best"][-1] is None
    assert irs(dead, factors).value == 0.0


def test_irs_is_flattered_by_rare_values():
    codes, _ = mixed(20)
    score = irs(codes, np.arange(20)[:, None])
    assert score.value == 1.0 and score.details["smallest_group"] == 1


# UDR


def test_udr_of_copies():
    """Permuted and flipped copies agree: 1 by rank; the Lasso leaves .9 of each coefficient."""
    copies = [GRID, GRID[:, [2, 0, 1]] * [1, -1, 5], -GRID[:, ::-1] + 3]
    assert udr(copies, method="spearman").value == pytest.approx(1, abs=1e-12)
    assert udr(copies).value == pytest.approx(0.9, abs=1e-6)  # the solver's tolerance is 1e-4


def test_udr_of_unrelated_models():
    n, dim = 2000, 4
    models = [np.random.default_rng(seed).normal(size=(n, dim)) for seed in range(3)]
    assert udr(models).value == 0.0  # no correlation reaches the penalty of .1
    # r_max^2 / sum of r <= r_max, and 48 correlations of deviation 1/sqrt(n) stay below 4 of it
    assert 0 < udr(models, method="spearman").value < 4 / math.sqrt(n)


def test_udr_is_the_median_over_the_others_as_regressors():
    """One copy and one stranger: a model's score is the mean of .9 and 0, the stranger's is 0."""
    stranger = np.random.default_rng(0).normal(size=(125, 3))
    stranger -= GRID @ np.linalg.lstsq(GRID - 2, stranger, rcond=None)[0]  # uncorrelated with it
    score = udr([GRID, -GRID, stranger])
    assert score.details["per_model"] == pytest.approx([0.45, 0.45, 0], abs=1e-6)
    assert score.value == pytest.approx(0.45, abs=1e-6)
    pairs = score.details["pairs"]
    assert [pairs[i][i] for i in range(3)] == [None] * 3
    assert pairs[0][1] == pytest.approx(0.9, abs=1e-6) and pairs[2][0] == pairs[0][2] == 0


def test_lasso_shrinks_by_its_penalty():
    """Uncorrelated regressors: each coefficient is the correlation less .1, and none below."""
    a = (GRID - 2) / math.sqrt(2)
    b = (a @ [0.8, 0.6, 0.0])[:, None]
    assert _lasso_coefficients(a, b)[:, 0] == pytest.approx([0.7, 0.5, 0], abs=1e-6)
    both = udr([GRID, b]).details["pairs"]
    one_to_three = [0.49 / 1.2, 0.7, 0.5]  # the column's score and each row's
    assert both[0][1] == pytest.approx(sum(one_to_three) / 4, abs=1e-6)
    assert both[1][0] == pytest.approx(both[0][1], abs=1e-6)  # one regressor, the same correlations


def test_udr_regresses_the_scored_model_on_the_others():
    """Correlated codes, where the two directions differ, against scikit-learn's own intercept."""
    codes, _ = mixed(200)
    noise = np.random.default_rng(1).normal(size=(200, 4))
    models = [codes, codes[:, :3] + noise[:, :3], codes @ np.tri(4) + noise]
    models = [(z - z.mean(0)) / z.std(0) for z in models]
    score = udr([z * 7 + 1 for z in models])

    def direct(a, b):
        return _agreement(np.abs(Lasso(alpha=0.1).fit(a, b).coef_).T)

    assert abs(direct(models[0], models[2]) - direct(models[2], models[0])) > 1e-3
    for j, z in enumerate(models):
        others = [direct(a, z) for a in models if a is not z]
        assert score.details["per_model"][j] == pytest.approx(np.median(others), abs=1e-3)
    assert score.value == np.median(score.details["per_model"])


def test_agreement_by_hand():
    r = np.array([[1.0, 0.5, 0.0], [0.0, 0.5, 0.0]])
    columns, rows = 1 / 1 + 0.25 / 1 + 0, 1 / 1.5 + 0.25 / 0.5
    assert _agreement(r) == pytest.approx((columns + rows) / 5, abs=1e-12)


def test_udr_by_rank_agrees_with_scipy():
    codes, _ = mixed()
    other = np.exp(codes[:, :3] + np.random.default_rng(1).normal(size=(60, 3)))
    r = np.array([[abs(spearmanr(a, b)[0]) for b in other.T] for a in codes.T])
    assert udr([codes, other], method="spearman").value == pytest.approx(_agreement(r), abs=1e-12)


@pytest.mark.parametrize("method", ["lasso", "spearman"])
def test_udr_masks_codes_of_low_kl(method):
    noise = np.random.default_rng(0).normal(size=(125, 2))
    models = [np.c_[GRID, noise[:, 0]], np.c_[noise[:, 1], GRID + 0.3 * noise[:, :1]]]
    low = [np.array([1, 1, 1, 0.01]), np.tile([0.005, 1, 1, 0.02], (7, 1))]
    masked = udr(models, low, method=method)
    clean = udr([models[0][:, :3], models[1][:, 1:]], method=method)
    assert masked.value == pytest.approx(clean.value, abs=1e-12)
    assert masked.details["informative"] == [3, 3]
    assert abs(udr(models, method=method).value - masked.value) > 0.01
    dead = [np.c_[models[0][:, :3], np.full(125, 0.1)], models[1][:, 1:]]
    assert udr(dead, method=method).value == pytest.approx(clean.value, abs=1e-12)
    nothing = udr(models, [np.zeros(4), np.ones(4)], method=method)
    assert nothing.value == 0.0 and nothing.details["informative"] == [0, 4]


def test_udr_errors():
    with pytest.raises(ValueError, match="method must be 'lasso' or 'spearman'; got 'pearson'"):
        udr([GRID, GRID], method="pearson")
    with pytest.raises(ValueError, match=r"at least 2 models .* got rows \[125\]"):
        udr([GRID])
    with pytest.raises(ValueError, match=r"got rows \[125, 60\]"):
        udr([GRID, GRID[:60]])
    with pytest.raises(ValueError, match=r"udr: codes\[1\] must have shape"):
        udr([GRID, GRID[0]])
    with pytest.raises(ValueError, match="one array a model, 2; got 1"):
        udr([GRID, GRID], [np.ones(3)])
    with pytest.raises(ValueError, match=r"udr: kl must have shape \(3,\) or \(n, 3\).*got \(4,\)"):
        udr([GRID, GRID], [np.ones(3), np.ones(4)])
    with pytest.raises(ValueError, match="1 NaN"):
        udr([GRID, GRID], [np.ones(3), np.array([1, 1, np.nan])])


# Active units


def test_active_units_by_hand():
    spread = np.array([0.0, 0.099, 0.101, 3.0])  # +-s has the variance s^2, .01 at s = .1
    loc = np.outer(np.tile([-1, 1], 10), spread) + 5
    score = active_units(loc)
    assert score.value == 2.0 and score.details["active"] == [2, 3]
    assert score.details["n"] == 20 and "active_by_kl" not in score.details
    for kl in (np.array([0.01, 0.02, 0.0, 9.0]), np.outer([0, 2], [0.01, 0.02, 0.0, 9.0])):
        score = active_units(loc, kl)
        assert score.value == 2.0 and score.details["active_by_kl"] == 2
        assert score.details["active_by_kl_indices"] == [1, 3]
    assert active_units(loc / 100).value == 0.0  # the threshold does not scale with the codes


def test_active_units_errors():
    with pytest.raises(ValueError, match=r"active_units: loc must have shape .* got \(5,\)"):
        active_units(np.zeros(5))
    with pytest.raises(ValueError, match=r"active_units: kl must have shape \(3,\).*got \(5, 2\)"):
        active_units(np.zeros((5, 3)), np.zeros((5, 2)))
