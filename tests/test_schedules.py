"""Schedules: hand values; numbers that refuse what is not one and stay the same tensor."""

import math

import pytest
import torch

from pyro_bvae import schedules
from pyro_bvae.schedules import NonNegative, constant, cyclic, linear, numbers_on
from pyro_bvae.schedules import _move_numbers as move


class Objective:
    alpha = NonNegative()

    def __init__(self, alpha):
        self.alpha = alpha


def test_constant():
    assert [constant(4)(step) for step in (0, 1, 10**6)] == [4.0, 4.0, 4.0]
    assert isinstance(constant(4)(0), float)


def test_linear_rises_falls_and_stays():
    rise, fall = linear(0.0, 20.0, 8), linear(5.0, 1.0, 4)
    assert [rise(step) for step in (0, 1, 4, 8, 9, 10**6)] == [0.0, 2.5, 10.0, 20.0, 20.0, 20.0]
    assert [fall(step) for step in (0, 1, 2, 4, 5)] == [5.0, 4.0, 3.0, 1.0, 1.0]


@pytest.mark.parametrize("steps", [0, -3])
def test_linear_without_a_ramp_is_its_end(steps):
    assert [linear(1.0, 7.0, steps)(step) for step in (0, 5)] == [7.0, 7.0]


def test_cyclic():
    wave = cyclic(1.0, 3.0, period=8, ramp=0.5)
    one_period = [1.0, 1.5, 2.0, 2.5, 3.0, 3.0, 3.0, 3.0]
    assert [wave(step) for step in range(24)] == one_period * 3
    assert [cyclic(0.0, 1.0, 4, ramp=1.0)(step) for step in range(5)] == [0, 0.25, 0.5, 0.75, 0]
    assert cyclic(0.0, 1.0, 4, ramp=0.0)(0) == 1.0
    with pytest.raises(ValueError, match="cyclic: period must be at least 1 step; got 0"):
        cyclic(0.0, 1.0, 0)


def test_non_negative_reads_what_was_assigned_and_keeps_its_tensor():
    objective, other = Objective(0.1), Objective(3)
    held = objective.__dict__["_alpha"]
    assert objective.alpha == 0.1 and isinstance(objective.alpha, float)
    for value in (0, 2.5, 1e-300):
        objective.alpha = value
        assert objective.alpha == value
        assert objective.__dict__["_alpha"] is held and held.item() == value
    assert other.alpha == 3.0
    assert isinstance(Objective.alpha, NonNegative)


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf"), -float("inf")])
def test_non_negative_refuses(value):
    message = "Objective: alpha must be a finite number >= 0; got"
    with pytest.raises(ValueError, match=message):
        Objective(value)
    objective = Objective(2.0)
    with pytest.raises(ValueError, match=message):
        objective.alpha = value
    assert objective.alpha == 2.0


def test_numbers_that_move_stay_the_same_tensors(monkeypatch):
    class Narrower(Objective):
        gamma = NonNegative()

    moves = []
    monkeypatch.setattr(schedules, "_move_numbers", lambda *args: moves.append(args) or move(*args))
    objective = Narrower(2.0)
    objective.gamma = 3.0
    held = [vars(objective)[name] for name in ("_alpha", "_gamma")]
    other, cpu = torch.device("cpu", 0), torch.device("cpu")
    with pytest.raises(KeyError), numbers_on(other, objective, object()):
        raise KeyError
    assert [device for _, device in moves] == [other, cpu]
    assert all(vars(objective)[n] is h for n, h in zip(("_alpha", "_gamma"), held, strict=True))
    assert (objective.alpha, objective.gamma, held[1].item()) == (2.0, 3.0, 3.0)


@pytest.mark.parametrize("value", ["much", None, 10**400, [1.0], math.nan, -1])
def test_a_number_that_is_none(value):
    with pytest.raises(ValueError, match="Objective: alpha must be a finite number >= 0; got "):
        Objective(value)
