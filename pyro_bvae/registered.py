"""Parameters that the parts of a model make by `pyro.param`, kept as parameters of the model."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to


class Registered(nn.Module):
    """The sites of `pyro.param` in a prior, a likelihood or a network, by name.

    Pyro keeps such a site in a store of the whole process. Here each belongs to its model: it is an
    unconstrained ``nn.Parameter``, so that an optimiser of the model steps it, ``state_dict`` holds it and
    ``.to()`` moves it. Sites that are a module's own parameters, as `pyro.module` and ``PyroParam`` make
    them, are left alone.
    """

    def params(self, owner: nn.Module) -> Messenger:
        """A handler: within it, sites of `pyro.param` are these parameters, on ``owner``'s device."""
        return _Params(self, owner)

    def value(
        self, name: str, init: Any, constraint: constraints.Constraint, owner: nn.Module
    ) -> Tensor:
        """The constrained value of a site, which is made from ``init`` when it is first asked for.

        Raises:
            TypeError: ``init`` gives no floating-point tensor.
        """
        key, transform = _key(name), transform_to(constraint)
        if key not in self._parameters:
            start = init() if callable(init) else init
            if not (isinstance(start, Tensor) and start.is_floating_point()):
                got = start.dtype if isinstance(start, Tensor) else type(start).__name__
                raise TypeError(
                    f"pyro.param {name!r}: the start must be a floating-point tensor; got {got}. "
                    "Pass one, such as torch.tensor(1.0)."
                )
            like = next((p for p in owner.parameters() if p.is_floating_point()), start)
            with torch.no_grad():
                free = transform.inv(start.detach().to(like)).clone()
            self.register_parameter(key, nn.Parameter(free))
        parameter = self._parameters[key]
        assert parameter is not None
        value: Tensor = transform(parameter)
        value.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]  # Pyro's SVI steps it
        return value

    def __contains__(self, name: str) -> bool:
        return _key(name) in self._parameters

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in list(self._parameters):
            if prefix + name not in state_dict:  # it was not made yet, and starts again
                del self._parameters[name]
        for key, value in state_dict.items():
            if key.startswith(prefix) and key[len(prefix) :] not in self._parameters:
                self.register_parameter(key[len(prefix) :], nn.Parameter(torch.empty_like(value)))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _key(name: str) -> str:
    """A name that torch takes for a parameter: no dots, and no attribute of a module."""
    return "param_" + name.replace(".", "/")


class _Params(Messenger):
    def __init__(self, registered: Registered, owner: nn.Module) -> None:
        super().__init__()
        self.registered, self.owner = registered, owner

    def _pyro_param(self, msg: Any) -> None:
        name, *init = msg["args"]
        given = init[0] if init else msg["kwargs"].get("init_tensor")
        if name in self.registered or (given is not None and not self._is_of_a_module(given)):
            constraint = msg["kwargs"].get("constraint", constraints.real)
            msg["value"] = self.registered.value(name, given, constraint, self.owner)

    def _is_of_a_module(self, given: Any) -> bool:
        """A parameter of the model itself, or a tensor that was computed from one."""
        if not (isinstance(given, Tensor) and given.requires_grad):
            return False
        return not given.is_leaf or any(given is p for p in self.owner.parameters())
