"""The pictures of a run: from the model and its codes to PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .datasets import Data, to_float
from .evaluation import Codes
from .training import Record
from .vae import VAE

_SHOWN = 64


def write_figures(
    folder: Path, vae: VAE, train: Data, test: Data, codes: Codes, history: list[Record]
) -> list[Path]:
    """Draw data, aggregate posterior, reconstructions, samples and training curves into ``folder``.

    ``codes`` are those of ``test``. The generator is left as it was.
    """
    from . import plots

    training = vae.training
    vae.eval()
    device = codes.loc.device
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.no_grad(),
        ):
            torch.manual_seed(0)
            points = len(train.x_shape) == 1
            shown = _rows(test, 400 if points else 30)
            labels = _labels(test, shown)
            x = to_float(torch.from_numpy(np.array(test.batch(shown))))
            given = labels.to(device) if vae.n_classes and labels is not None else None
            x_hat = vae.reconstruct(x.to(device), given)
            n_drawn = 1000 if points else _SHOWN
            # One column of the 8 x 8 grid a class, as far as they reach.
            classes = (
                torch.arange(n_drawn, device=device) % 8 % vae.n_classes if vae.n_classes else None
            )
            figures: dict[str, Any] = {
                "data": plots.data(*_data(train, 2000 if points else _SHOWN)),
                "reconstructions": plots.reconstructions(
                    x.numpy(), _numpy(x_hat), None if labels is None else labels.numpy()
                ),
                "samples": plots.samples(
                    _samples(vae, n_drawn, classes),
                    reference=_data(train, 2000)[0] if points else None,
                ),
                "training": plots.training_curves(history),
            }
            if codes.loc.shape[1] >= 2:
                figures["aggregate_posterior"] = _aggregate(vae, test, codes)
    finally:
        vae.train(training)
    folder.mkdir(exist_ok=True)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150)
    return paths


def save_samples(path: Path, vae: VAE, n: int, label: int | None = None, seed: int = 0) -> None:
    """Draw ``n`` samples of ``vae`` into a PNG, or their numbers into an NPZ (``x``, ``labels``).

    Raises:
        ValueError: another suffix; a label where the model has no classes, or beyond them.
        OSError: the folder cannot be made.
    """
    if path.suffix not in (".png", ".npz"):
        raise ValueError(f"--out must end in .png or .npz; got {path.name!r}.")
    if label is not None and not vae.n_classes:
        raise ValueError(f"--label needs a conditional model; got {label}. Leave it out.")
    if label is not None and label >= vae.n_classes:
        raise ValueError(f"--label must be below {vae.n_classes}; got {label}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"--out must lie where one can write; got {path} ({error.strerror}). Choose another place."
        ) from error
    device = next(vae.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        labels = None
        if vae.n_classes:
            labels = torch.arange(n, device=device) % vae.n_classes
            labels = labels if label is None else torch.full_like(labels, label)
        x = _samples(vae, n, labels)
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {"x": x} if labels is None else {"x": x, "labels": _numpy(labels)}
        np.savez_compressed(path, **arrays)
        return
    from . import plots

    plots.samples(x).savefig(path, dpi=150)


def _aggregate(vae: VAE, test: Data, codes: Codes) -> Any:
    """q(z) over two latents: all of it at two dimensions, else over the two that carry most."""
    from . import plots

    loc, scale = codes.loc.cpu().numpy(), codes.scale.cpu().numpy()
    if loc.shape[1] == 2:
        device = codes.loc.device

        def log_prior(z: np.ndarray) -> np.ndarray:
            points = torch.as_tensor(z, dtype=codes.loc.dtype, device=device)
            return _numpy(vae.p_z().log_prob(points))

        return plots.aggregate_posterior(loc, scale, prior=log_prior, labels=test.labels)
    # Var(mu) / E(sigma^2) orders latents where the KL does not split over them.
    order = codes.kl_per_latent
    informative = _numpy(order) if order is not None else loc.var(0) / (scale**2).mean(0)
    pair = np.argsort(-informative)[:2]
    names = (f"z{pair[0] + 1}", f"z{pair[1] + 1}")
    return plots.aggregate_posterior(
        loc[:, pair], scale[:, pair], labels=test.labels, names=names,
        title="aggregate posterior q(z), the two latents that carry most",
    )  # fmt: skip


def _samples(vae: VAE, n: int, labels: Tensor | None) -> np.ndarray:
    p_x = vae.p_x(vae.p_z().sample((n,)), labels)
    # A point's noise is part of the picture; an image's is dust on it.
    return _numpy(p_x.sample() if len(p_x.event_shape) == 1 else p_x.mean)


def _rows(data: Data, n: int) -> np.ndarray:
    return np.arange(min(n, len(data)))


def _labels(data: Data, rows: np.ndarray) -> Tensor | None:
    return None if data.labels is None else torch.from_numpy(np.array(data.labels[rows]))


def _data(data: Data, n: int) -> tuple[np.ndarray, np.ndarray | None]:
    rows = np.linspace(0, len(data) - 1, min(n, len(data))).astype(np.int64)
    x = to_float(torch.from_numpy(np.array(data.batch(rows)))).numpy()
    return x, None if data.labels is None else data.labels[rows]


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
