"""The same training on CUDA: run with ``-m gpu`` where there is a device."""

import math

import numpy as np
import pyro
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


PROGRAMS = {
    "mixture, inclusive KL": {"prior": "mixture", "alpha": 1.0},
    "spike-slab, MMD": {"prior": "spike-slab", "alpha": 1.0, "divergence": "mmd-per-dim"},
    "beta-TCVAE": {"beta_tc": 4.0},
    "capacity": {"gamma": 10.0, "capacity": 2.0},
}


@pytest.mark.parametrize("options", PROGRAMS.values(), ids=PROGRAMS)
def test_compiled_training_is_the_eager_one(options):
    histories = []
    for compile in (False, True):
        pyro.set_rng_seed(0)
        built = build(Config(**options, steps=12, device="cuda"))
        histories.append(
            fit(
                built.vae,
                built.objective,
                built.train,
                steps=12,
                batch_size=100,
                schedules=built.schedules,
                compile=compile,
            )  # fmt: skip
        )
    for eager, compiled in zip(*histories, strict=True):
        for name in eager.keys() - {"seconds"}:
            assert compiled[name] == pytest.approx(eager[name], rel=1e-3, abs=1e-3), name


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("options", PROGRAMS.values(), ids=PROGRAMS)
def test_a_step_waits_for_nothing(options, compile):
    built = build(Config(**options, steps=12, device="cuda"))
    data = built.train.subset(np.arange(400).repeat(4)[:1300])

    def watch(state):  # from the fifth step, before the losses are first read
        torch.cuda.set_sync_debug_mode("error" if 5 <= state.step < 12 else "default")

    from torch._dynamo.utils import counters

    held = vars(built.vae)["_beta"]
    counters["inductor"].clear()
    try:
        fit(
            built.vae, built.objective, data, steps=13, batch_size=100,
            schedules=built.schedules, compile=compile, on_step=watch,
        )  # fmt: skip
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert counters["inductor"]["cudagraph_skips"] == 0
    assert vars(built.vae)["_beta"] is held and not held.is_cuda


@pytest.mark.parametrize("conditional", [False, True])
def test_streamed_data_train_alike(conditional, monkeypatch):
    losses = []
    for free in (10**12, 0):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**12))
        pyro.set_rng_seed(0)
        built = build(Config(steps=8, device="cuda", conditional=conditional))
        history = fit(built.vae, built.objective, built.train, steps=8, batch_size=100)
        losses.append([record["loss"] for record in history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
