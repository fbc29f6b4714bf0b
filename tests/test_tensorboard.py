"""`--tensorboard`: TensorBoard's own reader finds what the run's history has."""

import warnings

import numpy as np
import pytest
from click.testing import CliRunner
from pyro_bvae.cli.main import main

from pyro_bvae import Config, load_run, resume, train
from pyro_bvae.tensorboard import tensorboard


def read(folder):
    """Every tag's values by step, as TensorBoard shows them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
    return {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }


def by_step(history, key):
    return {int(r["step"]): np.float32(r[key]) for r in history if key in r}


def test_a_command_shows_its_history(tmp_path, without_figures):
    run, logs = tmp_path / "run", tmp_path / "logs" / "first"
    options = ("--dataset", "digits", "--gamma", 10, "--capacity", 5, "--epochs", 2, "--no-report")
    arguments = ["train", *map(str, options), "--out", str(run), "--tensorboard", str(logs)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    history = load_run(run).history
    shown = read(logs)
    for tag, key in (
        ("train/loss", "loss"), ("train/kl", "kl"), ("held out/elbo", "test_elbo"),
        ("held-out KL per latent/z3", "test_kl_z3"), ("scheduled/capacity", "capacity"),
    ):  # fmt: skip
        assert shown[tag] == by_step(history, key) != {}, tag
    assert sum(map(len, shown.values())) == sum(len(r) - 3 for r in history)


def test_what_an_interrupted_training_wrote_in_vain_is_out_of_sight(tmp_path, without_figures):
    config = Config(dataset="digits", epochs=3)

    def stop(record, state):
        if record["epoch"] == 2:  # after the last checkpoint: this record will be made again
            raise KeyboardInterrupt

    logs = tmp_path / "logs"
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", callbacks=[tensorboard(logs), stop], checkpoint_every=1)
    run = resume(tmp_path / "run", callbacks=[tensorboard(logs)])
    assert len(run.history) == 3
    assert read(logs)["train/loss"] == by_step(run.history, "loss")


def test_what_cannot_be_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    call = lambda *a: CliRunner().invoke(main, ["train", *a])  # noqa: E731
    result = call("--tensorboard", "file/logs")
    assert result.exit_code == 2
    assert "--tensorboard must lie where one can write; file is not" in result.output
    assert "must stand without --seeds" in call("--tensorboard", "logs", "--seeds", "2").output
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = call("--tensorboard", "logs")
    assert result.exit_code == 2
    assert (
        'must be installed; it is not. Install it: pip install "pyro-bvae[tensorboard]"'
        in result.output
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
