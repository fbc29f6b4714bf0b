"""What the parts of a model return: checked, in one sentence each, and as Pyro's distributions."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.util import is_validation_enabled
from pyro.params import param_with_module_name
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn

from .priors.wrapping import as_pyro


def posterior(out: Any, rows: int) -> TorchDistributionMixin:
    """What an encoder returned as q(z|x), batch_shape ``(rows,)``, event_shape ``(latent_dim,)``."""
    if isinstance(out, torch.distributions.Distribution):
        q_z = as_pyro(out, "VAE: the encoder's posterior")
        if q_z.batch_shape != (rows,) or len(q_z.event_shape) != 1:
            raise ValueError(
                f"VAE: the encoder's posterior must have batch_shape ({rows},) and event_shape "
                f"(latent_dim,); got {tuple(q_z.batch_shape)} and {tuple(q_z.event_shape)}. "
                "Use .to_event(1) for independent latents."
            )
        return q_z
    pair = isinstance(out, (tuple, list)) and len(out) == 2
    if not (pair and all(isinstance(part, Tensor) for part in out)):
        raise TypeError(
            f"VAE: the encoder must return (loc, scale), two tensors, or a distribution; got {kind(out)}. "
            "Return the mean and the standard deviation of q(z|x)."
        )
    loc, scale = out
    if loc.dim() != 2 or loc.shape[0] != rows or scale.shape != loc.shape:
        raise ValueError(
            f"VAE: the encoder's loc and scale must both have shape ({rows}, latent_dim); got "
            f"{tuple(loc.shape)} and {tuple(scale.shape)}. Keep the batch first and flatten the rest."
        )
    try:
        return dist.Normal(loc, scale).to_event(1)
    except ValueError as error:  # torch's, where values are validated
        finite = bool(torch.isfinite(loc).all() and torch.isfinite(scale).all())
        got = f"a scale of {scale.min():g}" if finite else "NaN or infinity"
        raise ValueError(
            f"VAE: the encoder's loc must be finite and its scale finite and > 0; got {got}. "
            "Of a log variance return (0.5 * log_var).exp(); else look at x and at the weights."
        ) from error


def fitting(p_x: TorchDistributionMixin, x: Tensor) -> TorchDistributionMixin:
    """``p_x``, which must be over rows shaped like x: broadcasting would pair every row with every other."""
    if p_x.event_shape != x.shape[1:] or p_x.batch_shape[-1:] != x.shape[:1]:
        raise ValueError(
            f"VAE: the decoder must return parameters shaped like x, {tuple(x.shape)}; got "
            f"{tuple(p_x.batch_shape[-1:] + p_x.event_shape)}. Reshape its output, or x."
        )
    return p_x


def check_store(name: str, part: nn.Module) -> None:
    """Warn in an SVI step where Pyro's parameter store holds other tensors than the module's own."""
    # SVI collects parameters from a trace of this kind; without one nothing is trained.
    tracing = any(getattr(handler, "param_only", False) for handler in _PYRO_STACK)
    if not (tracing and is_validation_enabled()):
        return
    store = pyro.get_param_store()
    for key, parameter in part.named_parameters():
        held = store._params.get(param_with_module_name(name, key))
        if held is not None and held is not parameter:
            warnings.warn(
                f"VAE: Pyro's parameter store must hold this model's own {name}.{key}; it holds another "
                "tensor, so Pyro's SVI trains that one and this model stays as it is. Call "
                "pyro.clear_param_store() before training another model, or use pyro_bvae.fit.",
                UserWarning,
                stacklevel=2,
            )
            return


def kind(out: Any) -> str:
    """What a network returned, in few words."""
    if isinstance(out, (tuple, list)):
        return (
            f"{type(out).__name__} of {', '.join(type(part).__name__ for part in out) or 'nothing'}"
        )
    return (
        f"one tensor of shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
    )
