"""The numbers of a run on the terminal."""

from __future__ import annotations

from typing import Any

import click


def echo_table(metrics: dict[str, Any]) -> None:
    """A row for each measure, then what the numbers say."""
    from pyro_bvae.evaluation import measures

    rows = measures(metrics)
    width = max((len(row.label) for row in rows), default=0)
    for row in rows:
        counted = row.key in ("components_used", "active_units")
        whole = counted and float(row.value).is_integer()  # no mean over seeds
        value = f"{row.value:5.0f}    " if whole else f"{row.value:9.3f}"
        small = row.se is not None and 0 < row.se < 0.0005  # +- 0.000 would be exact
        error = "" if row.se is None else " +- <0.001" if small else f" +- {row.se:.3f}"
        note = f"  {row.note}" if whole else f"  ({row.note})"
        click.echo(f"  {row.label:<{width}} {value}{error}{note if row.note else ''}")
    if metrics.get("factors_left_out"):
        click.echo(f"Note: left out, having one value: {', '.join(metrics['factors_left_out'])}.")
    for sentence in (*metrics.get("notes", ()), *metrics.get("diagnosis", ())):
        click.echo(f"Note: {sentence}")
