"""The pictures that training drew, as data URIs, re-encoded where they are too large for one page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple

SHRINKS = (0, 1, 2)
"""Pictures as they are; with 256 colours; with 256 colours at half the size."""
_CAPTIONS = {
    "data": ("Data", "What the model is to learn."),
    "reconstructions": (
        "Reconstructions",
        "Held-out data, and what comes back after encoding and decoding: the closer, the better.",
    ),
    "samples": (
        "Samples",
        "Codes drawn from the prior and decoded: they should look like the data.",
    ),
    "aggregate_posterior": (
        "Aggregate posterior",
        "Where the codes of all data lie together. The lines are the prior's: where structure was asked "
        "for, bright and lines coincide.",
    ),
    "traversals": (
        "Traversals",
        "One latent moved at a time, one row each, all else held: a row should change one thing.",
    ),
    "manifold": ("Manifold", "The plane of two latents, decoded place by place."),
    "class_means": (
        "Mean |z| by class",
        "How much each class uses each latent: few tall bars are a sparse code.",
    ),
    "kl_per_latent": (
        "KL per latent",
        "How many nats each latent carries as training goes on; those at 0 are unused.",
    ),
    "training": ("Training", "Each term against the step; dots are on held-out data."),
    "rate_distortion": (
        "Rate and distortion",
        "Nats a code costs against what it fails to explain: down and left is better.",
    ),
    "position_maps": ("Latents over position", "Each latent's mean over the place of the object."),
    "factor_responses": ("Responses", "Each latent's mean as one ground-truth factor changes."),
    "traversal_curves": ("Traversal curves", "Each decoded value as one latent moves."),
}


class Picture(NamedTuple):
    """A picture with its caption; ``width`` and ``height`` are those of the file."""

    title: str
    caption: str
    uri: str
    width: int
    height: int


def pictures(folder: Path, shrink: int, skip: tuple[str, ...] = ()) -> list[Picture]:
    """The PNG files of ``folder``, known ones first; files that are no picture, and links, are passed over."""
    order = {name: i for i, name in enumerate(_CAPTIONS)}
    found = []
    for path in sorted(folder.glob("*.png")):
        if path.stem in skip or path.is_symlink() or not path.is_file():
            continue
        known = next((name for name in _CAPTIONS if path.stem.startswith(name)), None)
        title, caption = _CAPTIONS.get(known or "", (path.stem, "A picture kept with the run."))
        if known is not None and path.stem != known:
            title = f"{title}: {path.stem}"
        read = _read(path, shrink)
        if read is not None:
            place = (order.get(known or "", len(order)), path.stem)
            found.append((place, Picture(title, caption, *read)))
    return [picture for _, picture in sorted(found)]


def _read(path: Path, shrink: int) -> tuple[str, int, int] | None:
    from PIL import Image

    try:
        raw = path.read_bytes()
        with Image.open(io.BytesIO(raw)) as image:
            width, height = image.size
            if image.format != "PNG":
                return None
            if shrink:
                raw = _smaller(image.convert("RGB"), half=shrink > 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # of damaged files
        return None
    return "data:image/png;base64," + base64.b64encode(raw).decode(), width, height


def _smaller(image: object, half: bool) -> bytes:
    from PIL import Image

    assert isinstance(image, Image.Image)
    if half:
        image = image.reduce(2)
    buffer = io.BytesIO()
    # The octree is five times smaller than the file, and twice as fast as the median cut.
    image.quantize(256, method=Image.Quantize.FASTOCTREE).save(buffer, "PNG")
    return buffer.getvalue()
