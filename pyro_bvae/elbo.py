"""The objectives: the ways to combine the terms of an ELBO.

With s the scale of the batch (1, or N/B under subsampling: see `pyro_bvae.terms`), B the batch and sums over
its examples, the losses are

    DecompositionELBO   sum_i s (-log p(x_i|z_i) + beta kl_i) + alpha s B D(q(z), p(z))
    CapacityELBO        sum_i -s log p(x_i|z_i) + gamma s B |mean_i kl_i - C|

in nats. `fit` divides them by s B, so what it logs is per example. beta is not an argument: it is the
scale handler around the latent site, in the model and the guide (see `pyro_bvae.VAE`).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from pyro.distributions.torch_distribution import MaskedDistribution, TorchDistributionMixin
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from .divergences import Divergence
from .priors.check import call_prior
from .schedules import NonNegative
from .terms import Parts, Sites, TermsELBO


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

    def _divergence(self, model_sites: Sites, guide_sites: Sites) -> Tensor | None:
        if self.alpha == 0:
            return None
        if not callable(self.divergence):
            raise ValueError(
                f"DecompositionELBO: divergence must be a function (q_z, p_z, z) where alpha > 0; got "
                f"{self.divergence!r} with alpha={self.alpha}. Pass one of pyro_bvae.divergences."
            )
        if self.site not in guide_sites:
            raise ValueError(
                f"DecompositionELBO: site must be a latent site of the guide; got {self.site!r}. "
                f"The guide has {', '.join(guide_sites)}."
            )
        guide_site = guide_sites[self.site]
        p_z = _unmasked(self._prior(model_sites.get(self.site)))
        self.detached = not p_z.has_rsample
        q_z = _unmasked(guide_site["infer"].get("posterior", guide_site["fn"]))
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
            return call_prior(self.prior)
        if model_site is None or "prior" not in model_site["infer"]:
            raise ValueError(
                f"DecompositionELBO: the prior of site {self.site!r} must be known unexpanded; the model "
                "did not leave it. Use pyro.sample(..., infer={'prior': p_z}), or pass prior=."
            )
        p_z = cast(TorchDistributionMixin, model_site["infer"]["prior"])
        if p_z.batch_shape:
            raise ValueError(
                f"DecompositionELBO: the prior of site {self.site!r} must have batch_shape (); got "
                f"{tuple(p_z.batch_shape)}. Leave it at infer= before a plate expands it, or pass prior=."
            )
        return p_z


def _unmasked(fn: Any) -> Any:
    """The distribution without its masks: D sees every row, as it does under `poutine.mask`."""
    if isinstance(fn, MaskedDistribution):
        return _unmasked(fn.base_dist)
    if isinstance(fn, torch.distributions.Independent):
        base = _unmasked(fn.base_dist)
        return fn if base is fn.base_dist else base.to_event(fn.reinterpreted_batch_ndims)
    return fn


class CapacityELBO(TermsELBO):
    """E log p(x|z) - gamma |KL(q(z|x) || p(z)) - C| (Burgess 2018), C in nats.

    C, raised slowly from 0, lets one factor after another into the code. ``penalty="relu"`` is the
    one-sided gamma max(0, KL - C) of Nguyen & Qiu: below C only the likelihood pulls the KL up. At C = 0
    and with KLs in closed form both are the beta-VAE with beta = gamma.

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
            site = self.monte_carlo_sites[0]
            other = "one order of latent sites" if site in self._crossed else "a Gaussian prior"
            raise ValueError(
                f"CapacityELBO: reduction 'example' needs a KL in closed form; site {site!r} has none. "
                f"Use reduction='batch' (--reduction batch), or {other}."
            )
        excess = (kl.mean() if self.reduction == "batch" else kl) - self.__dict__["_capacity"].to(
            kl.dtype
        )
        penalty = excess.abs() if self.penalty == "absolute" else excess.relu()
        gamma = self.__dict__["_gamma"].to(kl.dtype)
        return gamma * parts.scale * len(kl) * penalty.mean() - parts.scaled_log_px_z.sum()

    def _check_site(self, site: Any, scale: Tensor | float) -> None:
        beta = site["scale"] / scale
        if isinstance(beta, Tensor):
            # Reading one held on a GPU waits for it: only while Pyro validates, as on a first step.
            if not is_validation_enabled():
                return
            beta = beta.flatten()
            beta = beta[(beta - 1).abs().argmax()].item()
        if abs(beta - 1) > 1e-6:
            raise ValueError(
                f"CapacityELBO: beta must be 1, since gamma weighs the KL; got {beta:g} at site "
                f"{site['name']!r}. Set vae.beta = 1, or use DecompositionELBO."
            )
