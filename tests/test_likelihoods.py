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


# ---- the continuous Bernoulli at every logit that a decoder reaches -----------------------------

LOGITS = [
    0.0,
    1e-6,
    1e-3,
    0.1,
    0.49,
    0.51,
    1.0,
    3.0,
    8.0,
    15.0,
    16.0,
    17.0,
    20.0,
    50.0,
    88.0,
    90.0,
    200.0,
]
LOGITS += [-logit for logit in LOGITS[1:]]


def of_logits(logits=LOGITS, dtype=torch.float64):
    return ContinuousBernoulli()(torch.tensor(logits, dtype=dtype), 0)


def by_quadrature(logit, weigh=lambda x: 1.0):
    """The integral over [0, 1] of weigh(x) exp(logit x - max(logit, 0))."""
    ends = [1 - 30 / logit] if logit > 30 else [-30 / logit] if logit < -30 else None
    density = lambda x: weigh(x) * np.exp(logit * x - max(logit, 0.0))  # noqa: E731
    return integrate.quad(density, 0, 1, points=ends, epsabs=0, epsrel=1e-12)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_continuous_bernoulli_integrates_to_one(dtype):
    # Gauss-Legendre on 40 pieces: exact to rounding where a piece holds 5 units of the exponent
    nodes, weights = np.polynomial.legendre.leggauss(12)
    x = ((np.arange(40)[:, None] + (nodes + 1) / 2) / 40).reshape(-1, 1)
    p = of_logits(dtype=dtype).log_prob(torch.tensor(x, dtype=dtype)).exp().double().numpy()
    mass = (np.tile(weights / 80, 40)[:, None] * p).sum(0)
    np.testing.assert_allclose(mass, 1, rtol=1e-10 if dtype is torch.float64 else 2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_continuous_bernoulli_agrees_with_quadrature(dtype):
    p_x, x = of_logits(dtype=dtype), torch.tensor([[0.0], [0.25], [1.0]], dtype=dtype)
    mass = np.array([by_quadrature(logit) for logit in LOGITS])
    mean = np.array([by_quadrature(logit, lambda x: x) for logit in LOGITS]) / mass
    centred = [lambda x, m=m: (x - m) ** 2 for m in mean]
    variance = np.array([by_quadrature(*pair) for pair in zip(LOGITS, centred, strict=True)]) / mass
    logits = np.array(LOGITS)
    log_p = logits * x.numpy() - logits.clip(0) - np.log(mass)
    exact = dtype is torch.float64
    np.testing.assert_allclose(
        p_x.log_prob(x).numpy(), log_p, rtol=1e-10 if exact else 1e-6, atol=1e-6
    )
    np.testing.assert_allclose(p_x.mean.numpy(), mean, rtol=1e-10 if exact else 2e-5)
    np.testing.assert_allclose(p_x.variance.numpy(), variance, rtol=1e-9 if exact else 2e-5)
    # log p is linear in x, so the entropy is -log p at the mean
    entropy = -(logits * mean - logits.clip(0) - np.log(mass))
    np.testing.assert_allclose(
        p_x.entropy().numpy(), entropy, rtol=1e-9 if exact else 2e-5, atol=1e-6
    )


def test_the_continuous_bernoulli_has_the_gradient_of_its_density():
    x = torch.tensor([[0.0], [0.3], [1.0]], dtype=torch.float64)
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    log_prob = lambda v: ContinuousBernoulli()(v, 0).log_prob(x)  # noqa: E731
    assert torch.autograd.gradcheck(log_prob, logits)  # finite differences, also across 0 and .5
    # d log p / d logit = x - E x, in float32 too
    small = torch.tensor(LOGITS, requires_grad=True)
    (grad,) = torch.autograd.grad(
        ContinuousBernoulli()(small, 0).log_prob(torch.tensor(0.3)).sum(), small
    )
    np.testing.assert_allclose(grad.numpy(), 0.3 - of_logits().mean.numpy(), atol=1e-6)
    for extreme in (-1e6, 1e6):
        value = torch.tensor(extreme, requires_grad=True)
        ContinuousBernoulli()(value, 0).log_prob(torch.tensor(0.5)).backward()
        assert torch.isfinite(value.grad) and value.grad != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_of_the_continuous_bernoulli_follow_its_density(dtype):
    torch.manual_seed(0)
    n, p_x, exact = 20_000, of_logits(dtype=dtype), of_logits()
    z = p_x.sample((n,))
    assert z.dtype is dtype and (z >= 0).all() and (z <= 1).all()
    se = (exact.variance / n).sqrt().numpy()
    assert (np.abs(z.double().mean(0).numpy() - exact.mean.numpy()) < 4.5 * se).all()
    u = torch.tensor([[0.0], [1e-3], [0.4], [1 - 1e-3], [1.0]], dtype=torch.float64)
    np.testing.assert_allclose(
        exact.cdf(exact.icdf(u)).numpy(), u.expand(5, len(LOGITS)), atol=1e-9
    )
    below = [by_quadrature(v, lambda x: x < 0.5) / by_quadrature(v) for v in (-3.0, 1e-3, 8.0)]
    half = of_logits([-3.0, 1e-3, 8.0]).cdf(torch.tensor(0.5, dtype=torch.float64))
    np.testing.assert_allclose(half.numpy(), below, rtol=1e-6)


def test_nothing_is_lost_where_most_pixels_are_black():
    """The rows of an MNIST reconstruction: torch's own density has .32 of its mass at logit -50."""
    logits = torch.full((1, 784), -50.0)
    p_x = ContinuousBernoulli()(logits, 1)
    assert p_x.log_prob(torch.zeros(1, 784)).item() == pytest.approx(784 * np.log(50), rel=1e-6)
    assert p_x.mean.unique().item() == pytest.approx(0.02, rel=1e-6)
    assert p_x.expand((3,)).mean.shape == (3, 784)


# ---- the other likelihoods there ---------------------------------------------------------------


def test_bernoulli_at_logits_of_200():
    """In float32: -log(1 + e^200) at the wrong end, 0 at the right one, the slopes 1 and 0."""
    logits = torch.tensor([-200.0, 200.0, -200.0, 200.0], requires_grad=True)
    x = torch.tensor([0.0, 1.0, 1.0, 0.0])
    p_x = Bernoulli()(logits, 0)
    log_p = p_x.log_prob(x)
    np.testing.assert_array_equal(log_p.detach().numpy(), [0, 0, -200, -200])
    np.testing.assert_array_equal(p_x.mean.detach().numpy(), [0, 1, 0, 1])
    np.testing.assert_array_equal(
        torch.autograd.grad(log_p.sum(), logits)[0].numpy(), [0, 0, 1, -1]
    )


@pytest.mark.parametrize("kind", [Normal, Laplace])
@pytest.mark.parametrize("raw", [-1e4, -20.0, 20.0, 1e4])
def test_scales_at_their_floor_and_far_above_in_float32(kind, raw):
    learned = kind("learned")
    with torch.no_grad():
        learned.raw_scale.fill_(raw)
    x, loc = torch.tensor([0.0, 0.5, 1e3]), torch.tensor([0.0, 0.6, -1e3])
    decoded = kind("decoder")((loc, torch.full((3,), max(raw, 1e-9))), 0)
    slope = torch.autograd.grad(learned(loc, 0).log_prob(x).sum(), learned.raw_scale)[0]
    assert torch.isfinite(slope)
    for p_x, s in ((learned(loc, 0), max(raw, 0) + SCALE_FLOOR), (decoded, max(raw, SCALE_FLOOR))):
        r = ((x.double() - loc.double()) / s).abs()
        normal = -0.5 * r**2 - np.log(s) - 0.5 * np.log(2 * np.pi)
        expected = normal if kind is Normal else -r - np.log(2 * s)
        np.testing.assert_allclose(p_x.log_prob(x).detach(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(p_x.mean, loc)


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
