"""`fit`: the training loop. It knows no file, terminal or logger; callbacks do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor

from .datasets import Data, to_float
from .elbo import CapacityELBO, ElboTerms, TermsELBO
from .schedules import NonNegative, Schedule
from .vae import VAE, vae_device

Record = dict[str, float]


class TrainingState(NamedTuple):
    """What a callback may look at after an epoch."""

    vae: VAE
    objective: TermsELBO
    optim: JointAdam
    step: int  # steps done
    epoch: int  # epochs done, the last perhaps in part
    generator: torch.Generator  # of the data order


Callback = Callable[[Record, TrainingState], object]
StepCallback = Callable[[int, int, float], object]


def fit(
    vae: VAE,
    objective: TermsELBO,
    data: Data,
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
) -> list[Record]:
    """Train ``vae`` on ``data`` by stochastic variational inference with Adam.

    It runs on the device of the vae's parameters; data in memory are moved there once, as uint8 where
    they are. Latent noise comes from the ambient generator, the data order from ``seed``. A last batch
    of a single row is left out when ``batch_size`` > 1: BatchNorm cannot take it.

    Args:
        vae: the model and guide, trained in place.
        objective: `DecompositionELBO` or `CapacityELBO`.
        data: the training set.
        epochs: passes over the data; or
        steps: optimiser steps. Exactly one of the two.
        batch_size: rows a step.
        lr: Adam's learning rate.
        amsgrad: Adam's AMSGrad variant.
        schedules: step -> value for ``"beta"`` (of the vae), ``"alpha"``, ``"gamma"``, ``"capacity"``
            (of the objective), set before every step.
        transform: applied to each float batch on the device, e.g. ``torch.bernoulli`` for dynamic
            binarisation.
        callbacks: each is called after every epoch with that epoch's record and the `TrainingState`.
        on_step: called after every step with the steps done, their total and the loss per example: a
            progress bar.
        seed: of the data order.

    Returns:
        One record per epoch: ``step``, ``epoch``, ``seconds``, the means over its steps of ``loss``,
        ``log_px_z``, ``kl``, ``elbo`` = log_px_z - kl (and ``divergence`` where alpha > 0), all per
        example in nats; the scheduled numbers as they stood at its last step; 1 or 0 for
        ``kl_monte_carlo``, a KL was estimated by samples, and ``divergence_detached``, D gave the prior
        no gradient since it has no rsample; and ``rate_minus_log_batch`` = kl - log batch: above
        about 1 nat, batch estimates of KL divergences are dominated by their bias. The vae is left in
        evaluation mode.

    Raises:
        ValueError: a bad argument, before any work.
        FloatingPointError: the loss is not finite; the message names step, terms and what to try.
    """
    total = _check(data, objective, epochs, steps, batch_size, lr, schedules)
    generator = torch.Generator().manual_seed(seed)
    optim = JointAdam(vae.parameters(), lr=lr, amsgrad=amsgrad)
    history: list[Record] = []
    tally = _Tally(objective)
    svi = SVI(vae.model, vae.guide, optim, loss=tally.loss, loss_and_grads=tally.loss_and_grads)
    device = vae_device(vae)
    batches = _batches(data, batch_size, generator, device, vae.n_classes > 0)
    vae.train()
    # A store of its own: pyro.module finds names of an earlier model in the global one, and its
    # parameters would be trained in place of ours.
    with pyro.get_param_store().scope():
        step = epoch = 0
        start = time.perf_counter()
        while step < total:
            for x, labels in next(batches):
                for name, schedule in (schedules or {}).items():
                    setattr(vae if name == "beta" else objective, name, schedule(step))
                if transform is not None:
                    x = transform(x)
                # Shapes and values are validated at the first step; checking every step costs as much
                # as a small network.
                with pyro.validation_enabled(step == 0):
                    loss = svi.step(x, labels)
                step += 1
                if on_step is not None:
                    on_step(step, total, loss)
                if step == total:
                    break
            epoch += 1
            rows = min(batch_size, len(data))
            record = tally.record(vae, step, epoch, time.perf_counter() - start, rows)
            history.append(record)
            state = TrainingState(vae, objective, optim, step, epoch, generator)
            for callback in callbacks:
                callback(record, state)
            start = time.perf_counter()
    vae.eval()
    return history


def _check(
    data: Data,
    objective: TermsELBO,
    epochs: int | None,
    steps: int | None,
    batch_size: int,
    lr: float,
    schedules: Mapping[str, Schedule] | None,
) -> int:
    """The number of steps to take."""
    if (epochs is None) == (steps is None):
        raise ValueError(f"fit: give epochs or steps, one of them; got {epochs=}, {steps=}.")
    for name, value in (("epochs", epochs), ("steps", steps), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"fit: {name} must be at least 1; got {value}.")
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"fit: lr must be a finite number > 0; got {lr}.")
    for name in schedules or {}:
        settable = isinstance(getattr(type(objective), name, None), NonNegative)
        if name != "beta" and not settable:
            raise ValueError(
                f"fit: schedules must name beta or a number of {type(objective).__name__}; "
                f"got {name!r}."
            )
        if name == "beta" and isinstance(objective, CapacityELBO):
            raise ValueError(
                "fit: beta must stay 1 beside CapacityELBO, whose gamma weighs the KL; got a schedule. "
                "Schedule gamma or capacity instead."
            )
    if steps is not None:
        return steps
    assert epochs is not None
    return epochs * steps_per_epoch(len(data), batch_size)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Optimiser steps in one pass over ``n`` rows."""
    return len(_starts(n, batch_size))


def _starts(n: int, batch_size: int) -> range:
    """Where each batch of an epoch begins."""
    last = n - 1 if batch_size > 1 and n % batch_size == 1 and n > 1 else n
    return range(0, last, batch_size)


def _batches(
    data: Data,
    batch_size: int,
    generator: torch.Generator,
    device: torch.device,
    with_labels: bool,
) -> Iterator[Iterator[tuple[Tensor, Tensor | None]]]:
    """Epoch after epoch, its batches: x float ``(batch, *x_shape)`` and labels, on ``device``."""
    if with_labels and data.labels is None:
        raise ValueError("fit: data must have labels for a conditional model; got none.")
    resident = _tensor(data.x).to(device) if data.resident else None
    labels = _tensor(data.labels).to(device) if with_labels else None

    def epoch() -> Iterator[tuple[Tensor, Tensor | None]]:
        order = torch.randperm(len(data), generator=generator)
        for start in _starts(len(data), batch_size):
            rows = order[start : start + batch_size]
            if resident is not None:
                x = resident[rows.to(device)]
            else:
                x = _tensor(data.batch(rows.numpy())).to(device)
            yield to_float(x), None if labels is None else labels[rows.to(device)]

    while True:
        yield epoch()


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


class JointAdam(PyroOptim):
    """One fused ``torch.optim.Adam`` over all parameters, for Pyro's SVI.

    Pyro's own wrapper keeps an optimiser per tensor: five times slower on a small network.
    """

    def __init__(self, parameters: Iterable[Tensor], **options: Any) -> None:
        super().__init__(torch.optim.Adam, options)
        self.adam = torch.optim.Adam(parameters, fused=True, **options)

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.adam.step()

    def get_state(self) -> dict[str, Any]:
        return self.adam.state_dict()

    def set_state(self, state_dict: dict[str, Any]) -> None:
        self.adam.load_state_dict(state_dict)


class _Tally:
    """The loss per example for Pyro's SVI, and the sums of its terms since the last record."""

    def __init__(self, objective: TermsELBO) -> None:
        self.objective = objective
        self.total_steps = 0
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}  # not all alike: D is there only where alpha > 0

    def loss(self, model: Any, guide: Any, x: Tensor, labels: Tensor | None) -> float:
        return self.objective.loss(model, guide, x, labels) / len(x)

    def loss_and_grads(self, model: Any, guide: Any, x: Tensor, labels: Tensor | None) -> float:
        total, terms = self.objective.loss_and_terms(model, guide, x, labels)
        loss = total / len(x)
        value = loss.item()
        self._add(value, terms)
        loss.backward()
        return value

    def _add(self, loss: float, terms: ElboTerms) -> None:
        values = {
            "loss": loss,
            "log_px_z": terms.log_px_z.mean().item(),
            "kl": terms.kl.mean().item(),
        }
        if getattr(self.objective, "alpha", 0) > 0:
            values["divergence"] = terms.divergence.item()
        if not math.isfinite(loss):
            parts = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
            raise FloatingPointError(
                f"fit: the loss must be finite; got {parts} at step {self.total_steps}. Lower the learning "
                "rate, warm up or lower beta, alpha or gamma, or check the data's range."
            )
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        self.total_steps += 1

    def record(self, vae: VAE, step: int, epoch: int, seconds: float, batch: int) -> Record:
        """Means since the last call, which are then forgotten."""
        record: Record = {"step": step, "epoch": epoch, "seconds": round(seconds, 6)}
        record |= {name: total / self.counts[name] for name, total in self.sums.items()}
        record["elbo"] = record["log_px_z"] - record["kl"]
        record["kl_monte_carlo"] = float(bool(self.objective.monte_carlo_sites))
        if "divergence" in record:
            record["divergence_detached"] = float(getattr(self.objective, "detached", False))
            record["rate_minus_log_batch"] = record["kl"] - math.log(batch)
        record["beta"] = vae.beta
        for name in ("alpha", "gamma", "capacity"):
            if hasattr(self.objective, name):
                record[name] = getattr(self.objective, name)
        self.sums, self.counts = {}, {}
        return record
