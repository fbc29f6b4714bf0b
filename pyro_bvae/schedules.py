"""Numbers that change while training: pure functions of the step, and the attribute they set.

A schedule is any function ``step -> float``, step counted from 0. Nothing else holds a counter, so
a resumed run continues its schedules by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch import Tensor

from .device import widest

Schedule = Callable[[int], float]


def constant(value: float) -> Schedule:
    """The same ``value`` at every step."""
    return lambda step: float(value)


def linear(start: float, end: float, steps: float) -> Schedule:
    """From ``start`` at step 0 to ``end`` at step ``steps``, then ``end``.

    The ramp of Burgess 2018 for C (arXiv 1804.03599), and the usual warm-up of beta.

    Examples:
        >>> ramp = linear(0.0, 20.0, 100)
        >>> ramp(0), ramp(50), ramp(1000)
        (0.0, 10.0, 20.0)
    """
    if steps <= 0:
        return constant(end)
    return lambda step: start + (end - start) * min(1.0, step / steps)


def cyclic(start: float, end: float, period: int, ramp: float = 0.5) -> Schedule:
    """Every ``period`` steps: ``start`` to ``end`` over the first ``ramp`` share of it, then ``end``.

    The cyclical annealing of Fu 2019 (arXiv 1903.10145).

    Examples:
        >>> wave = cyclic(0.0, 1.0, period=100)
        >>> wave(25), wave(75), wave(100)
        (0.5, 1.0, 0.0)
    """
    if period < 1:
        raise ValueError(f"cyclic: period must be at least 1 step; got {period}.")
    inside = linear(start, end, ramp * period)
    return lambda step: inside(step % period)


class NonNegative:
    """A finite number >= 0, kept twice: as a float, and as a 0-dim tensor at ``_name``.

    Reading gives the float, so that nothing waits for a device. Assigning fills the tensor in place, so
    that a captured program, which reads the tensor, follows it.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> NonNegative: ...
    @overload
    def __get__(self, instance: object, owner: type) -> float: ...
    def __get__(self, instance: Any, owner: type | None = None) -> NonNegative | float:
        if instance is None:
            return self
        value: float = instance.__dict__[self.name]
        return value

    def __set__(self, instance: Any, value: float) -> None:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number) or number < 0:
            raise ValueError(
                f"{type(instance).__name__}: {self.name} must be a finite number >= 0; got {value!s:.40}."
            )
        held: Tensor | None = instance.__dict__.get("_" + self.name)
        if held is None:
            # float64 keeps what was typed (.1 stays .1); a 0-dim tensor does not promote a batch.
            instance.__dict__["_" + self.name] = _held(number, torch.device("cpu"))
        elif number != instance.__dict__[self.name]:
            held.fill_(number)
        instance.__dict__[self.name] = number


@contextmanager
def numbers_on(device: torch.device, *owners: object) -> Iterator[None]:
    """Keep the tensors of the owners' `NonNegative` numbers on ``device`` meanwhile."""
    _move_numbers(owners, device)
    try:
        yield
    finally:
        _move_numbers(owners, torch.device("cpu"))


def _move_numbers(owners: tuple[object, ...], device: torch.device) -> None:
    for owner in owners:
        for name in dir(type(owner)):
            if isinstance(getattr(type(owner), name, None), NonNegative):
                held = vars(owner)["_" + name]
                held.data = _held(vars(owner)[name], device)  # the same tensor: programs hold it


def _held(number: float, device: torch.device) -> Tensor:
    return torch.tensor(number, dtype=widest(device), device=device)
