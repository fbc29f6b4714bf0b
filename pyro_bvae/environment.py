"""environment.json: the versions and the hardware that made a run."""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch

from . import __version__
from .config import DATASETS, FORMAT, Config
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
        "folder": os.getcwd(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def located(path: Path, config: Config) -> Config:
    """``config`` of the run in ``path`` with data that were named from the folder it was trained in.

    Where they are there no more, as on another machine, their names hold from the current folder.
    """
    try:
        folder = read_json(path / "environment.json").get("folder")
    except (ValueError, FileNotFoundError):
        folder = None
    if not isinstance(folder, str):  # of a run before it was kept
        return config
    found: dict[str, Any] = {}
    for name in ("dataset", "data_dir"):
        value = getattr(config, name)
        if value is not None and value not in DATASETS:
            there = os.path.join(folder, os.path.expanduser(value))
            if os.path.exists(there):
                found[name] = there
    return dataclasses.replace(config, **found)


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
