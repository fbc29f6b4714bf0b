"""What a trained model does on data it has not seen, in numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import metrics
from ..datasets import Data
from ..datasets.data import DataLike, as_data
from ..divergences import inclusive_kl, mmd, mmd_per_dim
from ..metrics.checks import check_known
from ..metrics.factors import MOST_VALUES, check_factors
from ..metrics.sampling import FEW_ROWS
from ..vae import VAE, evaluating
from .aggregate import aggregate_divergence, divergences, information, standard_error
from .codes import Codes, Transform, batches, encode_data
from .marginal import log_marginal

_SHARPNESS_ROWS = 2_000
_MARGINAL_BATCH = 20
_DECODED_ENTRIES = 5 * 10**8  # of the default number of rows for log p(x): minutes on two cores


Progress = Callable[[str, float], None]


class _Subject(NamedTuple):
    """What a measure may look at."""

    vae: VAE
    data: Data
    codes: Codes
    transform: Transform
    n_samples: int
    n_rows: int | None
    progress: Callable[[float], None]  # told the share of the measure that is done


def evaluate(
    vae: VAE,
    data: DataLike,
    *,
    divergence: Callable[..., Tensor] | None = None,
    transform: Transform = None,
    codes: Codes | None = None,
    measures: Sequence[str] | None = (),
    n_samples: int = 1000,
    n_rows: int | None = None,
    on_progress: Progress | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure ``vae`` on ``data``, which should be held out.

    Args:
        vae: any model of the package.
        data: rows to measure on: `Data`, an array or a tensor `(n, *x_shape)`, or the pair (x, labels).
        divergence: D to recompute with all rows as components; see `aggregate_divergence`.
        transform: as in `fit`.
        codes: of `encode_data`, where they are at hand already.
        measures: names of `MEASURES`, beyond what is always measured; None for all that apply here
            but ``dci``, which takes minutes.
        n_samples: K of `log_marginal`.
        n_rows: rows log p(x) is estimated on, evenly spaced; by default as many as two cores decode in
            minutes, at most all.
        on_progress: called with the name of the measure being taken and the share of all that is done.
        seed: of the noise.

    Returns:
        A dict for JSON. Always: ``log_px_z`` (minus the distortion), ``kl`` (the rate) and ``elbo`` =
        log_px_z - kl in nats per example, with standard errors ``*_se``; ``posterior_scale``;
        ``kl_per_latent``; ``active_latents``, those above .01 nats, or where the KL does not split with
        posterior means of variance above .01 (``idle_means`` says which), and ``active_units``, their
        number; ``signal_per_latent``, Var(mean) / E(variance); ``hoyer`` and its nulls, where two latents
        or more move; ``components_used`` and ``silhouette`` where the prior has components, with ``purity``,
        ``nmi`` and ``ari`` where the data have labels; ``n``, ``seed`` and how the KL was found. With
        ``divergence``: see `aggregate_divergence`. By ``measures``: ``log_marginal`` with its K and rows;
        `information` and ``divergences``; ``sharpness`` of reconstructions and of the data; ``scores`` by
        metric name.

    Raises:
        ValueError: a measure that is unknown or does not apply, before any work; or a metric, asked for
            by name, that refuses these codes, before what takes minutes.
    """
    data = as_data(data, "evaluate")
    names = applicable(data) if measures is None else check_measures(measures, data)
    with evaluating(vae, seed):
        codes = codes or encode_data(vae, data, transform)
        # Its own stream: the same follows whoever made the codes, and the noise of the codes does not
        # come back in the samples of the prior they are compared with.
        torch.manual_seed((seed + 1) % 2**32)
        out: dict[str, Any] = {"n": len(data), "seed": seed}
        out |= _terms(codes)
        if divergence is not None:
            out |= aggregate_divergence(vae, codes, divergence)
        out |= _latents(vae, codes)
        out |= _clusters(vae, codes, data)
        said = on_progress or (lambda name, share: None)
        # The metrics first: they take seconds, and what they refuse is then found before the minutes.
        scored = [name for name in names if name in metrics.METRICS]
        if scored:
            assert data.factors is not None
            share_of_scores = len(scored) / len(names)
            out |= score_codes(
                codes.loc.cpu().numpy(),
                data.factors,
                scored,
                factor_names=data.factor_names,
                lenient=measures is None,
                on_progress=lambda name, share: said(name, share * share_of_scores),
                seed=seed,
            )
        others = [name for name in names if name in MEASURES]
        for i, name in enumerate(others, len(scored)):

            def within(share: float, name: str = name, i: int = i) -> None:
                said(name, (i + share) / len(names))

            within(0.0)
            out |= MEASURES[name](_Subject(vae, data, codes, transform, n_samples, n_rows, within))
    return out


def score_codes(
    codes: np.ndarray,
    factors: np.ndarray,
    names: Sequence[str],
    *,
    factor_names: Sequence[str] = (),
    lenient: bool = False,
    on_progress: Progress | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Disentanglement metrics ``names`` of codes ``(n, latent_dim)``, whatever made them.

    A factor with one value is left out, since nothing can be said about it.

    Args:
        codes: ``(n, latent_dim)``.
        factors: numbers ``(n, n_factors)``, some of which vary: whole ones are classes, others are real.
        names: keys of `pyro_bvae.metrics.METRICS`.
        factor_names: one a column.
        lenient: note what a metric refuses, such as too few rows, and go on without it.
        on_progress: as in `evaluate`.
        seed: of the metrics' draws.

    Returns:
        ``scores``, a dict with value and details by metric; ``factors``, the columns used;
        ``factors_left_out``; ``notes``: few rows, factors cut in bins, the metrics' warnings and refusals.

    Raises:
        TypeError, ValueError: factors are no finite numbers; or a metric refuses these codes or
            factors, unless ``lenient``.
    """
    varies = np.ptp(check_factors("evaluate", factors), axis=0) > 0
    factors = np.asarray(factors)[:, varies]
    titles = tuple(factor_names) or tuple(f"factor {k}" for k in range(len(varies)))
    out: dict[str, Any] = {
        "scores": {},
        "factors": [title for title, used in zip(titles, varies, strict=True) if used],
        "factors_left_out": [title for title, used in zip(titles, varies, strict=True) if not used],
    }
    refused: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i, name in enumerate(names):
            if on_progress is not None:
                on_progress(name, i / len(names))
            try:
                score = metrics.METRICS[name](codes, factors, seed=seed)
            except ValueError as error:
                if not lenient:
                    raise
                refused.append(str(error))
                continue
            out["scores"][name] = {"value": score.value, "details": score.details}
    said = [_nameless(w.message) for w in caught]
    out["notes"] = list(dict.fromkeys([*_score_notes(out, len(codes)), *said, *refused]))
    return out


def _score_notes(out: dict[str, Any], n: int) -> list[str]:
    """How to read the scores of few rows, and of real-valued factors."""
    notes = []
    if n < FEW_ROWS and any("null" in score["details"] for score in out["scores"].values()):
        notes.append(
            f"With {n} rows noise scores well above its chance at times: compare each score with that of "
            "permuted factors."
        )
    by = [name for name, score in out["scores"].items() if score["details"].get("binned")]
    binned = {k for name in by for k in out["scores"][name]["details"]["binned"]}
    if binned:
        titles = ", ".join(out["factors"][k] for k in sorted(binned))
        notes.append(f"Cut in {MOST_VALUES} bins of equal width by {', '.join(by)}: {titles}.")
    return notes


def _nameless(warning: Warning | str) -> str:
    """On one line and without the metric's name: several warn of one thing, which is said once."""
    text = " ".join(str(warning).split())
    name, _, rest = text.partition(": ")
    text = rest if name.replace("_", "-") in metrics.METRICS else text
    return text[:1].upper() + text[1:]


def applicable(data: Data) -> list[str]:
    """Measures that suit the data; without ``dci``, which takes minutes."""
    images = len(data.x_shape) == 3
    names = [name for name in MEASURES if name != "sharpness" or images]
    if data.factors is not None and (np.ptp(data.factors, axis=0) > 0).any():
        names += [name for name in metrics.METRICS if name != "dci"]
    return names


def check_measures(names: Sequence[str], data: Data) -> list[str]:
    """The same names, each known and suiting the data.

    Raises:
        ValueError: one sentence.
    """
    check_known(names, (*MEASURES, *metrics.METRICS), "--metrics")
    for name in names:
        if name == "sharpness" and len(data.x_shape) != 3:
            raise ValueError(
                f"--metrics sharpness needs images; x has shape {data.x_shape}. Leave it out."
            )
        if name in metrics.METRICS and (
            data.factors is None or not (np.ptp(data.factors, axis=0) > 0).any()
        ):
            raise ValueError(
                f"--metrics {name} needs ground-truth factors that vary; the data have none. Leave it out."
            )
    return list(names)


def _terms(codes: Codes) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, values in (
        ("log_px_z", codes.log_px_z),
        ("kl", codes.kl),
        ("elbo", codes.log_px_z - codes.kl),
    ):
        out[name] = values.mean().item()
        out[f"{name}_se"] = standard_error(values)
    # Over x; of one-sample estimates it would be mostly their noise.
    out["kl_sd"] = codes.kl.std(correction=0).item() if codes.kl_closed_form else None
    out["kl_estimator"] = "closed form" if codes.kl_closed_form else "Monte Carlo, 1 sample"
    out["posterior_scale"] = codes.scale.mean().item()
    return out


def _latents(vae: VAE, codes: Codes) -> dict[str, Any]:
    loc, split = codes.loc.cpu().numpy(), codes.kl_per_latent
    out: dict[str, Any] = {"latents": loc.shape[1]}
    out["kl_per_latent"] = None if split is None else split.tolist()
    details = metrics.active_units(loc, None if split is None else split.cpu().numpy()).details
    if split is not None:
        out["active_latents"] = details["active_by_kl_indices"]
        out["idle_means"] = f"carry < {details['kl_threshold']} nats"
    else:
        out["active_latents"] = details["active"]
        least = details["variance_threshold"]
        out["idle_means"] = f"do not move with x (variance of posterior means < {least})"
    out["active_units"] = len(out["active_latents"])
    signal = codes.loc.var(0, correction=0) / codes.scale.square().mean(0)
    out["signal_per_latent"] = signal.tolist()
    if loc.shape[1] > 2:
        score = metrics.hoyer(loc)
        if score.details["dimensions"] < 2:
            return out  # it compares latents
        out["hoyer"], out["hoyer_null"] = score.value, score.details["null"]
        out["hoyer_unnormalised"] = score.details["unnormalised"]
        out["hoyer_dead"] = score.details["dead"]
        prior = vae.p_z().sample((10_000,))[:, score.details["kept"]]  # the same latents
        out["hoyer_prior"] = metrics.hoyer(prior.cpu().numpy()).value
    return out


def _clusters(vae: VAE, codes: Codes, data: Data) -> dict[str, Any]:
    assign = getattr(vae.prior, "assign", None)
    if not callable(assign):
        return {}
    assigned = assign(codes.loc).cpu().numpy()
    labels = assigned if data.labels is None else np.asarray(data.labels)
    score = metrics.cluster_scores(assigned, labels, codes=codes.loc.cpu().numpy())
    out: dict[str, Any] = {name: score.details[name] for name in ("components_used", "silhouette")}
    out["components"] = int(getattr(vae.prior, "n_components", 0))
    if data.labels is not None:
        out |= {"purity": score.value, "nmi": score.details["nmi"], "ari": score.details["ari"]}
        out["classes"] = len(np.unique(labels))
    return out


def _log_marginal(subject: _Subject) -> dict[str, Any]:
    vae, data, n_samples = subject.vae, subject.data, subject.n_samples
    affordable = _DECODED_ENTRIES // (n_samples * int(np.prod(data.x_shape)))
    n = min(len(data), subject.n_rows or max(100, affordable))
    rows = data.subset(np.linspace(0, len(data) - 1, n).astype(np.int64))
    values: list[Tensor] = []
    for x, labels in batches(vae, rows, subject.transform, _MARGINAL_BATCH):
        values.append(log_marginal(vae, x, labels, n_samples=n_samples))
        subject.progress(min(1.0, len(values) * _MARGINAL_BATCH / n))
    log_p_x = torch.cat(values)
    return {
        "log_marginal": log_p_x.mean().item(),
        "log_marginal_se": standard_error(log_p_x),
        "log_marginal_samples": n_samples,
        "log_marginal_rows": n,
    }


def _aggregate(subject: _Subject) -> dict[str, Any]:
    by_name = {"inclusive-kl": inclusive_kl, "mmd": mmd, "mmd-per-dim": mmd_per_dim}
    out = information(subject.vae, subject.codes)
    out |= divergences(subject.vae, subject.codes, by_name)
    # With all the rows as components these two are what `information` measures.
    out["divergences"] |= {
        "exclusive-kl": out["aggregate_kl"],
        "total-correlation": out["total_correlation"],
    }
    score = metrics.gaussian_total_correlation(subject.codes.loc.cpu().numpy())
    return out | {"gaussian_total_correlation": score.value}


def _sharpness(subject: _Subject) -> dict[str, Any]:
    vae, data = subject.vae, subject.data
    n = min(len(data), _SHARPNESS_ROWS)
    rows = data.subset(np.linspace(0, len(data) - 1, n).astype(np.int64))
    shown, originals = [], []
    for x, labels in batches(vae, rows, subject.transform):
        shown.append(vae.reconstruct(x, labels).clamp(0, 1).cpu().numpy())
        originals.append(x.cpu().numpy())
    return {
        "sharpness": metrics.sharpness(np.concatenate(shown)).value,
        "sharpness_data": metrics.sharpness(np.concatenate(originals)).value,
        "sharpness_rows": n,
    }


MEASURES: dict[str, Callable[[_Subject], dict[str, Any]]] = {
    "log-marginal": _log_marginal,
    "aggregate": _aggregate,
    "sharpness": _sharpness,
}
"""What `evaluate` takes on request, beside the metrics of `pyro_bvae.metrics.METRICS`."""
