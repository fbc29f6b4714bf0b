"""What the objectives make of a program's sites: weights, labels, sites that only one side has."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing.rejection_gamma import RejectionStandardGamma
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam

from pyro_bvae import CapacityELBO, DecompositionELBO
from pyro_bvae.divergences import inclusive_kl
from pyro_bvae.svi import CompiledSVI

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


@pytest.mark.parametrize("plate", [rows(), pyro.plate("rows", dim=-1)], ids=["sized", "unsized"])
def test_a_weight_alone_is_no_scale_of_the_whole(plate):
    """Nor is beta; a handler around every site is, also where the plate was made before."""

    def model(c, weight, beta):
        with plate, poutine.scale(scale=c):
            z = latent(P_Z.expand([B]), beta, prior=P_Z)
            with poutine.scale(scale=weight):
                observe_x(z)

    def guide(c, weight, beta):
        with plate, poutine.scale(scale=c):
            latent(q_z(), beta)

    s = S if plate.size > 0 else 1.0
    for c, weight, beta in ((1.0, WEIGHT, BETA), (0.25, WEIGHT, BETA), (0.25, 1.0, 1.0)):
        z = seeded(poutine.trace(guide).get_trace, c, weight, beta).nodes["z"]["value"].squeeze(-1)
        log_x = weight * (-0.5 * (X[ROWS] - z) ** 2 - 0.5 * math.log(2 * math.pi))
        expected = c * s * ((beta * KL - log_x).sum() + ALPHA * B * z.square().mean())
        loss = seeded(DecompositionELBO(ALPHA, square).loss, model, guide, c, weight, beta)
        assert loss == pytest.approx(expected.item(), rel=1e-11)
    expected = c * s * (3.0 * B * abs(KL.mean() - 0.7) - log_x.sum())
    loss = seeded(CapacityELBO(3.0, 0.7).loss, model, guide, c, weight, beta)
    assert loss == pytest.approx(expected.item(), rel=1e-11)


def test_a_plate_subsampled_within_an_example_is_scaled_within_it():
    """Six parts, two of them drawn: the KL of an example is three times that of the two."""

    def program(fn, observed):
        with rows():
            with pyro.plate("parts", 6, subsample=torch.tensor([0, 3]), dim=-2):
                pyro.sample("v", fn)
                if observed:
                    pyro.sample("w", dist.Normal(0.0, 1.0), obs=X.new_zeros(2, B))
            if observed:
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=X[ROWS])

    p_v = dist.Normal(X.new_zeros(()), 1.0)
    args = (lambda: program(p_v, True), lambda: program(dist.Normal(LOC, SCALE), False))
    terms = DecompositionELBO().terms(*args)
    torch.testing.assert_close(terms.kl, 6 * KL)
    log_normal = -0.5 * math.log(2 * math.pi)
    log_p = 6 * log_normal + log_normal - 0.5 * X[ROWS] ** 2
    torch.testing.assert_close(terms.log_px_z, log_p)
    theirs = TraceMeanField_ELBO().loss(*args)
    assert CapacityELBO(1.0, 0.0).loss(*args) == pytest.approx(theirs, rel=1e-11)
    expected = S * (2.0 * B * abs(6 * KL.mean() - 3.0) - log_p.sum())
    assert CapacityELBO(2.0, 3.0).loss(*args) == pytest.approx(expected.item(), rel=1e-11)


@pytest.mark.parametrize("beta", [4.0, torch.tensor([0.5, 1.5, 0.1, 1.9, 1.0])])
def test_capacity_refuses_a_weight_of_the_kl(beta):
    def model():
        with rows():
            observe_x(latent(P_Z, beta))

    def guide():
        with rows():
            latent(q_z(), beta)

    # tensors are read only while Pyro validates: they may stand on a GPU
    validate = pyro.validation_enabled(isinstance(beta, torch.Tensor))
    with validate, pytest.raises(ValueError, match="beta must be 1.*got (4|1.9|0.1) at site 'z'"):
        CapacityELBO(3.0, 0.7).loss(model, guide)


def test_each_density_of_a_sampled_kl_is_under_the_handlers_of_its_own_side():
    mask = torch.tensor([True, False, True, True, False])
    p_z = dist.StudentT(5.0, X.new_zeros(()), 1.0).expand([1]).to_event(1)

    def model():
        with rows():
            with poutine.mask(mask=mask), poutine.scale(scale=0.3):
                z = pyro.sample("z", p_z)
            observe_x(z)

    def guide():
        with rows():
            pyro.sample("z", q_z())

    ours, theirs = (
        seeded(e().loss, model, guide) for e in (DecompositionELBO, TraceMeanField_ELBO)
    )
    assert ours == pytest.approx(theirs, rel=1e-11)


# ---- several latent sites ----------------------------------------------------------------------

M = 20_000
ZERO = torch.zeros(M, dtype=torch.float64)
# -ELBO of one row of the model below in closed form: E -log p of each density, less the entropies of q
LOG_SCALES = math.log(0.5) - math.log(0.6) - math.log(0.4)
QUADRATIC = 0.36 + (0.04 * 0.36 + 0.16) / 0.25 + 0.64 * 0.36 + 0.16  # z1^2, (z1 - z2)^2 / .25, z2^2
TWO_LAYERS = 0.5 * math.log(2 * math.pi) + LOG_SCALES + 0.5 * QUADRATIC - 1  # 1.3769


def two_layers():
    with pyro.plate("rows", M):
        z2 = pyro.sample("z2", dist.Normal(ZERO[0], 1.0))
        z1 = pyro.sample("z1", dist.Normal(z2, 0.5))
        pyro.sample("x", dist.Normal(z1, 1.0), obs=ZERO)


def bottom_up():
    with pyro.plate("rows", M):
        z1 = pyro.sample("z1", dist.Normal(ZERO, 0.6))
        pyro.sample("z2", dist.Normal(0.8 * z1, 0.4))


def top_down():
    with pyro.plate("rows", M):
        z2 = pyro.sample("z2", dist.Normal(ZERO, 0.6))
        pyro.sample("z1", dist.Normal(0.8 * z2, 0.4))


def rows_of(elbo, model, guide):
    """-ELBO and its standard error, from the rows of one call; nats per row."""
    terms = seeded(elbo.terms, model, guide)
    values = terms.kl - terms.log_px_z
    return values.mean().item(), values.std().item() / math.sqrt(M)


def test_two_layers_sampled_bottom_up_have_the_closed_form_of_their_elbo(validation):
    elbo = DecompositionELBO()
    mean, error = rows_of(elbo, two_layers, bottom_up)
    assert pytest.approx(1.37691, abs=1e-5) == TWO_LAYERS
    assert mean == pytest.approx(TWO_LAYERS, abs=4 * error) and error < 0.01
    # p(z1|z2) of a z2 that was drawn from q(z2|z1); p(z2) depends on nothing
    assert elbo.monte_carlo_sites == ("z1",)
    loss = seeded(elbo.loss, two_layers, bottom_up)
    assert loss / M == pytest.approx(mean)
    assert loss / M == pytest.approx(seeded(Trace_ELBO().loss, two_layers, bottom_up) / M, abs=0.05)


def test_a_captured_step_estimates_the_same_sites(monkeypatch):
    """The graph itself, without the half minute that a compiler takes."""
    monkeypatch.setattr("pyro_bvae.svi._compile", lambda graph: lambda *tensors: graph(*tensors))

    def model():
        with pyro.plate("rows", B):
            z2 = pyro.sample("z2", dist.Normal(X[0], 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2 * pyro.param("w", torch.tensor(0.5)), 0.5))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=X[ROWS])

    def guide():
        with pyro.plate("rows", B):
            z1 = pyro.sample("z1", dist.Normal(LOC, 0.6))
            pyro.sample("z2", dist.Normal(pyro.param("a", torch.tensor(0.8)) * z1, 0.4))

    losses = []
    for compile in (False, True):
        pyro.clear_param_store()
        elbo = DecompositionELBO()
        svi = CompiledSVI(model, guide, Adam({"lr": 0.01}), elbo, compile=compile)
        losses.append(seeded(lambda svi: [svi.step() for _ in range(4)], svi))
        assert svi.compiled == compile and elbo.monte_carlo_sites == ("z1",)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and len(set(losses[0])) == 4


def test_two_layers_sampled_in_one_order_keep_their_closed_forms():
    elbo = DecompositionELBO()
    ours, theirs = (seeded(e.loss, two_layers, top_down) for e in (elbo, TraceMeanField_ELBO()))
    assert ours == pytest.approx(theirs, rel=1e-11) and elbo.monte_carlo_sites == ()


def test_an_autoregressive_chain_is_exact_in_both_directions():
    """z1 -> z2 -> z3 in the model; guides forwards and backwards, against Trace_ELBO."""

    def chain(order, observed, weight):
        def program():
            with pyro.plate("rows", M):
                z = {0: ZERO}
                for before, name in zip([0, *order], order, strict=False):
                    z[name] = pyro.sample(f"z{name}", dist.Normal(weight * z[before], 0.7))
                if observed:
                    pyro.sample("x", dist.Normal(z[order[-1]], 1.0), obs=ZERO)

        return program

    model, elbo = chain((1, 2, 3), True, 1.0), DecompositionELBO()
    for order, sampled in (((1, 2, 3), ()), ((3, 2, 1), ("z2", "z3")), ((2, 1, 3), ("z2",))):
        guide = chain(order, False, 0.5)
        mean, error = rows_of(elbo, model, guide)
        assert set(elbo.monte_carlo_sites) == set(sampled)
        theirs = seeded(Trace_ELBO().loss, model, guide) / M
        assert mean == pytest.approx(theirs, abs=6 * error + 0.03)


def test_the_capacity_of_each_example_needs_sites_in_one_order():
    with pytest.raises(ValueError, match="site 'z1' has none.*or one order of latent sites"):
        CapacityELBO(1.0, 0.0, reduction="example").loss(two_layers, bottom_up)
    elbo = CapacityELBO(1.0, 0.0)
    kl = seeded(elbo.terms, two_layers, bottom_up).kl
    kl_in_closed_form = TWO_LAYERS - 0.5 * math.log(2 * math.pi) - 0.5 * 0.36
    assert kl.mean().item() == pytest.approx(kl_in_closed_form, abs=4 * kl.std().item() / M**0.5)


# ---- distributions under a mask of their own ---------------------------------------------------


def masked(mask, how):
    """Model and guide whose latent is silenced at some rows, by a handler or by its distributions."""

    def silent(fn):
        return fn.mask(mask) if how == "own" else fn

    def handler():
        return poutine.mask(mask=mask) if how == "handler" else poutine.scale(scale=1.0)

    def model():
        with rows():
            with handler():
                p_z = P_Z if how != "own" or mask is False else P_Z.expand([B])
                z = pyro.sample("z", silent(p_z), infer={"prior": P_Z})
            observe_x(z)

    def guide():
        q = dist.Normal(LOC.unsqueeze(-1), SCALE)
        within = how == "within"
        q = q.mask(mask.unsqueeze(-1)).to_event(1) if within else silent(q.to_event(1))
        with rows(), handler():
            pyro.sample("z", q)

    return model, guide


@pytest.mark.parametrize("how", ["own", "within"])
def test_a_posterior_under_a_mask_of_its_own_is_seen_whole_by_the_divergence(how):
    """KL(p || q) of the batch's mixture over all rows: as under `poutine.mask`, found here by a grid."""
    mask = torch.tensor([True, False, True, True, False])
    elbo = DecompositionELBO(1.0, functools.partial(inclusive_kl, n_samples=20_000))
    found, plain = (seeded(elbo.terms, *masked(mask, how)) for how in (how, "handler"))
    torch.testing.assert_close(found.divergence, plain.divergence)
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    log_p = dist.Normal(0.0, 1.0).log_prob(grid)
    log_q = dist.Normal(LOC, SCALE).log_prob(grid[:, None]).logsumexp(1) - math.log(B)
    exact = ((log_p - log_q) * log_p.exp()).sum() * (grid[1] - grid[0])
    assert found.divergence.item() == pytest.approx(exact.item(), abs=0.01)
    if how == "own":
        torch.testing.assert_close(found.kl, KL * mask)


@pytest.mark.parametrize("elbo", [DecompositionELBO, lambda: CapacityELBO(1.0, 0.0)])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("how", ["own", "handler"])
def test_a_latent_under_mask_false_has_no_kl(elbo, mask, how):
    programs = masked(mask, how)
    ours, theirs = (seeded(e().loss, *programs) for e in (elbo, TraceMeanField_ELBO))
    assert ours == pytest.approx(theirs, rel=1e-11)
    torch.testing.assert_close(elbo().terms(*programs).kl, KL * mask)


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


def test_a_score_term_is_refused(validation):
    """A rejection sampler differentiates in part through its samples: Pyro knows it by the other part."""

    class Gamma(RejectionStandardGamma):
        def expand(self, batch_shape, _instance=None):
            return Gamma(self.concentration.expand(batch_shape))

    def model():
        with rows():
            z = pyro.sample("z", dist.Gamma(X.new_tensor(2.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X[ROWS])

    def guide():
        with rows():
            pyro.sample("z", Gamma(1.0 + LOC.exp()))

    with pytest.raises(ValueError, match="reparameterised.*got Gamma at site 'z'"):
        DecompositionELBO().loss(model, guide)


def test_in_a_plate_without_a_size_each_row_has_its_latent():
    plate = pyro.plate("rows", dim=-1)

    def model():
        with plate:
            observe_x(pyro.sample("z", P_Z.expand([1])))

    def guide():
        with plate:
            pyro.sample("z", dist.Normal(LOC[:1, None], SCALE).to_event(1))

    with pytest.raises(ValueError, match="in plate 'rows' they have 1, 5. Give the plate its size"):
        DecompositionELBO().loss(model, guide)


def test_the_site_and_the_prior_of_the_divergence_are_named():
    def model(expanded):
        with rows():
            p_z = P_Z.expand([B]) if expanded else P_Z
            observe_x(pyro.sample("z", p_z, infer={"prior": p_z}))

    def guide(expanded):
        with rows():
            pyro.sample("noise", dist.Normal(LOC, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", q_z())

    def elbo(site):
        return DecompositionELBO(1.0, square, site)

    with pytest.raises(ValueError, match=r"got '_INPUT'\. The guide has noise, z\."):
        elbo("_INPUT").loss(model, guide, False)
    with pytest.raises(ValueError, match="prior of site 'noise' must be known"):
        elbo("noise").loss(model, guide, False)
    with pytest.raises(
        ValueError, match=r"prior of site 'z' must have batch_shape \(\); got \(5,\)"
    ):
        elbo("z").loss(model, guide, True)


def test_what_both_sides_are_given_is_part_of_the_likelihood():
    def model():
        with rows():
            z = latent(P_Z)
            pyro.sample("y", dist.Normal(z.squeeze(-1), 1.0))
            observe_x(z)

    def guide():
        with rows():
            latent(q_z())
            pyro.sample("y", dist.Normal(LOC, 1.0))

    args = [poutine.condition(program, {"y": X[ROWS]}) for program in (model, guide)]
    with pyro.validation_enabled(False):
        ours, theirs = (seeded(e().loss, *args) for e in (DecompositionELBO, TraceMeanField_ELBO))
    assert ours == pytest.approx(theirs, rel=1e-11)


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
