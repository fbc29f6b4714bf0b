"""What a command does before it computes: imports, refusals, and the settings of its process."""

import ctypes
import importlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pyro_bvae.cli import process
from pyro_bvae.cli.main import COMMANDS, main

HEAVY = "torch", "pyro", "numpy", "scipy", "sklearn", "matplotlib", "PIL", "h5py", "jinja2", "tqdm"


def python(code, folder=None):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)


def run(arguments, folder=None):
    """One command in a process of its own: its exit code, output, and the heavy modules imported."""
    done = python(
        "import sys\n"
        "from pyro_bvae.cli.main import main\n"
        f"sys.argv = ['pyro-bvae', *{arguments!r}]\n"
        "try: main(prog_name='pyro-bvae')\n"
        f"finally: print('heavy', *(m for m in {HEAVY} if m in sys.modules))",
        folder,
    )
    *printed, last = done.stdout.splitlines()
    assert last.startswith("heavy"), done.stderr
    return done.returncode, "\n".join(printed), done.stderr, set(last.split()[1:])


# Imports


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["list"], *([name, "--help"] for name in COMMANDS)]
)
def test_help_imports_nothing_heavy(arguments):
    code, printed, _, heavy = run(arguments)
    assert code == 0 and heavy == set()
    assert printed.startswith(("Usage: pyro-bvae", "pyro-bvae, version", "--dataset"))


def test_a_training_imports_no_pictures_and_no_metrics_before_their_time():
    late = (
        "matplotlib",
        "PIL",
        "sklearn",
        "scipy",
        "h5py",
        "jinja2",
        "torchvision",
        "torch._inductor",
    )
    code = (
        f"import sys, pyro_bvae.runs; print(*(m for m in ('torch', *{late}) if m in sys.modules))"
    )
    done = python(code)
    assert done.stdout.split() == ["torch"], done.stdout + done.stderr


# Refusals without torch


CODES = "evaluate --codes codes.npy --factors codes.npy"
REFUSED = {
    "train --dataset spiral": "must be one of spirals, .* Did you mean spirals?",
    "train --out full": "--out must be a new or empty directory; full is not",
    "evaluate nowhere": "load_run: nowhere must be a run's directory; it is not a directory.",
    "report full": "load_run: full must hold config.json; it does not. Is it a run?",
    "sample nowhere": "load_run: nowhere must be a run's directory; it is not a directory.",
    "export nowhere": "load_run: nowhere must be a run's directory; it is not a directory.",
    "traverse nowhere": "load_run: nowhere must be a run's directory; it is not a directory.",
    "train --dataset absent.npz": "absent.npz: the file or folder must exist",
    "train --prior mixtur": "--prior must be one of .* Did you mean mixture?",
    "train --beta -1": "--beta must be a number of at least 0",
    "evaluate run --metrics mgi": "--metrics must be among .* Did you mean mig?",
    "evaluate run --baseline pca --metrics aggregate": "--metrics of codes must be among",
    f"{CODES} --metrics mgi": "--metrics of codes must be among",
    "evaluate --codes no.npy --factors codes.npy": "--codes must name a .npy or .npz file; no.npy is",
    "evaluate --codes codes.npy --factors no.npy": "--factors must name a .npy or .npz file; no.npy",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_wrong_options_are_refused_without_torch(arguments, tmp_path):
    np.save(tmp_path / "codes.npy", np.zeros((4, 2)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    code, printed, said, heavy = run(arguments.split(), tmp_path)
    assert code == 2 and printed == "" and len(said.splitlines()) == 1, said
    place = 0
    for part in REFUSED[arguments].split(" .* "):
        assert (place := said.find(part, place)) >= 0, said
    assert heavy <= {"numpy"}, heavy
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes.npy", "full"]


# The process


class Glibc:
    """A C library that notes what is set."""

    gnu_get_libc_version = "2.36"

    def __init__(self):
        self.set = []

    def mallopt(self, *arguments):
        self.set.append(arguments)


@pytest.fixture
def untuned(monkeypatch):
    names = [f"MALLOC_{name}_" for name in ("MMAP_THRESHOLD", "TRIM_THRESHOLD", "TOP_PAD")]
    for name in ("GLIBC_TUNABLES", "LD_PRELOAD", *names):
        monkeypatch.setenv(name, "")  # so that what a test leaves there is put back
        monkeypatch.delenv(name)


@pytest.fixture
def libc(untuned, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    fake = Glibc()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: fake)
    return fake


def test_freed_memory_is_kept(libc):
    process.tune_allocator()
    assert libc.set == [(-3, 33_554_432), (-1, 1_073_741_824)]


def new_pages(environ):
    """Pages that a process newly maps while it makes and drops an array of 8 MB twenty times."""
    code = (
        "import resource, numpy as np\n"
        "x = np.ones(1 << 20); x + 1\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(20): x + 1\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_processes_that_the_command_starts_keep_theirs_too(libc, monkeypatch):
    process.tune_allocator()
    tuned = dict(os.environ)
    assert new_pages(tuned) < 100
    del tuned["MALLOC_TRIM_THRESHOLD_"]  # one of the two alone: what is freed is given back
    assert new_pages(tuned) > 1000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_MMAP_THRESHOLD_", "65536"),
        ("MALLOC_TRIM_THRESHOLD_", "0"),
        ("MALLOC_TOP_PAD_", "0"),
        ("GLIBC_TUNABLES", "glibc.malloc.arena_max=1"),
        ("LD_PRELOAD", "/usr/lib/libjemalloc.so.2"),
        ("LD_PRELOAD", "libother.so:libtcmalloc_minimal.so.4"),
    ],
)
def test_a_tuned_malloc_is_left_alone(name, value, libc, monkeypatch):
    monkeypatch.setenv(name, value)
    process.tune_allocator()
    assert libc.set == []


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_alone(platform, libc, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    process.tune_allocator()
    assert libc.set == []


def test_a_library_that_is_not_glibc_or_cannot_be_opened_is_passed_over(libc, monkeypatch):
    monkeypatch.delattr(Glibc, "gnu_get_libc_version")
    process.tune_allocator()
    assert libc.set == []

    def closed(name):
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", closed)
    process.tune_allocator()


def test_glibc_without_mallopt_is_passed_over(libc, monkeypatch):
    monkeypatch.delattr(Glibc, "mallopt")
    process.tune_allocator()
    assert libc.set == []


def test_importing_and_asking_for_help_set_nothing(untuned):
    """Every library that is opened is noted: the last line shows that the note is taken."""
    code = (
        "import ctypes\n"
        "real, opened = ctypes.CDLL, []\n"
        "ctypes.CDLL = lambda name=None, *rest: opened.append(name) or real(name, *rest)\n"
        "import pyro_bvae, pyro_bvae.cli.train, pyro_bvae.cli.evaluate\n"
        "from pyro_bvae.cli.main import main\n"
        "for arguments in (['list'], ['train', '--help'], ['train', '--dataset', 'spiral']):\n"
        "    try: main(arguments)\n"
        "    except SystemExit: pass\n"
        "print('opened', [name for name in opened if name is None])\n"
        "pyro_bvae.cli.train.tune_allocator()\n"
        "print('opened', [name for name in opened if name is None])\n"
    )
    last = "opened [None]" if sys.platform == "linux" else "opened []"
    assert python(code).stdout.splitlines()[-2:] == ["opened []", last]


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_commands_that_compute_keep_their_memory(command, monkeypatch, tmp_path):
    module = importlib.import_module(f"pyro_bvae.cli.{command}")
    called = []
    monkeypatch.setattr(module, "tune_allocator", lambda: called.append(command))
    (tmp_path / "config.json").write_text("{}")  # a run that cannot be loaded: nothing is computed
    absent = ["train", "--prior", "absent_module:Prior", "--out", str(tmp_path / "new")]
    result = CliRunner().invoke(main, absent if command == "train" else [command, str(tmp_path)])
    assert result.exit_code == 2 and called == [command], result.output


@pytest.mark.parametrize(("network", "threads"), [("mlp", 1), ("conv-bn", 2), (None, 2)])
def test_small_networks_take_one_thread(network, threads, monkeypatch):
    chosen = [2]
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    process.choose_threads(network)
    assert chosen[-1] == threads
