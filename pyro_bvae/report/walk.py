"""What the page needs to move through the latent space of one run: starts, ranges, a decoder."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..traversal import decode, latent_order, traversal
from ..vae import VAE
from ..writing import read_class_names
from .decoder import check, export, pack

if TYPE_CHECKING:
    from ..runs import Run

Array = NDArray[Any]
_DRAWS = 32  # of the prior, stored in the page
_ENOUGH = 5000  # draws behind the ranges of the sliders
_CLOUD = 400  # decoded draws behind a point, or behind the axis of a vector
_THUMB, _TILE = 128, 64  # largest side of an example's picture, and of a precomputed one
_STEPS, _BASES, _ROWS = 9, 3, 16  # of precomputed strips: values, starts, latents


def explore(run: Run) -> dict[str, Any]:
    """Starts, prior draws and slider ranges of a run, for JSON; ``vae`` is in evaluation mode."""
    vae, examples = run.vae, run.examples
    p_z = vae.p_z()
    draws = p_z.sample((_ENOUGH,))
    codes = draws[:0] if examples is None else torch.as_tensor(examples["loc"]).to(draws)
    kept = draws[:_DRAWS]
    centre = draws.mean(0)
    # Of symmetric priors the mean of draws is 0 but for noise.
    centre = torch.where(centre.abs() < 5 * draws.std(0) / _ENOUGH**0.5, 0, centre)
    low, high = _ranges(draws, torch.cat([kept, codes, centre[None]]))
    x_shape = tuple(vae.p_x(draws[:1], _in_turn(vae, 1, draws)).event_shape)
    out: dict[str, Any] = {
        "kind": _kind(x_shape),
        "shape": list(x_shape),
        "latents": _latents(run.metrics, low, high),
        "classes": vae.n_classes,
        "class_names": list(read_class_names(run.path)),
        "centre": _rounded(centre),
        "draws": _rounded(kept),
        "examples": _rounded(codes),
        "labels": None,
    }
    if examples is not None and "labels" in examples:
        out["labels"] = [int(label) for label in examples["labels"]]
    if out["kind"] == "image":
        if examples is not None:
            out["sprite"] = _sprite(np.asarray(examples["x"])[None], _THUMB)
        return out
    decoded = _numpy(vae.p_x(draws[:_CLOUD], _in_turn(vae, _CLOUD, draws)).mean)
    decoded = decoded.reshape(_CLOUD, -1)
    x = decoded[:0] if examples is None else np.asarray(examples["x"]).reshape(-1, decoded.shape[1])
    out["x"] = _rounded(x)
    if out["kind"] == "points":
        out["cloud"] = _rounded(decoded)
    both = np.concatenate([decoded, x])
    out["low"], out["high"] = _rounded(both.min(0)), _rounded(both.max(0))
    return out


def live_decoder(vae: VAE, explored: dict[str, Any]) -> dict[str, Any]:
    """The decoder for the page, checked against the model at the page's own starts.

    Raises:
        Unsupported: where the page cannot run it; see `export` and `check`.
    """
    exported = export(vae)
    like = vae.p_z().sample((1,))
    starts = [*explored["draws"], *explored["examples"], explored["centre"]]
    z = torch.tensor(starts).to(like)
    check(vae, exported, z, _in_turn(vae, len(z), z))
    return {"ops": exported.ops, "head": exported.head, "weights": pack(exported.weights)}


def strips(vae: VAE, explored: dict[str, Any]) -> dict[str, Any]:
    """Pictures decoded beforehand: each latent moved alone from each of three starts, a row each,
    and a last row of the start itself.

    Args:
        vae: the model, in evaluation mode.
        explored: of `explore`.
    """
    rows = explored["latents"][:_ROWS]
    starts, names, labels = _strip_starts(explored)
    like, moved = vae.p_z().sample((1,)), [row["index"] for row in rows]
    values = [np.linspace(row["low"], row["high"], _STEPS).round(3).tolist() for row in rows]
    out: dict[str, Any] = {"names": names, "values": values, "pictures": []}
    out["labels"], out["starts"] = labels, starts
    for start, label in zip(starts, labels, strict=True):
        z = torch.tensor(start).to(like)
        held = (label or 0) if vae.n_classes else None
        still = decode(vae, z.expand(1, _STEPS, -1), held)
        x = torch.cat([traversal(vae, z, moved, torch.tensor(values), held), still])
        if explored["kind"] == "image":
            out["pictures"].append(_sprite(_numpy(x), _TILE))
        else:
            out["pictures"].append(_rounded(x.flatten(2)))
    return out


def _strip_starts(explored: dict[str, Any]) -> tuple[list[Any], list[str], list[Any]]:
    codes, labels = explored["examples"][:_BASES], explored["labels"]
    if codes:
        given = labels[: len(codes)] if labels is not None else [None] * len(codes)
        return codes, [f"example {i + 1}" for i in range(len(codes))], given
    draws = explored["draws"][: _BASES - 1]
    names = ["the prior's mean", *(f"prior draw {i + 1}" for i in range(len(draws)))]
    given = list(range(_BASES)) if explored["classes"] >= _BASES else [0] * _BASES
    return [explored["centre"], *draws], names, given if explored["classes"] else [None] * _BASES


def _ranges(draws: Tensor, within: Tensor) -> tuple[Array, Array]:
    """About -3 .. 3 standard deviations of the prior, by quantiles that heavy tails do not move,
    and wide enough for ``within``."""
    quantiles = np.quantile(_numpy(draws), [0.005, 0.16, 0.5, 0.84, 0.995], axis=0)
    half = 3 * (quantiles[3] - quantiles[1]) / 2
    inner = _numpy(within)
    middle = quantiles[2].round(1)
    half = np.maximum(half, np.maximum(middle - quantiles[0], quantiles[4] - middle)).round(1)
    half = np.maximum(half, np.maximum(middle - inner.min(0), inner.max(0) - middle))
    half = np.maximum(np.ceil(half * 9.99) / 10, 0.1)  # 3.001 is 3
    return middle - half, middle + half


def _latents(metrics: dict[str, Any], low: Array, high: Array) -> list[dict[str, Any]]:
    """One slider each, those that carry most first."""
    order, texts, _ = latent_order({**metrics, "latents": len(low)})
    return [
        {
            "index": k,
            "note": text.partition("  ")[2],
            "low": round(float(low[k]), 1),
            "high": round(float(high[k]), 1),
        }
        for k, text in zip(order, texts, strict=True)
    ]


def _kind(x_shape: Sequence[int]) -> str:
    if len(x_shape) == 3 and x_shape[0] in (1, 3):
        return "image"
    return "points" if tuple(x_shape) == (2,) else "vector"


def _sprite(tiles: Array, most: int) -> dict[str, Any]:
    """Images in [0, 1], ``(rows, columns, channels, height, width)``, as one picture without gaps."""
    from PIL import Image

    height, width = tiles.shape[-2:]
    factor = min(1, most / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    grey = (tiles.clip(0, 1) * 255).round().astype(np.uint8)
    mode = "L" if grey.shape[2] == 1 else "RGB"
    sheet = Image.new(mode, (size[0] * grey.shape[1], size[1] * len(grey)))
    for i, row in enumerate(grey):
        for j, tile in enumerate(row):
            image = Image.fromarray(tile[0] if mode == "L" else tile.transpose(1, 2, 0).copy())
            if factor < 1:
                image = image.resize(size, Image.Resampling.BOX)
            sheet.paste(image, (j * size[0], i * size[1]))
    buffer, kind = io.BytesIO(), "png"
    sheet.save(buffer, "PNG", optimize=True)
    if buffer.tell() > 150_000:  # photographs
        buffer, kind = io.BytesIO(), "jpeg"
        sheet.save(buffer, "JPEG", quality=85)
    text = base64.b64encode(buffer.getvalue()).decode()
    return {"uri": f"data:image/{kind};base64,{text}", "width": size[0], "height": size[1]}


def _in_turn(vae: VAE, n: int, z: Tensor) -> Tensor | None:
    """Labels 0, 1, 2, ... where the model is conditional."""
    return torch.arange(n, device=z.device) % vae.n_classes if vae.n_classes else None


def _rounded(values: Tensor | Array) -> Any:
    """Nested lists of four significant digits, which are enough to see and short to write."""
    array = values if isinstance(values, np.ndarray) else _numpy(values)
    array = np.nan_to_num(array, posinf=1e30, neginf=-1e30)  # JSON has no other numbers
    flat = [float(f"{value:.4g}") for value in array.ravel()]
    return np.asarray(flat).reshape(array.shape).tolist()


def _numpy(tensor: Tensor) -> Array:
    return tensor.detach().cpu().numpy()
