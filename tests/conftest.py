"""Every test starts with an empty Pyro parameter store and a known seed."""

import pyro
import pytest
import torch
from hypothesis import settings

from pyro_bvae import measuring, pairloop, svi

# python -m pytest tests/test_fuzz.py --hypothesis-profile=thorough: twenty times the cases, new ones each time
settings.register_profile("thorough", max_examples=2000)
torch.set_num_threads(1)  # a worker of pytest-xdist has a core to itself, and sums come out alike


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)


@pytest.fixture
def replayed(monkeypatch):
    """Captured graphs, run operation by operation; a list of them."""
    graphs = []
    monkeypatch.setattr(svi, "_compile", lambda graph: graphs.append(graph) or graph)
    monkeypatch.setattr(pairloop, "_loops", {})
    monkeypatch.setattr(pairloop, "_compile", lambda graph, inputs: graph)
    return graphs


@pytest.fixture
def without_figures(monkeypatch):
    """Pictures take most of a small run's time; tests of them draw them."""
    monkeypatch.setattr(measuring, "write_figures", lambda *args: [])
