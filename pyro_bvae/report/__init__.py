"""Runs as one HTML file: measures, curves, pictures, options, and a walk through the latent space.

The file stands alone: no network, no other file, at most `LIMIT` bytes. Where not everything fits,
room is given in this order: measures and curves; pictures, smaller if they must be; decoders that run
in the page, to the first run of every column first; pictures decoded beforehand. What is left out is
said in its place.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..vae import evaluating
from ..writing import check_file, replacing, write_text
from .decoder import Unsupported, live
from .page import context
from .pictures import SHRINKS, Picture, pictures
from .sweep import write_sweep_report
from .tables import check_metrics, group
from .walk import explore, live_decoder, strips

if TYPE_CHECKING:
    from ..runs import Run

LIMIT = 5_000_000
"""Bytes of a report."""
_SHRUNK = ("", "in 256 colours", "in 256 colours and at half their size")

__all__ = ["LIMIT", "live", "write_report", "write_sweep_report"]


def write_report(runs: Sequence[Run], out: str | Path) -> Path:
    """Write one self-contained HTML file about ``runs``.

    Runs whose configurations differ only in the seed share a column: mean and standard error over
    them. The models are left in their mode, and the generators as they were.

    Args:
        runs: of `train` or `load_run`; each once.
        out: the file to write, ``.html``; its folder is made.

    Returns:
        ``out``.

    Raises:
        ValueError: no run; another suffix; measures that cannot be read; so many runs that their tables
            alone exceed `LIMIT`.
        FileNotFoundError: a run whose training did not finish.
        OSError: the file cannot be written.
    """
    out = Path(out)
    runs = list({run.path.resolve(): run for run in runs}.values())
    if not runs:
        raise ValueError("report: runs must hold at least one; got none. Name a run directory.")
    for run in runs:
        check_metrics(run)
    check_file(out, (".html",))  # last, as it makes the folder
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(evaluating(run.vae, seed=0))
        text = _text(runs)
    with replacing(out) as temporary:
        write_text(temporary, text)
    return out


def _text(runs: Sequence[Run]) -> str:
    """The page, its heavy parts chosen so that it keeps to `LIMIT`."""
    groups = group(runs)
    values = context(runs, groups)
    bare = _render(values | {"shrunk": _SHRUNK[-1]})
    # Room for a sentence on whatever is left out of each run, which names its path.
    room = (
        LIMIT
        - len(bare.encode(errors="backslashreplace"))
        - sum(1000 + 12 * len(str(run.path)) for run in runs)
    )
    if room < 0:
        raise ValueError(
            f"report: {len(runs)} runs must fit {LIMIT / 1e6:g} MB; their tables alone exceed it. "
            "Pass fewer runs."
        )
    firsts = {id(g.runs[0]) for g in groups}
    # The first run of every column comes before the second of any.
    order = sorted(range(len(runs)), key=lambda i: id(runs[i]) not in firsts)
    walks = {i: _walk(runs[i]) for i in order}
    whole = sum(len(_json(walk)) for walk in walks.values())
    skip = ("training",) if values["charts"] else ()
    for shrink in SHRINKS:
        drawn = [pictures(run.path / "figures", shrink, skip) for run in runs]
        if whole + sum(map(_size, drawn)) <= room:
            break
    for i in order:
        # The first run keeps room for its decoder before any other run's pictures.
        kept = 0 if i == order[0] else min(room, len(_json(walks[order[0]])))
        if _size(drawn[i]) <= room - kept:
            values["runs"][i]["pictures"] = drawn[i]
            room -= _size(drawn[i])
        else:
            values["runs"][i]["no_pictures"] = _left_out("Its pictures", runs[i])
    for i in order:
        walk = _fitting(runs[i], walks[i], room)
        values["runs"][i]["json"] = _json(walk)
        room -= len(_json(walk))
    return _render(values | {"shrunk": _SHRUNK[shrink]})


def _walk(run: Run) -> dict[str, Any]:
    """A walk through the latent space, live where the decoder allows it."""
    walk = explore(run)
    try:
        walk["decoder"] = live_decoder(run.vae, walk)
    except Unsupported as error:
        return _with_strips(run, walk, str(error))
    how = "The decoder itself runs in this page: all latents move together."
    return walk | {"how": how + _notes_explained(walk)}


def _with_strips(run: Run, walk: dict[str, Any], why: str) -> dict[str, Any]:
    walk = {name: value for name, value in walk.items() if name != "decoder"}
    walk["strips"] = strips(run.vae, walk)
    held = len(walk["latents"]) - len(walk["strips"]["values"])
    rest = f", and {held} that carry less are held" if held else ""
    how = f"These were decoded beforehand, one latent moved at a time{rest}, since {why}."
    return walk | {"how": how + _notes_explained(walk)}


def _notes_explained(walk: dict[str, Any]) -> str:
    if walk["latents"][0]["note"].startswith("signal"):
        return " Signal is how far a latent's mean moves over the data against its noise, as variances."
    return " Nats are what a latent carries on average." if walk["latents"][0]["note"] else ""


def _fitting(run: Run, walk: dict[str, Any], room: int) -> dict[str, Any]:
    """The walk itself; without its decoder; or a sentence, whichever first fits ``room``."""
    if len(_json(walk)) <= room:
        return walk
    if "decoder" in walk and room > 50_000:
        walk = _with_strips(run, walk, "one more decoder would make this page too large")
        if len(_json(walk)) <= room:
            return walk
    return {"how": _left_out("Its latent space", run)}


def _left_out(what: str, run: Run) -> str:
    return (
        f"{what} would make this page larger than {LIMIT / 1e6:g} MB. Make a report of this run alone: "
        f"pyro-bvae report {run.path}"
    )


def _size(drawn: Sequence[Picture]) -> int:
    # Title and caption stand there twice, and an escaped letter takes up to six.
    return sum(len(p.uri) + 12 * len(p.title) + 2 * len(p.caption) + 400 for p in drawn)


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _render(values: dict[str, Any]) -> str:
    """The page from its template; everything is escaped but what is made here."""
    import jinja2
    from markupsafe import Markup

    folder = resources.files(__package__)
    names = ("page.html", "page.css", "decoder.js", "drawing.js", "page.js")
    page, css, *parts = [(folder / name).read_text("utf-8") for name in names]
    script = '"use strict";\n{\n' + "\n".join(parts) + "}\n"
    # With its digest in the policy, no other script runs, should one ever get in.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    markup = {
        "css": Markup(css),
        "script": Markup(script),
        "script_hash": f"sha256-{digest}",
        "charts": [Markup(chart) for chart in values["charts"]],
        "rate_distortion": Markup(values["rate_distortion"]),
        "runs": [run | {"json": Markup(run["json"])} for run in values["runs"]],
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(page).render(values | markup)
