"""What a model's parts make by pyro.param is trained, kept, resumed and moved as its parameters are."""

import copy
import io
import pickle
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

from pyro_bvae import VAE, DecompositionELBO, fit
from pyro_bvae.divergences import inclusive_kl
from pyro_bvae.evaluation import evaluate
from pyro_bvae.likelihoods import Normal
from pyro_bvae.networks import mlp
from pyro_bvae.priors import Gaussian, check_prior
from pyro_bvae.svi import CompiledSVI


class Noise(nn.Module):
    """N(x; loc, s^2) with s = pyro.param("my.noise"), which starts at 1."""

    def forward(self, loc, event_dim):
        scale = pyro.param("my.noise", torch.tensor(1.0), constraint=constraints.positive)
        return dist.Normal(loc, scale).to_event(event_dim)


class Centred(nn.Module):
    """A prior N(m, 1) with m = pyro.param("centre", ...), made lazily."""

    def forward(self):
        centre = pyro.param("centre", lambda: torch.zeros(2))
        return dist.Normal(centre, 1.0).to_event(1)


class Shifted(nn.Module):
    """A decoder with a shift that pyro.param makes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, z):
        return self.linear(z) + pyro.param("shift", torch.zeros(3))


class Constrained(PyroModule):
    """A prior whose scale is a PyroParam."""

    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.ones(2), constraint=constraints.positive)

    def forward(self):
        return dist.Normal(torch.zeros(2), self.scale).to_event(1)


def a_vae(prior=None, likelihood=None, decoder=None):
    torch.manual_seed(0)
    encoder, plain = mlp((3,), 2)
    return VAE(encoder, decoder or plain, prior or Gaussian(2), likelihood or Normal(0.5))


def rows(n=400):
    """A line in 3 dimensions, with residuals of deviation .3."""
    rng = np.random.default_rng(0)
    line = rng.standard_normal((n, 1)) @ np.array([[1.0, -0.5, 2.0]])
    return (line + 0.3 * rng.standard_normal((n, 3))).astype(np.float32)


def noise(vae):
    """The scale of x as the likelihood has it."""
    return vae.p_x(torch.zeros(1, 2)).base_dist.scale.flatten()[0].item()


def test_a_scale_made_by_pyro_param_is_trained_as_a_learned_scale_is():
    """The optimum of s is the residuals' deviation, .3."""
    vae, reference = a_vae(likelihood=Noise()), a_vae(likelihood=Normal("learned"))
    for model in (vae, reference):
        torch.manual_seed(1)
        fit(model, DecompositionELBO(), rows(64), steps=120, lr=0.04)
    assert noise(vae) == pytest.approx(noise(reference), abs=0.02)
    assert 0.2 < noise(vae) < 0.5


@pytest.mark.slow
def test_a_compiled_step_trains_them_alike(replayed):
    found = []
    for compile in (False, True):
        vae = a_vae(Centred(), Noise())
        torch.manual_seed(1)
        fit(vae, DecompositionELBO(), rows(64), steps=5, lr=0.04, compile=compile)
        found.append((noise(vae), *vae.p_z().mean.tolist()))
    assert len(replayed) == 1
    assert found[0] == pytest.approx(found[1], rel=1e-6) and found[0][0] != 1


@pytest.mark.parametrize(
    "part", [{"prior": Centred()}, {"decoder": Shifted()}, {"prior": Constrained()}], ids=str
)
def test_parameters_of_every_part_move_and_stay(part):
    vae = a_vae(**copy.deepcopy(part))
    fit(vae, DecompositionELBO(), rows() + 5, steps=5, lr=0.01)
    values = {name: p.detach().clone() for name, p in vae.named_parameters()}
    before = evaluate(vae, rows() + 5)["elbo"]
    pyro.clear_param_store()
    assert (
        evaluate(vae, rows() + 5)["elbo"] == before
    )  # the store of the process holds nothing of it
    fit(vae, DecompositionELBO(), rows() + 5, steps=5, lr=0.01)
    moved = [name for name, p in vae.named_parameters() if not torch.equal(p, values[name])]
    assert len(moved) == len(values)  # each of them
    made = {"centre", "shift"} & {name.rpartition("param_")[2] for name in values}
    assert len(made) == ("prior.scale_unconstrained" not in values)


def test_the_state_dict_of_a_new_model_takes_them():
    trained = a_vae(Centred(), Noise())
    fit(trained, DecompositionELBO(), rows(), steps=5, lr=0.05)
    new = a_vae(Centred(), Noise())
    new.load_state_dict(trained.state_dict())
    assert noise(new) == noise(trained) != 1
    assert torch.equal(new.p_z().mean, trained.p_z().mean)
    assert new.state_dict().keys() == trained.state_dict().keys()
    for kept in (copy.deepcopy(trained), pickle.loads(pickle.dumps(trained))):
        assert noise(kept) == noise(trained)
    assert trained.double().p_z().mean.dtype is torch.float64
    assert torch.equal(trained.p_z().mean, new.p_z().mean.double())


@pytest.mark.parametrize("compile", [False, True])
def test_they_are_resumed_bit_for_bit(compile, replayed):
    def train(steps_kept=None, resume=None):
        vae, kept = a_vae(Centred(), Noise()), []

        def keep(state):
            if state.step == steps_kept:
                buffer = io.BytesIO()
                torch.save(state.state_dict(), buffer)
                kept.append(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))

        torch.manual_seed(1)
        fit(
            vae,
            DecompositionELBO(),
            rows(),
            steps=12,
            lr=0.05,
            compile=compile,
            on_step=keep,
            resume=resume,
        )
        return vae, kept

    whole, (state,) = train(steps_kept=7)
    resumed, _ = train(resume=state)
    assert whole.state_dict().keys() == resumed.state_dict().keys()
    assert all(torch.equal(a, resumed.state_dict()[k]) for k, a in whole.state_dict().items())


def test_two_models_have_parameters_of_their_own():
    first, second = a_vae(likelihood=Noise()), a_vae(likelihood=Noise())
    fit(first, DecompositionELBO(), rows(), steps=50, lr=0.05)
    assert noise(second) == 1 != noise(first)


@pytest.mark.parametrize("svi", [SVI, lambda *args: CompiledSVI(*args, compile=False)])
def test_pyros_svi_trains_them_too(svi):
    vae = a_vae(Centred(), Noise())
    steps = svi(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(20):
        steps.step(torch.from_numpy(rows()))
    assert noise(vae) > 1.2  # the residuals of an untrained decoder are wider than 1
    assert vae.p_z().mean.abs().max() > 0.01


def test_a_parameter_of_a_model_of_ones_own_is_refused_by_name():
    class Own(VAE):
        def model(self, x, labels=None):
            temperature = pyro.param("temperature", torch.ones(()))
            return super().model(temperature * x, labels)

    torch.manual_seed(0)
    vae = Own(*mlp((3,), 2), Gaussian(2), Normal(0.5))
    with pytest.raises(
        ValueError, match="must be a parameter of the model.*got pyro.param 'temperature'"
    ):
        fit(vae, DecompositionELBO(), rows(), steps=1)


def test_check_prior_looks_at_pyro_param_and_leaves_no_site_behind():
    assert check_prior(Centred(), 2).startswith("ok: integrates to ")
    assert not list(pyro.get_param_store().keys())

    class Idle(nn.Module):
        def forward(self):
            pyro.param("idle", torch.zeros(2))
            return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    with pytest.raises(ValueError, match="must depend on every parameter; idle got no gradient"):
        check_prior(Idle(), 2)


def test_a_site_in_the_store_of_the_process_does_not_stand_for_the_models_own():
    pyro.param("my.noise", torch.tensor(7.0))
    vae = a_vae(likelihood=Noise())
    assert noise(vae) == 1 and "registered.param_my/noise" in vae.state_dict()


def test_they_have_the_dtype_of_the_model():
    vae = a_vae(likelihood=Noise()).double()
    fit(vae, DecompositionELBO(), rows(), steps=1)
    assert {p.dtype for p in vae.parameters()} == {torch.float64}


def test_the_state_of_an_untrained_model_starts_them_again():
    vae = a_vae(likelihood=Noise())
    fit(vae, DecompositionELBO(), rows(), steps=2, lr=0.1)
    vae.load_state_dict(a_vae(likelihood=Noise()).state_dict())
    assert noise(vae) == 1


@pytest.mark.parametrize("start, got", [(0.9, "float"), (torch.tensor(1), "torch.int64")])
def test_a_start_that_is_no_tensor_of_floats_is_refused(start, got):
    class Plain(nn.Module):
        def forward(self, loc, event_dim):
            return dist.Normal(loc, pyro.param("s", lambda: start)).to_event(event_dim)

    with pytest.raises(
        TypeError, match=f"'s': the start must be a floating-point tensor; got {got}"
    ):
        fit(a_vae(likelihood=Plain()), DecompositionELBO(), rows(), steps=1)


def test_a_start_that_wants_a_gradient_is_a_start_like_others():
    class Wanting(nn.Module):
        def forward(self, loc, event_dim):
            scale = pyro.param("s", torch.tensor(1.0, requires_grad=True))
            return dist.Normal(loc, scale).to_event(event_dim)

    vae = a_vae(likelihood=Wanting())
    fit(vae, DecompositionELBO(), rows(), steps=2, lr=0.1)
    assert noise(vae) != 1


def test_what_is_used_in_training_mode_alone_is_trained_or_refused():
    class InTraining(nn.Module):
        def forward(self, loc, event_dim):
            scale = pyro.param("s", torch.tensor(1.0)) if self.training else torch.tensor(1.0)
            return dist.Normal(loc, scale).to_event(event_dim)

    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.out, self.hidden = nn.Linear(2, 3), [nn.Linear(3, 3)]
            self.norm = nn.BatchNorm1d(3)

        def forward(self, z):
            h = self.norm(self.out(z))
            return self.hidden[0](h) if self.training else h

    vae = a_vae(likelihood=InTraining())
    fit(vae, DecompositionELBO(), rows(), steps=2, lr=0.1)
    assert vae.registered.param_s.item() != 1
    vae = a_vae(decoder=Listed())
    before = copy.deepcopy(vae.decoder.norm.state_dict())
    with pytest.raises(ValueError, match="must be a parameter of the model"):
        fit(vae, DecompositionELBO(), rows(), steps=1)
    assert all(torch.equal(before[k], v) for k, v in vae.decoder.norm.state_dict().items())


# ---- a model that would silently not train -----------------------------------------------------


def moved(vae, **options):
    before = [p.detach().clone() for p in vae.parameters()]
    fit(vae, DecompositionELBO(), rows(), steps=3, **options)
    return sum((a - b).abs().sum().item() for a, b in zip(before, vae.parameters(), strict=True))


@pytest.mark.parametrize(
    "off", [torch.no_grad, torch.inference_mode, lambda: torch.set_grad_enabled(False)]
)
def test_fit_trains_where_gradients_are_switched_off_around_it(off):
    expected, vae, other = moved(a_vae()), a_vae(), a_vae()
    with off():
        torch.manual_seed(0)
        got = moved(other)
        was = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        got_again = moved(vae)
        assert (
            was == (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (False, was[1])
        )
    assert got > 0 and got_again > 0 and got == pytest.approx(expected, rel=0.5)


def test_layers_that_torch_does_not_know_are_refused():
    """A list of layers is no part of a module: its weights would stay as they are."""

    class Forgotten(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.heads = [nn.Linear(3, 7)], nn.Linear(7, 4)

        def forward(self, x):
            h = self.heads(self.layers[0](x))
            return h[:, :2], h[:, 2:].exp()

    vae = VAE(Forgotten(), mlp((3,), 2)[1], Gaussian(2), Normal(0.5))
    with pytest.raises(
        ValueError, match=r"must be a parameter of the model.*got a tensor of shape \(7"
    ):
        fit(vae, DecompositionELBO(), rows(), steps=1)

    class Loose(Gaussian):
        def __init__(self):
            super().__init__(2)
            self.free = (torch.zeros(2, requires_grad=True),)

        def forward(self):
            return dist.Normal(self.free[0], 1.0).to_event(1)

    with pytest.raises(
        ValueError, match=r"must be a parameter of the model.*tensor of shape \(2,\)"
    ):
        fit(a_vae(Loose()), DecompositionELBO(), rows(), steps=1)


def test_a_prior_of_the_objective_alone_is_refused():
    elbo = DecompositionELBO(1.0, inclusive_kl, prior=Gaussian(2, learned=True))
    with pytest.raises(
        ValueError, match=r"must be a parameter of the model.*got a tensor of shape"
    ):
        fit(a_vae(), elbo, rows(), steps=1)
    vae = a_vae(Gaussian(2, learned=True))
    fit(vae, DecompositionELBO(1.0, inclusive_kl, prior=vae.prior), rows(), steps=1)


def test_lazy_layers_are_made_before_the_optimiser_looks_for_them():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.LazyLinear(4)

        def forward(self, x):
            h = self.heads(x)
            return h[:, :2], h[:, 2:].exp()

    vae = VAE(Lazy(), mlp((3,), 2)[1], Gaussian(2), Normal(0.5))
    fit(vae, DecompositionELBO(), rows(), steps=1)
    before = vae.encoder.heads.weight.detach().clone()
    fit(vae, DecompositionELBO(), rows(), steps=1)
    assert not torch.equal(before, vae.encoder.heads.weight)


def test_gradients_may_be_off_in_the_data():
    with torch.inference_mode():
        x = torch.from_numpy(rows()) + 0
    vae = a_vae()
    fit(vae, DecompositionELBO(), x, steps=2)


def test_a_model_made_under_inference_mode_is_refused():
    with torch.inference_mode():
        vae = a_vae()
    with pytest.raises(
        ValueError, match="made under torch.inference_mode. Build the model outside"
    ):
        fit(vae, DecompositionELBO(), rows(), steps=1)


def test_frozen_models_are_refused_and_frozen_parts_stay():
    vae = a_vae().requires_grad_(False)
    with pytest.raises(ValueError, match="must have a parameter with requires_grad=True; got none"):
        fit(vae, DecompositionELBO(), rows(), steps=1)
    vae.decoder.requires_grad_(True)
    kept = copy.deepcopy(vae.encoder.state_dict())
    with warnings.catch_warnings():  # Pyro tells of the frozen ones
        warnings.simplefilter("ignore")
        assert moved(vae) > 0
    assert all(torch.equal(kept[k], v) for k, v in vae.encoder.state_dict().items())


def test_a_second_model_under_pyros_svi_is_told_of_the_store():
    x, optim = torch.from_numpy(rows()), pyro.optim.Adam({"lr": 0.01})
    first, second = a_vae(), a_vae()
    SVI(first.model, first.guide, optim, Trace_ELBO()).step(x)
    with pytest.warns(UserWarning, match="must hold this model's own .*pyro.clear_param_store"):
        SVI(second.model, second.guide, optim, Trace_ELBO()).step(x)
    pyro.clear_param_store()
    values = [p.detach().clone() for p in second.parameters()]
    SVI(second.model, second.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(x)
    assert all(not torch.equal(a, b) for a, b in zip(values, second.parameters(), strict=True))


def test_measuring_two_models_in_one_process_says_nothing():
    x = torch.from_numpy(rows())
    for vae in (a_vae(), a_vae()):
        DecompositionELBO().terms(vae.model, vae.guide, x)
        Trace_ELBO().loss(vae.model, vae.guide, x)
