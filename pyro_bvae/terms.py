"""The terms of an ELBO for one batch, from the traces of any Pyro model and guide.

What a program's sites mean here: all share one plate over the batch; its scale s is N/B under subsampling,
times those `poutine.scale` handlers that are around every site of the model. A handler around some of the
sites weighs those alone: beta around a latent site, a weight around an observed one. Rows that
`poutine.mask` or a distribution's own ``mask`` silences have no log p and no KL, and still count in B, in
the mean KL and in D.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.util import check_fully_reparametrized, torch_item
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.scale_messenger import ScaleMessenger
from pyro.poutine.subsample_messenger import _Subsample
from pyro.util import warn_if_nan
from torch import Tensor

from .kl import closed_form

Program = Callable[..., Any]
Sites = dict[str, Any]  # by name, as in a trace of Pyro's
_PARTICLES = "num_particles_vectorized"


class ElboTerms(NamedTuple):
    """The terms of an ELBO without beta and s: nats per example, differentiable, averaged over particles.

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


class _ModelSites(Messenger):
    """Remember what Pyro's traces of a model do not keep of its sites.

    That is the model's own ``infer``, for which `poutine.replay` puts the guide's, and which of the handlers
    that scale a site are around all of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.infer: dict[str, dict[str, Any]] = {}
        self.shared: list[ScaleMessenger] | None = None

    def _pyro_sample(self, msg: Any) -> None:
        self.infer[msg["name"]] = dict(msg["infer"])
        if isinstance(msg["fn"], _Subsample) or msg["infer"].get("_deterministic"):
            return
        around = [handler for handler in _PYRO_STACK if isinstance(handler, ScaleMessenger)]
        if self.shared is not None:
            around = [handler for handler in self.shared if handler in around]
        self.shared = around

    @property
    def scale(self) -> Any:
        """That of the handlers around the whole program."""
        return math.prod(handler.scale for handler in self.shared or ())


def _sites(trace: Any) -> dict[str, Any]:
    """The random sites of a trace: those of `pyro.deterministic` say nothing."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["infer"].get("_deterministic")
    }


def _crossed(model_sites: Sites, guide_sites: Sites) -> frozenset[str]:
    """Latents that the model samples after one that the guide samples later.

    A closed form integrates over such a latent, while the later sample that may depend on it, and on which
    its own density p may depend, stays fixed: wrong by what the two have in common.
    """
    place = {name: i for i, name in enumerate(guide_sites)}
    crossed, latest = set(), -1
    for name in model_sites:
        if name in place:
            if place[name] < latest:
                crossed.add(name)
            latest = max(latest, place[name])
    return frozenset(crossed)


def _subsampling(frames: Iterable[Any]) -> Any:
    """N/B of each plate, multiplied: the scale that Pyro gives to the sites in them."""
    return math.prod(frame.full_size / frame.size for frame in frames)


class TermsELBO(TraceMeanField_ELBO):
    """-ELBO with the terms at hand; subclasses change how they are combined.

    Serves any Pyro model and guide whose latent and observed sites share one batch plate. KLs are in
    closed form where one is registered, else the one-sample estimate log q(z|x) - log p(z); all
    particles are averaged to ``(batch,)`` before they are combined. With several latent sites the closed
    form holds only if no site's p depends on a latent that the guide draws from that site's sample: sites
    that model and guide sample in different orders are estimated by samples.
    """

    monte_carlo_sites: tuple[str, ...] = ()
    """The sites whose KL was estimated by samples when the terms were last computed."""
    _crossed: frozenset[str] = frozenset()
    """Of these, the sites that have a closed form which does not hold."""

    @property
    def structure(self) -> tuple[Hashable, ...]:
        """What of this objective's program is no tensor: `CompiledSVI` watches it."""
        # not the numbers that tensors hold, which are followed, nor what a step finds out
        left_out = {k.removeprefix("_") for k, v in vars(self).items() if isinstance(v, Tensor)}
        left_out |= {"monte_carlo_sites", "detached"}
        plain = (v for k, v in vars(self).items() if k.removeprefix("_") not in left_out)
        return *plain, getattr(self, "alpha", 1) == 0  # at alpha = 0 no D is computed

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
        own = _ModelSites()
        # Past TraceMeanField_ELBO, which only adds a warning of sites in other orders: see `_crossed`.
        traces = super(TraceMeanField_ELBO, self)._get_trace(own(model), guide, args, kwargs)
        for name, infer in own.infer.items():
            if name in traces[0].nodes:
                traces[0].nodes[name]["infer"] = infer
        traces[0].whole_scale = own.scale
        return traces

    def _combine(self, parts: Parts) -> Tensor:
        return (parts.scaled_kl - parts.scaled_log_px_z).sum()

    def _divergence(self, model_sites: Sites, guide_sites: Sites) -> Tensor | None:
        return None

    def _collect(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Parts:
        try:
            parts = [
                self._parts(*traces) for traces in self._get_traces(model, guide, args, kwargs)
            ]
        except ValueError as error:
            cause: BaseException | None = error
            while cause is not None and "\n" in str(cause):  # Pyro adds the shapes of its trace
                cause = cause.__cause__
            if cause is error or not str(cause).startswith("VAE: "):
                raise
            raise ValueError(str(cause)) from error
        if len(parts) == 1:
            return parts[0]
        flat = [(*part.terms, part.scaled_log_px_z, part.scaled_kl) for part in parts]
        mean = [torch.stack(group).mean(0) for group in zip(*flat, strict=True)]
        return Parts(ElboTerms(*mean[:3]), mean[3], mean[4], parts[0].scale)

    def _parts(self, model_trace: Any, guide_trace: Any) -> Parts:
        model_sites, guide_sites = _sites(model_trace), _sites(guide_trace)
        observed = [site for site in model_sites.values() if site["is_observed"]]
        if not observed:
            raise ValueError(
                f"{type(self).__name__}: the model must have an observed site; got none. "
                "Pass obs= to pyro.sample."
            )
        for name, site in model_sites.items():  # given to both: there is nothing to infer
            if site["is_observed"] and name in guide_sites and guide_sites[name]["is_observed"]:
                del guide_sites[name]
        self._check_latents(model_sites, guide_sites)
        auxiliary = [site for name, site in guide_sites.items() if name not in model_sites]
        frame = self._batch_frame([*model_sites.values(), *auxiliary])
        whole = model_trace.whole_scale
        log_px_z, scaled_log_px_z = self._totals(
            [(site, site["unscaled_log_prob"]) for site in observed], frame
        )
        self.monte_carlo_sites = ()
        kls = list(self._kls(model_sites, guide_sites))
        for site, _ in kls:
            self._check_site(site, whole * _subsampling(site["cond_indep_stack"]))
        kl = scaled_kl = torch.zeros_like(log_px_z)
        if kls:
            kl, scaled_kl = self._totals(kls, frame)
        divergence = self._divergence(model_sites, guide_sites)
        if divergence is None:
            divergence = log_px_z.new_zeros(())
        terms = ElboTerms(log_px_z, kl, divergence)
        scale = whole * _subsampling([frame])
        mean_scale = scale.mean().to(log_px_z) if isinstance(scale, Tensor) else float(scale)
        return Parts(terms, scaled_log_px_z, scaled_kl, mean_scale)

    def _totals(self, sites: list[tuple[Any, Tensor]], frame: Any) -> tuple[Tensor, Tensor]:
        """The values of sites summed to ``(batch,)``: those of an example, and under each site's scale."""
        plain, scaled = [], []
        for site, value in sites:
            within = _subsampling(f for f in site["cond_indep_stack"] if f.name != frame.name)
            plain.append(self._per_example(value, within, site["mask"], frame))
            scaled.append(self._per_example(value, site["scale"], site["mask"], frame))
        return functools.reduce(operator.add, plain), functools.reduce(operator.add, scaled)

    def _check_latents(self, model_sites: Sites, guide_sites: Sites) -> None:
        ours = type(self).__name__
        latents = [name for name, site in model_sites.items() if not site["is_observed"]]
        missing = ", ".join(name for name in latents if name not in guide_sites)
        if missing:
            raise ValueError(
                f"{ours}: the guide must sample every latent site of the model; it lacks {missing}. "
                "Add each with pyro.sample to the guide, or give it obs= in the model."
            )
        for name, site in guide_sites.items():
            if name in model_sites and model_sites[name]["is_observed"]:
                raise ValueError(
                    f"{ours}: the guide must not sample what the model observes; got {name!r}. "
                    "Take it out of the guide where it is given."
                )
            try:
                check_fully_reparametrized(site)
            except NotImplementedError:
                fn = site["fn"]
                while hasattr(fn, "base_dist"):
                    fn = fn.base_dist
                raise ValueError(
                    f"{ours}: latent sites must be reparameterised, since gradients go through their samples; "
                    f"got {type(fn).__name__} at site {name!r}. Use a relaxed distribution, such as "
                    "RelaxedOneHotCategorical, or pyro.infer.TraceGraph_ELBO."
                ) from None

    def _check_site(self, site: Any, scale: Tensor | float) -> None:
        """A hook for objectives that need something of a latent site; ``scale`` is its own at beta = 1."""

    def _kls(self, model_sites: Sites, guide_sites: Sites) -> Iterator[tuple[Any, Tensor]]:
        """Sites and their unscaled shares of the KL, shaped like the site's batch.

        A KL of samples has two, as in Pyro: each density under the handlers of its own side.
        """
        self._crossed = _crossed(model_sites, guide_sites)
        for name, guide_site in guide_sites.items():
            log_q = guide_site["unscaled_log_prob"]
            if name not in model_sites:  # an auxiliary site of the guide
                self.monte_carlo_sites += (name,)
                yield guide_site, log_q
                continue
            model_site = model_sites[name]
            kl: Any = None
            if name not in self._crossed:
                kl = closed_form(guide_site["fn"], model_site["fn"])
            if kl is None:
                self.monte_carlo_sites += (name,)
                yield guide_site, log_q
                yield model_site, -model_site["unscaled_log_prob"]
                continue
            if not isinstance(kl, Tensor):  # Pyro's number 0 of a distribution under mask(False)
                kl = guide_site["value"].new_zeros(log_q.shape)
            yield guide_site, kl

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
        batch = shared[0]
        values = [site["unscaled_log_prob"] for site in sites]
        sizes = [v.shape[batch.dim] if v.dim() >= -batch.dim else 1 for v in values]
        if len(set(sizes)) > 1:  # only in a plate without a size, which expands nothing
            raise ValueError(
                f"{type(self).__name__}: sites must have a value for each row of the batch; in plate "
                f"{batch.name!r} they have {', '.join(map(str, sizes))}. Give the plate its size."
            )
        return batch

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
