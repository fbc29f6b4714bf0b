"""The device that trains, and the widest floating dtype that it has."""

from __future__ import annotations

import torch

WITHOUT_FLOAT64 = ("mps",)
"""Types of devices that have no float64."""


def widest(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device that has no float64."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def choose_device(name: str) -> torch.device:
    """The torch device called ``name``; ``"auto"`` is CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:N; got {name!r}.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"--device {name} must be present; torch {torch.__version__} sees no CUDA device. "
            "Use --device cpu, or install torch for CUDA."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device must be one of the {torch.cuda.device_count()} CUDA devices; got {name!r}."
        )
    return device
