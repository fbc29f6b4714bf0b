"""Data, reconstructions and samples: what x looks like."""

from __future__ import annotations

from matplotlib.figure import Figure

from .base import Array, checked, require
from .images import image_figure
from .points import point_figure


def data(x: Array, labels: Array | None = None, title: str = "data") -> Figure:
    """Show points as a scatter, or up to 64 images as a grid.

    Args:
        x: `(n, 2)` points, `(n, d)` vectors (their first two principal components are shown), or
            `(n, channels, height, width)` images.
        labels: `(n,)`, colours of the points; images do not use it.
        title: Title of the figure.
    """
    x = checked("x", x, 2, 4)
    if x.ndim == 2:
        return point_figure([(title, x)], labels)
    return image_figure([x[i : i + 8] for i in range(0, min(len(x), 64), 8)], title=title)


def reconstructions(x: Array, x_hat: Array, labels: Array | None = None) -> Figure:
    """Show originals `x` beside `x_hat`, both shaped as for `data`; 30 images, in pairs of rows."""
    x, x_hat = checked("x", x, 2, 4), checked("x_hat", x_hat, 2, 4)
    require(x.shape == x_hat.shape, "x_hat", f"have the shape of x, {x.shape}", x_hat.shape)
    if x.ndim == 2:
        return point_figure([("x", x), ("reconstruction", x_hat)], labels)
    starts = range(0, min(len(x), 30), 10)
    rows = [images[i : i + 10] for i in starts for images in (x, x_hat)]
    return image_figure(rows, ["x", "reconstruction"] * len(starts), title="reconstructions")


def samples(
    x: Array, title: str = "samples from the prior", *, reference: Array | None = None
) -> Figure:
    """Show generated `x` as `data` does; real points `reference`, `(m, d)`, faintly below."""
    x = checked("x", x, 2, 4)
    if x.ndim == 4:
        return data(x, title=title)
    if reference is not None:
        reference = checked("reference", reference, 2)
        d, got = x.shape[1], reference.shape
        require(got[1] == d, "reference", f"have shape (m, {d}), as x has", got)
    return point_figure([(title, x)], None, reference)
