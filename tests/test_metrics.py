"""Metrics on hand-made codes, on the nulls of metrics.md, and against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from pyro_bvae.metrics import cluster_scores, hoyer
from pyro_bvae.metrics.clusters import USED_SHARE
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
    kept = hoyer(mixed, drop_dead=False)
    assert (kept.details["dimensions"], kept.details["dead"]) == (9, 0)
    assert kept.value < score.value - 0.05


@pytest.mark.parametrize("drop_dead", [True, False])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.3])
def test_hoyer_leaves_out_constant_codes(value, drop_dead):
    score = hoyer(np.c_[CODES[:10], np.full(10, value)], drop_dead)  # .1 has std 1e-17, not 0
    assert score.value == pytest.approx(hoyer(CODES[:10], drop_dead).value, abs=1e-12)
    assert score.details["dead"] == 1


@pytest.mark.parametrize(
    "codes", [np.full((5, 4), 0.1), np.zeros((5, 4)), np.ones((1, 3)), CODES[:, :1]]
)
@pytest.mark.parametrize("drop_dead", [True, False])
def test_hoyer_is_zero_where_fewer_than_two_dimensions_live(codes, drop_dead):
    score = hoyer(codes, drop_dead)
    assert score.value == 0.0 and score.details["unnormalised"] == 0.0
    assert score.details["dimensions"] + score.details["dead"] == codes.shape[1]


def test_hoyer_errors():
    with pytest.raises(ValueError, match=r"got shape \(5,\)"):
        hoyer(np.zeros(5))
    with pytest.raises(ValueError, match=r"hoyer: codes must be finite.*\(0, 3\)"):
        hoyer(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="2 not finite"):
        hoyer(np.array([[1.0, np.nan], [np.inf, 0.0]]))


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
