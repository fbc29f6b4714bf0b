"""Programs of all kinds under CompiledSVI and under Pyro's SVI: one seed, the same numbers.

A step that cannot be captured says so once and runs eagerly; whether it is captured or not, the losses, the
parameters and all generators are those of `pyro.infer.SVI`.
"""

import copy
import itertools
import math
import random
import warnings
from collections import deque
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceGraph_ELBO,
)
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.optim import SGD, Adam, ExponentialLR
from torch import nn

from pyro_bvae import DecompositionELBO
from pyro_bvae.svi import CompiledSVI

pytestmark = [  # of Pyro's Jit ELBOs
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.tensor results are registered"),
]

XS = list(3 * torch.rand(6, 6, 3, generator=torch.Generator().manual_seed(0)))


def no_guide(x):
    pass


def regression(location):
    """x summed ~ N(location(x, w), 1), with one parameter w."""

    def model(x):
        w = pyro.param("w", torch.ones(3))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(location(x, w), 1.0), obs=x.sum(-1))

    return model, no_guide


def vae():
    torch.manual_seed(0)
    encoder = nn.Linear(3, 4)
    decoder = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 3))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("rows", len(x)):
            loc, raw = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    return model, guide, decoder


def run(kind, make, loss, optim, xs, before):
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    model, guide, *parts = make()
    losses = loss() if isinstance(loss(), tuple) else (loss(),)
    svi = kind(model, guide, optim(), *losses)
    found = []
    for i, x in enumerate(xs):
        if before is not None:
            before(i, svi, *parts)
        found.append(svi.step(x))
    weights = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    return found, weights, torch.get_rng_state(), (random.random(), np.random.rand())


def assert_pyros(
    make, match=None, loss=Trace_ELBO, optim=lambda: SGD({"lr": 1e-4}), xs=XS, before=None
):
    """The numbers of Pyro's SVI; and one warning that matches, or none."""
    found = []
    for kind in (SVI, CompiledSVI):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found.append(run(kind, make, loss, optim, xs, before))
    said = [str(w.message) for w in caught if "CompiledSVI" in str(w.message)]
    assert len(said) == (match is not None), said
    if match is not None:
        assert match in said[0]
    (losses, weights, noise, drawn), (others, moved, left, other_drawn) = found
    np.testing.assert_allclose(others, losses, rtol=2e-5)
    assert moved.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(moved[name], value, rtol=1e-4, atol=1e-6)
    assert torch.equal(noise, left) and drawn == other_drawn


# ---- what Python reads off tensors -------------------------------------------------------------

READS = {
    "tolist": (lambda x, w: x @ w * x[0].tolist()[0], "read by tolist"),
    "tensor of tensors": (
        lambda x, w: x @ w * torch.tensor([r.mean() for r in x]), "torch.tensor takes numbers out",
    ),
    "new_tensor": (lambda x, w: x @ w * x.new_tensor([x.mean()]), "torch.new_tensor takes numbers"),
    "FloatTensor": (lambda x, w: x @ w * torch.FloatTensor([x[0, 0]]), "read by __float__"),
    "length of a selection": (lambda x, w: x @ w * len(x[x > 1]), "a shape depends on data"),
    "selection": (lambda x, w: x @ w + (x * w)[x > 1].sum(), "a shape depends on data"),
    "masked_select": (lambda x, w: x @ w + (x * w).masked_select(x > 1).sum(), "aten.masked_select"),
    "nonzero": (lambda x, w: x @ w * len((x > 1).nonzero()), "aten.nonzero"),
    "where": (lambda x, w: x @ w + x[torch.where(x[:, 0] > 1)].sum(), "aten.nonzero"),
    "unique": (lambda x, w: x @ w * len(x.round().unique()), "aten._unique2"),
    "numpy": (lambda x, w: x @ w * float(x.numpy().sum()), "read by numpy"),
    "dlpack": (lambda x, w: x @ w * torch.from_dlpack(x)[:, 0], "read by __dlpack__"),
    "float": (lambda x, w: x @ w * float(x.mean()), "read by __float__"),
    "float of a parameter": (lambda x, w: x @ w * float(w.mean()), "read by __float__"),
    "bool": (lambda x, w: x @ w * (2 if x.mean() > 1.5 else 1), "read by __bool__"),
    "equal": (lambda x, w: x @ w * (2 if torch.equal(w, torch.ones(3)) else 1), "a number is read"),
    "max": (lambda x, w: x @ w * max(x[:, 0]), "read by __bool__"),
    "f-string": (lambda x, w: x @ w * len(f"{x[0, 0].item():.6g}"), "read by __format__"),
    "repr": (lambda x, w: x @ w * len(repr(x)), "read by __repr__"),
    "integer index": (lambda x, w: x @ w * x[int(x[0, 0]), 0], "read by __int__"),
    "apply_": (lambda x, w: x @ w * x.clone().apply_(lambda v: v * v)[:, 0], "read by apply_"),
    "deepcopy": (lambda x, w: x @ w * copy.deepcopy(x)[:, 0], "UntypedStorage"),
    "random": (lambda x, w: x @ w * random.random(), "random numbers are drawn"),
    "np.random": (lambda x, w: x @ w * np.random.rand(), "random numbers are drawn"),
}  # fmt: skip


@pytest.mark.parametrize("name", READS)
def test_what_python_reads_is_said_and_runs_eagerly(name, replayed):
    location, match = READS[name]
    assert_pyros(lambda: regression(location), match)


@pytest.mark.parametrize(
    "location",
    [
        lambda x, w: x @ w * x.mean().item(),
        lambda x, w: x @ w * x[x[:, 0].long(), 0],
        lambda x, w: x @ w * torch.stack([r.mean() for r in x]),
        lambda x, w: sum((x * w)[:, i] for i in range(3)),
        lambda x, w: nn.functional.dropout(x * w).sum(-1),
        lambda x, w: x @ w * torch.multinomial(x.softmax(-1), 1)[:, 0],
        lambda x, w: x @ w * torch.tensor([1.0, 2.0])[1],
    ],
)
def test_tensors_alone_are_captured(location, replayed):
    assert_pyros(lambda: regression(location))
    assert len(replayed) == 1


def test_a_count_that_changes_late_is_no_error_of_torch(replayed):
    """Batches have six rows above 1, and later three."""
    xs = [torch.full((6, 3), 2.0)] * 5 + [torch.tensor([[2.0] * 3, [0.5] * 3]).repeat(3, 1)] * 3
    location = lambda x, w: x @ w + (x @ w)[(x[:, 0] > 1).nonzero()].sum()  # noqa: E731
    assert_pyros(lambda: regression(location), "a shape depends on data", xs=xs)


# ---- what a step changes -----------------------------------------------------------------------


def counting(add, count):
    def make():
        held = copy.copy(count)

        def location(x, w):
            add(held)
            return x @ w * (2.0 if len(held) > 3 else 1.0)

        return regression(location)

    return make


class Average(nn.Module):
    """Centres x by a moving mean, kept in one of four ways."""

    def __init__(self, how):
        super().__init__()
        self.register_buffer("ema", torch.zeros(3))
        self.how, self.steps = how, 0

    def forward(self, x, w):
        new = 0.9 * self.ema + 0.1 * x.mean(0).detach()
        if self.how == "reassigned":
            self.ema = new
        elif self.how == "data":
            self.ema.data = new
        elif self.how == "attribute":
            self.steps += 1
            return x @ w / self.steps
        else:
            self.ema.copy_(new)
        return (x - self.ema) @ w


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("reassigned", "a step changes 'ema'"),
        ("data", "other data into a tensor"),
        ("attribute", "a step changes 'steps'"),
        ("in place", None),
    ],
)
def test_buffers_and_attributes_that_a_step_changes(how, match, replayed):
    assert_pyros(lambda: regression(Average(how)), match)


@pytest.mark.parametrize(
    ("add", "count"),
    [
        (lambda held: held.append(1), []),
        (lambda held: held.append(1), deque()),
        (lambda held: held.add(len(held)), set()),
        (lambda held: held.update({len(held): 1}), {}),
    ],
    ids=["list", "deque", "set", "dict"],
)
def test_containers_that_a_step_fills(add, count, replayed):
    assert_pyros(counting(add, count), "a step changes 'held'")


def test_counters_of_closures_and_arrays(replayed):
    def closure():
        n = 0

        def location(x, w):
            nonlocal n
            n += 1
            return x @ w * (2.0 if n > 3 else 1.0)

        return regression(location)

    def array():
        n = np.zeros(1)

        def location(x, w):
            n[0] += 1
            return x @ w * n[0]

        return regression(location)

    def late():
        n = [0]

        def location(x, w):
            n[0] += 1
            return x @ w * (pyro.param("late", torch.tensor(2.0)) if n[0] > 3 else 1.0)

        return regression(location)

    for make in (closure, array, late):
        assert_pyros(make, "a step changes 'n'")


def test_streams_are_not_watched_but_said(replayed):
    for stream in (
        itertools.count,
        lambda: iter(XS * 2),
        lambda: iter(np.random.default_rng(0).random, None),
    ):

        def make(stream=stream):
            held = stream()
            return regression(lambda x, w: (next(held) * (x * w)).sum(-1))

        assert_pyros(make, "'held' gives another value at each use")


# ---- what changes between steps ----------------------------------------------------------------


def holder():
    held = SimpleNamespace(x=None, scale=1.0, items=[1.0], of={"a": 1.0})

    def model(x):
        w = pyro.param("w", torch.ones(3))
        scale = held.scale * held.items[0] * held.of["a"]
        with pyro.plate("rows", 6):
            x = x if held.x is None else held.x
            pyro.sample("y", dist.Normal(scale * (x @ w), 1.0), obs=x.sum(-1))

    return model, no_guide, held


def test_data_handed_over_by_attribute(replayed):
    """At each step, or only after some: the captured batch is not the next one."""
    assert_pyros(holder, before=lambda i, svi, held: setattr(held, "x", XS[i]), xs=[XS[0]] * 6)
    late = lambda i, svi, held: setattr(held, "x", XS[max(0, i - 3)])  # noqa: E731
    assert_pyros(holder, before=late, xs=[XS[0]] * 6)
    always = lambda i, svi, held: setattr(held, "x", XS[i % 6] + i)  # noqa: E731
    assert_pyros(holder, "such as 'x', keep changing", before=always, xs=[XS[0]] * 18)


@pytest.mark.parametrize(
    "change",
    [
        lambda held, value: setattr(held, "scale", value),
        lambda held, value: held.items.__setitem__(0, value),
        lambda held, value: held.of.update(a=value),
    ],
    ids=["attribute", "list", "dict"],
)
def test_values_that_are_set_between_steps_are_followed(change, replayed):
    assert_pyros(holder, before=lambda i, svi, held: change(held, 1.0 if i < 3 else 0.5))
    assert len(replayed) == 2


FACTOR = 1.0


def test_a_global_is_followed(replayed):
    def set_it(i, svi):
        global FACTOR
        FACTOR = 1.0 if i < 3 else 0.5

    assert_pyros(lambda: regression(lambda x, w: FACTOR * (x @ w)), before=set_it)
    assert len(replayed) == 2


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda decoder: decoder.eval(), id="eval"),
        pytest.param(
            lambda decoder: setattr(decoder[2], "p", 0.6), id="dropout", marks=pytest.mark.slow
        ),
        pytest.param(
            lambda decoder: decoder.__setitem__(2, nn.Identity()),
            id="layer",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_modules_that_change_in_mid_training(change, replayed):
    assert_pyros(vae, before=lambda i, svi, decoder: change(decoder) if i == 3 else None)
    assert len(replayed) == 2


def test_values_that_the_programs_do_not_name_may_change(replayed):
    """A trainer's own record of its losses."""

    class Trainer:
        def __init__(self):
            self.losses, self.epoch = [], 0

        def model(self, x):
            regression(lambda x, w: x @ w)[0](x)

        def guide(self, x):
            pass

    def make():
        trainer = Trainer()
        return trainer.model, trainer.guide, trainer

    def record(i, svi, trainer):
        trainer.losses.append(i)
        trainer.epoch += 1

    assert_pyros(make, before=record)
    assert len(replayed) == 1


def test_a_handler_around_the_step_is_said(replayed):
    around = poutine.scale(scale=0.5)

    def enter(i, svi, decoder):
        if i == 3:
            around.__enter__()
        elif i == 5:
            around.__exit__(None, None, None)

    assert_pyros(vae, "a handler is around the step", before=enter)


@pytest.mark.parametrize(
    "xs",
    [
        [x.double() if i > 3 else x for i, x in enumerate(XS)],
        [x[:4] if i % 2 else x for i, x in enumerate(XS)],
        [x.T.contiguous().T if i % 2 else x for i, x in enumerate(XS)],
    ],
    ids=["dtype", "rows", "layout"],
)
def test_arguments_of_other_kinds(xs, replayed):
    assert_pyros(lambda: regression(lambda x, w: x @ w.to(x.dtype)), xs=xs)
    assert len(replayed) == 1


# ---- objectives --------------------------------------------------------------------------------


class Shifted(Trace_ELBO):
    def loss_and_grads(self, model, guide, *args, **kwargs):
        return super().loss_and_grads(model, guide, *args, **kwargs) + 100.0


class Weighed(DecompositionELBO):
    weight = 1.0

    def loss_and_grads(self, model, guide, *args, **kwargs):
        loss = self.weight * self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()


def plain_loss(model, guide, x):
    return Trace_ELBO().differentiable_loss(model, guide, x)


def twice(model, guide, x):
    loss = 2 * plain_loss(model, guide, x)
    loss.backward()
    return loss.item()


LOSSES = {
    "own": (Shifted, 1, None),
    "own, ours": (Weighed, 1, None),
    "graph": (TraceGraph_ELBO, 1, None),
    "Renyi": (lambda: RenyiELBO(0.5, num_particles=2), 1, None),
    "function": (lambda: plain_loss, 1, None),
    "loss_and_grads": (lambda: (plain_loss, twice), 1, None),
    "number": (lambda: lambda model, guide, x: 3.0, 0, "its loss is no tensor"),
    "no gradient": (lambda: lambda model, guide, x: torch.tensor(3.0), 1, None),
    "Jit": (JitTrace_ELBO, 0, "could not be compiled"),
    "Jit, mean field": (JitTraceMeanField_ELBO, 0, "could not be compiled"),
    "two losses": (
        lambda: ReweightedWakeSleep(2, vectorize_particles=False),
        0,
        "its loss is no tensor",
    ),
}


QUICK = ("own", "loss_and_grads", "number", "no gradient", "Jit")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in LOSSES]
)
def test_any_loss_is_that_of_svi(name, replayed):
    loss, graphs, match = LOSSES[name]
    assert_pyros(vae, match, loss=loss, optim=lambda: Adam({"lr": 0.01}))
    assert len(replayed) == graphs


@pytest.mark.slow
def test_an_attribute_of_ones_own_objective_is_followed(replayed):
    weigh = lambda i, svi, decoder: setattr(svi.loss.__self__, "weight", 1.0 + (i > 3))  # noqa: E731
    assert_pyros(vae, loss=Weighed, before=weigh)
    assert len(replayed) == 2


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("loss", [JitTrace_ELBO, Shifted, TraceGraph_ELBO])
def test_gradients_are_those_of_loss_and_grads(loss, compile, replayed):
    """One step of descent by 1 moves the parameter by the gradient, -sum_i x_i (x_i - w) at w = 2."""

    def model(x):
        w = pyro.param("w", torch.tensor(2.0))
        with pyro.plate("rows", x.shape[0]):  # the tracer of JitTrace_ELBO warns of len
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    x, shift = torch.tensor([1.0, 4.0]), 100.0 * (loss is Shifted)
    svi = CompiledSVI(model, no_guide, SGD({"lr": 0.1}), loss(), compile=compile)
    value = svi.step(x)
    assert value == pytest.approx(0.5 * (1 + 4) + math.log(2 * math.pi) + shift)
    assert pyro.param("w").item() == pytest.approx(2.0 - 0.1 * (2 * 2.0 - 5.0))


def test_nothing_to_train(replayed):
    def make():
        def model(x):
            with pyro.plate("rows", len(x)):
                pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1), obs=x)

        return model, no_guide

    assert_pyros(make)


# ---- parameters and optimisers -----------------------------------------------------------------


def two_parameters():
    held = SimpleNamespace(both=True)

    def model(x):
        a, b = (pyro.param(name, torch.ones(3)) for name in "ab")
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(x @ (a + b if held.both else a), 1.0), obs=x.sum(-1))

    return model, no_guide, held


@pytest.mark.parametrize("compile", [False, True])
def test_parameters_that_a_step_does_not_reach_move_on_under_adam(compile, replayed):
    """Pyro's gradients stay 0, not None, so Adam's momentum goes on: after 60 steps it is elsewhere."""
    found = []
    for kind, options in ((SVI, {}), (CompiledSVI, {"compile": compile})):
        pyro.clear_param_store()
        model, guide, held = two_parameters()
        svi = kind(model, guide, Adam({"lr": 0.05}), Trace_ELBO(), **options)
        for i in range(60):
            held.both = i < 30
            loss = svi.step(XS[0])
        found.append((loss, pyro.param("b").detach().clone()))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1])


@pytest.mark.parametrize(
    "optim",
    [
        lambda: Adam({"lr": 0.01}, clip_args={"clip_norm": 0.5}),
        lambda: SGD({"lr": 0.01}, clip_args={"clip_value": 0.1}),
        lambda: ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}, "gamma": 0.5}
        ),
    ],
    ids=["norm", "value", "schedule"],
)
def test_optimisers_of_pyro(optim, replayed):
    """Both parameters have one gradient: it must be clipped once."""

    def schedule(i, svi, held):
        if i and isinstance(svi.optim, pyro.optim.PyroLRScheduler):
            svi.optim.step()

    assert_pyros(two_parameters, optim=optim, before=schedule)
    assert len(replayed) == 1


def test_a_tensor_that_pyro_does_not_know_is_said(replayed):
    def make():
        layer = nn.Linear(1, 3)
        nn.init.ones_(layer.weight)
        return regression(lambda x, w: x @ (w * layer.weight[:, 0]))

    assert_pyros(make, "Pyro does not know a tensor that is trained")


@pytest.mark.slow
@pytest.mark.parametrize("guide", [AutoNormal, AutoMultivariateNormal])
def test_guides_and_modules_of_pyro_are_captured(guide, replayed):
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.w = PyroParam(torch.ones(3), constraint=dist.constraints.positive)
            self.b = PyroSample(dist.Normal(0.0, 1.0))
            self.c = PyroSample(dist.Normal(0.0, 1.0))

        def forward(self, x):
            loc = x @ self.w + self.b * self.c
            with pyro.plate("rows", len(x), subsample_size=4) as rows:
                pyro.sample("y", dist.Normal(loc[rows], 1.0), obs=x.sum(-1)[rows])

    def make():
        model = Model()
        return model, guide(model)

    assert_pyros(make)
    assert len(replayed) == 1
