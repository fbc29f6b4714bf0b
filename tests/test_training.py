"""fit: what it trains, in which order it reads, what it records, what it leaves alone and refuses."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_bvae import VAE, CapacityELBO, DecompositionELBO, fit, tally, training
from pyro_bvae.datasets import Data
from pyro_bvae.divergences import inclusive_kl, mmd_per_dim
from pyro_bvae.likelihoods import Bernoulli, Normal
from pyro_bvae.networks import NETWORKS, mlp
from pyro_bvae.priors import Flow, Gaussian, Mixture, SpikeSlab, StudentT, VampPrior
from pyro_bvae.schedules import linear
from pyro_bvae.training import steps_per_epoch


def array(n=10, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def tiny(prior=None, seed=0, beta=1.0, n_classes=0, d=3, encode_labels=False):
    torch.manual_seed(seed)
    encoder, _ = mlp((d + n_classes * encode_labels,), 2, hidden=4)
    _, decoder = mlp((d,), 2, extra=n_classes, hidden=4)
    prior = prior or Gaussian(2)
    return VAE(encoder, decoder, prior, Normal("learned"), beta, n_classes, encode_labels)


def trained(vae, objective, data, noise=3, **options):
    """History without the clock."""
    torch.manual_seed(noise)
    history = fit(vae, objective, data, **options)
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def constant_d(q_z, p_z, z):
    return torch.tensor(2.0)


class Spy(DecompositionELBO):
    """Remembers each batch, the numbers it was weighed with and its terms."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.batches, self.labels, self.numbers, self.results = [], [], [], []

    def loss_and_terms(self, model, guide, x, labels=None):
        loss, terms = super().loss_and_terms(model, guide, x, labels)
        self.batches.append(x.clone())
        self.labels.append(labels)
        self.numbers.append((model.__self__.beta, self.alpha))
        self.results.append((loss.item(), *(term.mean().item() for term in terms)))
        return loss, terms


# ---- learning ----------------------------------------------------------------------------------

PRIORS = {
    "gaussian": lambda: Gaussian(2, learned=True),
    "student-t": lambda: StudentT(2, learned=True),
    "spike-slab": lambda: SpikeSlab(2, learned=True),
    "mixture": lambda: Mixture(2, learned=True),
    "vamp": lambda: VampPrior(2, 3, (3,)),
    "flow": lambda: Flow(2, 2, 4),
}


@pytest.mark.parametrize(
    "objective", [lambda: DecompositionELBO(1.0, mmd_per_dim), lambda: CapacityELBO(3.0, 0.1)]
)
@pytest.mark.parametrize("prior", PRIORS)
def test_every_parameter_moves_in_the_first_and_in_a_second_model(prior, objective):
    data = Data(array())
    histories = []
    for _ in range(2):  # the second in one process would train the first's parameters, unscoped
        torch.manual_seed(0)
        vae = tiny(PRIORS[prior]())
        start = {name: p.detach().clone() for name, p in vae.named_parameters()}
        histories.append(trained(vae, objective(), data, epochs=3, batch_size=5, lr=0.01))
        still = [name for name, p in vae.named_parameters() if torch.equal(p, start[name])]
        assert not still
    assert histories[0] == histories[1]


def test_a_second_fit_continues_and_two_different_models_both_train():
    data = Data(array(20))
    for d, hidden in ((3, 4), (3, 6)):
        torch.manual_seed(d)
        vae = VAE(*mlp((d,), 2, hidden=hidden), Gaussian(2), Normal("learned"))
        first = trained(vae, DecompositionELBO(), data, epochs=30, batch_size=10, lr=0.01)
        again = trained(vae, DecompositionELBO(), data, epochs=30, batch_size=10, lr=0.01)
        # log-density in nats of 3 numbers: falls by more than one over 60 steps, and goes on from there.
        assert first[-1]["loss"] < first[0]["loss"] - 0.5
        assert again[0]["loss"] < first[0]["loss"] - 0.5


def test_first_step_is_adams_on_the_loss_per_example():
    """Adam's first step is -lr g / (|g| + eps): a sign, so compare two, with g of the mean loss."""
    data, vae, twin = Data(array(6)), tiny(), tiny()
    trained(vae, DecompositionELBO(), data, steps=2, batch_size=6, lr=0.01, amsgrad=True)
    torch.manual_seed(3)
    adam = torch.optim.Adam(twin.parameters(), lr=0.01, amsgrad=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        x = torch.from_numpy(data.x)[torch.randperm(6, generator=generator)]
        adam.zero_grad()
        (DecompositionELBO().differentiable_loss(twin.model, twin.guide, x) / 6).backward()
        adam.step()
    for ours, theirs in zip(vae.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


class LinearEncoder(nn.Module):
    def __init__(self, d, latent_dim):
        super().__init__()
        self.loc, self.raw = nn.Linear(d, latent_dim), nn.Parameter(torch.zeros(latent_dim))

    def forward(self, x):
        loc = self.loc(x)
        return loc, F.softplus(self.raw).expand_as(loc)


def test_a_linear_vae_reaches_the_maximum_likelihood_of_probabilistic_pca():
    """Lucas 2019: a linear VAE's best ELBO is PPCA's log-likelihood, -(d log 2 pi + sum of the leading
    log eigenvalues + (d - q) log of the mean of the others + d) / 2 per row (Tipping & Bishop 1999)."""
    d, q, n = 5, 2, 200
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, q)) @ rng.normal(size=(q, d)) + 0.5 * rng.normal(size=(n, d)) + 1.0
    x = x.astype(np.float32)
    eigenvalues = np.linalg.eigvalsh(np.cov(x, rowvar=False, bias=True))[::-1]
    best = -0.5 * (
        d * math.log(2 * math.pi)
        + np.log(eigenvalues[:q]).sum()
        + (d - q) * math.log(eigenvalues[q:].mean())
        + d
    )
    torch.manual_seed(0)
    vae = VAE(LinearEncoder(d, q), nn.Linear(q, d), Gaussian(q), Normal("learned"))
    elbo = DecompositionELBO(num_particles=4, vectorize_particles=True)
    for lr, steps in ((0.05, 150), (0.005, 80)):
        fit(vae, elbo, Data(x), steps=steps, batch_size=n, lr=lr)
    with torch.no_grad():
        w, b = vae.decoder.weight.double(), vae.decoder.bias.double()
        sigma = vae.p_x(torch.zeros(1, q)).base_dist.scale[0, 0].double()
        cov = w @ w.T + sigma**2 * torch.eye(d, dtype=torch.float64)
        rows = torch.from_numpy(x)
        reached = dist.MultivariateNormal(b, cov).log_prob(rows.double()).mean().item()
        many = DecompositionELBO(num_particles=100, vectorize_particles=True)
        terms = many.terms(vae.model, vae.guide, rows)
        bound = (terms.log_px_z - terms.kl).mean().item()
    assert reached <= best + 1e-6
    # 12 parameters fitted to n rows: their own statistical error costs 12 / (2 n) = .03 nats a row.
    assert reached > best - 0.03
    assert reached - 0.05 < bound < reached + 0.02  # its error: sqrt(d / 2 / (n 100)) = .011


# ---- reading -----------------------------------------------------------------------------------


class Lazy:
    """Rows read one batch at a time, handed out read-only as a memory map would."""

    def __init__(self, x, labels=None):
        self.x, self.reads = x, 0
        self.shape, self.dtype = x.shape, x.dtype

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.reads += 1
        rows = self.x[index]
        rows.setflags(write=False)
        return rows


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_lazy_data_give_the_history_of_the_array(dtype):
    x = array(11) if dtype == np.float32 else np.arange(33, dtype=np.uint8).reshape(11, 3)
    lazy = Lazy(x)
    histories = [
        trained(tiny(), DecompositionELBO(), data, epochs=2, batch_size=4)
        for data in (Data(x), Data(lazy))
    ]
    assert histories[0] == histories[1]
    assert lazy.reads == 7  # 2 epochs of 3 batches, and the rows that the guard looks at


def test_read_only_arrays_do_not_warn():
    x, labels = array(), np.arange(10) % 3
    x.setflags(write=False)
    labels.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = trained(tiny(n_classes=3), DecompositionELBO(), Data(x, labels), steps=2)
    assert history[-1]["step"] == 2 and not x.flags.writeable


def test_an_epoch_visits_every_row_once_in_an_order_of_its_seed():
    x = np.arange(10, dtype=np.float32).reshape(10, 1)
    orders = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        spy = Spy()
        trained(tiny(d=1), spy, Data(x), epochs=2, batch_size=4, seed=seed)
        assert [len(b) for b in spy.batches] == [4, 4, 2, 4, 4, 2]
        first, second = (torch.cat(spy.batches[i : i + 3]).flatten() for i in (0, 3))
        assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
        assert not torch.equal(first, second)
        orders[name] = first.tolist()
    assert orders["a"] == orders["b"] != orders["c"]


def test_latent_noise_is_of_the_ambient_generator():
    data = Data(array())
    runs = [trained(tiny(), DecompositionELBO(), data, noise, steps=2) for noise in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    "n, batch_size, sizes",
    [
        (8, 4, [4, 4]),
        (9, 4, [4, 4]),  # a single last row is left out: BatchNorm cannot take it
        (10, 4, [4, 4, 2]),
        (3, 1, [1, 1, 1]),
        (3, 64, [3]),
        (1, 64, [1]),
        (5, 4, [4]),
    ],
)
def test_batches_of_an_epoch(n, batch_size, sizes):
    spy = Spy()
    (record,) = trained(tiny(), spy, Data(array(n)), epochs=1, batch_size=batch_size)
    assert [len(b) for b in spy.batches] == sizes
    assert steps_per_epoch(n, batch_size) == len(sizes) == record["step"]


def test_batch_norm_trains_where_one_row_is_left_over():
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32), dtype=np.uint8)
    vae = VAE(*NETWORKS["conv-bn"]((1, 32, 32), 2), Gaussian(2), Bernoulli())
    (record,) = trained(vae, DecompositionELBO(), Data(images), epochs=1, batch_size=2)
    assert record["step"] == 1 and math.isfinite(record["loss"])


def test_bytes_are_scaled_and_transformed_on_the_way():
    x = np.array([[0, 51, 255], [102, 0, 51]], dtype=np.uint8)
    spy = Spy()
    trained(tiny(), spy, Data(x), steps=1, transform=lambda batch: batch + 1)
    (batch,) = spy.batches
    assert batch.dtype == torch.float32
    expected = torch.tensor([[0, 0.2, 1.0], [0.4, 0, 0.2]]) + 1
    torch.testing.assert_close(batch.sort(0).values, expected.sort(0).values)


@pytest.mark.parametrize("encode_labels", [False, True])
def test_labels_go_with_their_rows(encode_labels):
    labels = np.array([0, 2, 1, 2, 0, 1, 1])
    x = np.repeat(labels, 3).reshape(7, 3).astype(np.float32)
    for data in (Data(x, labels), Data(Lazy(x), labels)):
        spy = Spy()
        vae = tiny(n_classes=3, encode_labels=encode_labels)
        trained(vae, spy, data, epochs=1, batch_size=3)
        for batch, label in zip(spy.batches, spy.labels, strict=True):
            assert label.dtype == torch.int64 and torch.equal(batch[:, 0].long(), label)
    spy = Spy()
    trained(tiny(), spy, data, steps=1)  # not conditional: labels stay where they are
    assert spy.labels == [None]


# ---- schedules, records, callbacks -------------------------------------------------------------


def test_schedules_are_applied_before_each_step():
    spy, vae = Spy(9.0, constant_d), tiny(beta=9.0)
    schedules = {"beta": lambda step: [0.0, 0.5, 1.0, 4.0, 2.0][step], "alpha": linear(0, 1, 4)}
    history = trained(vae, spy, Data(array(6)), steps=5, batch_size=2, schedules=schedules)
    assert spy.numbers == [(0.0, 0.0), (0.5, 0.25), (1.0, 0.5), (4.0, 0.75), (2.0, 1.0)]
    assert [(r["beta"], r["alpha"]) for r in history] == [(1.0, 0.5), (2.0, 1.0)]
    # D is not computed at step 0, where alpha = 0: its mean is of the two steps that had it.
    assert history[0]["divergence"] == 2.0
    objective = CapacityELBO(1.0, 0.0)
    schedules = {"gamma": lambda step: step, "capacity": linear(0.0, 20.0, 2)}
    history = trained(
        tiny(), objective, Data(array(6)), epochs=2, batch_size=3, schedules=schedules
    )
    assert [(r["gamma"], r["capacity"]) for r in history] == [(1.0, 10.0), (3.0, 20.0)]


def test_records_are_means_over_the_steps_of_an_epoch():
    spy = Spy(0.5, inclusive_kl)
    vae, data = tiny(beta=2.0), Data(array(6))
    history = trained(vae, spy, data, epochs=2, batch_size=4)
    for epoch, record in enumerate(history):
        two = spy.results[2 * epoch : 2 * epoch + 2]  # of 4 rows and of 2
        loss = (two[0][0] / 4 + two[1][0] / 2) / 2
        log_px_z, kl, divergence = (np.mean([r[i] for r in two]) for i in (1, 2, 3))
        expected = {
            "step": 2 * epoch + 2,
            "epoch": epoch + 1,
            "loss": loss,
            "log_px_z": log_px_z,
            "kl": kl,
            "divergence": divergence,
            "elbo": log_px_z - kl,
            "kl_monte_carlo": 0.0,
            "divergence_detached": 0.0,
            "rate_minus_log_batch": kl - np.log(4),
            "beta": 2.0,
            "alpha": 0.5,
        }
        assert record == pytest.approx(expected, rel=1e-6)
        assert loss == pytest.approx(2 * kl - log_px_z + 0.5 * divergence, rel=1e-5)
    assert "divergence" not in trained(tiny(), DecompositionELBO(), data, steps=1)[0]
    # A batch larger than the data is the data.
    record = trained(tiny(), DecompositionELBO(0.5, inclusive_kl), data, epochs=1, batch_size=64)[0]
    assert record["rate_minus_log_batch"] == pytest.approx(record["kl"] - np.log(6))


def test_records_say_how_the_kl_was_found_and_that_d_was_detached():
    class Sampled(Mixture):
        def forward(self):
            mixture = super().forward()
            mixture.has_rsample = False
            return mixture

    vae, data = tiny(prior=Sampled(2, learned=True)), Data(array(6))
    record = trained(vae, DecompositionELBO(1.0, inclusive_kl), data, steps=1)[0]
    assert (record["kl_monte_carlo"], record["divergence_detached"]) == (1, 1)
    assert not vae.training


@pytest.mark.parametrize("budget, ends", [({"epochs": 2}, [3, 6]), ({"steps": 4}, [3, 4])])
def test_callbacks_see_each_epoch_and_on_step_each_step(budget, ends):
    vae, objective, data = tiny(), Spy(), Data(array(6))
    seen, ticks = [], []
    history = fit(
        vae,
        objective,
        data,
        batch_size=2,
        **budget,
        callbacks=[lambda record, state: seen.append((record, state.step, state.epoch, state))],
        on_step=lambda state: ticks.append((state.step, state.total)),
    )
    assert [record for record, *_ in seen] == history and history[0]["seconds"] > 0
    for (record, step, epoch, state), end, expected in zip(seen, ends, (1, 2), strict=True):
        assert state.vae is vae and state.objective is objective
        assert (step, epoch) == (record["step"], record["epoch"]) == (end, expected)
        assert isinstance(state.generator, torch.Generator)
        assert state.optim.get_state()["state"]
    total = ends[-1]
    assert ticks == [(i, total) for i in range(1, total + 1)]


@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_optimiser_is_torch_adam(amsgrad):
    def parameters():
        torch.manual_seed(0)
        return [torch.randn(4, 3, requires_grad=True), torch.randn((), requires_grad=True)]

    ours, theirs = parameters(), parameters()
    optim = training.JointAdam(iter(ours), lr=0.1, amsgrad=amsgrad)
    adam = torch.optim.Adam(theirs, lr=0.1, amsgrad=amsgrad)
    for step in range(5):
        for weights in (ours, theirs):
            used = weights[:1] if step == 2 else weights  # the second has no gradient there
            sum((step + 1.3 - w).square().sum() for w in used).backward()
        optim(None)
        adam.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
            a.grad = b.grad = None
    state, reference = optim.get_state()["state"], adam.state_dict()["state"]
    assert state.keys() == reference.keys() and state[0].keys() == reference[0].keys()
    torch.testing.assert_close(state[0], reference[0], rtol=1e-5, atol=1e-6)
    assert state[1]["step"] == 4
    torch.optim.Adam(theirs).load_state_dict(optim.get_state())
    theirs[0].grad = torch.ones(4, 3)
    adam.step()


def test_layout_is_channels_last_while_it_trains_and_alters_nothing(monkeypatch):
    data, found = Data(np.random.default_rng(0).random((12, 1, 32, 32), dtype=np.float32)), []
    for last in (True, False):
        if not last:
            monkeypatch.setattr(torch, "channels_last", torch.contiguous_format)
        torch.manual_seed(0)
        networks = NETWORKS["conv-bn"]((1, 32, 32), 3)
        vae, layouts = VAE(*networks, Gaussian(3), Bernoulli()), []

        def look(record, state, vae=vae, layouts=layouts):
            layouts.append(not vae.encoder.body[3].weight.is_contiguous())

        pyro.set_rng_seed(0)
        history = fit(vae, DecompositionELBO(), data, epochs=3, batch_size=6, callbacks=[look])
        assert layouts == [last] * 3 and all(p.is_contiguous() for p in vae.parameters())
        assert all(p.grad is None for p in vae.parameters())
        found.append([record["loss"] for record in history])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_another_default_dtype():
    vae = tiny()
    torch.set_default_dtype(torch.float64)
    try:
        (record,) = fit(vae, DecompositionELBO(), Data(array(6)), epochs=1, batch_size=6)
    finally:
        torch.set_default_dtype(torch.float32)
    assert math.isfinite(record["loss"])


@pytest.mark.parametrize(
    "held, grad, expected, largest",
    [
        (1.0, [3.0, 4.0], 0.0, 5.0),
        (0.0, [3.0, -4.0], 0.1, 5.0),
        (0.0, [1e30, 1.0], 0.0, math.inf),
        (0.0, [math.inf, 1.0], 0.0, math.inf),
        (0.0, [1.0, math.nan], 0.0, math.nan),
    ],
)
def test_the_optimiser_holds_still(held, grad, expected, largest):
    """Where it is told to, and from a gradient on that is not finite."""
    weight, hold = torch.zeros(2, requires_grad=True), torch.full((), held)
    optim = training.JointAdam([weight], lr=0.1, hold=hold)
    weight.grad = torch.tensor(grad)
    optim(None)
    torch.testing.assert_close(weight.detach().abs(), torch.full((2,), expected))
    torch.testing.assert_close(optim.largest, torch.tensor(largest), equal_nan=True)
    assert hold == (1.0 if held or not math.isfinite(largest) else 0.0)


def test_optimiser_state_goes_round():
    data, states = Data(array(6)), []
    vae = tiny()
    keep = [lambda record, state: states.append(state)]
    fit(vae, DecompositionELBO(), data, steps=2, batch_size=6, callbacks=keep)
    saved = states[0].optim.get_state()
    fit(tiny(seed=1), DecompositionELBO(), data, steps=1, batch_size=6, callbacks=keep)
    states[1].optim.set_state(saved)
    for key, value in states[1].optim.get_state()["state"].items():
        assert value["step"] == 2
        assert torch.equal(value["exp_avg"], saved["state"][key]["exp_avg"])


# ---- what it leaves alone ----------------------------------------------------------------------


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_the_users_validation_and_parameters_are_as_before(enabled, fails):
    pyro.param("mine", torch.tensor(1.0))
    pyro.param("encoder$$$body.1.weight", torch.zeros(7))  # an earlier model's name
    before = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    state = torch.random.get_rng_state()

    def broken(x):
        if fails:
            raise KeyError("broken")
        return x

    with pyro.validation_enabled(enabled):
        try:
            fit(tiny(), DecompositionELBO(), Data(array()), steps=2, transform=broken)
        except KeyError:
            assert fails
        assert pyro.infer.util.is_validation_enabled() == enabled
        assert pyro.poutine.util.is_validation_enabled() == enabled
    after = dict(pyro.get_param_store().items())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not torch.equal(
        state, torch.random.get_rng_state()
    )  # noise is drawn from the ambient one


@pytest.mark.parametrize("steps", [5, 90])  # seen at the end of the training; or some steps later
def test_a_loss_that_is_not_finite_is_named_and_moves_no_parameter(steps):
    vae, calls, kept = tiny(), [], []

    def poison(x):
        calls.append(1)
        kept.append({name: p.detach().clone() for name, p in vae.named_parameters()})
        return x * (math.inf if len(calls) == 4 else 1)  # the first call is the guard's

    sentence = (
        r"loss must be finite; got loss=.*, log_px_z=.*, kl=.* at step 2\. Lower the learning"
    )
    with pytest.raises(FloatingPointError, match=sentence):
        fit(vae, DecompositionELBO(), Data(array(100)), steps=steps, batch_size=1, transform=poison)
    assert len(calls) == 1 + min(steps, tally._FLUSH)
    assert all(torch.equal(p, kept[3][name]) for name, p in vae.named_parameters())
    assert any(not torch.equal(kept[1][name], kept[3][name]) for name in kept[1])


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({}, "give epochs or steps, one of them; got epochs=None, steps=None"),
        ({"epochs": 1, "steps": 1}, "give epochs or steps"),
        ({"epochs": 0}, "epochs must be at least 1; got 0"),
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"steps": 1, "batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"steps": 1, "lr": 0.0}, "lr must be a finite number > 0; got 0.0"),
        ({"steps": 1, "lr": math.nan}, "lr must be a finite number > 0; got nan"),
        (
            {"steps": 1, "schedules": {"capacity": float}},
            "schedules must name beta or a number of DecompositionELBO; got 'capacity'",
        ),
        ({"steps": 1, "schedules": {"Beta": float}}, "schedules must name beta or a number"),
        ({"steps": 1, "schedules": {"num_particles": float}}, "must name.*got 'num_particles'"),
        ({"steps": 1, "schedules": {"loss": float}}, "must name.*got 'loss'"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(options, sentence):
    vae = tiny()
    start = [p.detach().clone() for p in vae.parameters()]
    with pytest.raises(ValueError, match=sentence):
        fit(vae, DecompositionELBO(), Data(array()), **options)
    assert all(torch.equal(a, b) for a, b in zip(start, vae.parameters(), strict=True))


def test_beta_schedule_beside_capacity_and_missing_labels_are_refused():
    data = Data(array())
    with pytest.raises(ValueError, match="beta must stay 1 beside CapacityELBO.*got a schedule"):
        fit(tiny(), CapacityELBO(1.0, 0.0), data, steps=1, schedules={"beta": float})
    with pytest.raises(ValueError, match="beta must be 1, since gamma weighs the KL; got 2"):
        fit(tiny(beta=2.0), CapacityELBO(1.0, 0.0), data, steps=1)
    with pytest.raises(ValueError, match="data must have labels for a conditional model; got none"):
        fit(tiny(n_classes=3), DecompositionELBO(), data, steps=1)
