"""Numbers of a training, and of several: curves over steps, rate against distortion."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .base import PALETTE, Array, checked, require
from .names import name_ends, name_points

TERMS = {"log_px_z": "E log p(x|z)", "kl": "KL(q(z|x) ‖ p(z))", "divergence": "D", "elbo": "ELBO"}
SCHEDULED = {"β": "beta", "α": "alpha", "C (nats)": "capacity"}


def training_curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Show every recorded term against the step, and the scheduled numbers that vary.

    First values so large that they would flatten the rest lie outside the panel.

    Args:
        history: Records with `step` and any of `log_px_z`, `kl`, `divergence`, `elbo`, the same
            after `test_`, and `beta`, `alpha`, `capacity`; each missing, None or NaN at will.
    """
    panels = [(TERMS[t], {"train": t, "held out": f"test_{t}"}, 1) for t in TERMS]
    drawn = []
    for title, keys, least in [*panels, ("scheduled", SCHEDULED, 2)]:
        lines = {name: _series(history, key) for name, key in keys.items()}
        lines = {name: line for name, line in lines.items() if len(np.unique(line[1])) >= least}
        drawn += [(title, lines)] if lines else []
    units = {"D": "D(q(z), p(z))", "scheduled": "value"}  # D has none: MMD is dimensionless
    require(bool(drawn), "history", "have finite terms at some steps", f"{len(history)} records")
    n_columns = 2 if len(drawn) == 4 else min(len(drawn), 3)
    n_rows = -(-len(drawn) // n_columns)
    figure = Figure(figsize=(3.4 * n_columns, 2.7 * n_rows), layout="constrained")
    for k, (title, lines) in enumerate(drawn):
        ax = figure.add_subplot(n_rows, n_columns, k + 1, title=title, xlabel="step")
        for name, (steps, values) in lines.items():
            marker = "o" if len(steps) == 1 or (name == "held out" and len(steps) <= 30) else ""
            color = PALETTE[{"train": 0, "held out": 5}.get(name, len(ax.lines))]
            ax.plot(steps, values, marker=marker, ms=3.5, lw=1.3, color=color, label=name)
        limits = _limits([values for _, values in lines.values()])
        ax.set(ylabel=units.get(title, "nats per example"), ylim=limits)
        ax.legend(fontsize=8)
    return figure


def kl_per_latent(history: Sequence[Mapping[str, Any]], most: int = 12) -> Figure:
    """Show the held-out KL of every latent over the training.

    The x axis is the step, or C where that was scheduled: then the curves end where C has all but
    stopped rising (99 %), and a dot is the value at the end of the training.

    Args:
        history: Records with `step`, `test_kl_z0`, `test_kl_z1`, ... (nats) and maybe `capacity`.
        most: Latents in colour and with a name at their last value; the rest are grey.
    """
    keys = {key for row in history for key in row if re.fullmatch(r"test_kl_z\d+", key)}
    latents = sorted(int(key.removeprefix("test_kl_z")) for key in keys)
    lines = {k: _series(history, f"test_kl_z{k}") for k in latents}
    lines = {k: line for k, line in lines.items() if line[0].size}
    require(bool(lines), "history", "have finite test_kl_z0, ... at some steps", len(history))
    ranked = sorted(lines, key=lambda k: -lines[k][1][-1])
    steps, capacity = _series(history, "capacity")
    ramp = len(np.unique(capacity)) > 1
    # The record after the ramp may lie far behind it: at the same C, it would be a vertical line.
    end = steps[(capacity >= 0.99 * capacity.max()).argmax()] if ramp else np.inf
    ax = Figure(figsize=(6.4, 4.2), layout="constrained").add_subplot()
    for rank, k in reversed(list(enumerate(ranked))):
        at, values = lines[k]
        named = rank < most
        # Six colours that show on white, then the same ones dashed.
        color, dashes = (PALETTE[rank % 6], ("-", "--")[rank // 6 % 2]) if named else ("0.8", "-")
        x = np.interp(at, steps, capacity) if ramp else at
        marker = "" if (at <= end).sum() > 1 else "o"
        style: dict[str, Any] = {"color": color, "marker": marker, "ms": 3.5}
        ax.plot(x[at <= end], values[at <= end], ls=dashes, lw=1.4, label=f"z{k}", **style)
        if at[-1] > end:
            ax.plot(x[-1], values[-1], "o", color=color, ms=4)
    ax.set(ylim=_limits([values for _, values in lines.values()]), ylabel="KL of a latent (nats)")
    ax.set(xlabel="C (nats); dots: at the end of the training" if ramp else "step")
    ax.set_title("held-out KL per latent" + f", the top {most} named" * (len(ranked) > most))
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(x=0.015)
    name_ends(ax, {f"z{k}": lines[k][1][-1] for k in ranked[:most]})
    return ax.figure.figure


def rate_distortion(
    points: Sequence[tuple[Any, ...]], title: str = "rate and distortion on held-out data"
) -> Figure:
    """Show models in the rate-distortion plane; down and to the left is better.

    -ELBO = distortion + rate, so models of equal ELBO (at beta = 1) lie on one line of slope -1.

    Args:
        points: `(label, rate, distortion)` or `(label, rate, distortion, rate_se, distortion_se)`,
            in nats per example; error bars of one standard error.
        title: Title of the figure.

    References: https://arxiv.org/abs/1711.00464
    """
    require(len(points) > 0, "points", "not be empty", points)
    require({len(p) for p in points} <= {3, 5}, "points", "have 3 or 5 entries each", points)
    texts = [str(p[0]) for p in points]
    numbers = checked("points", np.array([[*p[1:], 0, 0][:4] for p in points], float), 2)
    (rate, distortion), errors = numbers[:, :2].T, numbers[:, 2:].T
    require(errors.min() >= 0, "standard errors", "be 0 or more", errors.min())
    ax = Figure(figsize=(6.4, 4.6), layout="constrained").add_subplot(title=title)
    bars: dict[str, Any] = {"elinewidth": 1, "capsize": 2} if errors.any() else {}
    ax.errorbar(rate, distortion, errors[1], errors[0], "o", color=PALETTE[0], ms=5, **bars)
    for axis, values, error in (("x", rate, errors[0]), ("y", distortion, errors[1])):
        low, high = (values - error).min(), (values + error).max()
        margin = 0.15 * (high - low) or 0.05 * abs(high) or 1.0  # room for the names
        ax.set(**{f"{axis}lim": (low - margin, high + margin)})
    _equal_elbo(ax)
    ax.set(xlabel="rate, E KL(q(z|x) ‖ p(z)) (nats per example)")
    ax.set(ylabel="distortion, −E log p(x|z) (nats per example)")
    ax.legend(fontsize=8)
    name_points(ax, rate, distortion, texts)
    return ax.figure.figure


def _equal_elbo(ax: Axes) -> None:
    """Draw lines of equal rate + distortion through the axes, about eight of them."""
    limits = ax.get_xlim(), ax.get_ylim()
    sums = MaxNLocator(8).tick_values(*(a + b for a, b in zip(*limits, strict=True)))
    label = f"equal ELBO, {sums[1] - sums[0]:g} nats apart"
    for k, total in enumerate(sums):
        style: dict[str, Any] = {"color": "0.82", "lw": 0.8, "zorder": 0}
        ax.axline(
            (limits[0][0], total - limits[0][0]), slope=-1, label=None if k else label, **style
        )
    ax.set(xlim=limits[0], ylim=limits[1])


def _series(history: Sequence[Mapping[str, Any]], key: str) -> tuple[Array, Array]:
    """Return the steps `(m,)` and values `(m,)` of the records where the key is finite."""
    table = np.array([(row.get("step"), row.get(key)) for row in history], float).reshape(-1, 2)
    steps, values = table[np.isfinite(table).all(1)].T  # numpy reads None as NaN
    return steps, values


def _limits(lines: list[Array]) -> tuple[float, float]:
    """Return y limits that hold every line's last value, without an outlying first tenth."""
    tails = [v[-(-len(v) // 10) :] if len(v) > 2 else v for v in lines]
    kept = np.hstack([(*np.percentile(v, (1, 99)), v[-1]) for v in tails])
    if np.ptp(np.hstack(lines)) < 3 * np.ptp(kept):  # nothing lies far outside: show it all
        kept = np.hstack(lines)
    margin = 0.08 * np.ptp(kept) or 0.05 * abs(kept.max()) or 1.0
    return kept.min() - margin, kept.max() + margin
