"""evaluate against hand computation; diagnose sentence by sentence."""

import functools
import math
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_bvae import VAE, evaluation
from pyro_bvae.datasets import Data
from pyro_bvae.divergences import exclusive_kl, inclusive_kl, mmd_per_dim, total_correlation
from pyro_bvae.evaluation import aggregate_divergence, diagnose, encode_data, evaluate
from pyro_bvae.likelihoods import Normal
from pyro_bvae.metrics import hoyer
from pyro_bvae.networks import NETWORKS, mlp
from pyro_bvae.priors import Gaussian, Mixture, SpikeSlab

SCALES = torch.tensor([0.25, 0.5, 1.0])


class Encoder(nn.Module):
    """loc = x with its last entry dropped to 0, scales .25, .5, 1: the last latent carries nothing."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.diag(torch.tensor([1.0, 1.0, 0.0])))

    def forward(self, x):
        return x @ self.weight, SCALES.expand(len(x), 3)


class Blind(nn.Module):
    """x is N(0, .5^2) whatever z: log p(x|z) has no noise."""

    def forward(self, z):
        return torch.zeros(len(z), 3)


def blind(prior=None, beta=1.0):
    return VAE(Encoder(), Blind(), prior or Gaussian(3), Normal(0.5), beta)


def data(n=7, labels=None):
    x = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    return Data(x, labels)


def by_hand(x):
    log_px_z = (-0.5 * (x / 0.5) ** 2 - math.log(0.5 * math.sqrt(2 * math.pi))).sum(1)
    loc, scale = x * [1, 1, 0], SCALES.numpy()
    return log_px_z, 0.5 * (loc**2 + scale**2 - 1) - np.log(scale)


@pytest.mark.parametrize("beta", [0.0, 4.0])
def test_every_number_by_hand(beta, monkeypatch):
    monkeypatch.setattr(evaluation, "_BATCH", 3)  # 3 + 3 + 1 rows
    held_out = data()
    log_px_z, kl = by_hand(held_out.x.astype(np.float64))
    out = evaluate(blind(beta=beta), held_out, seed=5)  # measured at beta = 1, whatever it was
    rows = {"log_px_z": log_px_z, "kl": kl.sum(1), "elbo": log_px_z - kl.sum(1)}
    for name, values in rows.items():
        assert out[name] == pytest.approx(values.mean(), rel=1e-5)
        assert out[f"{name}_se"] == pytest.approx(values.std() / math.sqrt(7), rel=1e-4)
    assert out["kl_per_latent"] == pytest.approx(kl.mean(0), rel=1e-5, abs=1e-6)
    assert (out["latents"], out["active_units"]) == (3, 2)
    assert out["idle_means"] == "carry < 0.01 nats"
    assert out["kl_sd"] == pytest.approx(kl.sum(1).std(), rel=1e-4)
    assert out["kl_estimator"] == "closed form"
    assert out["posterior_scale"] == pytest.approx(1.75 / 3)
    score = hoyer(held_out.x * [1, 1, 0])
    assert out["hoyer"] == pytest.approx(score.value, rel=1e-5)
    assert out["hoyer_null"] == score.details["null"]
    assert (out["n"], out["seed"]) == (7, 5)
    assert "divergence" not in out and "purity" not in out


def test_divergence_of_a_prior_without_a_closed_form_kl():
    out = evaluate(blind(SpikeSlab(3)), data(400), divergence=mmd_per_dim)
    assert out["kl_estimator"] == "Monte Carlo, 1 sample"
    # Two one-sample estimates of one number, from samples of their own.
    codes = encode_data(blind(SpikeSlab(3)), data(400))
    se = codes.kl.std().item() / math.sqrt(400)
    assert sum(out["kl_per_latent"]) == pytest.approx(out["kl"], abs=4 * math.sqrt(2) * se)
    assert out["divergence_components"] == 400
    # The spread of one-sample estimates would be their noise.
    assert out["kl_sd"] is None and out["kl_se"] > 0


@pytest.mark.parametrize("prior", [Gaussian(3), SpikeSlab(3)])
def test_the_terms_of_a_row_are_those_of_its_z(prior, monkeypatch):
    monkeypatch.setattr(evaluation, "_BATCH", 3)
    torch.manual_seed(0)
    held_out, vae = data(), VAE(Encoder(), nn.Linear(3, 3), prior, Normal(0.5))
    x = torch.from_numpy(held_out.x)
    codes = encode_data(vae, held_out)
    with torch.no_grad():
        q_z, p_z = vae.q_z(x), vae.p_z()
        torch.testing.assert_close(codes.log_px_z, vae.p_x(codes.z).log_prob(x))
        at_z = q_z.log_prob(codes.z) - p_z.log_prob(codes.z)
    assert codes.kl_closed_form == isinstance(prior, Gaussian)
    if codes.kl_closed_form:
        kl = by_hand(held_out.x.astype(np.float64))[1].sum(1)
        assert codes.kl.numpy() == pytest.approx(kl, rel=1e-5)
        assert not torch.allclose(codes.kl, at_z, atol=0.1)
    else:
        torch.testing.assert_close(codes.kl, at_z)


class Full(nn.Module):
    """N(x, I + .5) with means that barely move in the last latent."""

    def forward(self, x):
        return dist.MultivariateNormal(x * torch.tensor([1.0, 1.0, 0.05]), torch.eye(3) + 0.5)


@pytest.mark.parametrize("closed", [False, True])
def test_a_posterior_that_does_not_factorise(closed):
    vae, held_out = blind(), data(300)
    vae.likelihood.marker = nn.Parameter(torch.zeros(()))  # a device to stand on
    vae.encoder = Full()
    if closed:
        normal = dist.MultivariateNormal(torch.zeros(3), torch.eye(3))
        vae.p_z = lambda: normal
    codes = encode_data(vae, held_out)
    assert not codes.diagonal and codes.kl_closed_form == closed
    loc = held_out.x * [1, 1, 0.05]
    # log det(I + .5) = log(1 + 3/2)
    kl = 0.5 * (3 * 1.5 + (loc**2).sum(1) - 3 - math.log(2.5))
    mean = codes.kl.mean().item()
    noise = 1e-5 if closed else 4 * (codes.kl - torch.from_numpy(kl)).std().item() / math.sqrt(300)
    assert mean == pytest.approx(kl.mean(), abs=noise)
    out = evaluate(vae, held_out, divergence=inclusive_kl, codes=codes)
    # loc and scale do not say all of these posteriors.
    assert out["divergence"] is None and out["divergence_components"] == 300
    assert out["rate_minus_log_components"] == pytest.approx(mean - math.log(300))
    assert out["kl_per_latent"] is None
    assert (out["latents"], out["active_units"]) == (3, 2)  # variances 1, 1 and .05^2
    assert out["idle_means"] == "do not move with x (variance of posterior means < 0.01)"
    assert diagnose(out, config()) == [
        "1 of 3 latents do not move with x (variance of posterior means < 0.01): lower beta or use "
        "fewer latents."
    ]


def test_clusters_are_read_off_the_prior():
    x = np.zeros((8, 3), np.float32)
    x[:4, 0], x[4:, 0] = 2.0, -2.0
    locs = torch.tensor([[2.0, 0, 0], [-2.0, 0, 0], [0, 2.0, 0]])
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    out = evaluate(blind(Mixture(3, locs=locs)), Data(x, labels))
    assert out["purity"] == 7 / 8
    assert (out["components"], out["components_used"], out["classes"]) == (3, 2, 2)
    assert "purity" not in evaluate(blind(), Data(x, labels))
    assert "purity" not in evaluate(blind(Mixture(3, locs=locs)), Data(x))


def test_bytes_transform_and_labels_arrive_as_in_training():
    torch.manual_seed(0)
    encoder, decoder = mlp((3,), 2, extra=2, hidden=4)
    vae = VAE(encoder, decoder, Gaussian(2), Normal(0.5), n_classes=2)
    x, labels = np.arange(15, dtype=np.uint8).reshape(5, 3), np.array([0, 1, 1, 0, 1])
    codes = encode_data(vae, Data(x, labels), transform=lambda batch: batch * 2)
    with torch.no_grad():
        torch.testing.assert_close(codes.loc, vae.encode(torch.from_numpy(x) / 255 * 2))
    with pytest.raises(ValueError, match="labels must be given exactly where"):
        encode_data(vae, Data(x))


# ---- what it leaves alone ----------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_leaves_generator_mode_statistics_and_parameters_alone(training):
    images = Data(np.random.default_rng(0).random((6, 1, 32, 32), np.float32))
    vae = VAE(*NETWORKS["conv-bn"]((1, 32, 32), 2), Gaussian(2), Normal(0.5), beta=2.0)
    vae.train(training)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    state = torch.random.get_rng_state()
    first = evaluate(vae, images, divergence=inclusive_kl, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert vae.training == training and vae.beta == 2.0
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(p.grad is None for p in vae.parameters())
    # A name left in the global store would be trained in place of the next model's.
    assert not pyro.get_param_store().keys()
    torch.manual_seed(99)
    assert evaluate(vae, images, divergence=inclusive_kl, seed=1) == first
    assert evaluate(vae, images, divergence=inclusive_kl, seed=2) != first


def test_mode_is_restored_where_a_batch_fails():
    vae = blind().train()
    with pytest.raises(RuntimeError):
        encode_data(vae, Data(np.zeros((2, 5), np.float32)))
    assert vae.training


# ---- divergence over all the data --------------------------------------------------------------


def codes_and_posteriors(n=40):
    vae = blind()
    codes = encode_data(vae, data(n))
    return vae, codes, dist.Normal(codes.loc, codes.scale).to_event(1)


@pytest.mark.parametrize("max_rows, n", [(2_000, 40), (40, 40), (7, 7)])
def test_a_divergence_sees_every_posterior_and_samples_of_the_first_rows(max_rows, n):
    vae, codes, _ = codes_and_posteriors()
    seen = []

    def spy(q_z, p_z, z):
        seen.append((q_z, p_z, z))
        return torch.tensor(1.5)

    torch.manual_seed(4)
    out = aggregate_divergence(vae, codes, functools.partial(spy), max_rows)
    rate = codes.kl.mean().item()
    assert out == {
        "divergence": 1.5,
        "divergence_at_half": 1.5,
        "divergence_components": 40,
        "rate_minus_log_components": pytest.approx(rate - math.log(40), rel=1e-6),
    }
    (q_z, p_z, z), (half, _, z_half) = seen
    assert torch.equal(half.mean, q_z.mean[:20]) and torch.equal(z_half, z[:20][: len(z_half)])
    assert q_z.batch_shape == (40,) and p_z.batch_shape == () and z.shape == (n, 3)
    # Every row once, in an order of its own, and z_i of the i-th.
    rows = torch.cdist(q_z.mean, codes.loc).argmin(1)
    assert sorted(rows.tolist()) == list(range(40)) != rows.tolist()
    assert torch.equal(q_z.mean, codes.loc[rows]) and torch.equal(q_z.stddev, codes.scale[rows])
    assert torch.equal(z, codes.z[rows[:n]])


@pytest.mark.parametrize("divergence", [inclusive_kl, mmd_per_dim])
def test_divergence_over_all_rows_equals_the_direct_one(divergence):
    vae, codes, _ = codes_and_posteriors()
    torch.manual_seed(4)
    order = torch.randperm(40)
    q_z = dist.Normal(codes.loc[order], codes.scale[order]).to_event(1)
    direct = divergence(q_z, vae.p_z(), codes.z[order], n_samples=1000).item()
    torch.manual_seed(4)
    out = aggregate_divergence(vae, codes, functools.partial(divergence, n_samples=1000))
    assert out["divergence"] == pytest.approx(direct, rel=1e-6)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize(
    "divergence, estimator",
    [
        (inclusive_kl, None),
        (exclusive_kl, "batch"),
        (exclusive_kl, "mss"),
        (total_correlation, "batch"),
        (total_correlation, "mss"),
        (mmd_per_dim, None),
    ],
)
def test_divergence_of_an_aggregate_that_is_the_prior_is_near_zero(divergence, estimator, dim):
    """loc ~ N(0, 1 - s^2), scale s = .6: q(z) is N(0, I), sampled by n posteriors that overlap."""
    n, s = 6_000, 0.6
    torch.manual_seed(0)
    loc = math.sqrt(1 - s * s) * torch.randn(n, dim)
    scale = torch.full((n, dim), s)
    q_z, p_z = dist.Normal(loc, scale).to_event(1), dist.Normal(torch.zeros(dim), 1.0).to_event(1)
    z = q_z.sample()
    kl = torch.distributions.kl_divergence(q_z, p_z)
    codes = evaluation.Codes(loc, scale, z, torch.zeros(n), kl, None, True, True)
    if estimator is not None:
        size = {"dataset_size": n} if estimator == "mss" else {}
        divergence = functools.partial(divergence, estimator=estimator, **size)
    value = aggregate_divergence(blind(Gaussian(dim)), codes, divergence)["divergence"]
    # The bias, about E[q(z|x)^2 / q(z)^2] / 2n, is below .002 here; the rest is the noise of n rows.
    assert abs(value) < (0.02 if divergence is mmd_per_dim else 0.005)
    # And not because it is always so.
    far = codes._replace(loc=loc + 1.0, z=z + 1.0)  # KL(N(1, I) || N(0, I)) = D / 2
    value = aggregate_divergence(blind(Gaussian(dim)), far, divergence)["divergence"]
    if "total" in getattr(divergence, "func", divergence).__name__:
        assert abs(value) < 0.02  # the prior is no part of it
    else:
        assert value > 0.4 * dim


# ---- diagnose ----------------------------------------------------------------------------------

FINE = {
    "kl": 5.0,
    "latents": 3,
    "active_units": 3,
    "idle_means": "carry < 0.01 nats",
    "divergence_name": "inclusive-kl",
    "purity": 0.97,
    "components": 4,
    "components_used": 4,
    "classes": 4,
    "rate_minus_log_batch": 0.5,
    "rate_minus_log_components": -3.0,
}


def config(**options):
    defaults = {
        "beta": 1.0,
        "beta_tc": None,
        "gamma": None,
        "capacity": None,
        "penalty": "absolute",
        "conditional": False,
    }
    return SimpleNamespace(**defaults | options)


def test_nothing_amiss_says_nothing():
    assert diagnose(FINE, config()) == []
    bare = {"kl": 5.0, "latents": 2, "active_units": 2, "rate_minus_log_batch": None}
    assert diagnose(bare, config()) == []
    for penalty in ("absolute", "relu"):
        assert diagnose(FINE, config(gamma=10.0, capacity=5.0, penalty=penalty)) == []


CAPACITY = {"gamma": 10.0, "capacity": 5.0}
BIAS = (
    "D is dominated by its bias (rate - log of its components = 1.3 nats > 1): use --divergence "
    "mmd-per-dim, or a larger batch."
)


@pytest.mark.parametrize(
    "metrics, options, sentence",
    [
        (
            {"active_units": 1},
            {},
            "2 of 3 latents carry < 0.01 nats: lower beta or use fewer latents.",
        ),
        (
            {"active_units": 2, "idle_means": "do not move with x"},
            {},
            "1 of 3 latents do not move with x: lower beta or use fewer latents.",
        ),
        (
            {"active_units": 2},
            {"beta": 0.0},
            "1 of 3 latents carry < 0.01 nats: use fewer latents.",
        ),
        (
            {"active_units": 2},
            {"beta_tc": 6.0},
            "1 of 3 latents carry < 0.01 nats: lower beta_tc or use fewer latents.",
        ),
        (
            {"active_units": 2},
            CAPACITY,
            "1 of 3 latents carry < 0.01 nats: raise capacity or use fewer latents.",
        ),
        (
            {"purity": 0.75, "components_used": 3},
            {},
            "4 classes share 3 of 4 components: raise alpha or lower beta.",
        ),
        (
            {"purity": 0.75, "components_used": 3},
            CAPACITY,
            "4 classes share 3 of 4 components: raise capacity.",
        ),
        (  # alpha beside beta_tc is refused
            {"purity": 0.75, "components_used": 3},
            {"beta_tc": 6.0},
            "4 classes share 3 of 4 components: lower beta_tc.",
        ),
        (
            {"purity": 0.75},
            {},
            "Classes share components (purity 0.75): raise alpha or lower beta.",
        ),
        (
            {"purity": 0.75},
            CAPACITY,
            "Classes share components (purity 0.75): raise capacity.",
        ),
        (
            {"purity": 0.5, "components": 2, "components_used": 2},
            {},
            "The prior has 2 components for 4 classes: raise n_components.",
        ),
        (  # more components would not be used either
            {"purity": 0.3, "components": 3, "components_used": 1},
            {},
            "4 classes share 1 of 3 components: raise alpha or lower beta.",
        ),
        ({"rate_minus_log_batch": 1.26}, {}, BIAS),
        ({"rate_minus_log_components": 1.26}, {}, BIAS.replace(", or a larger batch", "")),
        (
            {"rate_minus_log_batch": None, "rate_minus_log_components": 1.26},
            {},
            BIAS.replace(", or a larger batch", ""),
        ),
        ({"rate_minus_log_batch": 1.26, "rate_minus_log_components": 1.1}, {}, BIAS),
        (
            {"kl": 5.0},
            {"gamma": 10.0, "capacity": 20.0},
            "The KL, 5.0 nats, has not reached C = 20: train longer, raise gamma, or lower C.",
        ),
        (
            {"kl": 5.0},
            {"gamma": 10.0, "capacity": 20.0, "penalty": "relu"},
            "C has no effect: the KL is 5.0 nats, below C = 20, where the one-sided penalty is 0: "
            "lower C, or use --penalty absolute.",
        ),
    ],
)
def test_diagnoses(metrics, options, sentence):
    assert diagnose(FINE | metrics, config(**options)) == [sentence]


@pytest.mark.parametrize("what", ["batch", "components"])
def test_bias_matters_to_kl_divergences_alone(what):
    biased = FINE | {f"rate_minus_log_{what}": 9.0}
    for name in ("inclusive-kl", "exclusive-kl", "total-correlation"):
        (sentence,) = diagnose(biased | {"divergence_name": name}, config())
        assert "9.0 nats > 1" in sentence
    for name in ("mmd", "mmd-per-dim", None):
        assert diagnose(biased | {"divergence_name": name}, config()) == []


@pytest.mark.parametrize(
    "value, half, said",
    [
        (0.1, 0.14, False),
        (6.0, 6.5, False),
        (6.0, 6.7, True),
        (1.0, 1.3, True),
        (None, None, False),
    ],
)
def test_a_divergence_still_falling_with_the_rows_is_said(value, half, said):
    metrics = {"divergence": value, "divergence_at_half": half, "divergence_components": 400}
    says = diagnose(FINE | metrics, config())
    assert len(says) == said
    if said:
        begin = f"D depends on how many rows it sees ({half:.2f} nats at 200, {value:.2f} at 400)"
        assert says[0].startswith(begin) and says[0].endswith("use --divergence mmd-per-dim.")


def test_remedies_are_options_that_are_not_refused():
    biased = FINE | {"rate_minus_log_batch": 1.5, "divergence_name": "total-correlation"}
    (said,) = diagnose(biased, config(beta_tc=6.0))
    assert said.endswith("use a larger batch.")
    shared = FINE | {"purity": 0.4, "components_used": 2}
    assert diagnose(shared, config(conditional=True)) == []


def test_inclusive_kl_draws_many_prior_samples_unless_told():
    drawn = []

    def counting():
        p_z = Gaussian(3)()
        rsample = p_z.rsample
        p_z.rsample = lambda shape: drawn.append(shape[0]) or rsample(shape)
        return p_z

    vae, codes, _ = codes_and_posteriors()
    vae.p_z = counting
    aggregate_divergence(vae, codes, inclusive_kl)
    aggregate_divergence(vae, codes, functools.partial(inclusive_kl, n_samples=7))
    assert drawn == [20_000, 20_000, 7, 7]
