"""What surrounds a command: terminal, environment, paths, and files that others hold."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from pyro_bvae.cli import errors, sweep
from pyro_bvae.cli.main import COMMANDS, main
from pyro_bvae.cli.process import is_first, settle_streams

from pyro_bvae import measuring, writing
from pyro_bvae.build import build
from pyro_bvae.config import Config
from pyro_bvae.datasets import DATASETS, load_dataset
from pyro_bvae.datasets.loading import find_loader
from pyro_bvae.distributed import ranks
from pyro_bvae.faults import enough_memory
from pyro_bvae.runs import load_run, read_config
from pyro_bvae.sweep import read_sweep
from pyro_bvae.sweep.running import _contents

ODD = "läuf 日 \udcff"  # not of Western Europe, spaces, and a byte that is no UTF-8
FAST = ["--steps", "3", "--latent-dim", "2", "--device", "cpu", "--quiet"]
posix = pytest.mark.skipif(os.name != "posix", reason="paths of bytes, descriptors")


def call(*arguments, charset="utf-8"):
    """A command, on a terminal of this encoding."""
    return CliRunner(charset=charset).invoke(main, list(map(str, arguments)), prog_name="pyro-bvae")


def refused(*arguments):
    result = call(*arguments)
    assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) <= 3, result.output
    return " ".join(result.stderr.split())


def python(*arguments, **changed):
    """A process of its own, with changed variables of its environment."""
    environment = {name: v for name, v in (os.environ | changed).items() if v is not None}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with a data file in the folder `data`."""
    home = tmp_path_factory.mktemp("home")
    (home / "data").mkdir()
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    np.savez(home / "data" / "mine.npz", x=x, labels=np.arange(40) % 2)
    return home


@pytest.fixture(scope="module")
def trained(home):
    """A run in a folder of an odd name, trained on a relative path and told to a Western terminal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.chdir(home / "data")
        patch.setattr(measuring, "write_figures", lambda *args: [])
        result = call(
            "train", "--dataset", "mine.npz", f"--out=~/{ODD}", *FAST, charset="cp1252"
        )  # fmt: skip
    return home / ODD, result


# Pictures


@pytest.mark.parametrize(
    "backend", ["no-such-backend", pytest.param("svg", marks=pytest.mark.slow)]
)
def test_pictures_are_drawn_whatever_backend_the_environment_names(backend, tmp_path):
    """That of a notebook is unknown outside of it. One that is known is still the user's choice for pyplot."""
    code = (
        "import os, sys; from pyro_bvae import plots\n"
        "figure = plots.training_curves([{'step': 1, 'epoch': 1, 'loss': 1.0, 'elbo': -1.0, "
        "'log_px_z': -1.0, 'kl': 0.5, 'beta': 1.0}] * 2)\n"
        f"figure.savefig({str(tmp_path / 'x.png')!r})\n"
        "import matplotlib\n"
        "print(os.environ['MPLBACKEND'], 'matplotlib.pyplot' in sys.modules)\n"
        "print(dict.__getitem__(matplotlib.rcParams, 'backend'))"
    )
    done = python("-c", code, MPLBACKEND=backend)
    assert done.returncode == 0, done.stderr
    first, chosen = done.stdout.splitlines()
    assert first == f"{backend} False" and (tmp_path / "x.png").stat().st_size > 1000
    assert (chosen == "svg") == (backend == "svg")


# Paths


@posix
def test_a_run_in_any_folder_is_trained_to_its_end(trained, home):
    path, result = trained
    assert result.exit_code == 0, result.output
    assert (path / "report.html").is_file() and not (home / "data" / "~").exists()
    assert r"läuf \u65e5 \udcff" in result.stdout  # what this terminal can show
    page = (path / "report.html").read_text(encoding="utf-8")
    assert r"läuf 日 \udcff" in page


@posix
def test_a_run_finds_its_data_from_any_folder(trained, home, tmp_path, monkeypatch):
    path, _ = trained
    monkeypatch.chdir(tmp_path)
    result = call("evaluate", path, "--metrics", "aggregate", "--quiet")
    assert result.exit_code == 0, result.output
    assert load_run(path).config.dataset == str(home / "data" / "mine.npz")
    assert json.loads((path / "config.json").read_text())["dataset"] == "mine.npz"


@posix
def test_a_run_that_was_moved_with_its_data_finds_them_where_the_command_runs(
    trained, home, tmp_path, monkeypatch
):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(trained[0]), str(copy)], check=True)
    began = json.loads((copy / "environment.json").read_text())
    for folder in (str(tmp_path / "absent"), None, 3):  # None: of a run before it was kept
        (copy / "environment.json").write_text(json.dumps(began | {"folder": folder}))
        assert read_config(copy).dataset == load_run(copy).config.dataset == "mine.npz"
    (copy / "environment.json").unlink()
    assert load_run(copy).config.dataset == "mine.npz"


def test_a_run_on_relative_data_goes_on_from_another_folder(
    home, tmp_path, monkeypatch, without_figures
):
    from pyro_bvae import resume, train

    def stop(state):
        if state.step == 2:
            raise KeyboardInterrupt

    monkeypatch.chdir(home / "data")
    config = Config("mine.npz", steps=4, latent_dim=2, batch_size=9)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", on_step=stop)
    monkeypatch.chdir(tmp_path)
    run = resume(tmp_path / "run")
    assert run.history[-1]["step"] == 4
    assert json.loads((run.path / "config.json").read_text())["dataset"] == "mine.npz"


def test_a_folder_of_data_sets_is_found_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "sets").mkdir()
    config = Config("mnist", data_dir="sets", latent_dim=2, network="mlp", likelihood="bernoulli")
    writing.write_json(tmp_path / "run" / "config.json", config.to_dict())
    writing.write_json(tmp_path / "run" / "environment.json", {"folder": str(tmp_path)})
    from pyro_bvae.environment import located

    found = located(tmp_path / "run", read_config(tmp_path / "run"))
    assert (found.dataset, found.data_dir) == ("mnist", str(tmp_path / "sets"))


def paths():
    """Every argument and option of every command that takes a path."""
    for name in COMMANDS:
        for parameter in main.get_command(None, name).params:
            if isinstance(parameter.type, click.Path):
                yield name, parameter


def test_every_path_of_a_command_may_begin_at_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = list(paths())
    assert len(found) > 15
    for name, parameter in found:
        assert parameter.type.convert("~/x", parameter, None) == str(tmp_path / "x"), name
        with pytest.raises(click.BadParameter, match="must name a path; got an empty text"):
            parameter.type.convert("", parameter, None)


def test_data_may_lie_at_the_home(home, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    assert load_dataset("~/data/mine.npz")[0].x_shape == (3,)
    assert find_loader(Path("~/data/mine.npz"))[0] == str(home / "data" / "mine.npz")
    found = []
    monkeypatch.setitem(DATASETS, "mnist", lambda data_dir: found.append(data_dir) or (None, None))
    load_dataset("mnist", data_dir="~/sets")
    monkeypatch.setenv("PYRO_BVAE_DATA", "~/others")
    load_dataset("mnist")
    assert found == [home / "sets", home / "others"]


@pytest.mark.parametrize("command", ["train", "report runs", "sweep x.toml", "sample run"])
def test_a_name_that_the_system_cannot_hold_is_refused(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    long = "a" * 300
    name, *run = command.split()
    (tmp_path / "x.toml").write_text("[config]\nsteps = 1\n")
    run = [long] if name in ("report", "sample") else run
    said = refused(name, *run, "--out", long)
    assert "[Errno" not in said
    assert "File name too long" in said or "it is not a directory" in said


def test_an_unfit_name_of_a_file_is_refused_before_any_work(tmp_path):
    with pytest.raises(OSError, match=r"--out must lie where one can write; .*File name too long"):
        writing.check_file(tmp_path / ("a" * 300 + ".png"), (".png",))


# Streams


@posix
@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&- <&-"])
def test_closed_streams_lead_nowhere_and_no_file_takes_their_place(closed, tmp_path):
    code = (
        "import os, sys; from pyro_bvae.cli.process import settle_streams; settle_streams()\n"
        f"opened = open({str(tmp_path / 'x')!r}, 'w')\n"
        "print('said'); print('said', file=sys.stderr); sys.stdout.flush()\n"
        "opened.write(str(opened.fileno() > 2))"
    )
    shell = f'"$0" -c "$1" {closed}'
    done = subprocess.run(["sh", "-c", shell, sys.executable, code], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x").read_text() == "True"


def test_a_note_that_nobody_can_read_stops_nothing(monkeypatch):
    class Gone:
        def write(self, text):
            raise BrokenPipeError

        flush = write

    monkeypatch.setattr(sys, "stderr", Gone())
    with errors.one_line_notes():
        logging.getLogger("pyro_bvae").info("a note")


def test_streams_of_a_notebook_are_left_as_they_are(monkeypatch):
    class Cell:  # no file of Python's
        pass

    cell = Cell()
    monkeypatch.setattr(sys, "stdout", cell)
    settle_streams()
    assert sys.stdout is cell


# Starting


def test_the_package_is_a_command():
    done = python("-m", "pyro_bvae", "--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "pyro-bvae,"), done.stderr


@posix
def test_a_folder_that_was_deleted_is_named(tmp_path):
    """Below torch, MKL would end the process without a reason."""
    shell = 'cd "$1" && rmdir "$1" && "$0" -c "from pyro_bvae.cli.main import main; main()" train'
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable, str(gone)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "The current folder must exist; it was deleted." in done.stderr


def test_empty_variables_of_torchrun_are_as_good_as_none(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    assert ranks() == (0, 1, 0) and is_first()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_first()
    monkeypatch.setenv("RANK", "1")
    assert ranks() == (1, 2, 0) and not is_first()


# What is typed


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ("run --metrics mig mcc", "must be separated by commas; got mig mcc. Write --metrics mig,mcc."),
        ("--metrics mig mcc run", "must be separated by commas; got mig mcc. Write --metrics mig,mcc."),
        ("--metrics mig mcc", "must be separated by commas; got mig mcc. Write --metrics mig,mcc."),
    ],
)  # fmt: skip
def test_names_of_metrics_after_a_space_are_no_runs(arguments, sentence):
    assert sentence in refused("evaluate", *arguments.split())


def test_a_run_may_be_called_like_a_metric(tmp_path, monkeypatch):
    (tmp_path / "mcc").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "mcc must hold config.json" in refused("evaluate", "mcc", "--metrics", "mig")


def test_other_options_under_several_seeds_get_a_folder_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = []

    def run(sweep, folder, rows, **how):
        folder.mkdir(parents=True, exist_ok=True)
        writing.write_json(folder / "sweep.json", _contents(sweep))
        folders.append(folder.name)
        return []

    monkeypatch.setattr(sweep, "run", run)
    first, second = Config(steps=3), Config(steps=4)
    for config, n in ((first, 2), (second, 2), (first, 2), (first, 3), (second, 2)):
        sweep.train_seeds(config, n, None, 1, False)
    own, other = "spirals-gaussian-seeds", "spirals-gaussian-seeds-2"
    assert folders == [own, other, own, own, other]
    said = refused("train", "--steps", 9, "--seeds", 2, "--out", f"runs/{own}")
    assert "it holds another" in said  # a folder that was named is never changed for another


# Files


TOML = "[config]\r\nsteps = 3\r\n[grid]\r\nbeta = [1.0, 2.0]\r\n"


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_a_sweep_may_be_of_any_editor(start, tmp_path):
    (tmp_path / "x.toml").write_bytes(start + TOML.encode())
    assert [config.beta for config in read_sweep(tmp_path / "x.toml").configs] == [1, 2]


def test_a_configuration_may_be_of_any_editor(tmp_path):
    config = Config(latent_dim=2, network="mlp", likelihood="normal")
    text = json.dumps(config.to_dict()).encode("utf-8-sig")
    (tmp_path / "config.json").write_bytes(text)
    assert read_config(tmp_path) == config


@posix
def test_a_file_that_another_process_writes_is_called_locked(tmp_path):
    import fcntl

    import h5py

    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros((20, 3), np.float32)
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as HDF5 does for writing
        with pytest.raises(ValueError, match="must not be open for writing; another process"):
            load_dataset(path)
    assert load_dataset(path)[0].x_shape == (3,)


def test_labels_that_number_no_classes_are_refused(tmp_path):
    x = np.zeros((60, 3), np.float32)
    np.savez(tmp_path / "x.npz", x=x, labels=np.array([0, 50_000, 100_000] * 20))
    with pytest.raises(
        ValueError, match=r"^--conditional needs labels .* from 0; got 3 .* 100000\."
    ):
        build(Config(str(tmp_path / "x.npz"), conditional=True))
    np.savez(tmp_path / "x.npz", x=x, labels=np.array([3, 9, 40] * 20))  # classes of a larger set
    assert build(Config(str(tmp_path / "x.npz"), conditional=True)).vae.n_classes == 41


def test_too_little_memory_names_what_to_lower_before_the_defaults_are_known():
    with (
        pytest.raises(MemoryError, match=r"Lower --batch-size or --latent-dim\.$"),
        enough_memory(Config("x.npz")),
    ):
        raise MemoryError
    with (
        pytest.raises(
            MemoryError, match=r"Lower --batch-size \(now 8\) or --latent-dim or --image"
        ),
        enough_memory(Config("x.npz", batch_size=8, image_size=32)),
    ):
        raise MemoryError


# All of it, in processes of their own


SURROUNDINGS = {
    "notebook": {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
    "no-backend": {"MPLBACKEND": "no-such-backend"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "plain-terminal": {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "10"},
    "no-home": {"HOME": None, "TMPDIR": "/no/such/folder"},
    "strict": {"PYTHONWARNINGS": "error", "PYTHONOPTIMIZE": "1"},
    "container": {"WORLD_SIZE": "", "RANK": "", "LOCAL_RANK": ""},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_a_training_comes_to_its_end_in_any_environment(name, tmp_path):
    out = os.fsencode(tmp_path / "räö 日本").decode("utf-8", "surrogateescape")
    done = python("-m", "pyro_bvae", "train", "--steps", "3", "--out", out, **SURROUNDINGS[name])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "räö 日本" / "report.html").is_file()
    assert "Next: pyro-bvae evaluate" in done.stdout


@pytest.mark.slow
@posix
@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&- <&-", "2>&1 | head -1"])
def test_a_training_comes_to_its_end_whoever_listens(closed, tmp_path):
    shell = f'"$0" -m pyro_bvae train --steps 3 --out "$1" {closed}'
    done = subprocess.run(["sh", "-c", shell, sys.executable, str(tmp_path / "run")])
    assert done.returncode == 0
    assert (tmp_path / "run" / "report.html").is_file()
