"""Sweeps: the file, the runs and their folders, and what is taken up again."""

import csv
import dataclasses
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from pyro_bvae import measuring, runs
from pyro_bvae.config import Config
from pyro_bvae.runs import is_finished, load_run, train
from pyro_bvae.sweep import (
    Row,
    Sweep,
    mean_metrics,
    over_seeds,
    read_sweep,
    run_sweep,
    running,
    workers,
)
from pyro_bvae.writing import locked

TINY = Config(prior="mixture", steps=2, device="cpu")
GRID = """
seeds = 2
[config]
prior = "mixture"
steps = 2
device = "cpu"
[grid]
beta = [0.5, 1.0]
"""


@pytest.fixture(autouse=True)
def without_figures(monkeypatch):
    monkeypatch.setattr(measuring, "write_figures", lambda *args: [])


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(workers, "_PATIENCE", 0.0)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished sweep of two settings and two seeds: its folder and rows; not to be changed."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "write_figures", lambda *args: [])
        rows = run_sweep(write(folder, GRID), folder / "out")
    return folder / "out", rows


def write(folder, text, name="sweep.toml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def lines_of(path):
    with path.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


# The file


def test_a_grid_is_every_combination_with_its_seeds_together(tmp_path):
    sweep = read_sweep(
        write(
            tmp_path,
            'seeds = 2\n[config]\nprior = "mixture"\n[grid]\nbeta = [0.1, 1]\nalpha = [0, 3]',
        )
    )
    expected = itertools.product((0.1, 1), (0, 3), (0, 1))
    assert [(c.beta, c.alpha, c.seed) for c in sweep.configs] == list(expected)
    assert {c.prior for c in sweep.configs} == {"mixture"} and sweep.varied == ("beta", "alpha")
    assert sweep.names()[:3] == [
        "beta-0.1_alpha-0_seed-0", "beta-0.1_alpha-0_seed-1", "beta-0.1_alpha-3_seed-0",
    ]  # fmt: skip


def test_a_list_is_one_run_each_and_may_leave_options_out(tmp_path):
    sweep = read_sweep(
        write(
            tmp_path,
            '[config]\nsteps = 5\n[[list]]\nprior = "vamp"\n[[list]]\nprior = "student-t"\n'
            "prior_args = { df = 3 }\n[[list]]\nseed = 4\nsteps = 5",
        )
    )
    assert sweep.configs == (
        Config(prior="vamp", steps=5),
        Config(prior="student-t", prior_args={"df": 3}, steps=5),
        Config(seed=4, steps=5),
    )
    assert sweep.varied == ("prior", "prior_args")  # steps are the same in all
    assert sweep.names() == [
        "prior-vamp_prior_args_seed-0",
        "prior-student-t_prior_args-df-3_seed-0",
        "prior-gaussian_prior_args_seed-4",
    ]


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("", [0]),
        ("[config]\nseed = 7", [7]),
        ("seeds = 3", [0, 1, 2]),
        ("seeds = 2\n[config]\nseed = 7", [7, 8]),
        ("seeds = [5, 0]", [5, 0]),
        ("[grid]\nseed = [4, 2]", [4, 2]),
        ("format = 1\n[config]\nformat = 1", [0]),  # as config.json has it
    ],
)
def test_seeds(text, seeds, tmp_path):
    sweep = read_sweep(write(tmp_path, text))
    assert [c.seed for c in sweep.configs] == seeds and sweep.varied == ()
    assert sweep.names() == [f"seed-{seed}" for seed in seeds]


def test_prior_args_vary_as_whole_tables(tmp_path):
    text = """
    [config]
    prior = "mixture"
    prior_args = { scale = 0.5 }
    [grid]
    prior_args = [{ n_components = 4 }, { n_components = 8, scale = 0.2 }]
    """
    sweep = read_sweep(write(tmp_path, text))
    assert [c.prior_args for c in sweep.configs] == [
        {"n_components": 4}, {"n_components": 8, "scale": 0.2},
    ]  # fmt: skip


REFUSED = {
    "unknown option": ("[grid]\nbtea = [1]", r"an option must be one of .*'btea'\. Did you mean beta\?"),
    "unknown shared option": ("[config]\nalhpa = 1", r"'alhpa'\. Did you mean alpha\?"),
    "unknown listed option": ("[[list]]\nalhpa = 1", r"'alhpa'\. Did you mean alpha\?"),
    "unknown key": ("[gird]\nbeta = [1]", r"a key must be one of .*; got 'gird'\. Did you mean grid\?"),
    "unknown key like none": ("xyzzy = 1", r"a key must be one of .*; got 'xyzzy'\.$"),
    "option at the top": ('prior = "mixture"', r"Write prior below \[config\], or its values below"),
    "refused value": (
        "[grid]\nalpha = [1]\nbeta = [1, -1]", r"the run of alpha 1, beta -1: --beta must be a number"),
    "refused shared value": ("[config]\nbeta = -1", r"sweep\.toml: --beta must be a number of at least"),
    "date": ("[grid]\nprior = [1979-05-27]", r"the run of prior 1979-05-27: --prior must be text"),
    "scalar in the grid": ("[grid]\nbeta = 3", r"\[grid\] beta must be a list .*Write beta = \[3\]\."),
    "text in the grid": ('[grid]\nprior = "vamp"', r"\[grid\] prior must be a list of values; got 'vamp'"),
    "table in the grid": ("[grid]\nprior_args.df = [1]", r"\[grid\] prior_args must be a list of values"),
    "empty list": ("[grid]\nbeta = []", r"\[grid\] beta must hold at least one value; got \[\]"),
    "list below config": ("[config]\nbeta = [1, 2]", r"\[config\] beta must be one value; got \[1, 2\]"),
    "config no table": ("config = 3", r"config must be a table; got 3\. Write \[config\] above it"),
    "grid no table": ("grid = [1]", r"grid must be a table; got \[1\]"),
    "list of numbers": ("list = [1]", r"list must be tables of options; got \[1\]\. Write \[\[list\]\]"),
    "list as one table": ("[list]\nbeta = 1", r"list must be tables of options"),
    "empty list of tables": ("list = []", r"list must hold at least one table; got \[\]"),
    "both": ("[grid]\nbeta = [1]\n[[list]]\nalpha = 1", r"\[grid\] and \[\[list\]\] exclude each other"),
    "no seeds": ("seeds = 0", r"seeds must be how many, at least 1, or a list of them; got 0\."),
    "seeds of truth": ("seeds = true", r"seeds must be how many, at least 1, .*; got True"),
    "seeds of nothing": ("seeds = []", r"seeds must be how many, .*; got \[\]"),
    "half a seed": ("seeds = [0.5]", r"the run of seed 0\.5: --seed must be a whole number"),
    "seeds beside seed": ("seeds = [1]\n[config]\nseed = 1", r"a list of seeds and seed exclude each oth"),
    "seeds beside a grid": ("seeds = 2\n[grid]\nseed = [1]", r"seeds and seed of \[grid\] exclude each"),
    "text as first seed": ('seeds = 2\n[config]\nseed = "a"', r"--seed must be a whole number"),
    "the same twice": ("[grid]\nalpha = [1, 1.0]", r"every run must occur once; got .*alpha 1.* 2 times"),
    "the default spelt out": (
        '[[list]]\nalpha = 1\n[[list]]\nalpha = 1\ndivergence = "inclusive-kl"', r"must occur once"),
    "the same seed twice": ("seeds = [3, 3]", r"every run must occur once; got seed 3 2 times"),
    "too many seeds": ("seeds = 10001", r"there must be 1 to 10,000 runs; got 10,001"),
    "too many values": (
        f"[grid]\nbeta = {[*range(101)]}\nalpha = {[*range(100)]}", r"10,000 runs; got 10,100"),
    "too many together": (f"seeds = {[*range(101)]}\n[grid]\nbeta = {[*range(100)]}", r"got 10,100"),
    "newer format": ("format = 2", r"format must be at most 1; got 2\. A newer pyro_bvae reads newer"),
    "odd format": ('format = "x"', r"format must be at most 1; got 'x'"),
    "no data set": ('[grid]\ndataset = ["spiral"]', r"must be one of spirals, .*Did you mean spirals\?"),
    "no file of data": ('[config]\ndataset = "no.npz"', r"no\.npz: the file or folder must exist"),
    "no TOML": ("seeds = = 2", r"sweep\.toml: a sweep must be TOML in UTF-8; .*line 1"),
    "nested": ("[config]\nprior_args = " + "[" * 5000, r"a sweep must be TOML in UTF-8; "),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_file_is_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, sentence = REFUSED[name]
    write(tmp_path, text)
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=sentence) as caught:
        read_sweep("sweep.toml")
    assert str(caught.value).startswith("sweep.toml: ") and "\n" not in str(caught.value)


def test_what_is_no_file_of_text(tmp_path):
    (tmp_path / "latin.toml").write_bytes('[config]\nprior = "é"'.encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"latin\.toml: a sweep must be TOML in UTF-8; 'utf-8' codec"
    ):
        read_sweep(tmp_path / "latin.toml")
    with pytest.raises(ValueError, match="a sweep must be a TOML file; this is none"):
        read_sweep(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"absent\.toml: a sweep's file must be there"):
        read_sweep(tmp_path / "absent.toml")
    large = write(tmp_path, "#" * 1_000_001)
    with pytest.raises(ValueError, match="at most 1 MB; got 1,000,001 bytes"):
        read_sweep(large)


def test_over_seeds():
    sweep = over_seeds(dataclasses.replace(TINY, seed=5), 3)
    assert [c.seed for c in sweep.configs] == [5, 6, 7] and sweep.varied == ()
    assert all(dataclasses.replace(c, seed=0) == TINY for c in sweep.configs)
    with pytest.raises(ValueError, match="there must be 1 to 10,000 runs; got 0"):
        over_seeds(TINY, 0)
    for bad in (2.0, True, "2"):
        with pytest.raises(TypeError, match="over_seeds: n must be a whole number; got"):
            over_seeds(TINY, bad)


def test_a_sweep_of_ones_own_is_checked():
    with pytest.raises(ValueError, match="Sweep: there must be 1 to 10,000 runs; got 0"):
        Sweep(())
    with pytest.raises(ValueError, match="got 'bta'. Did you mean beta"):
        Sweep((TINY,), ("bta",))


def test_names_are_safe_short_and_told_apart():
    paths = [
        "../../etc/passwd",
        "..-..-etc-passwd",
        "A b",
        "a_b",
        "A_B",
        "x" * 300,
        "x" * 301,
        "/",
        "é",
        "ü",
    ]
    sweep = Sweep(tuple(Config(dataset=path) for path in paths), ("dataset",))
    names = sweep.names()
    assert len({name.lower() for name in names}) == len(paths)
    for name in names:
        assert re.fullmatch(r"dataset-?[A-Za-z0-9.+_-]*", name) and len(name) <= 100
        assert (Path("out") / name).resolve().parent == Path("out").resolve()
    assert names[2] == "dataset-A-b_seed-0"
    # The same sweep has the same names; those of no twin do not depend on the others.
    assert names == sweep.names() and Sweep(sweep.configs[2:3], ("dataset",)).names() == names[2:3]


# Running


def test_every_run_is_trained_and_stands_in_a_row(done):
    out, rows = done
    assert [row.status for row in rows] == ["finished"] * 4
    for row, (beta, seed) in zip(rows, itertools.product((0.5, 1.0), (0, 1)), strict=True):
        assert row.path == out.resolve() / f"beta-{beta}_seed-{seed}" and row.error == ""
        run = load_run(row.path)
        assert is_finished(row.path) and (run.config.beta, run.config.seed) == (beta, seed)
        assert row.metrics == run.metrics
    assert {p.name for p in out.iterdir() if p.is_file()} == {
        "sweep.json",
        "sweep.csv",
        "sweep.html",
    }
    kept = json.loads((out / "sweep.json").read_text())
    assert kept["format"] == 1 and kept["varied"] == ["beta"]
    assert [Config.from_dict(values).beta for values in kept["runs"].values()] == [0.5, 0.5, 1, 1]


def test_a_run_of_a_sweep_is_that_of_train(done, tmp_path):
    out, _ = done
    alone = train(dataclasses.replace(TINY, beta=0.5, seed=1), tmp_path / "alone")
    there = load_run(out / "beta-0.5_seed-1")
    for name, weight in alone.vae.state_dict().items():
        assert np.array_equal(weight, there.vae.state_dict()[name]), name


def test_csv_holds_every_number_of_every_run(done):
    pandas = pytest.importorskip("pandas")

    out, rows = done
    lines = lines_of(out / "sweep.csv")
    assert list(lines[0])[:5] == ["run", "status", "error", "beta", "seed"]
    for line, row in zip(lines, rows, strict=True):
        assert line["run"] == row.path.name and float(line["beta"]) == row.config.beta
        numbers = {k: v for k, v in row.metrics.items() if type(v) in (int, float)} | {"seed": 0}
        of = {"divergence_name"}  # without which measures would mix
        assert set(line) == set(numbers) - {"format"} | {"run", "status", "error"} | of
        assert all(line[name] == row.metrics[name] for name in of)
        assert float(line["elbo"]) == row.metrics["elbo"] and line["error"] == ""
    frame = pandas.read_csv(out / "sweep.csv")
    assert frame["kl"].tolist() == [row.metrics["kl"] for row in rows]
    assert frame["error"].isna().all() and frame["seed"].tolist() == [0, 1, 0, 1]
    array = np.genfromtxt(
        out / "sweep.csv", delimiter=",", names=True, dtype=None, encoding="utf-8"
    )
    assert array["elbo"].tolist() == [row.metrics["elbo"] for row in rows]


def test_finished_runs_are_left_as_they_are(done, tmp_path, monkeypatch):
    def no_more(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(runs, "train", no_more)
    monkeypatch.setattr(runs, "resume", no_more)
    out, rows = done
    told = []
    assert run_sweep(write(tmp_path, GRID), out, on_run=told.append) == rows
    assert told == []


def test_an_interrupted_sweep_goes_on_to_the_same_numbers(done, tmp_path):
    """One run finished, one stopped in its middle, two not begun."""
    _, rows = done
    sweep, out = read_sweep(write(tmp_path, GRID)), tmp_path / "out"

    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, out, on_run=stop)
    assert [line["status"] for line in lines_of(out / "sweep.csv")] == ["finished"] + 3 * [
        "pending"
    ]
    assert "1 finished, 3 to come" in (out / "sweep.html").read_text()
    second = out / sweep.names()[1]
    with pytest.raises(KeyboardInterrupt):
        train(sweep.configs[1], second, on_step=stop)
    assert (second / "checkpoint.pt").is_file() and not is_finished(second)
    told = []
    again = run_sweep(sweep, out, on_run=told.append)
    assert [row.path.name for row in told] == sweep.names()[1:]
    for one, other in zip(again, rows, strict=True):
        assert one.status == "finished" and one.metrics["elbo"] == other.metrics["elbo"]


def test_csv_is_written_as_runs_end(tmp_path):
    seen = []

    def look(row):
        seen.append([line["status"] for line in lines_of(tmp_path / "out" / "sweep.csv")])

    run_sweep(over_seeds(TINY, 2), tmp_path / "out", on_run=look)
    assert seen == [["finished", "pending"], ["finished", "finished"]]


class Failing:
    """Stands in for `train`: raises each of ``errors`` in turn, then trains."""

    def __init__(self, *errors):
        self.errors, self.calls = list(errors), 0

    def __call__(self, config, out):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return train(config, out)


@pytest.mark.parametrize("error", [OSError("disk full"), MemoryError("no memory")])
def test_errors_of_the_system_are_tried_again(error, tmp_path, monkeypatch):
    failing = Failing(error, error)
    monkeypatch.setattr(runs, "train", failing)
    (row,) = run_sweep(over_seeds(TINY, 1), tmp_path / "out", retries=2)
    assert (row.status, row.error, failing.calls) == ("finished", "", 3)


def test_they_are_tried_only_so_often_and_others_go_on(tmp_path, monkeypatch):
    def broken(config, out):
        calls.append(config.seed)
        if config.seed == 0:
            raise MemoryError
        return train(config, out)

    calls = []
    monkeypatch.setattr(runs, "train", broken)
    rows = run_sweep(over_seeds(TINY, 2), tmp_path / "out", retries=2)
    assert [row.status for row in rows] == ["failed", "finished"]
    assert rows[0].error == "MemoryError" and sorted(calls) == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("fit: no.\nMend it."), "fit: no. Mend it."),
        (TypeError("fit: no."), "fit: no."),
        (FloatingPointError("the loss must be finite"), "the loss must be finite"),
        (RuntimeError("shapes"), "RuntimeError: shapes"),
    ],
)
def test_what_would_end_the_same_is_not_tried_again(error, said, tmp_path, monkeypatch):
    failing = Failing(error, error)
    monkeypatch.setattr(runs, "train", failing)
    (row,) = run_sweep(over_seeds(TINY, 1), tmp_path / "out")
    assert (row.status, row.error, row.metrics, failing.calls) == ("failed", said, {}, 1)
    (line,) = lines_of(tmp_path / "out" / "sweep.csv")
    assert (line["status"], line["error"]) == ("failed", said)
    assert said in (tmp_path / "out" / "sweep.html").read_text()


def test_a_run_that_another_process_writes_is_busy(tmp_path, impatient):
    sweep, out = over_seeds(TINY, 2), tmp_path / "out"
    held = out / "seed-0"
    held.mkdir(parents=True)
    (out / "sweep.json").write_text(json.dumps(running._contents(sweep)))
    with locked(held):
        rows = run_sweep(sweep, out)
    assert [row.status for row in rows] == ["busy", "finished"]
    assert "another process is writing it now" in rows[0].error
    assert [row.status for row in run_sweep(sweep, out)] == ["finished", "finished"]


def test_a_lock_that_is_released_soon_is_waited_for(tmp_path, monkeypatch):
    failing = Failing(BlockingIOError("held"))
    monkeypatch.setattr(runs, "train", failing)
    (row,) = run_sweep(over_seeds(TINY, 1), tmp_path / "out", retries=0)
    assert (row.status, failing.calls) == ("finished", 2)


# Refusals before any work


def test_code_of_ones_own_needs_trust(tmp_path):
    sweep = over_seeds(Config(prior="own:Prior", network="own:net"), 2)
    with pytest.raises(
        ValueError, match="names code to import, own:Prior and own:net; importing it runs"
    ):
        run_sweep(sweep, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(done, tmp_path):
    out, _ = done
    before = sorted(out.rglob("*"))
    with pytest.raises(
        ValueError, match="must be new, empty or of a sweep that this one extends; it holds another"
    ):
        run_sweep(over_seeds(TINY, 2), out)
    with pytest.raises(FileExistsError, match="--out must be a new or empty directory"):
        run_sweep(over_seeds(TINY, 2), out / "beta-0.5_seed-0")
    assert sorted(out.rglob("*")) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="--out must be a new or empty directory"):
        run_sweep(over_seeds(TINY, 2), tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"format": 2}, "has format 2, newer than 1. Upgrade pyro_bvae."),
        ({"format": 1}, "must be what run_sweep wrote; 'runs'. Restore it."),
        (
            {"format": 1, "runs": {"a": {"bta": 1}}},
            "must be what run_sweep wrote; .*Did you mean beta",
        ),
        ({"format": 1, "runs": {}}, "it holds another"),
    ],
)
def test_sweep_json_of_another_kind(content, sentence, tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=sentence):
        run_sweep(over_seeds(TINY, 1), tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            json.dumps(dataclasses.replace(TINY, lr=0.5).resolved().to_dict()),
            "its lr is 0.5, not 0.005. Move it away",
        ),
        ("{", "must be a run of this sweep; load_run: .* must be JSON"),
    ],
)
def test_another_run_in_its_place(content, sentence, tmp_path):
    sweep = over_seeds(TINY, 2)
    (tmp_path / "sweep.json").write_text(json.dumps(running._contents(sweep)))
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / "config.json").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        run_sweep(sweep, tmp_path)
    assert not (tmp_path / "seed-0").exists()


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"jobs": 0}, ValueError, "jobs must be at least 1, or -1 for one per core; got 0"),
        ({"jobs": -2}, ValueError, "jobs must be at least 1, or -1 for one per core; got -2"),
        ({"jobs": 1.5}, TypeError, "jobs must be a whole number; got 1.5"),
        ({"retries": -1}, ValueError, "retries must be at least 0; got -1"),
        ({"retries": None}, TypeError, "retries must be a whole number; got None"),
    ],
)
def test_bad_numbers(options, kind, sentence, tmp_path):
    with pytest.raises(kind, match=f"run_sweep: {sentence}"):
        run_sweep(over_seeds(TINY, 1), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# Processes

LIGHT = '''
"""Stands in for `work`: imports no torch; a run whose folder holds die-N dies in its first N tries."""
import os, signal, time
from pathlib import Path


def work(name, config, path, trust):
    with open(path + ".tries", "a") as tries:
        tries.write("x")
    times = len(Path(path + ".tries").read_text())
    deaths = int(Path(path + ".deaths").read_text()) if Path(path + ".deaths").exists() else 0
    if times <= deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    threads = os.environ.get("OMP_NUM_THREADS")
    return {"run": name, "status": "finished", "error": "", "metrics": {"pid": os.getpid(), "t": threads}}
'''


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """joblib's processes, ended afterwards, which train nothing: `deaths` says how often a run dies."""
    from joblib.externals.loky import get_reusable_executor

    (tmp_path / "light_work.py").write_text(LIGHT)
    monkeypatch.syspath_prepend(str(tmp_path))
    import light_work

    monkeypatch.setattr(workers, "work", light_work.work)
    get_reusable_executor().shutdown(wait=True, kill_workers=True)

    def run(n, deaths, **options):
        tasks = [workers.Task(str(i), {}, str(tmp_path / str(i)), False) for i in range(n)]
        for i, times in deaths.items():
            (tmp_path / f"{i}.deaths").write_text(str(times))
        ended = dict(workers.train_all(tasks, **options))
        return ended, [len((tmp_path / f"{i}.tries").read_text()) for i in range(n)]

    yield run
    get_reusable_executor().shutdown(wait=True, kill_workers=True)
    sys.modules.pop("light_work", None)


def test_a_run_whose_process_dies_is_taken_up_again_and_takes_no_other_along(pool):
    ended, tries = pool(6, {1: 1, 3: 99}, jobs=2, retries=2)
    assert len(ended) == 6 and [i for i in ended if ended[i]["status"] != "finished"] == ["3"]
    assert ended["3"]["error"].startswith("its process died, as when the system kills it")
    # One that was handed out beside another that died may be charged a try before its first.
    assert 2 <= tries[3] <= 3 and tries[1] >= 2
    pids = {ended[i]["metrics"]["pid"] for i in ended if i != "3"}
    assert os.getpid() not in pids


def test_without_retries_it_fails_at_once(pool):
    ended, tries = pool(1, {0: 1}, jobs=2, retries=0)
    assert ended["0"]["status"] == "failed" and tries == [1]


def test_without_retries_those_beside_it_go_on(pool):
    ended, _ = pool(4, {1: 99}, jobs=2, retries=0)
    assert [i for i in ended if ended[i]["status"] != "finished"] == ["1"]


@pytest.mark.parametrize(("given", "threads"), [(None, "1"), ("3", "3")])
def test_a_process_has_one_thread_unless_the_environment_says_otherwise(
    given, threads, pool, monkeypatch
):
    monkeypatch.setattr("joblib._parallel_backends.cpu_count", lambda *args, **kwargs: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    ended, _ = pool(1, {}, jobs=2, retries=0)
    assert ended["0"]["metrics"]["t"] == threads


def test_the_backend_of_joblib_is_that_of_parallel_config(pool):
    from joblib import parallel_config

    ended, _ = pool(2, {}, jobs=None, retries=0)
    assert {row["metrics"]["pid"] for row in ended.values()} == {os.getpid()}
    with parallel_config("loky", n_jobs=2):
        ended, _ = pool(2, {}, jobs=None, retries=0)
    assert os.getpid() not in {row["metrics"]["pid"] for row in ended.values()}
    with parallel_config("loky", n_jobs=2):
        ended, _ = pool(2, {}, jobs=1, retries=0)
    assert {row["metrics"]["pid"] for row in ended.values()} == {os.getpid()}


OWN = '''
import os, signal
from pathlib import Path
from pyro_bvae import measuring
from pyro_bvae.priors import Gaussian

measuring.write_figures = lambda *args: []


class Deadly(Gaussian):
    """Kills its process at the 8th step, the first time that the file "deadly" is there."""
    calls = 0

    def forward(self):
        Deadly.calls += 1
        if Deadly.calls == 8 and Path("deadly").exists():
            os.remove("deadly")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward()
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A prior of one's own in the current folder."""
    from joblib.externals.loky import get_reusable_executor

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_deadly.py").write_text(OWN)
    get_reusable_executor().shutdown(wait=True, kill_workers=True)
    yield Config(prior="own_deadly:Deadly", steps=12, device="cpu")
    get_reusable_executor().shutdown(wait=True, kill_workers=True)
    sys.modules.pop("own_deadly", None)


def same_training(path, other):
    one, two = load_run(path, trust=True), load_run(other, trust=True)
    assert len(one.history) == len(two.history)
    for name, weight in two.vae.state_dict().items():
        assert np.array_equal(weight, one.vae.state_dict()[name]), name


@pytest.mark.slow
def test_a_killed_training_ends_as_one_that_was_not(own, tmp_path):
    Path("deadly").touch()
    rows = run_sweep(over_seeds(own, 3), "out", jobs=2, trust=True)
    assert not Path("deadly").exists() and [row.status for row in rows] == ["finished"] * 3
    train(dataclasses.replace(own, seed=1), "alone")
    same_training("out/seed-1", "alone")


SNIPPET = textwrap.dedent(run_sweep.__doc__.partition("::\n")[2].partition("Args:")[0])


def started(*command, text):
    """A process, once it has said ``text``."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if text in line:
            return process, line
    raise AssertionError(f"{command} ended")


@pytest.mark.slow
def test_a_cluster_of_dask_loses_a_worker_and_no_run(own, tmp_path):
    """The documented lines, with a scheduler and two workers, of which one is killed at work."""
    pytest.importorskip("distributed")
    write(tmp_path, f'seeds = 4\n[config]\nprior = "{own.prior}"\nsteps = 12\ndevice = "cpu"')
    Path("deadly").touch()
    dask = [sys.executable, "-m", "dask"]
    cluster = []
    try:
        scheduler, line = started(
            *dask,
            "scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
            text="Scheduler at:",
        )
        cluster.append(scheduler)
        address = re.search(r"tcp://\S+", line).group()
        for _ in range(2):
            worker = [*dask, "worker", address, "--nthreads", "1", "--no-dashboard"]
            cluster.append(started(*worker, text="Registered to")[0])
        assert "tcp://127.0.0.1:8786" in SNIPPET and 'run_sweep("sweep.toml"' in SNIPPET
        code = SNIPPET.replace("tcp://127.0.0.1:8786", address)
        code = code.replace('"runs/sweep"', '"runs/sweep", trust=True')
        code += "print(*(row.status for row in rows))\n"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=300
        )
    finally:
        for process in cluster:
            process.send_signal(signal.SIGTERM)
        for process in cluster:
            process.communicate(timeout=60)
    assert done.stdout.split() == ["finished"] * 4, done.stderr
    assert not Path("deadly").exists()
    train(dataclasses.replace(own, seed=2), "alone")
    same_training("runs/sweep/seed-2", "alone")


@pytest.mark.slow
def test_a_run_that_dask_gives_up_fails_and_the_others_go_on(pool):
    """joblib's own backend would wait for it without end."""
    distributed = pytest.importorskip("distributed")
    import dask
    from joblib import parallel_config

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster),
        parallel_config("dask"),
    ):
        ended, tries = pool(4, {1: 99, 2: 1}, jobs=None, retries=1)
    assert [i for i in ended if ended[i]["status"] != "finished"] == ["1"]
    assert ended["1"]["error"].startswith("its process died")
    # Dask also gives up runs that had not begun when their worker died of another: those are tried alone
    assert 1 <= tries[1] <= 4 and all(tries[i] >= 1 for i in range(4))


# What a reviewer found


def finished(*metrics):
    return [Row(Path(str(i)), TINY, "finished", "", m) for i, m in enumerate(metrics)]


def test_a_run_without_a_finite_number_is_not_left_out_of_the_mean():
    rows = finished(
        {"elbo": -1.0, "kl": 1.0}, {"elbo": -math.inf, "kl": 2.0}, {"elbo": -2.0, "kl": 3.0}
    )
    means = mean_metrics(rows)
    assert means["elbo"] == -math.inf and "elbo_se" not in means
    assert (means["kl"], means["kl_se"]) == (2.0, pytest.approx(1 / 3**0.5))


def test_the_error_over_runs_where_the_first_lacks_the_measure():
    rows = finished(
        {"kl": 1.0}, {"log_marginal": -3.0, "log_marginal_se": 0.2},
        {"log_marginal": -4.0, "log_marginal_se": 0.3},
    )  # fmt: skip
    means = mean_metrics(rows)
    assert (means["log_marginal"], means["log_marginal_se"]) == (-3.5, pytest.approx(0.5))
    assert not [name for name in means if name.endswith("_se_se")]


def test_lists_are_averaged_entry_by_entry():
    """Of KL per latent it hangs what counts as an active latent."""
    rows = finished({"kl_per_latent": [1.0, 3.0]}, {"kl_per_latent": [2.0, 5.0]})
    assert mean_metrics(rows)["kl_per_latent"] == [1.5, 4.0]


def test_a_sweep_may_be_extended(tmp_path, without_figures):
    config = dataclasses.replace(TINY, steps=2)
    first = run_sweep(over_seeds(config, 1), tmp_path / "out")
    written = (first[0].path / "metrics.json").stat().st_mtime_ns
    rows = run_sweep(over_seeds(config, 2), tmp_path / "out")
    assert [row.status for row in rows] == ["finished"] * 2
    assert (first[0].path / "metrics.json").stat().st_mtime_ns == written
    assert len(lines_of(tmp_path / "out" / "sweep.csv")) == 2


def test_torchrun_starts_no_sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="must be started as one process; torchrun started 2"):
        run_sweep(over_seeds(TINY, 1), tmp_path / "out")
    assert not (tmp_path / "out").exists()
