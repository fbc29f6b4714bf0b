"""``pyro-bvae report``: where it writes, what it says, and a sentence for every bad input."""

import json

import pytest
import torch
from click.testing import CliRunner
from pyro_bvae.cli.report import command

from pyro_bvae.build import make_vae
from pyro_bvae.config import FORMAT, Config
from pyro_bvae.runs import train


def call(*arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments])


def finished(path, **options):
    """A run directory as training leaves it, without its examples and pictures."""
    path.mkdir()
    config = Config(**options).resolved()
    vae = make_vae(config, (2,))
    checkpoint = {"format": FORMAT, "vae": vae.state_dict(), "x_shape": [2], "n_classes": 0}
    torch.save(checkpoint, path / "checkpoint.pt")
    (path / "config.json").write_text(json.dumps(config.to_dict()))
    metrics = {"n": 40, "log_px_z": -1.0, "kl": 2.0, "elbo": -3.0, "diagnosis": []}
    (path / "metrics.json").write_text(json.dumps(metrics))
    (path / "history.jsonl").write_text('{"step": 1, "kl": 1.0}\n{"step": 2, "kl": 2.0}\n')
    return path


def test_one_run_is_reported_beside_itself(tmp_path):
    run = finished(tmp_path / "a")
    result = call(run)
    assert result.exit_code == 0, result.output
    out = run / "report.html"
    assert result.output == f"Wrote {out} ({out.stat().st_size / 1e6:.1f} MB)\n"
    text = (run / "report.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and "Run a: 2 latents" in text


def test_several_runs_are_reported_here(tmp_path, monkeypatch):
    runs = [finished(tmp_path / "a"), finished(tmp_path / "b", seed=1)]
    monkeypatch.chdir(tmp_path)
    result = call(*runs)
    assert (result.exit_code, result.output[:19]) == (0, "Wrote report.html (")
    assert "2 runs on spirals" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert call(*runs, "--out", tmp_path / "deep" / "er.html").exit_code == 0
    assert (tmp_path / "deep" / "er.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{run}", "--out", "{run}/r.pdf"], "--out must end in .html; got 'r.pdf'"),
        (["{run}", "--out", "{run}/config.json/r.html"], "must lie where one can write"),
        (["{run}/nothing"], "nothing must be a run's directory; it is not a directory."),
        (
            ["{run}", "{unfinished}", "--out", "{run}/r.html"],
            "must hold metrics.json; it does not.",
        ),
        (["{bare}"], "Measure it again: pyro-bvae evaluate"),
        (["{own}"], "names code to import, somewhere:Prior; importing it runs it"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, sentence):
    places = {name: finished(tmp_path / name) for name in ("run", "unfinished", "own", "bare")}
    (places["unfinished"] / "metrics.json").unlink()
    (places["bare"] / "metrics.json").write_text('{"kl": 2.0}')
    config = json.loads((places["own"] / "config.json").read_text())
    (places["own"] / "config.json").write_text(json.dumps(config | {"prior": "somewhere:Prior"}))
    result = call(*[a.format(**places) for a in arguments])
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("Error: ") and sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_without_a_run_it_says_how_to_call_it():
    result = call()
    assert result.exit_code == 2 and "Missing argument 'RUN [RUN ...]'" in result.stderr


def test_trust_imports_the_code_of_ones_own(tmp_path, monkeypatch):
    code = "from pyro_bvae.priors import Gaussian\n\n\nclass Prior(Gaussian):\n    pass\n"
    (tmp_path / "somewhere_own.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = finished(tmp_path / "a", prior="somewhere_own:Prior")
    result = call(run, "--trust")
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_a_trained_run_has_everything_in_its_report(tmp_path):
    run = train(Config(dataset="digits", conditional=True, steps=5), tmp_path / "run")
    assert call(run.path).exit_code == 0
    text = (run.path / "report.html").read_text(encoding="utf-8")
    for part in ('"decoder":', '"examples":[[', "<circle", "Reconstructions.", "class="):
        assert part in text
