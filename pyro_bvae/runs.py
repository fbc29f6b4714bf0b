"""A run: one training on disk. `train` writes it, `resume` goes on with it, `load_run` reads it.

config.json       every option, and the format's number
classes.json      names of the classes, where the data gave them, in the order of their numbers
history.jsonl     one record per epoch; held-out terms where they were measured
checkpoint.pt     weights, optimiser, step and generators: tensors and text only
metrics.json      held-out measures after training
examples.npz      some held-out rows and their posteriors
environment.json  versions and hardware
figures/          pictures
report.html       one page of all this, which the command adds
.lock             empty; held by the one process that writes here
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyro

from .build import Built, build, make_vae, records_made
from .checkpoint import Checkpoints, check_every, read_checkpoint, read_history
from .config import Config
from .device import choose_device
from .distributed import ShardedVAE, agree, processes, ranks
from .environment import add_environment, environment, located
from .evaluation import spaced
from .faults import enough_memory, said_why
from .measuring import held_out_terms, measure
from .training import Callback, Record, StepCallback, TrainingState, fit
from .vae import VAE
from .writing import (
    check_directory,
    check_inside,
    check_new_directory,
    locked,
    make_run_directory,
    read_json,
    write_class_names,
    write_json,
)

_EXAMPLES = "x", "loc", "scale", "labels"


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
        return read_json(self.path / "metrics.json", "pyro-bvae evaluate writes it.")

    @property
    def examples(self) -> dict[str, np.ndarray] | None:
        """Some held-out rows: ``x``, ``loc``, ``scale`` and, with labels, ``labels``; None if unwritten."""
        path = self.path / "examples.npz"
        check_inside(path)
        if not path.is_file():
            return None
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in _EXAMPLES if name in arrays.files}
            if not {"x", "loc", "scale"} <= set(found):
                raise ValueError("it lacks x, loc or scale")
            if not all(np.isfinite(array).all() for array in found.values()):
                raise ValueError("it holds NaN or infinity")
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
    checkpoint_every: int | None = None,
) -> Run:
    """Build, train, measure, draw, and write a run.

    Everything that can be wrong with the options is found before the directory is made. However the
    training ends, the last good checkpoint and the history stay, and `resume` goes on from there. In
    processes that torchrun started the first one alone calls the callbacks and writes.

    Args:
        config: what to train.
        out: the run directory; a new or empty one. ``runs/<dataset>-<prior>-<n>`` by default.
        callbacks: as in `fit`, beside the run's own.
        on_step: as in `fit`. A KeyboardInterrupt that it raises stops the training with a checkpoint of
            that very step.
        checkpoint_every: steps between two checkpoints; every ten seconds by default, or less often
            where writing one takes long.

    Returns:
        The run.

    Raises:
        ValueError, TypeError, FileNotFoundError, FileExistsError: before any work.
        BlockingIOError: another process writes to ``out``.
        FloatingPointError, KeyboardInterrupt, MemoryError, OSError: training stopped early.
    """
    check_every(checkpoint_every)
    if out is not None and ranks()[0] == 0:
        check_new_directory(Path(out))
    with ExitStack() as joined:
        built, rank = _prepare(config, joined)
        if rank > 0:
            return Run(Path(out or "runs"), built.config, built.vae, _fit(built, None))
        path = make_run_directory(config.dataset, config.prior, out)
        with locked(path):
            check_new_directory(path)  # another process may have been faster
            write_json(path / "config.json", built.config.to_dict())
            write_json(path / "environment.json", environment(built.vae))
            write_class_names(path, built.train.class_names)
            return _carry_out(path, built, None, callbacks, on_step, checkpoint_every, joined)


def resume(
    path: str | Path,
    *,
    trust: bool = False,
    device: str | None = None,
    data_dir: str | None = None,
    callbacks: Sequence[Callback] = (),
    on_step: StepCallback | None = None,
    checkpoint_every: int | None = None,
) -> Run:
    """Go on with a training that stopped, from its last checkpoint to its end.

    On the same machine, threads and data, history and weights become those of one that never stopped.

    Args:
        path: the run directory. One without a checkpoint starts anew; a finished one is only loaded.
        trust: as in `load_run`.
        device: where to train, if not as before.
        data_dir: where the data are, if not as before.
        callbacks: as in `train`, and so are the next two.
        on_step: called after each step.
        checkpoint_every: steps between two checkpoints.

    Raises:
        FileNotFoundError, ValueError, TypeError: no run, a damaged one, other data, or parts that need
            ``trust``; nothing is changed.
        BlockingIOError: another process trains it.
        FloatingPointError, KeyboardInterrupt, MemoryError, OSError: training stopped early again.
    """
    check_every(checkpoint_every)
    path = Path(path)
    written = read_config(path)
    config = located(path, written)
    config = replace(config, device=device or config.device, data_dir=data_dir or config.data_dir)
    _check_trust(path, config, trust)
    check_directory(path)
    with ExitStack() as joined:
        if ranks()[0] == 0:
            joined.enter_context(locked(path))
        if is_finished(path):
            return load_run(path, trust=trust)
        there = os.path.lexists(path / "checkpoint.pt")
        state = read_checkpoint(path / "checkpoint.pt") if there else None
        if state is None and read_history(path / "history.jsonl"):
            said = f"{path} has no checkpoint any more, or never had one: it starts again."
            warnings.warn(said, stacklevel=2)
        if state is not None and state["format"] < 2:
            raise ValueError(
                f"resume: {path} must have a checkpoint of format 2; got 1, from which no training can "
                "go on. Train again, or use its model as it is."
            )
        with ExitStack() as others:
            built, rank = _prepare(config, others, state)
            # Under the name that the checkpoint knows.
            built = built._replace(config=replace(built.config, dataset=written.dataset))
            past = _past(path, built, state)
            if rank > 0:
                return Run(path, config, built.vae, past + _fit(built, state))
            every = checkpoint_every
            return _carry_out(path, built, state, callbacks, on_step, every, others, past)


def is_finished(path: str | Path) -> bool:
    """Whether the run in ``path`` has come to its end: its training wrote its measures."""
    target = Path(path) / "metrics.json"
    return target.is_file() and "training_seconds" in read_json(target)


def _prepare(
    config: Config, joined: ExitStack, state: dict[str, Any] | None = None
) -> tuple[Built, int]:
    """Join the processes that torchrun may have started, and build; this process's rank beside it."""
    rank, world = joined.enter_context(processes(choose_device(config.device)))
    pyro.set_rng_seed(config.seed)
    if config.download and rank > 0:
        agree(b"", "")  # waits until the first one has downloaded
    with enough_memory(config):
        built = build(config)
    if config.download and rank == 0:
        agree(b"", "")
    if world > 1:
        place = () if state is None else (state["step"], state["data_order"].tolist())
        agree(
            json.dumps([_about(built), place]).encode(),
            "torchrun: all processes must train the same; their options, data or checkpoints differ. Start "
            "them by one command, with the same files.",
        )
        built = built._replace(vae=ShardedVAE.of(built.vae))
    return built, rank


def _past(path: Path, built: Built, state: dict[str, Any] | None) -> list[Record]:
    """The records up to ``state``, which must be of these data."""
    if state is None:
        return []
    now = _about(built)
    if (state["n_rows"], state["x_shape"]) != (now["n_rows"], now["x_shape"]):
        raise ValueError(
            f"resume: the data must be those {path} was trained on, {state['n_rows']} rows of "
            f"{state['x_shape']}; got {now['n_rows']} of {now['x_shape']}. Restore them."
        )
    for name, what in (("data", "the data"), ("config", f"{path / 'config.json'}")):
        if state[name] != now[name]:
            raise ValueError(
                f"resume: {what} must be what {path / 'checkpoint.pt'} was trained with; it has changed "
                "since. Restore it, or train anew."
            )
    return read_history(path / "history.jsonl", records_made(built, state["step"]))


def _about(built: Built) -> dict[str, Any]:
    """What a checkpoint is of: it must be the same when the training goes on."""
    rows = spaced(built.train, 64)
    x = rows.batch(np.arange(len(rows)))
    options = built.config.to_dict() | dict.fromkeys(("device", "data_dir", "download"))
    return {
        "x_shape": [*built.train.x_shape],
        "n_rows": len(built.train),
        "data": _digest(np.ascontiguousarray(x).tobytes()),
        "config": _digest(json.dumps(options, sort_keys=True).encode()),
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _fit(
    built: Built,
    state: dict[str, Any] | None,
    callbacks: Sequence[Callback] = (),
    on_step: StepCallback | None = None,
) -> list[Record]:
    c = built.config
    return fit(
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
        callbacks=callbacks,
        on_step=on_step,
        seed=c.seed,
        compile=bool(c.compile) and not isinstance(built.vae, ShardedVAE),
        resume=state,
    )


def _carry_out(
    path: Path,
    built: Built,
    state: dict[str, Any] | None,
    callbacks: Sequence[Callback],
    on_step: StepCallback | None,
    every: int | None,
    joined: ExitStack,
    past: Sequence[Record] | None = None,
) -> Run:
    """Train from ``state`` on, measure and draw, in a directory that is ours."""
    about = _about(built) | {"n_classes": built.vae.n_classes}
    check_inside(path / "figures")
    if (path / "figures").exists() and not (path / "figures").is_dir():
        raise ValueError(f"train: {path / 'figures'} must be a folder; it is a file. Move it away.")
    writer = Checkpoints(path, about, every, past or ())
    latest: list[TrainingState] = []

    def after_step(training: TrainingState) -> None:
        if past is not None and not latest:
            add_environment(path, built.vae)
        latest[:] = [training]
        if on_step is not None:  # before the checkpoint: it may draw noise, or change weights
            try:
                on_step(training)
            except KeyboardInterrupt:
                writer.save(training)
                raise
        writer.on_step(training)

    with said_why(writer, built.config):
        mine = [held_out_terms(built), writer.on_record, *callbacks]
        history = [*(past or ()), *_fit(built, state, mine, after_step)]
        joined.close()  # what follows is this process's alone
        for training in latest:
            writer.save(training)
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
    config = located(path, read_config(path))
    check_inside(path / "figures")
    checkpoint = read_checkpoint(path / "checkpoint.pt")
    if vae is None:
        _check_trust(path, config, trust)
        with enough_memory(config):
            vae = make_vae(config, checkpoint["x_shape"], checkpoint["n_classes"])
    try:
        vae.load_state_dict(checkpoint["vae"])
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"load_run: the model must fit {path / 'checkpoint.pt'}; {reason} "
            "Pass the vae it was trained with."
        ) from error
    vae.eval()
    return Run(path, config, vae, read_history(path / "history.jsonl"))


def _check_trust(path: Path, config: Config, trust: bool) -> None:
    own = [v for v in (config.prior, config.network) if v is not None and ":" in v]
    if own and not trust:
        raise ValueError(
            f"load_run: {path} names code to import, {' and '.join(own)}; importing it runs it. "
            "Pass --trust if you know it (in Python: trust=True, or vae= with the model built)."
        )


def read_config(path: str | Path) -> Config:
    """The configuration of the run in ``path``, with every part of the model named.

    Raises:
        FileNotFoundError, ValueError: no run there, or a damaged one.
    """
    path = Path(path) / "config.json"
    values = read_json(path)
    try:
        # Who trained it may have wanted a download; who reads it has not asked for one.
        config = replace(Config.from_dict(values), download=False)
    except (ValueError, TypeError) as error:
        raise ValueError(f"load_run: {path} must hold a run's options; {error}") from error
    missing = [n for n in ("latent_dim", "network", "likelihood") if getattr(config, n) is None]
    if missing:
        raise ValueError(
            f"load_run: {path} must name every part of the model; got no {', no '.join(missing)}. "
            "Restore it."
        )
    return config
