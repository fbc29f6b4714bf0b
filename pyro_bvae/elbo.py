"""The objectives: one base that computes the ELBO's terms once, and the ways to combine them.

With s the scale of the first observed site (1, or N/B under subsampling), B the batch and sums over its
examples, the losses are

    DecompositionELBO   sum_i s (-log p(x_i|z_i) + beta kl_i) + alpha s B D(q(z), p(z))
    CapacityELBO        sum_i -s log p(x_i|z_i) + gamma s B |mean_i kl_i - C|

in nats. `fit` divides them by s B, so what it logs is per example. beta is not an argument: it is the
scale handler around the latent site, in the model and the guide (see `pyro_bvae.VAE`).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple, cast

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.util import check_fully_reparametrized, is_validation_enabled, torch_item
from pyro.poutine.messenger import Messenger
from pyro.util import warn_if_nan
from torch import Tensor, nn
from torch.distributions import kl_divergence

from .divergences import Divergence
from .schedules import NonNegative

Program = Callable[..., Any]
_PARTICLES = "num_particles_vectorized"


class ElboTerms(NamedTuple):
    """The unscaled terms of an ELBO: nats per example, differentiable, averaged over particles.

    Attributes:
        log_px_z: E log p(x|z), ``(batch,)``, higher is better.
        kl: KL(q(z|x) || p(z)), summed over latent sites, ``(batch,)``: the rate.
        divergence: D(q(z), p(z)), ``()``; 0 where the objective has none.
    """

    log_px_z: Tensor
    kl: Tensor
    divergence: Tensor


class Parts(NamedTuple):
    """What one particle contributes: the terms, and the terms under their sites' scales."""

    terms: ElboTerms
    scaled_log_px_z: Tensor  # (batch,): s log p(x|z)
    scaled_kl: Tensor  # (batch,): beta s KL, each latent site under its own scale
    scale: Tensor | float  # (): s


class _ModelInfer(Messenger):
    """Remember the model's own ``infer`` of each site: `poutine.replay` puts the guide's in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: dict[str, dict[str, Any]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        self.sites[msg["name"]] = dict(msg["infer"])


class TermsELBO(TraceMeanField_ELBO):
    """-ELBO with the terms at hand; subclasses change how they are combined.

    Serves any Pyro model and guide whose latent and observed sites share one batch plate. KLs are in
    closed form where one is registered, else the one-sample estimate log q(z|x) - log p(z); all
    particles are averaged to ``(batch,)`` before they are combined.
    """

    monte_carlo_sites: tuple[str, ...] = ()
    """The sites whose KL was estimated by samples when the terms were last computed."""
    _plain: tuple[str, ...] = ("num_particles", "vectorize_particles", "max_plate_nesting")

    @property
    def structure(self) -> tuple[Hashable, ...]:
        """What of this objective's program is no tensor: `CompiledSVI` watches it."""
        # at alpha = 0 no D is computed
        return *(getattr(self, name) for name in self._plain), getattr(self, "alpha", 1) == 0

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> ElboTerms:
        """The unscaled terms for one batch: `ElboTerms`."""
        return self._collect(model, guide, args, kwargs).terms

    def loss_and_terms(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, ElboTerms]:
        """The differentiable loss ``()``, summed over the batch, and the terms it was made of."""
        parts = self._collect(model, guide, args, kwargs)
        return self._combine(parts), parts.terms

    # Pyro's three entry points are overridden together: its own sum particle by particle, and a
    # penalty such as |KL - C| must see their mean.
    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        return self.loss_and_terms(model, guide, *args, **kwargs)[0]

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        with torch.no_grad():
            loss = torch_item(self.differentiable_loss(model, guide, *args, **kwargs))
        warn_if_nan(loss, "loss")
        return cast(float, loss)

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        value = torch_item(loss)
        warn_if_nan(value, "loss")
        return cast(float, value)

    def _get_trace(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        own = _ModelInfer()
        traces = super()._get_trace(own(model), guide, args, kwargs)
        for name, infer in own.sites.items():
            if name in traces[0].nodes:
                traces[0].nodes[name]["infer"] = infer
        return traces

    def _combine(self, parts: Parts) -> Tensor:
        return (parts.scaled_kl - parts.scaled_log_px_z).sum()

    def _divergence(self, model_trace: Any, guide_trace: Any) -> Tensor | None:
        return None

    def _collect(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Parts:
        parts = [self._parts(*traces) for traces in self._get_traces(model, guide, args, kwargs)]
        if len(parts) == 1:
            return parts[0]
        flat = [(*part.terms, part.scaled_log_px_z, part.scaled_kl) for part in parts]
        mean = [torch.stack(group).mean(0) for group in zip(*flat, strict=True)]
        return Parts(ElboTerms(*mean[:3]), mean[3], mean[4], parts[0].scale)

    def _parts(self, model_trace: Any, guide_trace: Any) -> Parts:
        sites = [s for s in model_trace.nodes.values() if s["type"] == "sample"]
        observed = [site for site in sites if site["is_observed"]]
        if not observed:
            raise ValueError(
                f"{type(self).__name__}: the model must have an observed site; got none. "
                "Pass obs= to pyro.sample."
            )
        auxiliary = [
            site
            for name, site in guide_trace.nodes.items()
            if site["type"] == "sample" and name not in model_trace.nodes
        ]
        frame = self._batch_frame(sites + auxiliary)
        log_px_z, scaled_log_px_z = self._totals(
            [(site, site["unscaled_log_prob"]) for site in observed], frame
        )
        self.monte_carlo_sites = ()
        kls = list(self._kls(model_trace, guide_trace))
        for guide_site, _ in kls:
            self._check_site(guide_site, observed[0]["scale"])
        kl = scaled_kl = torch.zeros_like(log_px_z)
        if kls:
            kl, scaled_kl = self._totals(kls, frame)
        divergence = self._divergence(model_trace, guide_trace)
        if divergence is None:
            divergence = log_px_z.new_zeros(())
        scale = observed[0]["scale"]
        terms = ElboTerms(log_px_z, kl, divergence)
        mean_scale = scale.mean().to(log_px_z) if isinstance(scale, Tensor) else float(scale)
        return Parts(terms, scaled_log_px_z, scaled_kl, mean_scale)

    def _totals(self, sites: list[tuple[Any, Tensor]], frame: Any) -> tuple[Tensor, Tensor]:
        """The values of sites summed to ``(batch,)``: as they are, and under each site's scale."""
        plain, scaled = [], []
        for site, value in sites:
            plain.append(self._per_example(value, 1.0, site["mask"], frame))
            scaled.append(self._per_example(value, site["scale"], site["mask"], frame))
        return functools.reduce(operator.add, plain), functools.reduce(operator.add, scaled)

    def _check_site(self, guide_site: Any, observed_scale: Tensor | float) -> None:
        """A hook for objectives that need something of a latent site."""

    def _kls(self, model_trace: Any, guide_trace: Any) -> Iterator[tuple[Any, Tensor]]:
        """Each guide site with its unscaled KL, shaped like the site's batch."""
        for name, guide_site in guide_trace.nodes.items():
            if guide_site["type"] != "sample":
                continue
            if is_validation_enabled():
                check_fully_reparametrized(guide_site)
            log_q = guide_site["unscaled_log_prob"]
            if name not in model_trace.nodes:  # an auxiliary site of the guide
                self.monte_carlo_sites += (name,)
                yield guide_site, log_q
                continue
            model_site = model_trace.nodes[name]
            try:
                yield guide_site, kl_divergence(guide_site["fn"], model_site["fn"])
            except NotImplementedError:
                self.monte_carlo_sites += (name,)
                yield guide_site, log_q - model_site["unscaled_log_prob"]

    def _batch_frame(self, sites: list[Any]) -> Any:
        """The outermost plate that all sites share: the batch."""
        shared = [
            frame
            for frame in sites[0]["cond_indep_stack"]
            if frame.vectorized
            and frame.name != _PARTICLES
            and all(frame in site["cond_indep_stack"] for site in sites)
        ]
        if not shared:
            names = ", ".join(site["name"] for site in sites)
            raise ValueError(
                f"{type(self).__name__}: all sites must share one vectorised plate over the batch; "
                f"sites {names} share none. Put them under the same pyro.plate, or use "
                "pyro.infer.TraceMeanField_ELBO for models with global latents."
            )
        return shared[0]

    def _per_example(
        self, value: Tensor, scale: Tensor | float, mask: Tensor | None, frame: Any
    ) -> Tensor:
        """``value`` scaled, summed over every plate but the batch, averaged over particles: (B,)."""
        value = scale_and_mask(value, scale=scale, mask=mask)
        particle_dim = None
        if self.vectorize_particles and self.num_particles > 1:
            particle_dim = -self.max_plate_nesting
        for dim in range(-value.dim(), 0):
            if dim == particle_dim:
                value = value.mean(dim, keepdim=True)
            elif dim != frame.dim:
                value = value.sum(dim, keepdim=True)
        return value.reshape(-1).expand(frame.size)


class DecompositionELBO(TermsELBO):
    """E log p(x|z) - beta KL(q(z|x) || p(z)) - alpha D(q(z), p(z)) (Mathieu 2019).

    beta controls how much posteriors overlap, alpha imposes the prior's structure on the aggregate
    posterior q(z). At alpha = 0 it is the beta-VAE and no prior sample is drawn; at beta = 1, alpha = 0
    it equals ``TraceMeanField_ELBO``. D = total correlation with alpha = beta_tc - 1, beta = 1 is the
    beta-TCVAE.

    Args:
        alpha: weight of D, >= 0; settable at any time.
        divergence: a function of `pyro_bvae.divergences`, or one's own.
        site: the latent site D reads, where there are several.
        prior: a module giving p(z); not needed where the model leaves it at ``infer={"prior": p_z}`` of
            the site, as `pyro_bvae.VAE` does.
        **options: of Pyro's ELBO: ``num_particles``, ``vectorize_particles``, ...

    Raises:
        ValueError: alpha < 0, or D asked for without a divergence or a prior.

    References: https://arxiv.org/abs/1812.02833
    """

    alpha = NonNegative()
    _plain = (*TermsELBO._plain, "divergence", "site", "prior")
    detached = False
    """D gave the prior no gradient when it was last computed: the prior has no rsample."""

    def __init__(
        self,
        alpha: float = 0.0,
        divergence: Divergence | None = None,
        site: str = "z",
        prior: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.alpha = alpha
        self.divergence, self.site, self.prior = divergence, site, prior

    def _combine(self, parts: Parts) -> Tensor:
        loss = super()._combine(parts)
        if self.alpha == 0:
            return loss
        alpha = self.__dict__["_alpha"].to(loss.dtype)
        batch = len(parts.terms.kl)
        return loss + alpha * parts.scale * batch * parts.terms.divergence

    def _divergence(self, model_trace: Any, guide_trace: Any) -> Tensor | None:
        if self.alpha == 0:
            return None
        if not callable(self.divergence):
            raise ValueError(
                f"DecompositionELBO: divergence must be a function (q_z, p_z, z) where alpha > 0; got "
                f"{self.divergence!r} with alpha={self.alpha}. Pass one of pyro_bvae.divergences."
            )
        if self.site not in guide_trace.nodes:
            raise ValueError(
                f"DecompositionELBO: site must be a latent site of the guide; got {self.site!r}. "
                f"The guide has {', '.join(guide_trace.nodes)}."
            )
        guide_site = guide_trace.nodes[self.site]
        p_z = self._prior(model_trace.nodes[self.site])
        self.detached = not p_z.has_rsample
        q_z = guide_site["infer"].get("posterior", guide_site["fn"])
        if len(q_z.batch_shape) != 1:
            raise ValueError(
                f"DecompositionELBO: the posterior at {self.site!r} must have batch_shape (batch,); got "
                f"{tuple(q_z.batch_shape)}. Leave it at infer={{'posterior': q_z}} of the guide's site, "
                "or set vectorize_particles=False."
            )
        samples = guide_site["value"].reshape(-1, *q_z.batch_shape, *q_z.event_shape)
        values = [self.divergence(q_z, p_z, z) for z in samples]
        return torch.stack(values).mean()

    def _prior(self, model_site: Any) -> TorchDistributionMixin:
        if self.prior is not None:
            return cast(TorchDistributionMixin, self.prior())
        if "prior" not in model_site["infer"]:
            raise ValueError(
                f"DecompositionELBO: the prior of site {self.site!r} must be known unexpanded; the model "
                "did not leave it. Use pyro.sample(..., infer={'prior': p_z}), or pass prior=."
            )
        return cast(TorchDistributionMixin, model_site["infer"]["prior"])


class CapacityELBO(TermsELBO):
    """E log p(x|z) - gamma |KL(q(z|x) || p(z)) - C| (Burgess 2018), C in nats.

    C, raised slowly from 0, lets one factor after another into the code. ``penalty="relu"`` is the
    one-sided gamma max(0, KL - C) of Nguyen & Qiu: below C only the likelihood pulls the KL up. At C = 0
    both are the beta-VAE with beta = gamma.

    Args:
        gamma: weight of the penalty, >= 0; settable.
        capacity: C >= 0 in nats; settable, usually by `fit(..., schedules={"capacity": linear(...)})`.
        penalty: ``"absolute"`` or ``"relu"``.
        reduction: ``"batch"``, the penalty of the batch-mean KL: what Burgess's authors describe; or
            ``"example"``, the mean of each example's penalty, which also narrows the KL's spread and
            needs a KL in closed form.
        **options: of Pyro's ELBO.

    Raises:
        ValueError: a bad value; or, at the first step, a latent site whose beta is not 1, since gamma
            weighs the KL here.

    References: https://arxiv.org/abs/1804.03599
    """

    gamma = NonNegative()
    capacity = NonNegative()
    _plain = (*TermsELBO._plain, "penalty", "reduction")

    def __init__(
        self,
        gamma: float,
        capacity: float,
        penalty: str = "absolute",
        reduction: str = "batch",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.gamma, self.capacity = gamma, capacity
        if penalty not in ("absolute", "relu"):
            raise ValueError(
                f"CapacityELBO: penalty must be 'absolute' or 'relu'; got {penalty!r}."
            )
        if reduction not in ("batch", "example"):
            raise ValueError(
                f"CapacityELBO: reduction must be 'batch' or 'example'; got {reduction!r}."
            )
        self.penalty, self.reduction = penalty, reduction

    def _combine(self, parts: Parts) -> Tensor:
        kl = parts.terms.kl
        if self.reduction == "example" and self.monte_carlo_sites:
            # The penalty is convex: the noise of a one-sample KL would count as excess.
            raise ValueError(
                "CapacityELBO: reduction 'example' needs a KL in closed form; site "
                f"{self.monte_carlo_sites[0]!r} has none. Use reduction='batch' (--reduction batch), or "
                "a Gaussian prior."
            )
        excess = (kl.mean() if self.reduction == "batch" else kl) - self.__dict__["_capacity"].to(
            kl.dtype
        )
        penalty = excess.abs() if self.penalty == "absolute" else excess.relu()
        gamma = self.__dict__["_gamma"].to(kl.dtype)
        return gamma * parts.scale * len(kl) * penalty.mean() - parts.scaled_log_px_z.sum()

    def _check_site(self, guide_site: Any, observed_scale: Tensor | float) -> None:
        # Reading a scale held on a GPU waits for it: only while Pyro validates, as on a first step.
        if is_validation_enabled():
            beta = torch_item(guide_site["scale"]) / torch_item(observed_scale)
            if abs(beta - 1) > 1e-6:
                raise ValueError(
                    f"CapacityELBO: beta must be 1, since gamma weighs the KL; got {beta:g} at site "
                    f"{guide_site['name']!r}. Set vae.beta = 1, or use DecompositionELBO."
                )
