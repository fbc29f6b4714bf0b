"""Checks of a model and its data, once, before the first batch is trained on or measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from .datasets import Data
from .datasets.data import DataLike, as_data
from .terms import TermsELBO
from .vae import VAE, evaluating, vae_device, vae_dtype

_ROWS = 4  # that go through the model
_BLOCK = 4096  # rows whose values are looked at together


class Checked(NamedTuple):
    """Data that fit a model, and the few rows that went through it."""

    data: Data
    x: Tensor
    labels: Tensor | None


def first_batch(
    vae: VAE, data: DataLike, owner: str, transform: Callable[[Tensor], Tensor] | None = None
) -> Checked:
    """Return ``data`` as `Data`, after a few of its rows went through every part of ``vae``.

    Args:
        vae: the model.
        data: what `as_data` takes.
        owner: names the function in errors.
        transform: as in `fit`.

    Raises:
        ValueError, TypeError: one sentence: a shape, a value, a label or what a part returned is wrong.
    """
    if not isinstance(vae, VAE):
        made = "the class itself" if isinstance(vae, type) else f"a {type(vae).__name__}"
        raise TypeError(
            f"{owner}: vae must be a pyro_bvae.VAE; got {made}. Build one, as in VAE(encoder, decoder, "
            "prior, likelihood)."
        )
    data = as_data(data, owner)
    if vae.n_classes and data.labels is None:
        raise ValueError(
            f"{owner}: data must have labels for a conditional model; got none. Pass Data(x, labels=labels)."
        )
    if vae.n_classes and data.n_classes > vae.n_classes:
        raise ValueError(
            f"{owner}: labels must be below {vae.n_classes}, the model's classes; got {data.n_classes - 1}. "
            "Build VAE(..., n_classes=K) for K classes, or leave those rows out."
        )
    x, labels = _rows(vae, data, np.arange(min(len(data), _ROWS)))
    if transform is not None:
        x = _transformed(transform, x, owner)
    vae.check(x, labels)
    return Checked(data, x, labels)


def check_range(vae: VAE, data: Data) -> None:
    """All rows lie in the likelihood's support; those on disk are read for it, as an epoch reads them.

    Raises:
        ValueError: one sentence.
    """
    if data.x.dtype != np.uint8 and getattr(vae.likelihood, "support", None) is not None:
        for start in range(0, len(data), _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, len(data)))
            vae.check_x(_rows(vae, data, rows)[0])


def check_trainable(vae: VAE, objective: TermsELBO, x: Tensor, labels: Tensor | None) -> None:
    """Refuse a model without anything to train, or a loss with something that `fit` would not reach.

    It runs model and guide once, in the parameter store of the training. So the store knows the parameters
    before they are laid out channels last, of which it would make copies.

    Raises:
        ValueError: one sentence.
    """
    if any(parameter.is_inference() for parameter in vae.parameters()):
        raise ValueError(
            "fit: the model's parameters must be able to have gradients; got some that were made under "
            "torch.inference_mode. Build the model outside of it."
        )
    if not any(parameter.requires_grad for parameter in vae.parameters()):
        raise ValueError(
            "fit: the model must have a parameter with requires_grad=True; got none. "
            "Call vae.requires_grad_(True), or train nothing."
        )
    with _as_trained(vae, len(x)):
        guide = poutine.trace(vae.guide).get_trace(x, labels)
        model = poutine.trace(poutine.replay(vae.model, guide)).get_trace(x, labels)
        leaves = list(_leaves(model.log_prob_sum() - guide.log_prob_sum()))
    parts = [part for part in vars(objective).values() if isinstance(part, nn.Module)]
    leaves += [p for part in parts for p in part.parameters() if p.requires_grad]
    own = {id(parameter) for parameter in vae.parameters()}
    for leaf in leaves:
        if id(leaf) not in own:
            name = pyro.get_param_store().param_name(leaf)
            got = (
                f"a tensor of shape {tuple(leaf.shape)}" if name is None else f"pyro.param {name!r}"
            )
            raise ValueError(
                f"fit: what wants a gradient must be a parameter of the model, or fit does not train it; got "
                f"{got}. Keep modules in attributes or an nn.ModuleList, tensors in nn.Parameter, and call "
                "pyro.param in the prior, the likelihood or a network."
            )


@contextmanager
def _as_trained(vae: VAE, rows: int) -> Iterator[None]:
    """Training mode and gradients, with noise of its own; what is written to buffers is put back."""
    with evaluating(vae, seed=0), pyro.validation_enabled(False), torch.enable_grad():
        kept = [(buffer, buffer.clone()) for buffer in vae.buffers()]
        vae.train(rows > 1)  # BatchNorm cannot take one row
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in kept:
                    buffer.copy_(value)


def _leaves(value: Any) -> Iterator[Tensor]:
    """The tensors that want a gradient of ``value``."""
    nodes: list[Any] = [value.grad_fn]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        nodes += [following for following, _ in node.next_functions]


def _rows(vae: VAE, data: Data, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
    x, labels = data.tensors(rows, vae_device(vae), vae_dtype(vae))
    return x, labels if vae.n_classes else None


def _transformed(transform: Callable[[Tensor], Tensor], x: Tensor, owner: str) -> Tensor:
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        try:
            return transform(x)
        except RuntimeError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise ValueError(
                f"{owner}: transform must take x with values from {x.min():g} to {x.max():g}; it failed "
                f"({reason}). Scale x; torch.bernoulli wants [0, 1]."
            ) from error
