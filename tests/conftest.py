"""Every test starts with an empty Pyro parameter store and a known seed."""

import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)
