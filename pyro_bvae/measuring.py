"""From a model and its data to metrics.json, examples.npz and figures/ in a run's directory."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from .build import Built, check_values, load, load_whole, make_divergence, make_transform, make_vae
from .config import FORMAT, Config, default_divergence
from .datasets import Data
from .datasets.names import listed
from .evaluation import (
    Progress,
    applicable,
    baseline_codes,
    check_measures,
    diagnose,
    encode_data,
    evaluate,
    read_codes,
    score_codes,
    spaced,
)
from .evaluation.codes import Transform
from .figures import write_figures
from .metrics import METRICS
from .metrics.checks import check_known
from .training import Callback, Record, TrainingState
from .vae import VAE, evaluating, vae_device, vae_dtype
from .writing import locked, read_class_names, read_json, replacing, write_json

_EVALUATIONS = 30  # held-out measurements during a training
_HELD_OUT_ROWS = 2000  # of each
_EXAMPLES = 16
_OF_TRAINING = ("rate_minus_log_batch", "training_seconds")  # what no evaluation can find again


def held_out_terms(built: Built) -> Callback:
    """Adds held-out terms to some of the records, without touching the noise of the training."""
    c = built.config
    batch = cast(int, c.batch_size)
    total_epochs = c.epochs or math.ceil(cast(int, c.steps) * batch / len(built.train))
    every = max(1, total_epochs // _EVALUATIONS)

    def add(record: Record, state: TrainingState) -> None:
        if state.epoch % every:
            return
        with evaluating(built.vae, seed=0):
            codes = encode_data(built.vae, spaced(built.test, _HELD_OUT_ROWS), built.transform)
        log_px_z, kl = codes.log_px_z.mean().item(), codes.kl.mean().item()
        record |= {"test_log_px_z": log_px_z, "test_kl": kl, "test_elbo": log_px_z - kl}
        if codes.kl_per_latent is not None:
            record |= {f"test_kl_z{d}": v for d, v in enumerate(codes.kl_per_latent.tolist())}

    return add


def measure(path: Path, built: Built, history: list[Record]) -> None:
    """At the end of a training: held-out measures, examples and pictures."""
    c = built.config
    with evaluating(built.vae, c.seed):
        codes = encode_data(built.vae, built.test, built.transform)
    name = _divergence_name(c)
    metrics = evaluate(
        built.vae,
        built.test,
        divergence=make_divergence(c, name, len(built.test)),
        codes=codes,
        seed=c.seed,
    )
    metrics |= _about(c, built.vae, built.test, "test")
    metrics["rate_minus_log_batch"] = history[-1].get("rate_minus_log_batch")
    metrics["diagnosis"] = diagnose(metrics, c)
    metrics["training_seconds"] = sum(record["seconds"] for record in history)
    _write_examples(path, built.vae, built.test, built.transform, c.seed)
    write_figures(path / "figures", built.vae, built.train, built.test, codes, history)
    write_json(path / "metrics.json", metrics)  # last: a run with its measures is finished


def measure_run(
    path: Path,
    config: Config,
    vae: VAE,
    *,
    on: str = "test",
    measures: Sequence[str] | None = None,
    n_samples: int = 1000,
    n_rows: int | None = None,
    on_progress: Progress | None = None,
    seed: int | None = None,
) -> tuple[dict[str, Any], Path]:
    """Measure a finished run by more measures or on other rows; its data are loaded anew.

    Args:
        path: the run directory.
        config: the run's.
        vae: its model.
        on: ``"test"``, ``"train"``, or the path of a file or folder of data.
        measures: as in `evaluate`.
        n_samples, n_rows, on_progress: as in `evaluate`.
        seed: of the noise; the run's own by default.

    Returns:
        The measures, and where they were written: ``metrics.json`` for the held-out rows, where what was
        measured before with this seed is kept; ``metrics-on-<name>.json`` for other rows.

    Raises:
        ValueError, TypeError, OSError: before any work.
        BlockingIOError: another process writes to the run.
    """
    with locked(path):
        return _measure_run(path, config, vae, on, measures, n_samples, n_rows, on_progress, seed)


def _measure_run(
    path: Path,
    config: Config,
    vae: VAE,
    on: str,
    measures: Sequence[str] | None,
    n_samples: int,
    n_rows: int | None,
    on_progress: Progress | None,
    seed: int | None,
) -> tuple[dict[str, Any], Path]:
    seed = config.seed if seed is None else seed
    data = _rows(config, on, read_class_names(path), vae.n_classes)
    names = applicable(data) if measures is None else check_measures(measures, data)
    _check_rows(vae, data, on)
    target = path / (
        "metrics.json" if on == "test" else f"metrics-on-{Path(on).resolve().stem}.json"
    )
    kept = _kept(target, on, len(data), seed)
    transform = make_transform(config)
    measured = evaluate(
        vae,
        data,
        divergence=make_divergence(config, _divergence_name(config), len(data)),
        transform=transform,
        measures=None if measures is None else names,
        n_samples=n_samples,
        n_rows=n_rows,
        on_progress=on_progress,
        seed=seed,
    )
    metrics = kept | measured
    if "scores" in kept and "scores" in measured:
        metrics["scores"] = kept["scores"] | measured["scores"]
        metrics["notes"] = list(dict.fromkeys(kept["notes"] + measured["notes"]))
    metrics |= _about(config, vae, data, on)
    metrics["diagnosis"] = diagnose(metrics, config)
    write_json(target, metrics)
    if on == "test":
        _write_examples(path, vae, data, transform, seed)
    return metrics, target


def measure_baseline(
    path: Path,
    config: Config,
    baseline: str,
    *,
    on: str = "test",
    measures: Sequence[str] | None = None,
    on_progress: Progress | None = None,
    seed: int | None = None,
) -> tuple[dict[str, Any], Path]:
    """Disentanglement metrics of a baseline's codes of a run's data: the run's own are compared with them.

    Args:
        path, config, on, measures, on_progress, seed: as in `measure_run`.
        baseline: a name that `baseline_codes` takes, or ``"untrained"``: the run's model as it is before
            its first step.

    Returns:
        The measures, and where they were written: ``metrics-baseline-<name>.json``, and so on for
        other rows than the held-out ones.

    Raises:
        ValueError, TypeError, OSError: before any work; among others where the data have no factors.
    """
    seed = config.seed if seed is None else seed
    parts = load(config)
    n_classes = parts[0].n_classes if config.conditional else 0
    data = spaced(_rows(config, on, read_class_names(path), n_classes, parts))
    if data.factors is None:
        raise ValueError("--baseline needs data with ground-truth factors; these have none.")
    scores = _metric_names(measures)
    check_measures(scores, data)
    rows = "" if on == "test" else f"-on-{Path(on).resolve().stem}"
    target = path / f"metrics-baseline-{baseline}{rows}.json"
    _kept(target, on, len(data), seed)  # refuses a file about other rows
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if baseline == "untrained":
            codes = _untrained(config, parts, data)
        else:
            codes = baseline_codes(baseline, parts[0], data, cast(int, config.latent_dim), seed)
    metrics: dict[str, Any] = {"format": FORMAT, "baseline": baseline, "on": on, "n": len(data)}
    metrics |= {"seed": seed, "latents": codes.shape[1]}
    metrics |= score_codes(
        codes,
        data.factors,
        scores,
        factor_names=data.factor_names,
        lenient=measures is None,
        on_progress=on_progress,
        seed=seed,
    )
    metrics["notes"] += [" ".join(str(warning.message).split()) for warning in caught]
    write_json(target, metrics)
    return metrics, target


def measure_codes(
    codes: Path,
    factors: Path,
    measures: Sequence[str] | None = None,
    *,
    on_progress: Progress | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Disentanglement metrics of codes on disk, made by any library.

    Args:
        codes, factors: as in `read_codes`.
        measures: metric names; None for all but ``dci``.
        on_progress, seed: as in `evaluate`.

    Returns:
        ``n``, ``latents``, ``seed`` and what `score_codes` returns.

    Raises:
        FileNotFoundError, ValueError, TypeError: one sentence, before any work.
    """
    names = _metric_names(measures)
    z, f = read_codes(codes, factors)
    about = {"n": len(z), "latents": z.shape[1], "seed": seed}
    lenient = measures is None
    return about | score_codes(z, f, names, lenient=lenient, on_progress=on_progress, seed=seed)


def _metric_names(measures: Sequence[str] | None) -> list[str]:
    if measures is None:
        return [name for name in METRICS if name != "dci"]
    check_known(measures, tuple(METRICS), "--metrics of codes")
    return list(measures)


def _untrained(config: Config, parts: tuple[Data, Data], data: Data) -> np.ndarray:
    train = parts[0]
    n_classes = max(part.n_classes for part in parts) if config.conditional else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        vae = make_vae(config, train.x_shape, n_classes, x=train.x)
        return encode_data(vae, data, make_transform(config)).loc.numpy()


def _rows(
    config: Config,
    on: str,
    class_names: tuple[str, ...],
    n_classes: int,
    parts: tuple[Data, Data] | None = None,
) -> Data:
    """The rows ``on`` names, checked as training checks its own.

    Args:
        config, class_names: of the run.
        on: as in `measure_run`.
        n_classes: of a conditional run, else 0.
        parts: of `load`, where they are loaded.
    """
    if on in ("test", "train"):
        return _as_numbered((parts or load(config))[on == "test"], class_names, n_classes, on)
    if not Path(on).exists():
        raise FileNotFoundError(
            f"--on must be test, train, or a file or folder that exists; got {on!r}."
        )
    data = load_whole(config, on)
    check_values(config, data)
    return _as_numbered(data, class_names, n_classes, on)


def _as_numbered(data: Data, known: tuple[str, ...], n_classes: int, on: str) -> Data:
    """Rows whose classes have names, numbered as the run numbers them; classes it lacks come after.

    Raises:
        ValueError: the run is conditional and lacks a class, or keeps no names of its own, as runs of
            older versions, and another number of classes.
    """
    names = data.class_names
    if data.labels is None or not names:
        return data
    if not known:
        if n_classes and len(names) != n_classes:
            raise ValueError(
                f"--on {on}: the run keeps no names of its {n_classes} classes, so there must be as many "
                f"in their order; got {listed(names)}. Number the labels in a .npz, as the run does."
            )
        return data
    new = [name for name in names if name not in known]
    if new and n_classes:
        raise ValueError(
            f"--on {on}: classes must be among those of the run, {listed(known)}; got {listed(new)}. "
            "Rename or leave them out."
        )
    names = (*known, *new)
    number = np.array([names.index(name) for name in data.class_names])
    return dataclasses.replace(data, labels=number[data.labels], class_names=names)


def _check_rows(vae: VAE, data: Data, on: str) -> None:
    """Refuse rows that the model cannot take."""
    if vae.n_classes and data.n_classes > vae.n_classes:
        raise ValueError(
            f"--on {on}: labels must be below {vae.n_classes}, the classes of the run; got "
            f"{data.n_classes - 1}. Leave those rows out."
        )
    if vae.n_classes and data.labels is None:
        raise ValueError(f"--on {on}: rows must have labels, as the run is conditional; got none.")
    x, labels = data.tensors(np.arange(min(len(data), 4)), vae_device(vae), vae_dtype(vae))
    try:
        vae.check(x, labels if vae.n_classes else None)
    except ValueError as error:
        raise ValueError(
            f"--on {on}: rows must be shaped as those of the run; the model cannot take "
            f"{data.x_shape}. Measure the run on data like its own."
        ) from error


def _kept(path: Path, on: str, n: int, seed: int) -> dict[str, Any]:
    """What ``path`` holds already of the same rows, measured alike.

    Raises:
        ValueError: it is about other rows that go by the same name, or damaged.
    """
    if not path.is_file():
        return {}
    try:
        found = read_json(path)
        if not isinstance(found.get("scores", {}), dict) or not isinstance(
            found.get("notes", []), list
        ):
            raise ValueError("its scores or notes are of another kind")
    except ValueError as error:
        raise ValueError(f"evaluate: {path} must be what it wrote; {error} Delete it.") from error
    other = found.get("on", "test")
    if other != on:
        raise ValueError(
            f"--on {on}: the file for its measures, {path}, holds those of {other}. Rename one."
        )
    if on in ("test", "train") and (found.get("n"), found.get("seed")) == (n, seed):
        return found
    return {name: found[name] for name in _OF_TRAINING if name in found}


def _divergence_name(config: Config) -> str:
    if config.beta_tc is not None:
        return "total-correlation"
    return config.divergence or default_divergence(cast(int, config.latent_dim))


def _about(config: Config, vae: VAE, data: Data, on: str) -> dict[str, Any]:
    """What a reader of the numbers must know."""
    about: dict[str, Any] = {
        "format": FORMAT,
        "on": on,
        "divergence_name": _divergence_name(config),
        "beta": vae.beta,
        "bound_on": "log p(x|y)" if vae.n_classes else "log p(x)",
    }
    if len(data.x_shape) == 3:  # Higgins 2017's normalised beta
        about["beta_norm"] = vae.beta * cast(int, config.latent_dim) / math.prod(data.x_shape)
    return about


def _write_examples(path: Path, vae: VAE, data: Data, transform: Transform, seed: int) -> None:
    """Some held-out rows and their posteriors: traversals start there, with no data set at hand."""
    # Evenly spaced: the first rows may all be of one class.
    rows = np.linspace(0, len(data) - 1, min(len(data), _EXAMPLES)).astype(np.int64)
    x, labels = data.tensors(rows, vae_device(vae), vae_dtype(vae))
    with evaluating(vae, seed):
        x = x if transform is None else transform(x)
        q_z = vae.q_z(x, labels if vae.n_classes else None)
    tensors = {"x": x, "loc": q_z.mean, "scale": q_z.variance.sqrt()}
    if labels is not None:
        tensors["labels"] = labels
    arrays: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    with replacing(path / "examples.npz") as temporary:
        np.savez_compressed(temporary, **arrays)
