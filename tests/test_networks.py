"""Encoder and decoder pairs: their shapes, and layer by layer the published tables."""

import math

import pytest
import torch
from torch import nn

from pyro_bvae.networks import NETWORKS

SIZES = {"mlp": 8, "dcgan32": 32, "conv-bn": 32, "burgess": 32, "higgins64": 64}


def test_every_network_has_a_size_here():
    assert SIZES.keys() == NETWORKS.keys()


@pytest.mark.parametrize("latent_dim, extra, scale", [(1, 0, False), (3, 0, True), (2, 10, True)])
@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_and_a_gradient_for_every_parameter(name, latent_dim, extra, scale):
    x_shape = (3, SIZES[name], SIZES[name])
    encoder, decoder = NETWORKS[name](x_shape, latent_dim, extra=extra, scale=scale)
    loc, spread = encoder(torch.rand(2, *x_shape))
    assert loc.shape == spread.shape == (2, latent_dim) and (spread > 0).all()
    out = decoder(torch.cat([loc + spread, torch.ones(2, extra)], 1))
    parts = out if scale else (out,)
    assert isinstance(out, tuple) == scale
    assert all(part.shape == (2, *x_shape) for part in parts)
    if scale:
        assert (parts[1] >= 0).all()
    sum((part * torch.randn_like(part)).sum() for part in parts).backward()
    for module in (encoder, decoder):
        for parameter_name, parameter in module.named_parameters():
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.abs().sum() > 0 or _before_norm(module, parameter_name)


def _before_norm(module, parameter_name):
    """A bias under batch normalisation is subtracted again; its gradient is rounding, or 0."""
    return parameter_name.endswith("bias") and any(
        isinstance(m, nn.BatchNorm2d) for m in module.modules()
    )


@pytest.mark.parametrize("name", ["burgess", "conv-bn"])
def test_the_second_size(name):
    encoder, decoder = NETWORKS[name]((1, 64, 64), 4)
    assert encoder(torch.rand(2, 1, 64, 64))[0].shape == (2, 4)
    assert decoder(torch.rand(2, 4)).shape == (2, 1, 64, 64)


def test_mlp_takes_any_shape():
    encoder, decoder = NETWORKS["mlp"]((7,), 2)
    assert encoder(torch.rand(5, 7))[0].shape == (5, 2)
    assert decoder(torch.rand(5, 2)).shape == (5, 7)


def outline(module):
    """Layers in the order they run: conv, up and linear with their sizes, and what follows them."""
    lines = []
    for m in module.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            kind = "conv" if isinstance(m, nn.Conv2d) else "up"
            bias = "" if m.bias is not None else " nobias"
            geometry = f"k{m.kernel_size[0]}s{m.stride[0]}p{m.padding[0]}"
            lines.append(f"{kind} {m.in_channels}-{m.out_channels} {geometry}{bias}")
        elif isinstance(m, nn.Linear):
            lines.append(f"linear {m.in_features}-{m.out_features}")
        elif isinstance(m, nn.BatchNorm2d):
            lines.append(f"norm {m.num_features}")
        elif isinstance(m, (nn.ReLU, nn.LeakyReLU)):
            lines.append(f"leaky {m.negative_slope}" if isinstance(m, nn.LeakyReLU) else "relu")
        elif not list(m.children()) and not isinstance(m, (nn.Flatten, nn.Unflatten)):
            lines.append(type(m).__name__)
    return lines


def text(lines):
    return [line.strip() for line in lines.split(",")]


# The tables of Mathieu 2019 (mlp, dcgan32, higgins64), Burgess 2018 and, with our channels, Nguyen & Qiu.
# Heads come last, mean before scale; no decoder ends in an activation.
TABLES = {
    "mlp": (
        (2,),
        "linear 2-100, relu, linear 100-10, linear 100-10",
        "linear 10-100, relu, linear 100-2",
    ),
    "dcgan32": (
        (1, 32, 32),
        "conv 1-32 k4s2p1 nobias, leaky 0.2, conv 32-64 k4s2p1 nobias, norm 64, leaky 0.2, "
        "conv 64-128 k4s2p1 nobias, norm 128, leaky 0.2, conv 128-10 k4s1p0, conv 128-10 k4s1p0",
        "up 10-128 k4s1p0 nobias, norm 128, relu, up 128-64 k4s2p1 nobias, norm 64, relu, "
        "up 64-32 k4s2p1 nobias, norm 32, relu, up 32-1 k4s2p1",
    ),
    "burgess": (
        (1, 64, 64),
        "conv 1-32 k4s2p1, relu, conv 32-32 k4s2p1, relu, conv 32-32 k4s2p1, relu, "
        "conv 32-32 k4s2p1, relu, linear 512-256, relu, linear 256-256, relu, "
        "linear 256-10, linear 256-10",
        "linear 10-256, relu, linear 256-256, relu, linear 256-512, relu, up 32-32 k4s2p1, relu, "
        "up 32-32 k4s2p1, relu, up 32-32 k4s2p1, relu, up 32-1 k4s2p1",
    ),
    "higgins64": (
        (1, 64, 64),
        "conv 1-32 k4s2p1, relu, conv 32-32 k4s2p1, relu, conv 32-64 k4s2p1, relu, "
        "conv 64-64 k4s2p1, relu, linear 1024-128, relu, linear 128-10, linear 128-10",
        "linear 10-128, relu, linear 128-1024, relu, up 64-64 k4s2p1, relu, up 64-32 k4s2p1, relu, "
        "up 32-32 k4s2p1, relu, up 32-1 k4s2p1",
    ),
    "conv-bn": (
        (1, 32, 32),
        "conv 1-32 k4s2p1, norm 32, relu, conv 32-32 k4s2p1, norm 32, relu, "
        "conv 32-64 k4s2p1, norm 64, relu, conv 64-64 k4s2p1, norm 64, relu, "
        "linear 256-10, linear 256-10",
        "linear 10-256, relu, up 64-64 k4s2p1, norm 64, relu, up 64-32 k4s2p1, norm 32, relu, "
        "up 32-32 k4s2p1, norm 32, relu, up 32-1 k4s2p1",
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_those_of_the_table(name):
    x_shape, encoder_table, decoder_table = TABLES[name]
    encoder, decoder = NETWORKS[name](x_shape, 10)
    assert outline(encoder) == text(encoder_table)
    assert outline(decoder) == text(decoder_table)


def test_dcgan_weights_start_at_a_fiftieth():
    for module in NETWORKS["dcgan32"]((1, 32, 32), 50):
        for m in module.modules():
            if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
                n = m.weight.numel()
                # Standard errors of the mean and standard deviation of n draws of N(0, .02^2).
                assert abs(m.weight.mean().item()) < 4 * 0.02 / math.sqrt(n)
                assert abs(m.weight.std().item() - 0.02) < 4 * 0.02 / math.sqrt(2 * n)


@pytest.mark.parametrize(
    "name, x_shape, wanted",
    [
        ("dcgan32", (1, 28, 28), "32x32"),
        ("burgess", (1, 28, 28), "32x32 or 64x64"),
        ("higgins64", (1, 32, 32), "64x64"),
        ("conv-bn", (1, 32, 64), "32x32 or 64x64"),
        ("conv-bn", (2,), "32x32 or 64x64"),
    ],
)
def test_wrong_sizes_are_refused_in_one_sentence(name, x_shape, wanted):
    sentence = rf"{name}: images must be {wanted}; got x of shape .*Pass --image-size {wanted[:2]}"
    with pytest.raises(ValueError, match=sentence):
        NETWORKS[name](x_shape, 2)
