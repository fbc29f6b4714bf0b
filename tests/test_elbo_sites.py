"""What the objectives make of a program's sites: weights, labels, sites that only one side has."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO

from pyro_bvae import CapacityELBO, DecompositionELBO

N, ROWS = 12, torch.tensor([1, 4, 5, 7, 10])
B, S = len(ROWS), N / len(ROWS)
X = torch.linspace(-1, 2, N, dtype=torch.float64)
LOC, SCALE = torch.linspace(-0.5, 1, B, dtype=torch.float64), 0.8
P_Z = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0).expand([1]).to_event(1)
KL = 0.5 * (LOC**2 + SCALE**2 - 1) - math.log(SCALE)
ALPHA, BETA, WEIGHT = 1.5, 0.4, 20.0


def rows():
    return pyro.plate("rows", N, subsample=ROWS)


def latent(fn, beta=BETA, **infer):
    with poutine.scale(scale=beta):
        return pyro.sample("z", fn, infer=infer)


def q_z():
    return dist.Normal(LOC.unsqueeze(-1), SCALE).to_event(1)


def observe_x(z):
    return pyro.sample("x", dist.Normal(z.squeeze(-1), 1.0), obs=X[ROWS])


def observe_class(z, weight):
    with poutine.scale(scale=weight):
        pyro.sample("class", dist.Bernoulli(logits=2 * z.squeeze(-1)), obs=(X[ROWS] > 0).double())


def seeded(function, *args):
    torch.manual_seed(7)
    return function(*args)


def square(q_z, p_z, z):
    return z.square().mean()


@pytest.fixture(params=[True, False], ids=["validated", "not validated"])
def validation(request):
    with pyro.validation_enabled(request.param):
        yield


# ---- s, which weighs D and the capacity --------------------------------------------------------


@pytest.mark.parametrize("first", ["class", "x"])
@pytest.mark.parametrize("whole", ["none", "around both", "around the step", "inside both"])
def test_the_weight_of_an_observed_site_is_its_own(whole, first):
    """The divergence and the capacity have N/B, and what scales the whole program."""

    def model(beta):
        with rows():
            z = latent(P_Z, beta, prior=P_Z)
            if first == "class":
                observe_class(z, WEIGHT)
            observe_x(z)
            if first == "x":
                observe_class(z, WEIGHT)

    def guide(beta):
        with rows():
            latent(q_z(), beta)

    z = seeded(poutine.trace(guide).get_trace, BETA).nodes["z"]["value"].squeeze(-1)
    log_x = -0.5 * (X[ROWS] - z) ** 2 - 0.5 * math.log(2 * math.pi)
    log_y = torch.where(X[ROWS] > 0, 2 * z, -2 * z).sigmoid().log()
    log_p, c = log_x + WEIGHT * log_y, 1.0 if whole == "none" else 0.25

    def inside(program):
        def scaled(beta):
            with poutine.scale(scale=c):
                program(beta)

        return scaled

    def loss(elbo, beta):
        if whole == "around both":
            return seeded(elbo.loss, poutine.scale(model, c), poutine.scale(guide, c), beta)
        if whole == "inside both":
            return seeded(elbo.loss, inside(model), inside(guide), beta)
        with poutine.scale(scale=c):
            return seeded(elbo.loss, model, guide, beta)

    expected = c * S * ((BETA * KL - log_p).sum() + ALPHA * B * z.square().mean())
    assert loss(DecompositionELBO(ALPHA, square), BETA) == pytest.approx(expected.item(), rel=1e-11)
    expected = c * S * (3.0 * B * abs(KL.mean() - 0.7) - log_p.sum())
    assert loss(CapacityELBO(3.0, 0.7), 1.0) == pytest.approx(expected.item(), rel=1e-11)
    with pytest.raises(ValueError, match="beta must be 1.*got 0.4 at site 'z'"):
        loss(CapacityELBO(3.0, 0.7), BETA)


def test_a_weight_alone_is_no_scale_of_the_whole():
    """A plate made before: only N/B is known of it."""
    plate = rows()

    def model():
        with plate, poutine.scale(scale=WEIGHT):
            observe_x(latent(P_Z, 1 / WEIGHT, prior=P_Z))

    def guide():
        with plate:
            latent(q_z(), 1.0)

    z = seeded(poutine.trace(guide).get_trace).nodes["z"]["value"].squeeze(-1)
    log_x = -0.5 * (X[ROWS] - z) ** 2 - 0.5 * math.log(2 * math.pi)
    expected = S * (KL - WEIGHT * log_x).sum() + ALPHA * S * B * z.square().mean()
    loss = seeded(DecompositionELBO(ALPHA, square).loss, model, guide)
    assert loss == pytest.approx(expected.item(), rel=1e-11)


def test_capacity_knows_the_scale_of_a_subsampled_plate_within():
    def program(fn, observed):
        with rows():
            with pyro.plate("parts", 6, subsample=torch.tensor([0, 3]), dim=-2):
                pyro.sample("v", fn)
            if observed:
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=X[ROWS])

    p_v = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    elbo = CapacityELBO(1.0, 0.0)
    args = (lambda: program(p_v, True), lambda: program(dist.Normal(LOC, SCALE), False))
    torch.testing.assert_close(elbo.terms(*args).kl, 2 * KL)


# ---- sites that are refused --------------------------------------------------------------------


@pytest.mark.parametrize("elbo", [DecompositionELBO(), CapacityELBO(1.0, 0.0)])
def test_a_discrete_latent_is_refused(elbo, validation):
    def model():
        with rows():
            y = pyro.sample("y", dist.Bernoulli(X.new_tensor(0.5)))
            observe_x(y.unsqueeze(-1))

    def guide():
        with rows():
            pyro.sample("y", dist.Bernoulli(LOC.sigmoid()))

    sentence = r"\w+ELBO: latent sites must be reparameterised.*got Bernoulli at site 'y'.*TraceGr"
    for method in (elbo.loss, elbo.terms, elbo.loss_and_grads):
        with pytest.raises(ValueError, match=sentence):
            method(model, guide)


@pytest.mark.filterwarnings("ignore:Found:UserWarning")  # of Pyro, while it validates
def test_a_latent_that_the_guide_lacks_is_refused(validation):
    def model():
        with rows():
            pyro.sample("u", dist.Normal(X.new_zeros(()), 1.0))
            pyro.sample("v", dist.Normal(X.new_zeros(()), 1.0))
            observe_x(latent(P_Z))

    def guide():
        with rows():
            latent(q_z())

    with pytest.raises(ValueError, match="guide must sample every latent.*it lacks u, v"):
        DecompositionELBO().loss(model, guide)


@pytest.mark.filterwarnings("ignore:Found:UserWarning")  # of Pyro, while it validates
def test_what_the_model_observes_the_guide_does_not_sample(validation):
    def model():
        with rows():
            observe_x(latent(P_Z))

    def guide():
        with rows():
            latent(q_z())
            pyro.sample("x", dist.Normal(LOC, 1.0))

    with pytest.raises(ValueError, match="guide must not sample what the model observes; got 'x'"):
        DecompositionELBO().loss(model, guide)


# ---- sites that say nothing --------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Found:UserWarning")  # of Pyro, while it validates
def test_deterministic_sites_change_nothing():
    def model(notes):
        if notes:
            pyro.deterministic("note", torch.ones(3))
        with rows():
            z = latent(P_Z)
            if notes:
                pyro.deterministic("rate", z.exp().squeeze(-1))
            observe_x(z)

    def guide(notes):
        with rows():
            latent(q_z())
            if notes:
                pyro.deterministic("loc", LOC)

    elbo = DecompositionELBO()
    losses = [seeded(elbo.loss, model, guide, notes) for notes in (False, True)]
    assert losses[0] == losses[1]
    theirs = seeded(TraceMeanField_ELBO().loss, model, lambda notes: guide(False), True)
    assert losses[0] == pytest.approx(theirs)
    assert elbo.monte_carlo_sites == ()

    def nothing_observed(notes):
        with rows():
            pyro.deterministic("x", latent(P_Z).squeeze(-1))

    with pytest.raises(ValueError, match="must have an observed site; got none"):
        elbo.loss(nothing_observed, guide, False)


def test_a_factor_is_part_of_the_likelihood():
    def model(factor):
        with rows():
            z = latent(P_Z)
            observe_x(z)
            if factor:
                pyro.factor("penalty", -z.squeeze(-1).square())

    def guide(factor):
        with rows():
            latent(q_z())

    z = seeded(poutine.trace(guide).get_trace, True).nodes["z"]["value"].squeeze(-1)
    plain, more = (seeded(DecompositionELBO().loss, model, guide, f) for f in (False, True))
    assert more - plain == pytest.approx(S * z.square().sum().item())
