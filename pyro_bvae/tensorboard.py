"""A training in TensorBoard: a callback that writes every record's numbers."""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

from .tally import Record
from .training import Callback, TrainingState
from .writing import check_directory

_AXIS = ("step", "epoch", "seconds")
_SCHEDULED = ("beta", "alpha", "gamma", "capacity")


def tensorboard(folder: str | Path) -> Callback:
    """A callback for `fit`, `train` and `resume` that writes the records to ``folder``.

    ``tensorboard --logdir folder`` shows them while they come: means over the steps since the last record
    under ``train``, those of held-out rows under ``held out``, the KL of each latent, and beta, alpha, gamma,
    C under ``scheduled``; in nats per example, by step. After `resume` into the same folder, what an
    interrupted training wrote beyond its last checkpoint is left out of sight.

    Args:
        folder: made where it is missing; give each run one of its own, side by side in one that
            ``--logdir`` names.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
        OSError: nothing can be written there.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ModuleNotFoundError(
            "tensorboard: the package tensorboard must be installed; it is not. "
            'Install it: pip install "pyro-bvae[tensorboard]".'
        )
    check_directory(Path(folder), "--tensorboard")
    writer: Any = None

    def write(record: Record, state: TrainingState) -> None:
        nonlocal writer
        step = int(record["step"])
        if writer is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its own parts
                from torch.utils.tensorboard import SummaryWriter
            writer = SummaryWriter(str(folder), purge_step=step)
        for name, value in record.items():
            if name not in _AXIS:
                writer.add_scalar(_tag(name), value, step)
        writer.flush()
        if state.step == state.total:
            writer.close()
            writer = None

    return write


def _tag(name: str) -> str:
    """
    >>> [_tag(name) for name in ("kl", "test_kl", "test_kl_z3", "beta")]
    ['train/kl', 'held out/kl', 'held-out KL per latent/z3', 'scheduled/beta']
    """
    if latent := re.fullmatch(r"test_kl_(z\d+)", name):
        return f"held-out KL per latent/{latent[1]}"
    if name.startswith("test_"):
        return f"held out/{name.removeprefix('test_')}"
    return f"{'scheduled' if name in _SCHEDULED else 'train'}/{name}"
