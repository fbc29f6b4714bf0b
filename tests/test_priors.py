"""Priors: SciPy's densities, quadrature, closed-form gradients, and what `check_prior` must catch."""

import copy
import math
import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from scipy import optimize, stats
from sklearn.decomposition import PCA
from torch import nn

from pyro_bvae import DecompositionELBO, fit
from pyro_bvae.datasets import Data
from pyro_bvae.divergences import inclusive_kl
from pyro_bvae.evaluation import evaluate
from pyro_bvae.likelihoods import Normal
from pyro_bvae.networks import mlp
from pyro_bvae.priors import (
    PRIORS,
    Cross,
    Flow,
    Gaussian,
    Laplace,
    Mixture,
    SpikeSlab,
    StudentT,
    VampPrior,
    check_prior,
)
from pyro_bvae.priors.normal_mixture import NormalMixture
from pyro_bvae.vae import VAE

Z = np.random.default_rng(0).normal(size=(7, 3)) * 1.5
PIXELS = np.random.default_rng(1).normal(size=(40, 5)) @ np.diag([3.0, 2.0, 1.5, 1.0, 0.5])
CASES = [
    (name, dim)
    for name in PRIORS
    for dim in (1, 2, 3)
    if (name, dim) not in (("flow", 1), ("cross", 1))
]


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(name, dim, **options):
    torch.manual_seed(0)
    if name == "pca":
        options["x"] = PIXELS
    prior = PRIORS[name](dim, **options)
    if name == "vamp":
        prior.bind(mlp((2,), dim)[0])
    return prior


# Every prior of the dict


@pytest.mark.parametrize(("name", "dim"), CASES)
def test_check_prior_on_every_prior(name, dim):
    closed = name in ("gaussian", "pca", "laplace")
    found = re.fullmatch(
        r"ok: integrates to (\d\.\d{3}), KL (.+)", check_prior(build(name, dim), dim)
    )
    assert found.group(2) == ("in closed form" if closed else "by Monte Carlo")
    assert abs(float(found.group(1)) - 1) < 0.03


@pytest.mark.parametrize(
    "name", ["gaussian", "pca", "student-t", "laplace", "mixture", "spike-slab"]
)
def test_learned_priors_pass_and_every_parameter_moves(name):
    prior = build(name, 2, learned=True)
    assert check_prior(prior, 2).startswith("ok: integrates")
    assert not list(build(name, 2).parameters())
    assert {k for k, _ in prior.named_parameters()} == set(build(name, 2).state_dict())
    z = torch.randn(50, 2) * torch.tensor([0.3, 2.0]) + 0.2
    assert_all_move(prior, list(prior.parameters()), lambda: -prior().log_prob(z).mean())


def assert_all_move(prior, parameters, loss):
    before = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.Adam(parameters, lr=0.1)
    for _ in range(2):  # a flow's last layer opens the way for the gradient to the others
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    names = [k for k, _ in prior.named_parameters()]
    still = [k for k, p, q in zip(names, parameters, before, strict=True) if torch.equal(p, q)]
    assert not still


@pytest.mark.parametrize("name", list(PRIORS))
def test_double_and_state_dict(name):
    prior = build(name, 2).double()
    if name == "vamp":
        prior.bind(mlp((2,), 2)[0].double())
    z = prior().sample((5,))
    assert z.dtype == torch.float64 and prior().rsample((5,)).dtype == torch.float64
    assert prior().log_prob(z).dtype == torch.float64
    torch.manual_seed(1)
    options = {"x": PIXELS[::-1] ** 2} if name == "pca" else {}
    other = PRIORS[name](2, **options).double()  # other pixels, weights and pseudo-inputs
    if name == "vamp":
        other.bind(prior._encoder[0])
    other.load_state_dict(prior.state_dict())
    assert torch.equal(other().log_prob(z), prior().log_prob(z))


@pytest.mark.parametrize("name", [n for n in PRIORS if n not in ("pca", "flow")])
@pytest.mark.parametrize("dim", [0, -1, 2.0, True, "2"])
def test_latent_dim_must_be_an_integer(name, dim):
    with pytest.raises(ValueError, match="latent_dim must be an integer >= 1; got"):
        PRIORS[name](dim)


# Densities


def mixture_density(weights, locs, scales):
    return lambda z: np.log(
        sum(
            w * stats.norm.pdf(z, m, s).prod(1)
            for w, m, s in zip(weights, locs, scales, strict=True)
        )
    )


LOCS = np.array([[0.0, 1.0, -1.0], [2.0, -0.5, 0.5]])
DENSITIES = {
    "gaussian": (lambda: Gaussian(3), lambda z: stats.norm.logpdf(z).sum(1)),
    "anisotropic": (
        lambda: Gaussian(3, torch.tensor([0.5, 1.0, 2.0])),
        lambda z: stats.norm.logpdf(z, 0, [0.5, 1, 2]).sum(1),
    ),
    "student-t": (
        lambda: StudentT(3, df=4.0, scale=0.7),
        lambda z: stats.t.logpdf(z, 4, 0, 0.7).sum(1),
    ),
    "laplace": (lambda: Laplace(3, 0.4), lambda z: stats.laplace.logpdf(z, 0, 0.4).sum(1)),
    "mixture": (
        lambda: Mixture(3, scale=0.6, locs=torch.tensor(LOCS)),
        mixture_density([0.5, 0.5], LOCS, [0.6, 0.6]),
    ),
    "mixture-1d": (
        lambda: Mixture(1, 3, scale=0.5),
        mixture_density([1 / 3] * 3, [[-1], [0], [1]], [0.5] * 3),
    ),
    "spike-slab": (
        lambda: SpikeSlab(3, 0.7, 0.05, 1.2),
        lambda z: np.log(0.7 * stats.norm.pdf(z, 0, 0.05) + 0.3 * stats.norm.pdf(z, 0, 1.2)).sum(1),
    ),
    "cross": (
        lambda: Cross(3, 0.1, 1.5),
        lambda z: np.log(
            sum(
                np.prod(stats.norm.pdf(z, 0, np.where(np.arange(3) == d, 1.5, 0.1)), 1)
                for d in range(3)
            )
            / 3
        ),
    ),
    "no spike": (lambda: SpikeSlab(3, 0.0), lambda z: stats.norm.logpdf(z).sum(1)),
    "only spike": (lambda: SpikeSlab(3, 1.0), lambda z: stats.norm.logpdf(z, 0, 0.05).sum(1)),
    "one component": (
        lambda: Mixture(3, 1, scale=1.0, locs=torch.zeros(1, 3)),
        lambda z: stats.norm.logpdf(z).sum(1),
    ),
}


@pytest.mark.parametrize("name", list(DENSITIES))
def test_log_prob_agrees_with_scipy(name, float64):
    make, oracle = DENSITIES[name]
    prior = make()
    z = np.concatenate([Z, Z / 20])[:, : prior().event_shape[0]]
    np.testing.assert_allclose(prior().log_prob(torch.tensor(z)).numpy(), oracle(z), rtol=1e-10)


@pytest.mark.parametrize(("weight", "scale"), [(0.0, 1.0), (1.0, 0.05)])
def test_spike_slab_at_its_ends_samples_one_normal(weight, scale):
    torch.manual_seed(0)
    z = SpikeSlab(2, weight)().rsample((2000,))
    assert stats.kstest(z.flatten().numpy() / scale, "norm").pvalue > 0.001


def test_the_default_mixture_is_the_spirals_prior():
    prior = Mixture(2)
    assert sorted(prior.locs.round(decimals=6).tolist()) == [[-1, 0], [0, -1], [0, 1], [1, 0]]
    torch.testing.assert_close(prior().coord_scale ** 2, torch.full((4, 2), 0.03))
    assert prior().probs.tolist() == [0.25] * 4 and prior.n_components == 4
    high = Mixture(5).locs
    assert torch.equal(high[0], -high[1]) and torch.equal(high[2], -high[3])
    assert high.norm(dim=1).tolist() == [1.0] * 4 and high[0] @ high[2] == 0


def test_assign_is_the_most_responsible_component(float64):
    prior = Mixture(2, locs=torch.tensor([[0.0, 0.0], [1.0, 1.0]]), learned=True)
    with torch.no_grad():
        prior.logits.copy_(torch.tensor([0.0, 5.0]))
    # equal scales: the border lies where |z|^2 - |z - 1|^2 = 2 * .03 * 5 * sign, at z1 + z2 = .85
    z = torch.tensor([[0.42, 0.42], [0.43, 0.43], [-3.0, 0.0], [3.0, 0.0]])
    assert prior.assign(z).tolist() == [0, 1, 0, 1]


# Gradients of samples


def characteristic(prior, a):
    """E cos(a . z) as a differentiable function of the prior's parameters, or None."""
    scale = prior.log_scale.exp() if hasattr(prior, "log_scale") else None
    if isinstance(prior, Gaussian):
        return (-((a * scale) ** 2) / 2).exp().prod()
    if isinstance(prior, Laplace):
        return (1 / (1 + (a * scale) ** 2)).prod()
    if isinstance(prior, SpikeSlab):
        w = torch.sigmoid(prior.weight_logit)
        parts = (-((a.unsqueeze(1) * prior.log_scales.exp()) ** 2) / 2).exp()
        return (w * parts[:, 0] + (1 - w) * parts[:, 1]).prod()
    damping = (-((a * prior.log_scales.exp()) ** 2) / 2).sum(1).exp()
    return (prior.logits.softmax(0) * damping * torch.cos(prior.locs @ a)).sum()


def second_moment(prior):
    """E |z|^2, likewise."""
    scale = prior.log_scale.exp() if hasattr(prior, "log_scale") else None
    if isinstance(prior, Gaussian):
        return (scale**2).sum()
    if isinstance(prior, Laplace):
        return (2 * scale**2).sum()
    if isinstance(prior, StudentT):
        df = prior.log_df.exp()
        return (scale**2 * df / (df - 2)).sum()
    if isinstance(prior, SpikeSlab):
        w = torch.sigmoid(prior.weight_logit)
        variances = (2 * prior.log_scales).exp()
        return (w * variances[:, 0] + (1 - w) * variances[:, 1]).sum()
    squares = (prior.locs**2 + (2 * prior.log_scales).exp()).sum(1)
    return (prior.logits.softmax(0) * squares).sum()


def uneven_mixture(dim, k):
    """Different weights, means and scales, overlapping."""
    prior = Mixture(dim, locs=torch.randn(k, dim), scale=0.5, learned=True)
    with torch.no_grad():
        prior.logits.normal_()
        prior.log_scales.add_(0.3 * torch.randn(k, dim))
    return prior


LEARNED = {
    "gaussian": lambda: Gaussian(3, torch.tensor([0.5, 1.0, 2.0]), learned=True),
    "student-t": lambda: StudentT(2, df=9.0, scale=0.8, learned=True),
    "laplace": lambda: Laplace(2, learned=True),
    "spike-slab": lambda: SpikeSlab(3, 0.6, 0.2, learned=True),
    "mixture-1d": lambda: uneven_mixture(1, 3),
    "mixture-2d": lambda: uneven_mixture(2, 3),
    "mixture-4d": lambda: uneven_mixture(4, 5),
}


@pytest.mark.parametrize("name", list(LEARNED))
def test_rsample_has_the_gradient_of_the_expectation(name, float64):
    torch.manual_seed(0)
    prior = LEARNED[name]()
    names, parameters = zip(*prior.named_parameters(), strict=True)
    a = torch.linspace(0.6, 1.4, prior().event_shape[0])
    tests = [(lambda z: (z**2).sum(1), second_moment)]
    if name != "student-t":  # its characteristic function is a Bessel function
        tests.append((lambda z: torch.cos(z @ a), lambda p: characteristic(p, a)))
    chunks = 100
    for f, closed_form in tests:
        expected = torch.autograd.grad(closed_form(prior), parameters, allow_unused=True)
        drawn = [
            torch.autograd.grad(f(prior().rsample((500,))).mean(), parameters)
            for _ in range(chunks)
        ]
        for parameter, want, got in zip(names, expected, zip(*drawn, strict=True), strict=True):
            got = torch.stack(got)
            error = got.std(0) / math.sqrt(chunks)
            assert ((got.mean(0) - want).abs() <= 4 * error + 1e-12).all(), parameter


def test_normal_mixture_moves_samples_along_their_quantile(float64):
    """dz/dtheta at a fixed u = F(z; theta), against central differences of the quantile function."""
    logits = torch.tensor([0.3, -0.5, 0.1])
    locs, scales = torch.tensor([-1.0, 0.2, 1.5]), torch.tensor([0.3, 0.05, 0.8])
    theta = torch.cat([logits, locs, scales]).requires_grad_()

    def distribution(t):
        return NormalMixture(t[:3].log_softmax(0), t[3:6], t[6:])

    def quantile(t, u):
        p = distribution(t)
        return optimize.brentq(lambda z: p.cdf(torch.tensor(z)).item() - u, -9, 9, xtol=1e-14)

    torch.manual_seed(0)
    step = 1e-5
    for _ in range(5):
        z = distribution(theta).rsample()
        (gradient,) = torch.autograd.grad(z, theta)
        u = distribution(theta).cdf(z.detach()).item()
        shifts = step * torch.eye(9)
        fixed = theta.detach()
        differences = [
            (quantile(fixed + s, u) - quantile(fixed - s, u)) / (2 * step) for s in shifts
        ]
        np.testing.assert_allclose(gradient.numpy(), differences, rtol=1e-6, atol=1e-7)


def test_normal_mixture_moments_and_expand(float64):
    w, m, s = torch.tensor([0.3, 0.7]), torch.tensor([-1.0, 2.0]), torch.tensor([0.5, 1.5])
    p = NormalMixture(w.log(), m, s)
    assert p.mean.item() == pytest.approx(1.1)
    assert p.variance.item() == pytest.approx(0.3 * 1.25 + 0.7 * 6.25 - 1.1**2)
    wide = p.expand((4, 2))
    assert wide.batch_shape == (4, 2) and wide.rsample((5,)).shape == (5, 4, 2)
    torch.manual_seed(0)
    z = p.sample((4000,))
    assert stats.kstest(z.numpy(), lambda v: p.cdf(torch.tensor(v)).numpy()).pvalue > 0.001


def test_a_mixture_whose_means_coincide_has_finite_gradients():
    torch.manual_seed(0)
    prior = Mixture(2, locs=torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]), learned=True)
    prior().rsample((50,)).sum().backward()
    for name, parameter in prior.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(("dim", "scale"), [(50, 0.01), (50, 20.0), (100, 0.17)])
def test_a_mixture_has_finite_gradients_in_many_dimensions(dim, scale):
    """Densities of 10^(+-70) and more, in single precision."""
    torch.manual_seed(0)
    prior = Mixture(dim, scale=scale, learned=True)
    (prior().rsample((50,)) ** 2).sum().backward()
    for name, parameter in prior.named_parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, name


def test_a_mixture_draws_what_pyros_draws_and_expands(float64):
    torch.manual_seed(0)
    prior = uneven_mixture(2, 3)
    pyros = dist.MixtureOfDiagNormals(prior.locs, prior.log_scales.exp(), prior.logits)
    draws = []
    for p in (prior(), pyros, prior().expand((7,)), pyros.expand((7,))):
        torch.manual_seed(1)
        draws.append(p.rsample((5,)))
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[2], draws[3])
    assert draws[2].shape == (5, 7, 2)
    paths = [torch.autograd.grad((z**2).sum(), [prior.locs, prior.log_scales]) for z in draws[:2]]
    torch.testing.assert_close(*paths)  # Pyro is right about these two


# Gaussian.from_pca


def test_pca_variances_follow_the_eigenvalues(float64):
    variances = Gaussian.from_pca(3, PIXELS)().variance
    top = PCA(3).fit(PIXELS).explained_variance_
    np.testing.assert_allclose(variances.numpy(), 3 * top / top.sum(), rtol=1e-10)
    assert (variances.diff() < 0).all() and variances.mean().item() == pytest.approx(1)
    images = PIXELS.reshape(40, 1, 5, 1)
    assert torch.equal(Gaussian.from_pca(3, images)().variance, variances)


def test_pca_of_a_known_covariance(float64):
    corners = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], float)
    x = corners * np.sqrt([1.0, 6.0, 2.0]) + 5  # uncorrelated, variances in ratio 1 : 6 : 2
    torch.testing.assert_close(
        Gaussian.from_pca(3, x)().variance, torch.tensor([2.0, 2 / 3, 1 / 3])
    )


def test_pca_refuses_more_dimensions_than_the_data_have():
    flat = PIXELS[:, :2] @ np.ones((2, 5)) + PIXELS[:, :1] * np.arange(5)  # rank 2 in 5 pixels
    assert Gaussian.from_pca(2, flat)().event_shape == (2,)
    with pytest.raises(ValueError, match="at most the rank of the data's covariance, 2; got 3"):
        Gaussian.from_pca(3, flat)
    with pytest.raises(ValueError, match="covariance, 3; got 4"):
        Gaussian.from_pca(4, PIXELS[:4])
    with pytest.raises(ValueError, match="covariance, 0; got 1"):
        Gaussian.from_pca(1, np.ones((6, 3)))
    with pytest.raises(TypeError, match="x must be an array in memory"):
        Gaussian.from_pca(2, PIXELS.tolist())


# VampPrior


class Normed(nn.Module):
    """An encoder with BatchNorm."""

    def __init__(self, dim=2):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.loc, self.log_scale = nn.Linear(8, dim), nn.Linear(8, dim)

    def forward(self, x):
        h = self.body(x)
        return self.loc(h), self.log_scale(h).exp()


def vamp_vae(**options):
    torch.manual_seed(0)
    return VAE(Normed(), mlp((2,), 2)[1], VampPrior(2, 6, **options), Normal(0.1))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_vamp_is_the_mixture_of_the_encoders_posteriors(dim, float64):
    torch.manual_seed(0)
    prior, encoder = VampPrior(dim, 6), Normed(dim)
    prior.bind(encoder)
    loc, scale = (t.detach().numpy() for t in encoder.eval()(prior.pseudo_inputs()))
    oracle = mixture_density([1 / 6] * 6, loc, scale)
    got = prior().log_prob(torch.tensor(Z[:, :dim])).detach().numpy()
    np.testing.assert_allclose(got, oracle(Z[:, :dim]), rtol=1e-10)
    best = [
        np.argmax([stats.norm.logpdf(z, m, s).sum() for m, s in zip(loc, scale, strict=True)])
        for z in Z[:, :dim]
    ]
    assert prior.assign(torch.tensor(Z[:, :dim])).tolist() == best


def test_vamp_uses_the_encoder_and_does_not_own_it():
    vae = vamp_vae()
    assert set(vae.prior.state_dict()) == {"raw", "low", "high"}
    assert [name for name, _ in vae.prior.named_parameters()] == ["raw"]
    assert not [name for name in vae.state_dict() if "prior._encoder" in name]
    z = torch.randn(20, 2)
    assert_all_move(vae.prior, [vae.prior.raw], lambda: -vae.p_z().log_prob(z).mean())
    vae.p_z().log_prob(z).mean().backward()
    assert vae.encoder.loc.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("training", [True, False])
def test_vamp_leaves_batch_norm_alone(training):
    vae = vamp_vae().train(training)
    norm = vae.encoder.body[1]
    before = [b.clone() for b in norm.buffers()]
    vae.p_z().rsample((5,))
    vae.prior.assign(torch.zeros(3, 2))
    assert all(torch.equal(a, b) for a, b in zip(before, norm.buffers(), strict=True))
    assert vae.encoder.training == norm.training == training


def test_vamp_pseudo_inputs_start_at_data_and_stay_in_range():
    torch.manual_seed(0)
    x = np.random.default_rng(0).uniform(-3, 5, size=(30, 2)).astype(np.float32)
    prior = VampPrior(2, 6, (2,), x)
    nearest = torch.cdist(prior.pseudo_inputs(), torch.tensor(x), p=math.inf).min(1).values
    assert (nearest < 0.01 * 8 + 1e-5).all()  # 1 % of the range, where a row lies on its border
    for value in (-1e4, 1e4):
        with torch.no_grad():
            prior.raw.fill_(value)
        inputs = prior.pseudo_inputs()
        assert (inputs >= x.min() - 1e-6).all() and (inputs <= x.max() + 1e-6).all()
    grey = VampPrior(2, 6, (4, 4), np.full((3, 4, 4), 255, np.uint8)).pseudo_inputs()
    assert grey.shape == (6, 4, 4) and ((grey > 0.98) & (grey <= 1)).all()
    assert VampPrior(2, 3, (1, 8, 8)).pseudo_inputs().shape == (3, 1, 8, 8)


@pytest.mark.parametrize("n_components", [3, 20, 50])
def test_vamp_pseudo_inputs_start_at_each_row_once_before_any_comes_twice(n_components):
    x = np.linspace(0, 1, 20, dtype=np.float32)[:, None]  # equal starts would never part
    inputs = VampPrior(2, n_components, (1,), x).pseudo_inputs().detach()
    rows = torch.cdist(inputs, torch.tensor(x)).argmin(1)
    times = rows.bincount(minlength=20)
    assert times.sum() == n_components
    assert times.min() == n_components // 20 and times.max() == -(-n_components // 20)


def test_vamp_pseudo_inputs_of_constant_data_are_that_constant():
    inputs = VampPrior(2, 3, (2,), np.full((9, 2), 0.7, np.float32)).pseudo_inputs()
    torch.testing.assert_close(inputs, torch.full((3, 2), 0.7))


def test_a_copied_vae_keeps_its_own_encoder_bound():
    vae, z = vamp_vae(), torch.randn(4, 2)
    twin = copy.deepcopy(vae)
    before = vae.p_z().log_prob(z)
    with torch.no_grad():
        twin.encoder.loc.bias.add_(1.0)
    assert torch.equal(vae.p_z().log_prob(z), before)
    assert not torch.allclose(twin.p_z().log_prob(z), before)


def test_vamp_errors():
    for use in (lambda p: p(), lambda p: p.assign(torch.zeros(1, 2)), lambda p: check_prior(p, 2)):
        with pytest.raises(ValueError, match="VampPrior: an encoder must be bound before use"):
            use(VampPrior(2))
    with pytest.raises(ValueError, match="n_components must be an integer >= 1; got 0"):
        VampPrior(2, 0)


# Flow


def test_flow_integrates_to_one(float64):
    torch.manual_seed(0)
    flow = Flow(2, 3, 16)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.05 * torch.randn_like(p))
    axis = torch.linspace(-15, 15, 601)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        p = flow().log_prob(z).exp()
    assert p.sum().item() * 0.05**2 == pytest.approx(1, abs=1e-3)
    assert ((p / p.sum()) @ z).norm() > 0.05  # and it is not the base distribution


def test_flow_forgets_what_it_computed_with_old_weights(float64):
    torch.manual_seed(0)
    flow = Flow(2, 2, 8)
    z = flow().rsample((6,)).detach()
    old_sample = flow().sample((6,))
    before = [flow().log_prob(v).detach() for v in (z, old_sample)]
    assert_all_move(flow, list(flow.parameters()), lambda: -flow().log_prob(z).mean())
    for v, stale in zip((z, old_sample), before, strict=True):
        assert not torch.allclose(flow().log_prob(v), stale)
        torch.testing.assert_close(flow().log_prob(v), flow().log_prob(v.clone()), rtol=0, atol=0)


# Errors of construction


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(2, -1.0), "Gaussian: scale must be finite and > 0; got"),
        (lambda: Gaussian(2, torch.tensor([1.0, math.nan])), r"scale must be finite.*nan\]"),
        (lambda: StudentT(2, df=0), "StudentT: df must be a finite number > 0; got 0"),
        (lambda: StudentT(2, scale=math.inf), "scale must be a finite number > 0; got inf"),
        (lambda: Laplace(2, "wide"), "Laplace: scale must be a finite number > 0; got 'wide'"),
        (lambda: SpikeSlab(2, 1.2), r"spike_weight must lie in \[0, 1\]; got 1.2"),
        (lambda: SpikeSlab(2, math.nan), r"spike_weight must lie in \[0, 1\]; got nan"),
        (lambda: SpikeSlab(2, 1.0, learned=True), "strictly between 0 and 1 to be learned; got 1"),
        (lambda: SpikeSlab(2, spike_scale=0), "spike_scale must be a finite number > 0; got 0"),
        (lambda: SpikeSlab(2, slab_scale=-1), "slab_scale must be a finite number > 0; got -1"),
        (lambda: Mixture(3, 7), r"at most 2 \* latent_dim = 6 when locs are not given; got 7"),
        (lambda: Mixture(3, locs=torch.zeros(4, 2)), r"shape \(n_components, 3\); got \(4, 2\)"),
        (lambda: Mixture(2, 0), "Mixture: n_components must be an integer >= 1; got 0"),
        (lambda: Mixture(2, locs=torch.zeros(0, 2)), "n_components must be an integer >= 1; got 0"),
        (lambda: Mixture(2, scale=0.0), "Mixture: scale must be a finite number > 0; got 0.0"),
        (lambda: Flow(1), "Flow: latent_dim must be at least 2.*got 1"),
        (lambda: Flow(2, 0), "Flow: n_transforms must be an integer >= 1; got 0"),
    ],
)
def test_construction_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# check_prior's own errors


class Broken(nn.Module):
    """A prior whose forward() calls ``make``."""

    def __init__(self, make, parameter=None):
        super().__init__()
        self.make = make
        if parameter is not None:
            self.theta = nn.Parameter(parameter)

    def forward(self):
        return self.make(self) if hasattr(self, "theta") else self.make()


def normal(dim=2):
    return dist.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1)


class Unnormalised(dist.Normal):
    def log_prob(self, value):
        return super().log_prob(value) + 0.05


class WrongSampler(dist.Normal):
    def rsample(self, sample_shape=()):
        return super().rsample(sample_shape) * 1.1

    def sample(self, sample_shape=()):
        return super().sample(sample_shape) * 1.1


class NotFinite(dist.Normal):
    def sample(self, sample_shape=()):
        return super().sample(sample_shape) / 0


def fixed_in_init():
    prior = Broken(None, torch.zeros(2))
    p_z = dist.Normal(prior.theta.detach(), torch.ones(2)).to_event(1)
    prior.make = lambda self: p_z
    return prior


CHECKS = {
    "not a module": (lambda: normal(), TypeError, "must be an nn.Module.*got a Independent"),
    "a distribution that Pyro lacks": (
        lambda: Broken(lambda: type("Strange", (torch.distributions.Normal,), {})(0.0, 1.0)),
        TypeError,
        r"from pyro.distributions, or one of torch.*got .*Strange",
    ),
    "no distribution": (lambda: Broken(lambda: torch.zeros(2)), TypeError, "got torch.Tensor"),
    "event shape": (
        lambda: Broken(lambda: normal(3)),
        ValueError,
        r"event_shape \(2,\); got \(\) and \(3,\)",
    ),
    "batch shape": (
        lambda: Broken(lambda: dist.Normal(torch.zeros(2), torch.ones(2))),
        ValueError,
        r"batch_shape \(\).*got \(2,\) and \(\)\. Use .to_event\(1\)",
    ),
    "density": (
        lambda: Broken(lambda: Unnormalised(torch.zeros(2), torch.ones(2)).to_event(1)),
        ValueError,
        r"exp\(log_prob\) must integrate to 1; got 1\.1\d\d",  # exp(2 * .05) = 1.105
    ),
    "sampler": (
        lambda: Broken(lambda: WrongSampler(torch.zeros(2), torch.ones(2)).to_event(1)),
        ValueError,
        r"samples must follow exp\(log_prob\); the mean of tanh\(z\^2\)",
    ),
    "samples not finite": (
        lambda: Broken(lambda: NotFinite(torch.zeros(2), torch.ones(2)).to_event(1)),
        ValueError,
        r"samples must be finite and of shape \(n, 2\).*100000 not finite",
    ),
    "a parameter used in __init__": (
        fixed_in_init,
        ValueError,
        r"every parameter; theta got no gradient.*inside forward\(\), not in __init__",
    ),
    "one of two parameters unused": (
        lambda: UsesOne(),
        ValueError,
        "must depend on every parameter; unused got no gradient",
    ),
    "a NaN parameter": (
        lambda: Broken(
            lambda self: dist.Normal(self.theta, torch.ones(2), validate_args=False).to_event(1),
            torch.tensor([0.0, math.nan]),
        ),
        ValueError,
        "Broken: parameters must not be NaN; got NaN in theta",
    ),
}


class UsesOne(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

    def forward(self):
        return dist.Normal(self.used, torch.ones(2)).to_event(1)


@pytest.mark.parametrize("name", list(CHECKS))
def test_check_prior_errors(name):
    make, kind, message = CHECKS[name]
    with pytest.raises(kind, match=message):
        check_prior(make(), 2)


@pytest.mark.parametrize("name", ["gaussian", "mixture", "spike-slab", "student-t"])
def test_check_prior_names_the_prior_with_a_nan_parameter(name):
    prior = build(name, 2, learned=True)
    with torch.no_grad():
        next(prior.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match=f"{type(prior).__name__}: parameters must not be NaN"):
        check_prior(prior, 2)


def test_check_prior_says_what_it_could_not_check():
    def no_path(self):
        components = dist.Normal(self.theta, torch.ones(2, 2)).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(2)), components)

    line = check_prior(Broken(no_path, torch.tensor([[0.0, 1.0], [1.0, 0.0]])), 2)
    assert line.endswith("KL by Monte Carlo, no rsample: D gives it no gradient")
    assert "integral not checkable in 9 dimensions (try fewer)" in check_prior(Gaussian(9), 9)


# What lies on a part of the line, on a circle or on integers, and what forward() samples


def of(name, *arguments):
    return Broken(lambda: getattr(dist, name)(*arguments).to_event(1))


TWO = torch.tensor([2.0, 3.0])
SUPPORTS = {
    "Gamma": of("Gamma", TWO, TWO),
    "LogNormal": of("LogNormal", TWO - 2, TWO / 4),
    "Beta": of("Beta", TWO, TWO),
    "a steep Beta": of("Beta", torch.tensor([0.5]), torch.tensor([0.5])),
    "HalfNormal": of("HalfNormal", TWO),
    "Uniform": of("Uniform", -TWO, TWO),
    "a wide Uniform": of("Uniform", -50 * TWO, 50 * TWO),
    "Exponential": of("Exponential", TWO),
    "Pareto": of("Pareto", TWO, TWO),
    "InverseGamma": of("InverseGamma", TWO + 1, TWO),
    "Kumaraswamy": of("Kumaraswamy", TWO, TWO),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_check_prior_integrates_over_the_support(name, monkeypatch):
    monkeypatch.setattr("pyro_bvae.priors.check._N", 20_000)
    prior = SUPPORTS[name]
    line = check_prior(prior, prior().event_shape[0])
    found = re.fullmatch(r"ok: integrates to (\S+), the posterior must lie in its support", line)
    assert float(found.group(1)) == pytest.approx(1, abs=0.02)


class TooHigh(dist.Beta):
    def log_prob(self, value):
        return super().log_prob(value) + 0.05


def test_check_prior_finds_a_bounded_density_that_does_not_integrate_to_one():
    prior = Broken(lambda: TooHigh(TWO, TWO).to_event(1))
    with pytest.raises(ValueError, match=r"must integrate to 1; got 1\.1\d\d"):
        check_prior(prior, 2)


@pytest.mark.parametrize("name", ["Dirichlet", "RelaxedOneHotCategorical"])
def test_check_prior_says_that_a_simplex_has_no_volume(name):
    make = {
        "Dirichlet": lambda: dist.Dirichlet(TWO),
        "RelaxedOneHotCategorical": lambda: dist.RelaxedOneHotCategorical(torch.tensor(0.5), TWO),
    }[name]
    line = "ok: integral not checkable on a support without volume, the posterior must lie in its support"
    assert check_prior(Broken(make), 2) == line


CIRCLES = {
    "VonMises": lambda: dist.VonMises(torch.zeros(2), TWO).to_event(1),
    "ProjectedNormal": lambda: dist.ProjectedNormal(TWO),
}


@pytest.mark.parametrize("name", CIRCLES)
def test_a_circle_is_refused_by_the_check_and_by_training_in_one_sentence(name):
    prior = Broken(CIRCLES[name])
    vae = VAE(*mlp((2,), 2), prior, Normal())
    x = torch.zeros(4, 2)
    said = []
    for call in (
        lambda: check_prior(prior, 2),
        lambda: vae.check(x),
        lambda: DecompositionELBO().loss(vae.model, vae.guide, x),
        lambda: evaluate(vae, Data(x.numpy())),
    ):
        with pyro.validation_enabled(False), pytest.raises(ValueError) as caught:
            call()
        said.append(str(caught.value))
    assert len(set(said)) == 1 and said[0].endswith(
        f"both on a circle or sphere; got Normal and {name}. Change the prior or the posterior."
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: dist.Poisson(TWO).to_event(1),
        lambda: dist.OneHotCategorical(TWO),
        lambda: dist.Bernoulli(TWO / 4).to_event(1),
    ],
    ids=["poisson", "one-hot", "bernoulli"],
)
def test_integers_are_no_density(make):
    prior = Broken(make)
    for call in (
        lambda: check_prior(prior, 2),
        lambda: VAE(*mlp((2,), 2), prior, Normal()).check(torch.zeros(4, 2)),
    ):
        with pytest.raises(ValueError, match="Broken: a prior must have a density; got .*integers"):
            call()


class Hierarchical(nn.Module):
    """A prior whose mean is a sample site."""

    def forward(self):
        loc = pyro.sample("level", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        return dist.Normal(loc, torch.ones(2)).to_event(1)


class Bayesian(PyroModule):
    def __init__(self):
        super().__init__()
        self.level = PyroSample(dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def forward(self):
        return dist.Normal(self.level, torch.ones(2)).to_event(1)


@pytest.mark.parametrize("kind", [Hierarchical, Bayesian])
def test_sites_in_forward_are_refused_by_the_check_and_by_training_in_one_sentence(kind):
    prior, x = kind(), torch.zeros(8, 2)
    vae = VAE(*mlp((2,), 2), prior, Normal())
    said = []
    for call in (
        lambda: check_prior(prior, 2),
        lambda: vae.check(x),
        lambda: fit(vae, DecompositionELBO(), Data(x.numpy()), steps=1),
        lambda: evaluate(vae, Data(x.numpy())),
        lambda: vae.sample(3),
        lambda: DecompositionELBO(1.0, inclusive_kl, prior=prior).loss(plain_model, vae.guide, x),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        said.append(str(caught.value))
    assert set(said) == {
        f"{kind.__name__}: forward() must not call pyro.sample, since no guide samples its sites; got site "
        "'level'. Return a distribution that holds what is random."
    }


def plain_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def test_a_deterministic_site_in_forward_is_no_sample():
    def make():
        return dist.Normal(pyro.deterministic("loc", torch.zeros(2)), 1.0).to_event(1)

    assert check_prior(Broken(make), 2).startswith("ok: integrates to")


def test_check_prior_leaves_random_numbers_and_gradients_alone():
    prior = Gaussian(2, learned=True)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    check_prior(prior, 2)
    assert torch.equal(torch.rand(4), expected) and prior.log_scale.grad is None


# Odd arguments


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: Gaussian(2, 1e-30),
            "Gaussian: scale must be finite and > 0; got .*smallest is 1e-06",
        ),
        (
            lambda: Gaussian(2, 10**400),
            "Gaussian: scale must be numbers in rows of equal length; got 10",
        ),
        (
            lambda: Gaussian(2, "wide"),
            "Gaussian: scale must be numbers in rows of equal length; got 'w",
        ),
        (
            lambda: Gaussian(2, [1.0, 1.0, 1.0]),
            r"Gaussian: scale must be one number, or 2; got shape",
        ),
        (
            lambda: Gaussian.from_pca(0, Z),
            "Gaussian.from_pca: latent_dim must be an integer >= 1; got 0",
        ),
        (
            lambda: Gaussian.from_pca(1, Z * math.nan),
            "Gaussian.from_pca: x must be finite; got NaN",
        ),
        (lambda: Laplace(2, 1e-30), r"Laplace: scale must lie in \[1e-06, 1e\+06\]; got 1e-30"),
        (lambda: Laplace(2, 10**400), r"Laplace: scale must lie in .*; got 10+ \.\.\."),
        (lambda: Laplace(2, True), "Laplace: scale must be a finite number > 0; got True"),
        (lambda: Laplace(10**9), "Laplace: latent_dim must be at most 65536; got 1000000000"),
        (lambda: StudentT(2, df=1e-6), r"StudentT: df must lie in \[0\.5, 1000\]; got 1e-06"),
        (
            lambda: StudentT(2, df=1e6),
            r"StudentT: df must lie in .* got 1000000\.0\. Use --prior gauss",
        ),
        (lambda: SpikeSlab(2, "most"), r"spike_weight must lie in \[0, 1\]; got 'most'"),
        (lambda: SpikeSlab(2, True), r"spike_weight must lie in \[0, 1\]; got True"),
        (
            lambda: Mixture(2, locs=[[0, 1], [2]]),
            "locs must be numbers in rows of equal length; got",
        ),
        (
            lambda: Mixture(2, locs=[[0, math.nan]]),
            r"locs must be finite and at most 1e\+06 in size",
        ),
        (lambda: Mixture(2, 10**9), "Mixture: n_components must be at most 10000; got 1000000000"),
        (lambda: VampPrior(2, True), "VampPrior: n_components must be an integer >= 1; got True"),
        (lambda: VampPrior(2, x_shape=(10**9,)), "VampPrior: x_shape must be the sizes of one x"),
        (
            lambda: VampPrior(2, x_shape=[]),
            r"VampPrior: x_shape must be the sizes of one x.*got \[\]",
        ),
        (lambda: VampPrior(2, x_shape="ab"), "VampPrior: x_shape must be the sizes of one x.*'ab'"),
        (lambda: Flow(2, hidden=0), "Flow: hidden must be an integer >= 1; got 0"),
        (
            lambda: Flow(2, hidden="x" * 999),
            r"Flow: hidden must be an integer >= 1; got 'x+ \.\.\.\.",
        ),
    ],
)
def test_arguments_that_no_float32_or_memory_holds(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("learned", ["False", "yes", 0, None])
def test_learned_is_no_text(learned):
    """`--prior-arg learned=False` is text, which Python takes for true."""
    for prior in (Gaussian, StudentT, Laplace, SpikeSlab, Mixture):
        with pytest.raises(
            TypeError, match=f"{prior.__name__}: learned must be true or false; got"
        ):
            prior(2, learned=learned)


def test_vamp_takes_arrays_only():
    with pytest.raises(TypeError, match="VampPrior: x must be an array in memory; got list"):
        VampPrior(2, x=[[0.0]])


@pytest.mark.parametrize("df", [0.5, 1000.0])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_extremes_that_are_let_through(df, scale):
    """In float32, against scipy in float64: samples are finite, their density is right to 0.001 nats."""
    z = StudentT(1, df, scale)().sample((10_000,))
    assert torch.isfinite(z).all()
    # beyond, log p itself is so large that float32 rounds it by more
    z = z[(z.abs() < 100 * scale).squeeze(1)]
    expected = stats.t(df, scale=scale).logpdf(z[:, 0].double().numpy())
    got = StudentT(1, df, scale)().log_prob(z).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-3)
