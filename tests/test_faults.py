"""Full disks, closed folders, too little memory, hostile run directories: nothing lost, one sentence."""

import errno
import io
import json
import os
import random
import re
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pyro_bvae.cli.main import main

from pyro_bvae import Config, checkpoint, measuring, writing
from pyro_bvae.checkpoint import read_checkpoint
from pyro_bvae.measuring import measure_run
from pyro_bvae.runs import load_run, resume, train

pytestmark = pytest.mark.usefixtures("without_figures")
resource = pytest.importorskip("resource", reason="its limits are Unix's")
SMALL = {"prior": "mixture", "alpha": 1.0, "steps": 6}
FILES = (
    "checkpoint.pt",
    "config.json",
    "environment.json",
    "examples.npz",
    "history.jsonl",
    "metrics.json",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "write_figures", lambda *args: [])
        return train(Config(**SMALL), tmp_path_factory.mktemp("whole") / "run").path


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the run that a test may damage."""
    path = tmp_path / "copy"
    path.mkdir()
    for name in FILES:
        (path / name).write_bytes((finished / name).read_bytes())
    return path


def numbers(path):
    history = [json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()]
    for record in history:
        del record["seconds"]
    return history, read_checkpoint(path / "checkpoint.pt")["vae"]


def assert_same(path, other):
    (history, weights), (expected, others) = numbers(path), numbers(other)
    assert history == expected
    assert all(torch.equal(others[name], value) for name, value in weights.items())


# Disks


@contextmanager
def tmpfs(folder, options):
    """A real file system of its own."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip("mounting a file system takes rights that this user lacks")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_full_and_then_is_not(finished, tmp_path):
    """A file system of 256 kB, filled in the midst of a training."""
    with tmpfs(tmp_path, "size=256k"):
        path, filler = tmp_path / "run", tmp_path / "filler"

        def fill(state):
            if state.step == 3:
                with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(4096))

        with pytest.raises(OSError) as caught:
            train(Config(**SMALL), path, on_step=fill, checkpoint_every=1)
        said = str(caught.value)
        assert said.startswith(f"--out: {path}/") and "must be writable; got No space left" in said
        assert said.endswith(
            f"The last good checkpoint and the history are kept in {path}. "
            f"Go on with: pyro-bvae train --resume {path}."
        )
        assert not [p for p in path.iterdir() if ".new" in p.name]
        assert read_checkpoint(path / "checkpoint.pt")["step"] == 2 and load_run(path).history
        filler.unlink()
        resume(path)
        assert_same(path, finished)


def test_a_folder_that_becomes_read_only(finished, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("no folder is closed to root")
    path = tmp_path / "run"

    def close(state):
        if state.step == 2:
            path.chmod(0o500)

    try:
        with pytest.raises(OSError, match=r"must be writable; got Permission denied\..*--resume"):
            train(Config(**SMALL), path, on_step=close, checkpoint_every=1)
        with pytest.raises(PermissionError, match="is not writable"):
            resume(path)
    finally:
        path.chmod(0o700)
    resume(path)
    assert_same(path, finished)


WRITES = {
    "open": (Path, "open"), "write": (Path, "write_bytes"), "fsync": (os, "fsync"),
    "rename": (os, "replace"), "text": (Path, "write_text"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*it starts again")  # killed before its first checkpoint
@pytest.mark.parametrize("name", WRITES)
def test_each_write_may_fail(name, finished, tmp_path, monkeypatch):
    """The n-th call of each way to write fails, for growing n until a training comes through."""
    owner, attribute = WRITES[name]
    real, calls, failures = getattr(owner, attribute), [0], 0
    for fail_at in (1, 2, 3, 4, 6, 9, 14, 22, 35, 60, 100):
        path = tmp_path / str(fail_at)
        calls[0] = 0

        def fail(*args, fail_at=fail_at, **kwargs):
            ours = str(tmp_path) in str(args[0]) if isinstance(args[0], Path) else True
            calls[0] += ours
            if ours and calls[0] == fail_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(owner, attribute, fail)
            try:
                train(Config(**SMALL), path, checkpoint_every=4)
                break
            except OSError as error:
                assert "No space left on device" in str(error) and "\n" not in str(error)
                failures += 1
        if (path / "checkpoint.pt").is_file():
            read_checkpoint(path / "checkpoint.pt")
        if (path / "config.json").is_file():
            resume(path)
        else:
            train(Config(**SMALL), path)
        assert_same(path, finished)
    assert 2 <= failures < 11


# Memory


@contextmanager
def at_most(extra):
    """This process may map so many bytes more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's here")
def test_memory_that_does_not_suffice(tmp_path):
    """A real allocation that fails, in the midst of a training; with less to hold it goes on."""
    held = []

    def tighten(state):
        if state.step == 2:
            state.objective.num_particles = 5000  # more than malloc may have kept
            held.append(at_most(1 << 20))
            held[0].__enter__()

    try:
        with pytest.raises(MemoryError) as caught:
            train(
                Config(dataset="digits", batch_size=1500, steps=4, n_particles=50),
                tmp_path / "run", on_step=tighten, checkpoint_every=1,
            )  # fmt: skip
    finally:
        held[0].__exit__(None, None, None)
    said = str(caught.value)
    assert said.startswith("train: a step must fit into memory; got: ")
    assert (
        "Lower --batch-size (now 1500) or --latent-dim (now 10) or --n-particles (now 50)." in said
    )
    assert said.endswith(
        f"The last good checkpoint and the history are kept in {tmp_path / 'run'}."
    )
    assert read_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 2


def test_images_that_no_memory_holds(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((9, 8, 8), np.uint8))
    options = ["--dataset", str(tmp_path / "x.npz"), "--image-size", "500000", "--network", "mlp"]
    done = CliRunner().invoke(main, ["train", *options, "--out", str(tmp_path / "run")])
    assert done.exit_code in (1, 2) and not (tmp_path / "run").exists()
    assert re.search(r"Error: .*memory.* --image-size", done.output.splitlines()[-1])


# Data that vanish


@pytest.mark.parametrize("how", ["deleted", "truncated"])
@pytest.mark.parametrize("suffix", [".npy", ".h5"])
def test_data_that_vanish_in_the_midst_of_a_training(suffix, how, tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_bvae.build._HELD_BYTES", 0)
    rows = np.random.default_rng(0).normal(size=(4000, 6)).astype(np.float32)
    path, run = tmp_path / f"rows{suffix}", tmp_path / "run"

    def write():
        if suffix == ".npy":
            np.save(path, rows)
        else:
            import h5py

            with h5py.File(path, "w") as file:
                file["x"] = rows

    def harm(state):
        if state.step == 3:
            path.unlink() if how == "deleted" else os.truncate(path, 5000)

    write()
    config = Config(str(path), latent_dim=2, batch_size=500, epochs=2, likelihood_scale="0.5")
    with pytest.raises((ValueError, OSError), match=r"rows\.(npy|h5).*\. The last good check"):
        train(config, run, on_step=harm, checkpoint_every=1)
    assert read_checkpoint(run / "checkpoint.pt")["step"] >= 3
    write()
    resume(run)
    train(config, tmp_path / "whole")
    assert_same(run, tmp_path / "whole")


# Checkpoints of strangers


def test_every_flipped_bit_of_a_checkpoint_is_found(copy):
    """torch.load itself reads three of four of them without a word."""
    path, expected = copy / "checkpoint.pt", numbers(copy)[1]
    whole = path.read_bytes()
    rng, silent, found = random.Random(0), 0, 0
    for _ in range(300):
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            weights = read_checkpoint(path)["vae"]
        except ValueError as error:
            assert "must be a checkpoint of pyro_bvae; it cannot be read" in str(error)
            found += 1
        else:  # a bit that nobody reads, such as a date in the archive's table
            silent += 1
            assert all(torch.equal(expected[name], value) for name, value in weights.items())
    assert found > 250 > silent


def repack(path, compress=zipfile.ZIP_STORED, **replaced):
    content = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            content[name] = archive.read(name)
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, value in content.items():
            archive.writestr(name, replaced.get(name.rpartition("/")[2], value))


def test_a_checkpoint_that_unpacks_without_end(copy):
    repack(copy / "checkpoint.pt", zipfile.ZIP_DEFLATED, **{"0": bytes(50_000_000)})
    assert (copy / "checkpoint.pt").stat().st_size < 200_000
    with pytest.raises(ValueError, match=r"it cannot be read \(it is compressed\)"):
        load_run(copy)


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize("name", ["checkpoint.pt", "examples.npz"])
def test_nothing_is_unpickled(name, copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "checkpoint.pt":
        torch.save({"format": 2, "vae": Harm()}, copy / name)
    else:
        np.savez(copy / name, x=np.array([Harm()], dtype=object), loc=np.ones(1), scale=np.ones(1))
    with pytest.raises(ValueError, match=f"{name} must be"):
        _ = load_run(copy).examples
    assert not (tmp_path / "harmed").exists()


def test_no_module_of_ours_can_unpickle():
    """Whoever loads says weights_only or allow_pickle=False; nobody imports pickle."""
    root = Path(writing.__file__).parent
    files = [*root.rglob("*.py"), *(root.parent / "cli").rglob("*.py")]
    assert len(files) > 80
    for path in files:
        text = path.read_text()
        for number, line in enumerate(text.splitlines(), 1):
            at = f"{path.name}:{number}"
            assert "torch.load(" not in line or "weights_only=True" in line, at
            assert "np.load(" not in line or "allow_pickle=False" in line, at
            words = ("pickle.load", "joblib.load", "import dill", "eval(", "exec(", "yaml.load")
            harmless = (".eval(", "_eval(")
            if not any(word in line for word in harmless):
                assert not any(word in line for word in words[:3] + words[4:]), at


# Links


@pytest.mark.parametrize(
    "name", ["checkpoint.pt", "config.json", "history.jsonl", "metrics.json", "examples.npz"]
)
@pytest.mark.parametrize("kind", ["elsewhere", "nothing", "itself"])
def test_links_out_of_a_run(name, kind, copy, tmp_path):
    target = {"elsewhere": tmp_path / "secret", "nothing": tmp_path / "none", "itself": copy / name}
    (tmp_path / "secret").write_bytes((copy / name).read_bytes())
    (copy / name).unlink()
    (copy / name).symlink_to(target[kind])
    with pytest.raises(
        ValueError, match=rf"{name} must be part of its run; it is a link that leads"
    ):
        run = load_run(copy)
        _ = run.metrics, run.examples


def test_links_within_a_run_and_to_a_run(copy, tmp_path):
    os.rename(copy / "checkpoint.pt", copy / "kept.pt")
    (copy / "checkpoint.pt").symlink_to("kept.pt")
    (tmp_path / "link").symlink_to(copy)
    assert load_run(tmp_path / "link").metrics["n"] == 400


@pytest.mark.parametrize("name", [".lock", "figures", "checkpoint.pt"])
def test_links_are_not_written_through(name, tmp_path):
    """A stranger's unfinished run that would have our files overwritten."""
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(Config(**SMALL), path, on_step=_stop)
    ours = tmp_path / "ours"
    ours.mkdir() if name == "figures" else ours.write_text("precious")
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(ours)
    with pytest.raises(ValueError, match=r"must be part of its run; it is a link"):
        resume(path)
    assert not any(ours.iterdir()) if name == "figures" else ours.read_text() == "precious"


def _stop(state):
    raise KeyboardInterrupt


def test_a_link_that_waits_for_our_temporary_name(tmp_path):
    ours, target = tmp_path / "ours", tmp_path / "metrics.json"
    ours.write_text("precious")
    (tmp_path / f".metrics.{os.getpid()}.new.json").symlink_to(ours)
    writing.write_json(target, {"a": 1})
    assert ours.read_text() == "precious" and json.loads(target.read_text()) == {"a": 1}
    assert not target.is_symlink()


# Sizes, and what is left behind


@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
def test_text_larger_than_any_of_ours(name, copy):
    with (copy / name).open("r+b") as file:
        file.truncate(10**10)  # a hole: it takes no room on the disk
    with pytest.raises(
        ValueError, match=rf"{name} must hold at most [\d,]+ bytes; got 10,000,000,000"
    ):
        _ = load_run(copy).metrics


def test_examples_that_claim_more_than_there_is(copy):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**13, 1)}
    )
    repack(copy / "examples.npz", **{"x.npy": header.getvalue() + bytes(16)})
    with pytest.raises(ValueError, match=r"examples\.npz must be the examples that training wrote"):
        _ = load_run(copy).examples


def test_leftovers_of_a_killed_writer(copy, finished):
    left = copy / ".checkpoint.4711.new.pt"
    left.write_text("half")
    (copy / "metrics.json").unlink()
    resume(copy)
    assert not left.exists()
    assert_same(copy, finished)


def test_a_directory_with_only_leftovers_is_new(tmp_path):
    (tmp_path / ".config.4711.new.json").write_text("{")
    (tmp_path / ".lock").touch()
    train(Config(steps=1), tmp_path)
    assert load_run(tmp_path).history


def test_measuring_a_run_that_is_being_trained(copy):
    run = load_run(copy)
    before = (copy / "metrics.json").read_bytes()
    with (
        writing.locked(copy),
        pytest.raises(BlockingIOError, match="must have one writer"),
    ):
        measure_run(copy, run.config, run.vae)
    assert (copy / "metrics.json").read_bytes() == before


def test_permissions_are_those_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        writing.write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_open_files_and_memory_stay_flat(tmp_path):
    """Over 120 epochs with a checkpoint at each."""
    open_files, allocated = [], []

    def look(state):
        if state.step % 30 == 0:
            open_files.append(len(os.listdir("/proc/self/fd")))
            allocated.append(int(Path("/proc/self/statm").read_text().split()[1]))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc")
    train(Config(steps=120, prior="mixture"), tmp_path / "run", on_step=look, checkpoint_every=1)
    assert len(open_files) == 4 and len(set(open_files)) == 1
    grown = (allocated[-1] - allocated[1]) * resource.getpagesize()
    assert grown < 4_000_000, f"{grown} bytes over 60 steps"


# Numbers that run away


def test_what_a_diverging_training_says(tmp_path):
    config = Config(steps=60, lr=1e10, likelihood_scale="1e-6", beta_warmup=0)
    with pytest.raises(FloatingPointError) as caught:
        train(config, tmp_path / "run")
    said = str(caught.value)
    assert (
        "must be finite; got loss=" in said
        and "largest gradient norm=" in said
        and " at step " in said
    )
    assert f"kept in {tmp_path / 'run'}." in said or "there was no checkpoint yet." in said
    assert all(torch.isfinite(value).all() for value in _weights_kept(tmp_path / "run"))


def test_a_gradient_that_is_not_finite_beside_a_loss_that_is(tmp_path, monkeypatch):
    """The square root of 0: its value is finite, its slope is not. The weights stay as they were."""
    (tmp_path / "rooted.py").write_text(
        "import torch\n"
        "from pyro_bvae.networks import mlp\n"
        "class Rooted(torch.nn.Module):\n"
        "    def __init__(self, net):\n"
        "        super().__init__()\n"
        "        self.net, self.offset = net, torch.nn.Parameter(torch.ones(()))\n"
        "    def forward(self, x):\n"
        "        loc, scale = self.net(x)\n"
        "        return loc + self.offset.abs().sqrt(), scale\n"
        "def make(x_shape, latent_dim, extra, scale):\n"
        "    encoder, decoder = mlp(x_shape, latent_dim, extra, scale)\n"
        "    return Rooted(encoder), decoder\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    weights = {}

    def to_the_root(state):
        if state.step == 4:
            state.vae.encoder.offset.data.zero_()
            weights.update({k: v.clone() for k, v in state.vae.state_dict().items()})
        if state.step == 8:
            assert all(torch.equal(weights[k], v) for k, v in state.vae.state_dict().items())

    config = Config(steps=60, network="rooted:make")
    sentence = (
        r"the gradient must be finite; got loss=-?\d.*, largest gradient norm=nan at step 4\. "
    )
    with pytest.raises(FloatingPointError, match=sentence):
        train(config, tmp_path / "run", on_step=to_the_root)
    assert read_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 1 and weights
    assert len(load_run(tmp_path / "run", trust=True).history) == 4


EXTREMES = {
    "sigma at its floor": {"likelihood_scale": "1e-6"},
    "beta 1e4": {"beta": 1e4, "beta_warmup": 0},
    "alpha 1e6": {"alpha": 1e6, "prior": "mixture"},
    "C 1e3": {"gamma": 1e3, "capacity": 1e3, "capacity_ramp": 0},
    "batch 1": {"batch_size": 1, "alpha": 1.0, "divergence": "mmd"},
    "batch 1, TC": {"batch_size": 1, "beta_tc": 5.0},
    "latent 512": {"latent_dim": 512, "alpha": 10.0, "divergence": "mmd-per-dim"},
    "latent 512, mixture": {"latent_dim": 512, "prior": "mixture", "alpha": 1.0},
    "latent 512, spike-slab": {"latent_dim": 512, "prior": "spike-slab", "alpha": 1.0},
    "latent 512, flow": {"latent_dim": 512, "prior": "flow"},
    "heavy tails": {"prior": "student-t", "prior_args": {"df": 0.5}, "alpha": 1.0},
    "narrow mixture": {"prior": "mixture", "prior_args": {"variance": 1e-8}, "alpha": 1.0},
    "lr 1e3": {"lr": 1e3},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Encountered:UserWarning")  # Pyro's, of NaN in the first step
@pytest.mark.parametrize("data", ["spirals", "constant", "huge"])
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_settings_train_or_explain(name, data, tmp_path):
    values = {"constant": np.zeros((40, 4)), "huge": np.full((40, 4), 1e18)}
    dataset = data
    if data in values:
        rows = values[data].astype(np.float32)
        if data == "huge":
            rows *= np.random.default_rng(0).normal(size=rows.shape).astype(np.float32)
        np.save(tmp_path / "x.npy", rows)
        dataset = str(tmp_path / "x.npy")
    try:
        run = train(
            Config(dataset, **{"steps": 3, "batch_size": 40, **EXTREMES[name]}), tmp_path / "run"
        )
    except (FloatingPointError, ValueError) as error:
        assert "\n" not in str(error) and "must" in str(error), error
        if not (tmp_path / "run").exists():
            return
        weights = _weights_kept(tmp_path / "run")
    else:
        weights = run.vae.state_dict().values()
        assert np.isfinite([record["loss"] for record in run.history]).all()
    assert not any(torch.isnan(value).any() for value in weights)


def _weights_kept(path):
    """Of the last good checkpoint, where there was one."""
    if not (path / "checkpoint.pt").is_file():
        return []
    return checkpoint.read_checkpoint(path / "checkpoint.pt")["vae"].values()


# What a reviewer found


@pytest.mark.filterwarnings("ignore:mask was not registered")
def test_a_run_never_ends_without_its_last_checkpoint(tmp_path, monkeypatch):
    """Frozen weights and buffers may hold infinity or NaN by right."""
    (tmp_path / "odd.py").write_text(
        "import torch, pyro.distributions as dist\n"
        "class Odd(torch.nn.Module):\n"
        "    def __init__(self, latent_dim):\n"
        "        super().__init__()\n"
        "        self.register_buffer('seen', torch.full((2,), float('nan')))\n"
        "        mask = torch.full((2,), float('-inf'))\n"
        "        self.mask = torch.nn.Parameter(mask, requires_grad=False)\n"
        "        self.loc = torch.nn.Parameter(torch.zeros(latent_dim))\n"
        "    def forward(self):\n"
        "        return dist.Normal(self.loc, 1.0).to_event(1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = train(Config(prior="odd:Odd", steps=3), tmp_path / "run")
    assert read_checkpoint(run.path / "checkpoint.pt")["step"] == 3
    assert load_run(run.path, trust=True).vae.prior.mask.isinf().all()


def test_weights_that_overflow_in_the_last_step_are_no_finished_run(tmp_path):
    def overflow(record, state):
        if state.step == state.total:
            next(state.vae.parameters()).data.fill_(np.inf)

    with pytest.raises(FloatingPointError, match=r"weights must be finite; encoder.* after step 3"):
        train(Config(steps=3), tmp_path / "run", callbacks=[overflow], checkpoint_every=1)
    assert read_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 2
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_record_holds_numbers(tmp_path):
    run = train(
        Config(steps=2), tmp_path / "a",
        callbacks=[lambda record, state: record.update(mine=np.float32(0.5))],
    )  # fmt: skip
    assert load_run(run.path).history[1]["mine"] == 0.5
    with pytest.raises(ValueError, match="a record must hold numbers; a callback put note='hello'"):
        train(
            Config(steps=2), tmp_path / "b",
            callbacks=[lambda record, state: record.update(note="hello")],
        )  # fmt: skip


def test_a_failed_append_leaves_no_half_of_a_line(tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def fail(number):
        calls.append(number)
        if (tmp_path / "run" / "history.jsonl").exists() and len(load_lines(tmp_path)) == 3:
            raise OSError(errno.EIO, "Input/output error")
        return real(number)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        train(Config(**SMALL), tmp_path / "run", checkpoint_every=1)
    assert [r["step"] for r in load_run(tmp_path / "run").history] == [1, 2]


def load_lines(tmp_path):
    return (tmp_path / "run" / "history.jsonl").read_text().splitlines()


def test_a_stranger_s_run_downloads_nothing(copy, tmp_path, monkeypatch):
    values = json.loads((copy / "config.json").read_text())
    values |= {"download": True, "dataset": "mnist", "data_dir": str(tmp_path / "victim")}
    (copy / "config.json").write_text(json.dumps(values))
    run = load_run(copy)
    with pytest.raises(FileNotFoundError, match="Pass --download"):
        measure_run(copy, run.config, run.vae)
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"scores": 3}', '{"notes": 3}', "[]"])
def test_measures_of_something_else(text, copy):
    run = load_run(copy)
    (copy / "metrics.json").write_text(text)
    with pytest.raises(ValueError, match=r"metrics\.json must be what it wrote; .*Delete it\."):
        measure_run(copy, run.config, run.vae)
    assert (copy / "metrics.json").read_text() == text


@pytest.mark.parametrize(
    "values",
    [{"training_seconds": "x"}, {"training_seconds": None}],
)
def test_a_finished_run_of_something_else(values, copy):
    (copy / "metrics.json").write_text(json.dumps(values))
    done = CliRunner().invoke(main, ["train", "--resume", str(copy), "--no-report"])
    assert done.exit_code == 2 and "its files must be what training wrote" in done.output


def test_pictures_are_not_taken_from_elsewhere(copy, tmp_path):
    from PIL import Image

    from pyro_bvae.report.pictures import pictures

    (copy / "figures").mkdir()
    Image.new("RGB", (3, 3), "red").save(tmp_path / "private.png")
    (copy / "figures" / "data.png").symlink_to(tmp_path / "private.png")
    os.mkfifo(copy / "figures" / "samples.png")
    assert pictures(copy / "figures", 0) == []
    Image.new("RGB", (3, 3), "red").save(copy / "figures" / "traversals.png")
    assert len(pictures(copy / "figures", 0)) == 1


def test_more_than_tensors_is_refused(copy):
    torch.save(
        {"format": 1, "vae": {}, "x_shape": [2], "n_classes": 0, "a": bytearray(5)},
        copy / "checkpoint.pt",
    )
    with pytest.raises(ValueError, match="it holds more than tensors"):
        load_run(copy)


def test_another_configuration_or_other_rows_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32))
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(Config(str(tmp_path / "x.npy"), latent_dim=2, steps=9), path, on_step=_stop)
    whole = (path / "config.json").read_text()
    (path / "config.json").write_text(json.dumps(json.loads(whole) | {"batch_size": 7}))
    with pytest.raises(
        ValueError, match=r"config\.json must be what .* was trained with; it has changed"
    ):
        resume(path)
    (path / "config.json").write_text(whole)
    np.save(tmp_path / "x.npy", np.ones((40, 3), np.float32))
    with pytest.raises(
        ValueError, match=r"the data must be what .* was trained with; it has changed"
    ):
        resume(path)


def test_a_file_where_the_figures_go_is_found_first(tmp_path):
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(Config(**SMALL), path, on_step=_stop)
    (path / "figures").write_text("mine")
    with pytest.raises(ValueError, match="figures must be a folder; it is a file"):
        resume(path, on_step=_fail)


def _fail(state):
    raise AssertionError("a step was taken")


def test_where_a_run_was_resumed_is_written_whenever_it_was_killed(copy):
    for name in ("environment.json", "checkpoint.pt", "metrics.json", "history.jsonl"):
        (copy / name).unlink()
    resume(copy)
    assert "torch" in json.loads((copy / "environment.json").read_text())["resumed"][0]
    for name in ("checkpoint.pt", "metrics.json"):
        (copy / name).unlink()
    with pytest.warns(
        UserWarning, match="has no checkpoint any more, or never had one: it starts again"
    ):
        resume(copy)


def test_directories_that_cannot_be_synchronised(tmp_path, monkeypatch):
    real = os.fsync

    def fail(number):
        if os.path.isdir(f"/proc/self/fd/{number}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(number)

    monkeypatch.setattr(os, "fsync", fail)
    writing.write_json(tmp_path / "a.json", {"a": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_how_to_go_on_can_be_pasted(tmp_path, monkeypatch):
    (tmp_path / "ring.py").write_text("from pyro_bvae.priors import Gaussian as Ring\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "with space"
    with pytest.raises(KeyboardInterrupt, match=rf"Go on with: .* --resume '{path}' --trust\.$"):
        train(Config(prior="ring:Ring", steps=5), path, on_step=_stop)
    assert len(resume(path, trust=True, device="cpu").history) == 5
