"""Priors that are trained with the model: pseudo-inputs seen through the encoder, and a flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from .arguments import brief, whole
from .normal_mixture import DiagNormalMixture, NormalMixture

_MOST_NUMBERS = 1 << 28


class VampPrior(nn.Module):
    """(1/K) sum_k q(z|u_k): a mixture of the encoder's own posteriors at K learned pseudo-inputs.

    The encoder is bound by ``VAE`` and used, not owned: its weights appear once in the state dict. It
    runs in evaluation mode here, so that pseudo-inputs do not enter BatchNorm's statistics.

    Args:
        latent_dim: D.
        n_components: K.
        x_shape: shape of one x.
        x: training data in memory ``(n, *x_shape)``: the pseudo-inputs start at K random rows and stay
            inside its range; without it they start uniform in [0, 1].

    References: Tomczak & Welling 2018, https://arxiv.org/abs/1705.07120
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        latent_dim: int,
        n_components: int = 100,
        x_shape: Sequence[int] = (2,),
        x: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.latent_dim = whole(self, "latent_dim", latent_dim)
        whole(self, "n_components", n_components)
        dtype = torch.get_default_dtype()
        if x is not None and not isinstance(x, np.ndarray):
            raise TypeError(
                f"VampPrior: x must be an array in memory; got {type(x).__name__}. Pass a part of it."
            )
        if x is None:
            _check_shape(x_shape, n_components)
            start, low, high = torch.rand(n_components, *x_shape), 0.0, 1.0
        else:
            rows = _distinct(len(x), n_components)
            start = torch.as_tensor(np.asarray(x[rows])).to(dtype)
            low, high = float(np.min(x)), float(np.max(x))
            if x.dtype == np.uint8:
                start, low, high = start / 255, 0.0, 1.0
        self.register_buffer("low", torch.tensor(low, dtype=dtype))
        self.register_buffer("high", torch.tensor(high, dtype=dtype))
        unit = ((start - low) / ((high - low) or 1.0)).clamp(0.01, 0.99)  # constant data: no range
        self.raw = nn.Parameter(torch.logit(unit))
        self._encoder: list[nn.Module] = []  # a list: not a submodule, so not owned

    @property
    def n_components(self) -> int:
        return len(self.raw)

    def bind(self, encoder: nn.Module) -> None:
        """Use ``encoder`` for the components; ``VAE`` calls this."""
        self._encoder = [encoder]

    def pseudo_inputs(self) -> Tensor:
        """``(K, *x_shape)``, inside the data's range."""
        return self.low + (self.high - self.low) * torch.sigmoid(self.raw)

    def _components(self) -> tuple[Tensor, Tensor]:
        if not self._encoder:
            raise ValueError(
                "VampPrior: an encoder must be bound before use; got none. "
                "Pass the prior to VAE(...), or call prior.bind(encoder)."
            )
        encoder = self._encoder[0]
        training = encoder.training
        encoder.eval()
        try:
            out = encoder(self.pseudo_inputs())
        except RuntimeError as error:
            raise ValueError(
                f"VampPrior: the encoder must take pseudo-inputs of shape {tuple(self.raw.shape[1:])}; "
                f"it fails with: {str(error).splitlines()[0]}. Give x_shape, and leave out encode_labels."
            ) from error
        finally:
            encoder.train(training)
        if not isinstance(out, tuple):
            raise TypeError(
                f"VampPrior: the encoder must return (loc, scale); got {type(out).__name__}. "
                "Use another prior with this encoder."
            )
        return out

    def forward(self) -> TorchDistributionMixin:
        loc, scale = self._components()
        logits = loc.new_zeros(len(loc))
        if self.latent_dim == 1:
            log_weights = logits.log_softmax(0).unsqueeze(0)
            return NormalMixture(log_weights, loc.T, scale.T).to_event(1)
        return DiagNormalMixture(loc, scale, logits)

    def assign(self, z: Tensor) -> Tensor:
        """Index of the most responsible component for each ``z (n, D)``: int64 ``(n,)``."""
        components = dist.Normal(*self._components()).to_event(1)
        return components.log_prob(z.unsqueeze(1)).argmax(1)


def _check_shape(x_shape: Sequence[int], n_components: int) -> None:
    """Refuse a shape of no x, or one that would fill the memory with pseudo-inputs."""
    sizes = (
        isinstance(x_shape, (tuple, list))
        and x_shape
        and all(isinstance(n, int) and n > 0 for n in x_shape)
    )
    if not (sizes and math.prod(x_shape) * n_components <= _MOST_NUMBERS):
        raise ValueError(
            f"VampPrior: x_shape must be the sizes of one x, {_MOST_NUMBERS} numbers at most in all "
            f"{n_components} components; got {brief(x_shape)}."
        )


def _distinct(n: int, k: int) -> np.ndarray:
    """``k`` sorted rows of ``n``, each once before any comes twice: equal pseudo-inputs never part."""
    rounds = [torch.randperm(n) for _ in range(-(-k // n))]
    return torch.cat(rounds)[:k].sort().values.numpy()


class Flow(nn.Module):
    """N(0, I) through ``n_transforms`` learned affine couplings, D >= 2.

    Couplings are cheap in both directions: sampling for D(q(z), p(z)) and log p(z) for the KL, which
    is by Monte Carlo.

    Args:
        latent_dim: D >= 2.
        n_transforms: how many couplings.
        hidden: width of each coupling's network.

    References: Dinh 2017, https://arxiv.org/abs/1605.08803
    """

    scale: Tensor

    def __init__(self, latent_dim: int, n_transforms: int = 4, hidden: int = 64) -> None:
        super().__init__()
        self.latent_dim = whole(self, "latent_dim", latent_dim)
        whole(self, "n_transforms", n_transforms)
        whole(self, "hidden", hidden)
        if latent_dim == 1:
            raise ValueError(
                "Flow: latent_dim must be at least 2, for a coupling to have two sides; got 1. "
                "Use Mixture(1, learned=True)."
            )
        self.steps = nn.ModuleList(
            transforms.affine_coupling(latent_dim, [hidden, hidden]) for _ in range(n_transforms)
        )
        self.register_buffer("scale", torch.ones(latent_dim))

    def forward(self) -> TorchDistributionMixin:
        order = torch.arange(self.latent_dim - 1, -1, -1, device=self.scale.device)
        chain = [part for step in self.steps for part in (step, transforms.Permute(order))]
        base = dist.Normal(torch.zeros_like(self.scale), self.scale).to_event(1)
        p_z = dist.TransformedDistribution(base, chain)
        p_z.clear_cache()  # a transform remembers its last x and y, whose weights have moved since
        return p_z

    def __getstate__(self) -> dict[str, Any]:
        for step in self.steps:
            # Pyro's caches: parts of the last graph, which cannot be copied.
            step.__dict__.update(_cached_x_y=(None, None), _cached_log_scale=None)
        return self.__dict__
