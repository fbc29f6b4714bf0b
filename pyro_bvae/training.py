"""`fit`: the training loop. It knows no file, terminal or logger; callbacks do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim.adam import adam

from .datasets import Data
from .datasets.batches import batches, starts
from .elbo import CapacityELBO, TermsELBO
from .schedules import NonNegative, Schedule, numbers_on
from .svi import CompiledSVI
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
StepCallback = Callable[[int, int], object]

_FLUSH = 20  # steps between two looks at their losses: each look waits for the device


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
    compile: bool = False,
) -> list[Record]:
    """Train ``vae`` on ``data`` by stochastic variational inference with Adam.

    It runs on the device of the vae's parameters; data in memory are moved there once, as uint8 where
    they are, and other data are read one batch ahead. On a CPU convolutions lie channels last
    meanwhile. Latent noise comes from the ambient generator, the data order from ``seed``. A last batch
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
        on_step: called after every step with the steps done and their total: a progress bar.
        seed: of the data order.
        compile: capture and compile the step, see `CompiledSVI`: the same numbers to float rounding,
            faster after some ten seconds to a minute of start-up. It needs a C++ compiler.

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
        FloatingPointError: the loss is not finite; the message names step, terms and what to try. It is
            noticed up to 20 steps later, or at the end of the epoch; the parameters are those before it.
    """
    total = _check(data, objective, epochs, steps, batch_size, lr, schedules)
    generator = torch.Generator().manual_seed(seed)
    history: list[Record] = []
    device = vae_device(vae)
    tally = _Tally(objective, device)
    optim = JointAdam(vae.parameters(), lr=lr, amsgrad=amsgrad, hold=tally.bad)
    svi = CompiledSVI(vae.model, vae.guide, optim, tally, compile=compile)
    epochs_of_batches = batches(data, batch_size, generator, device, vae.n_classes > 0)
    vae.train()
    # A store of its own: pyro.module finds names of an earlier model in the global one, and its
    # parameters would be trained in place of ours.
    with (
        pyro.get_param_store().scope(),
        numbers_on(device, vae, objective),
        _channels_last(vae, device),
    ):
        step = epoch = 0
        start = time.perf_counter()
        while step < total:
            for x, labels in next(epochs_of_batches):
                for name, schedule in (schedules or {}).items():
                    setattr(vae if name == "beta" else objective, name, schedule(step))
                if transform is not None:
                    x = transform(x)
                # Shapes and values are validated at the first step; checking every step costs as much
                # as a small network.
                with pyro.validation_enabled(step == 0):
                    svi.update(x, labels)
                tally.keep(step)
                step += 1
                if on_step is not None:
                    on_step(step, total)
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
    return len(starts(n, batch_size))


@contextmanager
def _channels_last(vae: VAE, device: torch.device) -> Iterator[None]:
    """Convolutions laid out channels last meanwhile: a tenth faster on a CPU, the one device measured.

    Not for longer: Pyro's parameter store keeps contiguous copies of weights laid out otherwise, and its
    own SVI would train those instead.
    """
    if device.type == "cpu":
        vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        vae.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


class JointAdam(PyroOptim):
    """One fused Adam over all parameters, for Pyro's SVI: `torch.optim.Adam`, as torch's own function.

    Pyro's wrapper keeps an optimiser per tensor, five times slower on a small network; and the first
    `torch.optim.Optimizer` of a process imports torch's compiler, which takes seconds.

    Args:
        parameters: what to train.
        lr: learning rate.
        amsgrad: the AMSGrad variant.
        hold: float32 ``()`` on the parameters' device; while it is 1, steps change nothing.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float,
        amsgrad: bool = False,
        hold: Tensor | None = None,
    ) -> None:
        super().__init__(torch.optim.Adam, {"lr": lr, "amsgrad": amsgrad})
        self.parameters = [p for p in parameters if p.requires_grad]
        self.lr, self.amsgrad, self.hold = lr, amsgrad, hold
        self.state: list[dict[str, Tensor]] = [{} for _ in self.parameters]

    @torch.no_grad()
    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        used = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        if not used:
            return
        states = [self._state(i) for i in used]
        adam(
            [self.parameters[i] for i in used],
            [cast(Tensor, self.parameters[i].grad) for i in used],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["max_exp_avg_sq"] for state in states if self.amsgrad],
            [state["step"] for state in states],
            fused=True, found_inf=self.hold, amsgrad=self.amsgrad, lr=self.lr,
            beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, maximize=False,
        )  # fmt: skip

    def _state(self, i: int) -> dict[str, Tensor]:
        if not self.state[i]:
            p = self.parameters[i]
            names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 2 + self.amsgrad]
            self.state[i] = {"step": torch.zeros((), dtype=torch.float32, device=p.device)}
            self.state[i] |= {name: torch.zeros_like(p.detach()) for name in names}
        return self.state[i]

    def get_state(self) -> dict[str, Any]:
        """As ``torch.optim.Adam.state_dict()``, which loads it."""
        group = {
            "lr": self.lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0,
            "amsgrad": self.amsgrad, "maximize": False, "foreach": None, "capturable": False,
            "differentiable": False, "fused": True, "decoupled_weight_decay": False,
            "params": list(range(len(self.state))),
        }  # fmt: skip
        return {"state": {i: s for i, s in enumerate(self.state) if s}, "param_groups": [group]}

    def set_state(self, state_dict: dict[str, Any]) -> None:
        with torch.no_grad():
            for i, values in state_dict["state"].items():
                for name, value in values.items():
                    self._state(i)[name].copy_(value)


class _Tally:
    """The loss per example, as a function for `CompiledSVI`, and the means of its terms.

    The terms of each step stay on the device until some steps are read at once.
    """

    names = ("loss", "log_px_z", "kl", "divergence")

    def __init__(self, objective: TermsELBO, device: torch.device) -> None:
        self.objective = objective
        self.latest = torch.zeros(len(self.names), dtype=torch.float64, device=device)
        self.kept = torch.zeros(_FLUSH, len(self.names), dtype=torch.float64, device=device)
        # 1 from the first loss that is not finite: Adam then leaves the parameters as they are.
        self.bad = torch.zeros((), dtype=torch.float32, device=device)
        self.steps: list[tuple[int, bool]] = []  # of the rows kept: the step, and whether D was on
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}  # not all alike: D is there only where alpha > 0

    @property
    def structure(self) -> Hashable:
        return self.objective.structure

    def __call__(self, model: Any, guide: Any, x: Tensor, labels: Tensor | None) -> Tensor:
        total, terms = self.objective.loss_and_terms(model, guide, x, labels)
        loss = total / len(x)
        means = (loss, terms.log_px_z.mean(), terms.kl.mean(), terms.divergence)
        self.latest.copy_(torch.stack([value.detach() for value in means]))
        self.bad.copy_(torch.maximum(self.bad, (~torch.isfinite(loss.detach())).to(self.bad.dtype)))
        return loss

    def keep(self, step: int) -> None:
        """Remember the terms of ``step``, which has just been taken."""
        self.kept[len(self.steps)].copy_(self.latest)
        self.steps.append((step, getattr(self.objective, "alpha", 0) > 0))
        if len(self.steps) == _FLUSH:
            self._flush()

    def _flush(self) -> None:
        for (step, divergence), row in zip(self.steps, self.kept.tolist(), strict=False):
            values = dict(zip(self.names, row, strict=True))
            if not divergence:
                del values["divergence"]
            if not math.isfinite(values["loss"]):
                parts = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
                raise FloatingPointError(
                    f"fit: the loss must be finite; got {parts} at step {step}. Lower the learning "
                    "rate, warm up or lower beta, alpha or gamma, or check the data's range."
                )
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1
        self.steps.clear()

    def record(self, vae: VAE, step: int, epoch: int, seconds: float, batch: int) -> Record:
        """Means since the last call, which are then forgotten."""
        self._flush()
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
