"""What a type checker sees of the public names: mypy reads this file (see pyproject.toml), pytest runs it.

Under mypy `assert_type` fails where a type is another one, or Any, and a `type: ignore` where there is
nothing to ignore: so each of those below is an error that a user would be told.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.optim import PyroOptim
from torch import Tensor
from typing_extensions import assert_type

import pyro_bvae
from pyro_bvae import (
    VAE,
    CapacityELBO,
    Config,
    DecompositionELBO,
    ElboTerms,
    Run,
    fit,
    load_run,
    resume,
    train,
)
from pyro_bvae.datasets import Data, load_dataset
from pyro_bvae.divergences import inclusive_kl
from pyro_bvae.evaluation import evaluate, log_marginal
from pyro_bvae.likelihoods import Bernoulli, Normal
from pyro_bvae.metrics import METRICS, Score, hoyer, mig
from pyro_bvae.networks import mlp
from pyro_bvae.priors import Gaussian, Mixture, check_prior
from pyro_bvae.schedules import constant, linear
from pyro_bvae.sklearn import DecompositionVAE
from pyro_bvae.svi import CompiledSVI
from pyro_bvae.training import Record, TrainingState

MODEL: dict[str, Any] = {"prior": "mixture", "steps": 2, "device": "cpu"}


def model() -> VAE:
    encoder, decoder = mlp(x_shape=(2,), latent_dim=2, scale=True)
    return VAE(encoder, decoder, Mixture(2), Normal("decoder"), beta=1.0)


class Ring(torch.nn.Module):
    """A prior of the user's own."""

    def __init__(self, latent_dim: int, radius: float = 1.0) -> None:
        super().__init__()
        self.loc = torch.nn.Parameter(torch.full((latent_dim,), radius))

    def forward(self) -> dist.TorchDistribution:
        return dist.Independent(dist.Normal(self.loc, 1.0), 1)


def moments(q_z: dist.TorchDistribution, p_z: dist.TorchDistribution, z: Tensor) -> Tensor:
    """A divergence of the user's own."""
    return (z.mean(0) - p_z.sample((100,)).mean(0)).square().sum()


def test_a_model_is_built_and_fitted() -> None:
    data, held_out = load_dataset("spirals")
    assert_type(held_out, Data)
    vae = model()
    epochs: list[int] = []

    def note(record: Record, state: TrainingState) -> None:
        epochs.append(state.epoch)

    history = fit(
        vae, DecompositionELBO(alpha=1.0, divergence=inclusive_kl), data, steps=2, batch_size=400,
        schedules={"beta": linear(0.0, 1.0, 2), "alpha": constant(1.0)}, callbacks=[note],
    )  # fmt: skip
    assert_type(history, list[dict[str, float]])
    assert epochs and history[-1]["beta"] == 0.5

    x = torch.zeros(3, 2)
    assert_type(vae.beta, float)
    assert_type(vae.encode(x), Tensor)
    assert_type(vae.reconstruct(x), Tensor)
    assert_type(log_marginal(vae, x, n_samples=2), Tensor)
    assert_type(evaluate(vae, held_out), dict[str, Any])
    vae.beta = 1.0
    for objective in (CapacityELBO(gamma=10.0, capacity=1.0), DecompositionELBO(1.0, moments)):
        terms = objective.terms(vae.model, vae.guide, x)
        assert_type(terms, ElboTerms)
        assert_type(terms.kl, Tensor)
    adam = PyroOptim(torch.optim.Adam, {"lr": 1e-3})
    svi = CompiledSVI(vae.model, vae.guide, adam, objective)
    assert_type(svi, CompiledSVI)
    assert_type(check_prior(Ring(2), latent_dim=2), str)


def test_a_run_is_trained_and_read(tmp_path: Path) -> None:
    run = train(Config(**MODEL), tmp_path / "run")
    assert_type(run, Run)
    assert_type(load_run(tmp_path / "run"), Run)
    assert_type(resume(tmp_path / "run"), Run)
    assert_type(run.vae, VAE)
    assert_type(run.config, Config)
    assert_type(run.history, list[dict[str, float]])
    assert_type(run.config.beta, float)
    assert_type(run.config.latent_dim, int | None)


def test_codes_are_measured() -> None:
    factors = np.random.default_rng(0).integers(0, 4, (500, 2))
    score = mig(factors.astype(float), factors)
    assert_type(score, Score)
    assert_type(score.value, float)
    assert_type(METRICS["mig"](factors, factors), Score)
    assert_type(hoyer(factors), Score)
    assert_type(pyro_bvae.metrics.mig(factors, factors), Score)
    assert_type(pyro_bvae.priors.Gaussian(2), Gaussian)
    codes = DecompositionVAE(latent_dim=1, epochs=1).fit(factors)
    assert_type(codes, DecompositionVAE)


if TYPE_CHECKING:  # not all of these raise, or raise at once: they are for the type checker alone

    def wrong_calls(encoder: torch.nn.Module, codes: np.ndarray, data: Data) -> None:
        VAE(prior="x")  # type: ignore[call-arg, arg-type]
        VAE(encoder, encoder, "mixture", Bernoulli())  # type: ignore[arg-type]
        VAE(encoder, encoder, Gaussian(2), Bernoulli()).beta = "1"  # type: ignore[assignment]
        CapacityELBO(capacity=1.0)  # type: ignore[call-arg]
        DecompositionELBO(1.0, divergence="mmd")  # type: ignore[arg-type]
        fit(model(), DecompositionELBO(), [1.0], steps=1)  # type: ignore[arg-type]
        fit(model(), DecompositionELBO(), data, 1)  # type: ignore[call-arg]
        fit(model(), DecompositionELBO(), data, schedules={"beta": 1.0})  # type: ignore[dict-item]
        train("spirals")  # type: ignore[arg-type]
        Config(betta=2.0)  # type: ignore[call-arg]
        Config().beta = 2.0  # type: ignore[misc]
        load_run(3)  # type: ignore[arg-type]
        mig(codes)  # type: ignore[call-arg]
        _ = load_dataset("spirals").x  # type: ignore[attr-defined]
        _ = pyro_bvae.VEA  # type: ignore[attr-defined]
        _ = pyro_bvae.metrics.mgi  # type: ignore[attr-defined]
        from pyro_bvae.priors import Mixtures as Mixtures  # type: ignore[attr-defined]
