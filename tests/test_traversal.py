"""Traversals of a linear decoder, where every decoded value is known."""

import pytest
import torch
from torch import nn

from pyro_bvae.likelihoods import Bernoulli, Normal
from pyro_bvae.networks import mlp
from pyro_bvae.priors import Gaussian, Mixture
from pyro_bvae.traversal import decode, latent_order, manifold, prior_range, traversal
from pyro_bvae.vae import VAE


def linear(latent_dim=3, n_classes=0):
    """x = W (z, one-hot label), with W[i, j] = 10 ** i (j + 1)."""
    decoder = nn.Linear(latent_dim + n_classes, 2, bias=False)
    rows = torch.arange(1.0, latent_dim + n_classes + 1)
    decoder.weight.data = torch.stack([rows, 10 * rows])
    encoder = mlp((2,), latent_dim)[0]
    return VAE(encoder, decoder, Gaussian(latent_dim), Normal(0.1), n_classes=n_classes)


def test_one_latent_moves_and_the_others_stay():
    z = torch.tensor([0.5, -1.0, 2.0])
    x = traversal(linear(), z, [2, 0], torch.tensor([-3.0, 0.0, 3.0, 4.0]))
    assert x.shape == (2, 4, 2) and not x.requires_grad
    # z . (1, 2, 3): moving z2 keeps .5 - 2, moving z0 keeps -2 + 6
    first = torch.tensor([[-10.5, -1.5, 7.5, 10.5], [1.0, 4.0, 7.0, 8.0]])
    torch.testing.assert_close(x, torch.stack([first, 10 * first], -1))
    assert z.tolist() == [0.5, -1.0, 2.0]


def test_each_row_can_have_its_own_values():
    values = torch.tensor([[1.0, 2.0], [30.0, 40.0]])
    x = traversal(linear(), torch.zeros(3), [0, 1], values)
    torch.testing.assert_close(x[..., 0], torch.tensor([[1.0, 2.0], [60.0, 80.0]]))


@pytest.mark.parametrize("label", [1, torch.tensor(1), torch.tensor([1])])
def test_the_class_is_held(label):
    vae = linear(latent_dim=2, n_classes=3)
    x = traversal(vae, torch.zeros(2), [0], torch.tensor([0.0, 5.0]), label)
    torch.testing.assert_close(x[0, :, 0], torch.tensor([4.0, 9.0]))  # class 1 adds 2 + 1 + 1


def test_manifold_is_the_grid_row_by_row():
    x = manifold(linear(2), torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 10.0]))
    torch.testing.assert_close(x[..., 0], torch.tensor([[0.0, 1.0, 2.0], [20.0, 21.0, 22.0]]))


def test_means_of_images_in_evaluation_mode_and_in_batches():
    encoder, decoder = mlp((1, 4, 4), 2)
    noisy = nn.Sequential(decoder, nn.Dropout(0.5))
    vae = VAE(encoder, noisy, Gaussian(2), Bernoulli())
    codes = torch.randn(3, 401, 2)  # 1,203 rows: three batches
    x = decode(vae, codes)
    assert x.shape == (3, 401, 1, 4, 4) and vae.training
    with torch.no_grad():
        torch.testing.assert_close(x[2, 400], decoder(codes[2, 400:]).sigmoid()[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(1, 3), [0], torch.zeros(2)), r"z must be one code.*got shape \(1, 3\)"),
        ((torch.zeros(3), [3], torch.zeros(2)), r"latents must be numbers from 0 to 2; got \[3\]"),
        ((torch.zeros(3), [], torch.zeros(2)), "latents must be numbers from 0 to 2"),
        (
            (torch.zeros(3), [0, 1], torch.zeros(3, 2)),
            r"values must have shape \(columns,\) or \(2",
        ),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match="traversal: " + message):
        traversal(linear(), *arguments)


def test_prior_range_holds_98_percent_of_each_latent():
    vae = linear()
    before = torch.get_rng_state()
    low, high = prior_range(vae)
    assert torch.equal(torch.get_rng_state(), before)
    # A quantile's standard error is sqrt(p (1 - p) / n) / density = .037 here.
    torch.testing.assert_close(-low, torch.full((3,), 2.326), atol=0.15, rtol=0)
    torch.testing.assert_close(high, torch.full((3,), 2.326), atol=0.15, rtol=0)
    vae.prior = Mixture(3)  # at +-e_1, +-e_2, standard deviation .17: nothing but 0 in latent 2
    low, high = prior_range(vae)
    assert high[0] > 1 > 0.5 > high[2] > 0 and low[1] < -1


def test_latents_are_ordered_by_kl():
    order, texts, how = latent_order({"latents": 3, "kl_per_latent": [0.5, 2.14, 0.001]})
    assert (order, how) == ([1, 0, 2], "ordered by KL")
    assert texts == ["z1  2.1 nats", "z0  0.5 nats", "z2  0.00 nats"]
    metrics = {"kl_per_latent": [0.5, 2.14, 9.0], "active_latents": [0, 1]}  # as evaluate counts
    kept, texts, _ = latent_order(metrics, active=True)
    assert (kept, texts) == ([1, 0], ["z1  2.1 nats", "z0  0.5 nats"])
    assert latent_order(metrics)[0] == [2, 1, 0]


def test_latents_are_ordered_by_signal_where_the_kl_does_not_split():
    metrics = {"latents": 2, "kl_per_latent": None, "signal_per_latent": [0.002, 62.93]}
    order, texts, how = latent_order(metrics)
    assert (order, texts) == ([1, 0], ["z1  signal 62.9", "z0  signal 0.002"]) and "Var" in how
    assert latent_order(metrics | {"active_latents": [0]}, active=True)[0] == [0]


def test_latents_without_measures_keep_their_order():
    assert latent_order({"latents": 2}) == ([0, 1], ["z0", "z1"], "in their own order")
    with pytest.raises(ValueError, match="Measure the run first: pyro-bvae evaluate RUN"):
        latent_order({"latents": 2, "kl_per_latent": [1.0, 0.0]}, active=True)


def test_no_active_latent_is_said_so():
    with pytest.raises(ValueError, match=r"active latents must be 1 or more; got 0 of 2"):
        latent_order({"kl_per_latent": [0.0012, 0.0], "active_latents": []}, active=True)
