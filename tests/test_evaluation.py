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
from pyro_bvae.divergences import exclusive_kl, inclusive_kl, mmd_per_dim
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
    assert out["active_units"] == 2
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


def test_a_posterior_that_does_not_factorise_has_no_kl_per_latent():
    class Full(nn.Module):
        def forward(self, x):
            return dist.MultivariateNormal(x, torch.eye(3))

    vae = blind()
    vae.likelihood.marker = nn.Parameter(torch.zeros(()))  # a device to stand on
    vae.encoder = Full()
    out = evaluate(vae, data())
    assert out["kl_per_latent"] is None and "active_units" not in out


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


def test_inclusive_kl_over_all_rows_equals_the_direct_one():
    vae, codes, q_z = codes_and_posteriors()
    for divergence in (inclusive_kl, functools.partial(inclusive_kl)):
        torch.manual_seed(4)
        out = aggregate_divergence(vae, codes, divergence, n_samples=1000)
        torch.manual_seed(4)
        direct = inclusive_kl(q_z, vae.p_z(), codes.z, n_samples=1000).item()
        assert out == {"divergence": pytest.approx(direct, rel=1e-6), "divergence_components": 40}


def test_inclusive_kl_in_blocks_weighs_each_by_its_samples(monkeypatch):
    vae, codes, _ = codes_and_posteriors()
    monkeypatch.setattr(evaluation, "_BLOCK", 300 * 40 * 3)
    counts = []

    def spy(q_z, p_z, z, *, n_samples):
        assert q_z.batch_shape == (40,)
        counts.append(n_samples)
        return torch.tensor(float(n_samples))

    spy.__name__ = "inclusive_kl"
    out = aggregate_divergence(vae, codes, spy, n_samples=1000)
    assert counts == [300, 300, 300, 100]
    assert out["divergence"] == pytest.approx((3 * 300**2 + 100**2) / 1000)


def test_other_divergences_use_as_many_rows_as_they_say():
    vae, codes, q_z = codes_and_posteriors()
    torch.manual_seed(4)
    torch.randperm(40)  # the rows: all of them, sorted again
    direct = mmd_per_dim(q_z, vae.p_z(), codes.z).item()
    torch.manual_seed(4)
    out = aggregate_divergence(vae, codes, mmd_per_dim)
    assert out == {"divergence": pytest.approx(direct, rel=1e-6), "divergence_components": 40}
    assert aggregate_divergence(vae, codes, mmd_per_dim, max_rows=7)["divergence_components"] == 7
    vae, codes, _ = codes_and_posteriors(600)
    assert aggregate_divergence(vae, codes, exclusive_kl)["divergence_components"] == 500


# ---- diagnose ----------------------------------------------------------------------------------

FINE = {
    "kl": 5.0,
    "kl_per_latent": [2.0, 3.0],
    "purity": 0.97,
    "components": 4,
    "components_used": 4,
    "classes": 4,
    "rate_minus_log_batch": 0.5,
}


def config(**options):
    defaults = {"beta": 1.0, "gamma": None, "capacity": None, "divergence": "inclusive-kl"}
    return SimpleNamespace(**defaults | options)


def test_nothing_amiss_says_nothing():
    assert diagnose(FINE, config()) == []
    assert diagnose({"kl": 5.0, "kl_per_latent": None}, config()) == []
    assert diagnose(FINE, config(gamma=10.0, capacity=5.0)) == []


@pytest.mark.parametrize(
    "metrics, options, sentence",
    [
        (
            {"kl_per_latent": [2.0, 0.005, 0.0]},
            {},
            "2 of 3 latents carry < 0.01 nats: lower beta or use fewer latents.",
        ),
        (
            {"kl_per_latent": [2.0, 0.0]},
            {"beta": 0.0},
            "1 of 2 latents carry < 0.01 nats: use fewer latents.",
        ),
        (
            {"kl_per_latent": [2.0, 0.0]},
            {"gamma": 10.0, "capacity": 5.0},
            "1 of 2 latents carry < 0.01 nats: raise capacity or use fewer latents.",
        ),
        (
            {"purity": 0.75, "components_used": 3},
            {},
            "4 classes share 3 of 4 components: raise alpha or lower beta.",
        ),
        (
            {"purity": 0.75},
            {},
            "Classes share components (purity 0.75): raise alpha or lower beta.",
        ),
        (
            {"purity": 0.5, "components": 2, "components_used": 2},
            {},
            "The prior has 2 components for 4 classes: raise n_components.",
        ),
        (
            {"rate_minus_log_batch": 1.26},
            {},
            "D is dominated by its bias (rate - log batch = 1.3 nats > 1): use --divergence "
            "mmd-per-dim, or a larger batch.",
        ),
        (
            {"kl": 5.0},
            {"gamma": 10.0, "capacity": 20.0},
            "C has no effect: the KL is 5.0 nats, well below C = 20: train longer, or lower C.",
        ),
    ],
)
def test_diagnoses(metrics, options, sentence):
    assert diagnose(FINE | metrics, config(**options)) == [sentence]


def test_bias_matters_to_kl_divergences_alone():
    biased = FINE | {"rate_minus_log_batch": 9.0}
    assert len(diagnose(biased, config(divergence="exclusive-kl"))) == 1
    for divergence in ("mmd", "mmd-per-dim", None):
        assert diagnose(biased, config(divergence=divergence)) == []
