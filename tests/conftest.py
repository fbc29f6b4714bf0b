"""Every test starts with an empty Pyro parameter store and a known seed."""

import pyro
import pytest
import torch
from hypothesis import settings

# python -m pytest tests/test_fuzz.py --hypothesis-profile=thorough: twenty times the cases, new ones each time
settings.register_profile("thorough", max_examples=2000)


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)
