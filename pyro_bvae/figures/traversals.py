"""Traversals as pictures and as moving pictures, from a held-out example or from z = 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..traversal import decode, latent_order, prior_range, traversal
from ..vae import VAE, evaluating, vae_device
from ..writing import check_file, replacing
from .animation import animate_images, animate_points
from .base import array, called, save_png
from .samples import check_label, draw_samples, labels_in_turn

SPAN = 3.0
PNG_COLUMNS, _GIF_COLUMNS = 9, 16
POINT_COLUMNS = 25  # a curve is smooth only if its points lie close


class Start(NamedTuple):
    """Where a traversal begins."""

    z: torch.Tensor  # (latent_dim,)
    name: str  # for the title
    x: np.ndarray | None = None  # (*x_shape): the example that was encoded to z
    label: int | None = None
    called: str = ""  # the class of the label


class Traversal(NamedTuple):
    """A traversal, decoded and named."""

    x: np.ndarray  # (rows, columns, *x_shape)
    row_labels: list[str]
    column_labels: list[str]
    title: str
    start: np.ndarray | None  # (2, *x_shape): the example and its reconstruction


def save_traversal(
    path: Path,
    vae: VAE,
    metrics: Mapping[str, Any],
    examples: Mapping[str, np.ndarray] | None,
    *,
    example: int = 0,
    span: float | None = None,
    quantiles: bool = False,
    columns: int | None = None,
    active: bool = False,
    label: int | None = None,
    class_names: Sequence[str] = (),
) -> None:
    """Move one latent at a time, the others held at an example's code, into a PNG or a GIF.

    Args:
        path: ends in .png or .gif.
        vae: the model.
        metrics: of the run, for the latents' order; see `latent_order`. Empty where it has none.
        examples: ``x``, ``loc`` and maybe ``labels`` of held-out rows; without them z starts at 0.
        example: which of their rows.
        span: values go from -span to span. Default: see `traverse`.
        quantiles: values go from the prior's 1 % quantile to its 99 % quantile instead.
        columns: how many values, 9 by default; a GIF goes through 16 and back.
        active: only latents that carry something; see `latent_order`.
        label: the class held, for a conditional model. Default: the example's own.
        class_names: ``class_names[label]`` is shown instead of the number.

    Raises:
        ValueError, OSError: before any work.
    """
    check_values(span, quantiles, columns)
    check_label(vae, label)
    start = find_start(vae, examples, example, label)
    if start.label is not None:
        start = start._replace(called=called(start.label, class_names))
    _order(metrics, start, active)
    check_file(path, (".png", ".gif"))  # last, as it makes the folder
    if columns is None:
        still = PNG_COLUMNS if start.x is None or start.x.ndim > 1 else POINT_COLUMNS
        columns = _GIF_COLUMNS if path.suffix == ".gif" else still
    decoded = traverse(vae, metrics, start, columns, span, quantiles, active)
    reference = None
    if decoded.x.ndim == 3:
        with evaluating(vae, seed=0):
            reference = draw_samples(vae, 500, labels_in_turn(vae, 500))
    with replacing(path) as temporary:
        if path.suffix == ".png":
            save_png(draw(decoded, reference, "samples"), temporary)
        elif decoded.x.ndim == 3:
            figure = draw(decoded, reference, "samples")
            animate_points(temporary, figure, decoded.x, reference)
        else:
            names = [text.split("\n")[0] for text in decoded.row_labels]
            animate_images(temporary, decoded.x, names, decoded.start)


def check_values(span: float | None, quantiles: bool, columns: int | None) -> None:
    """Refuse values to move through that make no sense.

    Raises:
        ValueError: span with quantiles, a span that is not positive and finite, fewer than 2 columns.
    """
    if span is not None and quantiles:
        raise ValueError("--span must not stand beside --quantiles; got both. Choose one.")
    if span is not None and not 0 < span < float("inf"):
        raise ValueError(f"--span must be positive and finite; got {span:g}. Try --span {SPAN:g}.")
    if columns is not None and columns < 2:
        raise ValueError(f"--columns must be 2 or more; got {columns}.")


def find_start(
    vae: VAE, examples: Mapping[str, np.ndarray] | None, example: int = 0, label: int | None = None
) -> Start:
    """The code of an example, or z = 0 where the run holds none.

    Raises:
        ValueError: there is no such example.
    """
    device = vae_device(vae)
    n = 0 if examples is None else len(examples["loc"])
    if not 0 <= example < max(n, 1):
        held = f"from 0 to {n - 1}" if n else "0, as this run holds none and starts at z = 0"
        raise ValueError(f"--example must be {held}; got {example}.")
    if examples is None:
        held_label = (label or 0) if vae.n_classes else None
        with torch.no_grad():
            z = torch.zeros(vae.p_z().event_shape, device=device)
        return Start(z, "z = 0", None, held_label)
    if vae.n_classes and label is None:
        label = int(examples["labels"][example])
    z = torch.as_tensor(examples["loc"][example], device=device)
    return Start(z, f"held-out example {example}", examples["x"][example], label)


def traverse(
    vae: VAE,
    metrics: Mapping[str, Any],
    start: Start,
    columns: int = PNG_COLUMNS,
    span: float | None = None,
    quantiles: bool = False,
    active: bool = False,
    most: int | None = None,
) -> Traversal:
    """Decode the traversal of a picture.

    Without ``span`` and ``quantiles``, values go from -3 to 3 if the prior's latents all lie about
    as N(0, 1) does, else over the prior's quantiles: a prior of another scale has no use for -3.
    """
    order, texts, how = _order(metrics, start, active)
    if most is not None and len(order) > most:
        how += f", {most} of {len(order)}"
    order, texts = order[:most], texts[:most]
    low, high = prior_range(vae)[:, order]
    if span is None and not quantiles:
        usual = torch.stack([-low, high])  # 2.33 each, and a standard error of .037, under N(0, 1)
        quantiles = bool(((usual - 2.326).abs() > 0.2).any())
    if quantiles:
        names = ["1 %", *[""] * (columns - 2), "99 %"]
        texts = [f"{t}\n{a:.1f} … {b:.1f}" for t, a, b in zip(texts, low, high, strict=True)]
        said = "quantiles of the prior"
    else:
        high = torch.full_like(high, span or SPAN)
        low, said = -high, f"{-(span or SPAN):g} to {span or SPAN:g}"
        names = [f"{v:.3g}" for v in np.linspace(-high[0].item(), high[0].item(), columns)]
    values = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, columns).to(low)
    x = array(traversal(vae, start.z, order, values, start.label))
    title = f"latents {how}\n{said}, from {start.name}"
    if start.label is not None:
        title += f", {start.called or called(start.label)}"
    pair = None
    if start.x is not None:
        pair = np.stack([start.x, array(decode(vae, start.z, start.label))])
    return Traversal(x, texts, names, title, pair)


def _order(
    metrics: Mapping[str, Any], start: Start, active: bool
) -> tuple[list[int], list[str], str]:
    return latent_order({"latents": len(start.z), **metrics}, active)


def draw(
    decoded: Traversal, reference: np.ndarray | None = None, reference_label: str = "data"
) -> Any:
    """The picture of a traversal: rows of images, or curves through points."""
    from .. import plots

    if decoded.x.ndim == 3:
        return plots.traversal_curves(
            decoded.x,
            decoded.row_labels,
            decoded.column_labels,
            start=None if decoded.start is None else decoded.start[0],
            reference=reference,
            reference_label=reference_label,
            title=decoded.title,
        )
    x, names = decoded.x, decoded.column_labels
    if decoded.start is not None:
        first = np.broadcast_to(decoded.start, (len(x), *decoded.start.shape))
        x, names = np.concatenate([first, x], 1), ["x", "recon.", *names]
    return plots.traversals(x, decoded.row_labels, names, decoded.title)
