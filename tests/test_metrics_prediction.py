"""DCI, SAP and explicitness by hand, against scikit-learn, on nulls, and what they do not depend on."""

import json

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import Lasso, LogisticRegression
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from pyro_bvae.metrics import boosting, sampling
from pyro_bvae.metrics.boosting import boost
from pyro_bvae.metrics.importance import concentration, dci
from pyro_bvae.metrics.prediction import _areas, explicitness, sap
from pyro_bvae.metrics.sampling import split_rows

SIZES = (2, 3, 4)
SCORES = [dci, sap, explicitness]


@pytest.fixture(autouse=True)
def many_rows(monkeypatch):
    """No null: it takes as long as the score, or longer. test_metrics_nulls.py has it."""
    monkeypatch.setattr(sampling, "FEW_ROWS", 0)


def draw(n=600, noise=0.0, extra=0, seed=0):
    """Factors, and codes of unit variance: one a factor and `extra` that know nothing."""
    rng = np.random.default_rng(seed)
    factors = np.stack([rng.integers(size, size=n) for size in SIZES], axis=1)
    codes = factors / factors.std(0) + noise * rng.normal(size=factors.shape)
    return np.c_[codes, rng.normal(size=(n, extra))], factors


def rotate(codes, first=1, second=2):
    codes = codes.copy()
    a, b = codes[:, first] / np.sqrt(2), codes[:, second] / np.sqrt(2)
    codes[:, first], codes[:, second] = a + b, a - b
    return codes


def grid(*sizes):
    """Every combination of values once: no two factors are correlated."""
    return np.stack(np.meshgrid(*map(np.arange, sizes)), axis=-1).reshape(-1, len(sizes))


# Boosting


def blurred_classes(n_classes):
    rng = np.random.default_rng(10 + n_classes)  # no split of two columns ties
    x = rng.normal(size=(900, 4))
    level = x @ [1.0, -0.7, 0.4, 0.2] + x[:, 0] * x[:, 1] + 0.5 * rng.normal(size=900)
    edges = np.quantile(level, np.linspace(0, 1, n_classes + 1)[1:-1])
    return x, 3 * np.digitize(level, edges)


@pytest.mark.parametrize("n_classes", [2, 3, 7])
@pytest.mark.parametrize(("stages", "depth"), [(1, 3), (12, 1), (12, 2)])
def test_boosting_is_that_of_scikit_learn(n_classes, stages, depth, monkeypatch):
    monkeypatch.setattr(boosting, "TIED", 0.0)  # as scikit-learn, which lets rounding choose
    x, y = blurred_classes(n_classes)
    fitted = boost(x[:600], y[:600], x[600:], stages, depth)
    models = [
        GradientBoostingClassifier(n_estimators=stages, max_depth=depth, random_state=s)
        for s in range(4)
    ]
    gaps = [
        abs(m.fit(x[:600], y[:600]).feature_importances_ - fitted.importances).max() for m in models
    ]
    same = models[int(np.argmin(gaps))]
    assert min(gaps) < 1e-12
    assert np.array_equal(fitted.train, same.predict(x[:600]))
    assert np.array_equal(fitted.test, same.predict(x[600:]))


def test_boosting_deep_is_within_the_spread_of_scikit_learn():
    x, y = blurred_classes(7)
    fitted = boost(x[:600], y[:600], x[600:], stages=15)
    models = [
        GradientBoostingClassifier(n_estimators=15, random_state=s).fit(x[:600], y[:600])
        for s in range(3)
    ]
    table = np.array([m.feature_importances_ for m in models])
    spread = np.ptp(table, axis=0).max()
    assert abs(fitted.importances - table.mean(0)).max() < 2 * spread < 0.03
    assert (fitted.train == models[0].predict(x[:600])).mean() > 0.97


def test_boosting_with_tied_values_is_that_of_scikit_learn():
    rng = np.random.default_rng(1)
    x = rng.integers(12, size=(1000, 3)).astype(float)
    y = (x[:, 0] + 2 * x[:, 1] + rng.normal(size=1000) * 3 > 17) + (x[:, 2] > 6)
    fitted = boost(x[:700], y[:700], x[700:], stages=8, depth=2)
    model = GradientBoostingClassifier(n_estimators=8, max_depth=2, random_state=0)
    model.fit(x[:700], y[:700])
    assert fitted.importances == pytest.approx(model.feature_importances_, abs=1e-6)
    assert np.array_equal(fitted.test, model.predict(x[700:]))


def test_boosting_of_one_class_and_of_constant_columns():
    x = np.arange(12.0).reshape(6, 2)
    fitted = boost(x, np.full(6, 4), x[:2])
    assert fitted.importances.tolist() == [0, 0]
    assert fitted.train.tolist() == [4] * 6 and fitted.test.tolist() == [4] * 2
    fitted = boost(np.ones((6, 2)), np.array([0, 1, 1, 2, 1, 0]), np.ones((3, 2)))
    assert fitted.importances.tolist() == [0, 0] and fitted.test.tolist() == [1] * 3


@pytest.mark.parametrize("stages", [1, 12])
def test_boosting_of_numbers_is_that_of_scikit_learn(stages, monkeypatch):
    x, _ = blurred_classes(2)
    y = x @ [1.0, -0.7, 0.4, 0.2] + x[:, 0] * x[:, 1]
    fitted = boost(x[:600], y[:600], x[600:], stages, regress=True)
    model = GradientBoostingRegressor(n_estimators=stages, random_state=0).fit(x[:600], y[:600])
    assert fitted.importances == pytest.approx(model.feature_importances_, abs=1e-3)
    assert fitted.test == pytest.approx(model.predict(x[600:]), abs=1e-6)


def test_columns_that_tie_share_the_gain():
    """As scikit-learn in the mean over seeds; a flipped or stretched copy too."""
    x, y = blurred_classes(3)
    x = np.c_[x[:400, :2], x[:400, :1], -x[:400, 1:2], 5 * x[:400, :1] ** 3]
    alone = boost(x[:, :2], y[:400], x[:9], stages=5).importances
    shared = boost(x, y[:400], x[:9], stages=5).importances
    expected = alone[[0, 1, 0, 1, 0]] / [3, 2, 3, 2, 3]
    assert shared == pytest.approx(expected, abs=2e-3)  # columns tie by chance too
    models = [GradientBoostingClassifier(n_estimators=5, random_state=s) for s in range(10)]
    table = np.array([m.fit(x[:, :4], y[:400]).feature_importances_ for m in models])
    shared = boost(x[:, :4], y[:400], x[:9], stages=5).importances
    assert (abs(shared - table.mean(0)) < 4 * table.std(0) / np.sqrt(10) + 0.02).all()


# Importances -> scores


def test_concentration_by_hand():
    importance = np.array([[0.6, 0.2], [0.1, 0.1], [0.0, 0.3], [0.0, 0.0]])
    entropy = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    rows, value = concentration(importance)
    assert rows == pytest.approx([1 - entropy, 0, 1, 0])
    assert value == pytest.approx((0.8 * (1 - entropy) + 0.2 * 0 + 0.3 * 1) / 1.3)
    columns, value = concentration(importance.T)
    base4 = [
        1 + sum(p * np.log(p) for p in shares) / np.log(4) for shares in ((6 / 7, 1 / 7), (1 / 3, 1 / 6, 1 / 2))
    ]  # fmt: skip
    assert columns == pytest.approx(base4)
    assert value == pytest.approx((0.7 * base4[0] + 0.6 * base4[1]) / 1.3)


def test_concentration_where_there_is_nothing_to_mix():
    rows, value = concentration(np.array([[0.3], [0.0]]))
    assert rows.tolist() == [1, 0] and value == 1
    assert concentration(np.zeros((3, 2)))[1] == 0


class Fixed(DecisionTreeClassifier):
    """Importances that are known: the columns' numbers of values, to the power of the class count."""

    def fit(self, x, y):
        self.known_ = np.array([float(len(np.unique(z))) for z in x.T]) ** len(np.unique(y))
        return super().fit(x, y)

    @property
    def feature_importances_(self):
        return self.known_


def test_dci_is_made_of_the_importances():
    codes, factors = draw(n=90, extra=1)
    score = dci(codes, factors, estimator=Fixed())
    importance = np.array(score.details["importance"])
    # The latents are in their order again.
    assert (np.diff(importance, axis=0) > 0).all() and importance.shape == (4, 3)
    assert score.value == concentration(importance)[1]
    assert score.details["completeness"] == concentration(importance.T)[1]
    assert score.details["latent_disentanglement"] == concentration(importance)[0].tolist()
    assert score.details["estimator"] == "Fixed"


# DCI


def test_dci_of_perfect_codes():
    codes, factors = draw(n=300)
    codes = np.c_[codes[:, 0], np.full(300, 0.1), codes[:, 2], codes[:, 1]]
    score = dci(codes, factors)
    assert score.value == pytest.approx(1, abs=1e-12)
    assert score.details["completeness"] == pytest.approx(1, abs=1e-12)
    assert score.details["informativeness_test"] == score.details["informativeness_train"] == 1
    expected = [[1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert np.array(score.details["importance"]) == pytest.approx(np.array(expected), abs=1e-12)
    assert score.details["latent_disentanglement"][1] == 0  # dead
    assert (score.details["n_train"], score.details["n_test"]) == (200, 100)


def test_dci_of_noise_and_of_a_rotated_pair():
    codes, factors = draw(noise=0.1)
    straight, rotated = dci(codes, factors), dci(rotate(codes), factors)
    assert rotated.value < straight.value - 0.2
    assert rotated.details["completeness"] < straight.details["completeness"] - 0.2
    noise = dci(np.random.default_rng(1).normal(size=(600, 3)), factors)
    assert noise.value < 0.05 and noise.details["completeness"] < 0.05
    chance = np.mean([1 / size for size in SIZES])
    assert abs(noise.details["informativeness_test"] - chance) < 4 * np.sqrt(0.25 / 600)


def test_dci_with_another_estimator_and_in_parallel():
    from joblib import parallel_config

    codes, factors = draw(noise=0.5)
    forest = RandomForestClassifier(5)
    score = dci(codes, factors, estimator=forest, seed=3)
    assert forest.random_state is None and not hasattr(forest, "classes_")  # a clone was fitted
    with parallel_config("threading"):
        assert dci(codes, factors, estimator=forest, seed=3, n_jobs=2) == score
    rows = np.concatenate(split_rows("m", 600, None, None, np.random.default_rng(3)))[:400]
    model = RandomForestClassifier(5, random_state=3).fit(codes[rows], factors[rows, 1])
    close = np.array(score.details["importance"])[:, 1]
    assert close == pytest.approx(model.feature_importances_, abs=0.1)  # columns in another order


def test_dci_by_default_is_that_of_scikit_learns_trees():
    codes, factors = draw(n=300, noise=0.7)
    ours = dci(codes, factors[:, :2])
    theirs = dci(codes, factors[:, :2], estimator=GradientBoostingClassifier())
    gap = np.array(ours.details["importance"]) - theirs.details["importance"]
    assert abs(gap).max() < 0.03 and abs(ours.value - theirs.value) < 0.03
    train = "informativeness_train"
    assert ours.details[train] == pytest.approx(theirs.details[train], abs=0.01)


def test_dci_of_codes_held_twice():
    """Each factor's importance is shared by two of six latents."""
    codes, factors = draw(n=240, noise=0.05)
    score = dci(np.c_[codes, codes], factors)
    assert score.details["completeness"] == pytest.approx(1 - np.log(2) / np.log(6), abs=1e-6)
    assert score.value == pytest.approx(1, abs=1e-6)
    flipped = dci(np.c_[codes, -3 * codes], factors)
    assert flipped.details["completeness"] == pytest.approx(score.details["completeness"])


def drawn_rows(n, seed=0):
    return split_rows("m", n, None, None, np.random.default_rng(seed))


@pytest.mark.parametrize("model", [RandomForestRegressor(10), Lasso(0.05)])
def test_dci_of_a_regressor_tells_r2(model):
    codes, factors = draw(noise=0.4, extra=1)
    score = dci(codes, factors, estimator=model)
    train, test = drawn_rows(600)
    x = StandardScaler().fit(codes[train]).transform(codes)
    y = StandardScaler().fit(factors[train]).transform(factors)
    if isinstance(model, RandomForestRegressor):
        model = RandomForestRegressor(10, random_state=0)
    expected, importance = [], []
    for k in range(3):
        model.fit(x[train], y[train, k])
        expected.append(r2_score(factors[test, k], model.predict(x[test]) * factors[train, k].std()
                                 + factors[train, k].mean()))  # fmt: skip
        importance.append(abs(getattr(model, "coef_", 0)))
    exact = 1e-6 if isinstance(model, Lasso) else 0.05  # columns in another order
    assert score.details["factor_accuracy"] == pytest.approx(expected, abs=exact)
    assert score.details["informativeness_test"] == pytest.approx(np.mean(expected), abs=exact)
    assert score.details["regressed"] == [0, 1, 2] and 0.7 < np.mean(expected) < 0.95
    if isinstance(model, Lasso):
        got = np.array(score.details["importance"])
        assert got == pytest.approx(np.array(importance).T, abs=1e-6)
        assert score.value == concentration(got)[1] > 0.95


@pytest.mark.parametrize(
    "model",
    [LogisticRegression(), make_pipeline(StandardScaler(), "passthrough", LogisticRegression())],
)
def test_dci_of_linear_probes(model):
    codes, factors = draw(noise=0.4, extra=1)
    score = dci(codes, factors, estimator=model)
    train, test = drawn_rows(600)
    x = StandardScaler().fit(codes[train]).transform(codes)
    for k, accuracy in enumerate(score.details["factor_accuracy"]):
        probe = LogisticRegression().fit(x[train], factors[train, k])
        assert accuracy == pytest.approx(probe.score(x[test], factors[test, k]), abs=1e-6)
        got = np.array(score.details["importance"])[:, k]
        assert got == pytest.approx(abs(probe.coef_).mean(0), abs=1e-3)
    assert score.details["regressed"] == [] and score.value > 0.5


def test_dci_regresses_real_factors_and_classifies_whole_ones():
    rng = np.random.default_rng(0)
    factors = np.c_[rng.uniform(size=300), rng.integers(3, size=300)]
    codes = np.c_[factors[:, 1], np.exp(factors[:, 0]), rng.normal(size=300)]
    score = dci(codes, factors)
    assert score.details["regressed"] == [0] and score.details["binned"] == []
    assert score.details["factor_accuracy"][0] > 0.99 and score.details["factor_accuracy"][1] == 1
    assert score.value > 0.99 and score.details["completeness"] > 0.99
    by_class = dci(codes, factors, estimator=DecisionTreeClassifier())
    assert by_class.details["regressed"] == [] and by_class.details["binned"] == [0]


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (KNeighborsClassifier(), ValueError, "feature_importances_ or coef_ .* got KNeighborsClas"),
        (make_pipeline(StandardScaler(), KNeighborsClassifier()), ValueError, "got KNeighborsClas"),
        (make_pipeline(PCA(), Lasso()), ValueError, r"other columns of them: \['pca', 'lasso'\]"),
        (make_pipeline(SelectKBest(k=1), Lasso()), ValueError, "the importance of each latent"),
        (RandomForestClassifier, TypeError, "classifier or regressor; got <class .* an instance"),
        (StandardScaler(), TypeError, "classifier or regressor; got StandardScaler"),
        ("forest", TypeError, "classifier or regressor; got 'forest'"),
    ],
)
def test_dci_refuses_estimators_without_importances(model, error, message):
    codes, factors = draw(n=60)
    with pytest.raises(error, match=f"^dci: estimator must .*{message}"):
        dci(codes, factors, estimator=model)


# SAP


def test_sap_scores_are_those_of_scikit_learn():
    codes, factors = draw(noise=0.4, extra=1)
    score = sap(codes, factors, n_train=300, n_test=200, seed=5)
    train, test = split_rows("m", 600, 300, 200, np.random.default_rng(5))
    table = np.array(score.details["scores"])
    for i in range(4):
        for j in range(3):
            svm = LinearSVC(C=0.01, class_weight="balanced", dual=True, random_state=0)
            svm.fit(codes[train, i : i + 1], factors[train, j])
            expected = svm.score(codes[test, i : i + 1], factors[test, j])
            assert table[i, j] == pytest.approx(expected, abs=2.5 / 200)  # another solver
    ranked = np.sort(table, axis=0)
    assert score.details["factor_gap"] == pytest.approx(ranked[3] - ranked[2])
    assert score.value == pytest.approx(np.mean(ranked[3] - ranked[2]))


def test_sap_of_perfect_codes():
    factors = np.tile(grid(2, 2), (200, 1))
    codes = factors * 2.0 - 1
    score = sap(codes, factors)
    # The right code names every row, the other guesses.
    assert np.diag(score.details["scores"]).tolist() == [1, 1]
    assert abs(score.value - 0.5) < 4 * np.sqrt(0.25 / score.details["n_test"])
    factors = grid(3, 4, 5)
    assert sap(factors * 0.3, factors, continuous=True).value == pytest.approx(1, abs=1e-12)


def test_sap_by_correlation():
    codes, factors = draw(noise=0.5)
    score = sap(codes, factors, continuous=True)
    expected = np.corrcoef(codes.T, factors.T)[:3, 3:] ** 2
    assert np.array(score.details["scores"]) == pytest.approx(expected)
    assert "n_train" not in score.details and score.details["continuous"]


@pytest.mark.parametrize("continuous", [True, False])
def test_sap_of_noise_and_of_a_rotated_pair(continuous):
    codes, factors = draw(n=3000, noise=0.1)
    straight = sap(codes, factors, continuous=continuous).value
    assert sap(rotate(codes), factors, continuous=continuous).value < straight - 0.1
    noise = np.random.default_rng(1).normal(size=(3000, 3))
    assert sap(noise, factors, continuous=continuous).value < 4 * np.sqrt(0.25 / 1000)


@pytest.mark.parametrize("continuous", [True, False])
def test_sap_of_dead_codes(continuous):
    codes, factors = draw(noise=0.5)
    one = sap(codes[:, 1:2], factors, continuous=continuous)
    assert one.details["factor_gap"] == one.details["scores"][0]  # there is no second
    with_dead = sap(np.c_[codes[:, 1], np.full(600, 0.1)], factors, continuous=continuous)
    assert with_dead.value == one.value and with_dead.details["dead"] == [1]
    assert with_dead.details["scores"][1] == [0, 0, 0]


# Explicitness


def test_explicitness_is_that_of_scikit_learn():
    codes, factors = draw(noise=1.0, extra=2)
    score = explicitness(codes, factors, n_train=400, n_test=150, seed=2)
    train, test = split_rows("m", 600, 400, 150, np.random.default_rng(2))
    for j, auc in enumerate(score.details["factor_auc"]):
        model = make_pipeline(StandardScaler(), LogisticRegression())
        likely = model.fit(codes[train], factors[train, j]).predict_proba(codes[test])
        one_hot = np.eye(SIZES[j])[factors[test, j]]
        assert auc == pytest.approx(roc_auc_score(one_hot, likely), abs=1e-4)
    assert score.value == pytest.approx(np.mean(score.details["factor_auc"]))
    assert score.details["normalised"] == pytest.approx(2 * score.value - 1)
    assert score.details["values_scored"] == [2, 3, 4]


def test_areas_with_ties_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    likely, y = rng.integers(4, size=(80, 4)) / 4, rng.integers(3, size=80)
    expected = [roc_auc_score(y == k, likely[:, k]) for k in range(3)]
    assert _areas(likely, y) == pytest.approx(expected)  # value 3 has no row: left out
    assert len(_areas(likely, np.zeros(80, dtype=int))) == 0


def test_explicitness_of_known_codes():
    codes, factors = draw(n=900)
    one_hot = np.concatenate([np.eye(s)[f] for s, f in zip(SIZES, factors.T, strict=True)], axis=1)
    assert explicitness(one_hot, factors).value == 1
    noise = explicitness(np.random.default_rng(1).normal(size=(900, 3)), factors)
    # Rarest value: a quarter of 300 test rows.
    assert abs(noise.value - 0.5) < 4 * np.sqrt(301 / (12 * 75 * 225))
    straight = explicitness(codes, factors).value
    assert abs(explicitness(rotate(codes), factors).value - straight) < 0.02
    assert straight > 0.85


# Edges


@pytest.mark.parametrize("n_codes", [1, 3])
@pytest.mark.parametrize("score", SCORES)
def test_codes_all_dead(score, n_codes):
    _, factors = draw(n=60)
    result = score(np.full((60, n_codes), 0.1), factors)
    assert result.value == (0.5 if score is explicitness else 0)
    assert json.loads(json.dumps(result.details)) == result.details


@pytest.mark.parametrize("score", SCORES)
def test_one_factor_and_one_code(score):
    codes, factors = draw(n=120)
    result = score(codes[:, :1], factors[:, :1])
    assert result.value == 1.0
    if score is dci:
        assert result.details["completeness"] == 1


@pytest.mark.parametrize("score", SCORES)
def test_a_value_without_a_training_row(score):
    codes, factors = draw(n=60)
    seed = next(
        s for s in range(99) if 0 in split_rows("m", 60, None, None, np.random.default_rng(s))[1]
    )
    factors[:, 2] %= 2
    codes[:, 2] = factors[:, 2]
    factors[0, 2] = 9  # the first row: its value is numbered 0, before those that are trained on
    result = score(codes[:, 2:], factors[:, 2:], seed=seed)
    if score is explicitness:
        # Three values: .5 for the new one; the others are parted but for one row that looks like one.
        assert result.details["values_scored"] == [3]
        assert 0.8 < result.value < 0.5 / 3 + 2 / 3 + 1e-12
    elif score is sap:
        assert result.value == pytest.approx(19 / 20)
    else:
        assert result.details["informativeness_test"] == pytest.approx(19 / 20)
        assert result.details["informativeness_train"] == 1


@pytest.mark.parametrize("score", SCORES)
def test_training_rows_of_one_value(score):
    codes, factors = draw(n=9)
    factors = np.zeros((9, 1), dtype=int)
    factors[split_rows("m", 9, None, None, np.random.default_rng(0))[1][0]] = 1
    result = score(codes, factors)
    if score is dci:
        assert result.value == 0 and result.details["informativeness_test"] == pytest.approx(2 / 3)
    else:
        assert result.value == (0.5 if score is explicitness else 0)


@pytest.mark.parametrize(
    ("n", "asked", "sizes"),
    [
        (20_000, (None, None), (10_000, 5_000)),
        (15_000, (None, None), (10_000, 5_000)),
        (14_999, (None, None), (9_999, 5_000)),
        (300, (None, None), (200, 100)),
        (2, (None, None), (1, 1)),
        (300, (50, None), (50, 250)),
        (300, (None, 50), (250, 50)),
        (300, (200, 10), (200, 10)),
    ],
)
def test_split(n, asked, sizes):
    train, test = split_rows("m", n, *asked, np.random.default_rng(0))
    assert (len(train), len(test)) == sizes
    assert len(np.union1d(train, test)) == sum(sizes) and max(train.max(), test.max()) < n


# What they do not depend on


def by_correlation(codes, factors):
    return sap(codes, factors, continuous=True)


@pytest.mark.parametrize("score", [*SCORES, by_correlation])
def test_invariances(score):
    codes, factors = draw(n=240, noise=0.5, extra=1)
    factors = factors[:, :2]
    expected = score(codes, factors).value
    names = np.array([7, -3, 100, 4])
    scales = np.array([0.7, 0.01, 0.005, 70.0])

    def change(codes, factors):
        return abs(score(codes, factors).value - expected)

    assert change(codes[:, [3, 2, 0, 1]], factors) < 1e-12
    assert change(codes * [-1, 1, -1, -1], factors) < 1e-12
    if score is sap:
        assert change(codes * 0.01, factors) > 0.01 and change(codes * scales, factors) > 0.01
    else:
        assert change(codes * 0.013, factors) < 1e-9 and change(codes * scales, factors) < 1e-9
    assert (change(codes, names[factors]) < 1e-12) == (score is not by_correlation)
    if score is dci:
        assert change(np.exp(codes) * [1, -1, -1, 1], factors) < 1e-12


@pytest.mark.parametrize("score", SCORES)
def test_a_seed_decides(score):
    codes, factors = draw(n=150, noise=0.5)
    factors = factors[:, :2]
    first = score(codes, factors)
    assert score(codes, factors) == first
    assert json.loads(json.dumps(first.details)) == first.details
    assert score(codes, factors, seed=1).value != first.value
    assert first.details["n"] == 150 and first.details["seed"] == 0


# Errors


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_train": 0}, "n_train must be at least 1; got 0"),
        ({"n_test": 0}, "n_test must be at least 1; got 0"),
        ({"n_train": 50}, r"not exceed the 50 rows; got 50 \+ 0"),
        ({"n_test": 51}, r"not exceed the 50 rows; got -1 \+ 51"),
        ({"n_train": 30, "n_test": 21}, r"not exceed the 50 rows; got 30 \+ 21"),
    ],
)
def test_errors(score, arguments, message):
    codes, factors = draw(n=50)
    with pytest.raises(ValueError, match=f"{score.__name__}: .*{message}"):
        score(codes, factors, **arguments)


def test_other_errors():
    codes, factors = draw(n=50)
    for score in SCORES:
        with pytest.raises(ValueError, match=f"{score.__name__}: codes must be finite"):
            score(codes * np.nan, factors)
    with pytest.raises(ValueError, match="sap: n_train and n_test must be None where all factors"):
        sap(codes, factors, continuous=True, n_train=10)
