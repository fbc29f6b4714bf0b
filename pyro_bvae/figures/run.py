"""Every picture of a run that applies to its data and its model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from ..datasets import Data
from ..evaluation import Codes
from ..training import Record
from ..traversal import latent_order, manifold, prior_range
from ..vae import VAE, evaluating, vae_device
from ..writing import replacing
from .base import array, called, named, save_png
from .samples import draw_samples, labels_in_turn, samples_by_class
from .traversals import PNG_COLUMNS, POINT_COLUMNS, Start, draw, traverse

_SHOWN = 64  # images of data and samples
_ROWS = 10  # latents in one picture, those that carry most


def write_figures(
    folder: Path, vae: VAE, train: Data, test: Data, codes: Codes, history: list[Record]
) -> list[Path]:
    """Draw what applies into ``folder``, as PNG files.

    data, reconstructions, samples, training: always.
    aggregate_posterior: diagonal Normal posteriors of two latents or more.
    manifold: two latents. traversals: images, or more than two latents.
    class_means: labels, more than two latents, and a model that is not conditional.
    kl_per_latent: more than two latents, where the history holds their KL at two epochs or more.
    factor_responses: data with factors. position_maps: those with factors named posY and posX.

    Args:
        folder: made where there is none.
        vae: the model, left as it was.
        train, test: its data.
        codes: of ``test``.
        history: of the training.

    Returns:
        The files. The generator is left as it was.
    """
    with evaluating(vae, seed=0):
        figures = _of_x(vae, train, test) | _of_z(vae, train, test, codes)
    from .. import plots

    figures["training"] = plots.training_curves(history)
    measured = sum("test_kl_z0" in record for record in history)
    if codes.loc.shape[1] > 2 and measured > 1:
        figures["kl_per_latent"] = plots.kl_per_latent(history)
    folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        with replacing(folder / f"{name}.png") as temporary:
            save_png(figure, temporary)
    return [folder / f"{name}.png" for name in figures]


def _of_x(vae: VAE, train: Data, test: Data) -> dict[str, Any]:
    """Data, reconstructions and samples."""
    from .. import plots

    points = len(train.x_shape) == 1
    x, labels = _data(test, np.arange(min(len(test), 400 if points else 30)))
    names = test.class_names
    given = torch.from_numpy(labels) if vae.n_classes and labels is not None else None
    device = vae_device(vae)
    x_hat = vae.reconstruct(
        torch.from_numpy(x).to(device), None if given is None else given.to(device)
    )
    n = 500 if points else _SHOWN
    shown, shown_labels = _spread(train, n)
    if vae.n_classes and not points:
        samples = samples_by_class(vae, names)
    else:
        drawn = draw_samples(vae, n, labels_in_turn(vae, n))
        samples = plots.samples(drawn, reference=shown if points else None)
    return {
        "data": plots.data(shown, named(shown_labels, names)),
        "reconstructions": plots.reconstructions(x, array(x_hat), named(labels, names)),
        "samples": samples,
    }


def _of_z(vae: VAE, train: Data, test: Data, codes: Codes) -> dict[str, Any]:
    """Pictures of the latents, by their number and by what is known of the data."""
    from .. import plots

    points, latents = len(train.x_shape) == 1, codes.loc.shape[1]
    carried = _carried(codes)
    figures = {}
    if latents >= 2 and codes.diagonal:
        figures["aggregate_posterior"] = _aggregate(vae, test, codes)
    label = int(test.labels[0]) if vae.n_classes and test.labels is not None else None
    known = "" if label is None else called(label, test.class_names)
    if latents == 2:
        figures["manifold"] = _manifold(vae, train, label, known)
    if latents > 2 or not points:
        first = _data(test, np.arange(1))[0][0]
        start = Start(codes.loc[0], "held-out example 0", first, label, known)
        steps = POINT_COLUMNS if points else PNG_COLUMNS
        decoded = traverse(vae, carried, start, steps, most=_ROWS)
        figures["traversals"] = draw(decoded, _spread(train, 500)[0] if points else None)
    loc = array(codes.loc)
    if test.labels is not None and latents > 2 and not vae.n_classes:
        names = [called(k, test.class_names) for k in range(test.n_classes)]
        figures["class_means"] = plots.class_means(loc, test.labels, names)
    if (
        test.factors is not None and test.factors.dtype.kind == "i"
    ):  # others have no values to group by
        order, texts, _ = latent_order(carried)
        shown: dict[str, Any] = {"order": order[:_ROWS], "row_labels": texts[:_ROWS]}
        factor_names = test.factor_names or None
        if np.ptp(test.factors, axis=0).any():
            figures["factor_responses"] = plots.factor_responses(
                loc, test.factors, factor_names, **shown
            )
        if (places := _positions(test)) is not None:
            row, column = test.factors[:, places].T
            said = (test.factor_names[places[0]], test.factor_names[places[1]])
            figures["position_maps"] = plots.position_maps(loc, row, column, names=said, **shown)
    return figures


def _carried(codes: Codes) -> dict[str, Any]:
    """What `latent_order` reads, from the codes themselves."""
    kl, signal = codes.kl_per_latent, codes.loc.var(0) / (codes.scale**2).mean(0)
    return {
        "latents": codes.loc.shape[1],
        "kl_per_latent": None if kl is None else kl.tolist(),
        "signal_per_latent": signal.tolist(),
    }


def _manifold(vae: VAE, train: Data, label: int | None, known: str) -> Any:
    """The grid between the prior's 1 % and 99 % quantiles."""
    from .. import plots

    points = len(train.x_shape) == 1
    n = 45 if points else 15
    low, high = prior_range(vae)
    steps = torch.linspace(0, 1, n).to(low)
    across, up = (a + (b - a) * steps for a, b in zip(low, high, strict=True))
    x = array(manifold(vae, across, up, label))
    reference = _spread(train, 500)[0] if points else None
    title = "learned manifold" if label is None else f"learned manifold, {known}"
    return plots.manifold(x, (array(across), array(up)), reference=reference, title=title)


def _positions(data: Data) -> list[int] | None:
    """Columns of the y and the x position among the factors.

    They are those named posY and posX. Nothing tells what factors without names are.
    """
    names = [name.lower() for name in data.factor_names]
    if {"posy", "posx"} <= set(names):
        return [names.index("posy"), names.index("posx")]
    return None


def _aggregate(vae: VAE, test: Data, codes: Codes) -> Any:
    """q(z) over two latents: all of it at two dimensions, else over the two that carry most."""
    from .. import plots

    loc, scale = array(codes.loc), array(codes.scale)
    pair, title = np.array([0, 1]), "aggregate posterior q(z)"
    if loc.shape[1] > 2:
        pair = np.array(latent_order(_carried(codes))[0][:2])
        title += ", the two latents that carry most"
    return plots.aggregate_posterior(
        loc[:, pair],
        scale[:, pair],
        prior=_prior_density(vae.p_z(), pair),
        labels=named(test.labels, test.class_names),
        names=(f"z{pair[0]}", f"z{pair[1]}"),
        title=title,
    )


def _prior_density(p_z: Any, pair: np.ndarray) -> Callable[[np.ndarray], np.ndarray] | None:
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
    return lambda z: array(log_prob(torch.as_tensor(z).to(like)))


def _data(data: Data, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    x, labels = data.tensors(rows)
    return x.numpy(), None if labels is None else labels.numpy()


def _spread(data: Data, n: int) -> tuple[np.ndarray, np.ndarray | None]:
    """``n`` rows from the whole of the data, or all there are."""
    return _data(data, np.linspace(0, len(data) - 1, min(n, len(data))).astype(np.int64))
