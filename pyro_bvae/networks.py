"""Encoder and decoder pairs.

``NETWORKS[name](x_shape, latent_dim, extra=0, scale=False) -> (encoder, decoder)``: the encoder maps
``x (batch, *x_shape)`` to ``(loc, scale)``, each ``(batch, latent_dim)``; the decoder maps ``(batch,
latent_dim + extra)`` (``extra`` one-hot label entries) to the likelihood's parameters shaped like x,
or to ``(loc, scale)`` when ``scale``. A function of this signature is a network of one's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

Network = Callable[..., tuple[nn.Module, nn.Module]]
_MIN_SCALE = 1e-6


class Encoder(nn.Module):
    """body(x) -> h, then loc(h) and softplus(raw_scale(h)): a diagonal Normal's parameters."""

    def __init__(self, body: nn.Module, loc: nn.Module, raw_scale: nn.Module) -> None:
        super().__init__()
        self.body, self.loc, self.raw_scale = body, loc, raw_scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.loc(h).flatten(1), F.softplus(self.raw_scale(h)).flatten(1) + _MIN_SCALE


class Decoder(nn.Module):
    """body(z) shaped as ``x_shape``, or with ``scale`` twice the channels: loc and softplus(scale)."""

    def __init__(self, body: nn.Module, x_shape: Sequence[int], scale: bool) -> None:
        super().__init__()
        self.body, self.x_shape, self.scale = body, tuple(x_shape), scale

    def forward(self, z: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        out = self.body(z)  # in what follows len(z) would fix the batch size of an exported graph
        if not self.scale:
            return out.reshape(z.shape[0], *self.x_shape)
        loc, raw = out.reshape(z.shape[0], 2, *self.x_shape).unbind(1)
        return loc, F.softplus(raw)


def mlp(
    x_shape: Sequence[int], latent_dim: int, extra: int = 0, scale: bool = False, hidden: int = 100
) -> tuple[nn.Module, nn.Module]:
    """One hidden layer of 100 ReLU units on either side, for any x (spirals: Mathieu 2019)."""
    size = math.prod(x_shape)
    body = nn.Sequential(nn.Flatten(), nn.Linear(size, hidden), nn.ReLU())
    encoder = Encoder(body, nn.Linear(hidden, latent_dim), nn.Linear(hidden, latent_dim))
    decoder = nn.Sequential(
        nn.Linear(latent_dim + extra, hidden),
        nn.ReLU(),
        nn.Linear(hidden, size * (1 + scale)),
    )
    return encoder, Decoder(decoder, x_shape, scale)


def dcgan32(
    x_shape: Sequence[int], latent_dim: int, extra: int = 0, scale: bool = False
) -> tuple[nn.Module, nn.Module]:
    """The DCGAN-like network for 32x32 images of Mathieu 2019's Fashion-MNIST experiment."""
    channels = _image_channels("dcgan32", x_shape, (32,))
    encoder = Encoder(
        nn.Sequential(
            nn.Conv2d(channels, 32, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, 4, 2, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, 128, 4, 2, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.LeakyReLU(0.2),
        ),
        nn.Conv2d(128, latent_dim, 4),
        nn.Conv2d(128, latent_dim, 4),
    )
    body = nn.Sequential(
        nn.Unflatten(1, (latent_dim + extra, 1, 1)),
        nn.ConvTranspose2d(latent_dim + extra, 128, 4, 1, 0, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.ConvTranspose2d(32, channels * (1 + scale), 4, 2, 1),
    )
    for module in (*encoder.modules(), *body.modules()):
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
    return encoder, Decoder(body, x_shape, scale)


def burgess(
    x_shape: Sequence[int], latent_dim: int, extra: int = 0, scale: bool = False
) -> tuple[nn.Module, nn.Module]:
    """Four convolutions of 32 channels and two layers of 256 (Burgess 2018, arXiv 1804.03599)."""
    channels = _image_channels("burgess", x_shape, (32, 64))
    return _conv(x_shape, latent_dim, extra, scale, (channels, 32, 32, 32, 32), (256, 256))


def higgins64(
    x_shape: Sequence[int], latent_dim: int, extra: int = 0, scale: bool = False
) -> tuple[nn.Module, nn.Module]:
    """The dSprites network of Mathieu 2019: 32-32-64-64 channels and one layer of 128."""
    channels = _image_channels("higgins64", x_shape, (64,))
    return _conv(x_shape, latent_dim, extra, scale, (channels, 32, 32, 64, 64), (128,))


def conv_bn(
    x_shape: Sequence[int], latent_dim: int, extra: int = 0, scale: bool = False
) -> tuple[nn.Module, nn.Module]:
    """Four convolutions, batch normalisation and ReLU after each, heads straight on them.

    The network of Nguyen & Qiu's report on MNIST and dSprites; they give no channels: 32-32-64-64 is
    ours.
    """
    channels = _image_channels("conv-bn", x_shape, (32, 64))
    return _conv(x_shape, latent_dim, extra, scale, (channels, 32, 32, 64, 64), (), norm=True)


def _image_channels(name: str, x_shape: Sequence[int], sizes: Sequence[int]) -> int:
    if len(x_shape) != 3 or x_shape[1] != x_shape[2] or x_shape[1] not in sizes:
        wanted = " or ".join(f"{size}x{size}" for size in sizes)
        raise ValueError(
            f"{name}: images must be {wanted}; got x of shape {tuple(x_shape)}. "
            f"Pass --image-size {sizes[0]}, or --network mlp, which takes any shape."
        )
    return int(x_shape[0])


def _conv(
    x_shape: Sequence[int],
    latent_dim: int,
    extra: int,
    scale: bool,
    channels: Sequence[int],
    hidden: Sequence[int],
    norm: bool = False,
) -> tuple[nn.Module, nn.Module]:
    """Convolutions k4 s2 p1 through ``channels``, linear layers ``hidden``, heads; and the mirror."""
    side = x_shape[1] >> (len(channels) - 1)
    flat = channels[-1] * side * side
    body: list[nn.Module] = []
    for a, b in zip(channels, channels[1:], strict=False):
        body += [nn.Conv2d(a, b, 4, 2, 1), *([nn.BatchNorm2d(b)] if norm else []), nn.ReLU()]
    body.append(nn.Flatten())
    sizes = (flat, *hidden)
    for a, b in zip(sizes, sizes[1:], strict=False):
        body += [nn.Linear(a, b), nn.ReLU()]
    head = sizes[-1]
    encoder = Encoder(
        nn.Sequential(*body), nn.Linear(head, latent_dim), nn.Linear(head, latent_dim)
    )
    mirror: list[nn.Module] = []
    sizes = (latent_dim + extra, *reversed(sizes))
    for a, b in zip(sizes, sizes[1:], strict=False):
        mirror += [nn.Linear(a, b), nn.ReLU()]
    mirror.append(nn.Unflatten(1, (channels[-1], side, side)))
    up = (*reversed(channels[1:]), channels[0] * (1 + scale))
    for i, (a, b) in enumerate(zip(up, up[1:], strict=False)):
        mirror.append(nn.ConvTranspose2d(a, b, 4, 2, 1))
        if i < len(up) - 2:
            mirror += [*([nn.BatchNorm2d(b)] if norm else []), nn.ReLU()]
    return encoder, Decoder(nn.Sequential(*mirror), x_shape, scale)


NETWORKS: dict[str, Network] = {
    "mlp": mlp,
    "dcgan32": dcgan32,
    "conv-bn": conv_bn,
    "burgess": burgess,
    "higgins64": higgins64,
}
