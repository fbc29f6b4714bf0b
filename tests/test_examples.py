"""Every example runs and draws what it says."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from pyro_bvae import runs
from pyro_bvae.datasets import Data
from pyro_bvae.priors import PRIORS

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def picture(path):
    pixels = np.asarray(Image.open(path).convert("L"))
    assert pixels.std() > 5  # not blank
    return pixels.shape


def images(monkeypatch, module, n=60):
    """Random images of the right shape in place of the 70,000."""

    def load(*args, **kwargs):
        rng = np.random.default_rng(0)  # the same at each call, as a run that goes on needs
        x = rng.integers(0, 256, (n, 1, 32, 32), dtype=np.uint8)
        return Data(x, np.arange(n) % 10), Data(x[:40], np.arange(40) % 10)

    monkeypatch.setattr(f"pyro_bvae.{module}.load_dataset", load)


def test_the_spread_of_one_seed_is_not_0_but_unknown():
    mean_and_error = runpy.run_path(str(EXAMPLES / "spirals.py"))["mean_and_error"]
    assert mean_and_error(np.array([0.5])).strip() == "0.500"
    assert mean_and_error(np.array([1.0, 3.0])).split() == ["2.000", "+-1.000"]  # sd sqrt(2), n = 2


@pytest.mark.slow
def test_spirals(tmp_path, monkeypatch, capsys):
    out = tmp_path / "spirals.png"
    run("spirals.py", "--steps", 1, "--seeds", 1, "--out", out, monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 8 + 1  # head, settings, where it went
    assert picture(out)[1] > 1000


def test_custom_prior(tmp_path, monkeypatch, capsys):
    out = tmp_path / "ring.png"
    scope = run("custom_prior.py", "--steps", 30, "--out", out, monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert "ok: integrates to" in said
    assert "radius 1.00 -> 1.00" not in said  # it moved
    assert picture(out)[0] > 500
    assert scope["Ring"](2, radius=2.0)().event_shape == (2,)


@pytest.mark.slow
def test_priors(tmp_path, monkeypatch, capsys):
    out = tmp_path / "priors.png"
    run("priors.py", "--steps", 5, "--out", out, monkeypatch=monkeypatch)
    masses = dict(re.findall(r"(\S+) +([\d.]+)% of its mass", capsys.readouterr().out))
    assert set(masses) == set(PRIORS)
    for name, p in (("gaussian", stats.norm()), ("student-t", stats.t(3))):
        inside = (p.cdf(3) - p.cdf(-3)) ** 2
        assert float(masses[name]) == pytest.approx(100 * inside, abs=0.1)
    assert picture(out)[1] > 600


@pytest.mark.slow
def test_fashion_mnist(tmp_path, monkeypatch, capsys):
    images(monkeypatch, "build")
    arguments = ("--epochs", 1, "--w", 0.8, "--alpha", 100, "--out", tmp_path)
    run("fashion_mnist.py", *arguments, monkeypatch=monkeypatch)
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert [float(row[0]), float(row[1])] == [0.8, 100]
    figures = tmp_path / "w0.8-alpha100-epochs1-seed0" / "figures"
    for name in ("class_means.png", "class_traversals.png", "aggregate_posterior.png"):
        picture(figures / name)

    def refuse(*args, **kwargs):
        raise AssertionError("a finished setting was trained again")

    def stop(state):
        raise KeyboardInterrupt

    def interrupted(*args, on_step):
        return runs.train(*args, on_step=stop)

    monkeypatch.setattr("pyro_bvae.train", interrupted)
    longer = ("--epochs", 2, *arguments[2:])  # a step an epoch
    with pytest.raises(KeyboardInterrupt):
        run("fashion_mnist.py", *longer, monkeypatch=monkeypatch)
    monkeypatch.setattr("pyro_bvae.train", refuse)
    capsys.readouterr()
    run("fashion_mnist.py", *longer, monkeypatch=monkeypatch)
    shown = capsys.readouterr().err
    assert "w0.8-alpha100-epochs2-seed0: 100%" in shown and "2/2" in shown
    assert runs.load_run(tmp_path / "w0.8-alpha100-epochs2-seed0").history[-1]["step"] == 2
    checkpoint = figures.parent / "checkpoint.pt"
    before = checkpoint.read_bytes()
    run("fashion_mnist.py", *arguments, monkeypatch=monkeypatch)
    assert capsys.readouterr().out.splitlines()[-1].split() == row
    assert checkpoint.read_bytes() == before
    with pytest.raises(AssertionError, match="trained again"):
        run("fashion_mnist.py", *arguments[:-2], "--out", tmp_path / "b", monkeypatch=monkeypatch)


@pytest.mark.parametrize("arguments", [(), ("--penalty", "relu"), ("--reduction", "example")])
def test_mnist_capacity(arguments, tmp_path, monkeypatch, capsys):
    images(monkeypatch, "build")
    out, gif = tmp_path / "capacity.png", tmp_path / "latents.gif"
    everything = (*arguments, "--epochs", 1, "--out", out, "--gif", gif)
    scope = run("mnist_capacity.py", *everything, monkeypatch=monkeypatch)
    assert "KL" in capsys.readouterr().out
    picture(out)
    with Image.open(gif) as drawn:
        assert np.asarray(drawn.convert("L")).std() > 5
    frames = [
        Image.new("RGB", size, color) for size, color in (((50, 40), "red"), ((52, 40), "white"))
    ]
    scope["write_gif"](gif, frames)
    with Image.open(gif) as moving:
        assert (moving.n_frames, moving.size) == (2, (52, 40))  # layouts differ by a pixel or two
