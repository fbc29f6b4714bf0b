"""``pyro-bvae sweep``: what it prints, how it goes on, and a sentence for every bad input."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pyro_bvae.cli.main import main

from pyro_bvae import measuring, runs
from pyro_bvae.sweep import read_sweep

ROOT = Path(__file__).parents[1]
TEXT = 'seeds = 2\n[config]\nsteps = 2\ndevice = "cpu"\nprior = "mixture"\n[grid]\nalpha = [0, 1]\n'


def call(*arguments):
    return CliRunner().invoke(main, ["sweep", *map(str, arguments)], prog_name="pyro-bvae")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measuring, "write_figures", lambda *args: [])
    (tmp_path / "mine.toml").write_text(TEXT)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def test_it_lists_trains_and_summarises(here):
    listed = call("mine.toml", "--dry-run")
    assert listed.exit_code == 0 and not Path("runs").exists()
    names = [f"alpha-{a}_seed-{s}" for a in (0, 1) for s in (0, 1)]
    assert listed.output.split("\n")[:5] == [
        *(f"{name}  pending" for name in names), "4 runs: 0 finished, 4 to train.",
    ]  # fmt: skip

    result = call("mine.toml")
    assert result.exit_code == 0, result.output
    told = result.stderr.splitlines()
    assert told[0] == "4 runs to train, 0 finished before."
    for line, (i, name) in zip(told[1:], enumerate(names, 1), strict=True):
        assert re.fullmatch(rf"\[{i}/4\] {name}  finished: ELBO -?\d+\.\d\d", line)
    lines = result.stdout.splitlines()
    assert lines[1] == "4 of 4 runs finished."
    assert re.match(r"  alpha  runs  ELBO +KL, the rate +D, inclusive-kl +purity$", lines[2])
    elbo = [runs.load_run(f"runs/mine/{name}").metrics["elbo"] for name in names[:2]]
    mean, error = (elbo[0] + elbo[1]) / 2, abs(elbo[0] - elbo[1]) / 2
    shown = re.match(r"  0      2     (-?[\d.]+) \+- ([\d.]+)  ", lines[3])
    assert float(shown[1]) == pytest.approx(mean, abs=error) and float(shown[2]) == pytest.approx(
        error, rel=0.06
    )
    last = "Runs: runs/mine; numbers: runs/mine/sweep.csv; look at runs/mine/sweep.html"
    assert lines[-1] == last and Path("runs/mine/sweep.html").is_file()

    again = call("mine.toml")
    assert again.exit_code == 0 and "4 of 4 runs finished (4 before)." in again.stdout
    assert again.stdout.splitlines()[2:] == lines[2:]
    assert "alpha-1_seed-1  finished\n" in call("mine.toml", "--dry-run").output


def test_a_run_that_fails_is_named_and_the_exit_code_is_1(here, monkeypatch):
    real = runs.train

    def train(config, out):
        if config.alpha == 1 and config.seed == 0:
            raise FloatingPointError("fit: the loss must be finite; got nan.")
        return real(config, out)

    monkeypatch.setattr(runs, "train", train)
    result = call("mine.toml", "--out", "other")
    assert result.exit_code == 1
    assert "3 of 4 runs finished, 1 failed." in result.stdout
    assert (
        result.stderr.splitlines()[-1] == "alpha-1_seed-0: fit: the loss must be finite; got nan."
    )
    assert re.search(
        r"^  1      1     ", result.stdout, re.M
    )  # the mean is over the one that is left


def test_a_run_that_was_begun_is_said_to_be(here, monkeypatch):
    def stop(config, out):
        def interrupt(state):
            raise KeyboardInterrupt

        return real(config, out, on_step=interrupt)

    real = runs.train
    monkeypatch.setattr(runs, "train", stop)
    result = call("mine.toml")
    assert result.exit_code == 130
    said = (
        "Error: Interrupted. runs/mine keeps what was trained; the same command goes on from there."
    )
    assert result.stderr.splitlines()[-1] == said
    listed = call("mine.toml", "--dry-run").output
    assert "alpha-0_seed-0  begun\nalpha-0_seed-1  pending\n" in listed
    monkeypatch.setattr(runs, "train", real)
    assert call("mine.toml").exit_code == 0


BAD = {
    "absent.toml": r"absent\.toml: a sweep's file must be there; there is none",
    ".": r"\.: a sweep must be a TOML file; this is none",
    "bad.toml": r"bad\.toml: the run of beta -1: --beta must be a number of at least 0; got -1",
    "mine.toml --jobs 0": r"run_sweep: jobs must be at least 1, or -1 for one per core; got 0",
    "mine.toml --out bad.toml": r"--out must be a new or empty directory; \S*bad\.toml is not",
    "own.toml": r"run_sweep: the sweep names code to import, a:B; importing it runs it\. Pass .*--trust",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(arguments, here):
    (here / "bad.toml").write_text("[grid]\nbeta = [-1]")
    (here / "own.toml").write_text('[config]\nprior = "a:B"')
    before = sorted(here.iterdir())
    result = call(*arguments.split())
    assert result.exit_code == 2 and result.stdout == ""
    assert re.match(f"Error: {BAD[arguments]}", result.stderr) and result.stderr.count("\n") == 1
    assert sorted(here.iterdir()) == before


def test_it_is_refused_and_listed_without_torch(here):
    code = (
        "import sys\n"
        "from pyro_bvae.cli.main import main\n"
        "try: main(['sweep', *sys.argv[1:]])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'pyro', 'joblib', 'sklearn', 'jinja2') if m in sys.modules])\n"
    )
    for arguments in (["absent.toml"], ["mine.toml", "--dry-run"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True
        )
        assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_example_is_a_sweep():
    sweep = read_sweep(ROOT / "examples" / "spirals_sweep.toml")
    assert sweep.varied == ("alpha", "beta") and len(sweep.configs) == 36


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_signal_stops_it_and_the_same_command_goes_on(number, jobs, here):
    (here / "long.toml").write_text(TEXT.replace("steps = 2", "steps = 100"))
    command = [sys.executable, "-m", "pyro_bvae.cli", "sweep", "long.toml", "--jobs", jobs]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(here.glob("runs/long/*/checkpoint.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert said.splitlines()[-1].startswith("Error: Interrupted. runs/long keeps what was trained")
    assert "Traceback" not in said and "warn" not in said.lower()
    assert "pending" in (here / "runs" / "long" / "sweep.csv").read_text()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "4 of 4 runs finished" in done.stdout, done.stderr


def test_train_under_several_seeds(here):
    """The smallest sweep: means and standard errors over seeds, and the same command goes on."""
    arguments = ["train", "--steps", "2", "--prior", "mixture", "--seeds", "3", "--seed", "5"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    out = Path("runs/spirals-mixture-seeds")
    elbo = np.array([runs.load_run(out / f"seed-{s}").metrics["elbo"] for s in (5, 6, 7)])
    row = re.search(r"ELBO at beta = 1.*?(-?[\d.]+) \+- ([\d.]+)", result.stdout)
    assert float(row[1]) == pytest.approx(elbo.mean(), abs=6e-4)
    assert float(row[2]) == pytest.approx(elbo.std(ddof=1) / 3**0.5, abs=6e-4)
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 0 and "0 runs to train, 3 finished before." in again.stderr
    other = CliRunner().invoke(main, [*arguments, "--alpha", "1", "--out", str(out)])
    assert other.exit_code == 2 and "it holds another, as its sweep.json says" in other.output


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--seeds", "0"], "there must be 1 to 10,000 runs; got 0"),
        (["--seeds", "2", "--jobs", "0"], "jobs must be at least 1, or -1 for one per core; got 0"),
        (
            ["--seeds", "2", "--no-report"],
            "--no-report must stand without --seeds. Leave one of them out.",
        ),
        (["--jobs", "2"], "--jobs must stand beside --seeds. Add it, or leave --jobs out."),
        (["--seeds", "x"], "'x' is not a valid integer"),
    ],
)
def test_seeds_that_are_none(arguments, sentence, here):
    result = CliRunner().invoke(main, ["train", *arguments])
    assert result.exit_code == 2 and sentence in result.output and not Path("runs").exists()
