"""A stranger's Pyro program under our objectives and priors: a semi-supervised VAE on the spirals.

Model M2 of Kingma et al. 2014 (https://arxiv.org/abs/1406.5298): p(y) p(z) p(x|z, y), with q(z|x, y) learned
from all rows, q(y|x) too. Where the label is missing, y is a Concrete variable (Maddison et al. 2017), since
our objectives, as Pyro's `TraceMeanField_ELBO`, differentiate through samples.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.optim import Adam
from torch import nn

from pyro_bvae import VAE, CapacityELBO, DecompositionELBO
from pyro_bvae.datasets import spirals
from pyro_bvae.divergences import inclusive_kl
from pyro_bvae.likelihoods import Normal
from pyro_bvae.networks import mlp
from pyro_bvae.priors import Gaussian, Mixture
from pyro_bvae.svi import CompiledSVI

EXACT = {"rel": 1e-11, "abs": 1e-11}  # float64
DATA = spirals(seed=0)
X = torch.from_numpy(DATA.x).double()
Y = torch.eye(4, dtype=torch.float64)[torch.from_numpy(DATA.labels)]
GIVEN = torch.arange(len(X)) % 10 == 0  # ten labels an arm
BATCHES = {"labelled": (X[GIVEN], Y[GIVEN]), "unlabelled": (X[~GIVEN], None)}
SIGMA, TEMPERATURE, WEIGHT, ROWS = 0.1, 0.5, 20.0, 20
OBJECTIVES = [DecompositionELBO(2.0, inclusive_kl), CapacityELBO(20.0, 4.0)]


def net(n_in, n_out):
    return nn.Sequential(nn.Linear(n_in, 32), nn.Tanh(), nn.Linear(32, n_out))


class SemiSupervised(nn.Module):
    """It knows nothing of us but that the prior may be left at ``infer``."""

    def __init__(self, prior, beta=1.0, rows=ROWS, leave_prior=True, discrete=False):
        super().__init__()
        torch.manual_seed(1)
        self.encode_y, self.encode_z, self.decode = net(2, 4), net(6, 4), net(6, 2)
        self.prior, self.beta, self.rows = prior, beta, rows
        self.leave_prior, self.discrete = leave_prior, discrete
        self.double()

    def plate(self, x):
        return pyro.plate("data", len(x), subsample_size=self.rows)

    def label(self, logits, known):
        if known or self.discrete:
            return dist.OneHotCategorical(logits=logits)
        return dist.RelaxedOneHotCategorical(logits.new_tensor(TEMPERATURE), logits=logits)

    def model(self, x, y=None):
        pyro.module("m2", self)
        known = y is not None
        p_z = self.prior()
        with self.plate(x) as rows:
            given = y[rows] if known else None
            if known:
                with poutine.scale(scale=WEIGHT):
                    pyro.sample("class", self.label(self.encode_y(x[rows]), known), obs=given)
            hot = pyro.sample("y", self.label(x.new_zeros(4), known), obs=given)
            with poutine.scale(scale=self.beta):
                z = pyro.sample("z", p_z, infer={"prior": p_z} if self.leave_prior else {})
            loc = self.decode(torch.cat([z, hot], -1))
            pyro.sample("x", dist.Normal(loc, SIGMA).to_event(1), obs=x[rows])

    def guide(self, x, y=None):
        pyro.module("m2", self)
        with self.plate(x) as rows:
            x = x[rows]
            q_y = self.label(self.encode_y(x), False)
            hot = pyro.sample("y", q_y) if y is None else y[rows]
            q_z = self.q_z(x, hot)
            with poutine.scale(scale=self.beta):
                pyro.sample("z", q_z)

    def q_z(self, x, hot):
        loc, raw = self.encode_z(torch.cat([x, hot], -1)).chunk(2, -1)
        return dist.Normal(loc, raw.exp()).to_event(1)


def seeded(function, *args, seed=7):
    torch.manual_seed(seed)
    return function(*args)


def mixture():
    return Mixture(2, learned=True)


def gaussian():
    return Gaussian(2, 0.75, learned=True)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("prior", [gaussian, mixture])
@pytest.mark.parametrize("particles", [1, 2])
@pytest.mark.parametrize("make", [DecompositionELBO, lambda **o: CapacityELBO(1.0, 0.0, **o)])
def test_at_the_neutral_setting_loss_and_gradients_are_pyros(make, particles, prior, batch):
    found = []
    for elbo in (make(num_particles=particles), TraceMeanField_ELBO(num_particles=particles)):
        pyro.clear_param_store()
        program = SemiSupervised(prior())
        loss = seeded(elbo.loss_and_grads, program.model, program.guide, *BATCHES[batch])
        found.append((loss, {name: p.grad for name, p in program.named_parameters()}))
    (ours, our_grads), (theirs, their_grads) = found
    assert ours == pytest.approx(theirs, **EXACT)
    for name, grad in their_grads.items():
        assert grad.abs().sum() > 0, name
        torch.testing.assert_close(our_grads[name], grad, rtol=1e-9, atol=1e-9)


def by_hand(program, x, y):
    """From the guide's samples: log p (under the classifier's weight), KL of z, KL of y, q(z) and z."""
    normal = torch.distributions.Normal
    trace = seeded(poutine.trace(program.guide).get_trace, x, y)
    rows, z = trace.nodes["data"]["value"], trace.nodes["z"]["value"]
    hot = trace.nodes["y"]["value"] if y is None else y[rows]
    logits = program.encode_y(x[rows])
    log_p = normal(program.decode(torch.cat([z, hot], -1)), SIGMA).log_prob(x[rows]).sum(-1)
    kl_y = torch.zeros(len(rows), dtype=x.dtype)
    if y is None:
        kl_y = log_concrete(hot, logits) - log_concrete(hot, torch.zeros_like(logits))
    else:
        log_p = log_p - math.log(4) + WEIGHT * (logits.log_softmax(-1) * hot).sum(-1)
    loc, raw = program.encode_z(torch.cat([x[rows], hot], -1)).chunk(2, -1)
    kl_z = normal(loc, raw.exp()).log_prob(z).sum(-1) - program.prior().log_prob(z)
    if isinstance(program.prior, Gaussian):
        s = program.prior().variance.sqrt()
        kl_z = (((loc**2 + (2 * raw).exp()) / s**2 - 1) / 2 - raw + s.log()).sum(-1)
    return log_p, kl_z, kl_y, dist.Normal(loc, raw.exp()).to_event(1), z


def log_concrete(y, logits, k=4, t=TEMPERATURE):
    """Maddison et al. 2017, eq. 10."""
    weights = logits - (t + 1) * y.log()
    normaliser = (logits - t * y.log()).logsumexp(-1)
    return math.lgamma(k) + (k - 1) * math.log(t) + weights.sum(-1) - k * normaliser


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("prior", "given"), [(gaussian, "prior="), (mixture, "infer")])
def test_losses_are_what_the_traces_say(prior, given, batch):
    """DecompositionELBO and CapacityELBO, with beta, N/B, and a term of the program's own weight."""
    x, y = BATCHES[batch]
    scale = len(x) / ROWS
    program = SemiSupervised(prior(), beta=0.3, leave_prior=given == "infer")
    log_p, kl_z, kl_y, q_z, z = by_hand(program, x, y)
    d = inclusive_kl(q_z, program.prior(), z)  # its samples of the prior are the next of the seed
    passed = {} if given == "infer" else {"prior": program.prior}
    elbo = DecompositionELBO(2.0, inclusive_kl, site="z", **passed)
    loss, terms = seeded(elbo.loss_and_terms, program.model, program.guide, x, y)
    expected = scale * ((0.3 * kl_z + kl_y - log_p).sum() + 2.0 * ROWS * d)
    torch.testing.assert_close(terms.kl, kl_z + kl_y)
    torch.testing.assert_close(terms.divergence, d)
    assert d > 0.1
    assert loss.item() == pytest.approx(expected.item(), **EXACT)
    program.beta = 1.0
    elbo = CapacityELBO(3.0, 1.5, penalty="relu" if given == "infer" else "absolute")
    loss = seeded(elbo.loss, program.model, program.guide, x, y)
    excess = (kl_z + kl_y).mean() - 1.5
    excess = excess.relu() if given == "infer" else excess.abs()
    assert loss == pytest.approx((scale * (3.0 * ROWS * excess - log_p.sum())).item(), **EXACT)


@pytest.mark.parametrize("elbo", OBJECTIVES)
def test_a_label_that_is_discrete_and_latent_is_refused(elbo):
    """Its samples carry no gradient to q(y|x)."""
    program = SemiSupervised(gaussian(), discrete=True)
    with pytest.raises(ValueError, match="reparameterised.*got OneHotCategorical at site 'y'"):
        elbo.loss_and_grads(program.model, program.guide, *BATCHES["unlabelled"])
    assert math.isfinite(elbo.loss(program.model, program.guide, *BATCHES["labelled"]))


def trained(elbo, beta=1.0, pairs=25, rows=40, kind=SVI):
    """The program after steps on labelled and unlabelled rows in turn, and the losses ``(pairs, 2)``."""
    pyro.clear_param_store()
    program = SemiSupervised(mixture(), beta, rows)
    svi = kind(program.model, program.guide, Adam({"lr": 0.01}), elbo)
    torch.manual_seed(0)
    losses = []
    for step in range(pairs):
        with pyro.validation_enabled(step == 0):
            losses.append([svi.step(*batch) for batch in BATCHES.values()])
    return program, torch.tensor(losses)


def prior_to_codes(program):
    """KL(p(z) || q(z)), q(z) the mean of q(z|x, y) over all rows, by a sum over a grid."""
    axis = torch.linspace(-4, 4, 161, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        q_z = program.q_z(X, Y)
        log_q = torch.cat([q_z.log_prob(z.unsqueeze(1)).logsumexp(1) for z in grid.split(2000)])
        log_p = program.prior().log_prob(grid)
    p = log_p.exp() * (axis[1] - axis[0]) ** 2
    assert p.sum().item() == pytest.approx(1, abs=1e-3)
    return (p * (log_p - log_q + math.log(len(X)))).sum().item()


def test_pyros_svi_trains_it_and_alpha_lowers_the_divergence():
    before, found = SemiSupervised(mixture()), {}
    for alpha in (0.0, 2.0):
        program, losses = trained(DecompositionELBO(alpha, inclusive_kl), beta=0.1)
        assert (losses[-5:].mean(0) < 0.5 * losses[:5].mean(0)).all()
        for (name, old), new in zip(before.named_parameters(), program.parameters(), strict=True):
            assert not torch.equal(old, new), name
        right = program.encode_y(X).argmax(1) == Y.argmax(1)
        assert right[~GIVEN].double().mean() > 0.8  # chance: a quarter
        found[alpha] = prior_to_codes(program)
    assert found[2.0] < 1 < 5 < found[0.0]


def test_pyros_svi_brings_the_rate_to_the_capacity():
    rates = {}
    for capacity in (1.0, 4.0):
        elbo = CapacityELBO(20.0, capacity)
        program, losses = trained(elbo, pairs=30)
        assert (losses[-5:].mean(0) < 0.7 * losses[:5].mean(0)).all()
        batch = BATCHES["unlabelled"]
        kls = [elbo.terms(program.model, program.guide, *batch).kl.mean() for _ in range(20)]
        rates[capacity] = torch.stack(kls).mean().item()
    assert rates == pytest.approx({1.0: 1.0, 4.0: 4.0}, abs=1)


def assert_compiled_steps_are_pyros(elbo):
    found = [trained(elbo, pairs=4, rows=ROWS, kind=kind) for kind in (SVI, CompiledSVI)]
    (eager, losses), (compiled, others) = found
    assert len(losses.unique()) == 8
    torch.testing.assert_close(others, losses, rtol=1e-6, atol=1e-6)
    for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "elbo", [pytest.param(OBJECTIVES[0], marks=pytest.mark.slow), OBJECTIVES[1]]
)
def test_captured_steps_are_pyros_steps(elbo, replayed):
    assert_compiled_steps_are_pyros(elbo)
    assert len(replayed) == 2  # with labels and without; the subsample is drawn in the graph


@pytest.mark.slow
def test_compiled_steps_are_pyros_steps():
    assert_compiled_steps_are_pyros(CapacityELBO(20.0, 4.0))


def small_vae():
    torch.manual_seed(3)
    return VAE(*mlp((2,), 2, scale=True), mixture(), Normal("decoder")).double()


@pytest.mark.parametrize("elbo", OBJECTIVES)
def test_elbo_module_and_torchs_adam_take_the_step_of_svi(elbo):
    """Also beside an earlier model of the same names in the store, where SVI would train that one."""
    pyro.module("encoder", small_vae().encoder)
    ours, theirs = small_vae(), small_vae()
    module = elbo(ours.model, ours.guide)
    optim = torch.optim.Adam(ours.parameters(), lr=0.01)
    loss = seeded(module, X)
    loss.backward()
    optim.step()
    with pyro.get_param_store().scope():
        svi = SVI(theirs.model, theirs.guide, Adam({"lr": 0.01}), elbo)
        assert seeded(svi.step, X) == pytest.approx(loss.item(), **EXACT)
    start = small_vae()
    for (name, new), same, old in zip(
        ours.named_parameters(), theirs.parameters(), start.parameters(), strict=True
    ):
        assert not torch.equal(new, old), name
        torch.testing.assert_close(new, same, rtol=1e-9, atol=1e-9)


def test_alpha_and_beta_can_be_set_between_steps_of_an_elbo_module():
    """Loss = A + beta B + alpha C under one seed, and so are its gradients."""
    vae, elbo = small_vae(), DecompositionELBO(0.0, inclusive_kl)
    module = elbo(vae.model, vae.guide)

    def at(alpha, beta):
        elbo.alpha, vae.beta = alpha, beta
        vae.zero_grad()
        loss = seeded(module, X)
        loss.backward()
        values = [loss.detach(), *(p.grad for p in vae.parameters())]
        return torch.cat([value.reshape(-1) for value in values])

    start, more_alpha, more_beta = at(1.0, 0.5), at(3.0, 0.5), at(1.0, 2.0)
    terms = seeded(elbo.terms, vae.model, vae.guide, X)
    assert (more_alpha - start)[0].item() == pytest.approx(2 * len(X) * terms.divergence.item())
    assert (more_beta - start)[0].item() == pytest.approx(1.5 * terms.kl.sum().item())
    both = start + 3 * (more_alpha - start) + 2 * (more_beta - start)
    torch.testing.assert_close(at(7.0, 3.5), both, rtol=1e-8, atol=1e-8)
