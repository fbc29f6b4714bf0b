"""Divergences: dense float64 forms, quadrature, closed forms, and gradients to every prior."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from torch import nn

from pyro_bvae import divergences, pairwise
from pyro_bvae.divergences import (
    DIVERGENCES,
    MMD_SCALES,
    exclusive_kl,
    inclusive_kl,
    mean_log_mixture,
    mmd,
    mmd_per_dim,
    total_correlation,
)
from pyro_bvae.priors import Flow, Gaussian, Laplace, Mixture, SpikeSlab, StudentT

ESTIMATORS = ["batch", "leave_one_out", "mss"]


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks, the last of them incomplete, in each loop over pairs."""
    monkeypatch.setattr(pairwise, "_BLOCK", 16)


def posteriors(n, dim, spread=1.0):
    loc = (spread * torch.randn(n, dim)).requires_grad_()
    scale = (0.3 + torch.rand(n, dim)).requires_grad_()
    return loc, scale


def normal(loc, scale):
    return dist.Normal(loc, scale).to_event(1)


def within(values, expected, slack=0.0):
    """The mean of independent draws lies within 4 standard errors (and ``slack``) of ``expected``."""
    values = torch.stack(values) if isinstance(values, list) else values
    error = values.std(0) / math.sqrt(len(values))
    return bool(((values.mean(0) - expected).abs() <= 4 * error + slack).all())


# The direct forms, in probabilities rather than logarithms


def pdf(z, loc, scale):
    """(n, B, D) densities of each coordinate under each posterior."""
    return torch.exp(-(((z[:, None] - loc) / scale) ** 2) / 2) / (scale * math.sqrt(2 * math.pi))


def weights(n, estimator, size):
    own = {"batch": 1 / n, "leave_one_out": 0.0, "mss": 1 / (size or 1)}[estimator]
    w = torch.full((n, n), (1 - own) / (n - 1))
    return w.fill_diagonal_(own)


def direct_mmd(x, y, width):
    """The B x B x D form, one kernel at a time; ``width`` is a number per scale."""
    n, m, total = len(x), len(y), 0.0
    for s in MMD_SCALES:
        c = width * s

        def k(a, b, c=c):
            return c / (c + ((a[:, None] - b[None]) ** 2).sum(-1))

        total = total + (k(x, x).sum() - n) / (n * (n - 1)) + (k(y, y).sum() - m) / (m * (m - 1))
        total = total - 2 * k(x, y).mean()
    return total


# mean_log_mixture


def test_mean_log_mixture_far_away_and_other_posteriors():
    q_z = normal(torch.tensor([[0.0], [100.0]]), torch.full((2, 1), 0.1))
    for z, nearest in ((30.0, 0), (1000.0, 100)):  # densities of these underflow
        expected = stats.norm.logpdf(z, nearest, 0.1) - math.log(2)
        got = mean_log_mixture(q_z, torch.tensor([[z]]))
        assert got.item() == pytest.approx(expected, rel=1e-12)
    full = dist.MultivariateNormal(torch.zeros(3, 2), torch.eye(2).expand(3, 2, 2))
    torch.testing.assert_close(
        mean_log_mixture(full, torch.ones(1, 2)), torch.tensor(-math.log(2 * math.pi) - 1)
    )


@pytest.mark.parametrize("n", [7, 4, 1])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_full_covariance_takes_the_same_weights(estimator, n):
    """The dense form of other posteriors equals the blocks of diagonal Normals."""
    loc, scale = posteriors(7, 2)
    full = dist.MultivariateNormal(loc, torch.diag_embed(scale**2))
    own, z = divergences._own_weight(7, estimator, 100), torch.randn(n, 2)
    torch.testing.assert_close(
        mean_log_mixture(full, z, own), mean_log_mixture(normal(loc, scale), z, own)
    )


# KL divergences and total correlation against the direct forms


@pytest.mark.parametrize("n", [11, 7])  # samples of all the posteriors, or of the first 7
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_exclusive_kl_and_its_gradients(estimator, n, small_blocks):
    (loc, scale), prior = posteriors(11, 2), StudentT(2, learned=True)
    z = normal(loc, scale).rsample()[:n]
    got = exclusive_kl(normal(loc, scale), prior(), z, estimator=estimator, dataset_size=50)
    w = weights(11, estimator, 50)[:n]
    df, s = prior.log_df.exp(), prior.log_scale.exp()
    log_t = (
        torch.lgamma((df + 1) / 2)
        - torch.lgamma(df / 2)
        - 0.5 * torch.log(df * math.pi)
        - torch.log(s)
        - (df + 1) / 2 * torch.log1p((z / s) ** 2 / df)
    )
    direct = ((w * pdf(z, loc, scale).prod(-1)).sum(1).log() - log_t.sum(1)).mean()
    assert_same(got, direct, [loc, scale, *prior.parameters()])


@pytest.mark.parametrize("n", [11, 7])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("family", [dist.Normal, dist.Laplace])  # in blocks, and by the dense form
def test_total_correlation_and_its_gradients(family, estimator, n, small_blocks):
    loc, scale = posteriors(11, 3)
    q_z = family(loc, scale).to_event(1)
    z = q_z.rsample()[:n]
    got = total_correlation(q_z, Gaussian(3)(), z, estimator=estimator, dataset_size=50)
    w = weights(11, estimator, 50)[:n]
    if family is dist.Normal:
        each = pdf(z, loc, scale)
    else:
        each = torch.exp(-((z[:, None] - loc) / scale).abs()) / (2 * scale)
    joint = (w * each.prod(-1)).sum(1)
    marginals = (w[..., None] * each).sum(1).prod(-1)
    assert_same(got, (joint / marginals).log().mean(), [loc, scale])


@pytest.mark.parametrize("n_samples", [None, 37])
def test_inclusive_kl_and_its_gradients(n_samples, small_blocks):
    (loc, scale), prior = posteriors(11, 2), Gaussian(2, 0.8, learned=True)
    torch.manual_seed(1)
    z = torch.empty(7, 2)  # as many samples of the prior as there are of these, of 11 posteriors
    got = inclusive_kl(normal(loc, scale), prior(), z, n_samples=n_samples)
    torch.manual_seed(1)
    s = prior.log_scale.exp()
    z_p = prior().rsample((n_samples or 7,))
    log_p = (-((z_p / s) ** 2) / 2 - torch.log(s)).sum(1) - math.log(2 * math.pi)
    direct = (log_p - pdf(z_p, loc, scale).prod(-1).mean(1).log()).mean()
    assert_same(got, direct, [loc, scale, prior.log_scale])


def assert_same(got, direct, parameters):
    torch.testing.assert_close(got, direct, rtol=1e-10, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(got, parameters, retain_graph=True),
        torch.autograd.grad(direct, parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


# MMD against the direct form


@pytest.mark.parametrize("n_samples", [None, 23])
@pytest.mark.parametrize("function", [mmd, mmd_per_dim])
def test_mmd_and_its_gradients(function, n_samples, small_blocks):
    z = (1.5 * torch.randn(17, 3) + 0.5).requires_grad_()
    prior = Gaussian(3, torch.tensor([0.5, 1.0, 2.0]), learned=True)
    torch.manual_seed(1)
    got = function(None, prior(), z, n_samples=n_samples)
    torch.manual_seed(1)
    z_p = prior().rsample((n_samples or 17,))
    if function is mmd:
        direct = direct_mmd(z, z_p, 2.0 * 3)
    else:
        direct = sum(direct_mmd(z[:, d : d + 1], z_p[:, d : d + 1], 2.0) for d in range(3))
    assert_same(got, direct, [z, prior.log_scale])


@pytest.mark.parametrize("function", [mmd, mmd_per_dim])
def test_mmd_is_unbiased(function):
    p_z = Gaussian(3)()
    values = [function(None, p_z, torch.randn(20, 3), n_samples=30) for _ in range(200)]
    assert within(values, 0.0) and min(values) < 0


def kernel_mean(loc, variance):
    """E k(a) for a ~ N(loc, variance), summed over the scales, by quadrature."""
    deviation = math.sqrt(variance)
    return sum(
        integrate.quad(
            lambda a, c=2 * s: c / (c + a * a) * stats.norm.pdf(a, loc, deviation),
            loc - 9 * deviation,
            loc + 9 * deviation,
            limit=200,
        )[0]
        for s in MMD_SCALES
    )


@pytest.mark.parametrize("function", [mmd, mmd_per_dim])
def test_mmd_of_a_shifted_normal(function):
    shift, scale = 0.7, 0.5  # q = N(.7, .5^2) against p = N(0, 1)
    expected = kernel_mean(0, 2 * scale**2) + kernel_mean(0, 2) - 2 * kernel_mean(shift, 1.25)
    p_z = Gaussian(1)()
    values = [function(None, p_z, shift + scale * torch.randn(50, 1)) for _ in range(200)]
    assert within(values, expected)
    assert expected > 20 * torch.stack(values).std() / math.sqrt(200)  # so that it could fail


@pytest.mark.parametrize("function", [mmd, mmd_per_dim])
def test_mmd_of_one_sample_is_zero(function):
    for n, m in ((1, None), (1, 5), (5, 1)):
        z = torch.randn(n, 2, requires_grad=True)
        value = function(None, Gaussian(2)(), z, n_samples=m)
        value.backward()
        assert value.item() == 0 and torch.equal(z.grad, torch.zeros(n, 2))


# Bias and estimators


@pytest.mark.parametrize(
    ("dim", "inclusive", "exclusive", "leave_one_out", "half_digit"),
    [(2, 0.04, 0.03, -0.04, 0.005), (10, 11, 6, -11, 0.5)],
)
def test_the_bias_of_mission_md(dim, inclusive, exclusive, leave_one_out, half_digit):
    """q(z) is exactly N(0, I), sigma = .3, B = 500: every D should read 0, and reads this."""
    p_z, values = Gaussian(dim)(), []
    for _ in range(40):
        q_z = normal(math.sqrt(1 - 0.09) * torch.randn(500, dim), torch.full((500, dim), 0.3))
        z = q_z.sample()
        values.append(
            torch.stack(
                [
                    inclusive_kl(q_z, p_z, z),
                    exclusive_kl(q_z, p_z, z),
                    exclusive_kl(q_z, p_z, z, estimator="leave_one_out"),
                ]
            )
        )
    assert within(values, torch.tensor([inclusive, exclusive, leave_one_out]), half_digit)


def test_where_posteriors_do_not_overlap_exclusive_kl_is_rate_minus_log_b():
    q_z = normal(1e3 * torch.arange(20.0).unsqueeze(1) * torch.ones(2), torch.ones(20, 2))
    z, p_z = q_z.sample(), Gaussian(2, 1e4)()
    rate = (q_z.log_prob(z) - p_z.log_prob(z)).mean()
    torch.testing.assert_close(exclusive_kl(q_z, p_z, z), rate - math.log(20))


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_total_correlation_of_a_correlated_normal(rho):
    """Posteriors of width .5 at N(0, S - .25 I) make up N(0, S), whose TC is -log(1 - rho^2)/2."""
    n, sigma = 800, 0.5
    cov = torch.tensor([[1.0, rho], [rho, 1.0]]) - sigma**2 * torch.eye(2)
    values = []
    for _ in range(10):
        loc = dist.MultivariateNormal(torch.zeros(2), cov).sample((n,))
        q_z = normal(loc, torch.full((n, 2), sigma))
        values.append(total_correlation(q_z, None, q_z.sample(), estimator="batch"))
    # the bias of "batch" is about (E q(z|x)^2 / q(z)^2 - 1) / 2n per density, .002 here
    assert within(values, -0.5 * math.log(1 - rho**2), slack=0.01)


@pytest.mark.parametrize("n", [7, 4, 1])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_weights_sum_to_one(estimator, n):
    own = divergences._own_weight(7, estimator, 100)
    w = divergences._log_weights(torch.zeros(n, 7), own).exp().expand(n, 7)
    torch.testing.assert_close(w, weights(7, estimator, 100)[:n])
    torch.testing.assert_close(w.sum(1), torch.ones(n))


def test_mss_is_unbiased_for_the_aggregate():
    """The mean over all batches that hold row i equals the mixture of all N posteriors: exactly."""
    n, batch, i = 6, 3, 2
    loc, scale = (t.detach() for t in posteriors(n, 2))
    z = torch.randn(1, 2)
    others = itertools.combinations([j for j in range(n) if j != i], batch - 1)
    estimates = []
    for js in others:
        q_z = normal(loc[[i, *js]], scale[[i, *js]])
        own = divergences._own_weight(batch, "mss", n)
        estimates.append(mean_log_mixture(q_z, z, own).exp())
    exact = pdf(z, loc, scale).prod(-1).mean()
    torch.testing.assert_close(torch.stack(estimates).mean(), exact)


def test_a_batch_of_one():
    (loc, scale), p_z = posteriors(1, 2), Gaussian(2)()
    z = normal(loc, scale).rsample()
    single = normal(loc, scale).log_prob(z) - p_z.log_prob(z)
    for options in ({}, {"estimator": "mss", "dataset_size": 10}):
        torch.testing.assert_close(exclusive_kl(normal(loc, scale), p_z, z, **options), single[0])
    assert total_correlation(normal(loc, scale), p_z, z, dataset_size=10).item() == pytest.approx(0)


# Gradients to the prior, against quadrature


def grid(dim):
    if dim == 1:
        axis = torch.linspace(-12, 12, 601)  # steps of .04; the narrowest Normal has .1
        return axis.unsqueeze(1), 0.04
    axis = torch.linspace(-4, 4, 41)  # steps of .2; the narrowest has .3
    return torch.cartesian_prod(axis, axis), 0.2**2


def expected_inclusive_kl(p_z, q_z, z):
    points, cell = grid(z.shape[1])
    log_p = p_z.log_prob(points)
    log_q = q_z.log_prob(points.unsqueeze(1)).logsumexp(1) - math.log(len(z))
    return cell * (log_p.exp() * (log_p - log_q)).sum()


def expected_mmd(p_z, q_z, z):
    """As a function of the prior only: the term in z alone is left out."""
    points, cell = grid(z.shape[1])
    p = cell * p_z.log_prob(points).exp()

    def k(a, b):
        square = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
        return sum(c / (c + square) for c in (2 * z.shape[1] * s for s in MMD_SCALES))

    return p @ k(points, points) @ p - 2 * (k(z, points) @ p).mean()


def skewed_mixture(dim):
    prior = Mixture(dim, 3, scale=0.5, learned=True)
    with torch.no_grad():
        prior.logits.copy_(torch.tensor([0.5, 0.0, -0.4]))
        prior.log_scales.add_(0.2 * torch.randn(3, dim))
        prior.locs.add_(0.2)
    return prior


PATHS = {
    "gaussian": lambda: Gaussian(1, 0.8, learned=True),
    "student-t": lambda: StudentT(1, df=9.0, learned=True),
    "laplace": lambda: Laplace(1, learned=True),
    "mixture-1d": lambda: skewed_mixture(1),
    "mixture-2d": lambda: skewed_mixture(2),
    "spike-slab": lambda: SpikeSlab(1, 0.6, 0.1, learned=True),
}


@pytest.mark.parametrize("name", list(PATHS))
@pytest.mark.parametrize(
    ("function", "expectation"), [(inclusive_kl, expected_inclusive_kl), (mmd, expected_mmd)]
)
def test_the_prior_gets_the_gradient_of_the_expectation(name, function, expectation):
    prior = PATHS[name]()
    names, parameters = zip(*prior.named_parameters(), strict=True)
    dim = prior().event_shape[0]
    q_z = normal(0.3 + 0.7 * torch.randn(8, dim), torch.full((8, dim), 0.8))
    z = q_z.sample()
    exact = torch.autograd.grad(expectation(prior(), q_z, z), parameters)
    draws = [
        torch.autograd.grad(function(q_z, prior(), z, n_samples=200), parameters)
        for _ in range(100)
    ]
    for parameter, want, got in zip(names, exact, zip(*draws, strict=True), strict=True):
        assert within(torch.stack(got), want, slack=3e-4), parameter  # Laplace's cusp: h^2 / 6
    assert max(g.abs().max() for g in exact) > 0.01


@pytest.mark.parametrize("function", [inclusive_kl, mmd, mmd_per_dim])
def test_a_flow_gets_the_gradient_of_its_path(function):
    """Under one seed D is a plain function of the flow's weights: against central differences."""
    flow, (loc, scale) = Flow(2, 2, 4), posteriors(9, 2)
    parameters = list(flow.parameters())
    with torch.no_grad():
        for p in parameters:
            p.add_(0.1 * torch.randn_like(p))  # no unit of the network sits at its kink
    direction, z = [torch.randn_like(p) for p in parameters], torch.randn(9, 2)

    def value(step):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(step * d)
        torch.manual_seed(1)
        return function(normal(loc, scale), flow(), z)

    gradient = torch.autograd.grad(value(0.0), parameters)
    slope = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True)).item()
    above, below = value(1e-6), value(-2e-6)
    assert slope == pytest.approx((above - below).item() / 2e-6, rel=1e-5)
    assert all(g.abs().sum() > 0 for g in gradient)


@pytest.mark.parametrize("name", ["gaussian", "mixture-2d", "student-t"])
def test_mmd_per_dim_of_one_dimension_is_mmd(name):
    prior = PATHS[name]()
    z = torch.randn(12, prior().event_shape[0])
    parts = []
    for function in (mmd, mmd_per_dim):
        torch.manual_seed(2)
        parts.append(function(None, prior(), z))
    assert (torch.isclose(*parts).item()) == (z.shape[1] == 1)


class NoPath(nn.Module):
    """A mixture with learned means and no rsample."""

    def __init__(self):
        super().__init__()
        self.locs = nn.Parameter(torch.randn(3, 2))

    def forward(self):
        components = dist.Normal(self.locs, torch.ones(3, 2)).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(3)), components)


@pytest.mark.parametrize("function", [inclusive_kl, mmd, mmd_per_dim])
def test_a_prior_without_a_path_is_left_alone(function):
    prior, (loc, scale) = NoPath(), posteriors(5, 2)
    assert not prior().has_rsample
    function(normal(loc, scale), prior(), normal(loc, scale).rsample()).backward()
    assert prior.locs.grad is None and loc.grad.abs().sum() > 0


# Errors and dtype


def test_errors():
    loc, scale = posteriors(3, 2)
    q_z, p_z, z = normal(loc, scale), Gaussian(2)(), torch.zeros(3, 2)
    for function in (exclusive_kl, total_correlation):
        with pytest.raises(ValueError, match="at least the batch's 3; got None"):
            function(q_z, p_z, z, estimator="mss")
        with pytest.raises(ValueError, match="mss: dataset_size .* at least the batch's 3; got 2"):
            function(q_z, p_z, z, estimator="mss", dataset_size=2)
        with pytest.raises(ValueError, match="'leave_one_out' or 'mss'; got 'mws'"):
            function(q_z, p_z, z, estimator="mws")
        with pytest.raises(ValueError, match="leave_one_out: .*at least 2 rows; got 1"):
            function(normal(loc[:1], scale[:1]), p_z, z[:1], estimator="leave_one_out")
    full = dist.MultivariateNormal(torch.zeros(3, 2), torch.eye(2).expand(3, 2, 2))
    with pytest.raises(TypeError, match="product over latents.*got MultivariateNormal"):
        total_correlation(full, p_z, z, estimator="batch")


def test_an_unknown_estimator_is_refused_at_a_batch_of_one_too():
    q_z, z = normal(*posteriors(1, 2)), torch.zeros(1, 2)
    with pytest.raises(ValueError, match="'leave_one_out' or 'mss'; got 'mws'"):
        exclusive_kl(q_z, Gaussian(2)(), z, estimator="mws")
    with pytest.raises(ValueError, match="at least the batch's 1; got None"):
        exclusive_kl(q_z, Gaussian(2)(), z, estimator="mss")


@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_single_precision_agrees_with_double(name):
    (loc, scale), z = posteriors(40, 3), torch.randn(40, 3)
    options = {"dataset_size": 100} if name == "total-correlation" else {}
    z_p = torch.randn(40, 3)
    double = DIVERGENCES[name](normal(loc, scale), FixedSamples(z_p), z, **options)
    narrow = normal(loc.float(), scale.float()), FixedSamples(z_p.float()), z.float()
    single = DIVERGENCES[name](*narrow, **options)
    assert single.shape == () and single.dtype == torch.float32
    assert single.item() == pytest.approx(double.item(), abs=2e-4)


class FixedSamples:
    """N(0, I) whose samples are given."""

    has_rsample = True

    def __init__(self, samples):
        self.samples = samples

    def rsample(self, shape):
        return self.samples

    def log_prob(self, z):
        return -0.5 * (z**2).sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)
