"""What fit, evaluate, encode and terms refuse at the first batch, and what each of them takes as data."""

import functools

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import nn

from pyro_bvae import VAE, CapacityELBO, DecompositionELBO, fit
from pyro_bvae.datasets import Data
from pyro_bvae.evaluation import encode_data, evaluate, log_marginal
from pyro_bvae.likelihoods import Bernoulli, ContinuousBernoulli, Laplace, Normal
from pyro_bvae.networks import mlp
from pyro_bvae.priors import Gaussian, Mixture
from pyro_bvae.priors.wrapping import as_pyro


class Returns(nn.Module):
    """A part that returns what a function makes of its input; one weight is there to be trained."""

    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.function(x + self.weight)


def a_vae(likelihood=None, n_classes=0, x_shape=(3,)):
    torch.manual_seed(0)
    return VAE(
        *mlp(x_shape, 2, n_classes), Gaussian(2), likelihood or Normal(0.5), n_classes=n_classes
    )


def rows(n=20, d=3, seed=0):
    return np.random.default_rng(seed).random((n, d), dtype=np.float32)


def entries(x, labels=None):
    """Every way that rows enter, as functions of a model."""
    tensor, y = torch.from_numpy(np.asarray(x)), None if labels is None else torch.as_tensor(labels)
    elbo = DecompositionELBO()
    found = {
        "fit": lambda vae: fit(vae, elbo, Data(x), steps=1, batch_size=8),
        "evaluate": lambda vae: evaluate(vae, Data(x)),
        "encode_data": lambda vae: encode_data(vae, Data(x)),
        "terms": lambda vae: elbo.terms(vae.model, vae.guide, tensor, y),
        "loss": lambda vae: elbo.loss(vae.model, vae.guide, tensor, y),
        "check": lambda vae: vae.check(tensor, y),
        "log_marginal": lambda vae: log_marginal(vae, tensor, y, n_samples=2),
    }
    if labels is not None:  # Data refuses labels of the wrong kind itself
        for name in ("fit", "evaluate", "encode_data"):
            del found[name]
    return found


IMAGES = rows(64, 64).reshape(64, 8, 8)
ENTRIES = ["fit", "evaluate", "encode_data", "terms", "loss", "check", "log_marginal"]


def images_vae():
    """x is (8, 8), and the decoder returns (1, 8, 8): log p would pair each row with each other."""
    torch.manual_seed(0)
    encoder, decoder = mlp((8, 8), 2)[0], mlp((1, 8, 8), 2)[1]
    return VAE(encoder, decoder, Gaussian(2), Normal(0.5))


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_decoder_of_another_shape_than_x_is_refused_everywhere(entry):
    sentence = r"decoder must return parameters shaped like x, \(\d+, 8, 8\); got \(\d+, 1, 8, 8\)"
    with pytest.raises(ValueError, match=sentence):
        entries(IMAGES)[entry](images_vae())


def test_the_log_density_of_images_is_the_sum_over_their_pixels():
    """The closed form per image: 64 pixels of N(mean, .5^2)."""
    vae = images_vae()
    images = torch.from_numpy(IMAGES)[:, None]
    z = torch.zeros(64, 2)
    mean = vae.decoder(z)
    closed = -0.5 * ((images - mean) / 0.5).square() - np.log(0.5 * np.sqrt(2 * np.pi))
    torch.testing.assert_close(vae.log_px_z(images, z), closed.flatten(1).sum(1))


@pytest.mark.parametrize("entry", [*ENTRIES, "encode", "reconstruct"])
@pytest.mark.parametrize("likelihood", [Bernoulli, ContinuousBernoulli])
@pytest.mark.parametrize("scale, shift", [(255, 0), (2, -1)])
def test_x_outside_the_support_is_refused_everywhere(entry, likelihood, scale, shift):
    x = scale * rows() + shift
    others = {"encode": lambda vae: vae.encode(x), "reconstruct": lambda vae: vae.reconstruct(x)}
    name = likelihood.__name__
    with pytest.raises(ValueError, match=rf"x must lie in \[0, 1\] for the likelihood {name}; got"):
        (entries(x) | others)[entry](a_vae(likelihood()))


def test_one_row_outside_the_support_is_found_before_training_wherever_it_stands():
    x, vae = rows(6000), a_vae(Bernoulli())
    x[5999] = 1.5
    before = [p.detach().clone() for p in vae.parameters()]
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\].*to 1.5"):
        fit(vae, DecompositionELBO(), x, steps=1)
    assert all(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))


def test_a_row_on_disk_outside_the_support_is_found_before_training(tmp_path):
    x = rows(6000)
    x[5999] = 1.5
    np.save(tmp_path / "x.npy", x)
    vae = a_vae(Bernoulli())
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\].*to 1.5"):
        fit(vae, DecompositionELBO(), Data(np.load(tmp_path / "x.npy", mmap_mode="r")), steps=1)


def test_a_distribution_of_ones_own_is_asked_for_its_support():
    class Counts(nn.Module):
        def forward(self, parameters, event_dim):
            return dist.Poisson(parameters.exp()).to_event(event_dim)

    fit(a_vae(Counts()), DecompositionELBO(), np.round(9 * rows()), steps=1)
    with pytest.raises(ValueError, match="x must lie in the support of p.x.z.*-1"):
        fit(a_vae(Counts()), DecompositionELBO(), -np.ones((5, 3), np.float32), steps=1)


# ---- labels ------------------------------------------------------------------------------------


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_labels_of_every_integer_kind_are_int64_ones(dtype):
    vae, x = a_vae(n_classes=3), torch.from_numpy(rows(6))
    labels = torch.tensor([0, 1, 2, 1, 1, 0])
    z = vae.encode(x, labels)
    expected = vae.p_x(z, labels).mean
    torch.testing.assert_close(vae.p_x(z, labels.to(dtype)).mean, expected, rtol=0, atol=0)
    hot = torch.zeros(6, 3).scatter(1, labels[:, None], 1.0)
    torch.testing.assert_close(vae.decoder(torch.cat([z, hot], 1)), expected)


@pytest.mark.parametrize(
    "labels, sentence",
    [
        ([0, 1, 2, -1], "labels must be 0 to 2, the model's classes; got -1"),
        ([0, 1, 2, 3], "labels must be 0 to 2, the model's classes; got 3"),
        (
            [0.0, 1.0, 2.0, 1.0],
            r"labels must be a tensor of integers of shape \(batch,\); got torch.float32",
        ),
        ([True, False, True, True], "labels must be a tensor of integers.*got torch.bool"),
        (
            [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]],
            r"labels must be a tensor of integers.*of shape \(4, 3\)",
        ),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, sentence):
    for entry, call in entries(rows(4), torch.tensor(labels)).items():
        with pytest.raises(ValueError, match=sentence):
            call(a_vae(n_classes=3))
            pytest.fail(entry)


def test_data_with_more_classes_than_the_model_are_refused():
    data = Data(rows(4), labels=np.array([0, 1, 2, 5]))
    for call in (
        lambda vae: fit(vae, DecompositionELBO(), data, steps=1),
        lambda vae: evaluate(vae, data),
    ):
        with pytest.raises(ValueError, match="labels must be below 3, the model's classes; got 5"):
            call(a_vae(n_classes=3))


# ---- what an encoder or a decoder returned -----------------------------------------------------


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize(
    "function, sentence",
    [
        (lambda x: x[:, :2], r"must return \(loc, scale\).*got one tensor of shape \(\d, 2\)"),
        (lambda x: (x[:, :2],) * 3, r"\(loc, scale\).*got tuple of Tensor, Tensor, Tensor"),
        (lambda x: {"loc": x}, r"\(loc, scale\), two tensors, or a distribution; got dict"),
        (lambda x: (x[:, :2], 1.0), r"\(loc, scale\).*got tuple of Tensor, float"),
        (
            lambda x: (x[:, :2], -x[:, :2] - 0.1),
            "scale finite and > 0; got a scale of -.*log variance",
        ),
        (lambda x: (x[:, :2], x[:, :1].exp()), r"must both have shape \(\d, latent_dim\); got"),
        (lambda x: (x[0, :2], x[0, :2].exp()), r"must both have shape \(\d, latent_dim\); got"),
    ],
)
def test_an_encoder_that_returns_no_posterior_is_refused_everywhere(function, sentence, n):
    x = rows(n) + 0.01
    for call in entries(x).values():
        vae = VAE(Returns(function), nn.Linear(2, 3), Gaussian(2), Normal(0.5))
        with pytest.raises((ValueError, TypeError), match=sentence):
            call(vae)


@pytest.mark.parametrize("made", [{"loc": 1}, None, [torch.zeros(2, 3)], ()])
def test_a_decoder_that_returns_no_tensor_is_refused(made):
    vae = VAE(mlp((3,), 2)[0], Returns(lambda z: made), Gaussian(2), Normal(0.5))
    with pytest.raises(TypeError, match="decoder must return a tensor, or a tuple of tensors"):
        fit(vae, DecompositionELBO(), rows(), steps=1)


def test_torchs_distributions_serve_as_pyros():
    """The same numbers as with Pyro's own, as posterior, prior and likelihood."""
    normal = torch.distributions.Normal

    class TorchPrior(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))

        def forward(self):
            return torch.distributions.Independent(normal(self.loc, torch.ones(2)), 1)

    class TorchLikelihood(nn.Module):
        def forward(self, loc, event_dim):
            return torch.distributions.Independent(normal(loc, 0.5 * torch.ones(())), event_dim)

    class TorchEncoder(nn.Module):
        def __init__(self, pair):
            super().__init__()
            self.pair = pair

        def forward(self, x):
            return torch.distributions.Independent(normal(*self.pair(x)), 1)

    x, found = torch.from_numpy(rows()), []
    for torchs in (False, True):
        torch.manual_seed(0)
        encoder, decoder = mlp((3,), 2)
        parts = (TorchEncoder(encoder), decoder, TorchPrior(), TorchLikelihood())
        vae = VAE(*parts) if torchs else VAE(encoder, decoder, Gaussian(2), Normal(0.5))
        elbo = DecompositionELBO(
            1.0, functools.partial(lambda q, p, z: (q.mean - p.mean).square().mean())
        )
        torch.manual_seed(1)
        found.append(elbo.loss(vae.model, vae.guide, x))
        fit(vae, elbo, x, steps=2)
        found.append(float(vae.prior.loc.detach().abs().max()) if torchs else 0.0)
        vae.sample(3)
    assert found[0] == found[2]
    assert found[3] > 0  # the prior in torch's terms is trained


TORCHS = {
    "uniform": lambda: torch.distributions.Uniform(-torch.ones(2), torch.ones(2)),
    "gumbel": lambda: torch.distributions.Gumbel(torch.zeros(2), torch.ones(2)),
    "kumaraswamy": lambda: torch.distributions.Kumaraswamy(torch.ones(2), 2 * torch.ones(2)),
    "log-normal": lambda: torch.distributions.LogNormal(torch.zeros(2), torch.ones(2)),
    "relaxed": lambda: torch.distributions.RelaxedBernoulli(
        torch.tensor(0.5), torch.full((2,), 0.3)
    ),
    "poisson": lambda: torch.distributions.Poisson(torch.ones(2)),
    "student-t": lambda: torch.distributions.StudentT(5.0, torch.zeros(2)),
}


@pytest.mark.parametrize("name", TORCHS)
def test_wrapped_distributions_expand_sample_and_weigh_as_torchs(name):
    plain = TORCHS[name]()
    wrapped = as_pyro(plain, "it")
    torch.manual_seed(0)
    x = plain.sample((5,))
    torch.manual_seed(0)
    assert torch.equal(wrapped.sample((5,)), x)
    assert torch.equal(wrapped.log_prob(x), plain.log_prob(x))
    assert torch.equal(wrapped.expand((5, 2)).to_event(1).log_prob(x), plain.log_prob(x).sum(1))


def test_terms_say_what_is_wrong_without_the_shapes_of_a_trace():
    vae, x = a_vae(Bernoulli()), torch.from_numpy(rows()) + 5
    with pytest.raises(ValueError) as error:
        DecompositionELBO().terms(vae.model, vae.guide, x)
    assert "\n" not in str(error.value) and "x must lie in [0, 1]" in str(error.value)


def test_encode_refuses_what_fit_refuses():
    vae, x = a_vae(), rows()
    with pytest.raises(ValueError, match=r"the encoder cannot take x of shape \(2,\)"):
        vae.encode(x[:, :2])
    with pytest.raises(ValueError, match="x must have no masked values"):
        vae.encode(np.ma.masked_less(x, 0.5))
    for other in (None, "abc", torch.utils.data.DataLoader(x)):
        with pytest.raises(TypeError, match="data must be Data, an array or tensor"):
            vae.encode(other)
    assert torch.equal(vae.encode(x.astype(">f4")), vae.encode(x))


def test_a_distribution_that_pyro_lacks_is_refused():
    class Strange(torch.distributions.Normal):
        pass

    vae = VAE(Returns(lambda x: Strange(x[:, 0], 1.0)), nn.Linear(2, 3), Gaussian(2), Normal(0.5))
    with pytest.raises(
        TypeError, match="posterior must be a distribution from pyro.distributions.*got .*Strange"
    ):
        vae.check(torch.from_numpy(rows()))


# ---- what is taken as data ---------------------------------------------------------------------


def taken(x):
    return {
        "tensor": torch.from_numpy(x),
        "array": x,
        "gradients": torch.from_numpy(x).requires_grad_(),
        "half": torch.from_numpy(x.astype(np.float16)),
        "not contiguous": torch.from_numpy(np.ascontiguousarray(x.T)).T,
    }


@pytest.mark.parametrize("kind", list(taken(rows())))
def test_tensors_and_arrays_are_data(kind):
    x = rows().astype(np.float16).astype(np.float32)
    results = []
    for data in (Data(x), taken(x)[kind]):
        vae = a_vae()
        torch.manual_seed(3)
        losses = [record["loss"] for record in fit(vae, DecompositionELBO(), data, epochs=2)]
        results.append((losses, evaluate(vae, data), encode_data(vae, data).loc.tolist()))
    assert results[0] == results[1]


def test_a_pair_is_data_with_labels():
    x, labels = rows(), np.arange(20) % 3
    losses = []
    for data in (
        Data(x, labels=labels),
        (x, labels),
        (torch.from_numpy(x), torch.from_numpy(labels)),
    ):
        torch.manual_seed(3)
        losses.append(fit(a_vae(n_classes=3), DecompositionELBO(), data, epochs=1)[0]["loss"])
    assert losses[0] == losses[1] == losses[2]


def test_encode_takes_data_with_its_labels():
    vae, x, labels = a_vae(n_classes=3), rows(6), np.arange(6) % 3
    torch.manual_seed(0)
    expected = vae.encode(torch.from_numpy(x), torch.from_numpy(labels))
    for got in (vae.encode(Data(x, labels=labels)), vae.encode(x, labels)):
        assert torch.equal(got, expected)
    assert torch.equal(vae.reconstruct(Data(x, labels=labels)), vae.reconstruct(x, labels))


def test_labels_of_another_number_of_rows_are_refused():
    vae = a_vae(n_classes=3)
    with pytest.raises(ValueError, match="labels must be one for each row of z, 4; got 3"):
        vae.sample(4, labels=torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="labels must be a tensor of integers.*got list"):
        vae.p_x(torch.zeros(3, 2), [0, 1, 2])


def test_encode_takes_arrays_and_grey_values():
    vae = a_vae(Bernoulli())
    grey = np.random.default_rng(0).integers(0, 256, (5, 3)).astype(np.uint8)
    expected = vae.encode(torch.from_numpy(grey) / 255)
    for x in (grey, torch.from_numpy(grey), grey / 255):
        torch.testing.assert_close(vae.encode(x), expected)


@pytest.mark.parametrize(
    "data, sentence",
    [
        (torch.utils.data.DataLoader(torch.zeros(4, 3)), "got DataLoader. Collect its rows"),
        (torch.utils.data.TensorDataset(torch.zeros(4, 3)), "got TensorDataset"),
        ([[0.0, 1.0], [1.0, 0.0]], "got list"),
        (None, "got NoneType"),
        (torch.zeros(4, 3, dtype=torch.int64), "x must be uint8, float32 or float64; got int64"),
    ],
)
def test_other_data_are_refused_in_one_sentence(data, sentence):
    with pytest.raises(TypeError, match=sentence):
        fit(a_vae(), DecompositionELBO(), data, steps=1)
    with pytest.raises(TypeError, match=sentence):
        evaluate(a_vae(), data)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            {"objective": TraceMeanField_ELBO()},
            "objective must be a DecompositionELBO.*got TraceMeanField",
        ),
        ({"objective": DecompositionELBO}, "objective must be .*got the class itself"),
        ({"vae": VAE}, "vae must be a pyro_bvae.VAE; got the class itself"),
        ({"vae": nn.Linear(3, 2)}, "vae must be a pyro_bvae.VAE; got a Linear"),
        ({"schedules": {"beta": 0.5}}, "schedule of beta must be a function of the step; got 0.5"),
        ({"batch_size": 32.0}, "batch_size must be a whole number; got 32.0"),
        ({"steps": 10.5}, "steps must be a whole number; got 10.5"),
        ({"steps": True}, "steps must be a whole number; got True"),
        ({"lr": "fast"}, "lr must be a number; got str"),
        (
            {"callbacks": print},
            "callbacks must be a list of functions; got <built-in function print>",
        ),
        ({"callbacks": [3]}, "each callback must be a function; got 3"),
        ({"transform": "bernoulli"}, "transform must be a function; got 'bernoulli'"),
        ({"on_step": [print]}, "on_step must be a function"),
        ({"seed": 1.5}, "seed must be a whole number; got 1.5"),
        ({"schedules": [("beta", float)]}, "schedules must be a dict"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused_in_one_sentence(change, sentence):
    given = {"vae": a_vae(), "objective": CapacityELBO(1, 2), "data": rows(), "steps": 1} | change
    given = {"steps": 1} | given if "steps" not in change else given
    if "schedules" in change:
        given["objective"] = DecompositionELBO()
    with pytest.raises(TypeError, match=sentence):
        fit(**given)


# ---- float64 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [Gaussian, Mixture])
@pytest.mark.parametrize("likelihood", [lambda: Normal("learned"), lambda: Laplace(0.2), Bernoulli])
def test_a_model_in_float64_trains_and_measures_in_float64(prior, likelihood):
    torch.manual_seed(0)
    vae = VAE(*mlp((3,), 2), prior(2, learned=True), likelihood()).double()
    x = rows().astype(np.float64)
    x[0, 0] = 1 / 3  # float32 would lose half of its digits
    seen = []
    history = fit(vae, DecompositionELBO(), x, steps=3, transform=lambda x: (seen.append(x), x)[1])
    assert all(batch.dtype is torch.float64 for batch in seen)
    assert any(bool((batch == 1 / 3).any()) for batch in seen)
    assert all(p.dtype is torch.float64 for p in vae.parameters())
    codes = encode_data(vae, x)
    assert codes.loc.dtype is codes.log_px_z.dtype is codes.kl.dtype is torch.float64
    assert np.isfinite(history[-1]["loss"])
    with torch.no_grad():
        torch.testing.assert_close(
            codes.loc, vae.q_z(torch.from_numpy(x)).mean, rtol=1e-14, atol=1e-14
        )
