"""Parameters that the parts of a model make by `pyro.param`, kept as parameters of the model."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import pyro
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

    def params(self) -> Messenger:
        """A handler: within it, sites of `pyro.param` are these parameters."""
        return _Params(self)

    def value(self, name: str, init: Any, constraint: constraints.Constraint) -> Tensor:
        """The constrained value of a site, which is made from ``init`` when it is first asked for."""
        key, transform = _key(name), transform_to(constraint)
        if key not in self._parameters:
            start = init() if callable(init) else init
            with torch.no_grad():
                free = transform.inv(start.detach()).clone()
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
        for key, value in state_dict.items():
            if key.startswith(prefix) and key[len(prefix) :] not in self._parameters:
                self.register_parameter(key[len(prefix) :], nn.Parameter(torch.empty_like(value)))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _key(name: str) -> str:
    """A name that torch takes for a parameter: no dots, and no attribute of a module."""
    return "param_" + name.replace(".", "/")


class _Params(Messenger):
    def __init__(self, registered: Registered) -> None:
        super().__init__()
        self.registered = registered

    def _pyro_param(self, msg: Any) -> None:
        name, *init = msg["args"]
        given = init[0] if init else msg["kwargs"].get("init_tensor")
        own = given is not None and not (isinstance(given, Tensor) and given.requires_grad)
        if name in self.registered or (own and name not in pyro.get_param_store()):
            constraint = msg["kwargs"].get("constraint", constraints.real)
            msg["value"] = self.registered.value(name, given, constraint)
