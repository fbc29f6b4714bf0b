"""Likelihoods: SciPy's densities, cross-entropy and numerical integration as oracles."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, stats

from pyro_bvae.likelihoods import (
    LIKELIHOODS,
    SCALE_FLOOR,
    Bernoulli,
    ContinuousBernoulli,
    Laplace,
    Normal,
)

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(4, 1, 3, 2))
LOC = RNG.normal(size=X.shape)
SCALE = RNG.uniform(0.2, 2.0, size=X.shape)
FAMILIES = [(Normal, stats.norm), (Laplace, stats.laplace)]


def tensor(array):
    return torch.tensor(array, dtype=torch.float64)


def log_prob(likelihood, parameters):
    p_x = likelihood(parameters, 3)
    assert p_x.batch_shape == (4,) and p_x.event_shape == X.shape[1:]
    return p_x.log_prob(tensor(X)).detach().numpy()


def nats(log_densities):
    return log_densities.reshape(4, -1).sum(1)


@pytest.mark.parametrize(("kind", "oracle"), FAMILIES)
def test_location_scale_families_agree_with_scipy(kind, oracle):
    fixed = log_prob(kind(0.3).double(), tensor(LOC))
    # float32 holds the scale .3 to 3e-8 relative, squared residuals over s^2 = .09 are below 300
    np.testing.assert_allclose(fixed, nats(oracle.logpdf(X, LOC, 0.3)), rtol=1e-5)
    pixel = log_prob(kind("decoder"), (tensor(LOC), tensor(SCALE)))
    np.testing.assert_allclose(pixel, nats(oracle.logpdf(X, LOC, SCALE)), rtol=1e-12)
    learned = log_prob(kind("learned").double(), tensor(LOC))
    scale = np.log(2.0) + SCALE_FLOOR
    np.testing.assert_allclose(learned, nats(oracle.logpdf(X, LOC, scale)), rtol=1e-12)


def test_bernoulli_is_the_cross_entropy_on_grey_values():
    expected = -F.binary_cross_entropy_with_logits(tensor(LOC), tensor(X), reduction="none")
    np.testing.assert_allclose(
        log_prob(Bernoulli(), tensor(LOC)), nats(expected.numpy()), rtol=1e-12
    )


def test_bernoulli_agrees_with_scipy_on_binary_images():
    x = (X > 0.5).astype(int)
    p_x = Bernoulli()(tensor(LOC), 3)
    expected = nats(stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-LOC))))
    np.testing.assert_allclose(p_x.log_prob(tensor(x)).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("logit", [-8.0, -1.0, -1e-3, 0.0, 0.02, 3.0, 12.0])
def test_continuous_bernoulli_is_normalised(logit):
    p = 1 / (1 + np.exp(-logit))
    unnormalised = [p**x * (1 - p) ** (1 - x) for x in (0.0, 0.25, 1.0)]
    normaliser = integrate.quad(lambda x: p**x * (1 - p) ** (1 - x), 0, 1, epsabs=1e-13)[0]
    p_x = ContinuousBernoulli()(tensor([[logit]] * 3), 1)
    got = p_x.log_prob(tensor([[0.0], [0.25], [1.0]])).exp().numpy()
    # torch's Taylor series around p = .5 is of fourth order on |p - .5| <= .001
    np.testing.assert_allclose(got, np.array(unnormalised) / normaliser, rtol=1e-9)
    assert p_x.event_shape == (1,)


@pytest.mark.parametrize("kind", [Normal, Laplace])
def test_scale_is_floored(kind):
    tiny = kind("decoder")((torch.zeros(2, 3), torch.zeros(2, 3)), 1)
    assert torch.equal(tiny.base_dist.scale, torch.full((2, 3), SCALE_FLOOR))
    learned = kind("learned")
    with torch.no_grad():
        learned.raw_scale.fill_(-1e4)
    assert learned(torch.zeros(2, 3), 1).base_dist.scale.unique().item() == pytest.approx(
        SCALE_FLOOR
    )


@pytest.mark.parametrize(("kind", "power"), [(Normal, 2), (Laplace, 1)])
def test_learned_scale_has_the_gradient_of_its_density(kind, power):
    likelihood = kind("learned").double()
    x = tensor(X)
    likelihood(tensor(LOC), 3).log_prob(x).sum().backward()
    scale = np.log(2.0) + SCALE_FLOOR
    # d/ds of -(|r|/s)^p / p - log s, times softplus'(0) = 1/2
    expected = ((np.abs(X - LOC) ** power) / scale ** (power + 1) - 1 / scale).sum() / 2
    assert likelihood.raw_scale.grad.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("kind", [Normal, Laplace])
def test_a_fixed_scale_is_no_parameter_and_follows_the_module(kind):
    assert not list(kind(0.1).parameters())
    assert set(kind(0.1).state_dict()) == {"fixed_scale"}
    assert set(kind("learned").state_dict()) == {"raw_scale"}
    assert kind(0.1)(torch.zeros(2, 3), 1).log_prob(torch.zeros(2, 3)).dtype == torch.float32
    assert kind(0.1)(tensor(LOC), 3).log_prob(tensor(X)).dtype == torch.float64


@pytest.mark.parametrize("kind", [Normal, Laplace])
def test_errors(kind):
    name = kind.__name__
    one, pair = torch.zeros(2, 3), (torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(TypeError, match=rf"{name}: decoder must return one tensor.*\(loc, scale\)"):
        kind(0.1)(pair, 1)
    with pytest.raises(TypeError, match="one tensor, the mean; got"):
        kind("learned")(pair, 1)
    with pytest.raises(TypeError, match=r"must return \(loc, scale\); got one tensor"):
        kind("decoder")(one, 1)
    for scale in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"{name}: scale must be a finite number > 0; got"):
            kind(scale)
    for scale in (1e-30, 1e-46, 1e30, 10**400):  # float32 does not hold their squares
        with pytest.raises(
            ValueError, match=rf"{name}: scale must lie in \[1e-06, 1e\+06\]; got 1"
        ):
            kind(scale)
    for scale in (True, None, [0.1]):
        with pytest.raises(
            TypeError, match=f"{name}: scale must be a number, 'learned' or 'decoder'"
        ):
            kind(scale)
    with pytest.raises(ValueError, match="'learned' or 'decoder'; got 'pixel'"):
        kind("pixel")


def test_every_likelihood_is_built_without_arguments():
    for name, build in LIKELIHOODS.items():
        p_x = build()(torch.zeros(2, 3, 4), 2)
        assert p_x.event_shape == (3, 4), name
        assert torch.isfinite(p_x.log_prob(torch.full((2, 3, 4), 0.5))).all(), name
