"""Votes and pairs against loops, determined cases, nulls, and what the scores do not depend on."""

import json
import tracemalloc

import numpy as np
import pytest

from pyro_bvae.metrics import sampling, voting
from pyro_bvae.metrics.sampling import own_order, shared_values
from pyro_bvae.metrics.voting import beta_vae_score, factor_vae_score

SIZES = (3, 4, 5)
SMALL = {"n_train": 400, "n_eval": 400}
SCORES = [beta_vae_score, factor_vae_score]
SHORT = {beta_vae_score: "n_pairs", factor_vae_score: "n_rows"}


def draw(n=2000, noise=0.0, extra=0, seed=0):
    """Factors, and codes of unit variance: one a factor and `extra` that know nothing."""
    rng = np.random.default_rng(seed)
    factors = np.stack([rng.integers(size, size=n) for size in SIZES], axis=1)
    codes = factors / factors.std(0) + noise * rng.normal(size=factors.shape)
    return np.c_[codes, rng.normal(size=(n, extra))], factors


def rotate(codes, degrees):
    codes, angle = codes.copy(), np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    codes[:, 1:3] = codes[:, 1:3] @ turn
    return codes


def standard_error(p, n):
    return np.sqrt(p * (1 - p) / n)


@pytest.fixture(autouse=True)
def many_rows(monkeypatch):
    """No null: it takes three times as long as the score. test_metrics_nulls.py has it."""
    monkeypatch.setattr(sampling, "FEW_ROWS", 0)


# Drawing


def test_rows_of_a_vote_share_the_value_of_a_random_row():
    factor = np.repeat([1, 0, 2], [10, 1, 60])[:, None]
    factor = np.random.default_rng(0).permutation(factor)
    (group,) = shared_values("m", factor)
    n = 20_000
    rows = group.draw(n, 4, np.random.default_rng(1))
    values = factor[rows, 0]
    assert (values == values[:, :1]).all()
    share = (values[:, 0] == 2).mean()
    assert abs(share - 6 / 7) < 4 * standard_error(6 / 7, n)
    assert not (values == 0).any()  # it has a single row
    counts = np.bincount(rows.ravel(), minlength=71)[factor[:, 0] == 1]
    total = counts.sum()
    assert (abs(counts / total - 0.1) < 5 * standard_error(0.1, total)).all()


def test_pairs_are_two_different_rows_of_one_value():
    factor = np.repeat([1, 2, 0], [2, 5, 1])[:, None]
    (group,) = shared_values("m", factor)
    first, second = group.draw_pairs(3000, 3, np.random.default_rng(0))
    assert (factor[first] == factor[second]).all() and (first != second).all()
    pairs = np.zeros((8, 8))
    np.add.at(pairs, (first, second), 1)
    same = (factor == factor.T) & ~np.eye(8, dtype=bool)
    same[7] = False
    # First any of the 7 rows that share their value, second any other of that value.
    expected = same / np.maximum(same.sum(1, keepdims=True), 1) / 7
    assert (abs(pairs / 9000 - expected) <= 5 * standard_error(expected, 9000)).all()


def test_columns_in_their_own_order():
    codes = np.random.default_rng(0).normal(size=(50, 6))
    order, signs = own_order(codes)
    shuffled = codes[:, [3, 0, 5, 1, 4, 2]] * [1, -1, -1, 1, 1, -1]
    again, flipped = own_order(shuffled)
    assert np.array_equal(codes[:, order] * signs, shuffled[:, again] * flipped)
    assert sorted(order) == list(range(6))


@pytest.mark.parametrize("score", SCORES)
def test_points_of_training_and_of_evaluation_share_no_row(score, monkeypatch):
    seen, draw_rows = [], voting.shared_values

    def spied(metric, factors, rows, purpose):
        seen.append(rows)
        groups = draw_rows(metric, factors, rows, purpose)
        drawn = groups[1].draw(500, 3, np.random.default_rng(0))
        assert np.isin(drawn, rows).all() and (np.ptp(factors[drawn, 1], axis=1) == 0).all()
        pairs = np.stack(groups[1].draw_pairs(500, 3, np.random.default_rng(0)))
        assert np.isin(pairs, rows).all() and (factors[pairs[0], 1] == factors[pairs[1], 1]).all()
        return groups

    monkeypatch.setattr(voting, "shared_values", spied)
    codes, factors = draw(n=200)
    score(codes, factors, n_train=50, n_eval=50)
    train, evaluation = seen
    assert (len(train), len(evaluation)) == (133, 67)
    assert sorted([*train, *evaluation]) == list(range(200))


# Votes and features against loops


def test_votes_are_those_of_a_loop():
    codes, factors = draw(n=500, noise=1.0, extra=2)
    codes[:, 3] *= 100
    codes[:, 4] += 1000
    # Two that almost stand still in a group: single precision has to tell their variances apart.
    still = 1e-3 * np.random.default_rng(3).normal(size=(500, 2)) * [1, 0.3]
    codes = np.c_[codes, 10 + factors[:, :1] + still]
    groups = shared_values("m", factors)
    labels = np.random.default_rng(2).integers(3, size=300)
    table, live = voting._standardised(codes, 500, 0.05, np.random.default_rng(0))
    votes = voting._votes(table, live, groups, labels, 7, np.random.default_rng(1))
    rng = np.random.default_rng(1)
    for k in range(3):
        points = np.flatnonzero(labels == k)
        for point, rows in zip(points, groups[k].draw(len(points), 7, rng), strict=True):
            ratio = codes[rows].var(0) / codes.var(0)
            assert votes[point] == ratio.argmin()


def test_features_are_those_of_a_loop():
    codes, factors = draw(n=300, noise=1.0, extra=1)
    groups = shared_values("m", factors)
    labels = np.random.default_rng(2).integers(3, size=50)
    order = np.array([2, 0, 1, 3])
    rng = np.random.default_rng(1)
    features = voting._differences(codes, order, groups, labels, 5, rng)
    rng = np.random.default_rng(1)
    for k in range(3):
        points = np.flatnonzero(labels == k)
        pairs = groups[k].draw_pairs(len(points), 5, rng)
        for point, first, second in zip(points, *pairs, strict=True):
            gaps = [abs(codes[a] - codes[b]) for a, b in zip(first, second, strict=True)]
            assert features[point] == pytest.approx(np.mean(gaps, axis=0)[order], abs=1e-12)


@pytest.mark.parametrize("score", SCORES)
def test_blocks_change_nothing(score, monkeypatch):
    codes, factors = draw(noise=1.0)
    expected = score(codes, factors, **SMALL)
    monkeypatch.setattr(voting, "FLOATS_A_BLOCK", 300)
    assert score(codes, factors, **SMALL) == expected
    # Other draws: the same score but for chance, each factor in several draws.
    monkeypatch.setattr(voting, "ROWS_A_DRAW", 64 * 7)
    other = score(codes, factors, **SMALL)
    p = expected.value
    assert abs(other.value - p) < 4 * np.sqrt(2) * standard_error(min(p, 0.9), 400)
    assert other.value > 0.6 and None not in other.details["factor_accuracy"]


# Known values


@pytest.mark.parametrize("score", SCORES)
def test_perfect_codes_score_1(score):
    codes, factors = draw(extra=2)
    result = score(codes, factors)
    assert result.value == result.details["train_accuracy"] == 1.0
    assert result.details["factor_accuracy"] == [1.0] * 3
    assert result.details["n"] == 2000 and result.details["seed"] == 0


def test_one_latent_names_one_factor():
    """Every vote goes to it, and it is given the factor drawn most often."""
    codes, factors = draw()
    result = factor_vae_score(codes[:, :1], factors, **SMALL)
    (votes,) = result.details["votes"]
    assert sum(votes) == 400
    expected = [float(k == np.argmax(votes)) for k in range(3)]
    assert result.details["factor_accuracy"] == expected
    assert result.details["train_accuracy"] == max(votes) / 400
    assert abs(result.value - 1 / 3) < 4 * standard_error(1 / 3, 400)


def test_votes_stand_in_the_row_of_their_latent():
    codes, factors = draw()
    swapped = np.c_[codes[:, 2], np.full(len(codes), 0.1), codes[:, 0], codes[:, 1]]
    votes = np.array(factor_vae_score(swapped, factors, **SMALL).details["votes"])
    assert (votes > 0).tolist() == [[False, False, True], [False] * 3, [True, False, False],
                                    [False, True, False]]  # fmt: skip


@pytest.mark.parametrize("score", SCORES)
def test_the_value_counts_evaluation_points(score):
    codes, factors = draw(noise=1.0)
    result = score(codes, factors, n_train=50, n_eval=401, **{SHORT[score]: 4})
    assert result.value * 401 == pytest.approx(round(result.value * 401), abs=1e-9)
    train = result.details["train_accuracy"] * 50
    assert train == pytest.approx(round(train), abs=1e-9)
    assert 0 < result.value < 1 and result.value != result.details["train_accuracy"]


def test_a_rotated_pair_lowers_the_factor_vae_score():
    codes, factors = draw()
    rotated = factor_vae_score(rotate(codes, 45), factors)
    assert rotated.value < 1 - 4 * standard_error(0.9, 5000)
    assert beta_vae_score(rotate(codes, 45), factors).value < 0.9
    assert beta_vae_score(rotate(codes, 30), factors).value > 0.995


def test_noise_scores_chance_on_held_out_votes_and_more_in_sample():
    rng = np.random.default_rng(0)
    codes, factors = rng.normal(size=(20_000, 10)), rng.integers(4, size=(20_000, 5))
    few = {"n_train": 50, "seed": 1}
    held_out = factor_vae_score(codes, factors, n_eval=5000, **few)
    assert abs(held_out.value - 0.2) < 4 * standard_error(0.2, 5000)
    assert held_out.details["held_out"] and held_out.details["chance"] == 0.2
    in_sample = factor_vae_score(codes, factors, n_eval=0, **few)
    assert in_sample.value == in_sample.details["train_accuracy"]
    assert not in_sample.details["held_out"]
    assert in_sample.value > 0.2 + 2 * standard_error(0.2, 50)
    assert held_out.details["train_accuracy"] == in_sample.value
    beta = beta_vae_score(codes, factors, n_train=2000)
    assert abs(beta.value - 0.2) < 4 * standard_error(0.2, 5000)


@pytest.mark.parametrize("min_std", [0.05, 0.0])
@pytest.mark.parametrize("value", [0.0, 0.1])  # .1 has a standard deviation of 1e-17, not 0
def test_a_constant_code_changes_nothing(value, min_std):
    codes, factors = draw(noise=1.0)
    expected = factor_vae_score(codes, factors, min_std=min_std, **SMALL)
    dead = np.c_[codes, np.full(len(codes), value)]
    score = factor_vae_score(dead, factors, min_std=min_std, **SMALL)
    assert score.value == expected.value
    assert score.details["dead"] == [3] and expected.details["dead"] == []
    assert score.details["votes"] == [*expected.details["votes"], [0, 0, 0]]


def test_a_code_that_seldom_moves_takes_votes_only_where_it_is_kept():
    codes, factors = draw()
    seldom = np.zeros(len(codes))
    seldom[::1000] = 1.0
    codes = np.c_[seldom, codes * [1, 1, 1] + np.random.default_rng(0).normal(size=(2000, 3)) * 0.1]
    assert factor_vae_score(codes, factors, **SMALL).value == 1.0
    with pytest.warns(UserWarning, match="2 of 2000 rows carry the variance of code 0"):
        assert factor_vae_score(codes, factors, min_std=0.0, **SMALL).value < 0.5


def test_variance_of_a_sample_of_rows():
    codes, factors = draw()
    codes[:, 0] *= np.arange(len(codes)) > 0
    score = factor_vae_score(codes, factors, n_variance=100, **SMALL)
    assert score.details["n_variance"] == 100 and score.value == 1.0
    assert factor_vae_score(codes, factors, **SMALL).details["n_variance"] == 2000


@pytest.mark.parametrize(("pool", "classifier"), [("mean", "logistic"), ("sum", "linear-svm")])
def test_beta_vae_variants(pool, classifier):
    codes, factors = draw(extra=1)
    score = beta_vae_score(codes, factors, pool=pool, classifier=classifier, **SMALL)
    assert score.value == 1.0
    assert (score.details["pool"], score.details["classifier"]) == (pool, classifier)


def test_a_sum_is_the_mean_of_larger_codes():
    codes, factors = draw(noise=1.0)
    codes *= 2.0**-5
    summed = beta_vae_score(codes, factors, pool="sum", n_pairs=16, **SMALL)
    larger = beta_vae_score(codes * 16, factors, n_pairs=16, **SMALL)
    assert summed.value == larger.value
    assert summed.value > beta_vae_score(codes, factors, n_pairs=16, **SMALL).value + 0.1


def test_small_codes_lose_the_beta_vae_score():
    codes, factors = draw(extra=2)
    assert beta_vae_score(codes, factors).value == 1.0
    assert beta_vae_score(codes * 0.001, factors).value < 0.7


def test_codes_all_dead():
    _, factors = draw()
    codes = np.full((2000, 3), 0.1)
    assert abs(beta_vae_score(codes, factors).value - 1 / 3) < 4 * standard_error(1 / 3, 5000)
    with pytest.warns(
        UserWarning, match="no code has a standard deviation of at least 0.05, so no"
    ):
        score = factor_vae_score(codes, factors, **SMALL)
    assert score.value == score.details["train_accuracy"] == 0.0
    assert score.details["dead"] == [0, 1, 2]
    assert score.details["votes"] == [[0] * 3] * 3


@pytest.mark.parametrize("score", SCORES)
def test_one_factor_scores_1(score):
    codes, factors = draw(extra=1)
    assert score(codes[:, 3:], factors[:, :1], **SMALL).value == 1.0


def test_a_factor_without_a_point():
    codes, factors = draw()
    result = beta_vae_score(codes, factors, n_train=50, n_eval=1)
    assert sorted(a is None for a in result.details["factor_accuracy"]) == [False, True, True]
    assert beta_vae_score(codes, factors, n_train=1, n_eval=50).value < 0.8  # it knows one factor


# What it does not depend on


@pytest.mark.filterwarnings("ignore:factor_vae_score. no code")  # scaled down below min_std
@pytest.mark.parametrize("score", SCORES)
def test_invariances(score):
    codes, factors = draw(noise=1.0, extra=2)
    codes[:, 3] *= 0.06
    expected = score(codes, factors, **SMALL).value
    assert 0.5 < expected < 1
    names = np.array([7, -3, 100, 4, 0])
    assert score(codes[:, [4, 2, 0, 3, 1]], factors, **SMALL).value == expected
    assert score(codes * [-1, 1, -1, -1, 1], factors, **SMALL).value == expected
    assert score(codes, names[factors], **SMALL).value == expected
    assert abs(score(codes * 0.01, factors, **SMALL).value - expected) > 0.1
    assert abs(score(codes * [0.01, 0.01, 1, 1, 1], factors, **SMALL).value - expected) > 0.05


def test_the_classifier_sees_the_same_features_in_any_order(monkeypatch):
    seen, fit = [], voting._linear
    monkeypatch.setattr(voting, "_linear", lambda *args: seen.append(args[1]) or fit(*args))
    codes, factors = draw(noise=1.0, extra=2)
    for columns in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        beta_vae_score(codes[:, columns], factors, **SMALL)
    assert np.array_equal(*seen)


@pytest.mark.parametrize("score", SCORES)
def test_a_seed_decides(score):
    codes, factors = draw(noise=1.0)
    first = score(codes, factors, **SMALL)
    assert score(codes, factors, **SMALL) == first
    assert json.loads(json.dumps(first.details)) == first.details
    others = {score(codes, factors, seed=seed, **SMALL).value for seed in (1, 2, 3)}
    assert others != {first.value}


@pytest.mark.parametrize("score", SCORES)
def test_wide_codes_are_gathered_in_blocks(score, monkeypatch):
    monkeypatch.setattr(voting, "FLOATS_A_BLOCK", 2**18)
    codes = np.random.default_rng(0).normal(size=(500, 4096))
    factors = np.arange(500)[:, None] % [2, 5]
    sampling.own_order(codes)  # imports
    tracemalloc.start()
    score(codes, factors, n_train=100, n_eval=50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All at once, 100 x 64 rows of 4096 floats are 105 MB in single precision; the codes have 16 MB.
    assert peak < 40e6


# Errors


@pytest.mark.parametrize(
    ("score", "arguments", "message"),
    [
        (beta_vae_score, {"n_train": 0}, "n_train must be at least 1; got 0"),
        (beta_vae_score, {"n_eval": 0}, "n_eval must be at least 1; got 0"),
        (beta_vae_score, {"n_pairs": 0}, "n_pairs must be at least 1; got 0"),
        (beta_vae_score, {"pool": "max"}, "pool must be one of mean, sum; got 'max'"),
        (beta_vae_score, {"classifier": "svm"}, "classifier must be one of logistic, linear-svm"),
        (factor_vae_score, {"n_train": 0}, "n_train must be at least 1; got 0"),
        (factor_vae_score, {"n_eval": -1}, "n_eval must be at least 0; got -1"),
        (factor_vae_score, {"n_rows": 1}, "n_rows must be at least 2; got 1"),
        (factor_vae_score, {"n_variance": 1}, "n_variance must be at least 2; got 1"),
        (factor_vae_score, {"min_std": -0.1}, "min_std must be at least 0; got -0.1"),
        (factor_vae_score, {"min_std": np.nan}, "min_std must be at least 0; got nan"),
    ],
)
def test_errors(score, arguments, message):
    codes, factors = draw(n=50)
    with pytest.raises(ValueError, match=f"{score.__name__}: {message}"):
        score(codes, factors, **arguments)


@pytest.mark.parametrize("score", SCORES)
def test_each_factor_needs_rows_that_share_a_value(score):
    codes, factors = draw(n=50)
    factors[:, 1] = np.arange(50)
    with pytest.raises(
        ValueError,
        match=f"{score.__name__}: some rows must share .* factor 1 has 33 values in 33 rows to train on",
    ):
        score(codes, factors)
    with pytest.raises(ValueError, match=f"{score.__name__}: codes must be finite"):
        score(codes * np.nan, factors)
