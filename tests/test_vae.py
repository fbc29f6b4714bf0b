"""The model and guide: sites, scales, shapes, labels, samples and refusals."""

import contextlib
import copy
import math
import types

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_bvae import VAE, DecompositionELBO, fit
from pyro_bvae.datasets import Data
from pyro_bvae.likelihoods import Bernoulli, Laplace, Normal
from pyro_bvae.networks import mlp
from pyro_bvae.priors import Flow, Gaussian, Mixture, SpikeSlab, VampPrior
from pyro_bvae.vae import evaluating, vae_device


class Encoder(nn.Module):
    """loc = the first two entries of x, scale 1; remembers what it was given."""

    def forward(self, x):
        self.seen = x
        return x[:, :2], torch.ones(len(x), 2)


class Fixed(nn.Module):
    """Returns what it was given, or for a function what it makes of x."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, x=None):
        return self.out(x) if isinstance(self.out, types.FunctionType) else self.out


def linear(prior=None, n_classes=0, encode_labels=False, beta=1.0):
    """x_k = 10 z_0 + 100 z_1 + the k-th digit of the label, for three k."""
    decoder = nn.Linear(2 + n_classes, 3, bias=False)
    weight = torch.zeros(3, 2 + n_classes)
    weight[:, 0], weight[:, 1] = 10.0, 100.0
    for label in range(n_classes):
        weight[label, 2 + label] = 1.0
    decoder.load_state_dict({"weight": weight})
    return VAE(
        Encoder(), decoder, prior or Gaussian(2), Normal(0.5), beta, n_classes, encode_labels
    )


X = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0], [9.0, 10.0, 11.0]])
LABELS = torch.tensor([2, 0, 1, 2])


# ---- sites -------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0])
def test_sites_plate_and_scale_of_model_and_guide(beta):
    vae = linear(beta=beta)
    guide = poutine.trace(vae.guide).get_trace(X)
    model = poutine.trace(poutine.condition(vae.model, {"z": guide.nodes["z"]["value"]})).get_trace(
        X
    )
    for trace, sites in ((model, {"z", "x"}), (guide, {"z"})):
        sample = {k for k, s in trace.nodes.items() if s["type"] == "sample" and k != "data"}
        assert sample == sites
        for name in sites:
            (frame,) = trace.nodes[name]["cond_indep_stack"]
            assert (frame.name, frame.size, frame.dim) == ("data", 4, -1)
            assert trace.nodes[name]["scale"] == (beta if name == "z" else 1.0)
    assert model.nodes["x"]["is_observed"] and model.nodes["x"]["value"] is X
    assert model.nodes["_RETURN"]["value"] is guide.nodes["_RETURN"]["value"]


def test_unexpanded_prior_and_posterior_are_left_at_the_site():
    vae = linear(Mixture(2))
    prior = poutine.trace(vae.model).get_trace(X).nodes["z"]["infer"]["prior"]
    posterior = poutine.trace(vae.guide).get_trace(X).nodes["z"]["infer"]["posterior"]
    assert (prior.batch_shape, prior.event_shape) == ((), (2,))
    assert (posterior.batch_shape, posterior.event_shape) == ((4,), (2,))


def test_beta_is_a_nonnegative_number_that_can_be_set():
    vae = linear(beta=0.1)
    assert vae.beta == 0.1
    for value in (0, 2.5, torch.tensor(0.5), np.float32(4.0)):
        vae.beta = value
        assert vae.beta == float(value)
        assert poutine.trace(vae.guide).get_trace(X).nodes["z"]["scale"] == float(value)
    for value in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="VAE: beta must be a finite number >= 0; got "):
            vae.beta = value
        with pytest.raises(ValueError, match="VAE: beta must be"):
            linear(beta=value)
    assert vae.beta == 4.0


# ---- distributions -----------------------------------------------------------------------------


def test_posterior_is_the_encoders_own_or_a_diagonal_normal():
    q_z = linear().q_z(X)
    assert (q_z.batch_shape, q_z.event_shape) == ((4,), (2,))
    torch.testing.assert_close(q_z.mean, X[:, :2])
    own = dist.MultivariateNormal(X[:, :2], torch.eye(2))
    vae = VAE(Fixed(own), nn.Linear(2, 3), Gaussian(2), Normal(0.5))
    assert vae.q_z(X) is own
    torch.testing.assert_close(vae.encode(X), X[:, :2])


@pytest.mark.parametrize("lead", [(4,), (5, 4), (2, 5, 4)])
@pytest.mark.parametrize("n_classes", [0, 3])
def test_likelihood_takes_leading_dimensions(lead, n_classes):
    vae = linear(n_classes=n_classes)
    labels = LABELS if n_classes else None
    z = torch.randn(*lead, 2)
    p_x = vae.p_x(z, labels)
    assert (p_x.batch_shape, p_x.event_shape) == (lead, (3,))
    row = (0,) * (len(lead) - 1)
    torch.testing.assert_close(p_x.mean[row], vae.p_x(z[row], labels).mean)
    _, decoder = mlp((2, 3), 2, scale=True)
    p_x = VAE(Encoder(), decoder, Gaussian(2), Laplace("decoder")).p_x(z)
    assert (p_x.batch_shape, p_x.event_shape) == (lead, (2, 3))


# ---- labels ------------------------------------------------------------------------------------


def test_label_is_one_hot_beside_z_at_the_decoder():
    vae = linear(n_classes=3)
    hot = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    z = vae.encode(X, LABELS)
    assert vae.encoder.seen is X  # decoder only
    expected = (10 * z[:, 0] + 100 * z[:, 1]).unsqueeze(1) + hot
    torch.testing.assert_close(vae.reconstruct(X, LABELS), expected)
    trace = poutine.trace(vae.model).get_trace(X, LABELS)
    z = trace.nodes["z"]["value"]
    expected = (10 * z[:, 0] + 100 * z[:, 1]).unsqueeze(1) + hot
    torch.testing.assert_close(trace.nodes["x"]["fn"].mean, expected)


def test_encoder_sees_labels_as_constant_channels():
    vae = linear(n_classes=3, encode_labels=True)
    vae.q_z(X, LABELS)
    hot = torch.eye(3)[LABELS]
    assert torch.equal(vae.encoder.seen, torch.cat([X, hot], 1))
    images = torch.rand(4, 1, 2, 5)
    seen = vae._encoder_input(images, LABELS)
    assert seen.shape == (4, 4, 2, 5) and torch.equal(seen[:, :1], images)
    assert torch.equal(seen[:, 1:], hot[:, :, None, None].expand(4, 3, 2, 5))


def test_labels_are_given_exactly_where_they_are_used():
    sentence = (
        "labels must be given exactly where the model is conditional; got {} with n_classes={}"
    )
    for call in ("model", "reconstruct"):
        with pytest.raises(ValueError, match=sentence.format("none", 3)):
            getattr(linear(n_classes=3), call)(X)
        with pytest.raises(ValueError, match=sentence.format("labels", 0)):
            getattr(linear(), call)(X, LABELS)
    with pytest.raises(ValueError, match=sentence.format("none", 3)):
        linear(n_classes=3, encode_labels=True).guide(X)


# ---- samples -----------------------------------------------------------------------------------


def point(z):
    """A prior at z, as good as certain."""
    return Fixed(dist.Normal(torch.tensor(z), 1e-6).to_event(1))


def test_sample_from_the_prior():
    images = linear(point([1.0, 2.0])).sample(5)
    torch.testing.assert_close(images, torch.full((5, 3), 210.0), rtol=1e-4, atol=0)
    images = linear(point([1.0, 2.0]), n_classes=3).sample(4, labels=LABELS)
    torch.testing.assert_close(images, 210.0 + torch.eye(3)[LABELS], rtol=1e-5, atol=0)


@pytest.mark.parametrize("n", [4, 7])
def test_sample_from_the_aggregate_posterior_draws_rows_and_keeps_labels(n):
    narrow = Fixed(lambda x: (x[:, :2], torch.full((len(x), 2), 1e-6)))
    torch.manual_seed(3)
    vae = linear()
    vae.encoder = narrow
    images = vae.sample(200, "aggregate", x=X)[:, 0]
    sources = (10 * X[:, 0] + 100 * X[:, 1]).round()
    assert set(images.round().tolist()) == set(sources.tolist())
    # Decoder-only labels are of the draws, whether or not there are as many rows.
    vae = linear(n_classes=3)
    vae.encoder = narrow
    labels = torch.arange(n) % 3
    images = vae.sample(n, "aggregate", labels=labels, x=X)
    torch.testing.assert_close(images.argmax(1), labels)
    # An encoder that sees labels: of the rows, and each draw keeps its row's.
    vae = linear(n_classes=3, encode_labels=True)
    vae.encoder = narrow
    images = vae.sample(n, "aggregate", labels=LABELS, x=X)
    row = (images.mean(1) - sources.unsqueeze(1)).abs().argmin(0)
    assert images.shape == (n, 3)
    torch.testing.assert_close(images.argmax(1), LABELS[row])


def test_sample_refusals():
    with pytest.raises(ValueError, match="source must be 'prior' or 'aggregate'; got 'posterior'"):
        linear().sample(3, "posterior")
    with pytest.raises(ValueError, match="source 'aggregate' needs x.*got None. Pass x="):
        linear().sample(3, "aggregate")


def test_reconstruct_is_the_mean_at_the_posterior_mean():
    expected = (10 * X[:, 0] + 100 * X[:, 1]).unsqueeze(1).expand(4, 3)
    torch.testing.assert_close(linear().reconstruct(X), expected)
    grey = VAE(Encoder(), nn.Linear(2, 3), Gaussian(2), Bernoulli()).reconstruct(X / 11)
    assert ((grey >= 0) & (grey <= 1)).all()


# ---- check -------------------------------------------------------------------------------------


def test_check_passes_what_fits():
    for vae, labels in ((linear(), None), (linear(n_classes=3, encode_labels=True), LABELS)):
        state = torch.get_rng_state()
        vae.check(X, labels)
        assert vae.training and torch.equal(torch.get_rng_state(), state)


def test_check_names_the_part_that_does_not_fit():
    prior, good = Gaussian(2), linear()

    def check(encoder=None, decoder=None, prior=prior, likelihood=None):
        encoder, decoder = encoder or Encoder(), decoder or good.decoder
        VAE(encoder, decoder, prior, likelihood or Normal(0.5)).check(X)

    no_event = Fixed(lambda x: dist.Normal(x[:, :2], 1.0))
    with pytest.raises(ValueError, match=r"encoder's posterior must have .*got \(4, 2\) and \(\)"):
        check(no_event)
    half = Fixed(lambda x: (x[:2, :2], torch.ones(2, 2)))
    with pytest.raises(ValueError, match=r"shape \(4, latent_dim\); got \(2, 2\) and \(2, 2\)"):
        check(half)
    with pytest.raises(ValueError, match=r"Gaussian: .* event_shape \(2,\); got \(\) and \(3,\)"):
        check(prior=Gaussian(3))
    with pytest.raises(ValueError, match=r"decoder must .* like x, \(4, 3\); got \(4, 5\)"):
        check(decoder=nn.Linear(2, 5))
    with pytest.raises(TypeError, match="Normal: decoder must return one tensor.*got .loc, scale."):
        check(decoder=Fixed(lambda z: (z, z)))
    with pytest.raises(TypeError, match="must return .loc, scale.; got one tensor"):
        check(likelihood=Normal("decoder"))


def test_check_refuses_a_posterior_without_moments():
    def log_normal(x):
        return dist.TransformedDistribution(
            dist.Normal(x[:, :2], 1.0).to_event(1), [dist.transforms.ExpTransform()]
        )

    vae = VAE(Fixed(log_normal), nn.Linear(2, 3), Gaussian(2), Normal(0.5))
    sentence = r"posterior must have a mean and a variance; got TransformedDistribution, which"
    with pytest.raises(ValueError, match=sentence):
        vae.check(X)


# ---- evaluating --------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("error", [None, RuntimeError])
def test_evaluating_puts_all_back(training, error):
    vae = linear().train(training)
    state = torch.get_rng_state()
    with pytest.raises(error) if error else contextlib.nullcontext(), evaluating(vae, seed=3):
        assert not vae.training and not vae.decoder.training
        assert not vae.decoder(torch.ones(1, 2)).requires_grad
        torch.rand(3)
        if error:
            raise error
    assert vae.training == vae.decoder.training == training
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.decoder(torch.ones(1, 2)).requires_grad


def test_noise_of_evaluating_is_its_own_only_with_a_seed():
    vae, drawn = linear(), []
    for ambient in (1, 2):
        torch.manual_seed(ambient)
        with evaluating(vae, seed=0):
            drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
    torch.manual_seed(0)
    with evaluating(vae):
        assert torch.equal(torch.rand(3), drawn[0])
    assert not torch.equal(torch.rand(3), drawn[0])  # the ambient generator went on
    torch.manual_seed(0)
    torch.rand(3)
    ambient = torch.get_rng_state()
    torch.manual_seed(0)
    with evaluating(vae):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), ambient)


def test_device_of_a_model():
    assert vae_device(nn.Linear(2, 2, device="meta")).type == "meta"
    assert vae_device(nn.Identity()).type == "cpu"


@pytest.mark.parametrize(
    ("part", "wrong"), [("prior", "mixture"), ("prior", Gaussian), ("likelihood", None)]
)
def test_a_part_that_is_no_module_is_refused(part, wrong):
    parts = {
        "encoder": nn.Identity(),
        "decoder": nn.Identity(),
        "prior": Gaussian(2),
        "likelihood": Normal(1.0),
    }
    with pytest.raises(TypeError, match=f"VAE: {part} must be a module; got .*Make one, such as"):
        VAE(**(parts | {part: wrong}))


# ---- a module like any other -------------------------------------------------------------------

PRIORS = {
    "gaussian": lambda: Gaussian(2, learned=True),
    "spike-slab": lambda: SpikeSlab(2, learned=True),
    "mixture": lambda: Mixture(2, learned=True),
    "vamp": lambda: VampPrior(2, 3, (3,)),
    "flow": lambda: Flow(2, 2, 4),
}


def trainable(prior, seed):
    torch.manual_seed(seed)
    return VAE(*mlp((3,), 2, hidden=4), PRIORS[prior](), Normal("learned"))


@pytest.mark.parametrize("prior", PRIORS)
def test_state_dict_round_trip_and_deepcopy_after_training(prior):
    data = Data(np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32))
    vae, other = trainable(prior, 0), trainable(prior, 1)
    fit(vae, DecompositionELBO(), data, steps=2, batch_size=3)
    other.load_state_dict(vae.state_dict())
    twin = copy.deepcopy(vae)
    x, z = torch.from_numpy(data.x), torch.randn(5, 2)

    def answers(model):
        model.eval()
        with torch.no_grad():
            return model.reconstruct(x), model.p_z().log_prob(z), model.p_x(z).log_prob(x[:5])

    before = answers(vae)
    for one in (other, twin):
        for theirs, ours in zip(answers(one), before, strict=True):
            assert torch.equal(theirs, ours)
    # The copy is its own: trained on, it moves (every parameter) and the original does not.
    start = {name: p.detach().clone() for name, p in twin.named_parameters()}
    twin.beta = 2.0
    fit(twin, DecompositionELBO(), data, steps=2, batch_size=3)
    assert vae.beta == 1.0
    for theirs, ours in zip(answers(vae), before, strict=True):
        assert torch.equal(theirs, ours)
    still = [name for name, p in twin.named_parameters() if torch.equal(p, start[name])]
    assert not still
