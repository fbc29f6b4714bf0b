"""`JointAdam`: one Adam over all parameters, as a Pyro optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim.adam import adam


class JointAdam(PyroOptim):
    """One fused Adam over all parameters, for Pyro's SVI: `torch.optim.Adam`, as torch's own function.

    Pyro's wrapper keeps an optimiser per tensor, five times slower on a small network; and the first
    `torch.optim.Optimizer` of a process imports torch's compiler, which takes seconds.

    Args:
        parameters: what to train.
        lr: learning rate.
        amsgrad: the AMSGrad variant.
        hold: float32 ``()`` on the parameters' device; while it is 1, steps change nothing. A gradient
            that is not finite makes it 1.
        before_step: called before each step, when the gradients are there.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float,
        amsgrad: bool = False,
        hold: Tensor | None = None,
        before_step: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(torch.optim.Adam, {"lr": lr, "amsgrad": amsgrad})
        self.parameters = [p for p in parameters if p.requires_grad]
        self.lr, self.amsgrad, self.hold = lr, amsgrad, hold
        self.before_step = before_step
        self.largest = torch.zeros(()) if hold is None else torch.zeros_like(hold)
        """Largest norm of a parameter's latest gradient, where there is a ``hold``."""
        self.state: list[dict[str, Tensor]] = [{} for _ in self.parameters]

    @property
    def stepped(self) -> list[Tensor]:
        """The parameters that a step has had a gradient for."""
        return [p for p, state in zip(self.parameters, self.state, strict=True) if state]

    @torch.no_grad()
    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        if self.before_step is not None:
            self.before_step()
        used = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        if not used:
            return
        states = [self._state(i) for i in used]
        grads = [cast(Tensor, self.parameters[i].grad) for i in used]
        if self.hold is not None:
            # Where a square overflows here, so would Adam's second moment. (The largest entries
            # themselves take ten times as long on a CPU.)
            norms, dtype = torch._foreach_norm(grads), self.hold.dtype
            self.largest = torch.stack(
                [n if n.dtype is dtype else n.to(dtype) for n in norms]
            ).max()
            self.hold.masked_fill_(~(self.largest < math.inf), 1.0)  # NaN is not less either
        adam(
            [self.parameters[i] for i in used],
            grads,
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
        self.lr = float(state_dict["param_groups"][0]["lr"])
        with torch.no_grad():
            for i, values in state_dict["state"].items():
                for name, value in self._state(i).items():
                    value.copy_(values[name])
