"""The generative model p(x, z) = p(z) p(x|z) and its guide q(z|x), as plain Pyro callables."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.scale_messenger import ScaleMessenger
from torch import Tensor, nn

from .datasets.data import as_data, to_float
from .kl import check_support
from .parts import check_store, fitting, kind, posterior
from .priors.arguments import brief
from .priors.check import call_prior, prior_distribution
from .priors.wrapping import as_pyro
from .registered import Registered
from .schedules import NonNegative

ALONE = threading.RLock()
"""Held while Pyro runs a program: its handlers and torch's generator belong to the whole process."""


_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class _Scale(ScaleMessenger):
    """`poutine.scale` that also takes 0 and a 0-dim tensor: alpha-only objectives have beta = 0."""

    def __init__(self, scale: Tensor) -> None:
        Messenger.__init__(self)
        self.scale = scale


@contextmanager
def _sentence(what: str) -> Iterator[None]:
    """torch's RuntimeError about shapes as one sentence that says which part it came from."""
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f"VAE: {what} ({reason}). Make the parts fit each other.") from error


def vae_device(vae: nn.Module) -> torch.device:
    """Where the model's parameters are; the CPU if it has none."""
    return next((parameter.device for parameter in vae.parameters()), torch.device("cpu"))


def vae_dtype(vae: nn.Module) -> torch.dtype:
    """The floating dtype of the model's parameters, in which it reads x; float32 if it has none."""
    dtypes = (parameter.dtype for parameter in vae.parameters() if parameter.is_floating_point())
    return next(dtypes, torch.float32)


@contextmanager
def evaluating(vae: nn.Module, seed: int | None = None) -> Iterator[None]:
    """Evaluation mode, no gradients, and with ``seed`` noise of its own; all is put back afterwards.

    One thread at a time: other threads wait.
    """
    device = vae_device(vae)
    devices = [device] if device.type == "cuda" else []
    with ALONE:
        training = vae.training
        vae.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices, enabled=seed is not None):
                if seed is not None:
                    torch.manual_seed(seed)
                yield
        finally:
            vae.train(training)


class VAE(nn.Module):
    """A beta-VAE as a Pyro model and guide with sites ``"z"`` and ``"x"`` in ``plate("data")``.

    E log p(x|z) - beta KL(q(z|x) || p(z)), in nats per example, is what ``Trace_ELBO`` and
    ``TraceMeanField_ELBO`` maximise on this pair, since the latent site stands under
    ``poutine.scale(beta)`` in model and guide alike. beta = 1 is the VAE (Kingma & Welling 2014),
    beta > 1 the beta-VAE (Higgins 2017); 0 is legal and leaves overlap to the likelihood.

    Args:
        encoder: maps ``x (batch, *x_shape)`` to ``(loc, scale)``, each ``(batch, latent_dim)``,
            scale > 0, or to a Pyro distribution of its own (batch_shape ``(batch,)``).
        decoder: maps ``z (batch, latent_dim)`` to the likelihood's parameters.
        prior: a module whose ``forward()`` is p(z); see `pyro_bvae.priors`.
        likelihood: a module of `pyro_bvae.likelihoods`.
        beta: weight of the KL, >= 0; settable at any time.
        n_classes: above 0 the model is conditional: the one-hot label is appended to z at the decoder.
        encode_labels: also append the label to x as constant channels at the encoder.

    Examples:
        >>> from pyro_bvae.likelihoods import Normal
        >>> from pyro_bvae.networks import mlp
        >>> from pyro_bvae.priors import Mixture
        >>> vae = VAE(*mlp((2,), 2, scale=True), Mixture(2), Normal("decoder"), beta=0.5)
        >>> vae.encode(torch.zeros(3, 2)).shape
        torch.Size([3, 2])

    References: https://arxiv.org/abs/1312.6114, https://openreview.net/forum?id=Sy2fzU9gl
    """

    beta = NonNegative()

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: nn.Module,
        likelihood: nn.Module,
        beta: float = 1.0,
        n_classes: int = 0,
        encode_labels: bool = False,
    ) -> None:
        super().__init__()
        parts = {"encoder": encoder, "decoder": decoder, "prior": prior, "likelihood": likelihood}
        for name, part in parts.items():
            if not isinstance(part, nn.Module):
                raise TypeError(
                    f"VAE: {name} must be a module; got {brief(part)}. Make one, such as "
                    "pyro_bvae.priors.Gaussian(latent_dim=2)."
                )
        self.encoder, self.decoder = encoder, decoder
        self.prior, self.likelihood = prior, likelihood
        self.beta = beta
        self.n_classes, self.encode_labels = n_classes, encode_labels
        self.registered = Registered()
        bind = getattr(prior, "bind", None)
        if callable(bind):
            bind(encoder)

    def model(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """p(z) and p(x|z) with x observed; returns z ``(batch, latent_dim)``."""
        self._register("prior", "decoder", "likelihood")
        with pyro.plate("data", len(x)):
            # The prior goes along unexpanded: a plate expands it, and it cannot be shrunk back.
            p_z = self.p_z()
            with self._beta_scale():
                z = pyro.sample("z", p_z, infer=cast(Any, {"prior": p_z}))
            pyro.sample("x", fitting(self.p_x(z, labels), x), obs=x)
        return z

    def guide(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """q(z|x); returns z ``(batch, latent_dim)``."""
        self._register("encoder")
        with pyro.plate("data", len(x)):
            q_z = self.q_z(x, labels)
            with self._beta_scale():
                z: Tensor = pyro.sample("z", q_z, infer=cast(Any, {"posterior": q_z}))
                return z

    def _beta_scale(self) -> _Scale:
        return _Scale(self.__dict__["_beta"])

    def _register(self, *names: str) -> None:
        for name in names:
            part = getattr(self, name)
            pyro.module(name, part)
            check_store(name, part)

    def p_z(self) -> TorchDistributionMixin:
        """The prior, batch_shape ``()``."""
        with self.registered.params(self):
            return call_prior(self.prior)

    def q_z(self, x: Tensor, labels: Tensor | None = None) -> TorchDistributionMixin:
        """q(z|x) for ``x (batch, *x_shape)``: batch_shape ``(batch,)``, event_shape ``(latent_dim,)``.

        Raises:
            ValueError, TypeError: what the encoder returned is no posterior of these rows; or, while Pyro
                validates, x lies outside the likelihood's support or a label is no class.
        """
        if is_validation_enabled():
            self.check_x(x)
        with self.registered.params(self):
            out = self.encoder(self._encoder_input(x, labels))
        return posterior(out, x.shape[0])

    def p_x(self, z: Tensor, labels: Tensor | None = None) -> TorchDistributionMixin:
        """p(x|z) for ``z (*batch, latent_dim)``: batch_shape ``batch``."""
        lead = z.shape[:-1]
        if self._check_labels(labels) is not None:
            hot = self._one_hot(cast(Tensor, labels), z)
            if is_validation_enabled() and len(hot) not in (1, *lead[-1:]):
                raise ValueError(
                    f"VAE: labels must be one for each row of z, {lead[-1]}; got {len(hot)}. Pass as many."
                )
            z = torch.cat([z, hot.expand(*lead, self.n_classes)], -1)
        with self.registered.params(self):
            # Networks take one batch dimension; vectorised particles bring more.
            out = self.decoder(z.reshape(-1, z.shape[-1]))
            parts = out if isinstance(out, tuple) else (out,)
            if not (parts and all(isinstance(part, Tensor) for part in parts)):
                raise TypeError(
                    f"VAE: the decoder must return a tensor, or a tuple of tensors such as (loc, scale); got "
                    f"{kind(out)}. Return what the likelihood takes."
                )
            event_dim = parts[0].dim() - 1
            parts = tuple(part.reshape(*lead, *part.shape[1:]) for part in parts)
            parameters = parts if isinstance(out, tuple) else parts[0]
            return as_pyro(self.likelihood(parameters, event_dim), "VAE: the likelihood")

    def log_px_z(self, x: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(x|z) for ``x (batch, *x_shape)`` and ``z (*samples, batch, latent_dim)``.

        Returns:
            ``(*samples, batch)``, nats per example, higher is better.

        Raises:
            ValueError: p(x|z) is not over rows shaped like x.
        """
        return cast(Tensor, fitting(self.p_x(z, labels), x).log_prob(x))

    def encode(self, x: Any, labels: Tensor | np.ndarray | None = None) -> Tensor:
        """Posterior means ``(batch, latent_dim)`` of a tensor, an array or `Data`; uint8 is divided by 255.

        All rows at once, in the mode the model is in: `pyro_bvae.evaluation.encode_data` goes in batches.
        """
        x, labels = self._tensors(x, labels)
        with _sentence(f"the encoder cannot take x of shape {tuple(x.shape[1:])}"):
            return cast(Tensor, self.q_z(x, labels).mean)

    def reconstruct(self, x: Any, labels: Tensor | np.ndarray | None = None) -> Tensor:
        """Mean of p(x|z) at the posterior mean: shaped like x."""
        x, labels = self._tensors(x, labels)
        return cast(Tensor, self.p_x(self.encode(x, labels), labels).mean)

    def sample(
        self,
        n: int,
        source: str = "prior",
        labels: Tensor | None = None,
        x: Tensor | None = None,
    ) -> Tensor:
        """Means of p(x|z) at ``n`` draws of z: ``(n, *x_shape)``.

        Args:
            n: how many.
            source: ``"prior"``, z ~ p(z); or ``"aggregate"``, z ~ q(z): a random row of ``x`` each.
            labels: int64 ``(n,)`` where the model is conditional; under ``"aggregate"`` with an
                encoder that sees labels, ``(len(x),)``, and each draw keeps its row's label.
            x: the data behind q(z), needed by ``"aggregate"`` only.
        """
        if source == "prior":
            return cast(Tensor, self.p_x(self.p_z().sample((n,)), labels).mean)
        if source != "aggregate":
            raise ValueError(f"VAE.sample: source must be 'prior' or 'aggregate'; got {source!r}.")
        if x is None:
            raise ValueError(
                "VAE.sample: source 'aggregate' needs x, the data whose posteriors make up q(z); "
                "got None. Pass x=..., or use source='prior'."
            )
        rows = torch.randint(len(x), (n,), device=x.device)
        # Where only the decoder sees them, labels are of the draws; else q(z|x, label) is the row's.
        picked = labels[rows] if labels is not None and self.encode_labels else labels
        z = self.q_z(x[rows], picked).sample()
        return cast(Tensor, self.p_x(z, picked).mean)

    def check(self, x: Tensor, labels: Tensor | None = None) -> None:
        """Run one batch through every part and raise one sentence where shapes do not fit.

        Evaluation mode and a generator of its own: nothing is changed by it.

        Raises:
            ValueError, TypeError: naming the part, what it must return and what it returned.
        """
        with evaluating(self, seed=0), pyro.validation_enabled():
            self._check_parts(x, labels)

    def _check_parts(self, x: Tensor, labels: Tensor | None) -> None:
        with _sentence(f"the encoder cannot take x of shape {tuple(x.shape[1:])}"):
            q_z = self.q_z(x, labels)
        latent_dim = q_z.event_shape[-1]
        try:
            q_z.mean, q_z.variance  # noqa: B018
        except NotImplementedError as error:
            raise ValueError(
                f"VAE: the encoder's posterior must have a mean and a variance; got "
                f"{type(q_z).__name__}, which computes neither. Give its class both properties."
            ) from error
        with _sentence("the prior's forward() fails"), self.registered.params(self):
            p_z = prior_distribution(self.prior, latent_dim)
        check_support(q_z, p_z)
        with _sentence(f"the decoder cannot take z of {latent_dim + self.n_classes} dimensions"):
            p_x = self.p_x(q_z.sample(), labels)
        try:
            fitting(p_x, x).log_prob(x)
        except ValueError as error:
            if error.args and str(error.args[0]).startswith("VAE: "):
                raise
            raise ValueError(
                f"VAE: x must lie in the support of p(x|z), {type(p_x).__name__}; got values from "
                f"{x.min():g} to {x.max():g}. Scale x, or use another likelihood."
            ) from error

    def _tensors(self, x: Any, labels: Any) -> tuple[Tensor, Tensor | None]:
        """x and labels on the model's device, x in its dtype; uint8 becomes [0, 1]."""
        device, dtype = vae_device(self), vae_dtype(self)
        if not isinstance(x, Tensor):
            data = as_data(x if labels is None else (x, labels), "VAE.encode")
            x, own = data.tensors(np.arange(len(data)), device, dtype)
            return x, own if self.n_classes else None
        labels = None if labels is None else torch.as_tensor(labels, device=device)
        return to_float(x.to(device), dtype), labels

    def check_x(self, x: Tensor) -> None:
        """Raise ValueError where x lies outside the likelihood's support."""
        support = getattr(self.likelihood, "support", None)
        if support is not None and not support.check(x).all():
            raise ValueError(
                f"VAE: x must lie in [0, 1] for the likelihood {type(self.likelihood).__name__}; got values "
                f"from {x.min():g} to {x.max():g}. Divide by the largest value, or use "
                "pyro_bvae.likelihoods.Normal."
            )

    def _encoder_input(self, x: Tensor, labels: Tensor | None) -> Tensor:
        if not self.encode_labels or self._check_labels(labels) is None:
            return x
        hot = self._one_hot(cast(Tensor, labels), x)
        planes = hot.reshape(*hot.shape, *(1 for _ in x.shape[2:]))
        return torch.cat([x, planes.expand(*hot.shape, *x.shape[2:])], 1)

    def _one_hot(self, labels: Tensor, like: Tensor) -> Tensor:
        # F.one_hot reads the largest label, for which a GPU has to be waited for
        return torch.eye(self.n_classes, dtype=like.dtype, device=like.device)[labels.long()]

    def _check_labels(self, labels: Tensor | None) -> Tensor | None:
        if (labels is None) == (self.n_classes > 0):
            raise ValueError(
                f"VAE: labels must be given exactly where the model is conditional; got "
                f"{'none' if labels is None else 'labels'} with n_classes={self.n_classes}. "
                "Build VAE(..., n_classes=K) and pass labels=, or neither."
            )
        if labels is None:
            return None
        dtype, shape = getattr(labels, "dtype", type(labels).__name__), tuple(np.shape(labels))
        if not isinstance(labels, Tensor) or labels.dim() != 1 or dtype not in _INTEGERS:
            raise ValueError(
                f"VAE: labels must be a tensor of integers of shape (batch,); got {dtype} of shape "
                f"{shape}. Number the classes from 0; of one-hot labels take argmax(1)."
            )
        if is_validation_enabled() and len(labels):
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= self.n_classes:
                raise ValueError(
                    f"VAE: labels must be 0 to {self.n_classes - 1}, the model's classes; got "
                    f"{low if low < 0 else high}. Number the classes from 0, or build VAE(..., n_classes=K)."
                )
        return labels

    def __getstate__(self) -> dict[str, Any]:
        # Pyro leaves a weak reference at each parameter that it has seen, which cannot be pickled.
        for parameter in self.parameters():
            vars(parameter).pop("unconstrained", None)
        return self.__dict__
