"""Draws from a trained model, as a picture or as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..vae import VAE, evaluating, vae_device
from ..writing import check_file, replacing
from .base import array, called, save_png


def save_samples(
    path: Path,
    vae: VAE,
    n: int,
    label: int | None = None,
    seed: int = 0,
    class_names: Sequence[str] = (),
) -> None:
    """Draw ``n`` samples of ``vae`` into a PNG, or their numbers into an NPZ (``x``, ``labels``).

    Raises:
        ValueError: another suffix; a label where the model has no classes, or beyond them.
        OSError: nothing can be written there.
    """
    check_label(vae, label)
    check_file(path, (".png", ".npz"))
    from .. import plots

    with evaluating(vae, seed):
        labels = labels_in_turn(vae, n)
        if labels is not None and label is not None:
            labels = torch.full_like(labels, label)
        x = draw_samples(vae, n, labels)
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {"x": x}
        if labels is not None:
            arrays["labels"] = array(labels)
        with replacing(path) as temporary:
            np.savez_compressed(temporary, **arrays)
        return
    title = "samples from the prior"
    if labels is not None:
        title += ", classes in turn" if label is None else f", {called(label, class_names)}"
    with replacing(path) as temporary:
        save_png(plots.samples(x, title), temporary)


def check_label(vae: VAE, label: int | None) -> None:
    """Refuse a class that the model does not have.

    Raises:
        ValueError: a label where the model has no classes, or beyond them.
    """
    if label is not None and not vae.n_classes:
        raise ValueError(f"--label needs a conditional model; got {label}. Leave it out.")
    if label is not None and label >= vae.n_classes:
        raise ValueError(f"--label must be below {vae.n_classes}; got {label}.")


def samples_by_class(
    vae: VAE, class_names: Sequence[str] = (), rows: int = 8, most: int = 10
) -> Any:
    """One z a row, one class a column: what the latents hold once the label is given."""
    from .. import plots

    columns = min(vae.n_classes, most)
    z = vae.p_z().sample((rows,)).repeat_interleave(columns, 0)
    labels = torch.arange(columns, device=z.device).repeat(rows)
    x = array(vae.p_x(z, labels).mean)
    names = [called(k, class_names) for k in range(columns)]
    title = "samples, label by column"
    return plots.traversals(
        x.reshape(rows, columns, *x.shape[1:]), [f"draw {i}" for i in range(rows)], names, title
    )


def draw_samples(vae: VAE, n: int, labels: Tensor | None) -> np.ndarray:
    """``n`` draws of z ~ p(z), decoded: samples of p(x|z) for points, its means for images."""
    p_x = vae.p_x(vae.p_z().sample((n,)), labels)
    # A point's noise is part of the picture; an image's is dust on it.
    return array(p_x.sample() if len(p_x.event_shape) == 1 else p_x.mean)


def labels_in_turn(vae: VAE, n: int) -> Tensor | None:
    """0, 1, 2, ... over the classes of a conditional model, ``(n,)``; None for another."""
    return torch.arange(n, device=vae_device(vae)) % vae.n_classes if vae.n_classes else None
