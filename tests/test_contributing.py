"""CONTRIBUTING: what it shows how to add is short and passes what such things must pass; CI is .ci/run."""

import re
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyro_bvae.priors import check_prior
from pyro_bvae.recipes import experiment_sweep, read_recipe, reading
from pyro_bvae.reproduce.pictures import FIGURES

try:
    import tomllib
except ModuleNotFoundError:  # before Python 3.11, where pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
PRIOR, DIVERGENCE, METRIC, RECIPE = (text for _, text in BLOCKS)


def names(code):
    scope: dict = {}
    exec(code, scope)
    return scope


@pytest.mark.parametrize("text", [PRIOR, DIVERGENCE, METRIC, RECIPE])
def test_each_is_under_thirty_lines(text):
    assert len(text.splitlines()) < 30


def test_the_prior():
    shell = names(PRIOR)["Shell"](3, radius=2.0)
    assert check_prior(shell, 3).startswith("ok: integrates to")
    assert shell().mean.tolist() == [2, 0, 0]


def test_the_divergence():
    """Of N(m, I) and N(0, I): |m|^2, and what the samples' own moments add."""
    moments = names(DIVERGENCE)["moments"]
    torch.manual_seed(0)
    p_z = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    loc = torch.tensor([1.0, 2.0])
    found = [moments(None, p_z, loc + torch.randn(1000, 2)).item() for _ in range(20)]
    # twice 1/1000 for the variance of each mean, and twice 2/1000 for that of each variance
    assert np.mean(found) == pytest.approx(5 + 2 * (0.002 + 0.004), abs=4 * np.std(found) / 20**0.5)


def test_the_metric():
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 5, (2000, 3))
    metric = names(METRIC)["best_correlation"]
    assert metric(-2.0 * factors[:, [2, 0, 1]], factors).value == pytest.approx(1)
    assert metric(np.ones((2000, 2)), factors).value == 0
    assert metric(rng.normal(size=(2000, 2)), factors).value < 5 / 2000**0.5


def test_the_recipe(monkeypatch):
    monkeypatch.setattr(reading, "_parse", lambda name: tomllib.loads(RECIPE))
    recipe = read_recipe("digits-rate")
    assert [c.beta for c in experiment_sweep(recipe).configs] == [1, 1, 4, 4]
    assert set(recipe.figures) <= set(FIGURES)


def test_the_workflow_runs_what_ci_runs():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert re.findall(r"- run: (.*)", workflow) == ["bash .ci/run"]
