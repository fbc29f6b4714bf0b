"""``pyro-bvae export``."""

from __future__ import annotations

from pathlib import Path

import click

from pyro_bvae.writing import check_inside, check_run

from .errors import fail, one_sentence
from .options import Place, examples, trust


@click.command("export", epilog=examples("export runs/spirals-mixture-1"))
@click.argument("run", type=Place())
@click.option("--out", type=Place(), help="Folder for the two files [default: RUN/onnx].")
@trust
def command(run: str, out: str | None, trust: bool) -> None:
    """Write encoder and decoder of a trained RUN as ONNX, to use them without torch.

    encoder.onnx gives mean and standard deviation of q(z|x), decoder.onnx the mean of p(x|z).
    """
    folder = Path(out) if out else Path(run) / "onnx"
    with one_sentence():
        check_run(Path(run))
        if out is None:
            check_inside(folder)
        from pyro_bvae.export import check_exporter, export_onnx

        try:
            check_exporter()
        except ModuleNotFoundError as error:
            fail(str(error))
        from pyro_bvae.runs import load_run

        loaded = load_run(run, trust=trust)
        for path in export_onnx(loaded.vae, folder, {"prior": loaded.config.prior}):
            click.echo(f"Wrote {path}")
