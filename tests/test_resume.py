"""A training that stopped and goes on ends with the numbers of one that never stopped, bit for bit."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pyro_bvae.cli.main import main
from pyro_bvae.cli.process import Signals

from pyro_bvae import VAE, Config, DecompositionELBO, fit, measuring, runs, training
from pyro_bvae.build import build
from pyro_bvae.checkpoint import read_checkpoint
from pyro_bvae.datasets import Data
from pyro_bvae.likelihoods import Normal
from pyro_bvae.networks import mlp
from pyro_bvae.priors import Gaussian
from pyro_bvae.runs import is_finished, load_run, resume, train
from pyro_bvae.schedules import linear

KILLS = int(os.environ.get("PYRO_BVAE_KILLS", "2"))
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Data of one's own: vectors, and small images with labels."""
    folder = tmp_path_factory.mktemp("data")
    labels = np.arange(50) % 3
    np.savez(folder / "rows.npz", x=RNG.normal(size=(50, 6)).astype(np.float32), labels=labels)
    images = RNG.integers(0, 256, (50, 32, 32), dtype=np.uint8)
    np.savez(folder / "images.npz", x=images, labels=labels)
    return folder


def stop_at(step):
    def on_step(state):
        if state.step == step:
            raise KeyboardInterrupt

    return on_step


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        untimed = [name for name in a if "seconds" not in str(name)]
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in untimed)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def ended(path):
    """All that a finished run holds, but for times."""
    history = [json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()]
    metrics = json.loads((path / "metrics.json").read_text())
    return read_checkpoint(path / "checkpoint.pt"), history, metrics


# Stopped at a step


PROGRAMS = {
    "mixture": {"prior": "mixture", "alpha": 1.0},
    "alpha from 0": {"alpha": 1.0, "alpha_warmup": 0.5, "divergence": "mmd"},
    "capacity": {"gamma": 10.0, "capacity": 5.0, "amsgrad": True},
    "vamp": {"prior": "vamp", "prior_args": {"n_components": 4}, "n_particles": 2},
    "flow": {"prior": "flow", "likelihood_scale": "learned", "beta_tc": 3.0},
    "images": {
        "network": "conv-bn", "conditional": True, "encode_labels": True, "binarize": "dynamic",
    },
}  # fmt: skip


def configured(name, files, compile):
    data = "images.npz" if name == "images" else "rows.npz"
    return Config(
        str(files / data), latent_dim=3, batch_size=20, epochs=4, compile=compile, **PROGRAMS[name]
    )


SLOW = ("vamp", "flow", "images")


@pytest.mark.parametrize(
    "name, compile",
    [(name, False) for name in PROGRAMS]
    + [pytest.param(n, True, marks=[pytest.mark.slow] * (n in SLOW)) for n in PROGRAMS],
)
def test_resumed_at_any_step_it_ends_alike(
    name, compile, files, tmp_path, without_figures, replayed
):
    """45 training rows, batches of 20, 20, 5; 12 steps, captured at the second full batch."""
    config = configured(name, files, compile)
    train(config, tmp_path / "whole")
    whole = ended(tmp_path / "whole")
    assert whole[0]["step"] == 12 and bool(replayed) == compile
    stops = ((2, 7) if compile else (1, 2, 3, 7)) if name == "mixture" else (7,)
    for stop in stops:
        path = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt, match=f"Go on with: .* --resume {path}"):
            train(config, path, on_step=stop_at(stop))
        assert read_checkpoint(path / "checkpoint.pt")["step"] == stop
        assert not is_finished(path)
        np.random.seed(random.randrange(99)), torch.manual_seed(99)  # of another process
        resumed = resume(path)
        assert is_finished(path) and same(ended(path), whole), stop
        assert [record["step"] for record in resumed.history] == [3, 6, 9, 12]


def test_records_within_an_epoch_are_there_again(files, tmp_path, without_figures, monkeypatch):
    """Three steps an epoch, and a record every two besides."""
    monkeypatch.setattr(training, "_LEAST_PART", 2)
    config = configured("mixture", files, False)
    history = train(config, tmp_path / "whole").history
    assert [record["step"] for record in history] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert [record["epoch"] for record in history] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert all("test_kl" in record for record in history)
    for stop in (1, 2, 5, 9, 11):
        path = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, path, on_step=stop_at(stop))
        resume(path)
        assert same(ended(path), ended(tmp_path / "whole")), stop


def test_records_of_parts_average_to_that_of_the_epoch(monkeypatch):
    """The same training with and without: each step counts once."""
    found = []
    for part in (2, 200):
        monkeypatch.setattr(training, "_LEAST_PART", part)
        torch.manual_seed(0)
        vae = VAE(*mlp((2,), 2), Gaussian(2), Normal(0.5))
        data = Data(np.random.default_rng(0).normal(size=(21, 2)).astype(np.float32))
        found.append(fit(vae, DecompositionELBO(), data, epochs=1, batch_size=3))
    parts, (whole,) = found
    steps = np.diff([0] + [record["step"] for record in parts])
    assert steps.tolist() == [2, 2, 2, 1]
    for name in ("loss", "kl", "log_px_z"):
        mean = np.average([record[name] for record in parts], weights=steps)
        assert mean == pytest.approx(whole[name], rel=1e-6)


def test_stopped_again_and_again(files, tmp_path, without_figures):
    config = configured("mixture", files, False)
    train(config, tmp_path / "whole")
    path = tmp_path / "pieces"
    with pytest.raises(KeyboardInterrupt):
        train(config, path, on_step=stop_at(1))
    for step in range(2, 12):
        with pytest.raises(KeyboardInterrupt):
            resume(path, on_step=stop_at(step))
    resume(path)
    assert same(ended(path), ended(tmp_path / "whole"))
    resumed = json.loads((path / "environment.json").read_text())["resumed"]
    assert len(resumed) == 11 and resumed[0]["torch"] == torch.__version__


def test_noise_of_python_and_numpy_goes_on_too(files, tmp_path, without_figures):
    """Callbacks of one's own may draw from them."""
    drawn = []

    def draw(state):
        drawn.append((random.random(), np.random.normal()))

    def draw_and_stop(state):
        draw(state)
        stop_at(7)(state)

    config = configured("mixture", files, False)
    train(config, tmp_path / "whole", on_step=draw)
    whole = drawn[:]
    for every in (None, 1):
        drawn.clear()
        path = tmp_path / f"parts-{every}"
        with pytest.raises(KeyboardInterrupt):
            train(config, path, on_step=draw_and_stop, checkpoint_every=every)
        resume(path, on_step=draw)
        assert drawn == whole and len(set(drawn)) == 12
        assert same(ended(path), ended(tmp_path / "whole"))


def test_numbers_that_a_callback_set_go_on_too(files, tmp_path, without_figures):
    """The learning rate, and weights of the objective that no schedule sets."""

    def change(record, state):
        if state.epoch == 2:
            state.optim.lr, state.objective.alpha = 1e-2, 3.0

    config = dataclasses.replace(configured("mixture", files, False), beta_warmup=0.0)
    train(config, tmp_path / "whole", callbacks=[change])
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", callbacks=[change], on_step=stop_at(8))
    resume(tmp_path / "parts", callbacks=[change])
    assert same(ended(tmp_path / "parts"), ended(tmp_path / "whole"))


@pytest.mark.parametrize("compile", [False, True])
def test_fit_goes_on_with_a_transform_of_another_shape(compile, files, replayed):
    """A network that divides by the size of its rows: of zeros it would make NaN."""
    states = {}

    def pad(x):
        return torch.nn.functional.pad(x, (0, 2))

    class Unit(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp((8,), 3)[0]

        def forward(self, x):
            return self.net(x / x.norm(dim=1, keepdim=True))

    def make():
        torch.manual_seed(0)
        return VAE(Unit(), mlp((8,), 3)[1], Gaussian(3), Normal(0.5))

    data = build(configured("mixture", files, False)).train
    options = {"steps": 8, "batch_size": 20, "transform": pad, "compile": compile}

    def keep(state):
        states[state.step] = {k: _copied(v) for k, v in state.state_dict().items()}

    vae = make()
    torch.manual_seed(1)
    fit(vae, DecompositionELBO(), data, on_step=keep, **options)
    again = make()
    fit(again, DecompositionELBO(), data, resume=states[5], **options)
    assert same(dict(again.state_dict()), dict(vae.state_dict()))


def test_rows_on_disk_are_not_read_again(files, tmp_path, without_figures, monkeypatch):
    """The batches of an epoch that were trained on are skipped, not read."""
    monkeypatch.setattr("pyro_bvae.build._HELD_BYTES", 0)
    rows = np.load(files / "rows.npz")["x"]
    np.save(tmp_path / "rows.npy", rows)
    config = Config(str(tmp_path / "rows.npy"), latent_dim=2, batch_size=20, epochs=2)
    assert not build(config).train.resident
    train(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", on_step=stop_at(2))
    resume(tmp_path / "parts")
    assert same(ended(tmp_path / "parts"), ended(tmp_path / "whole"))


def test_fit_goes_on_from_a_state(files):
    """In Python, without files."""
    built = build(configured("mixture", files, False))
    options = {"epochs": 3, "batch_size": 20, "schedules": {"beta": linear(0, 1, 5)}}
    states = {}

    def keep(state):
        values = state.state_dict()
        states[state.step] = {k: _copied(v) for k, v in values.items()}

    torch.manual_seed(1)
    objective = DecompositionELBO()
    history = fit(built.vae, objective, built.train, on_step=keep, **options)
    weights = {k: v.clone() for k, v in built.vae.state_dict().items()}
    rest = fit(built.vae, objective, built.train, resume=states[4], **options)
    assert same(rest, history[1:]) and same(weights, dict(built.vae.state_dict()))
    assert fit(built.vae, objective, built.train, resume=states[9], **options) == []


def _copied(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    return {k: _copied(v) for k, v in value.items()} if isinstance(value, dict) else value


def test_checkpoints_come_every_so_many_steps(files, tmp_path, without_figures):
    seen = []

    def look(state):
        path = tmp_path / "run" / "checkpoint.pt"
        seen.append(read_checkpoint(path)["step"] if path.is_file() else None)

    train(configured("mixture", files, False), tmp_path / "run", on_step=look, checkpoint_every=5)
    assert seen == [None] * 5 + [5] * 5 + [10] * 2  # before the step's own
    assert read_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 12


# What can be resumed, and what cannot


def test_a_run_without_a_checkpoint_starts_anew(files, tmp_path, without_figures, monkeypatch):
    config = configured("mixture", files, False)
    train(config, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        train(config, tmp_path / "run", on_step=_raise(RuntimeError("killed")))
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
    resume(tmp_path / "run")
    assert same(ended(tmp_path / "run"), ended(tmp_path / "whole"))


def _raise(error):
    def on_step(state):
        raise error

    return on_step


def test_a_run_that_was_only_not_measured_is_measured(files, tmp_path, monkeypatch):
    config = configured("mixture", files, False)
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "write_figures", lambda *args: [])
        train(config, tmp_path / "whole")
        patch.setattr(measuring, "write_figures", _raise_all(OSError("disk")))
        with pytest.raises(OSError, match=r"disk.*Go on with: pyro-bvae train --resume"):
            train(config, tmp_path / "run")
        assert not is_finished(tmp_path / "run")
        patch.setattr(measuring, "write_figures", lambda *args: [])
        patch.setattr(
            runs, "fit", lambda *args, resume, **kwargs: _no_step(*args, resume=resume, **kwargs)
        )
        resume(tmp_path / "run")
    assert same(ended(tmp_path / "run"), ended(tmp_path / "whole"))


def _raise_all(error):
    def fail(*args):
        raise error

    return fail


def _no_step(*args, resume, **kwargs):
    kwargs["on_step"] = _raise(AssertionError("a step was taken"))
    return fit(*args, resume=resume, **kwargs)


def test_a_finished_run_is_only_loaded(files, tmp_path, without_figures, monkeypatch):
    run = train(configured("mixture", files, False), tmp_path / "run")
    before = {p.name: p.stat().st_mtime_ns for p in run.path.iterdir() if p.name != ".lock"}
    monkeypatch.setattr(runs, "build", _raise_all(AssertionError("built")))
    again = resume(run.path)
    assert again.history == run.history
    assert same(dict(again.vae.state_dict()), dict(run.vae.state_dict()))
    assert {p.name: p.stat().st_mtime_ns for p in run.path.iterdir() if p.name != ".lock"} == before


@pytest.fixture
def stopped(files, tmp_path, without_figures):
    """A run of 12 steps that stopped at its fifth, and its bytes."""
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(configured("mixture", files, False), path, on_step=stop_at(5))
    return path


def unchanged(path):
    return {p.name: p.read_bytes() for p in path.iterdir() if p.is_file()}


def damage(path, change):
    values = torch.load(path / "checkpoint.pt", weights_only=True)
    change(values)
    torch.save(values, path / "checkpoint.pt")


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda c: c.update(format=1), "must have a checkpoint of format 2; got 1"),
        (
            lambda c: c.update(n_rows=7),
            "data must be those .* 7 rows of \\[6\\]; got 45 of \\[6\\]",
        ),
        (lambda c: c.update(x_shape=[3]), r"data must be those .* of \[3\]; got 45 of \[6\]"),
        (
            lambda c: c.update(step=99),
            "must be the state of a training like this one.*step 99 of 12",
        ),
        (lambda c: c.update(step="5"), "must be a checkpoint of pyro_bvae.*wrong kind of step"),
        (lambda c: c.pop("optim"), "must be a checkpoint of pyro_bvae.*optim"),
        (lambda c: c["optim"]["state"][0].update(exp_avg=torch.ones(9, 9)), "like this one"),
        (lambda c: c["noise"].clear(), "must be the state of a training like this one"),
        (lambda c: c["noise"].update(torch=torch.ones(3)), "a training like this one"),
        (lambda c: c["noise"].update(python=[3, [1], None]), "a training like this one"),
        (lambda c: c["vae"].popitem(), "a training like this one"),
        (lambda c: c.update(data_order=torch.ones(2)), "a training like this one"),
        (lambda c: c.update(epoch=9), "a training like this one.*in epoch 9"),
        (lambda c: c.update(sums={"loss": "x"}), "a training like this one"),
        (lambda c: c.update(batch=-1), "a training like this one"),
    ],
)
def test_a_checkpoint_of_something_else(change, sentence, stopped):
    damage(stopped, change)
    before = unchanged(stopped)
    with pytest.raises(ValueError, match=sentence):
        resume(stopped)
    assert unchanged(stopped) == before


def test_a_line_of_history_is_missing(stopped):
    (stopped / "history.jsonl").write_text("")
    with pytest.raises(ValueError, match="must hold the 1 records up to the checkpoint; got 0"):
        resume(stopped)


def test_history_ahead_of_the_checkpoint_is_taken_back(files, stopped, tmp_path):
    with (stopped / "history.jsonl").open("a") as file:
        file.write('{"step": 6, "epoch": 2, "loss": 0.0}\n{"step": 9, "ep')
    resume(stopped)
    train(configured("mixture", files, False), tmp_path / "whole")
    assert same(ended(stopped), ended(tmp_path / "whole"))


def test_code_of_ones_own_needs_trust(stopped):
    values = json.loads((stopped / "config.json").read_text()) | {"prior": "my.priors:Ring"}
    (stopped / "config.json").write_text(json.dumps(values))
    with pytest.raises(
        ValueError, match=r"names code to import, my\.priors:Ring; importing it runs"
    ):
        resume(stopped)


@pytest.mark.parametrize("every", [0, -1, 2.5, True])
def test_checkpoint_every(every, tmp_path):
    with pytest.raises(ValueError, match="--checkpoint-every must be a whole number of at least 1"):
        train(Config(steps=1), tmp_path / "run", checkpoint_every=every)
    assert not (tmp_path / "run").exists()


# One writer


def test_a_second_writer_is_refused(stopped):
    refused = []

    def look(state):
        other = subprocess.run(
            [sys.executable, "-c",
             f"from pyro_bvae.runs import resume\nresume({str(stopped)!r})"],
            capture_output=True, text=True,
        )  # fmt: skip
        refused.append(other.stderr.splitlines()[-1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resume(stopped, on_step=look)
    assert refused == [
        f"BlockingIOError: {stopped} must have one writer; another process is writing it now. Wait for "
        "it, or choose another --out."
    ]
    resume(stopped)  # the lock was let go


def test_the_second_training_into_one_directory_comes_late(tmp_path, without_figures, monkeypatch):
    """It passes the first look at the directory, and has the lock when the first has finished."""
    make, first = runs.make_run_directory, []

    def slow(dataset, prior, out):
        if not first:
            first.append(None)
            first[0] = train(Config(steps=2), out)
        return make(dataset, prior, out)

    monkeypatch.setattr(runs, "make_run_directory", slow)
    with pytest.raises(FileExistsError, match="--out must be a new or empty directory"):
        train(Config(steps=3), tmp_path / "run")
    assert len(load_run(tmp_path / "run").history) == 2


def test_a_lock_is_held_while_training(tmp_path, without_figures):
    inner = []

    def second(state):
        if not inner:
            inner.append(None)
            with (
                pytest.raises(BlockingIOError, match="must have one writer"),
                runs.locked(tmp_path / "run"),
            ):
                raise AssertionError("locked twice")

    train(Config(steps=2), tmp_path / "run", on_step=second)
    assert inner


# Signals, and the command


HUNG_UP = [(signal.SIGHUP, 129)] if hasattr(signal, "SIGHUP") else []  # not on Windows


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), *HUNG_UP])
def test_a_signal_writes_a_checkpoint_of_its_step(number, code, files, tmp_path, without_figures):
    seen = []

    def raise_signal(state):
        if state.step == 5:
            signal.raise_signal(number)  # as if it came in the midst of a step
            seen.append(state.step)

    signals = Signals()
    with signals, pytest.raises(KeyboardInterrupt):
        train(
            configured("mixture", files, False), tmp_path / "run",
            on_step=lambda state: (signals.at_step(state), raise_signal(state)),
        )  # fmt: skip
    assert seen == [5] and signals.code == code
    assert read_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 6


def test_a_signal_before_the_first_step_or_a_second_one_ends_at_once():
    signals, before = Signals(), signal.getsignal(signal.SIGTERM)
    with signals, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)

    class State:
        step, total = 1, 2

    signals = Signals()
    with signals:
        signals.at_step(State)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def command(*arguments):
    return CliRunner().invoke(main, ["train", "--no-report", "--quiet", *arguments])


def test_the_command_goes_on(stopped, files, tmp_path):
    done = command("--resume", str(stopped), "--checkpoint-every", "3")
    assert done.exit_code == 0, done.output
    assert f"Run: {stopped}" in done.output and "12 steps" in done.output
    train(configured("mixture", files, False), tmp_path / "whole")
    assert same(ended(stopped), ended(tmp_path / "whole"))
    again = command("--resume", str(stopped))
    assert again.exit_code == 0 and f"Note: {stopped} is finished" in again.output


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--epochs", "9"], "--resume goes on by the options .* got --epochs beside it"),
        (["--seeds", "2"], "got --seeds beside it"),
        (["--out", "x"], "--resume goes on by the options .* got --out beside it"),
        (["--prior-arg", "a=1"], "got --prior-arg beside it"),
        (
            ["--checkpoint-every", "0"],
            "--checkpoint-every must be a whole number of at least 1; got 0",
        ),
    ],
)
def test_the_command_takes_no_other_options(arguments, sentence, stopped):
    before = unchanged(stopped)
    done = command("--resume", str(stopped), *arguments)
    assert done.exit_code == 2 and len(done.output.strip().splitlines()) <= 2
    assert re.search(sentence, done.output)
    assert unchanged(stopped) == before


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_the_command_on_no_run(name, tmp_path):
    (tmp_path / "empty").mkdir()
    done = command("--resume", str(tmp_path / name))
    assert done.exit_code == 2 and "must" in done.output


# Killed


OPTIONS = [
    "--prior",
    "mixture",
    "--alpha",
    "1",
    "--steps",
    "150",
    "--batch-size",
    "150",
    "--seed",
    "3",
]


def launch(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "pyro_bvae.cli", "train", "--quiet", "--no-report", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("compile", ["--no-compile", "--compile"])
def test_killed_at_random_moments(compile, tmp_path):
    """SIGKILL, as often as PYRO_BVAE_KILLS says; the moments differ from call to call."""
    began = time.monotonic()
    whole = launch(*OPTIONS, compile, "--out", str(tmp_path / "whole"))
    assert whole.communicate()[0] and whole.returncode == 0
    seconds = time.monotonic() - began
    expected = ended(tmp_path / "whole")
    found = []
    for kill in range(KILLS):
        path = tmp_path / str(kill)
        every = ["--checkpoint-every", str(random.choice([1, 7, 40]))]
        killed = launch(*OPTIONS, compile, "--out", str(path), *every)
        timer = threading.Timer(random.uniform(0, seconds), killed.kill)
        timer.start()
        killed.communicate()
        timer.cancel()
        at = path / "checkpoint.pt"
        found.append(read_checkpoint(at)["step"] if at.is_file() else None)
        started = (path / "config.json").is_file()
        again = ["--resume", str(path)] if started else [*OPTIONS, compile, "--out", str(path)]
        resumed = launch(*again)
        assert resumed.communicate()[0] and resumed.returncode == 0
        assert same(ended(path), expected), f"differs after a kill at checkpoint {found[-1]}"
        shutil.rmtree(path)
    print(f"killed and resumed to the same numbers: {len(found)}; checkpoints found: {found}")


@pytest.mark.slow
def test_a_terminated_command_says_how_to_go_on(tmp_path):
    """A real process, a real SIGTERM, its own exit code, a checkpoint; then the lock is free."""
    path = tmp_path / "run"
    process = launch(*OPTIONS, "--steps", "100000", "--out", str(path))
    while not (path / "checkpoint.pt").is_file():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[0]
    assert process.returncode == 143
    assert said.strip().splitlines()[-1] == (
        f"Error: Interrupted. The last good checkpoint and the history are kept in {path}. Go on with: "
        f"pyro-bvae train --resume {path}."
    )
    assert load_run(path).history
    assert not [p for p in Path(path).iterdir() if ".new" in p.name]


@pytest.mark.slow
def test_threads_are_those_the_run_began_with(files, tmp_path):
    """mlp, chosen by the data alone: its run began before that was known."""
    path = tmp_path / "run"
    options = ["--dataset", str(files / "rows.npz"), "--latent-dim", "2", "--steps", "3"]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    for arguments in ([*options, "--out", str(path)], ["--resume", str(path)]):
        subprocess.run(
            [sys.executable, "-m", "pyro_bvae.cli", "train", "--quiet", "--no-report", *arguments],
            check=True, env=environment, capture_output=True,
        )  # fmt: skip
        (path / "metrics.json").unlink()
        shutil.copy(path / "checkpoint.pt", tmp_path / "checkpoint.pt")
        values = torch.load(path / "checkpoint.pt", weights_only=True)
    (path / "checkpoint.pt").unlink()
    (path / "history.jsonl").write_text("")
    subprocess.run(
        [sys.executable, "-m", "pyro_bvae.cli", "train", "--quiet", "--no-report", "--resume", str(path)],
        check=True, env=environment, capture_output=True,
    )  # fmt: skip
    found = json.loads((path / "environment.json").read_text())
    assert found["threads"] == 2 and [r["threads"] for r in found["resumed"]] == [2]
    assert same(torch.load(path / "checkpoint.pt", weights_only=True)["vae"], values["vae"])
