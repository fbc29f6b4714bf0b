"""Priors that are a product over latent dimensions."""

from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from .arguments import SCALES, brief, floats, positive, whole
from .normal_mixture import NormalMixture

# Below, samples overflow float32; above, differences of its lgamma are noise.
_DFS = (0.5, 1000.0)


def log_parameter(module: nn.Module, name: str, value: Tensor, learned: bool) -> None:
    """Hold log ``value`` under ``name``: as a parameter when ``learned``, else as a buffer."""
    if not isinstance(learned, bool):
        raise TypeError(
            f"{type(module).__name__}: learned must be true or false; got {brief(learned)}."
        )
    if learned:
        module.register_parameter(name, nn.Parameter(value.log()))
    else:
        module.register_buffer(name, value.log())


class Gaussian(nn.Module):
    """N(0, diag(scale^2)), the isotropic N(0, I) by default.

    Args:
        latent_dim: D.
        scale: standard deviation, a number or one per dimension, ``(D,)``.
        learned: train the scales with everything else.
    """

    log_scale: Tensor

    def __init__(self, latent_dim: int, scale: float | Tensor = 1.0, learned: bool = False) -> None:
        super().__init__()
        scales = floats(self, "scale", scale)
        if scales.shape not in ((), (1,), (whole(self, "latent_dim", latent_dim),)):
            raise ValueError(
                f"Gaussian: scale must be one number, or {latent_dim}; got shape {tuple(scales.shape)}."
            )
        if not (scales >= SCALES[0]).all():
            raise ValueError(
                f"Gaussian: scale must be finite and > 0; got {brief(scales.tolist())}. "
                f"The smallest is {SCALES[0]:g}."
            )
        log_parameter(self, "log_scale", scales.expand(latent_dim).clone(), learned)

    @classmethod
    def from_pca(cls, latent_dim: int, x: np.ndarray, learned: bool = False) -> Gaussian:
        """Variances proportional to the data's leading principal variances, descending, mean 1.

        v = D * softmax(log lambda) = D * lambda / sum(lambda), lambda the top D eigenvalues of the
        covariance of the training pixels. Unequal variances break the rotation invariance of an
        isotropic prior (Mathieu 2019, section 5, https://arxiv.org/abs/1812.02833).

        Args:
            latent_dim: D.
            x: training data ``(n, *x_shape)``.
            learned: start from these variances and train them.

        Raises:
            ValueError: D exceeds the rank of the data's covariance.
        """
        if not isinstance(x, np.ndarray):
            raise TypeError(
                "Gaussian.from_pca: x must be an array in memory; got data read lazily. "
                "Load a part of it with numpy and pass that."
            )
        from sklearn.decomposition import PCA

        whole("Gaussian.from_pca", "latent_dim", latent_dim)
        flat = x.reshape(len(x), -1).astype(np.float64)
        if not np.isfinite(flat).all():
            raise ValueError(
                "Gaussian.from_pca: x must be finite; got NaN or infinity. Drop such rows."
            )
        most = min(latent_dim, *flat.shape)
        with np.errstate(invalid="ignore"):  # constant data: 0 / 0 in shares that are not used
            top = PCA(most, random_state=0).fit(flat).explained_variance_
        rank = int((top > top[0] * 1e-10).sum()) if top[0] > 0 else 0
        if latent_dim > rank:
            raise ValueError(
                f"Gaussian.from_pca: latent_dim must be at most the rank of the data's covariance, "
                f"{rank}; got {latent_dim}. Lower --latent-dim or use --prior gaussian."
            )
        return cls(
            latent_dim,
            torch.tensor(np.sqrt(latent_dim * top / top.sum())).to(torch.get_default_dtype()),
            learned,
        )

    def forward(self) -> TorchDistributionMixin:
        scale = self.log_scale.exp()
        return dist.Normal(torch.zeros_like(scale), scale).to_event(1)


class StudentT(nn.Module):
    """A product of Student-t with ``df`` degrees of freedom: no rotation but the trivial ones leaves
    it unchanged, so it fixes the axes (Mathieu 2019). KL by Monte Carlo; df -> inf gives N(0, I)."""

    log_df: Tensor
    log_scale: Tensor

    def __init__(
        self, latent_dim: int, df: float = 9.0, scale: float = 1.0, learned: bool = False
    ) -> None:
        super().__init__()
        ones = torch.ones(whole(self, "latent_dim", latent_dim))
        log_parameter(
            self,
            "log_df",
            ones * positive(self, "df", df, _DFS, " Use --prior gaussian for a larger one."),
            learned,
        )
        log_parameter(self, "log_scale", ones * positive(self, "scale", scale), learned)

    def forward(self) -> TorchDistributionMixin:
        scale = self.log_scale.exp()
        return dist.StudentT(self.log_df.exp(), torch.zeros_like(scale), scale).to_event(1)


class Laplace(nn.Module):
    """A product of Laplace(0, scale); the default scale 1/sqrt(2) has variance 1."""

    log_scale: Tensor

    def __init__(
        self, latent_dim: int, scale: float = 1 / math.sqrt(2), learned: bool = False
    ) -> None:
        super().__init__()
        ones = torch.ones(whole(self, "latent_dim", latent_dim))
        log_parameter(self, "log_scale", ones * positive(self, "scale", scale), learned)

    def forward(self) -> TorchDistributionMixin:
        scale = self.log_scale.exp()
        return dist.Laplace(torch.zeros_like(scale), scale).to_event(1)


class SpikeSlab(nn.Module):
    """Per dimension w N(0, spike_scale^2) + (1 - w) N(0, slab_scale^2): most latents near zero.

    The relaxed spike-and-slab of Mathieu 2019 (section 6.2); w = 0 is the Gaussian prior. KL by Monte
    Carlo.

    Args:
        latent_dim: D.
        spike_weight: w in [0, 1], the share of near-zero latents.
        spike_scale: standard deviation of the spike.
        slab_scale: standard deviation of the slab.
        learned: train weights and scales, one per dimension; then 0 < w < 1.
    """

    log_scales: Tensor
    weight_logit: Tensor

    def __init__(
        self,
        latent_dim: int,
        spike_weight: float = 0.8,
        spike_scale: float = 0.05,
        slab_scale: float = 1.0,
        learned: bool = False,
    ) -> None:
        super().__init__()
        whole(self, "latent_dim", latent_dim)
        scales = [
            positive(self, "spike_scale", spike_scale),
            positive(self, "slab_scale", slab_scale),
        ]
        number = isinstance(spike_weight, (int, float)) and not isinstance(spike_weight, bool)
        if not (number and 0 <= spike_weight <= 1):
            raise ValueError(
                f"SpikeSlab: spike_weight must lie in [0, 1]; got {brief(spike_weight)}."
            )
        if learned and not 0 < spike_weight < 1:
            raise ValueError(
                f"SpikeSlab: spike_weight must lie strictly between 0 and 1 to be learned; "
                f"got {spike_weight!r}."
            )
        log_parameter(self, "log_scales", torch.tensor(scales).repeat(latent_dim, 1), learned)
        logits = torch.full((latent_dim,), _logit(spike_weight))
        if learned:
            self.weight_logit = nn.Parameter(logits)
        else:
            self.register_buffer("weight_logit", logits)

    def forward(self) -> TorchDistributionMixin:
        log_weights = torch.stack(
            [F.logsigmoid(self.weight_logit), F.logsigmoid(-self.weight_logit)], -1
        )
        scales = self.log_scales.exp()
        return NormalMixture(log_weights, torch.zeros_like(scales), scales).to_event(1)


def _logit(p: float) -> float:
    if p in (0, 1):
        return math.inf if p else -math.inf
    return math.log(p) - math.log1p(-p)
