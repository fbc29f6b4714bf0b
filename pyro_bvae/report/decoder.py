"""A decoder as a list of operations and 16-bit weights, which the page runs by itself."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..likelihoods import SCALE_FLOOR, Bernoulli, ContinuousBernoulli, Laplace, Normal
from ..networks import Decoder
from ..vae import VAE, vae_device

MAX_PARAMETERS = 2_000_000
MAX_MULTIPLICATIONS = 50_000_000
"""Of one picture: about a fifth of a second in a browser."""
TOLERANCE = 1e-2
"""Largest departure of the page's mean of p(x|z) from torch's, relative to values of size 1."""

Array = NDArray[Any]
_ACTIVATIONS: dict[type[nn.Module], Callable[[Any], dict[str, Any]]] = {
    nn.ReLU: lambda m: {"op": "leaky_relu", "slope": 0.0},
    nn.LeakyReLU: lambda m: {"op": "leaky_relu", "slope": m.negative_slope},
    nn.ELU: lambda m: {"op": "elu", "alpha": m.alpha},
    nn.Sigmoid: lambda m: {"op": "sigmoid"},
    nn.Tanh: lambda m: {"op": "tanh"},
    nn.Softplus: lambda m: {"op": "softplus", "beta": m.beta},
}
_MEANS = {
    Bernoulli: "sigmoid",
    ContinuousBernoulli: "continuous_bernoulli",
    Normal: "identity",
    Laplace: "identity",
}


class Unsupported(ValueError):
    """Why a decoder cannot run in the page, as the end of a sentence that begins with "since"."""


class Exported(NamedTuple):
    """What the page needs to compute p(x|z).

    ``ops`` are applied in order to z, a vector, with the one-hot label appended; every ``linear``,
    ``conv``, ``conv_transpose`` and ``affine`` reads its weights, then its biases, off ``weights``.
    ``head`` turns their output into the mean and the standard deviation of p(x|z).
    """

    ops: list[dict[str, Any]]
    head: dict[str, Any]
    weights: Array  # (n,) float16


class _Layer(NamedTuple):
    op: dict[str, Any]
    weight: Array  # float64; empty where the operation has none
    bias: Array


def live(vae: VAE) -> bool:
    """Whether the decoder can run in the page; cheap, since nothing is decoded for it."""
    try:
        export(vae)
    except Unsupported:
        return False
    return True


def export(vae: VAE) -> Exported:
    """The decoder in evaluation mode, batch normalisation folded into its neighbours.

    Raises:
        Unsupported: an unknown layer or likelihood, more than ``MAX_PARAMETERS`` weights or
            ``MAX_MULTIPLICATIONS``, or a weight beyond 16-bit numbers.
    """
    body, x_shape, scale = _parts(vae)
    if type(vae.likelihood) not in _MEANS:
        raise Unsupported(f"this page does not know the likelihood {type(vae.likelihood).__name__}")
    parameters = sum(p.numel() for p in vae.decoder.parameters())
    if parameters > MAX_PARAMETERS:
        raise Unsupported(
            f"the decoder has {parameters:,} weights, more than the {MAX_PARAMETERS:,} that fit this page"
        )
    shape: tuple[int, ...] = (vae.p_z().event_shape[-1] + vae.n_classes,)
    layers: list[_Layer] = []
    for module in _modules(body):
        shape = _append(layers, module, shape)
    size = math.prod(x_shape)
    if math.prod(shape) != size * (1 + scale):
        raise Unsupported(f"the decoder's body gives values of shape {shape}")
    work = sum(_multiplications(layer) for layer in layers)
    if work > MAX_MULTIPLICATIONS:
        raise Unsupported(
            f"a picture takes {work / 1e6:,.0f} million multiplications, more than this page can follow"
        )
    flat = [part.ravel() for layer in layers for part in (layer.weight, layer.bias)]
    weights = np.concatenate([*flat, np.zeros(0)])
    if not np.isfinite(weights).all() or np.abs(weights).max(initial=0) > np.finfo("f2").max:
        raise Unsupported("a weight is too large for 16 bits")
    return Exported([layer.op for layer in layers], _head(vae, size), weights.astype("<f2"))


def apply(exported: Exported, z: Tensor) -> Tensor:
    """What the page computes from ``z (n, latent_dim + n_classes)`` before ``head``: ``(n, ...)``."""
    weights, start = torch.from_numpy(exported.weights.astype(np.float32)), 0

    def take(*shape: int) -> Tensor:
        nonlocal start
        start += math.prod(shape)
        return weights[start - math.prod(shape) : start].reshape(shape)

    for op in exported.ops:
        kind, out = op["op"], op.get("out", [0])
        if "in" in op:
            z = z.reshape(len(z), *op["in"])
        if kind == "linear":
            z = F.linear(z, take(out[0], op["in"][0]), take(out[0]))
        elif kind == "affine":
            channels = (op["in"][0], *(1 for _ in op["in"][1:]))
            z = z * take(*channels) + take(*channels)
        elif kind == "conv":
            weight = take(out[0], op["in"][0], *op["kernel_size"])
            z = F.conv2d(z, weight, take(out[0]), op["stride"], op["padding"])
        elif kind == "conv_transpose":
            weight, bias = take(op["in"][0], out[0], *op["kernel_size"]), take(out[0])
            extra = op["output_padding"]
            z = F.conv_transpose2d(z, weight, bias, op["stride"], op["padding"], extra)
        elif kind == "leaky_relu":
            z = F.leaky_relu(z, op["slope"])
        elif kind == "elu":
            z = F.elu(z, op["alpha"])
        else:
            z = F.softplus(z, op["beta"]) if kind == "softplus" else getattr(torch, kind)(z)
    return z


def check(vae: VAE, exported: Exported, z: Tensor, labels: Tensor | None) -> None:
    """Compare the page's mean of p(x|z) with the model's at ``z (n, latent_dim)``.

    Raises:
        Unsupported: where 16-bit weights move it by more than ``TOLERANCE``.
    """
    _, x_shape, scale = _parts(vae)
    with torch.no_grad():
        expected = vae.p_x(z, labels).mean.cpu().float()
        given = [z] if labels is None else [z, F.one_hot(labels, vae.n_classes).to(z.dtype)]
        out = apply(exported, torch.cat(given, -1).cpu().float())
        parts = out.to(z).reshape(len(z), 1 + scale, *x_shape).unbind(1)
        parameters = (parts[0], F.softplus(parts[1])) if scale else parts[0]
        mean = vae.likelihood(parameters, len(x_shape)).mean.cpu().float()
    error = (mean - expected).abs().max()
    if not error <= TOLERANCE / 2 * max(1.0, expected.abs().max().item()):
        raise Unsupported(f"16-bit weights are too coarse for this decoder (off by {error:.2g})")


def pack(values: Array) -> str:
    """Text of float16 ``values``: all high bytes, then all low bytes, deflated, in base64.

    The high bytes of weights resemble each other and the low ones do not: apart, they pack best.
    """
    pairs = values.astype("<f2").view(np.uint8).reshape(-1, 2)
    planes = pairs[:, 1].tobytes() + pairs[:, 0].tobytes()
    return base64.b64encode(zlib.compress(planes, 6)).decode()


def _parts(vae: VAE) -> tuple[nn.Module, tuple[int, ...], bool]:
    """The decoder's layers, the shape of x, and whether they also give its scale."""
    decoder = vae.decoder
    if type(decoder) is Decoder:
        return decoder.body, decoder.x_shape, decoder.scale
    if type(decoder) is nn.Sequential:
        with torch.no_grad():
            z = next(decoder.parameters()).new_zeros(1, vae.p_z().event_shape[-1])
            labels = torch.zeros(1, dtype=torch.int64, device=z.device) if vae.n_classes else None
            return decoder, tuple(vae.p_x(z, labels).event_shape), False
    raise Unsupported(f"this page does not know the decoder {type(decoder).__name__}")


def _modules(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of nested ``nn.Sequential``; hooks could do anything to a layer, so none may be."""
    if module._forward_hooks or module._forward_pre_hooks:
        raise Unsupported(f"a layer of the decoder, {type(module).__name__}, has hooks")
    if type(module) is not nn.Sequential:
        yield module
        return
    for child in module:
        yield from _modules(child)


def _append(layers: list[_Layer], module: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Add a layer that takes one row of ``shape``; the shape of what it gives."""
    kind, none = type(module), np.zeros(0)
    if kind in (nn.Identity, nn.Dropout, nn.Dropout2d):
        return shape
    if kind in _ACTIVATIONS:
        layers.append(_Layer(_ACTIVATIONS[kind](module), none, none))
        return shape
    if kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
        return (math.prod(shape),)
    if kind is nn.Unflatten and module.dim == 1 and len(shape) == 1:
        return tuple(np.empty(shape).reshape(module.unflattened_size).shape)
    if kind in (nn.BatchNorm1d, nn.BatchNorm2d) and module.track_running_stats:
        _append_norm(layers, module, shape)
        return shape
    if kind is nn.Linear and len(shape) == 1:
        op: dict[str, Any] = {"op": "linear", "in": list(shape), "out": [module.out_features]}
    elif kind in (nn.Conv2d, nn.ConvTranspose2d) and len(shape) == 3 and _plain(module):
        op = {"op": "conv" if kind is nn.Conv2d else "conv_transpose", "in": list(shape)}
        for name in ("kernel_size", "stride", "padding", "output_padding"):
            op[name] = list(getattr(module, name))
        sides = zip(shape[1:], *(op[n] for n in list(op)[2:]), strict=True)
        op["out"] = [module.out_channels]
        for side, kernel, stride, padding, extra in sides:
            down, up = (side + 2 * padding - kernel) // stride + 1, (side - 1) * stride + kernel
            op["out"].append(down if kind is nn.Conv2d else up - 2 * padding + extra)
    else:
        raise Unsupported(f"this page does not know the layer {module}")
    bias = np.zeros(op["out"][0]) if module.bias is None else _numpy(module.bias)
    layers.append(_Layer(op, _numpy(module.weight), bias))
    return tuple(op["out"])


def _plain(module: Any) -> bool:
    """No groups, no dilation, and zeros beyond the border."""
    same = isinstance(module.padding, str) or module.padding_mode != "zeros"
    return not same and module.groups == 1 and tuple(module.dilation) == (1, 1)


def _append_norm(layers: list[_Layer], module: Any, shape: tuple[int, ...]) -> None:
    """Batch normalisation in evaluation mode, y = scale x + shift per channel."""
    scale = 1 / np.sqrt(_numpy(module.running_var) + module.eps)
    if module.affine:
        scale = scale * _numpy(module.weight)
    shift = -_numpy(module.running_mean) * scale
    if module.affine:
        shift = shift + _numpy(module.bias)
    before = layers[-1] if layers else None
    if before is None or not before.weight.size or before.op.get("out") != list(shape):
        layers.append(_Layer({"op": "affine", "in": list(shape), "out": list(shape)}, scale, shift))
        return
    rows = [1] * before.weight.ndim  # (out, in, ...), but (in, out, ...) where transposed
    rows[1 if before.op["op"] == "conv_transpose" else 0] = -1
    weight = before.weight * scale.reshape(rows)
    layers[-1] = _Layer(before.op, weight, before.bias * scale + shift)


def _multiplications(layer: _Layer) -> int:
    if not layer.weight.size:
        return 0
    places = {"conv": layer.op["out"][1:], "conv_transpose": layer.op["in"][1:]}
    return layer.weight.size * math.prod(places.get(layer.op["op"], [1]))


def _head(vae: VAE, size: int) -> dict[str, Any]:
    """How the page turns ``size`` (or twice as many) values into mean and standard deviation."""
    likelihood: Any = vae.likelihood
    head: dict[str, Any] = {"mean": _MEANS[type(likelihood)], "size": size, "sd": None}
    if isinstance(likelihood, (Normal, Laplace)):
        # A Laplace distribution's standard deviation is sqrt(2) times its scale.
        factor = math.sqrt(2) if isinstance(likelihood, Laplace) else 1.0
        if likelihood.per_pixel:
            return head | {"sd": "decoder", "floor": SCALE_FLOOR, "factor": factor}
        loc = torch.zeros(1, 1, device=vae_device(vae))
        return head | {"sd": likelihood(loc, 1).stddev.item()}
    return head


def _numpy(tensor: Tensor) -> Array:
    return tensor.detach().cpu().double().numpy()
