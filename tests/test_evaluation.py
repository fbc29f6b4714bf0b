"""evaluate against hand computation, measure by measure; diagnose sentence by sentence."""

import math
import os
import warnings
import zipfile
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_bvae import VAE, evaluation, metrics
from pyro_bvae.datasets import Data, memory
from pyro_bvae.divergences import DIVERGENCES, inclusive_kl, mmd_per_dim
from pyro_bvae.evaluation import (
    MEASURES,
    Codes,
    applicable,
    diagnose,
    encode_data,
    evaluate,
    held_out,
    information,
    measures,
    read_codes,
    score_codes,
)
from pyro_bvae.evaluation.codes import batches
from pyro_bvae.likelihoods import Normal
from pyro_bvae.metrics import Score, hoyer
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
    monkeypatch.setattr(batches, "__defaults__", (None, 3))  # 3 + 3 + 1 rows
    rows = data()
    log_px_z, kl = by_hand(rows.x.astype(np.float64))
    out = evaluate(blind(beta=beta), rows, seed=5)  # measured at beta = 1, whatever it was
    terms = {"log_px_z": log_px_z, "kl": kl.sum(1), "elbo": log_px_z - kl.sum(1)}
    for name, values in terms.items():
        assert out[name] == pytest.approx(values.mean(), rel=1e-5)
        assert out[f"{name}_se"] == pytest.approx(values.std(ddof=1) / math.sqrt(7), rel=1e-4)
    assert out["kl_per_latent"] == pytest.approx(kl.mean(0), rel=1e-5, abs=1e-6)
    assert (out["latents"], out["active_units"], out["active_latents"]) == (3, 2, [0, 1])
    assert out["idle_means"] == "carry < 0.01 nats"
    assert out["kl_sd"] == pytest.approx(kl.sum(1).std(), rel=1e-4)
    assert out["kl_estimator"] == "closed form"
    assert out["posterior_scale"] == pytest.approx(1.75 / 3)
    loc = rows.x * [1, 1, 0]
    assert out["signal_per_latent"] == pytest.approx(loc.var(0) / SCALES.numpy() ** 2, rel=1e-5)
    score = hoyer(loc)
    assert out["hoyer"] == pytest.approx(score.value, rel=1e-5)
    assert (out["hoyer_null"], out["hoyer_dead"]) == (score.details["null"], 1)
    assert out["hoyer_unnormalised"] == pytest.approx(score.details["unnormalised"], rel=1e-5)
    # Of 10,000 codes drawn from the prior in the two latents kept; each code's lies in [0, 1].
    assert out["hoyer_prior"] == pytest.approx(out["hoyer_null"], abs=4 * 0.5 / 100)
    assert (out["n"], out["seed"]) == (7, 5)
    assert not {"divergence", "purity", "log_marginal", "scores", "notes"} & set(out)


def test_one_row_has_no_standard_error():
    out = evaluate(standard(), data(1), measures=["log-marginal", "aggregate"], n_samples=2)
    assert out["n"] == out["log_marginal_rows"] == 1 and math.isfinite(out["elbo"])
    names = ("log_px_z", "kl", "elbo", "log_marginal", "mutual_information", "aggregate_kl")
    assert [out[f"{name}_se"] for name in names] == [None] * len(names)


def by_placed_codes(loc, prior):
    """What is said of posteriors N(loc, .5^2)."""
    vae, n = blind(prior), len(loc)
    kl = torch.zeros(n)
    codes = Codes(
        loc, torch.full_like(loc, 0.5), loc, kl, kl, torch.zeros(loc.shape[1]), True, True
    )
    return evaluate(vae, Data(np.zeros((n, 3), np.float32)), codes=codes)


def test_sparsity_of_the_prior_is_over_the_latents_that_are_left():
    loc = torch.randn(500, 50)
    loc[:, 5:] = 0
    out = by_placed_codes(loc, Gaussian(50))
    assert out["hoyer_dead"] == 45
    # Of 5 dimensions: over all 50 it would be .13 instead of .20.
    assert out["hoyer_null"] == pytest.approx(metrics.sparsity.gaussian_null(5))
    assert out["hoyer_prior"] == pytest.approx(out["hoyer_null"], abs=4 * 0.5 / 100)


@pytest.mark.parametrize("dim, live", [(3, 1), (3, 0), (2, 2)])
def test_sparsity_compares_two_latents_at_least(dim, live):
    loc = torch.randn(50, dim)
    loc[:, live:] = 0
    assert not [name for name in by_placed_codes(loc, Gaussian(dim)) if name.startswith("hoyer")]


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
    monkeypatch.setattr(batches, "__defaults__", (None, 3))
    torch.manual_seed(0)
    rows, vae = data(), VAE(Encoder(), nn.Linear(3, 3), prior, Normal(0.5))
    x = torch.from_numpy(rows.x)
    codes = encode_data(vae, rows)
    with torch.no_grad():
        q_z, p_z = vae.q_z(x), vae.p_z()
        torch.testing.assert_close(codes.log_px_z, vae.p_x(codes.z).log_prob(x))
        at_z = q_z.log_prob(codes.z) - p_z.log_prob(codes.z)
    assert codes.kl_closed_form == isinstance(prior, Gaussian)
    if codes.kl_closed_form:
        kl = by_hand(rows.x.astype(np.float64))[1].sum(1)
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
    vae, rows = (
        blind(Gaussian(3) if closed else Mixture(3, scale=1.0, locs=torch.zeros(1, 3))),
        data(300),
    )
    vae.likelihood.marker = nn.Parameter(torch.zeros(()))  # a device to stand on
    vae.encoder = Full()
    codes = encode_data(vae, rows)
    assert not codes.diagonal and codes.kl_closed_form == closed
    loc = rows.x * [1, 1, 0.05]
    # log det(I + .5) = log(1 + 3/2)
    kl = 0.5 * (3 * 1.5 + (loc**2).sum(1) - 3 - math.log(2.5))
    mean = codes.kl.mean().item()
    noise = 1e-5 if closed else 4 * (codes.kl - torch.from_numpy(kl)).std().item() / math.sqrt(300)
    assert mean == pytest.approx(kl.mean(), abs=noise)
    out = evaluate(vae, rows, divergence=inclusive_kl, codes=codes)
    # loc and scale do not say all of these posteriors; z alone is all that MMD looks at.
    assert evaluate(vae, rows, divergence=mmd_per_dim, codes=codes)["divergence"] is not None
    assert out["divergence"] is None and out["divergence_components"] == 300
    assert out["rate_minus_log_components"] == pytest.approx(mean - math.log(300))
    assert out["kl_per_latent"] is None
    # Variances 1, 1 and .05^2.
    assert (out["latents"], out["active_units"], out["active_latents"]) == (3, 2, [0, 1])
    assert out["idle_means"] == "do not move with x (variance of posterior means < 0.01)"
    assert diagnose(out | evaluation.aggregate.information(vae, codes), config()) == [
        "1 of 3 latents do not move with x (variance of posterior means < 0.01): lower beta or use "
        "fewer latents.",
        "Not measured: D(q(z), p(z)), I(x; z), KL(q(z) || p(z)), total correlation, overlap. Over all rows "
        "they need posteriors that are diagonal Normals; --divergence mmd and mmd-per-dim need only samples.",
    ]


def test_clusters_are_read_off_the_prior():
    x = np.zeros((8, 3), np.float32)
    x[:4, 0], x[4:, 0] = 2.0, -2.0
    locs = torch.tensor([[2.0, 0, 0], [-2.0, 0, 0], [0, 2.0, 0]])
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    out = evaluate(blind(Mixture(3, locs=locs)), Data(x, labels))
    assert out["purity"] == 7 / 8
    assert (out["components"], out["components_used"], out["classes"]) == (3, 2, 2)
    assert out["silhouette"] == 1.0  # codes lie at two points
    assert "purity" not in evaluate(blind(), Data(x, labels))


def test_components_and_silhouette_need_no_labels():
    x = np.zeros((8, 3), np.float32)
    x[:4, 0], x[4:, 0] = 2.0, -2.0
    locs = torch.tensor([[2.0, 0, 0], [-2.0, 0, 0], [0, 2.0, 0]])
    out = evaluate(blind(Mixture(3, locs=locs)), Data(x))
    assert (out["components"], out["components_used"], out["silhouette"]) == (3, 2, 1.0)
    assert not {"purity", "nmi", "ari", "classes"} & set(out)
    assert "components_used" in {row.key for row in measures(out)}
    assert diagnose(out, config())  # it reads purity only where there is one


def test_bytes_transform_and_labels_arrive_as_in_training():
    torch.manual_seed(0)
    encoder, decoder = mlp((3,), 2, extra=2, hidden=4)
    vae = VAE(encoder, decoder, Gaussian(2), Normal(0.5), n_classes=2)
    x, labels = np.arange(15, dtype=np.uint8).reshape(5, 3), np.array([0, 1, 1, 0, 1])
    codes = encode_data(vae, Data(x, labels), transform=lambda batch: batch * 2)
    with torch.no_grad():
        torch.testing.assert_close(codes.loc, vae.encode(torch.from_numpy(x) / 255 * 2))
    with pytest.raises(ValueError, match="data must have labels for a conditional model"):
        encode_data(vae, Data(x))


# ---- what it leaves alone ----------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_leaves_generator_mode_statistics_and_parameters_alone(training):
    images = Data(np.random.default_rng(0).random((6, 1, 32, 32), np.float32))
    vae = VAE(*NETWORKS["conv-bn"]((1, 32, 32), 2), Gaussian(2), Normal(0.5), beta=2.0)
    vae.train(training)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    state = torch.random.get_rng_state()
    options = {"divergence": inclusive_kl, "measures": None, "n_samples": 2}
    first = evaluate(vae, images, **options, seed=1)
    assert {"log_marginal", "overlap", "sharpness"} <= set(first)
    assert torch.equal(state, torch.random.get_rng_state())
    assert vae.training == training and vae.beta == 2.0
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(p.grad is None for p in vae.parameters())
    # A name left in the global store would be trained in place of the next model's.
    assert not pyro.get_param_store().keys()
    torch.manual_seed(99)
    assert evaluate(vae, images, **options, seed=1) == first
    assert evaluate(vae, images, **options, seed=2) != first


def test_mode_is_restored_where_a_batch_fails():
    vae = blind().train()
    with pytest.raises(ValueError, match="the encoder cannot take x of shape"):
        encode_data(vae, Data(np.zeros((2, 5), np.float32)))
    assert vae.training


# ---- on request --------------------------------------------------------------------------------


class Standard(Encoder):
    """q(z|x) = p(z): with `Blind`, log p(x) is log p(x|z) whatever z."""

    def forward(self, x):
        return 0 * x.flatten(1)[:, :3] @ self.weight, torch.ones(len(x), 3)


def standard():
    return VAE(Standard(), Blind(), Gaussian(3), Normal(0.5))


@pytest.mark.parametrize("n_rows, chosen", [(4, [0, 3, 6, 9]), (1, [0]), (99, range(10))])
def test_log_marginal_of_evenly_spaced_rows(n_rows, chosen):
    rows = data(10)
    exact = by_hand(2 * rows.x[list(chosen)].astype(np.float64))[0]
    out = evaluate(
        standard(), rows, transform=lambda x: 2 * x,
        measures=["log-marginal"], n_samples=3, n_rows=n_rows,
    )  # fmt: skip
    assert out["log_marginal"] == pytest.approx(exact.mean(), rel=1e-5)
    if len(chosen) > 1:
        se = exact.std(ddof=1) / math.sqrt(len(chosen))
        assert out["log_marginal_se"] == pytest.approx(se, rel=1e-4)
    assert (out["log_marginal_samples"], out["log_marginal_rows"]) == (3, len(chosen))


@pytest.mark.parametrize("entries, n", [(0, 100), (3 * 5 * 110, 110), (10**9, 120)])
def test_log_marginal_takes_as_many_rows_as_minutes_allow_and_a_hundred_at_least(
    entries, n, monkeypatch
):
    monkeypatch.setattr(held_out, "_DECODED_ENTRIES", entries)
    out = evaluate(standard(), data(120), measures=["log-marginal"], n_samples=5)
    assert out["log_marginal_rows"] == n


def test_aggregate_holds_every_divergence_and_the_split():
    vae, rows = blind(), data(40)
    codes = encode_data(vae, rows)
    out = evaluate(vae, rows, codes=codes, measures=["aggregate"])
    assert set(out["divergences"]) == set(DIVERGENCES)
    assert out["divergences"]["exclusive-kl"] == out["aggregate_kl"]
    assert out["divergences"]["total-correlation"] == out["total_correlation"]
    for name, value in information(vae, codes).items():  # all 40 rows, whatever their order
        assert out[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    for name in ("inclusive-kl", "mmd", "mmd-per-dim"):
        assert math.isfinite(out["divergences"][name])
    direct = metrics.gaussian_total_correlation(codes.loc.numpy())
    assert out["gaussian_total_correlation"] == pytest.approx(direct.value, rel=1e-6)


class Images(nn.Module):
    """Whatever z, a fixed picture that leaves [0, 1]."""

    def forward(self, z):
        return (3 * torch.eye(4) - 1).expand(len(z), 1, 4, 4)


def test_sharpness_of_clipped_reconstructions_and_of_the_data():
    x = np.random.default_rng(0).integers(0, 256, (9, 1, 4, 4), dtype=np.uint8)
    vae = VAE(Standard(), Images(), Gaussian(3), Normal(0.5))
    out = evaluate(vae, Data(x), measures=["sharpness"])
    picture = metrics.sharpness(np.eye(4, dtype=np.uint8)[None] * 255).value
    assert out["sharpness"] == pytest.approx(picture, rel=1e-6)
    assert out["sharpness_data"] == pytest.approx(metrics.sharpness(x).value, rel=1e-5)
    assert out["sharpness_rows"] == 9


def with_factors():
    """x is two factors and noise; a third factor has one value."""
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 4, (300, 2))
    x = np.concatenate([factors, rng.normal(size=(300, 1))], 1).astype(np.float32)
    factors = np.insert(factors, 1, 7, axis=1)
    return Data(x, factors=factors, factor_names=("shape", "colour", "size"))


def noted(codes, factors, *, seed=0):
    warnings.warn("few rows", UserWarning, stacklevel=1)
    return Score(float(seed), {"codes": codes.shape, "factors": factors.shape})


def test_scores_are_those_of_the_codes_and_the_factors_that_vary():
    rows = with_factors()
    out = evaluate(blind(), rows, measures=["mcc", "mig"], seed=3)
    codes, varied = rows.x * np.float32([1, 1, 0]), rows.factors[:, [0, 2]]
    assert list(out["scores"]) == ["mcc", "mig"]
    for name, score in out["scores"].items():
        direct = metrics.METRICS[name](codes, varied, seed=3)
        assert score["value"] == pytest.approx(direct.value, abs=1e-9), name
        assert set(score["details"]) == set(direct.details)
    assert out["scores"]["mcc"]["value"] == pytest.approx(1.0)
    assert (out["factors"], out["factors_left_out"]) == (["shape", "size"], ["colour"])


def test_metrics_warn_in_notes_once_each(monkeypatch):
    def named(text):
        def metric(codes, factors, *, seed=0):
            warnings.warn(text, UserWarning, stacklevel=1)
            return noted(codes, factors, seed=seed)

        return metric

    texts = ("one: few rows", "to_two: few rows", "Solver: no\n  end")
    names = ("one", "to-two", "three")
    table = {name: named(text) for name, text in zip(names, texts, strict=True)}
    monkeypatch.setattr(metrics, "METRICS", table)
    factors = np.array([[0, 1], [1, 1], [2, 1]])
    out = score_codes(np.zeros((3, 5)), factors, names, seed=9)
    assert out == {
        "scores": {
            name: {"value": 9.0, "details": {"codes": (3, 5), "factors": (3, 1)}} for name in names
        },
        "factors": ["factor 0"],
        "factors_left_out": ["factor 1"],
        "notes": ["Few rows", "Solver: no end"],
    }


def test_what_a_metric_refuses_is_a_note_only_where_all_that_apply_are_asked_for(monkeypatch):
    def refuses(codes, factors, *, seed=0):
        raise ValueError("mcc: codes must have more rows; got 300.")

    monkeypatch.setattr(metrics, "METRICS", {"mcc": refuses, "mig": noted})
    worked = []
    for name in MEASURES:
        monkeypatch.setitem(MEASURES, name, lambda subject: worked.append(1) or {})
    out = evaluate(blind(), with_factors(), measures=None)
    assert list(out["scores"]) == ["mig"] and len(worked) == 2
    assert out["notes"] == ["Few rows", "mcc: codes must have more rows; got 300."]
    with pytest.raises(ValueError, match=r"^mcc: codes must have more rows; got 300\.$"):
        evaluate(blind(), with_factors(), measures=["aggregate", "mcc", "mig"])
    assert len(worked) == 2  # what takes minutes was not begun


def test_all_that_apply_leaves_out_what_takes_minutes(monkeypatch):
    images, constant = Data(np.zeros((3, 1, 4, 4), np.uint8)), np.zeros((7, 1), np.int64)
    monkeypatch.setattr(metrics, "METRICS", {"mig": noted, "dci": noted, "mcc": noted})
    always = ["log-marginal", "aggregate"]
    assert applicable(images) == [*always, "sharpness"] == list(MEASURES)
    assert applicable(data()) == applicable(Data(data().x, factors=constant)) == always
    assert applicable(with_factors()) == [*always, "mig", "mcc"]
    out = evaluate(blind(), with_factors(), measures=None, n_samples=1)
    assert {"log_marginal", "overlap"} <= set(out) and list(out["scores"]) == ["mig", "mcc"]


@pytest.mark.parametrize(
    "name, rows, sentence",
    [
        (
            "mgi",
            data(),
            r"^--metrics must be among log-marginal, .*mig.*; got 'mgi'\. Did you mean mig\?$",
        ),
        ("nonsense", data(), r"^--metrics must be among .*; got 'nonsense'\.$"),
        ("sharpness", data(), r"^--metrics sharpness needs images; x has shape \(3,\)\. Leave"),
        ("mig", data(), r"^--metrics mig needs ground-truth factors that vary; the data have none"),
        (
            "mig",
            Data(data().x, factors=np.ones((7, 2), np.int64)),
            r"^--metrics mig needs ground-truth factors that vary; the data have none\. Leave",
        ),
    ],
)
def test_measures_that_do_not_apply_are_refused_before_any_work(name, rows, sentence, monkeypatch):
    monkeypatch.setattr(held_out, "encode_data", lambda *args: pytest.fail("work was begun"))
    with pytest.raises(ValueError, match=sentence):
        evaluate(blind(), rows, measures=["aggregate", name])


@pytest.mark.parametrize(
    "names", [["mig", "aggregate", "mcc", "log-marginal"], ["log-marginal"], ["mig"]]
)
def test_progress_names_each_measure_and_its_share_rises(names, monkeypatch):
    monkeypatch.setattr(metrics, "METRICS", {"mig": noted, "mcc": noted})
    said = []
    evaluate(
        standard(), with_factors(), measures=names, n_samples=2, n_rows=50,
        on_progress=lambda name, share: said.append((name, share)),
    )  # fmt: skip
    shares = [share for _, share in said]
    names = sorted(names, key=lambda name: name in MEASURES)  # the metrics come first
    assert list(dict.fromkeys(name for name, _ in said)) == names
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] <= 1
    for i, name in enumerate(names):  # equal shares
        own = [share for said_name, share in said if said_name == name]
        assert own[0] == pytest.approx(i / len(names))
        if name == "log-marginal":  # 20 + 20 + 10 rows
            within = [(share * len(names) - i) for share in own]
            assert within == pytest.approx([0, 0.4, 0.8, 1])


def test_codes_at_hand_are_not_made_again(monkeypatch):
    vae, rows = blind(), with_factors()
    codes = encode_data(vae, rows)
    monkeypatch.setattr(held_out, "encode_data", lambda *args: pytest.fail("they were at hand"))
    shifted = codes._replace(kl=codes.kl + 1, loc=torch.zeros_like(codes.loc))
    out = evaluate(vae, rows, codes=shifted, measures=["mig"])
    assert out["kl"] == pytest.approx(codes.kl.mean().item() + 1, rel=1e-6)
    assert out["scores"]["mig"]["value"] == 0


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
    for held in (
        {"aggregate_kl": 2.4},  # half the rate is information
        {"aggregate_kl": 0.8, "kl": 0.9},
        {"aggregate_kl": 4.0, "information_bounded": True},  # too few rows to tell
    ):
        assert diagnose(FINE | held, config()) == []
    for penalty in ("absolute", "relu"):
        assert diagnose(FINE, config(gamma=10.0, capacity=5.0, penalty=penalty)) == []


CAPACITY = {"gamma": 10.0, "capacity": 5.0}
APART = (
    "Most of the rate, {:.1f} of 5.0 nats, is KL(q(z) || p(z)): the codes lie where the prior does not, and "
    "what is decoded from its samples will not be like the data: train longer, or "
)
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
        (  # an empty code is not mended by fewer latents
            {"active_units": 0},
            {},
            "3 of 3 latents carry < 0.01 nats: lower beta or lower lr.",
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
        (
            {"aggregate_kl": 2.6},
            {},
            APART.format(2.6) + "raise beta or alpha.",
        ),
        ({"aggregate_kl": 4.0}, CAPACITY, APART.format(4.0) + "lower C."),
        ({"aggregate_kl": 4.0}, {"beta_tc": 6.0}, APART.format(4.0) + "raise beta_tc."),
    ],
)
def test_diagnoses(metrics, options, sentence):
    assert diagnose(FINE | metrics, config(**options)) == [sentence]


def test_a_prior_beyond_the_posteriors_is_said():
    """D hardly changes with the rows there: half of them would not show it."""
    biased = FINE | {"divergence": 47.4, "divergence_at_half": 47.8, "divergence_components": 4000}
    assert diagnose(biased | {"divergence_outside": 0.02}, config()) == []
    (said,) = diagnose(biased | {"divergence_outside": 0.4}, config())
    assert said.startswith(
        "D is dominated by its bias (40% of the prior's samples lie outside every"
    )
    assert said.endswith("use --divergence mmd-per-dim.")


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
    assert len(says) == (said or value is None)
    if value is None:
        assert says[0].startswith("Not measured: D(q(z), p(z)).")
    if said:
        begin = f"D depends on how many rows it sees ({half:.2f} nats at 200, {value:.2f} at 400)"
        assert says[0].startswith(begin) and says[0].endswith("use --divergence mmd-per-dim.")


def test_remedies_are_options_that_are_not_refused():
    biased = FINE | {"rate_minus_log_batch": 1.5, "divergence_name": "total-correlation"}
    (said,) = diagnose(biased, config(beta_tc=6.0))
    assert said.endswith("use a larger batch.")
    shared = FINE | {"purity": 0.4, "components_used": 2}
    assert diagnose(shared, config(conditional=True)) == []


# Codes of a stranger's


def test_files_of_codes_are_believed_no_further_than_they_reach(tmp_path, monkeypatch):
    good, bad = tmp_path / "f.npy", tmp_path / "z.npz"
    np.save(good, np.arange(20).reshape(10, 2) % 3)
    monkeypatch.setattr(memory, "_memory", lambda: 1 << 20)
    np.savez_compressed(bad, z=np.zeros((1000, 1000), np.float32))
    with pytest.raises(
        ValueError, match=r"z\.npz: the array must fit in half of .*0\.000524 GB; got"
    ):
        read_codes(bad, good)
    with zipfile.ZipFile(bad, "w") as archive, archive.open("z.npy", "w") as member:
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**15, 2)}
        np.lib.format.write_array_header_1_0(member, header)
    with pytest.raises(
        ValueError, match=r"--codes must be .*; .*z\.npz cannot be read \(EOFError\)"
    ):
        read_codes(bad, good)
    with zipfile.ZipFile(bad, "w") as archive:
        for name in "ab":
            archive.writestr(f"{name}\n{'c' * 999}.npy", b"")
    with pytest.raises(ValueError, match=r"holds 'a\\nc+\.\.\., 'b\\nc+\.\.\.\. Rename one\.$"):
        read_codes(bad, good)


@pytest.mark.parametrize("name", ["pipe.npy", "device.npy", "x" * 300])
def test_codes_are_read_from_files_only(tmp_path, name):
    if name == "pipe.npy":
        os.mkfifo(tmp_path / name)
    elif name == "device.npy":
        (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(
        FileNotFoundError, match=r"^--codes must name a \.npy or \.npz file; .*is not"
    ):
        read_codes(tmp_path / name, tmp_path / name)
