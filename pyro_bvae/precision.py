"""The widest floating dtype of a device."""

from __future__ import annotations

import torch

WITHOUT_FLOAT64 = ("mps",)
"""Types of devices that have no float64."""


def widest(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device that has no float64."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64
