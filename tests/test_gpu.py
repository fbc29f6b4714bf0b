"""The same training on CUDA: run with ``-m gpu`` where there is a device."""

import math

import pytest
import torch

from pyro_bvae import CapacityELBO, Config, DecompositionELBO, fit, load_run, train
from pyro_bvae.build import build
from pyro_bvae.divergences import DIVERGENCES
from pyro_bvae.priors import PRIORS, check_prior

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("prior", PRIORS)
def test_every_prior_trains_on_cuda(prior):
    built = build(Config(prior=prior, alpha=1.0, steps=3, device="cuda"))
    history = fit(built.vae, built.objective, built.train, steps=3, batch_size=400)
    assert all(math.isfinite(record["loss"]) for record in history)
    assert next(built.vae.parameters()).is_cuda
    assert check_prior(built.vae.prior, 2).startswith("ok")


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_agree_with_the_cpu(name):
    built = build(Config(alpha=1.0, device="cpu"))
    x = torch.from_numpy(built.train.x)
    q, p = built.vae.q_z(x), built.vae.p_z()
    options = {"dataset_size": 400} if name == "total-correlation" else {}
    z = q.mean.detach()
    here = DIVERGENCES[name](q, p, z, **options).item()
    vae = built.vae.to("cuda")
    there = DIVERGENCES[name](vae.q_z(x.cuda()), vae.p_z(), z.cuda(), **options).item()
    # KLs and MMDs draw prior samples, from another generator on each device.
    assert there == pytest.approx(here, rel=0.3, abs=0.1)


def test_terms_agree_with_the_cpu():
    built = build(Config(device="cpu"))
    x = torch.from_numpy(built.train.x)
    here = DecompositionELBO().terms(built.vae.model, built.vae.guide, x).kl
    vae = built.vae.to("cuda")
    there = DecompositionELBO().terms(vae.model, vae.guide, x.cuda()).kl
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-5)
    loss = CapacityELBO(10.0, 3.0).loss(vae.model, vae.guide, x.cuda())
    assert math.isfinite(loss)


def test_run_on_cuda_loads_on_the_cpu(tmp_path):
    run = train(Config(prior="mixture", alpha=1.0, steps=5, device="cuda"), tmp_path / "run")
    loaded = load_run(run.path)
    x = torch.randn(5, 2)
    torch.testing.assert_close(
        loaded.vae.encode(x), run.vae.encode(x.cuda()).cpu(), rtol=1e-4, atol=1e-5
    )
