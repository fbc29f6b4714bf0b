"""What a trained model does on data it has not seen, in numbers and in one plain sentence or two."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import kl_divergence

from .datasets import Data
from .divergences import inclusive_kl
from .metrics import cluster_scores, hoyer
from .vae import VAE

ACTIVE_NATS = 0.01
"""A latent carrying less than this, on average, is inactive."""
ACTIVE_VARIANCE = 0.01
"""Where the KL does not split over latents: one whose posterior means vary less is inactive."""
_BATCH = 500


class Codes(NamedTuple):
    """The posteriors of a data set, and the terms of its ELBO. Arrays over the same n rows."""

    loc: Tensor  # (n, latent_dim): posterior means
    scale: Tensor  # (n, latent_dim): posterior standard deviations
    z: Tensor  # (n, latent_dim): one sample each
    log_px_z: Tensor  # (n,) nats, at z
    kl: Tensor  # (n,) nats; at z where it is not in closed form
    kl_per_latent: Tensor | None  # (latent_dim,) nats; None where it does not split
    kl_closed_form: bool
    diagonal: bool  # loc and scale say all: the posteriors are diagonal Normals


def encode_data(vae: VAE, data: Data, transform: Callable[[Tensor], Tensor] | None = None) -> Codes:
    """Posteriors and ELBO terms of every row, in evaluation mode and batches, at beta = 1."""
    parts: list[tuple[Tensor, ...]] = []
    split: list[Tensor | None] = []
    closed = diagonal = True
    training = vae.training
    vae.eval()
    try:
        with torch.no_grad():
            p_z = vae.p_z()
            for x, labels in _batches(vae, data, transform):
                q_z = vae.q_z(x, labels)
                z = q_z.sample()
                try:
                    kl = kl_divergence(q_z, p_z)
                except NotImplementedError:
                    kl, closed = q_z.log_prob(z) - p_z.log_prob(z), False
                log_px_z = vae.p_x(z, labels).log_prob(x)
                parts.append((q_z.mean, q_z.variance.sqrt(), z, log_px_z, kl))
                split.append(_kl_per_latent(q_z, p_z))
                base = getattr(q_z, "base_dist", None)
                diagonal &= isinstance(base, torch.distributions.Normal)
    finally:
        vae.train(training)
    loc, scale, z, log_px_z, kl = (torch.cat(group) for group in zip(*parts, strict=True))
    per_latent = None
    if all(part is not None for part in split):
        per_latent = torch.stack([part for part in split if part is not None]).sum(0) / len(data)
    return Codes(loc, scale, z, log_px_z, kl, per_latent, closed, diagonal)


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
        ``kl_per_latent`` and ``active_units``, latents above .01 nats, or where the KL does not split with
        posterior means of variance above .01 (``idle_means`` says which); ``hoyer`` and its null;
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
        # Over x; of one-sample estimates it would be mostly their noise.
        out["kl_sd"] = codes.kl.std(correction=0).item() if codes.kl_closed_form else None
        out["kl_estimator"] = "closed form" if codes.kl_closed_form else "Monte Carlo, 1 sample"
        out["posterior_scale"] = codes.scale.mean().item()
        if divergence is not None:
            out |= aggregate_divergence(vae, codes, divergence)
        out |= _latents(vae, codes)
        out |= _clusters(vae, codes, data)
    return out


def aggregate_divergence(
    vae: VAE, codes: Codes, divergence: Callable[..., Tensor], max_rows: int = 2_000
) -> dict[str, Any]:
    """D(q(z), p(z)) with all the rows as components of q(z), not a batch.

    ``divergence`` sees every posterior and samples z of ``max_rows`` of them; `inclusive_kl` draws up to
    20,000 samples of the prior. MMD is unbiased at any number of rows. The KLs are not: half the rows
    are measured too, and where the two differ the value is still falling towards its limit.

    Returns:
        ``divergence`` and ``divergence_at_half``, None where the posteriors are not diagonal Normals;
        ``divergence_components``, the number of rows; ``rate_minus_log_components``, nats: what the
        exclusive KL cannot fall below where posteriors do not overlap.
    """
    n, latent_dim = codes.loc.shape
    out: dict[str, Any] = {"divergence": None, "divergence_at_half": None}
    out["divergence_components"] = n
    out["rate_minus_log_components"] = codes.kl.mean().item() - math.log(n)
    if not codes.diagonal:
        return out
    options: dict[str, Any] = {}
    plain = getattr(divergence, "func", divergence) is inclusive_kl
    if plain and not getattr(divergence, "keywords", {}).get("n_samples"):
        options["n_samples"] = max(1000, min(20_000, 10**9 // (n * latent_dim)))
    order = torch.randperm(n).to(codes.loc.device)
    for name, m in (("divergence", n), ("divergence_at_half", max(1, n // 2))):
        rows = order[:m]
        q_z = dist.Normal(codes.loc[rows], codes.scale[rows]).to_event(1)
        out[name] = divergence(q_z, vae.p_z(), codes.z[rows[:max_rows]], **options).item()
    return out


def diagnose(metrics: dict[str, Any], config: Any) -> list[str]:
    """What a colleague would say on seeing the numbers: empty where nothing is amiss."""
    says: list[str] = []
    capacity = config.gamma is not None
    # What frees the code, and what sorts it into components, by the options in play.
    if capacity:
        freer = sorter = "raise capacity"
    elif config.beta_tc is not None:
        freer = sorter = "lower beta_tc"
    else:
        freer = "lower beta" if config.beta > 0 else ""
        sorter = "raise alpha or lower beta" if config.beta > 0 else "raise alpha"
    idle = metrics["latents"] - metrics["active_units"]
    if idle:
        remedy = f"{freer} or use fewer latents" if freer else "use fewer latents"
        says.append(f"{idle} of {metrics['latents']} latents {metrics['idle_means']}: {remedy}.")
    if not config.conditional:  # the label goes to the decoder: classes may share components
        says += _diagnose_clusters(metrics, sorter)
    if metrics.get("divergence_name") in ("inclusive-kl", "exclusive-kl", "total-correlation"):
        says += _diagnose_bias(metrics, config)
    below = capacity and metrics["kl"] < 0.9 * config.capacity - 1
    if below and config.penalty == "relu":
        says.append(
            f"C has no effect: the KL is {metrics['kl']:.1f} nats, below C = {config.capacity:g}, where "
            "the one-sided penalty is 0: lower C, or use --penalty absolute."
        )
    elif below:
        says.append(
            f"The KL, {metrics['kl']:.1f} nats, has not reached C = {config.capacity:g}: train longer, "
            "raise gamma, or lower C."
        )
    return says


def _diagnose_bias(metrics: dict[str, Any], config: Any) -> list[str]:
    bias = {what: metrics.get(f"rate_minus_log_{what}") or 0 for what in ("batch", "components")}
    remedies = [] if config.beta_tc is not None else ["--divergence mmd-per-dim"]
    if bias["batch"] > 1 or not remedies:
        remedies.append("a larger batch")
    remedy = ", or ".join(remedies)
    if max(bias.values()) > 1:
        return [
            f"D is dominated by its bias (rate - log of its components = {max(bias.values()):.1f} nats > "
            f"1): use {remedy}."
        ]
    value, half = metrics.get("divergence"), metrics.get("divergence_at_half")
    if value is None or half is None or abs(value - half) < max(0.2, 0.1 * abs(value)):
        return []
    n = metrics["divergence_components"]
    return [
        f"D depends on how many rows it sees ({half:.2f} nats at {n // 2}, {value:.2f} at {n}), so much of it "
        f"is bias: compare it at equal rows only, or use {remedy}."
    ]


def _diagnose_clusters(metrics: dict[str, Any], remedy: str) -> list[str]:
    if "purity" not in metrics or metrics["purity"] >= 0.95:
        return []
    classes, components = metrics["classes"], metrics["components"]
    if metrics["components_used"] < min(classes, components):
        return [
            f"{classes} classes share {metrics['components_used']} of {components} components: {remedy}."
        ]
    if components < classes:
        return [f"The prior has {components} components for {classes} classes: raise n_components."]
    return [f"Classes share components (purity {metrics['purity']:.2f}): {remedy}."]


def vae_device(vae: VAE) -> torch.device:
    """Where the model's parameters are."""
    return next(vae.parameters()).device


def _batches(
    vae: VAE, data: Data, transform: Callable[[Tensor], Tensor] | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    device = vae_device(vae)
    for start in range(0, len(data), _BATCH):
        rows = np.arange(start, min(start + _BATCH, len(data)))
        x, labels = data.tensors(rows, device)
        yield x if transform is None else transform(x), labels if vae.n_classes else None


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
    latents = codes.loc.shape[1]
    out: dict[str, Any] = {"latents": latents, "kl_per_latent": None}
    if codes.kl_per_latent is not None:
        out["kl_per_latent"] = codes.kl_per_latent.tolist()
        active, out["idle_means"] = codes.kl_per_latent > ACTIVE_NATS, f"carry < {ACTIVE_NATS} nats"
    else:
        active = codes.loc.var(0, correction=0) > ACTIVE_VARIANCE
        out["idle_means"] = f"do not move with x (variance of posterior means < {ACTIVE_VARIANCE})"
    out["active_units"] = int(active.sum())
    if latents > 2:
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
