"""environment.json: the versions and the hardware that made a run."""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch

from . import __version__
from .config import FORMAT
from .vae import VAE, vae_device
from .writing import read_json, write_json


def environment(vae: VAE) -> dict[str, Any]:
    """Of this process, as JSON holds it."""
    device = vae_device(vae)
    return {
        "format": FORMAT,
        "pyro_bvae": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def add_environment(path: Path, vae: VAE) -> None:
    """Where a run was resumed: beside where it began."""
    target = path / "environment.json"
    try:
        began = read_json(target)
    except (ValueError, FileNotFoundError):  # killed before it was written, or damaged since
        began = {}
    again = began.get("resumed")
    resumed = [*(again if isinstance(again, list) else []), environment(vae)]
    write_json(target, {**began, "resumed": resumed})
