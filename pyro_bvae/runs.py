"""A run: one training on disk. `train` writes it, `load_run` reads it.

config.json       every option, and the format's number
history.jsonl     one record per epoch; held-out terms where they were measured
checkpoint.pt     weights, optimiser, step and generators: tensors and text only
metrics.json      held-out measures after training
examples.npz      some held-out rows and their posteriors
environment.json  versions and hardware
figures/          pictures
report.html       one page of all this, which the command adds
"""

from __future__ import annotations

import itertools
import json
import math
import platform
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyro
import torch

from . import __version__
from .build import Built, build, make_vae
from .config import FORMAT, Config
from .evaluation import encode_data, spaced
from .measuring import measure
from .training import Callback, Record, StepCallback, TrainingState, fit
from .vae import VAE, evaluating, vae_device
from .writing import check_directory, check_new_directory, check_run, replacing, write_json

_EVALUATIONS = 30  # held-out measurements during a training
_HELD_OUT_ROWS = 2000  # of each


@dataclass(frozen=True)
class Run:
    """A finished or interrupted training.

    Attributes:
        path: its directory.
        config: with every default filled in.
        vae: the model, on the device it was trained on (`train`) or the CPU (`load_run`).
        history: one record per epoch, as `fit` returns them.
    """

    path: Path
    config: Config
    vae: VAE
    history: list[Record]

    @property
    def metrics(self) -> dict[str, Any]:
        """Contents of metrics.json."""
        return _read_json(self.path / "metrics.json", "pyro-bvae evaluate writes it.")

    @property
    def examples(self) -> dict[str, np.ndarray] | None:
        """Some held-out rows: ``x``, ``loc``, ``scale`` and, with labels, ``labels``; None if unwritten."""
        path = self.path / "examples.npz"
        if not path.is_file():
            return None
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
            if not {"x", "loc", "scale"} <= set(found):
                raise ValueError("it lacks x, loc or scale")
        except Exception as error:  # numpy and zipfile raise many kinds on damaged files
            raise ValueError(
                f"load_run: {path} must be the examples that training wrote; it cannot be read ({error}). "
                "Delete it: pyro-bvae evaluate writes it anew."
            ) from error
        return found


def train(
    config: Config,
    out: str | Path | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    on_step: StepCallback | None = None,
) -> Run:
    """Build, train, measure, draw, and write a run.

    Everything that can be wrong with the options is found before the directory is made. On Ctrl-C and
    on a loss that is not finite, the last good checkpoint and the history stay, and the exception is
    raised again.

    Args:
        config: what to train.
        out: the run directory; a new or empty one. ``runs/<dataset>-<prior>-<n>`` by default.
        callbacks: as in `fit`, beside the run's own.
        on_step: as in `fit`.

    Returns:
        The run.

    Raises:
        ValueError, TypeError, FileNotFoundError, FileExistsError: before any work.
        FloatingPointError, KeyboardInterrupt: training stopped early.
    """
    if out is not None:
        check_new_directory(Path(out))
    pyro.set_rng_seed(config.seed)
    built = build(config)
    path = _make_directory(config, out)
    write_json(path / "config.json", built.config.to_dict())
    write_json(path / "environment.json", _environment(built.vae))
    writer = _Writer(path, built)
    c = built.config
    try:
        history = fit(
            built.vae,
            built.objective,
            built.train,
            epochs=c.epochs,
            steps=c.steps,
            batch_size=cast(int, c.batch_size),
            lr=cast(float, c.lr),
            amsgrad=bool(c.amsgrad),
            schedules=built.schedules,
            transform=built.transform,
            callbacks=[writer, *callbacks],
            on_step=on_step,
            seed=c.seed,
            compile=bool(c.compile),
        )
    except FloatingPointError as error:
        raise FloatingPointError(f"{error} {writer.kept()}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Interrupted. {writer.kept()}") from None
    finally:
        writer.close()
    writer.save()
    measure(path, built, history)
    return Run(path, built.config, built.vae, history)


def load_run(path: str | Path, vae: VAE | None = None, trust: bool = False) -> Run:
    """Read a run back, its model in evaluation mode on the CPU.

    Args:
        path: the run directory.
        vae: the model to fill, for networks or priors built in Python.
        trust: import the ``module:name`` parts the configuration names; without it they are refused,
            since importing runs their code.

    Raises:
        FileNotFoundError: no run there, or no checkpoint.
        ValueError: a damaged or newer file, a model that does not fit, or parts that need ``trust``.
    """
    path = Path(path)
    config = _read_config(path / "config.json")
    checkpoint = _read_checkpoint(path / "checkpoint.pt")
    if vae is None:
        own = [v for v in (config.prior, config.network) if v is not None and ":" in v]
        if own and not trust:
            raise ValueError(
                f"load_run: {path} names code to import, {' and '.join(own)}; importing it runs it. "
                "Pass trust=True (--trust) if you know it, or vae= with the model built."
            )
        vae = make_vae(config, checkpoint["x_shape"], checkpoint["n_classes"])
    try:
        vae.load_state_dict(checkpoint["vae"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"load_run: the model must fit {path / 'checkpoint.pt'}; {reason} "
            "Pass the vae it was trained with."
        ) from error
    vae.eval()
    return Run(path, config, vae, _read_history(path / "history.jsonl"))


class _Writer:
    """The callback that keeps history.jsonl and checkpoint.pt up to date."""

    def __init__(self, path: Path, built: Built) -> None:
        self.path, self.built = path, built
        self.state: TrainingState | None = None
        self.saved = time.monotonic()
        steps = built.config.steps
        epochs = built.config.epochs
        batch = cast(int, built.config.batch_size)
        total_epochs = epochs or math.ceil(cast(int, steps) * batch / len(built.train))
        self.every = max(1, total_epochs // _EVALUATIONS)
        self.history = (path / "history.jsonl").open("w")

    def __call__(self, record: Record, state: TrainingState) -> None:
        if state.epoch % self.every == 0:
            record |= _held_out(self.built)
        self.history.write(json.dumps(record) + "\n")
        self.state = state
        # At most every ten seconds: a small model's epochs are shorter than a write to disk.
        if state.epoch == 1 or time.monotonic() - self.saved > 10:
            self.history.flush()
            self.save()

    def save(self) -> None:
        """Write the checkpoint, unless a weight is not finite: then the last good one stays."""
        self.saved = time.monotonic()
        state = cast(TrainingState, self.state)
        weights = state.vae.state_dict()
        # A buffer may be infinite by right (the log-odds of weight 0), never NaN.
        finite = all(torch.isfinite(p).all() for p in state.vae.parameters())
        if not finite or any(torch.isnan(w).any() for w in weights.values()):
            return
        device = vae_device(state.vae)
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        checkpoint = {
            "format": FORMAT,
            "vae": weights,
            "optim": state.optim.get_state(),
            "step": state.step,
            "epoch": state.epoch,
            "x_shape": list(self.built.train.x_shape),
            "n_classes": state.vae.n_classes,
            "data_order": state.generator.get_state(),
            "noise": torch.get_rng_state(),
            "noise_cuda": cuda,
        }
        with replacing(self.path / "checkpoint.pt") as temporary:
            torch.save(checkpoint, temporary)

    def kept(self) -> str:
        """What an interrupted run leaves behind, as a sentence."""
        if self.state is None:
            return f"{self.path} holds its configuration only: no epoch was finished."
        return f"The last good checkpoint and the history are kept in {self.path}."

    def close(self) -> None:
        self.history.close()


def _held_out(built: Built) -> Record:
    """Held-out terms, without touching the noise of the training."""
    with evaluating(built.vae, seed=0):
        codes = encode_data(built.vae, spaced(built.test, _HELD_OUT_ROWS), built.transform)
    log_px_z, kl = codes.log_px_z.mean().item(), codes.kl.mean().item()
    record = {"test_log_px_z": log_px_z, "test_kl": kl, "test_elbo": log_px_z - kl}
    if codes.kl_per_latent is not None:
        record |= {f"test_kl_z{d}": kl_d for d, kl_d in enumerate(codes.kl_per_latent.tolist())}
    return record


def _make_directory(config: Config, out: str | Path | None) -> Path:
    """The run directory, made; without a name the next free number, which nobody else can take."""
    if out is not None:
        try:
            Path(out).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"--out must lie where one can write; got {out} ({error.strerror}). Choose another place."
            ) from error
        return Path(out)
    prior = config.prior.replace(":", "-").replace(".", "-")
    stem = f"{Path(config.dataset).stem or 'data'}-{prior}"
    check_directory(Path("runs"))
    for n in itertools.count(1):
        path = Path("runs") / f"{stem}-{n}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable")


def _environment(vae: VAE) -> dict[str, Any]:
    device = vae_device(vae)
    return {
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


def _read_config(path: Path) -> Config:
    values = _read_json(path)
    try:
        config = Config.from_dict(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"load_run: {path} must hold a run's options; {error}") from error
    missing = [n for n in ("latent_dim", "network", "likelihood") if getattr(config, n) is None]
    if missing:
        raise ValueError(
            f"load_run: {path} must name every part of the model; got no {', no '.join(missing)}. "
            "Restore it."
        )
    return config


def _read_json(path: Path, hint: str = "Is it a run?") -> dict[str, Any]:
    check_run(path.parent, path.name, hint)
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"load_run: {path} must be JSON; {error}. Restore it.") from error
    if not isinstance(value, dict):
        raise ValueError(f"load_run: {path} must hold a JSON object; got {type(value).__name__}.")
    return value


def _read_checkpoint(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"load_run: {path.parent} has no {path.name}. Train again.")
    try:
        checkpoint = dict(torch.load(path, map_location="cpu", weights_only=True))
        written = int(checkpoint["format"])
        if written <= FORMAT:
            kinds = {"vae": dict, "x_shape": list, "n_classes": int}
            wrong = [name for name, kind in kinds.items() if not isinstance(checkpoint[name], kind)]
            if wrong:
                raise TypeError(f"wrong kind of {', '.join(wrong)}")
    except Exception as error:  # torch.load raises many kinds on damaged files
        reason = textwrap.shorten(str(error) or type(error).__name__, 80, placeholder=" ...")
        raise ValueError(
            f"load_run: {path} must be a checkpoint of pyro_bvae; it cannot be read ({reason}). "
            "Restore it, or train again."
        ) from error
    if written > FORMAT:
        raise ValueError(
            f"load_run: {path} has format {written}, newer than {FORMAT}. Upgrade pyro_bvae."
        )
    return cast("dict[str, Any]", checkpoint)


def _read_history(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"load_run: {path} must hold one JSON record a line; line {number} is not ({error.msg}). "
                "Delete that line."
            ) from error
    return records
