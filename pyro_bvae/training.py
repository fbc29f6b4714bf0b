"""`fit`: the training loop. It knows no file, terminal or logger; callbacks do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyro
import torch
from torch import Tensor

from .datasets import Data
from .datasets.batches import all_rows, batches, starts
from .datasets.data import DataLike
from .distributed import ShardedVAE, agree_on_noise
from .elbo import CapacityELBO
from .guard import check_range, check_trainable, first_batch
from .noise import noise_state, set_noise
from .optim import JointAdam
from .schedules import NonNegative, Schedule, numbers_on
from .svi import CompiledSVI
from .tally import Record as Record
from .tally import Tally
from .terms import TermsELBO
from .vae import ALONE, VAE, vae_device, vae_dtype


@dataclass
class TrainingState:
    """Where a training stands: what callbacks may look at."""

    vae: VAE
    objective: TermsELBO
    optim: JointAdam
    svi: CompiledSVI
    tally: Tally
    generator: torch.Generator  # of the data order
    order: Tensor  # that generator's state at the start of this epoch
    total: int  # steps to take
    per_epoch: int  # of them
    step: int = 0  # steps done
    epoch: int = 0  # epochs done, the last perhaps in part
    batch: int = 0  # batches done of the epoch that has begun
    start: float = 0.0  # of this epoch, on `time.perf_counter`

    def state_dict(self) -> dict[str, Any]:
        """All that `fit` needs to go on from here as if it had never stopped: tensors, numbers, text.

        It must not be changed, and is true until the next step. Buffers that are not persistent, and what
        a callback keeps to itself, are not in it.

        Raises:
            FloatingPointError: a loss or a gradient was not finite.
        """
        self.tally.flush()
        return {
            "vae": self.vae.state_dict(),
            "optim": self.optim.get_state(),
            "svi": self.svi.get_state(),
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "data_order": self.order,
            "seconds": time.perf_counter() - self.start,
            "sums": self.tally.sums,
            "counts": self.tally.counts,
            "numbers": self._numbers(),
            "noise": noise_state(vae_device(self.vae)),
        }

    def load_state_dict(self, state: Mapping[str, Any], example: Callable[[int], Any]) -> None:
        """Come to where ``state`` was taken; ``example`` gives arguments of a step for n rows.

        Raises:
            ValueError: it is not of a training like this one.
        """
        try:
            self._load(state, example)
        except (
            ValueError,
            TypeError,
            ArithmeticError,
            LookupError,
            AttributeError,
            RuntimeError,
        ) as error:
            reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
            raise ValueError(
                f"fit: resume must be the state of a training like this one; got one that cannot be "
                f"loaded ({reason}). Restore its files."
            ) from error

    def _load(self, state: Mapping[str, Any], example: Callable[[int], Any]) -> None:
        device = vae_device(self.vae)
        place = state["step"], state["epoch"], state["batch"]
        whole = state["epoch"] * self.per_epoch + state["batch"]
        if min(place) < 0 or state["step"] > self.total or state["batch"] >= self.per_epoch:
            raise ValueError(f"step {state['step']} of {self.total}")
        if state["step"] < self.total and state["step"] != whole:
            raise ValueError(f"step {state['step']} in epoch {state['epoch']}")
        self._restore_numbers(state["numbers"])
        self.step, self.epoch, self.batch = state["step"], state["epoch"], state["batch"]
        self.order = state["data_order"]
        self.generator.set_state(self.order)
        self.vae.load_state_dict(state["vae"])
        self.optim.set_state(state["optim"])
        if self.step < self.total:
            with pyro.validation_enabled(False):
                self.svi.set_state(state["svi"], example)
        self.vae.load_state_dict(state["vae"])  # the line above ran it: buffers, noise, sums
        self.tally.clear(state["sums"], state["counts"])
        self.start = time.perf_counter() - state["seconds"]
        set_noise(state["noise"], device)

    def _numbers(self) -> dict[str, float]:
        """beta, alpha, gamma, C, which a callback may have set."""
        settable = [n for n in ("alpha", "gamma", "capacity") if hasattr(self.objective, n)]
        return {"beta": self.vae.beta} | {name: getattr(self.objective, name) for name in settable}

    def _restore_numbers(self, numbers: Mapping[str, float]) -> None:
        for name in self._numbers():
            setattr(self.vae if name == "beta" else self.objective, name, numbers[name])


_PARTS = 30  # records of a training within its epochs
_LEAST_PART = 200  # steps of each at least; of a training shorter than an epoch a fifth
Callback = Callable[[Record, TrainingState], object]
StepCallback = Callable[[TrainingState], object]


def fit(
    vae: VAE,
    objective: TermsELBO,
    data: DataLike,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 64,
    lr: float = 1e-3,
    amsgrad: bool = False,
    schedules: Mapping[str, Schedule] | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    callbacks: Sequence[Callback] = (),
    on_step: StepCallback | None = None,
    seed: int = 0,
    compile: bool = False,
    resume: Mapping[str, Any] | None = None,
) -> list[Record]:
    """Train ``vae`` on ``data`` by stochastic variational inference with Adam.

    It runs on the device and in the dtype of the vae's parameters. Data in memory are moved there once, as
    uint8 where they are; other data are read one batch ahead. On a CPU the weights of convolutions lie
    channels last during the training. Latent noise comes from the ambient generator, the data order from
    ``seed``. A last batch of a single row is left out when ``batch_size`` > 1: BatchNorm cannot take it.
    With a `ShardedVAE`, every process calls this with the same arguments, and the steps are those of one
    process. One training runs at a time: other threads wait.

    Args:
        vae: the model and guide, trained in place.
        objective: `DecompositionELBO` or `CapacityELBO`.
        data: the training set: `Data`, an array or a tensor `(n, *x_shape)`, or the pair (x, labels).
        epochs: passes over the data; or
        steps: optimiser steps. Exactly one of the two.
        batch_size: rows a step.
        lr: Adam's learning rate.
        amsgrad: Adam's AMSGrad variant.
        schedules: step -> value for ``"beta"`` (of the vae), ``"alpha"``, ``"gamma"``, ``"capacity"``
            (of the objective), set before every step.
        transform: applied to each float batch on the device, e.g. ``torch.bernoulli`` for dynamic
            binarisation.
        callbacks: each is called with every record and the `TrainingState` when it is made.
        on_step: called after every step with the `TrainingState`: a progress bar, a checkpoint.
        seed: of the data order.
        compile: capture and compile the step, see `CompiledSVI`: the same numbers to float rounding,
            faster after some ten seconds to a minute of start-up. It needs a C++ compiler.
        resume: a ``state.state_dict()`` that a callback of this same call took: the training goes on
            from there, to the same numbers bit for bit on the same machine and threads.

    Returns:
        One record per epoch, and within long epochs one every 30th of the training (but 200 steps or
        more); of a resumed training those made since: ``step``, ``epoch``, counted from 1, ``seconds``, the
        means over the steps since the last record of ``loss``, ``log_px_z``, ``kl``, ``elbo`` = log_px_z - kl
        (and ``divergence`` where alpha > 0), all per example in nats; the scheduled numbers as they stood
        at its last step; 1 or 0 for ``kl_monte_carlo``, a KL was estimated by samples, and
        ``divergence_detached``, D gave the prior no gradient since it has no rsample; and
        ``rate_minus_log_batch`` = kl - log batch: above about 1 nat, batch estimates of KL divergences
        are dominated by their bias. The vae is left in evaluation mode, whatever ended the training.

    Raises:
        ValueError, TypeError: a bad argument, or rows that do not fit the model, before any work.
        FloatingPointError: the loss or its gradient is not finite; the message names step, terms, the
            largest gradient and what to try. It is noticed up to 20 steps later, or at the end of the
            epoch; the parameters are those before it.
    """
    _check_arguments(objective, epochs, steps, batch_size, lr, schedules, seed)
    _check_functions({"transform": transform, "on_step": on_step}, callbacks)
    with (
        _alone(),
        # A store of its own: pyro.module finds names of an earlier model in the global one, and its
        # parameters would be trained in place of ours.
        pyro.get_param_store().scope(),
    ):
        train, x, labels = first_batch(vae, data, "fit", transform)
        if transform is None:
            check_range(vae, train)
        check_trainable(vae, objective, x, labels)
        per_epoch = steps_per_epoch(len(train), batch_size)
        total = steps if steps is not None else cast(int, epochs) * per_epoch
        generator = torch.Generator().manual_seed(seed)
        history: list[Record] = []
        device, with_labels = vae_device(vae), vae.n_classes > 0
        tally = Tally(objective, device)
        sharded = vae if isinstance(vae, ShardedVAE) else None
        before = None if sharded is None else sharded.average
        optim = JointAdam(
            vae.parameters(), lr=lr, amsgrad=amsgrad, hold=tally.bad, before_step=before
        )
        svi = CompiledSVI(vae.model, vae.guide, optim, tally, compile=compile)
        state = TrainingState(
            vae, objective, optim, svi, tally, generator, generator.get_state(), total, per_epoch
        )
        with numbers_on(device, vae, objective), _in_training(vae, device):
            state.start = time.perf_counter()
            if resume is not None:
                state.load_state_dict(resume, lambda n: _example(vae, train, n, transform))
            own = all_rows if sharded is None else sharded.rows
            endless = batches(
                train, batch_size, generator, device, with_labels, state.batch, own, vae_dtype(vae)
            )
            while state.step < total:
                for x, labels, rows in next(endless):
                    _set_numbers(state, schedules, state.step)
                    if transform is not None:
                        x = (
                            transform(x)
                            if sharded is None
                            else sharded.transformed(transform, x, rows)
                        )
                    # Shapes and values are validated at the first step; checking every step costs as
                    # much as a small network.
                    with pyro.validation_enabled(state.step == 0):
                        svi.update(x, labels, *([] if sharded is None else [rows]))
                    tally.keep(state.step, optim.largest)
                    state.step += 1
                    state.batch += 1
                    if makes_record(state.step, total, per_epoch):
                        if sharded is not None:
                            agree_on_noise(device)
                        history.append(_end_record(state, min(batch_size, len(train)), callbacks))
                    if on_step is not None:
                        on_step(state)
                    if state.step == total:
                        break
    return history


@contextmanager
def _alone() -> Iterator[None]:
    """One training of the process at a time, with gradients."""
    with ALONE, torch.inference_mode(False), torch.enable_grad():
        yield


def _set_numbers(state: TrainingState, schedules: Mapping[str, Schedule] | None, step: int) -> None:
    for name, schedule in (schedules or {}).items():
        setattr(state.vae if name == "beta" else state.objective, name, schedule(step))


def _end_record(state: TrainingState, rows: int, callbacks: Sequence[Callback]) -> Record:
    """The record of the steps since the last one, which every callback sees."""
    if state.batch == state.per_epoch or state.step == state.total:
        state.epoch, state.batch = state.epoch + 1, 0
        state.order = state.generator.get_state()
    seconds = time.perf_counter() - state.start
    epoch = state.epoch + (state.batch > 0)
    record = state.tally.record(state.step, epoch, seconds, state.vae.beta, rows)
    for callback in callbacks:
        callback(record, state)
    state.start = time.perf_counter()
    return record


def _example(
    vae: VAE, data: Data, n: int, transform: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, Tensor | None]:
    """Arguments of a step on ``n`` rows."""
    x, labels = data.tensors(np.arange(n), vae_device(vae), vae_dtype(vae))
    return x if transform is None else transform(x), labels if vae.n_classes else None


def _check_arguments(
    objective: TermsELBO,
    epochs: int | None,
    steps: int | None,
    batch_size: int,
    lr: float,
    schedules: Mapping[str, Schedule] | None,
    seed: int,
) -> None:
    if not isinstance(objective, TermsELBO):
        made = "the class itself" if isinstance(objective, type) else type(objective).__name__
        raise TypeError(
            f"fit: objective must be a DecompositionELBO or a CapacityELBO; got {made}. Build one, as in "
            "DecompositionELBO(); for Pyro's ELBOs use pyro.infer.SVI or pyro_bvae.svi.CompiledSVI."
        )
    if (epochs is None) == (steps is None):
        raise ValueError(f"fit: give epochs or steps, one of them; got {epochs=}, {steps=}.")
    least = {"epochs": 1, "steps": 1, "batch_size": 1, "seed": 0}
    for name, value in zip(least, (epochs, steps, batch_size, seed), strict=True):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(
                f"fit: {name} must be a whole number; got {value!r:.40}. Pass an integer."
            )
        if value < least[name]:
            raise ValueError(f"fit: {name} must be at least {least[name]}; got {value}.")
    if isinstance(lr, bool) or not isinstance(lr, (int, float, np.number)):
        raise TypeError(f"fit: lr must be a number; got {type(lr).__name__}. Try lr=0.001.")
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"fit: lr must be a finite number > 0; got {lr}.")
    if not isinstance(schedules or {}, Mapping):
        raise TypeError(
            f"fit: schedules must be a dict such as {{'beta': linear(0, 1, 500)}}; got {schedules!r:.40}."
        )
    for name, schedule in (schedules or {}).items():
        settable = isinstance(getattr(type(objective), name, None), NonNegative)
        if name != "beta" and not settable:
            raise ValueError(
                f"fit: schedules must name beta or a number of {type(objective).__name__}; "
                f"got {name!r}."
            )
        if not callable(schedule):
            raise TypeError(
                f"fit: the schedule of {name} must be a function of the step; got {schedule!r:.40}. "
                f"Use pyro_bvae.schedules, or set the number itself before training."
            )
        if name == "beta" and isinstance(objective, CapacityELBO):
            raise ValueError(
                "fit: beta must stay 1 beside CapacityELBO, whose gamma weighs the KL; got a schedule. "
                "Schedule gamma or capacity instead."
            )


def _check_functions(functions: Mapping[str, Any], callbacks: Any) -> None:
    given = {name: function for name, function in functions.items() if function is not None}
    if not isinstance(callbacks, (list, tuple)):
        raise TypeError(
            f"fit: callbacks must be a list of functions; got {callbacks!r:.40}. Try callbacks=[...]."
        )
    for name, function in [*given.items(), *(("each callback", each) for each in callbacks)]:
        if not callable(function):
            raise TypeError(
                f"fit: {name} must be a function; got {function!r:.40}. Pass one, or none."
            )


def makes_record(step: int, total: int, per_epoch: int) -> bool:
    """Whether there is a record after ``step`` of ``total``: an epoch ends, or a part of a long one.

    Examples:
        >>> [step for step in range(1, 901) if makes_record(step, total=900, per_epoch=350)]
        [200, 350, 400, 600, 700, 800, 900]
        >>> [step for step in range(1, 101) if makes_record(step, total=100, per_epoch=350)]
        [20, 40, 60, 80, 100]
    """
    least = _LEAST_PART if total > per_epoch else min(_LEAST_PART, max(total // 5, 20))
    part = max(least, total // _PARTS)
    return step % per_epoch == 0 or step == total or (part < per_epoch and step % part == 0)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Optimiser steps in one pass over ``n`` rows."""
    return len(starts(n, batch_size))


@contextmanager
def _in_training(vae: VAE, device: torch.device) -> Iterator[None]:
    """Training mode, then evaluation mode; on a CPU weights of 2-D convolutions lie channels last meanwhile.

    That is a tenth faster on a CPU, the one device measured. Not for longer: Pyro's parameter store keeps
    contiguous copies of weights laid out otherwise, and its own SVI would train those instead.
    """
    weights = [p for p in vae.parameters() if p.dim() == 4 and device.type == "cpu"]
    vae.train().zero_grad()  # a gradient left by other work would be added to the first step's
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for weight in weights:
            weight.data = weight.data.contiguous()
        vae.eval().zero_grad()
