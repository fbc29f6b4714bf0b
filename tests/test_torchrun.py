"""Whole runs on several processes, started as users start them; one of them killed, resumed by others."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_bvae.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow
SETTINGS = {
    "decomposition": ["--prior", "mixture", "--alpha", "1"],
    "capacity": ["--gamma", "10", "--capacity", "2"],
    "labels, noise": ["--conditional", "--binarize", "dynamic", "--likelihood", "bernoulli"],
}
QUIET = ["--no-report", "--quiet"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.npz"
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.integers(0, 256, (1001, 8, 8), np.uint8), labels=np.arange(1001) % 3)
    return str(path)


def launch(n, *arguments):
    command = [sys.executable, "-m", "pyro_bvae.cli", "train", *QUIET, *arguments]
    if n > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
        command[1:1] = torchrun
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(process):
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    return said


def numbers(path):
    lines = (path / "history.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def largest_difference(path, other):
    """Over all numbers of the history and all weights, in units of each one's size."""
    worst = 0.0
    for a, b in zip(numbers(path), numbers(other), strict=True):
        assert a.keys() == b.keys()
        worst = max(worst, *(abs(a[k] - b[k]) / max(1.0, abs(a[k])) for k in a))
    weights, others = (read_checkpoint(p / "checkpoint.pt")["vae"] for p in (path, other))
    for name, value in weights.items():
        difference = (value - others[name]).abs().max() / value.abs().max().clamp(min=1e-3)
        worst = max(worst, float(difference))
    return worst


@pytest.mark.parametrize("name", SETTINGS)
def test_runs_on_several_processes_are_those_of_one(name, images, tmp_path):
    """The last batch of an epoch is short and uneven: 400 rows of spirals or 901 images in 150s."""
    steps = ["--steps", "40", "--batch-size", "150"]
    data = ["--dataset", images, "--latent-dim", "4"] if "labels" in name else []
    found = {}
    for n in (1, 2, 4):
        finish(launch(n, *SETTINGS[name], *data, *steps, "--out", str(tmp_path / str(n))))
        found[n] = largest_difference(tmp_path / str(n), tmp_path / "1")
    print(f"{name}: largest relative difference after 40 steps: {found}")
    assert found[1] == 0 and 0 < found[2] < 1e-5 and 0 < found[4] < 1e-5


def test_one_is_killed_and_others_go_on(tmp_path):
    whole, path = tmp_path / "whole", tmp_path / "run"
    options = [*SETTINGS["decomposition"], "--steps", "120", "--batch-size", "150"]
    finish(launch(1, *options, "--out", str(whole)))
    process = launch(4, *options, "--out", str(path), "--checkpoint-every", "5")
    while not (path / "checkpoint.pt").is_file():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [pid for pid in children if b"RANK=2\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    killed = time.monotonic()
    os.kill(int(ranks[0]), signal.SIGKILL)
    said = process.communicate(timeout=60)[0]
    took = time.monotonic() - killed
    assert process.returncode == 1 and took < 30
    assert "Error: Another process of this training stopped" in said
    assert re.search(rf"kept in {path}\. Go on with: pyro-bvae train --resume {path}", said)
    step = read_checkpoint(path / "checkpoint.pt")["step"]
    assert 5 <= step < 120 and not (path / "metrics.json").exists()
    finish(launch(2, "--resume", str(path)))
    difference = largest_difference(path, whole)
    print(f"killed at step {step}, ended after {took:.1f} s; 2 processes went on; {difference:.1e}")
    assert difference < 1e-4  # rounding, which 120 steps let grow


def test_options_that_only_the_first_process_refuses(tmp_path):
    """No process is left behind when one cannot begin."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "there").touch()
    process = launch(2, "--steps", "5", "--out", str(tmp_path / "run"))
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "--out must be a new or empty directory" in said


@pytest.mark.gpu
def test_two_gpus_are_one(tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    for n in (1, 2):
        options = [*SETTINGS["decomposition"], "--steps", "40", "--device", "cuda"]
        finish(launch(n, *options, "--out", str(tmp_path / str(n))))
    assert largest_difference(tmp_path / "2", tmp_path / "1") < 1e-3
