"""The two examples of theory: their formulas against independent ones, and what they draw."""

import csv
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from PIL import Image
from torch.distributions import kl_divergence

from pyro_bvae import VAE, CapacityELBO
from pyro_bvae.datasets import Data, render_dsprites
from pyro_bvae.datasets.dsprites import SIZES
from pyro_bvae.likelihoods import Bernoulli
from pyro_bvae.networks import mlp
from pyro_bvae.priors import Gaussian, StudentT

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ("color", "shape", "scale", "orientation", "posX", "posY")
KL = ("kl_shape", "kl_scale", "kl_orientation", "kl_posX", "kl_posY")


def functions(name):
    return runpy.run_path(str(EXAMPLES / name))


def run(name, *arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def picture(path):
    pixels = np.asarray(Image.open(path).convert("L"))
    assert pixels.std() > 20  # not blank
    return pixels


def sprites(n, seed=0):
    rows = np.random.default_rng(seed).integers(math.prod(SIZES), size=n)
    factors = np.stack(np.unravel_index(rows, SIZES), axis=1)
    return Data(render_dsprites(rows)[:, None] * np.uint8(255), None, factors, NAMES)


# theory.py


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_gaussian_terms_by_hand_and_by_quadrature(beta):
    theory = functions("theory.py")
    m, s = 0.7, 0.4
    kl = (m**2 + s**2 - 1) / 2 - math.log(s)
    kl_f = (beta * (m**2 + s**2) - 1) / 2 - math.log(s * math.sqrt(beta))
    entropy = (1 + math.log(2 * math.pi)) / 2 + math.log(s)
    log_f = ((1 - beta) * math.log(2 * math.pi) - math.log(beta)) / 2
    loc, var = torch.tensor([m], dtype=torch.float64), torch.tensor([[s**2]], dtype=torch.float64)
    terms = theory["gaussian_terms"](dist.MultivariateNormal(loc, var), beta)
    assert terms == pytest.approx((-beta * kl, -kl_f, (beta - 1) * entropy, log_f), abs=1e-12)
    q = dist.Normal(loc[0], var[0, 0].sqrt())
    by_quadrature = theory["quadrature_terms"](q, theory["log_density"](Gaussian(1)), beta)
    assert by_quadrature == pytest.approx(terms, abs=1e-10)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_student_terms_are_those_of_quadrature(beta):
    """An annealed Student-t is one of other degrees of freedom: its F_beta as an integral."""
    theory = functions("theory.py")
    q = dist.Normal(torch.tensor(0.7, dtype=torch.float64), 0.4)
    prior = StudentT(1, df=4.0)
    terms = theory["student_terms"](q, prior, beta)
    by_quadrature = theory["quadrature_terms"](q, theory["log_density"](prior), beta)
    assert terms == pytest.approx(by_quadrature, abs=1e-10)


def small_vae(prior):
    torch.manual_seed(0)
    vae = VAE(*mlp((1, 4, 4), 6), prior, Bernoulli(), beta=2.0).double()
    with torch.no_grad():  # codes that differ by more than their noise
        vae.encoder.loc.weight *= 5
        vae.encoder.raw_scale.weight *= 5
    return vae, torch.rand(30, 1, 4, 4, dtype=torch.float64)


def test_a_rotated_posterior_is_the_full_covariance_normal():
    theory = functions("theory.py")
    vae, x = small_vae(Gaussian(6))
    with torch.no_grad():
        loc, scale = vae.encoder(x)
        turned = theory["rotated"](vae, 30.0, [4, 1])
        rotation, q = turned.encoder.rotation, turned.q_z(x)
        kept = theory["rotated"](vae, 30.0, [4, 1], diagonal=True).q_z(x)
    c, s = math.cos(math.pi / 6), 0.5
    assert torch.allclose(
        rotation[[4, 4, 1, 1], [4, 1, 4, 1]], torch.tensor([c, -s, s, c]).double()
    )
    expected = dist.MultivariateNormal(
        loc @ rotation.T, rotation @ torch.diag_embed(scale.square()) @ rotation.T
    )
    assert torch.allclose(kl_divergence(q, expected), torch.zeros(30).double(), atol=1e-12)
    assert torch.allclose(kept.variance, expected.variance)
    torch.manual_seed(0)
    z = q.rsample()
    torch.manual_seed(0)
    straight = dist.Normal(loc, scale).rsample()
    assert torch.allclose(z @ rotation, straight)
    straight_log_q = dist.Normal(loc, scale).log_prob(straight).sum(1)
    assert torch.allclose(q.log_prob(z), straight_log_q)
    assert torch.allclose(turned.decoder(z), vae.decoder(straight))


def test_rotation_costs_what_the_closed_forms_say():
    """E_q log p of a diagonal Gaussian: -sum_k (m_k^2 + var_k) / (2 scale_k^2) and a constant."""
    theory = functions("theory.py")
    scales = torch.linspace(1.5, 0.5, 6)
    vae, x = small_vae(Gaussian(6, scale=scales))
    change, error = theory["turn"](vae, x, np.array([0.0, 40.0]), 32)
    pair = theory["plane"](vae, x)
    with torch.no_grad():
        energies = []
        for degrees in (0.0, 40.0):
            q = theory["rotated"](vae, degrees, pair).q_z(x)
            energies.append(((q.mean.square() + q.variance) / scales.square()).sum(1).mean() / 2)
    expected = -vae.beta * (energies[1] - energies[0]).item()
    assert expected != 0 and error[1] < 1e-12  # the KL of a rotated posterior has a closed form
    assert change[1] == pytest.approx(expected, abs=1e-7)
    isotropic, _ = theory["turn"](small_vae(Gaussian(6))[0], x, np.array([0.0, 40.0]), 2)
    assert abs(isotropic[1]) < 1e-12


@pytest.mark.slow
def test_theory(tmp_path, monkeypatch, capsys):
    out = tmp_path / "theory.png"
    run("theory.py", "--seeds", 8, "--out", out, monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert said.count("beta  left side") == 4
    for sentence in ("does not ask for independence", "no axes are preferred", "know axes"):
        assert sentence in said
    assert picture(out).shape[1] > 1000


# factor_bottleneck.py


def uniform_levels():
    """Levels of the five factors over 480 rows, each value of each equally often."""
    rows = np.arange(480)
    factors = np.stack([rows % size for size in SIZES], axis=1)
    return Data(np.zeros((480, 1), np.uint8), None, factors, NAMES)


def test_features_are_standardised_factors():
    bottleneck = functions("factor_bottleneck.py")
    f = bottleneck["features"](uniform_levels(), np.arange(480))
    assert torch.allclose(f.mean(0), torch.zeros(8), atol=1e-6)
    assert torch.allclose(f.var(0, unbiased=False), torch.ones(8), atol=1e-5)
    # row 7: shape 1 (ellipse), scale level 1 of 0 .. 5, posX and posY level 7 of 0 .. 31
    hot = [(v - 1 / 3) / math.sqrt(2 / 9) for v in (0, 1, 0)]
    angles = 2 * math.pi * np.arange(40) / 39
    turned = [(w[7] - w.mean()) / w.std() for w in (np.sin(angles), np.cos(angles))]
    scale, pos = (1 - 2.5) / math.sqrt(35 / 12), (7 - 15.5) / math.sqrt((32**2 - 1) / 12)
    assert f[7].tolist() == pytest.approx([*hot, scale, *turned, pos, pos], abs=1e-5)


@pytest.mark.parametrize("encoder", ["linear", "mlp"])
def test_kl_of_each_factor_is_that_over_the_grid(encoder):
    bottleneck = functions("factor_bottleneck.py")
    net = bottleneck["Bottleneck"](encoder)
    with torch.no_grad():
        for parameter in net.encoder.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape))
        f = bottleneck["features"](uniform_levels(), np.arange(480))
        loc, scale = net.q_z(f)
    standard = dist.Normal(torch.zeros(8), torch.ones(8))
    of_latents = kl_divergence(dist.Normal(loc, scale), standard).mean(0)
    groups = [of_latents[part].sum().item() for part in ([0, 1, 2], [3], [4, 5], [6], [7])]
    assert list(net.kl().values()) == pytest.approx(groups, rel=1e-4)
    if encoder == "linear":  # E f^2 = 1
        for name, head in net.encoder.items():
            a, log_s = head.gain, head.log_scale
            by_hand = ((a**2 + (2 * log_s).exp() - 1) / 2 - log_s).sum()
            assert net.kl()[name] == pytest.approx(by_hand.item(), rel=1e-4)


def test_each_latent_sees_its_own_factor_alone():
    bottleneck = functions("factor_bottleneck.py")
    net = bottleneck["Bottleneck"]("mlp")
    jacobian = torch.autograd.functional.jacobian(lambda f: net.q_z(f)[0][0], torch.randn(1, 8))
    group = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4])
    assert not jacobian[:, 0][group[:, None] != group].any()
    assert (jacobian[:, 0].diagonal() != 0).any()


def test_objective_and_measurement_have_the_same_kl():
    bottleneck = functions("factor_bottleneck.py")
    net, data = bottleneck["Bottleneck"](), sprites(20)
    held_out = bottleneck["batch"](data, np.arange(20))
    row = bottleneck["measure"](net, held_out, 3, 1.5)
    assert row["kl"] == pytest.approx(sum(row[k] for k in KL))
    assert (row["step"], row["capacity"]) == (3, 1.5)
    # a decoder at its start: about log 2 for each of 4,096 pixels
    assert row["reconstruction"] == pytest.approx(4096 * math.log(2), rel=0.2)
    terms = CapacityELBO(1.0, 0.0).terms(net.model, net.guide, *held_out)
    loc, scale = net.q_z(held_out[0])
    assert torch.allclose(terms.kl, bottleneck["normal_kl"](loc, scale).sum(1), atol=1e-5)
    assert set(held_out[1].unique().tolist()) == {0.0, 1.0}
    assert row == bottleneck["measure"](net, held_out, 3, 1.5)  # the same noise


def test_thresholds_are_the_first_c_above_half_a_nat():
    rows = [dict.fromkeys(KL, kl) | {"capacity": c} for c, kl in ((1.0, 0.4), (2.0, 0.6), (3.0, 2))]
    rows[1]["kl_posX"], rows[2]["kl_scale"] = 0.5, 0.0
    found = functions("factor_bottleneck.py")["thresholds"](rows)
    assert found["posX"] == 3 and found["posY"] == 2 and found["scale"] == 2
    for row in rows:
        row["kl_shape"] = 0.1
    assert math.isnan(functions("factor_bottleneck.py")["thresholds"](rows)["shape"])


def bottleneck_run(path, monkeypatch, *arguments):
    loaded = sprites(400), sprites(60, seed=1)
    monkeypatch.setattr("pyro_bvae.datasets.load_dataset", lambda name: loaded)
    out = path / "bottleneck.png"
    run("factor_bottleneck.py", *arguments, "--out", out, monkeypatch=monkeypatch)
    with out.with_suffix(".csv").open(newline="") as file:
        return picture(out), [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("encoder", ["linear", "mlp"])
def test_factor_bottleneck(encoder, tmp_path, monkeypatch, capsys):
    steps = {"linear": 5, "mlp": 2}[encoder]
    arguments = "--steps", steps, "--capacity", 2, "--encoder", encoder
    pixels, rows = bottleneck_run(tmp_path, monkeypatch, *arguments)
    assert list(rows[0]) == ["step", "capacity", "kl", *KL, "reconstruction"]
    assert [row["step"] for row in rows] == list(range(steps + 1))
    assert [row["capacity"] for row in rows] == pytest.approx(np.linspace(0, 2, steps + 1))
    for row in rows:
        assert row["kl"] == pytest.approx(sum(row[k] for k in KL), abs=1e-9)
    assert rows[0]["kl"] < 0.1 and rows[-1]["kl"] > rows[0]["kl"]  # C is above
    assert rows[-1]["reconstruction"] < rows[0]["reconstruction"]
    assert pixels.shape[1] > 1500
    said = capsys.readouterr().out
    assert said.count("ms a step") == steps  # as many columns of pictures
    for name in NAMES[1:]:
        assert f"\n{name} " in said


@pytest.mark.slow
def test_kl_follows_c(tmp_path, monkeypatch):
    _, rows = bottleneck_run(tmp_path, monkeypatch, "--steps", 250, "--capacity", 1.5)
    late = [row for row in rows if row["step"] > 150]
    for row in late:  # a number a_k or s_k moves by .005 a step
        assert abs(row["kl"] - row["capacity"]) < 0.3
