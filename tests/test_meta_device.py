"""Training steps on torch's `meta` device, which computes no values and here has no float64.

Three faults raise there that on a GPU only cost time, or fail on Apple's MPS alone: a tensor left on the CPU,
a read of a value such as ``item()``, and a float64 tensor.
"""

import functools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_bvae import CapacityELBO, DecompositionELBO, device, fit
from pyro_bvae.datasets import Data
from pyro_bvae.datasets.batches import batches
from pyro_bvae.divergences import DIVERGENCES, inclusive_kl
from pyro_bvae.evaluation import encode_data, evaluate, log_marginal
from pyro_bvae.likelihoods import LIKELIHOODS
from pyro_bvae.networks import NETWORKS
from pyro_bvae.optim import JointAdam
from pyro_bvae.priors import PRIORS, Gaussian
from pyro_bvae.schedules import NonNegative, numbers_on
from pyro_bvae.svi import CompiledSVI
from pyro_bvae.tally import Tally
from pyro_bvae.vae import VAE

META = torch.device("meta")
ROWS, LATENTS = 5, 3


class OneDevice(TorchDispatchMode):
    """Refuse float64 tensors on ``device``, and operations on tensors of two devices."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {leaf.device for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        assert len(given) < 2 or func is torch.ops.aten.copy_.default, f"{func} on {given}"
        for leaf in tree_leaves(out):
            if torch.is_tensor(leaf) and leaf.dtype is torch.float64:
                assert leaf.device != self.device, f"{func} makes float64"
        return out


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Both devices as Apple's MPS is."""
    monkeypatch.setattr(device, "WITHOUT_FLOAT64", ("meta", "cpu"))


def make_vae(
    prior="gaussian", likelihood="bernoulli", network="mlp", n_classes=0, encode_labels=False, **scale
):  # fmt: skip
    side = 32 if network == "dcgan32" else 64
    shape = (6,) if network == "mlp" else (1, side, side)
    x = np.random.default_rng(0).random((ROWS, *shape), dtype=np.float32)
    if prior == "pca":  # what it makes of data; it would import scikit-learn
        p_z = Gaussian(LATENTS, scale=torch.tensor([1.5, 1.0, 0.5]))
    else:
        p_z = PRIORS[prior](LATENTS, **({"x": x, "n_components": 4} if prior == "vamp" else {}))
    make = functools.partial(NETWORKS[network], latent_dim=LATENTS)
    encoder, decoder = make(shape, extra=n_classes, scale=scale.get("scale") == "decoder")
    if encode_labels:
        encoder, _ = make((shape[0] + n_classes, *shape[1:]))
    vae = VAE(
        encoder, decoder, p_z, LIKELIHOODS[likelihood](**scale), 1.0, n_classes, encode_labels
    )
    return vae, Data(x, labels=np.arange(ROWS) % max(n_classes, 1))


def step(objective, schedules=(), transform=None, steps=1, **parts):
    """The steps of `fit` on the meta device, without its records and its validation, which read values."""
    vae, data = make_vae(**parts)
    vae.to(META)
    for owner in (
        vae,
        objective,
    ):  # as `numbers_on`, which cannot swap a CPU tensor's data for meta's
        for name, value in vars(type(owner)).items():
            if isinstance(value, NonNegative):
                vars(owner)[f"_{name}"] = torch.empty((), device=META)
    tally = Tally(objective, META)
    optim = JointAdam(vae.parameters(), lr=1e-3, hold=tally.bad)
    svi = CompiledSVI(vae.model, vae.guide, optim, tally, compile=False)
    endless = batches(data, ROWS, torch.Generator(), META, with_labels=vae.n_classes > 0)
    with pyro.validation_enabled(False), OneDevice(META):
        for number in range(steps):
            for name in schedules:
                setattr(vae if name == "beta" else objective, name, 1.0 + number)
            x, labels, _ = next(next(endless))
            loss = svi.update(x if transform is None else transform(x), labels)
            tally.keep(number, optim.largest)
    assert loss.device == META and loss.shape == ()
    assert all(optim.state), "a parameter got no gradient"
    return vae, data


def decomposition(name="inclusive-kl", **options):
    size = {"dataset_size": 100} if name in ("exclusive-kl", "total-correlation") else {}
    return DecompositionELBO(1.0, functools.partial(DIVERGENCES[name], **size), **options)


@pytest.mark.parametrize("prior", PRIORS)
def test_every_prior(prior):
    vae, _ = step(decomposition(), prior=prior)  # which samples it and reads its density
    if hasattr(vae.prior, "assign"):
        with pyro.validation_enabled(False):
            assert vae.prior.assign(torch.empty(2, LATENTS, device=META)).device == META


@pytest.mark.parametrize("prior", ["gaussian", "mixture"])  # KL in closed form, and of samples
@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence(name, prior):
    step(decomposition(name), ("beta", "alpha"), prior=prior)


@pytest.mark.parametrize("penalty", ["absolute", "relu"])
def test_capacity(penalty):
    step(CapacityELBO(10.0, 1.0, penalty), ("gamma", "capacity"), steps=2, prior="spike-slab")
    step(CapacityELBO(10.0, 1.0, penalty, "example"))


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network(network):
    step(DecompositionELBO(), network=network, likelihood="normal", scale="decoder", n_classes=2)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood(likelihood):
    scaled = likelihood in ("normal", "laplace")
    for scale in [{"scale": scale} for scale in (0.1, "learned")] if scaled else [{}]:
        step(DecompositionELBO(), transform=torch.bernoulli, likelihood=likelihood, **scale)


@pytest.mark.parametrize("vectorize", [False, True])
def test_particles(vectorize):
    options = {"num_particles": 2, "vectorize_particles": vectorize, "max_plate_nesting": 1}
    step(DecompositionELBO(**options), n_classes=2, encode_labels=True)
    step(CapacityELBO(10.0, 1.0, **options), prior="mixture")
    if not vectorize:
        step(decomposition(**options))


def test_codes_and_the_bound_on_the_evidence(monkeypatch):
    monkeypatch.setattr(VAE, "check", lambda *args: None)  # it reads values, once
    vae, data = make_vae(n_classes=2)
    vae.to(META)
    with pyro.validation_enabled(False), OneDevice(META):
        x, labels = data.tensors(np.arange(ROWS), META)
        assert vae.reconstruct(x, labels).device == vae.sample(ROWS, labels=labels).device == META
        assert encode_data(vae, data).kl.device == META
        assert log_marginal(vae, x, labels, n_samples=3).device == META


def test_float64_data_are_narrowed_before_they_go_to_the_device():
    data = Data(np.random.default_rng(0).random((ROWS, 6)))
    with OneDevice(META):
        assert data.tensors(np.arange(ROWS), META)[0].dtype is torch.float32
        x, _, _ = next(next(batches(data, ROWS, torch.Generator(), META)))
    assert x.dtype is torch.float32 and x.device == META


def test_a_cpu_without_float64_trains_and_evaluates():
    vae, data = make_vae("spike-slab", "normal", scale="learned")
    with OneDevice(torch.device("cpu")):
        history = fit(vae, decomposition(), data, steps=3, schedules={"beta": lambda step: 0.1})
        found = evaluate(vae, data, divergence=inclusive_kl, measures=["aggregate", "log-marginal"])
    assert history[-1]["beta"] == 0.1 and math.isfinite(history[-1]["loss"])
    assert math.isfinite(found["log_marginal"]) and math.isfinite(found["divergence"])


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_of_narrow_posteriors_need_no_float64(name, monkeypatch):
    loc = torch.randn(50, LATENTS)
    scale = torch.full_like(loc, 0.01).requires_grad_()
    q_z = dist.Normal(loc.requires_grad_(), scale).to_event(1)
    p_z, z = Gaussian(LATENTS)(), q_z.rsample().detach().requires_grad_()
    found = []
    for devices in (("cpu",), ()):
        monkeypatch.setattr(device, "WITHOUT_FLOAT64", devices)
        torch.manual_seed(1)  # of the samples of the prior
        value = decomposition(name).divergence(q_z, p_z, z)
        found.append(
            (value.detach(), *torch.autograd.grad(value, [loc, scale, z], allow_unused=True))
        )
    for narrow, wide in zip(*found, strict=True):
        torch.testing.assert_close(narrow, wide, rtol=2e-4, atol=2e-5)


def test_a_number_that_was_on_such_a_device_is_what_was_typed(monkeypatch):
    objective = DecompositionELBO(0.1)
    held = vars(objective)["_alpha"]
    with numbers_on(torch.device("cpu"), objective):
        assert held.dtype is torch.float32
        monkeypatch.setattr(device, "WITHOUT_FLOAT64", ())
    assert vars(objective)["_alpha"] is held and held.item() == 0.1
