"""What every metric of METRICS promises: its limits, its nulls, exactly its invariances, its errors."""

import functools
import inspect
import json
import math
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from pyro_bvae.metrics import INVARIANCES, METRICS, Score
from pyro_bvae.metrics.checks import LARGEST, spread, standardised

VALUES = (3, 4, 5)
COMBINATIONS = np.indices(VALUES).reshape(3, -1).T
# Every combination equally often, so that the factors are independent in the sample too.
FACTORS = np.random.default_rng(0).permutation(np.tile(COMBINATIONS, (40, 1)))
N = len(FACTORS)
PERFECT = FACTORS.astype(float)
NOISE = np.random.default_rng(1).uniform(size=(N, 6))
DEAD = np.full((N, 1), 0.1)  # its standard deviation is 1e-17, its range 0
# Each code mixes all factors and noise.
MESSY = NOISE[:, :5] * 4 + PERFECT @ np.random.default_rng(5).normal(size=(3, 5))

SAMPLED = 800  # votes or test rows of the metrics that draw them
CHANCE = 1 / 3  # of naming one of three factors
CHANCE_ERROR = 4 * math.sqrt(CHANCE * (1 - CHANCE) / SAMPLED)
EXACT = 1e-9


class Row(NamedTuple):
    """Expected value and tolerance on each kind of codes, and of what changes under its invariances."""

    null: tuple[float, float]  # pure noise
    constant: tuple[float, float] = (0.0, EXACT)
    one_factor: tuple[float, float] = (1.0, EXACT)  # perfect codes, only the first factor
    one_latent: tuple[float, float] = (1 / 3, EXACT)  # the first perfect code, all factors
    perfect: tuple[float, float] = (1.0, EXACT)
    with_dead: tuple[float, float] = (1.0, EXACT)  # a dead code beside the perfect ones
    sizes: dict[str, Any] = {}
    tolerance: float = EXACT


def information_null(summary):
    """Mean and 4 standard deviations of a summary (latents, factors, entropies) of noise.

    2 n I is about chi-square with (20 - 1)(|V| - 1) degrees of freedom where nothing depends.
    """
    rng = np.random.default_rng(0)
    freedom = 19 * (np.array(VALUES) - 1)
    draws = rng.chisquare(freedom, size=(2000, NOISE.shape[1], 3)) / (2 * N)
    values = np.array([summary(mi) for mi in draws])
    return values.mean(), 4 * values.std()


def gap(mi):
    ranked = np.sort(mi, axis=0)
    return ((ranked[-1] - ranked[-2]) / np.log(VALUES)).mean()


def alone(mi):
    return (np.maximum(0, 2 * mi.max(0) - mi.sum(0)) / mi.max(0)).mean()


def modular(mi):
    squares = mi**2
    return (1 - (squares.sum(1) / squares.max(1) - 1) / 2).mean()


def accuracy_on_its_own_values(n):
    """Of a linear SVM, which cannot always tell the inner of n values on a line."""
    x = np.tile(np.arange(n), SAMPLED // n)
    model = LinearSVC(C=0.01, class_weight="balanced", dual=False).fit(x[:, None], x)
    return model.score(x[:, None], x)


# Uniform noise: .99 of the largest deviation is the .99-quantile, with error .1 / sqrt(n) of a sample's
# quantile and 2 / n of its interpolation in each group.
IRS_NULL = (0.01, 4 * 0.1 / math.sqrt(N) + 2 / (N / 5))
# 18 correlations of standard deviation 1 / sqrt(n) stay below 4 of it.
MCC_NULL = (2 / math.sqrt(N), 2 / math.sqrt(N))
# Perfect codes against the first factor alone: largest deviations 1, 1.5 and 2, of which only the first
# is explained; the .99-quantiles of the others are their largest deviations.
IRS_ONE = (1 / (1 + 1.5 + 2), EXACT)
# A group of rows deviates from the others by sqrt(16 / rows) of the spread of 16 of them, which moves
# a vote by at most the Normal's density at 0 of that.
VOTE_NULL = (CHANCE, CHANCE_ERROR + 0.4 * math.sqrt(16 / (N / 5)))
# Importances of noise all lie near 1/6. A relative spread r of theirs makes the entropy of shares among
# three factors fall short of 1 by r^2 / (3 log 3), and r stays below .4.
DCI_NULL = (0.025, 0.025)
# SAP: the accuracy of a linear SVM on one code that is the factor, and of a guess by the next code.
SHARES = 1 / np.array(VALUES)
SPREAD = np.sqrt(SHARES * (1 - SHARES) / SAMPLED)  # of an accuracy at chance
SAP_ERROR = 4 * SPREAD.mean()
LINEAR = np.array([accuracy_on_its_own_values(n) for n in VALUES])
# The two largest of six Normals are .625 apart in the mean, with standard deviation .55.
SAP_NULL = (0.625 * SPREAD.mean(), 4 * 0.55 * SPREAD.mean() / math.sqrt(3))
# One area under the curve of noise has the variance 1 / (12 positives); three factors are averaged.
AUC_ERROR = 4 * math.sqrt(5 / (12 * SAMPLED) / 3)


ROWS = {
    "beta-vae-score": Row(
        VOTE_NULL,
        constant=(CHANCE, CHANCE_ERROR),
        one_latent=(2 / 3, CHANCE_ERROR),  # it tells the first factor from the others
        sizes={"n_train": 400, "n_eval": SAMPLED, "n_pairs": 16},
    ),
    "factor-vae-score": Row(
        VOTE_NULL,
        one_latent=(CHANCE, CHANCE_ERROR),
        sizes={"n_train": 400, "n_eval": SAMPLED, "n_rows": 16},
    ),
    "mig": Row(information_null(gap)),
    "aam": Row(information_null(alone)),
    "dci": Row(
        DCI_NULL,
        one_latent=(0, EXACT),  # it serves all factors alike
        sizes={"n_train": 200, "n_test": 200},
    ),
    "sap": Row(
        SAP_NULL,
        perfect=((LINEAR - SHARES).mean(), SAP_ERROR),
        with_dead=((LINEAR - SHARES).mean(), SAP_ERROR),
        one_factor=(LINEAR[0] - SHARES[0], SAP_ERROR),
        one_latent=((LINEAR[0] + SHARES[1] + SHARES[2]) / 3, SAP_ERROR),  # the second scores 0
        sizes={"n_train": SAMPLED, "n_test": SAMPLED},
    ),
    "explicitness": Row(
        (0.5, AUC_ERROR),
        constant=(0.5, EXACT),
        one_latent=(2 / 3, AUC_ERROR),  # 1, and .5 twice
        tolerance=1e-4,  # the solver may stop elsewhere and exchange a few of 10^5 pairs
        sizes={"n_train": SAMPLED, "n_test": SAMPLED},
    ),
    "modularity": Row(information_null(modular), one_latent=(1, EXACT)),
    "irs": Row(IRS_NULL, one_factor=IRS_ONE, one_latent=(1, EXACT)),
    "mcc": Row(MCC_NULL),
}

KINDS = {
    "perfect": (PERFECT, FACTORS),
    "null": (NOISE, FACTORS),
    "constant": (np.repeat(DEAD, 3, axis=1), FACTORS),
    "with_dead": (np.c_[PERFECT[:, :2], DEAD, PERFECT[:, 2:]], FACTORS),
    "one_factor": (PERFECT, FACTORS[:, :1]),
    "one_latent": (PERFECT[:, :1], FACTORS),
}


def relabelled(factors):
    names = np.random.default_rng(4).permutation(np.arange(-50, 50))
    return names[factors]


CHANGES = {
    "permute": lambda z, v: (z[:, [3, 0, 4, 1, 2]], v),
    "flip": lambda z, v: (z * [-1, 1, -1, -1, 1], v),
    "rescale": lambda z, v: (z * 0.0123, v),
    "rescale-each": lambda z, v: (z * [0.0123, 0.0004, 0.33, 0.0107, 1.9], v),
    "relabel": lambda z, v: (z, relabelled(v)),
}


def score(name, codes, factors, **more):
    return METRICS[name](codes, factors, **ROWS[name].sizes, **more)


@functools.cache
def messy_score(name):
    return score(name, MESSY, FACTORS, seed=3)


def test_every_metric_has_a_row():
    assert set(ROWS) == set(METRICS) == set(INVARIANCES)
    assert all(invariances <= set(CHANGES) for invariances in INVARIANCES.values())


@pytest.mark.parametrize("name", METRICS)
def test_signature(name):
    function = METRICS[name]
    assert function.__name__ == name.replace("-", "_")
    codes, factors, *others = inspect.signature(function).parameters.values()
    assert (codes.name, factors.name) == ("codes", "factors")
    assert all(other.kind is other.KEYWORD_ONLY for other in others)
    assert {other.name: other.default for other in others}["seed"] == 0


@pytest.mark.filterwarnings("ignore:factor_vae_score. no code")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METRICS)
def test_limits(name, kind):
    got = score(name, *KINDS[kind])
    expected, tolerance = getattr(ROWS[name], kind)
    assert isinstance(got, Score) and isinstance(got.value, float)
    assert got.value == pytest.approx(expected, abs=tolerance)
    assert json.loads(json.dumps(got.details, allow_nan=False))["n"] == N


@pytest.mark.parametrize("name", METRICS)
def test_same_seed_same_score(name):
    """Of lists, of another integer type and of whole floats too."""
    first = messy_score(name)
    assert first == score(name, MESSY.tolist(), FACTORS.astype(np.uint8), seed=3)
    assert name == "dci" or first == score(name, MESSY, FACTORS.astype(np.float32), seed=3)
    assert 0.05 < first.value < 0.95, "the invariances would be tested on a limit"


@pytest.mark.filterwarnings("ignore:factor_vae_score. no code")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", METRICS)
def test_exactly_the_declared_invariances(name, change):
    before = messy_score(name).value
    after = score(name, *CHANGES[change](MESSY, FACTORS), seed=3).value
    if change in INVARIANCES[name]:
        assert after == pytest.approx(before, abs=ROWS[name].tolerance)
    else:
        assert abs(after - before) > 0.01


@pytest.mark.parametrize("scale", [1e-200, 1e48])
@pytest.mark.parametrize("name", [name for name in METRICS if "rescale" in INVARIANCES[name]])
def test_rescaling_by_extremes(name, scale):
    """Squares of such codes underflow, or fill most of the range of a float."""
    after = score(name, MESSY * scale, FACTORS, seed=3).value
    assert after == pytest.approx(messy_score(name).value, abs=ROWS[name].tolerance)


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge:sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", METRICS)
def test_the_largest_codes_accepted(name):
    """None overflows or hangs: `sap` did from 1e76 on, where a fourth power overflows."""
    value = score(name, PERFECT / PERFECT.max() * LARGEST, FACTORS).value
    assert 0 <= value <= 1


NAN = np.where(np.arange(N)[:, None] == 7, np.nan, PERFECT)
MASKED = np.ma.masked_invalid(NAN)


@pytest.mark.parametrize(
    ("codes", "factors", "error", "message"),
    [
        (PERFECT[:, 0], FACTORS, ValueError, rf"codes must have shape .* got \({N},\)\. Reshape"),
        (NAN, FACTORS, ValueError, "codes must be finite; got 3 NaN .* first in row 7. Drop"),
        (
            -PERFECT * 1e50,
            FACTORS,
            ValueError,
            r"codes must be at most 1e\+50 in size; got 4e\+50\. S",
        ),
        (PERFECT.astype(str), FACTORS, TypeError, "codes must be real numbers; got dtype <U"),
        (PERFECT * 1j, FACTORS, TypeError, "codes must be real numbers; got dtype complex128"),
        (PERFECT[:0], FACTORS[:0], ValueError, r"n >= 1; got \(0, 3\)"),
        (PERFECT, FACTORS[:9], ValueError, rf"factors must have shape \({N}, .* got \(9, 3\)"),
        (PERFECT, FACTORS[:, 0], ValueError, rf"factors must have shape .* got \({N},\)"),
        (PERFECT, FACTORS[:, :0], ValueError, rf"factors must have shape .* got \({N}, 0\)"),
        (
            PERFECT,
            FACTORS.astype(str),
            TypeError,
            "factors must be numbers; got dtype <U21. Number",
        ),
        (PERFECT, FACTORS * 1j, TypeError, "factors must be numbers; got dtype complex128. Number"),
        (PERFECT, NAN, ValueError, "factors must be finite; got 3 NaN .* first in row 7. Drop"),
        (PERFECT, MASKED, ValueError, "factors must have no masked values; got 3. Drop"),
        (MASKED, FACTORS, ValueError, "codes must have no masked values; got 3. Drop those rows"),
        (PERFECT, np.full((N, 1), 0.5), ValueError, "2 values; factor 0 is always 0.5. Leave"),
        (PERFECT, FACTORS // 4, ValueError, "at least 2 values; factor 0 is always 0. Leave"),
    ],
)
@pytest.mark.parametrize("name", METRICS)
def test_bad_input(name, codes, factors, error, message):
    with pytest.raises(error, match=f"^{name.replace('-', '_')}: .*{message}"):
        METRICS[name](codes, factors)


def test_spread_and_standardised():
    """Of codes of which the squares underflow, of constants, and by other rows."""
    codes = np.array([[3.0, 0.1, 1], [5, 0.1, 2], [5, 0.1, 4]])
    for ddof in (0, 1):
        expected = codes.std(0, ddof=ddof) * [1, 0, 1]
        for scale in (1, 1e-200, LARGEST / 5):
            assert spread(codes * scale, ddof) / scale == pytest.approx(expected, abs=1e-12)
    assert spread(codes)[1] == 0 < codes.std(0)[1]  # that is 1e-17
    z = standardised(codes * 1e-200)
    assert z.mean(0) == pytest.approx(0, abs=1e-12)
    assert z.std(0) == pytest.approx([1, 0, 1], abs=1e-12)
    by_two = standardised(codes, codes[:2])  # means 4 and 1.5, deviations 1 and .5
    assert by_two == pytest.approx(np.array([[-1, 0, -1], [1, 0, 1], [1, 0, 5]]), abs=1e-12)


def test_importing_metrics_imports_no_scikit_learn():
    code = "import sys, pyro_bvae.metrics; print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
