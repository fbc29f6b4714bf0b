"""CompiledSVI against the eager step: losses, parameters, buffers and noise, under one seed.

Most tests replay the captured graph without Inductor (`replayed`), which takes seconds less; the
compiled program itself is compared in the slow tests.
"""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, ReweightedWakeSleep, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import SGD
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_bvae import Config, build, fit, svi
from pyro_bvae.config import PRIORS
from pyro_bvae.datasets import Data
from pyro_bvae.elbo import DecompositionELBO
from pyro_bvae.schedules import linear
from pyro_bvae.svi import CompiledSVI
from pyro_bvae.training import JointAdam

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
# Gradients under BatchNorm are small sums of large numbers, which CPUs round differently in float32.
IMAGES = torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(0)).double()
LABELS = torch.arange(12) % 3


def ours(**options):
    """A model of ours and its objective, alike at every call."""
    settings = {"dataset": "x.npy", "latent_dim": 4, "network": "mlp", "likelihood": "normal"}
    config = Config(**{**settings, "epochs": 1, **options}).resolved()
    images = config.network != "mlp"
    x = IMAGES if images else X
    torch.manual_seed(0)
    vae = build.make_vae(config, x.shape[1:], 3 * config.conditional, x=x.float().numpy())
    return vae.to(x.dtype).train(), build.make_objective(config, 1000)


def stranger(elbo):
    """A Pyro program as its documentation writes them: modules, a constrained parameter."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    decoder = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 6))

    def model(x):
        pyro.module("decoder", decoder)
        scale = pyro.param("scale", torch.tensor(1.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            loc = decoder(z.reshape(-1, 2)).reshape(*z.shape[:-1], 6)
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            h = encoder(x)
            pyro.sample("z", dist.Normal(h[:, :2], h[:, 2:].exp()).to_event(1))

    return model, guide, elbo, [*encoder.parameters(), *decoder.parameters(), *decoder.buffers()]


def steps(model, guide, loss, batches, compile, before=None, kind=CompiledSVI):
    """Losses of some steps of gradient descent, which moves by the gradients themselves."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    options = {} if kind is SVI else {"compile": compile}
    runner = kind(model, guide, SGD({"lr": 1e-5}), loss, **options)
    losses = []
    with pyro.validation_enabled(False):
        for i, batch in enumerate(batches):
            if before is not None:
                before(i)
            losses.append(runner.step(*batch))
    return losses, runner


def assert_same(make, batches, before=lambda vae, objective: None):
    """Compiled equals eager: losses to float rounding, then every weight and buffer, and the noise."""
    found = []
    for compile in (False, True):
        vae, objective = make()
        losses, runner = steps(
            vae.model, vae.guide, objective, batches, compile, before(vae, objective)
        )
        found.append((losses, vae.state_dict(), torch.get_rng_state()))
        assert runner.compiled == compile
    (eager, weights, noise), (compiled, others, drawn) = found
    single = next(iter(weights.values())).dtype == torch.float32
    np.testing.assert_allclose(compiled, eager, rtol=2e-5 if single else 1e-12)
    close = {"rtol": 1e-4, "atol": 5e-5} if single else {"rtol": 1e-10, "atol": 1e-12}
    for name, value in weights.items():
        assert value.abs().max() < 100, name  # infinities would agree as well
        torch.testing.assert_close(others[name], value, **close)
    assert torch.equal(noise, drawn)
    return compiled


PROGRAMS = {
    "gaussian": {},
    "mixture, inclusive KL": {"prior": "mixture", "alpha": 1.0},
    "learned mixture": {"prior": "mixture", "prior_args": {"learned": True}, "alpha": 1.0},
    "spike-slab, MMD, particles": {"prior": "spike-slab", "alpha": 2.0, "latent_dim": 6, "n_particles": 2},
    "flow, exclusive KL": {"prior": "flow", "alpha": 1.0, "divergence": "exclusive-kl"},
    "beta-TCVAE": {"beta_tc": 6.0, "prior": "student-t"},
    "capacity": {"gamma": 10.0, "capacity": 3.0},
    "capacity, one-sided": {"gamma": 10.0, "capacity": 3.0, "penalty": "relu", "reduction": "example"},
    "beta = 0": {"beta": 0.0, "alpha": 1.0, "divergence": "mmd", "likelihood_scale": "learned"},
    "scale per pixel": {"likelihood_scale": "decoder"},
    "BatchNorm": {"network": "conv-bn", "likelihood": "bernoulli"},
    "VampPrior, BatchNorm": {
        "network": "dcgan32", "prior": "vamp", "likelihood": "laplace", "likelihood_scale": "1", "alpha": 1.0,
    },
}  # fmt: skip


LONG = ("flow, exclusive KL", "VampPrior, BatchNorm")  # four seconds each


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=pytest.mark.slow if name in LONG else [])
        for name, options in PROGRAMS.items()
    ],
)
def test_captured_steps_are_the_eager_ones(options, replayed):
    batch = (IMAGES if "network" in options else X,)
    losses = assert_same(lambda: ours(**options), [batch] * 5)
    assert len(replayed) == 1 and len(set(losses)) == 5


@pytest.mark.parametrize("encode", [False, True])
def test_conditional_models(encode, replayed):
    make = lambda: ours(conditional=True, encode_labels=encode, network="mlp")  # noqa: E731
    x = X.reshape(12, 6)
    assert_same(make, [(x, LABELS), (x, LABELS.flip(0))] * 3)
    assert len(replayed) == 1


@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(),
        TraceMeanField_ELBO(),
        Trace_ELBO(num_particles=3),
        Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        DecompositionELBO(),
    ],
    ids=lambda elbo: f"{type(elbo).__name__}-{elbo.num_particles}-{elbo.vectorize_particles}",
)
def test_a_strangers_program(elbo, replayed):
    found = []
    for kind in (SVI, CompiledSVI):
        model, guide, loss, tensors = stranger(elbo)
        losses, _ = steps(model, guide, loss, [(X,)] * 5, True, kind=kind)
        found.append((losses, [*tensors, pyro.param("scale").detach()]))
    (eager, weights), (compiled, others) = found
    assert len(replayed) == 1
    np.testing.assert_allclose(compiled, eager, rtol=2e-5)
    for a, b in zip(weights, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_scheduled_numbers_are_followed_without_a_new_capture(replayed):
    def follow(vae, objective):
        def set_numbers(i):
            vae.beta, objective.alpha = 1 + i, 0.5 * (i + 1)

        return set_numbers

    losses = assert_same(lambda: ours(prior="mixture", alpha=1.0), [(X,)] * 6, follow)
    assert len(replayed) == 1 and len(set(losses)) == 6

    def capacity(vae, objective):
        return lambda i: [setattr(objective, "gamma", i + 1), setattr(objective, "capacity", 2 * i)]

    assert_same(lambda: ours(gamma=1.0, capacity=1.0), [(X,)] * 6, capacity)
    assert len(replayed) == 2


def test_alpha_leaving_zero_is_another_program(replayed):
    def warm(vae, objective):
        return lambda i: setattr(objective, "alpha", max(0.0, i - 3.0))

    assert_same(lambda: ours(prior="mixture", alpha=1.0), [(X,)] * 9, warm)
    assert len(replayed) == 2
    with_d, without = (len(g.graph.nodes) for g in reversed(replayed))
    assert with_d > without


@pytest.mark.slow
def test_a_short_last_batch_and_the_training_mode(replayed):
    batches = [(X[:8],), (X[8:],)] * 4
    assert_same(lambda: ours(), batches)
    assert len(replayed) == 1

    def modes(vae, objective):
        return lambda i: vae.train(i < 4)

    options = {"network": "conv-bn", "likelihood": "bernoulli"}
    assert_same(lambda: ours(**options), [(IMAGES,)] * 8, modes)
    assert len(replayed) == 3


def test_arguments_that_are_no_tensors(replayed):
    def model(x, power=1):
        loc = pyro.param("loc", torch.tensor(2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc**power, 1.0), obs=x)

    batch = torch.zeros(3)
    runner = CompiledSVI(model, lambda x, power=1: None, SGD({"lr": 1e-9}), Trace_ELBO())
    pyro.clear_param_store()
    values = [runner.step(batch, power=power) for power in (1, 1, 1, 3, 3, 3, 1)]
    expected = [1.5 * 4**p + 1.5 * np.log(2 * np.pi) for p in (1, 1, 1, 3, 3, 3, 1)]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert len(replayed) == 2
    with pytest.warns(RuntimeWarning, match="could not be compiled.*unhashable"):
        runner.step(batch, power=type("Unhashable", (float,), {"__hash__": None})(1))
    assert not runner.compiled


# ---- what is watched: each against Pyro's own SVI ------------------------------------------------


def against_svi(make, calls, match=None):
    """Losses of Pyro's SVI and ours over ``calls``, each a function of (step, parts of make())."""
    found = []
    for kind in (SVI, CompiledSVI):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        model, guide, *parts = make()
        runner = kind(model, guide, SGD({"lr": 0.01}), Trace_ELBO())
        found.append([call(runner.step, *parts) for call in calls])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    return runner


def two_numbers():
    def model(x, which=False, y=None):
        a = pyro.param("a", torch.tensor(1.0))
        b = pyro.param("b", torch.tensor(2.0)) if which is True else 3.0 * int(which)
        with pyro.plate("data", 3):
            loc = a + b + (0.0 if y is None else 10 * y)
            pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.zeros(3) if x is None else x)

    return model, lambda *args, **kwargs: None


X3 = torch.arange(3.0)


def test_kinds_of_steps_keep_their_parameters(replayed):
    order = (True, False, True, True, False, False, True)
    against_svi(two_numbers, [lambda step, w=w: step(X3, w) for w in order])
    assert len(replayed) == 2


def test_numbers_are_told_from_switches_and_tensors_by_their_place(replayed):
    words = [1, 1, 1, True, True, True, 1.0, 1, True]
    against_svi(two_numbers, [lambda step, w=w: step(X3, w) for w in words])
    places = [(X3, False, None)] * 3 + [(None, False, X3)] * 3 + [(X3, False, None)]
    against_svi(two_numbers, [lambda step, p=p: step(*p) for p in places])
    assert len(replayed) == 4


def test_an_emptied_parameter_store_starts_again(replayed):
    def clear(step):
        pyro.clear_param_store()
        return step(X3)

    plain = [lambda step: step(X3)] * 4
    against_svi(two_numbers, [*plain, clear, *plain])
    assert len(replayed) == 2


def nets():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(net(x)[:, 0], 1.0), obs=x[:, 0])

    return model, lambda x: None, net


def test_modes_of_modules_that_a_closure_holds(replayed):
    x = torch.randn(5, 3)
    plain = [lambda step, net: step(x)] * 4
    against_svi(nets, [*plain, lambda step, net: [net.eval(), step(x)][1], *plain])
    assert len(replayed) == 2


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")
def test_frozen_parameters_stay(replayed):
    x = torch.randn(5, 3)
    made = []
    runner = against_svi(nets, [lambda step, net: [made.append(net), step(x)][1]] * 4)
    net = made[-1]
    frozen, free = net[0].weight, net[3].weight
    frozen.requires_grad_(False)
    before = [frozen.clone(), free.clone()]
    for _ in range(4):
        runner.step(x)
    assert torch.equal(frozen, before[0]) and not torch.equal(free, before[1])


def test_settings_of_an_objective_are_followed(replayed):
    def change(vae, objective):
        def at(i):
            objective.penalty = "relu" if i > 3 else "absolute"
            objective.num_particles = 2 if i > 7 else 1

        return at

    assert_same(lambda: ours(gamma=5.0, capacity=300.0), [(X,)] * 12, change)
    assert len(replayed) == 3


def test_numbers_that_keep_changing_are_refused_once(replayed):
    with pytest.warns(RuntimeWarning, match="keep changing: pass tensors") as caught:
        against_svi(two_numbers, [lambda step, i=i: step(X3, float(i)) for i in range(30)])
    assert len(caught) == 1


def test_numpy_in_a_model_is_not_taken_for_a_constant(replayed):
    def make():
        def model(x):
            a = pyro.param("a", torch.tensor(1.0))
            scale = 1.0 + float(np.square(x.numpy()).sum())
            with pyro.plate("data", 3):
                pyro.sample("x", dist.Normal(a, scale), obs=x)

        return model, lambda x: None

    with pytest.warns(RuntimeWarning, match="a tensor is read by numpy"):
        against_svi(make, [lambda step, i=i: step(i * X3) for i in range(5)])


def test_other_memory_layouts_train(replayed):
    """Pyro's store holds contiguous copies of channels-last weights; the weights themselves move."""
    found = []
    for compile in (False, True):
        for layout in (torch.contiguous_format, torch.channels_last):
            vae, objective = ours(network="burgess", likelihood="bernoulli")
            vae.to(memory_format=layout)
            pyro.clear_param_store()
            pyro.set_rng_seed(1)
            optim = JointAdam(vae.parameters(), lr=1e-3)
            runner = CompiledSVI(vae.model, vae.guide, optim, objective, compile=compile)
            with pyro.validation_enabled(False):
                losses = [runner.step(IMAGES) for _ in range(6)]
            assert all(p.grad is None for p in vae.parameters())
            found.append(losses)
    assert len(replayed) == 2
    for losses in found[1:]:
        np.testing.assert_allclose(losses, found[0], rtol=1e-5)


# ---- falling back ------------------------------------------------------------------------------


def assert_falls_back(make, match):
    """One warning, and the very numbers of the eager steps: nothing was drawn or moved twice."""
    found = []
    for compile in (False, True):
        vae, objective = make()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            losses, runner = steps(vae.model, vae.guide, objective, [(IMAGES,)] * 5, compile)
        found.append((losses, vae.state_dict()))
        sentences = [str(w.message) for w in caught if w.category is RuntimeWarning]
        assert len(sentences) == compile and not runner.compiled
    assert match in sentences[0] and "\n" not in sentences[0]
    (eager, weights), (compiled, others) = found
    assert eager == compiled
    assert all(torch.equal(value, others[name]) for name, value in weights.items())


def test_a_branch_on_data_runs_eagerly(replayed):
    def make():
        vae, objective = ours(network="conv-bn", likelihood="bernoulli")
        forward = vae.decoder.forward

        def branching(z):
            return forward(z if z.sum() > 0 else -z)

        vae.decoder.forward = branching
        return vae, objective

    assert_falls_back(make, "CompiledSVI: the step could not be compiled")
    assert not replayed


@pytest.mark.parametrize("at_once", [True, False])
def test_a_failing_compiler_runs_eagerly(at_once, monkeypatch):
    def compiler(graph):
        def run(*tensors):
            raise RuntimeError("no C++ compiler\nand more lines")

        return run() if at_once else run

    monkeypatch.setattr(svi, "_compile", compiler)
    assert_falls_back(
        lambda: ours(network="conv-bn", likelihood="bernoulli"), "(no C++ compiler). It runs"
    )


def test_an_error_of_a_running_program_is_raised(monkeypatch):
    """After it has run once it is no compiler's error: out of memory, say."""
    calls = []

    def compiler(graph):
        def run(*tensors):
            calls.append(1)
            if len(calls) == 3:
                raise RuntimeError("out of memory")
            return graph(*tensors)

        return run

    monkeypatch.setattr(svi, "_compile", compiler)
    vae, objective = ours()
    with pytest.raises(RuntimeError, match="out of memory"):
        steps(vae.model, vae.guide, objective, [(X,)] * 9, True)
    assert len(calls) == 3


def test_a_loss_of_two_numbers_is_pyros():
    found = []
    for kind in (SVI, CompiledSVI):
        model, guide, elbo, _ = stranger(ReweightedWakeSleep(num_particles=2))
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        options = {} if kind is SVI else {"compile": False}
        found.append(kind(model, guide, SGD({"lr": 1e-5}), elbo, **options).step(X))
    assert found[0] == found[1] and len(found[0]) == 2


def test_an_error_of_the_program_is_raised_as_it_is(replayed):
    vae, objective = ours()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        steps(vae.model, vae.guide, objective, [(torch.zeros(3, 7),)], True)


def test_evaluate_loss_is_that_of_svi():
    values = []
    for kind in (SVI, CompiledSVI):
        vae, objective = ours(prior="mixture", alpha=1.0)
        runner = kind(vae.model, vae.guide, SGD({"lr": 1e-5}), objective)
        pyro.set_rng_seed(3)
        values.append(runner.evaluate_loss(X))
    assert values[0] == values[1] and isinstance(values[0], float)


# ---- fit ---------------------------------------------------------------------------------------


class Reads(TorchDispatchMode):
    """Counts the times that a number is read off a device, where a GPU would have to be waited for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"prior": "mixture", "alpha": 1.0},
        {"prior": "spike-slab", "alpha": 1.0, "latent_dim": 6, "n_particles": 2},
        {"beta_tc": 6.0},
        {"gamma": 10.0, "capacity": 2.0},
    ],
    ids=str,
)
def test_a_step_reads_no_number(options, compile, replayed):
    vae, objective = ours(**options)
    seen = []
    schedules = {"capacity": linear(0, 2, 9)} if "gamma" in options else {"beta": linear(0, 1, 9)}

    with Reads() as reads:
        fit(
            vae, objective, Data(np.tile(X.numpy(), (12, 1))), epochs=1, batch_size=12,
            schedules=schedules, compile=compile, on_step=lambda state: seen.append(reads.count),
        )  # fmt: skip
    assert len(seen) == 12 and seen[-1] == seen[0]  # the first step is validated
    assert len(replayed) == compile


def test_fit_compiled_is_fit(replayed):
    found = []
    for compile in (False, True):
        vae, objective = ours(prior="mixture", alpha=1.0)
        pyro.set_rng_seed(2)
        history = fit(
            vae, objective, Data(X.numpy()), epochs=4, batch_size=5, lr=1e-2, compile=compile,
            schedules={"beta": linear(0, 1, 6), "alpha": linear(0, 2, 3)},
        )  # fmt: skip
        found.append((history, vae.state_dict()))
    assert len(replayed) == 1
    (eager, weights), (compiled, others) = found
    for a, b in zip(eager, compiled, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"seconds"}:
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-5), name
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=1e-3, atol=1e-4)


# ---- Inductor ----------------------------------------------------------------------------------

OBJECTIVES = {
    "beta-VAE": {"beta": 4.0},
    "decomposition": {"alpha": 1.0},
    "beta-TCVAE": {"beta_tc": 4.0},
    "capacity": {"gamma": 10.0, "capacity": 2.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_compiled_steps_are_the_eager_ones(objective, prior):
    assert_same(lambda: ours(prior=prior, **OBJECTIVES[objective]), [(X,)] * 5)


@pytest.mark.slow
@pytest.mark.parametrize("options", PROGRAMS.values(), ids=PROGRAMS)
def test_compiled_programs_are_the_eager_ones(options):
    batch = (IMAGES if "network" in options else X,)
    assert_same(lambda: ours(**options), [batch] * 5)


@pytest.mark.slow
def test_a_compiled_program_of_a_stranger():
    found = []
    for kind in (SVI, CompiledSVI):
        model, guide, loss, tensors = stranger(Trace_ELBO())
        found.append((steps(model, guide, loss, [(X,)] * 5, True, kind=kind)[0], tensors))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=2e-5)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
