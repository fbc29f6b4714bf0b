"""What a trained model does on data it has not seen, in numbers and in one plain sentence or two."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import kl_divergence

from .datasets import Data, to_float
from .elbo import DecompositionELBO
from .metrics import cluster_scores, hoyer
from .vae import VAE

ACTIVE_NATS = 0.01
"""A latent carrying less than this, on average, is inactive."""
_BATCH = 500
_BLOCK = 1 << 23  # elements of one block of log q(z_i|x_j)


class Codes(NamedTuple):
    """The posteriors of a data set, and the terms of its ELBO. Arrays over the same n rows."""

    loc: Tensor  # (n, latent_dim): posterior means
    scale: Tensor  # (n, latent_dim): posterior standard deviations
    z: Tensor  # (n, latent_dim): one sample each
    log_px_z: Tensor  # (n,) nats
    kl: Tensor  # (n,) nats
    kl_per_latent: Tensor | None  # (latent_dim,) nats; None where it does not split
    kl_closed_form: bool


def encode_data(vae: VAE, data: Data, transform: Callable[[Tensor], Tensor] | None = None) -> Codes:
    """Posteriors and ELBO terms of every row, in evaluation mode and batches, at beta = 1."""
    objective = DecompositionELBO()
    parts: list[tuple[Tensor, ...]] = []
    split: list[Tensor | None] = []
    training = vae.training
    vae.eval()
    try:
        # A store of its own, as in `fit`: names left in the global one would shadow a later model's.
        with torch.no_grad(), pyro.get_param_store().scope():
            p_z = vae.p_z()
            for x, labels in _batches(vae, data, transform):
                terms = objective.terms(vae.model, vae.guide, x, labels)
                q_z = vae.q_z(x, labels)
                parts.append(
                    (q_z.mean, q_z.variance.sqrt(), q_z.sample(), terms.log_px_z, terms.kl)
                )
                split.append(_kl_per_latent(q_z, p_z))
            closed = not objective.monte_carlo_sites
    finally:
        vae.train(training)
    loc, scale, z, log_px_z, kl = (torch.cat(group) for group in zip(*parts, strict=True))
    per_latent = None
    if all(part is not None for part in split):
        per_latent = torch.stack([part for part in split if part is not None]).sum(0) / len(data)
    return Codes(loc, scale, z, log_px_z, kl, per_latent, closed)


def evaluate(
    vae: VAE,
    data: Data,
    *,
    divergence: Callable[..., Tensor] | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    codes: Codes | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure ``vae`` on ``data``, which should be held out.

    Args:
        vae: any model of the package.
        data: rows to measure on.
        divergence: D to recompute with all rows as components; see `aggregate_divergence`.
        transform: as in `fit`.
        codes: of `encode_data`, where they are at hand already.
        seed: of the noise.

    Returns:
        A dict for JSON. ``log_px_z`` (minus the distortion), ``kl`` (the rate) and ``elbo`` = log_px_z -
        kl in nats per example, with standard errors ``*_se``; ``divergence``; ``posterior_scale``;
        ``kl_per_latent`` and ``active_units`` (latents above .01 nats); ``hoyer`` and its null;
        ``purity``, ``nmi``, ``ari`` and ``components_used`` where the prior has components and the data
        labels; ``n``, ``seed`` and how the KL was found.
    """
    devices = [vae_device(vae)] if vae_device(vae).type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        codes = codes or encode_data(vae, data, transform)
        out: dict[str, Any] = {"n": len(data), "seed": seed}
        for name, values in (
            ("log_px_z", codes.log_px_z),
            ("kl", codes.kl),
            ("elbo", codes.log_px_z - codes.kl),
        ):
            out[name] = values.mean().item()
            out[f"{name}_se"] = _standard_error(values)
        out["kl_sd"] = codes.kl.std(correction=0).item()
        out["kl_estimator"] = "closed form" if codes.kl_closed_form else "Monte Carlo, 1 sample"
        out["posterior_scale"] = codes.scale.mean().item()
        if divergence is not None:
            out |= aggregate_divergence(vae, codes, divergence)
        out |= _latents(vae, codes)
        out |= _clusters(vae, codes, data)
    return out


def aggregate_divergence(
    vae: VAE,
    codes: Codes,
    divergence: Callable[..., Tensor],
    n_samples: int = 20_000,
    max_rows: int = 2_000,
) -> dict[str, Any]:
    """D(q(z), p(z)) with all the data as components, not a batch.

    inclusive_kl uses every posterior and up to ``n_samples`` prior samples, in blocks; divergences that
    compare rows with rows use ``max_rows`` of them (MMD is unbiased at any number; the KLs are not, and
    the count returned says how many components they saw).

    Returns:
        ``divergence`` and ``divergence_components``.
    """
    function = getattr(divergence, "func", divergence)
    p_z = vae.p_z()
    n, latent_dim = codes.loc.shape
    q_z = dist.Normal(codes.loc, codes.scale).to_event(1)
    if getattr(function, "__name__", "") == "inclusive_kl":
        block = max(1, _BLOCK // (n * latent_dim))
        n_samples = min(n_samples, max(1000, 64 * block))
        counts = [min(block, n_samples - start) for start in range(0, n_samples, block)]
        values = [divergence(q_z, p_z, codes.z, n_samples=k).item() * k for k in counts]
        return {"divergence": sum(values) / n_samples, "divergence_components": n}
    rows = torch.randperm(n)[:max_rows].sort().values.to(codes.loc.device)
    if getattr(function, "__name__", "") in ("exclusive_kl", "total_correlation"):
        rows = rows[:500]
    part = dist.Normal(codes.loc[rows], codes.scale[rows]).to_event(1)
    value = divergence(part, p_z, codes.z[rows]).item()
    return {"divergence": value, "divergence_components": len(rows)}


def diagnose(metrics: dict[str, Any], config: Any) -> list[str]:
    """What a colleague would say on seeing the numbers: empty where nothing is amiss."""
    says: list[str] = []
    per_latent = metrics.get("kl_per_latent") or []
    idle = sum(value < ACTIVE_NATS for value in per_latent)
    if idle:
        remedy = "raise capacity or " if config.gamma is not None else "lower beta or "
        remedy = "" if config.gamma is None and config.beta == 0 else remedy
        says.append(
            f"{idle} of {len(per_latent)} latents carry < {ACTIVE_NATS} nats: {remedy}use fewer latents."
        )
    says += _diagnose_clusters(metrics)
    bias = metrics.get("rate_minus_log_batch")
    if bias is not None and bias > 1 and config.divergence in ("inclusive-kl", "exclusive-kl"):
        says.append(
            f"D is dominated by its bias (rate - log batch = {bias:.1f} nats > 1): use --divergence "
            "mmd-per-dim, or a larger batch."
        )
    if config.gamma is not None and metrics["kl"] < 0.9 * config.capacity - 1:
        says.append(
            f"C has no effect: the KL is {metrics['kl']:.1f} nats, well below C = {config.capacity:g}: "
            "train longer, or lower C."
        )
    return says


def _diagnose_clusters(metrics: dict[str, Any]) -> list[str]:
    if "purity" not in metrics or metrics["purity"] >= 0.95:
        return []
    classes, components = metrics["classes"], metrics["components"]
    if components < classes:
        return [f"The prior has {components} components for {classes} classes: raise n_components."]
    if metrics["components_used"] < min(classes, components):
        return [
            f"{classes} classes share {metrics['components_used']} of {components} components: raise "
            "alpha or lower beta."
        ]
    return [
        f"Classes share components (purity {metrics['purity']:.2f}): raise alpha or lower beta."
    ]


def vae_device(vae: VAE) -> torch.device:
    """Where the model's parameters are."""
    return next(vae.parameters()).device


def _batches(
    vae: VAE, data: Data, transform: Callable[[Tensor], Tensor] | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    device = vae_device(vae)
    for start in range(0, len(data), _BATCH):
        rows = np.arange(start, min(start + _BATCH, len(data)))
        x = to_float(torch.from_numpy(np.array(data.batch(rows))).to(device))
        labels = None
        if vae.n_classes and data.labels is not None:
            labels = torch.from_numpy(np.array(data.labels[rows])).to(device)
        yield x if transform is None else transform(x), labels


def _kl_per_latent(q_z: TorchDistributionMixin, p_z: TorchDistributionMixin) -> Tensor | None:
    """Sum over rows of the KL of each latent: (latent_dim,); None where either does not factorise."""
    q, p = getattr(q_z, "base_dist", None), getattr(p_z, "base_dist", None)
    if q is None or p is None or len(p.batch_shape) != 1 or q.event_shape or p.event_shape:
        return None
    try:
        kl: Tensor = kl_divergence(q, p)
    except NotImplementedError:
        z = q.sample()
        kl = q.log_prob(z) - p.log_prob(z)
    return kl.sum(0)


def _standard_error(values: Tensor) -> float:
    return values.std(correction=0).item() / math.sqrt(len(values))


def _latents(vae: VAE, codes: Codes) -> dict[str, Any]:
    out: dict[str, Any] = {"kl_per_latent": None}
    if codes.kl_per_latent is not None:
        out["kl_per_latent"] = codes.kl_per_latent.tolist()
        out["active_units"] = int((codes.kl_per_latent > ACTIVE_NATS).sum())
    if codes.loc.shape[1] > 2:
        score = hoyer(codes.loc.cpu().numpy())
        out["hoyer"], out["hoyer_null"] = score.value, score.details["null"]
        out["hoyer_prior"] = hoyer(vae.p_z().sample((10_000,)).cpu().numpy()).value
    return out


def _clusters(vae: VAE, codes: Codes, data: Data) -> dict[str, Any]:
    assign = getattr(vae.prior, "assign", None)
    if data.labels is None or not callable(assign):
        return {}
    score = cluster_scores(assign(codes.loc).cpu().numpy(), np.asarray(data.labels))
    out = {"purity": score.value}
    out |= {name: score.details[name] for name in ("nmi", "ari", "components_used")}
    out["components"] = int(getattr(vae.prior, "n_components", 0))
    out["classes"] = len(np.unique(data.labels))
    return out
