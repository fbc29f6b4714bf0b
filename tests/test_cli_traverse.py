"""``pyro-bvae traverse`` on tiny runs: what it writes, what it says, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pyro_bvae.cli.traverse import command

from pyro_bvae import figures, runs
from pyro_bvae.config import Config


def call(*arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments])


def tiny(path, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_bvae.measuring.write_figures", lambda *args: [])
        return runs.train(Config(steps=2, **options), path).path


@pytest.fixture(scope="module")
def spirals(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("runs") / "spirals")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny(
        tmp_path_factory.mktemp("runs") / "digits",
        dataset="digits", network="mlp", latent_dim=3, conditional=True,
    )  # fmt: skip


def test_a_png_stands_in_the_run_by_default(images):
    result = call(images, "--example", 2)
    assert result.exit_code == 0, result.stderr
    path = images / "figures" / "traversal-2.png"
    assert result.stdout.splitlines() == [f"Wrote {path}"]
    assert path.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("run", ["spirals", "images"])
def test_a_gif_has_thirty_frames_in_place(run, tmp_path, request):
    out = tmp_path / "new" / "x.gif"
    result = call(request.getfixturevalue(run), "--out", out, "--quantiles")
    assert result.exit_code == 0, result.stderr
    with Image.open(out) as image:
        assert image.n_frames == 30
    assert out.stat().st_size < 2_000_000


def test_options_reach_the_picture(images, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(figures, "save_traversal", lambda *args, **options: seen.update(options))
    arguments = ["--example", 3, "--span", 1.5, "--columns", 4, "--active", "--label", 7]
    assert call(images, *arguments, "--out", tmp_path / "x.png").exit_code == 0
    assert seen == {
        "example": 3, "span": 1.5, "quantiles": False, "columns": 4, "active": True, "label": 7,
        "class_names": (),
    }  # fmt: skip


def test_a_run_without_examples_or_metrics_starts_at_zero(spirals, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "checkpoint.pt"):
        shutil.copy(spirals / name, run / name)
    result = call(run, "--columns", 2)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[0] == "The run holds no examples: z starts at 0."
    assert (run / "figures" / "traversal-0.png").is_file()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--out", "x.jpg"], "--out must end in .png or .gif; got 'x.jpg'."),
        (["--example", "16"], "--example must be from 0 to 15; got 16."),
        (["--label", "0"], "--label needs a conditional model; got 0. Leave it out."),
        (["--span", "0"], "--span must be positive and finite; got 0. Try --span 3."),
        (["--span", "-1"], "--span must be positive and finite; got -1. Try --span 3."),
        (["--span", "nan"], "--span must be positive and finite; got nan. Try --span 3."),
        (["--span", "2", "--quantiles"], "--span must not stand beside --quantiles; got both."),
    ],
)
def test_bad_options_are_one_sentence_and_no_file(
    options, sentence, spirals, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    result = call(spirals, *options)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("Error: " + sentence) and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_classes_beyond_the_model_are_refused(images):
    result = call(images, "--label", 10)
    assert (result.exit_code, result.stderr) == (2, "Error: --label must be below 10; got 10.\n")


def test_no_active_latent_is_one_sentence(images, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(images, run)
    metrics = json.loads((run / "metrics.json").read_text()) | {"active_latents": []}
    (run / "metrics.json").write_text(json.dumps(metrics))
    result = call(run, "--active", "--out", tmp_path / "x.png")
    assert result.exit_code == 2 and "active latents must be 1 or more; got 0 of 3" in result.stderr


def test_places_that_cannot_be_written_are_refused(spirals, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "x.png").mkdir()
    for out in (tmp_path / "file" / "x.png", tmp_path / "x.png"):
        result = call(spirals, "--out", out)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"Error: --out must lie where one can write; got {out}")


def test_no_run_and_no_checkpoint_are_one_sentence(spirals, tmp_path):
    result = call(tmp_path)
    assert result.exit_code == 2 and "must hold config.json" in result.stderr
    shutil.copy(spirals / "config.json", tmp_path)
    result = call(tmp_path)
    assert result.exit_code == 2 and "has no checkpoint.pt" in result.stderr
    assert not (tmp_path / "figures").exists()


def test_the_examples_of_a_run_are_what_it_starts_from(images):
    run = runs.load_run(images)
    start = figures.traversals.find_start(run.vae, run.examples, 5)
    np.testing.assert_array_equal(start.z, run.examples["loc"][5])
    assert start.label == run.examples["labels"][5]
