"""Closed-form KLs: against quadrature, float64 and torch's own formulas where those hold."""

import itertools
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch import MultivariateNormal
from scipy import integrate
from torch import nn

from pyro_bvae.datasets import Data
from pyro_bvae.evaluation import evaluate
from pyro_bvae.kl import closed_form, family, leaves_support
from pyro_bvae.likelihoods import Normal
from pyro_bvae.priors import Gaussian
from pyro_bvae.vae import VAE

# What an encoder and a prior may give: scales from 1e-6 to 1e3, means up to 1e3 apart from 0.
SCALES, LOCS, APART = (1e-6, 1e-3, 1.0, 1e3), (0.0, 0.3, 1000.3), (0.0, 1e-3, 0.4, 3.0)
ON_THE_LINE = list(itertools.product(("Normal", "Laplace"), repeat=2))


def exact(value):
    """The float32 number, in float64."""
    return torch.tensor(value, dtype=torch.float32).double()


def by_quadrature(q, p, low, high, points=()):
    def integrand(z):
        z = torch.tensor(z, dtype=torch.float64)
        log_q = q.log_prob(z)
        return (log_q.exp() * (log_q - p.log_prob(z))).item()

    return integrate.quad(integrand, low, high, points=points or None, epsabs=1e-10, limit=200)[0]


@pytest.mark.parametrize(("q", "p"), ON_THE_LINE)
def test_scales_and_means_that_trainings_reach_in_float32(q, p):
    grid = np.array(list(itertools.product(LOCS, APART, SCALES, SCALES)), np.float32)
    loc, apart, scale_q, scale_p = torch.tensor(grid).T
    both = [
        closed_form(getattr(dist, q)(l1, s1), getattr(dist, p)(l2, s2))
        for l1, l2, s1, s2 in (
            (loc, loc + apart, scale_q, scale_p),
            (loc.double(), (loc + apart).double(), scale_q.double(), scale_p.double()),
        )
    ]
    # .5 ulp of each term, of which the largest is the result or log(1e9) = 21
    np.testing.assert_allclose(both[0].numpy(), both[1].numpy(), rtol=1e-5, atol=1e-5)
    assert (both[1] > -1e-9).all()


@pytest.mark.parametrize(("q", "p"), ON_THE_LINE)
def test_the_formulas_on_the_line_agree_with_quadrature(q, p):
    q, p = getattr(dist, q)(exact(0.3), exact(0.7)), getattr(dist, p)(exact(-0.2), exact(1.3))
    expected = by_quadrature(q, p, -30, 30, (-0.2, 0.3))
    assert closed_form(q, p).item() == pytest.approx(expected, rel=1e-7)


def test_the_gradient_of_a_laplace_posterior_is_that_of_its_kl():
    """d KL / d loc = (loc - loc_p) / scale_p^2, in float32 far from 0."""
    loc = torch.tensor(1000.3, requires_grad=True)
    closed_form(dist.Laplace(loc, 0.1), dist.Normal(torch.tensor(1000.0), 0.1)).backward()
    assert loc.grad.item() == pytest.approx((loc.item() - 1000.0) / 0.01, rel=1e-5)


# ---- full covariances --------------------------------------------------------------------------

COVARIANCE = torch.tensor(
    [[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]], dtype=torch.float64
)
MEAN = torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 0.5]], dtype=torch.float64)
SCALE = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)


def low_rank():
    factor = torch.tensor([[1.0], [0.5], [-0.2]], dtype=torch.float64)
    return dist.LowRankMultivariateNormal(MEAN, factor, COVARIANCE.diagonal())


@pytest.mark.parametrize("q", [MultivariateNormal(MEAN, COVARIANCE), low_rank()], ids=family)
def test_a_full_covariance_beside_a_diagonal_normal(q):
    loc = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    p = dist.Normal(loc, SCALE).to_event(1)
    # (tr(P^-1 S) + (m - l)' P^-1 (m - l) - D + log det P / det S) / 2, by numpy
    covariance, inverse = q.covariance_matrix.numpy(), np.diag(SCALE.numpy() ** -2)
    trace = np.trace(inverse @ covariance, axis1=-2, axis2=-1)
    apart = (MEAN - loc).numpy()
    distance = np.einsum("bi,ij,bj->b", apart, inverse, apart)
    logs = -np.linalg.slogdet(inverse)[1] - np.linalg.slogdet(covariance)[1]
    np.testing.assert_allclose(closed_form(q, p), (trace + distance - 3 + logs) / 2, rtol=1e-12)
    laplace = dist.Laplace(loc, SCALE).to_event(1)
    assert closed_form(q, laplace) is None


class FullCovariance(nn.Module):
    """N(x, S) as an encoder; ``weight`` stands for the device."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return dist.MultivariateNormal(self.weight * x, COVARIANCE.float())


def test_evaluate_takes_a_full_covariance_in_closed_form():
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    vae = VAE(FullCovariance(), nn.Identity(), Gaussian(3), Normal(1.0))
    out = evaluate(vae, Data(x))
    logs = np.linalg.slogdet(COVARIANCE.numpy())[1]
    expected = (np.trace(COVARIANCE) + (x**2).sum(1) - 3 - logs) / 2
    assert out["kl_estimator"] == "closed form"
    assert out["kl"] == pytest.approx(expected.mean(), rel=1e-5)


# ---- supports ----------------------------------------------------------------------------------


class Bounded(nn.Module):
    """Beta(2 + x^2, 3) as an encoder."""

    def forward(self, x):
        return dist.Beta(2 + x**2, torch.full_like(x, 3.0)).to_event(1)


class Prior(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self):
        return self.make()


def vae_of(encoder, prior):
    decoder = nn.Linear(2, 2)  # parameters: a device
    return VAE(encoder, decoder, Prior(prior), Normal(1.0))


def uniform():
    return dist.Uniform(torch.zeros(2), torch.ones(2)).to_event(1)


def test_evaluate_with_a_uniform_prior_and_a_beta_posterior():
    x = np.random.default_rng(0).normal(size=(2, 2)).astype(np.float32)
    vae = vae_of(Bounded(), uniform)
    vae.check(torch.tensor(x))
    out = evaluate(vae, Data(x), measures=["log-marginal"], n_samples=10)
    unit = dist.Uniform(exact(0.0), exact(1.0))
    each = [
        [by_quadrature(dist.Beta(2 + exact(v) ** 2, exact(3.0)), unit, 0, 1) for v in row]
        for row in x.tolist()
    ]
    assert out["kl"] == pytest.approx(np.sum(each) / 2, rel=1e-4)
    assert out["kl_per_latent"] == pytest.approx(np.mean(each, 0), rel=1e-4)


@pytest.mark.parametrize("prior", ["Uniform", "Pareto"])
def test_a_prior_that_no_plate_expanded_has_the_kl_of_the_expanded_one(prior):
    p = {"Uniform": uniform(), "Pareto": dist.Pareto(torch.ones(2), torch.ones(2)).to_event(1)}[
        prior
    ]
    q = {
        "Uniform": dist.Uniform(torch.full((3, 2), 0.2), torch.full((3, 2), 0.7)).to_event(1),
        "Pareto": dist.Pareto(torch.full((3, 2), 1.5), torch.full((3, 2), 2.0)).to_event(1),
    }[prior]
    # log(1 / .5) each; log(1.5) + log 2 + 1/2 - 1 each
    each = {"Uniform": math.log(2), "Pareto": math.log(3) - 0.5}[prior]
    torch.testing.assert_close(closed_form(q, p), torch.full((3,), 2 * each))


@pytest.mark.parametrize(
    "make",
    [
        uniform,
        lambda: dist.Uniform(torch.full((2,), -50.0), 50.0).to_event(1),  # no sample leaves it
        lambda: dist.Gamma(torch.ones(2), 1.0).to_event(1),
        lambda: dist.LogNormal(torch.zeros(2), 1.0).to_event(1),
        lambda: dist.Dirichlet(torch.ones(2)),
    ],
    ids=["uniform", "wide", "gamma", "log-normal", "dirichlet"],
)
def test_a_posterior_that_leaves_the_support_is_refused(make):
    class Line(nn.Module):
        def forward(self, x):
            return x, torch.ones_like(x)

    sentence = (
        r"VAE: the posterior must lie in the prior's support; got Normal, which leaves that of"
    )
    with pytest.raises(ValueError, match=sentence) as caught:
        vae_of(Line(), make).check(torch.zeros(50, 2))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_distribution_that_states_no_support_is_let_through():
    class Unstated(dist.TorchDistribution):
        arg_constraints = {}

    unstated = Unstated(validate_args=False)
    assert not leaves_support(dist.Normal(torch.zeros(2), 1.0), unstated)


@pytest.mark.parametrize(
    ("q", "p"), [("Normal", "VonMises"), ("VonMises", "Normal")], ids=["prior", "posterior"]
)
def test_a_circle_and_the_line_have_no_kl(q, p):
    make = [getattr(dist, name)(torch.zeros(4, 2), torch.ones(4, 2)).to_event(1) for name in (q, p)]
    with pytest.raises(ValueError, match=f"both on a circle or sphere; got {q} and {p}"):
        closed_form(*make)
    assert closed_form(make[q == "Normal"], make[q == "Normal"]) is None  # two circles: by samples
