"""DecompositionVAE: scikit-learn's own checks, probabilistic PCA in closed form, and what users do with it."""

import pickle
import subprocess
import sys

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.datasets import load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, minmax_scale
from sklearn.utils import estimator_checks, shuffle
from torch import nn
from torch.distributions import kl_divergence

from pyro_bvae.priors import PRIORS, Mixture
from pyro_bvae.sklearn import DecompositionVAE

X = StandardScaler().fit_transform(shuffle(load_iris().data, random_state=0))
UNIT = minmax_scale(X)


def quick(**arguments):
    return DecompositionVAE(**({"epochs": 2, "random_state": 0} | arguments))


class LinearEncoder(nn.Module):
    def __init__(self, n_features, latent_dim):
        super().__init__()
        self.loc = nn.Linear(n_features, latent_dim)
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, x):
        loc = self.loc(x)
        return loc, self.log_scale.exp().expand_as(loc)


class FullEncoder(LinearEncoder):
    def forward(self, x):
        return dist.MultivariateNormal(self.loc(x), torch.diag(self.log_scale.exp()))


class Shifted(nn.Module):
    """A prior of one's own: N(loc, I), loc learned."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.ones(2))

    def forward(self):
        return dist.Normal(self.loc, 1.0).to_event(1)


def linear(x_shape, latent_dim, extra, scale):
    return LinearEncoder(*x_shape, latent_dim), nn.Linear(latent_dim, *x_shape)


@pytest.fixture(scope="module")
def pca():
    """A linear model at its optimum."""
    torch.manual_seed(0)
    model = quick(network=linear, epochs=250, batch_size=len(X), lr=0.05).fit(X)
    for k in range(100):
        model.set_params(lr=0.05 * 0.96**k).partial_fit(X)
    return model


def test_every_check_of_scikit_learn_passes(monkeypatch):
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")  # without it, one of them is skipped
    results = estimator_checks.check_estimator(quick(), on_fail=None, on_skip=None)
    others = {r["check_name"]: r["exception"] for r in results if r["status"] != "passed"}
    assert not others and len(results) > 40


@pytest.mark.filterwarnings("ignore:X .* feature names")
@pytest.mark.parametrize(
    "check",
    [
        "check_estimators_partial_fit_n_features",
        "check_transformer_get_feature_names_out",
        "check_transformer_get_feature_names_out_pandas",
        "check_set_output_transform",
        "check_set_output_transform_pandas",
        "check_global_output_transform_pandas",
        "check_dataframe_column_names_consistency",
    ],
)
def test_checks_that_scikit_learn_runs_on_its_own_estimators(check):
    getattr(estimator_checks, check)("DecompositionVAE", quick())


def test_linear_networks_come_to_the_likelihood_of_probabilistic_pca(pca):
    """log p(x) at the maximum by the covariance's eigenvalues (Tipping & Bishop 1999, eq. 15)."""
    top, rest = np.split(np.linalg.eigvalsh(X.T @ X / len(X))[::-1], [2])
    logs = np.log(top).sum() + len(rest) * np.log(rest.mean())
    best = -0.5 * (X.shape[1] * (np.log(2 * np.pi) + 1) + logs)
    assert best - 0.01 < pca.score(X) < best
    assert pca.score(X) == pca.score_samples(X).mean()


def test_a_linear_model_in_closed_form(pca):
    """Scores bound the exact log p(x) row by row; means and samples are those of x = Wz + b + noise."""
    decoder, n = pca.vae_.decoder, 20_000
    w, b = decoder.weight.detach().double().numpy(), decoder.bias.detach().double().numpy()
    scale = pca.vae_.likelihood(decoder.bias, 1).base_dist.scale[0].item()
    covariance = w @ w.T + scale**2 * np.eye(len(b))
    gap = multivariate_normal(b, covariance).logpdf(X) - pca.score_samples(X)
    assert gap.min() > -1e-5 and gap.mean() < 0.01  # float32 holds the scale
    codes = pca.transform(X)
    np.testing.assert_allclose(pca.inverse_transform(codes), codes @ w.T + b, atol=1e-12)
    drawn, variance = pca.sample(n, random_state=0), np.diag(covariance)
    assert (np.abs(drawn.mean(0) - b) < 5 * np.sqrt(variance / n)).all()
    of_pairs = np.sqrt((covariance**2 + np.outer(variance, variance)) / n)
    assert (np.abs(np.cov(drawn.T) - covariance) < 5 * of_pairs).all()
    np.testing.assert_array_equal(drawn, pca.sample(n, random_state=0))
    assert (pca.sample(5, 1) != pca.sample(5, 2)).all()


@pytest.mark.parametrize("prior", ["gaussian", "mixture"])
def test_scores_are_elbos_at_beta_1(prior):
    """Against 2,000 samples of each row's own noise; the 64 shared ones err by sd / 8 or less."""
    model = quick(prior=prior, epochs=20, beta=0.3).fit(X)
    vae, x = model.vae_.double(), torch.tensor(X)
    with torch.no_grad():
        q_z, p_z = vae.q_z(x), vae.p_z()
        z = q_z.sample((2000,))
        kl = q_z.log_prob(z) - p_z.log_prob(z)
        if prior == "gaussian":
            kl = kl_divergence(q_z, p_z)
        elbos = (vae.p_x(z).log_prob(x) - kl).numpy()
    error = model.score_samples(X) - elbos.mean(0)
    assert (np.abs(error) < 5 * elbos.std(0) / 8).all()
    assert abs(error.mean()) < 0.03


def test_codes_serve_a_classifier_as_well_as_pca():
    wine, y = load_wine(return_X_y=True)
    a, b, y_a, y_b = train_test_split(wine, y, test_size=0.4, random_state=0, stratify=y)

    def accuracy(codes):
        pipeline = make_pipeline(StandardScaler(), codes, LogisticRegression())
        return pipeline.fit(a, y_a).score(b, y_b)

    ours = accuracy(DecompositionVAE(random_state=0))
    assert ours > 0.85 and ours > accuracy(PCA(2)) - 0.08  # two standard errors; chance is .4


def test_grid_search_over_beta_and_priors_needs_no_scorer():
    grid = [{"beta": np.array([1.0, 64.0])}, {"prior": [Shifted()], "latent_dim": np.array([2])}]
    search = GridSearchCV(quick(epochs=60, batch_size=75, lr=0.02), grid, cv=2).fit(X)
    good, collapsed, shifted = search.cv_results_["mean_test_score"]
    assert good > collapsed + 0.5 and shifted > collapsed + 0.5


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_row_does_not_depend_on_the_others(dtype):
    model, x = quick(prior="mixture", hidden=300).fit(X), X.astype(dtype)
    rows = np.array([5, 3, 100])
    tolerance = 1e-12 if dtype is np.float64 else 2e-7
    for method in (model.transform, model.score_samples, model.inverse_transform):
        of = model.transform(x) if method == model.inverse_transform else x
        whole = method(of)
        assert whole.dtype == dtype
        np.testing.assert_allclose(method(of[rows]), whole[rows], rtol=tolerance)
        np.testing.assert_allclose(method(of[7:8]), whole[7:8], rtol=tolerance)
        np.testing.assert_array_equal(method(of), whole)


@pytest.mark.parametrize("prior", PRIORS)
def test_every_prior_is_cloned_pickled_and_goes_on_to_the_same_numbers(prior):
    model = clone(quick(prior=prior, alpha=1.0)).fit(X)
    other = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(other.score_samples(X), model.score_samples(X))
    before = model.transform(X)
    after = model.partial_fit(X[:50]).transform(X)
    np.testing.assert_array_equal(other.partial_fit(X[:50]).transform(X), after)
    assert (after != before).all()
    assert np.isfinite(model.sample(3)).all()


def test_fit_starts_anew_and_leaves_the_generators_of_others_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    model = quick().fit(X)
    first, weights = model.transform(X), [p.clone() for p in model.vae_.parameters()]
    again = model.fit(X)
    np.testing.assert_array_equal(again.transform(X), first)
    assert (model.set_params(epochs=3).fit(X).transform(X) != first).all()
    assert all((p != w).any() for p, w in zip(model.vae_.parameters(), weights, strict=True))
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert (quick(random_state=np.random.RandomState(1)).fit(X).transform(X) != first).all()


def test_partial_fit_goes_on_with_the_optimiser_and_with_the_numbers_of_now():
    model = DecompositionVAE(random_state=0).partial_fit(X[:64])
    for _ in range(150):
        model.partial_fit(X[:64])
    assert model.score(X[:64]) > quick(epochs=1).fit(X[:64]).score(X[:64]) + 1
    weights = [p.detach().clone() for p in model.vae_.parameters()]
    model.set_params(beta=3.0, alpha=2.0, lr=1e-4).partial_fit(X[:64])
    moved = torch.cat(
        [(p - w).abs().flatten() for p, w in zip(model.vae_.parameters(), weights, strict=True)]
    )
    assert moved.median() < 0.5e-4  # Adam's first step without moments would be lr for every weight
    record = model.history_[-1]
    expected = -record["log_px_z"] + 3 * record["kl"] + 2 * record["divergence"]
    assert record["loss"] == pytest.approx(expected, rel=1e-5)
    assert len(model.history_) == 152
    model.set_params(lr=1e-9).partial_fit(X[:64]).partial_fit(X[:64])
    assert model.history_[-1]["log_px_z"] != model.history_[-2]["log_px_z"]  # the noise goes on too
    model.partial_fit(X[:1])  # the last chunk of a stream may be a single row


def test_a_prior_of_ones_own_is_copied_and_trained():
    prior = Shifted()
    model = quick(prior=prior, alpha=1.0, divergence=lambda q_z, p_z, z: z.square().mean()).fit(X)
    assert torch.equal(prior.loc, torch.ones(2))
    assert (model.vae_.prior.loc != 1).all()


def test_columns_have_names():
    codes = quick(latent_dim=3).set_output(transform="pandas").fit(X).transform(X[:5])
    assert list(codes.columns) == [f"decompositionvae{k}" for k in range(3)]


@pytest.mark.parametrize("likelihood", ["laplace", "bernoulli", "continuous-bernoulli"])
def test_other_likelihoods(likelihood):
    model = quick(likelihood=likelihood, likelihood_scale="decoder").fit(UNIT)
    assert model.sample(4).shape == (4, 4)
    assert model.fit(UNIT, None).score(UNIT) < model.set_params(epochs=30).fit(UNIT).score(UNIT)


WRONG = [
    ({"beta": -1}, "DecompositionVAE: beta must be a number of at least 0; got -1"),
    ({"latent_dim": 0}, "DecompositionVAE: latent_dim must be a whole number"),
    ({"lr": None}, "DecompositionVAE: lr must be given; got None. Leave it out"),
    ({"hidden": 0}, "DecompositionVAE: hidden must be an integer >= 1; got 0"),
    ({"prior": "mixtur"}, "DecompositionVAE: prior must be one of .* Did you mean mixture"),
    ({"prior": Mixture}, "DecompositionVAE: prior must be a name, or a module without prior_args"),
    ({"prior": Mixture(2), "prior_args": {"scale": 1}}, "a module without prior_args"),
    ({"prior": Mixture(3)}, r"event_shape \(2,\)"),
    ({"prior_args": {"k": 1}}, "DecompositionVAE: prior_args of gaussian must be one of: scale"),
    ({"prior": "pca", "latent_dim": 5}, "Lower latent_dim or use prior gaussian"),
    ({"divergence": 3, "alpha": 1}, "DecompositionVAE: divergence must be text; got 3"),
    ({"likelihood": "poisson"}, "DecompositionVAE: likelihood must be one of normal"),
    ({"likelihood_scale": 0}, "DecompositionVAE: likelihood_scale must be a number > 0"),
    ({"likelihood": "bernoulli"}, r"X must lie in \[0, 1\] for likelihood 'bernoulli'; got -"),
    ({"network": "burgess"}, "DecompositionVAE: network must be 'mlp' or a function"),
    ({"network": lambda s, d, e, c: (FullEncoder(*s, d), nn.Linear(d, *s))}, "return .loc, scale."),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[str(n) for n in range(len(WRONG))])
def test_wrong_arguments_are_refused_in_one_sentence(arguments, message):
    model = quick(**arguments)
    for _ in range(2):
        with pytest.raises((ValueError, TypeError), match=message):
            model.partial_fit(X)
    with pytest.raises(NotFittedError):
        model.transform(X)


def test_wrong_data_are_refused():
    with pytest.raises(NotFittedError):
        quick().transform(X)
    with pytest.raises(ValueError, match="minimum of 2 is required by DecompositionVAE"):
        quick().fit(X[:1])
    with pytest.raises(ValueError, match="Input X contains NaN"):
        quick().fit(np.where(X > 2, np.nan, X))
    with pytest.raises(ValueError, match="too large for dtype"):
        quick().fit(X * 1e40)
    with (
        pytest.raises(FloatingPointError, match="data's range"),
        pytest.warns(UserWarning, match="NaN"),
    ):
        quick().fit(X * 1e25)
    model = quick().fit(X)
    with pytest.raises(ValueError, match="X has 3 features, but DecompositionVAE is expecting 4"):
        model.score_samples(X[:, :3])
    with pytest.raises(ValueError, match="one column for each of 2 latents; got 4"):
        model.inverse_transform(X)
    with pytest.raises(ValueError, match="n_samples must be an integer >= 1; got 0"):
        model.sample(0)


def test_importing_the_package_imports_no_scikit_learn():
    code = "import sys, pyro_bvae; print('sklearn' in sys.modules, 'sklearn' in dir(pyro_bvae))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
