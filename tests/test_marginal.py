"""log p(x) by importance sampling, where the exact one is known: linear-Gaussian models."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_bvae import VAE
from pyro_bvae.evaluation import log_marginal, marginal
from pyro_bvae.likelihoods import Normal
from pyro_bvae.priors import Gaussian, Mixture

S = 0.5  # of the likelihood
GENERATOR = torch.Generator().manual_seed(3)
W = torch.randn(3, 2, dtype=torch.float64, generator=GENERATOR)
B = torch.randn(4, 3, dtype=torch.float64, generator=GENERATOR)  # an offset of x for each class
EYE = torch.eye(2, dtype=torch.float64)
COV = torch.linalg.inv(EYE + W.T @ W / S**2)


class Posterior(nn.Module):
    """The true posterior, or something of its kind that misses it; ``scale`` is a diagonal one."""

    def __init__(self, offset=0.0, widen=1.0, scale=None, n_classes=0):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.offset, self.widen, self.scale, self.n_classes = offset, widen, scale, n_classes

    def forward(self, x):
        x, hot = x[:, :3], x[:, 3:]
        b = hot @ B[: self.n_classes] if self.n_classes else B[0]
        loc = (x - b) @ W @ COV / S**2 + self.offset
        if self.scale is not None:
            return loc, torch.full_like(loc, self.scale)
        return dist.MultivariateNormal(loc, self.widen * COV)


def model(encoder, prior=None, beta=1.0, n_classes=0):
    decoder = nn.Linear(2 + n_classes, 3).double()
    weight = torch.cat([W, B[:n_classes].T], 1) if n_classes else W
    bias = torch.zeros(3) if n_classes else B[0]
    decoder.load_state_dict({"weight": weight, "bias": bias})
    prior = prior or Gaussian(2)
    vae = VAE(encoder, decoder, prior, Normal(S), beta, n_classes, encode_labels=n_classes > 0)
    return vae.double().eval()


def log_px(x, b=B[0]):
    cov = W @ W.T + S**2 * torch.eye(3, dtype=torch.float64)
    return MultivariateNormal(b, cov).log_prob(x)


def rows(n):
    z = torch.randn(n, 2, dtype=torch.float64)
    return z @ W.T + B[0] + S * torch.randn(n, 3, dtype=torch.float64)


def within(values, expected):
    """Is the mean within four standard errors?"""
    se = values.std().item() / math.sqrt(len(values))
    return values.mean().item() == pytest.approx(expected, abs=4 * se)


MISSED = {
    "diagonal": Posterior(0.15, scale=0.4),
    "full covariance": Posterior(0.2, widen=1.5),
}


@pytest.mark.parametrize("name", MISSED)
def test_it_rises_from_the_elbo_to_log_px(name):
    x, encoder = rows(2000), MISSED[name]
    vae, exact = model(encoder), log_px(x)
    q_z, true = encoder(x), Posterior()(x)
    if isinstance(q_z, tuple):
        q_z = MultivariateNormal(q_z[0], torch.diag_embed(q_z[1] ** 2))
    gap = kl_divergence(q_z, true)
    assert gap.min() > 0.1
    gaps = []
    for n_samples in (1, 10, 100, 1000):
        bound = log_marginal(vae, x, n_samples=n_samples)
        assert bound.shape == (2000,) and bound.dtype == x.dtype and not bound.requires_grad
        gaps.append(exact - bound)
        assert within(torch.exp(-gaps[-1]), 1.0)  # the mean of the weights has no bias, whatever K
    assert within(gaps[0] - gap, 0.0)  # log p(x) - ELBO = KL(q(z|x) || p(z|x))
    means = [values.mean() for values in gaps]
    assert means[0] > means[1] > means[2] > means[3]
    # E log w = log E w - Var(w) / 2 (E w)^2, w the mean of 1000 weights.
    assert within(gaps[3], gaps[3].var().item() / 2)


@pytest.mark.parametrize("n_samples", [1, 2, 5, 30])
@pytest.mark.parametrize("decoded", [1, 7, 25, 1 << 20])
def test_the_true_posterior_is_exact_at_any_number_of_samples_and_in_any_blocks(
    n_samples, decoded, monkeypatch
):
    monkeypatch.setattr(marginal, "_DECODED", decoded)
    x = rows(7)
    bound = log_marginal(model(Posterior()), x, n_samples=n_samples)
    torch.testing.assert_close(bound, log_px(x), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("decoded", [15, 48, 3000])  # 1 sample of 5 rows, 16 of 1 row, all at once
def test_blocks_of_samples_are_one_mean(decoded, monkeypatch):
    """Were the bounds of blocks averaged, the gap would be that of as many samples as one block has."""
    monkeypatch.setattr(marginal, "_DECODED", decoded)
    x, vae = rows(5).repeat(40, 1), model(MISSED["diagonal"])
    bounds = torch.cat([log_marginal(vae, part, n_samples=50) for part in x.split(5)])
    gap = log_px(x) - bounds
    assert within(torch.exp(-gap), 1.0)
    assert within(gap, gap.var().item() / 2)


def test_beta_changes_nothing():
    x, values = rows(6), []
    for beta in (0.0, 1.0, 4.0):
        torch.manual_seed(1)
        values.append(log_marginal(model(MISSED["diagonal"], beta=beta), x, n_samples=3))
    assert torch.equal(values[0], values[1]) and torch.equal(values[1], values[2])


@pytest.mark.parametrize("decoded", [7, 1 << 20])
def test_a_conditional_model_is_measured_given_the_label(decoded, monkeypatch):
    monkeypatch.setattr(marginal, "_DECODED", decoded)
    x, labels = rows(9), torch.arange(9) % 4
    bound = log_marginal(model(Posterior(n_classes=4), n_classes=4), x, labels, n_samples=3)
    torch.testing.assert_close(bound, log_px(x, B[labels]), rtol=1e-12, atol=1e-11)
    assert (log_px(x) - bound).abs().max() > 0.1  # p(x) of class 0 would be another


def test_a_mixture_prior():
    locs, scale = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, 1.0]]), 0.6
    cov = scale**2 * W @ W.T + S**2 * torch.eye(3, dtype=torch.float64)
    parts = MultivariateNormal(locs.double() @ W.T + B[0], cov)
    x = rows(1000)
    exact = parts.log_prob(x[:, None]).logsumexp(1) - math.log(3)
    vae = model(Posterior(widen=2.0), Mixture(2, scale=scale, locs=locs))
    gap = exact - log_marginal(vae, x, n_samples=500)
    assert within(torch.exp(-gap), 1.0)
    assert within(exact - log_marginal(vae, x, n_samples=1), gap_of_one(vae, x, exact))


def gap_of_one(vae, x, exact):
    """log p(x) - ELBO by 200 samples a row, the terms written out."""
    with torch.no_grad():
        q_z = vae.q_z(x)
        z = q_z.sample((200,))
        residual = (x - z @ W.T - B[0]) / S
        log_px_z = (-0.5 * residual**2 - math.log(S * math.sqrt(2 * math.pi))).sum(-1)
        return (exact - (log_px_z + vae.p_z().log_prob(z) - q_z.log_prob(z))).mean().item()


class Far(nn.Module):
    """x near 0, whatever z."""

    def forward(self, z):
        return torch.zeros(len(z), 3)


class Standard(nn.Module):
    """q(z|x) = p(z) = N(0, I): every weight is p(x)."""

    def __init__(self):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return torch.zeros(len(x), 2), torch.ones(len(x), 2)


def test_densities_too_small_for_a_number_have_a_logarithm():
    x = torch.tensor([[300.0, 0.0, 0.0], [0.0, -20.0, 0.0]])
    bound = log_marginal(VAE(Standard(), Far(), Gaussian(2), Normal(0.1)), x, n_samples=1000)
    exact = -0.5 * (x / 0.1).square().sum(1) - 3 * math.log(0.1 * math.sqrt(2 * math.pi))
    assert bound.dtype == torch.float32
    torch.testing.assert_close(bound, exact)


@pytest.mark.parametrize("n_rows", [1, 50])
def test_no_more_is_decoded_at_once_however_many_samples(n_rows, monkeypatch):
    monkeypatch.setattr(marginal, "_DECODED", 600)
    decoded, p_x = [], VAE.p_x

    def watch(self, z, labels=None):
        decoded.append(z.shape[:-1].numel())
        return p_x(self, z, labels)

    monkeypatch.setattr(VAE, "p_x", watch)
    log_marginal(model(Posterior()), rows(n_rows), n_samples=1000)
    assert sum(decoded) == 1000 * n_rows and max(decoded) == 600 // 3


@pytest.mark.parametrize("n_samples", [0, -1])
def test_no_sample_is_refused(n_samples):
    sentence = rf"^log_marginal: n_samples must be at least 1; got {n_samples}\. The usual value"
    with pytest.raises(ValueError, match=sentence):
        log_marginal(model(Posterior()), rows(2), n_samples=n_samples)
