"""The generative model p(x, z) = p(z) p(x|z) and its guide q(z|x), as plain Pyro callables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from pyro.poutine.scale_messenger import ScaleMessenger
from torch import Tensor, nn

from .kl import check_support
from .priors.arguments import brief
from .priors.check import call_prior, prior_distribution
from .schedules import NonNegative


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


@contextmanager
def evaluating(vae: nn.Module, seed: int | None = None) -> Iterator[None]:
    """Evaluation mode, no gradients, and with ``seed`` noise of its own; all is put back afterwards."""
    training = vae.training
    device = vae_device(vae)
    devices = [device] if device.type == "cuda" else []
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
        bind = getattr(prior, "bind", None)
        if callable(bind):
            bind(encoder)

    def model(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """p(z) and p(x|z) with x observed; returns z ``(batch, latent_dim)``."""
        pyro.module("prior", self.prior)
        pyro.module("decoder", self.decoder)
        pyro.module("likelihood", self.likelihood)
        with pyro.plate("data", len(x)):
            # The prior goes along unexpanded: a plate expands it, and it cannot be shrunk back.
            p_z = self.p_z()
            with self._beta_scale():
                z = pyro.sample("z", p_z, infer=cast(Any, {"prior": p_z}))
            pyro.sample("x", self.p_x(z, labels), obs=x)
        return z

    def guide(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """q(z|x); returns z ``(batch, latent_dim)``."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            q_z = self.q_z(x, labels)
            with self._beta_scale():
                z: Tensor = pyro.sample("z", q_z, infer=cast(Any, {"posterior": q_z}))
                return z

    def _beta_scale(self) -> _Scale:
        return _Scale(self.__dict__["_beta"])

    def p_z(self) -> TorchDistributionMixin:
        """The prior, batch_shape ``()``."""
        return call_prior(self.prior)

    def q_z(self, x: Tensor, labels: Tensor | None = None) -> TorchDistributionMixin:
        """q(z|x) for ``x (batch, *x_shape)``: batch_shape ``(batch,)``, event_shape ``(latent_dim,)``."""
        out = self.encoder(self._encoder_input(x, labels))
        if isinstance(out, TorchDistributionMixin):
            return out
        if isinstance(out, torch.distributions.Distribution):
            raise TypeError(
                f"VAE: an encoder must return (loc, scale) or a distribution from pyro.distributions; "
                f"got {type(out).__module__}.{type(out).__name__}. Use Pyro's version of it."
            )
        loc, scale = out
        return dist.Normal(loc, scale).to_event(1)

    def p_x(self, z: Tensor, labels: Tensor | None = None) -> TorchDistributionMixin:
        """p(x|z) for ``z (*batch, latent_dim)``: batch_shape ``batch``."""
        lead = z.shape[:-1]
        if self._check_labels(labels) is not None:
            hot = self._one_hot(cast(Tensor, labels), z)
            z = torch.cat([z, hot.expand(*lead, self.n_classes)], -1)
        # Networks take one batch dimension; vectorised particles bring more.
        out = self.decoder(z.reshape(-1, z.shape[-1]))
        event_dim = (out[0] if isinstance(out, tuple) else out).dim() - 1
        if isinstance(out, tuple):
            out = tuple(part.reshape(*lead, *part.shape[1:]) for part in out)
        else:
            out = out.reshape(*lead, *out.shape[1:])
        return cast(TorchDistributionMixin, self.likelihood(out, event_dim))

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Posterior means: ``(batch, latent_dim)``."""
        return cast(Tensor, self.q_z(x, labels).mean)

    def reconstruct(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean of p(x|z) at the posterior mean: shaped like x."""
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
        with evaluating(self, seed=0):
            self._check_parts(x, labels)

    def _check_parts(self, x: Tensor, labels: Tensor | None) -> None:
        with _sentence(f"the encoder cannot take x of shape {tuple(x.shape[1:])}"):
            q_z = self.q_z(x, labels)
        latent_dim = q_z.event_shape[-1] if q_z.event_shape else 0
        if q_z.batch_shape != (len(x),) or len(q_z.event_shape) != 1:
            raise ValueError(
                f"VAE: the encoder's posterior must have batch_shape ({len(x)},) and event_shape "
                f"(latent_dim,); got {tuple(q_z.batch_shape)} and {tuple(q_z.event_shape)}."
            )
        try:
            q_z.mean, q_z.variance  # noqa: B018
        except NotImplementedError as error:
            raise ValueError(
                f"VAE: the encoder's posterior must have a mean and a variance; got "
                f"{type(q_z).__name__}, which computes neither. Give its class both properties."
            ) from error
        with _sentence("the prior's forward() fails"):
            p_z = prior_distribution(self.prior, latent_dim)
        check_support(q_z, p_z)
        with _sentence(f"the decoder cannot take z of {latent_dim + self.n_classes} dimensions"):
            p_x = self.p_x(q_z.sample(), labels)
        if p_x.batch_shape != (len(x),) or p_x.event_shape != x.shape[1:]:
            raise ValueError(
                f"VAE: the decoder must return parameters shaped like x, {tuple(x.shape)}; got "
                f"{tuple(p_x.batch_shape + p_x.event_shape)}."
            )

    def _encoder_input(self, x: Tensor, labels: Tensor | None) -> Tensor:
        if not self.encode_labels or self._check_labels(labels) is None:
            return x
        hot = self._one_hot(cast(Tensor, labels), x)
        planes = hot.reshape(*hot.shape, *(1 for _ in x.shape[2:]))
        return torch.cat([x, planes.expand(*hot.shape, *x.shape[2:])], 1)

    def _one_hot(self, labels: Tensor, like: Tensor) -> Tensor:
        # F.one_hot reads the largest label, for which a GPU has to be waited for
        return torch.eye(self.n_classes, dtype=like.dtype, device=like.device)[labels]

    def _check_labels(self, labels: Tensor | None) -> Tensor | None:
        if (labels is None) == (self.n_classes > 0):
            raise ValueError(
                f"VAE: labels must be given exactly where the model is conditional; got "
                f"{'none' if labels is None else 'labels'} with n_classes={self.n_classes}. "
                "Build VAE(..., n_classes=K) and pass labels=, or neither."
            )
        return labels
