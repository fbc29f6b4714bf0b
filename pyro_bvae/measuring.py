"""From a model and its data to metrics.json, examples.npz and figures/ in a run's directory."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from .build import Built, check_values, load, load_whole, make_divergence, make_transform, make_vae
from .config import FORMAT, Config, default_divergence
from .datasets import Data
from .evaluation import (
    Codes,
    Progress,
    applicable,
    baseline_codes,
    check_measures,
    diagnose,
    encode_data,
    evaluate,
    score_codes,
    spaced,
    vae_device,
)
from .figures import write_figures
from .metrics import METRICS
from .metrics.checks import check_pair
from .training import Record
from .vae import VAE

_EXAMPLES = 16


def measure(path: Path, built: Built, history: list[Record]) -> None:
    """At the end of a training: held-out measures, examples and pictures."""
    c = built.config
    torch.manual_seed(c.seed)
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
    write_json(path / "metrics.json", metrics)
    _write_examples(path, built.test, codes)
    write_figures(path / "figures", built.vae, built.train, built.test, codes, history)


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
    seed: int = 0,
) -> tuple[dict[str, Any], Path]:
    """Measure a finished run by more measures or on other rows; its data are loaded anew.

    Args:
        path: the run directory.
        config: the run's.
        vae: its model.
        on: ``"test"``, ``"train"``, or the path of a file or folder of data.
        measures: as in `evaluate`.
        n_samples, n_rows, on_progress, seed: as in `evaluate`.

    Returns:
        The measures, and where they were written: ``metrics.json`` for the held-out rows, where what is
        not measured again is kept; ``metrics-<name>.json`` for other rows.

    Raises:
        ValueError, TypeError, OSError: before any work.
    """
    data = _rows(config, on)
    names = applicable(data) if measures is None else check_measures(measures, data)
    if vae.n_classes and data.n_classes > vae.n_classes:
        raise ValueError(
            f"--on {on}: labels must be below {vae.n_classes}, the classes of the run; got "
            f"{data.n_classes - 1}. Leave those rows out."
        )
    x, labels = data.tensors(np.arange(min(len(data), 4)), vae_device(vae))
    vae.check(x, labels if vae.n_classes else None)
    target = path / ("metrics.json" if on == "test" else f"metrics-{Path(on).stem}.json")
    kept = _kept(target, on)
    transform = make_transform(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        codes = encode_data(vae, data, transform)
    measured = evaluate(
        vae,
        data,
        divergence=make_divergence(config, _divergence_name(config), len(data)),
        transform=transform,
        codes=codes,
        measures=names,
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
        _write_examples(path, data, codes)
    return metrics, target


def measure_baseline(
    path: Path,
    config: Config,
    baseline: str,
    *,
    on: str = "test",
    measures: Sequence[str] | None = None,
    on_progress: Progress | None = None,
    seed: int = 0,
) -> tuple[dict[str, Any], Path]:
    """Disentanglement metrics of a baseline's codes of a run's data: the run's own are compared with them.

    Args:
        path, config, on, measures, on_progress, seed: as in `measure_run`.
        baseline: a name that `baseline_codes` takes, or ``"untrained"``: the run's model as it is before
            its first step.

    Returns:
        The measures, and where they were written: ``metrics-<baseline>.json``, with the rows' name
        unless they are the held-out ones.

    Raises:
        ValueError, TypeError, OSError: before any work; among others where the data have no factors.
    """
    train, test = load(config)
    data = spaced(_rows(config, on, (train, test)))
    scores = _metric_names(measures)
    check_measures(scores, data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if baseline == "untrained":
            codes = _untrained(config, (train, test), data)
        else:
            codes = baseline_codes(baseline, train, data, cast(int, config.latent_dim), seed)
    metrics: dict[str, Any] = {
        "format": FORMAT,
        "baseline": baseline,
        "on": on,
        "n": len(data),
        "seed": seed,
    }
    metrics |= {"latents": codes.shape[1]} | score_codes(
        codes,
        cast(np.ndarray, data.factors),
        scores,
        factor_names=data.factor_names,
        on_progress=on_progress,
        seed=seed,
    )
    metrics["notes"] += [" ".join(str(warning.message).split()) for warning in caught]
    rows = "" if on == "test" else f"-{Path(on).stem}"
    target = path / f"metrics-{baseline}{rows}.json"
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
        codes: .npy, or .npz whose array is called codes, z or loc or is the only one: ``(n, latent_dim)``.
        factors: the same, called factors or latents_classes: integers ``(n, n_factors)``.
        measures: metric names; None for all but ``dci``.
        on_progress, seed: as in `evaluate`.

    Returns:
        ``n``, ``latents``, ``seed`` and what `score_codes` returns.

    Raises:
        FileNotFoundError, ValueError, TypeError: one sentence, before any work.
    """
    z = _read_array("--codes", codes, ("codes", "z", "loc"))
    f = _read_array("--factors", factors, ("factors", "latents_classes"))
    check_pair("evaluate", z, f)  # what it returns has lost the factors' order
    names = _metric_names(measures)
    about = {"n": len(z), "latents": z.shape[1], "seed": seed}
    return about | score_codes(z, f, names, on_progress=on_progress, seed=seed)


def _metric_names(measures: Sequence[str] | None) -> list[str]:
    if measures is None:
        return [name for name in METRICS if name != "dci"]
    wrong = [name for name in measures if name not in METRICS]
    if wrong:
        raise ValueError(
            f"--metrics of codes must be among {', '.join(METRICS)}; got {wrong[0]!r}."
        )
    return list(measures)


def _read_array(option: str, path: Path, keys: tuple[str, ...]) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{option} must name a .npy or .npz file; {path} is not there.")
    rule = f"{option} must be a .npy file, or .npz with one array or one called {' or '.join(keys)}"
    try:
        with path.open("rb") as opened:
            found = np.load(opened, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            names = [k for k in keys if k in found.files] or found.files[: len(found.files) == 1]
            if names:
                return np.asarray(found[names[0]])
            held = ", ".join(found.files) or "no array"
    except Exception as error:  # numpy and zipfile raise many kinds on damaged files
        raise ValueError(f"{rule}; {path} cannot be read ({type(error).__name__}).") from error
    raise ValueError(f"{rule}; {path} holds {held}. Rename one.")


def check_writable(path: Path) -> None:
    """Refuse a place that cannot be written, before any work."""
    parent = path.absolute()
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise PermissionError(
            f"--out must lie where one can write; {parent} is not writable. Choose another place."
        )


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` to a temporary name, then rename: no reader sees half a file."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


def _untrained(config: Config, parts: tuple[Data, Data], data: Data) -> np.ndarray:
    n_classes = max(part.n_classes for part in parts) if config.conditional else 0
    train = parts[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        vae = make_vae(config, train.x_shape, n_classes, x=train.x)
        return encode_data(vae, data, make_transform(config)).loc.numpy()


def _rows(config: Config, on: str, parts: tuple[Data, Data] | None = None) -> Data:
    """The rows ``on`` names, checked as training checks its own; ``parts``, where they are loaded."""
    if on in ("test", "train"):
        return (parts or load(config))[on == "test"]
    data = load_whole(config, on)
    check_values(config, data)
    return data


def _kept(path: Path, on: str) -> dict[str, Any]:
    """What ``path`` holds already of the same rows: other data may go by the same name."""
    if not path.is_file():
        return {}
    try:
        found = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"evaluate: {path} must be JSON; {error}. Delete it.") from error
    return found if found.get("on", "test") == on else {}


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


def _write_examples(path: Path, data: Data, codes: Codes) -> None:
    """Some held-out rows and their posteriors: traversals start there, with no data set at hand."""
    # Evenly spaced: the first rows may all be of one class.
    rows = np.linspace(0, len(data) - 1, min(len(data), _EXAMPLES)).astype(np.int64)
    x, labels = data.tensors(rows)
    arrays = {
        "x": x.numpy(),
        "loc": codes.loc[rows].cpu().numpy(),
        "scale": codes.scale[rows].cpu().numpy(),
    }
    if labels is not None:
        arrays["labels"] = labels.numpy()
    temporary = path / "examples.npz.new"
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    os.replace(temporary, path / "examples.npz")
