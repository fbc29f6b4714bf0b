"""The pictures of a run: from the model and its codes to PNG files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from .datasets import Data
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
    training = vae.training
    vae.eval()
    try:
        with _own_noise(vae, 0):
            figures = _figures(vae, train, test, codes)
    finally:
        vae.train(training)
    from . import plots

    figures["training"] = plots.training_curves(history)
    folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    return [folder / f"{name}.png" for name in figures]


def _figures(vae: VAE, train: Data, test: Data, codes: Codes) -> dict[str, Any]:
    from . import plots

    points = len(train.x_shape) == 1
    x, labels = _data(test, np.arange(min(len(test), 400 if points else 30)))
    given = torch.from_numpy(labels) if vae.n_classes and labels is not None else None
    device = codes.loc.device
    x_hat = vae.reconstruct(
        torch.from_numpy(x).to(device), None if given is None else given.to(device)
    )
    n = 500 if points else _SHOWN
    spread = np.linspace(0, len(train) - 1, min(n, len(train))).astype(np.int64)
    shown, shown_labels = _data(train, spread)
    figures = {
        "data": plots.data(shown, shown_labels),
        "reconstructions": plots.reconstructions(x, _numpy(x_hat), labels),
    }
    if vae.n_classes and not points:
        figures["samples"] = _samples_by_class(vae)
    else:
        drawn = _labels_in_turn(vae, n, device)
        figures["samples"] = plots.samples(
            _samples(vae, n, drawn), reference=shown if points else None
        )
    if codes.loc.shape[1] >= 2 and codes.diagonal:
        figures["aggregate_posterior"] = _aggregate(vae, test, codes)
    return figures


def _samples_by_class(vae: VAE, rows: int = 8, most: int = 10) -> Any:
    """One z a row, one class a column: what the latents hold once the label is given."""
    from . import plots

    columns = min(vae.n_classes, most)
    z = vae.p_z().sample((rows,)).repeat_interleave(columns, 0)
    labels = torch.arange(columns, device=z.device).repeat(rows)
    x = _numpy(vae.p_x(z, labels).mean)
    names = [f"class {k}" for k in range(columns)]
    title = "samples, label by column"
    return plots.traversals(
        x.reshape(rows, columns, *x.shape[1:]), [f"draw {i}" for i in range(rows)], names, title
    )


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
    from . import plots

    with _own_noise(vae, seed):
        labels = _labels_in_turn(vae, n, next(vae.parameters()).device)
        if labels is not None and label is not None:
            labels = torch.full_like(labels, label)
        x = _samples(vae, n, labels)
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {"x": x}
        if labels is not None:
            arrays["labels"] = _numpy(labels)
        np.savez_compressed(path, **arrays)
        return
    title = "samples from the prior"
    if labels is not None:
        title += ", classes in turn" if label is None else f", class {label}"
    plots.samples(x, title).savefig(path, dpi=150)


def _aggregate(vae: VAE, test: Data, codes: Codes) -> Any:
    """q(z) over two latents: all of it at two dimensions, else over the two that carry most."""
    from . import plots

    loc, scale = codes.loc.cpu().numpy(), codes.scale.cpu().numpy()
    pair, title = np.array([0, 1]), "aggregate posterior q(z)"
    if loc.shape[1] > 2:
        # Var(mu) / E(sigma^2) orders latents where the KL does not split over them.
        order = codes.kl_per_latent
        informative = _numpy(order) if order is not None else loc.var(0) / (scale**2).mean(0)
        pair = np.argsort(-informative)[:2]
        title += ", the two latents that carry most"
    return plots.aggregate_posterior(
        loc[:, pair],
        scale[:, pair],
        prior=_log_marginal(vae.p_z(), pair),
        labels=test.labels,
        names=(f"z{pair[0]}", f"z{pair[1]}"),
        title=title,
    )


def _log_marginal(p_z: Any, pair: np.ndarray) -> Callable[[np.ndarray], np.ndarray] | None:
    """Log-density of the prior's two latents ``pair``, where it is known in closed form."""
    dims = torch.from_numpy(pair)
    base = getattr(p_z, "base_dist", None)
    like = p_z.sample()
    if p_z.event_shape == (2,):
        log_prob = p_z.log_prob
    elif isinstance(p_z, dist.MixtureOfDiagNormals):
        parts = (p_z.locs[:, dims], p_z.coord_scale[:, dims], p_z.component_logits)
        log_prob = dist.MixtureOfDiagNormals(*parts).log_prob
    elif base is not None and base.batch_shape == p_z.event_shape:

        def log_prob(z: Tensor) -> Tensor:
            everywhere = like.expand(len(z), -1).clone()
            everywhere[:, dims] = z
            total: Tensor = base.log_prob(everywhere)[:, dims].sum(1)
            return total
    else:
        return None
    return lambda z: _numpy(log_prob(torch.as_tensor(z).to(like)))


def _samples(vae: VAE, n: int, labels: Tensor | None) -> np.ndarray:
    p_x = vae.p_x(vae.p_z().sample((n,)), labels)
    # A point's noise is part of the picture; an image's is dust on it.
    return _numpy(p_x.sample() if len(p_x.event_shape) == 1 else p_x.mean)


def _labels_in_turn(vae: VAE, n: int, device: torch.device) -> Tensor | None:
    return torch.arange(n, device=device) % vae.n_classes if vae.n_classes else None


@contextmanager
def _own_noise(vae: VAE, seed: int) -> Iterator[None]:
    """No gradients, a seed of its own, and the ambient generators left as they were."""
    device = next(vae.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        yield


def _data(data: Data, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    x, labels = data.tensors(rows)
    return x.numpy(), None if labels is None else labels.numpy()


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
