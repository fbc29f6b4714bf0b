"""The terms of the steps of an epoch, added up without waiting for the device at each."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from .device import widest
from .terms import TermsELBO

Record = dict[str, float]

_FLUSH = 20  # steps between two looks at their losses: each look waits for the device


class Tally:
    """The loss per example, as a function for `CompiledSVI`, and the means of its terms.

    The terms of each step stay on the device until some steps are read at once.
    """

    names = ("loss", "log_px_z", "kl", "divergence", "largest gradient norm")

    def __init__(self, objective: TermsELBO, device: torch.device) -> None:
        self.objective = objective
        wide = widest(device)
        self.latest = torch.zeros(len(self.names) - 1, dtype=wide, device=device)
        self.kept = torch.zeros(_FLUSH, len(self.names), dtype=wide, device=device)
        # 1 from the first loss that is not finite: Adam then leaves the parameters as they are.
        self.bad = torch.zeros((), dtype=torch.float32, device=device)
        self.steps: list[tuple[int, bool]] = []  # of the rows kept: the step, and whether D was on
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}  # not all alike: D is there only where alpha > 0

    @property
    def structure(self) -> Hashable:
        return self.objective.structure

    def __call__(self, model: Any, guide: Any, *args: Any) -> Tensor:
        total, terms = self.objective.loss_and_terms(model, guide, *args)
        loss = total / len(terms.kl)
        means = (loss, terms.log_px_z.mean(), terms.kl.mean(), terms.divergence)
        self.latest.copy_(torch.stack([value.detach() for value in means]))
        self.bad.copy_(torch.maximum(self.bad, (~torch.isfinite(loss.detach())).to(self.bad.dtype)))
        return loss

    def keep(self, step: int, largest: Tensor) -> None:
        """Remember the terms of ``step``, which has just been taken, and its largest gradient."""
        row = self.kept[len(self.steps)]
        row[:-1].copy_(self.latest)
        row[-1].copy_(largest)
        self.steps.append((step, getattr(self.objective, "alpha", 0) > 0))
        if len(self.steps) == _FLUSH:
            self.flush()

    def flush(self) -> None:
        """Read what is kept, and raise where it is not finite."""
        for (step, divergence), row in zip(self.steps, self.kept.tolist(), strict=False):
            values = dict(zip(self.names, row, strict=True))
            if not divergence:
                del values["divergence"]
            if not (
                math.isfinite(values["loss"]) and math.isfinite(values["largest gradient norm"])
            ):
                parts = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
                which = "gradient" if math.isfinite(values["loss"]) else "loss"
                raise FloatingPointError(
                    f"fit: the {which} must be finite; got {parts} at step {step}. Lower the learning "
                    "rate, warm up or lower beta, alpha or gamma, or check the data's range."
                )
            del values["largest gradient norm"]
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1
        self.steps.clear()

    def clear(self, sums: Mapping[str, float], counts: Mapping[str, int]) -> None:
        """Forget the steps since these sums were taken."""
        if not set(sums) == set(counts) <= set(self.names) or min(counts.values(), default=1) < 1:
            raise ValueError("sums of other terms")
        self.sums = {name: float(value) for name, value in sums.items()}
        self.counts = {name: int(value) for name, value in counts.items()}
        self.steps.clear()
        self.bad.zero_()

    def record(self, step: int, epoch: int, seconds: float, beta: float, batch: int) -> Record:
        """Means since the last call, which are then forgotten."""
        self.flush()
        record: Record = {"step": step, "epoch": epoch, "seconds": round(seconds, 6)}
        record |= {name: total / self.counts[name] for name, total in self.sums.items()}
        record["elbo"] = record["log_px_z"] - record["kl"]
        record["kl_monte_carlo"] = float(bool(self.objective.monte_carlo_sites))
        if "divergence" in record:
            record["divergence_detached"] = float(getattr(self.objective, "detached", False))
            record["rate_minus_log_batch"] = record["kl"] - math.log(batch)
        record["beta"] = beta
        for name in ("alpha", "gamma", "capacity"):
            if hasattr(self.objective, name):
                record[name] = getattr(self.objective, name)
        self.sums, self.counts = {}, {}
        return record
