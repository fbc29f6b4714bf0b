"""A training on disk: what it writes, what is read back, and what is left when it stops early."""

import dataclasses
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

import pyro_bvae.runs as runs
from pyro_bvae import checkpoint, measuring, writing
from pyro_bvae.build import load, make_vae
from pyro_bvae.checkpoint import FORMAT
from pyro_bvae.config import Config
from pyro_bvae.priors import Mixture
from pyro_bvae.runs import load_run, train
from pyro_bvae.vae import VAE

MEASURED = {"metrics.json", "examples.npz"}
FILES = {".lock", "checkpoint.pt", "config.json", "environment.json", "history.jsonl"} | MEASURED
ALWAYS = {"data", "reconstructions", "samples", "training"}
FIGURES = ALWAYS | {"aggregate_posterior", "manifold"}  # of two latents
SMALL = Config(prior="mixture", alpha=1.0, steps=5)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of five steps; tests must not change its directory."""
    return train(SMALL, tmp_path_factory.mktemp("runs") / "a" / "b")


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the run that a test may damage."""
    path = tmp_path / "copy"
    path.mkdir()
    for name in FILES:
        (path / name).write_bytes((finished.path / name).read_bytes())
    return path


def same_but_for_seconds(a, b):
    def timeless(records):
        return [{k: v for k, v in record.items() if k != "seconds"} for record in records]

    return timeless(a) == timeless(b)


# What a run holds


def test_directory_holds_exactly_these_files(finished):
    found = {p.relative_to(finished.path).as_posix() for p in finished.path.rglob("*.*")}
    assert found == FILES | {f"figures/{name}.png" for name in FIGURES}
    for name in FIGURES:
        assert (finished.path / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_config_is_resolved_and_round_trips(finished):
    values = json.loads((finished.path / "config.json").read_text())
    assert values["format"] == 1
    assert Config.from_dict(values) == finished.config == finished.config.resolved()
    unset = {name for name, value in values.items() if value is None}
    assert unset == {
        "data_dir", "image_size", "estimator", "beta_tc", "gamma", "capacity", "epochs",
    }  # fmt: skip
    assert (values["divergence"], values["likelihood_scale"]) == ("inclusive-kl", "decoder")


def test_config_of_a_run_trains_the_same_again(finished, tmp_path, without_figures):
    values = json.loads((finished.path / "config.json").read_text())
    again = train(Config.from_dict(values), tmp_path / "again")
    assert same_but_for_seconds(again.history, finished.history)


def test_history(finished):
    lines = (finished.path / "history.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert records == [{"format": 1} | record for record in finished.history]
    assert load_run(finished.path).history == finished.history
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5]
    for record in records:
        assert set(record) == {
            "format", "step", "epoch", "seconds", "loss", "log_px_z", "kl", "divergence", "elbo", "beta",
            "alpha", "kl_monte_carlo", "divergence_detached", "rate_minus_log_batch",
            "test_log_px_z", "test_kl", "test_elbo",
        }  # fmt: skip
        assert record["elbo"] == pytest.approx(record["log_px_z"] - record["kl"], abs=1e-6)
    # beta rises over the first two thirds: step / (2/3 * 5).
    assert [r["beta"] for r in records] == pytest.approx([0, 0.3, 0.6, 0.9, 1])


def test_history_says_what_each_latent_carries_where_the_kl_splits(tmp_path, without_figures):
    history = train(Config(steps=3), tmp_path / "run").history
    assert len(history) == 3
    for record in history:
        latents = [record.pop(f"test_kl_z{d}") for d in range(2)]
        assert sum(latents) == pytest.approx(record["test_kl"], rel=1e-5)
        assert not [name for name in record if name.startswith("test_kl_z")]


def test_held_out_terms_are_of_evenly_spaced_rows(tmp_path, without_figures, monkeypatch):
    seen = []
    encode = measuring.encode_data
    monkeypatch.setattr(measuring, "_HELD_OUT_ROWS", 5)
    monkeypatch.setattr(
        measuring, "encode_data", lambda vae, data, t: seen.append(data) or encode(vae, data, t)
    )
    run = train(Config(steps=1), tmp_path / "run")
    _, test = load(run.config)
    data, _ = seen  # the second time for metrics.json
    assert len(test) == 400 and np.array_equal(data.x, test.x[[0, 99, 199, 299, 399]])


def test_metrics_and_environment(finished):
    m = finished.metrics
    assert m == json.loads((finished.path / "metrics.json").read_text())
    assert (m["n"], m["format"], m["divergence_name"], m["beta"]) == (400, 1, "inclusive-kl", 1)
    assert m["elbo"] == pytest.approx(m["log_px_z"] - m["kl"], abs=1e-5)
    assert {
        "divergence", "divergence_components", "rate_minus_log_components", "latents",
        "active_units", "idle_means", "kl_sd",
    } <= set(m)  # fmt: skip
    assert (m["bound_on"], m["latents"], m["divergence_components"]) == ("log p(x)", 2, 400)
    assert math.isfinite(m["divergence"]) and 0 <= m["active_units"] <= 2
    assert m["rate_minus_log_components"] == pytest.approx(m["kl"] - math.log(400))
    # A mixture has no KL in closed form, and points no beta_norm.
    assert m["kl_sd"] is None and m["kl_estimator"] == "Monte Carlo, 1 sample"
    assert "beta_norm" not in m
    assert m["rate_minus_log_batch"] == pytest.approx(finished.history[-1]["kl"] - math.log(400))
    e = json.loads((finished.path / "environment.json").read_text())
    assert e["torch"] == torch.__version__ and e["device"].startswith(("cpu", "cuda"))
    assert e["command"][0] == Path(sys.argv[0]).name


def test_checkpoint_is_tensors_and_text(finished):
    checkpoint = torch.load(finished.path / "checkpoint.pt", weights_only=True)
    assert set(checkpoint) == {
        "format", "vae", "optim", "svi", "step", "epoch", "batch", "x_shape", "n_classes", "n_rows",
        "data_order", "noise", "seconds", "sums", "counts", "numbers", "config", "data",
    }  # fmt: skip
    on_cuda = next(finished.vae.parameters()).is_cuda
    assert (checkpoint["noise"]["cuda"] is None) == (not on_cuda)
    assert set(checkpoint["noise"]) == {"torch", "cuda", "python", "numpy"}
    assert (checkpoint["step"], checkpoint["epoch"], checkpoint["x_shape"]) == (5, 5, [2])
    assert set(checkpoint["optim"]) == {"state", "param_groups"}


def test_default_directory_counts_up(tmp_path, monkeypatch, without_figures):
    monkeypatch.chdir(tmp_path)
    config = Config(steps=1)
    names = [train(config).path.as_posix() for _ in range(2)]
    assert names == ["runs/spirals-gaussian-1", "runs/spirals-gaussian-2"]


def test_two_starts_never_share_a_default_directory(tmp_path, monkeypatch, without_figures):
    """The second starts, and finishes, while the first still loads its data."""
    monkeypatch.chdir(tmp_path)
    build, inner = runs.build, []

    def slow(config):
        if not inner:
            inner.append(None)
            inner[0] = train(Config(steps=2)).path
        return build(config)

    monkeypatch.setattr(runs, "build", slow)
    outer = train(Config(steps=1)).path
    assert (inner[0].name, outer.name) == ("spirals-gaussian-1", "spirals-gaussian-2")
    assert [len(load_run(path).history) for path in (inner[0], outer)] == [2, 1]


def test_a_default_directory_taken_meanwhile_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("spirals-gaussian-1", "spirals-gaussian"):  # the second is a name somebody chose
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "mine.txt").write_text("mine")
    (tmp_path / "runs" / "spirals-gaussian-2").write_text("a file")
    assert (
        writing.make_run_directory("spirals", "gaussian", None).as_posix()
        == "runs/spirals-gaussian-3"
    )


def test_an_empty_directory_will_do(tmp_path, without_figures):
    assert (train(Config(steps=1), tmp_path).path / "metrics.json").is_file()


# Reading back


def test_load_run_gives_the_same_model(finished):
    loaded = load_run(finished.path)
    assert loaded.config == finished.config and loaded.path == finished.path
    assert loaded.history == finished.history and loaded.metrics == finished.metrics
    ours, theirs = finished.vae.state_dict(), loaded.vae.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name].cpu(), theirs[name]) for name in ours)
    assert not loaded.vae.training
    x = torch.randn(7, 2)
    with torch.no_grad():
        a, b = finished.vae.cpu().q_z(x), loaded.vae.q_z(x)
    assert torch.equal(a.mean, b.mean) and torch.equal(a.variance, b.variance)
    assert isinstance(loaded.vae.prior, Mixture)


def test_load_run_takes_text_for_a_path(finished):
    assert load_run(str(finished.path)).path == finished.path


@pytest.mark.parametrize("prior", ["pca", "vamp", "flow", "spike-slab", "student-t", "laplace"])
def test_every_prior_is_read_back(prior, tmp_path, without_figures):
    run = train(Config(prior=prior, steps=2), tmp_path / "run")
    loaded = load_run(run.path)
    z = torch.randn(5, 2)
    with torch.no_grad():
        a, b = run.vae.cpu().eval().p_z().log_prob(z), loaded.vae.p_z().log_prob(z)
    assert torch.equal(a, b)


@pytest.mark.parametrize("weight", [0, 1])
def test_a_spike_of_weight_0_or_1_is_kept_and_read_back(weight, tmp_path, without_figures):
    """Its log-odds are infinite by right, and are no reason to keep no checkpoint."""
    config = Config(prior="spike-slab", prior_args={"spike_weight": weight}, steps=2)
    run = train(config, tmp_path / "run")
    checkpoint = torch.load(run.path / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == 2
    assert any(torch.isinf(w).any() for w in checkpoint["vae"].values())
    z = torch.randn(5, 2)
    ours = run.vae.cpu().eval().p_z().log_prob(z)
    assert torch.equal(load_run(run.path).vae.p_z().log_prob(z), ours)
    assert torch.isfinite(ours).all()


def test_vae_of_ones_own_is_filled(finished):
    vae = make_vae(finished.config, (2,))
    loaded = load_run(finished.path, vae=vae)
    assert loaded.vae is vae
    x = torch.randn(3, 2)
    assert torch.equal(vae.encode(x), finished.vae.cpu().encode(x))


def test_vae_that_does_not_fit_is_refused(finished):
    other = make_vae(dataclasses.replace(finished.config, latent_dim=3), (2,))
    sentence = r"^load_run: the model must fit .*checkpoint\.pt; .*Pass the vae it was trained with"
    with pytest.raises(ValueError, match=sentence) as caught:
        load_run(finished.path, vae=other)
    assert "\n" not in str(caught.value)


@pytest.fixture
def own_run(tmp_path, monkeypatch, without_figures):
    (tmp_path / "own_ring.py").write_text(
        "import pyro.distributions as dist, torch\n"
        "class Ring(torch.nn.Module):\n"
        "    def __init__(self, latent_dim, radius=1.0):\n"
        "        super().__init__()\n"
        "        self.loc = torch.nn.Parameter(torch.full((latent_dim,), float(radius)))\n"
        "    def forward(self):\n"
        "        return dist.Normal(self.loc, 1.0).to_event(1)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = Config(prior="own_ring:Ring", prior_args={"radius": 2.0}, alpha=1.0, steps=3)
    yield train(config, tmp_path / "run")
    sys.modules.pop("own_ring", None)


def test_code_named_by_a_run_needs_trust(own_run):
    sys.modules.pop("own_ring")
    sentence = r"names code to import, own_ring:Ring; importing it runs it\. Pass --trust"
    with pytest.raises(ValueError, match=sentence):
        load_run(own_run.path)
    assert "own_ring" not in sys.modules
    loaded = load_run(own_run.path, trust=True)
    assert torch.equal(loaded.vae.prior.loc, own_run.vae.prior.loc.cpu())
    assert (loaded.vae.prior.loc != 2).all(), "the prior of one's own did not learn"
    assert "Ring" not in (own_run.path / "checkpoint.pt").read_bytes().decode("latin1")


def test_vae_passed_in_needs_no_trust(own_run):
    values = dataclasses.replace(own_run.config, prior="gaussian", prior_args={})
    vae = make_vae(values, (2,))
    vae.prior = type(own_run.vae.prior)(2)
    assert torch.equal(load_run(own_run.path, vae=vae).vae.prior.loc, own_run.vae.prior.loc.cpu())


# Damage


def test_no_run_there(tmp_path):
    (tmp_path / "file").write_text("mine")
    for name in ("nowhere", "file"):
        with pytest.raises(
            FileNotFoundError, match=rf"{name} must be a run's directory; it is not a directory"
        ):
            load_run(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r" must hold config\.json; .*Is it a run\?"):
        load_run(tmp_path)


def test_missing_checkpoint(copy):
    (copy / "checkpoint.pt").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"copy has no checkpoint\.pt\. Go on with: pyro-bvae train --resume",
    ):
        load_run(copy)


def test_missing_history_is_an_empty_one_and_missing_metrics_a_sentence(copy):
    (copy / "history.jsonl").unlink()
    (copy / "metrics.json").unlink()
    run = load_run(copy)
    assert run.history == []
    sentence = r"copy must hold metrics\.json; it does not\. pyro-bvae evaluate writes it\.$"
    with pytest.raises(FileNotFoundError, match=sentence):
        _ = run.metrics


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"{", r"load_run: .*config\.json must be JSON; .* Restore it"),
        (b"\xff\xfe\x00", r"load_run: .*config\.json must be text in UTF-8; .* Restore it"),
        (b"[" * 100_000, r"load_run: .*config\.json (is nested too deep|must be JSON)"),
        (b"", r"load_run: .*config\.json must be JSON"),
        (b"[1]", r"load_run: .*config\.json must hold a JSON object; got list"),
        (b'{"format": 2}', r"config\.json.* format must be at most 1; got 2\. .*upgrade"),
        (b'{"bta": 2}', r"config\.json.* option must be one of .*Did you mean beta\?"),
        (b'{"beta": -2}', r"config\.json.*--beta must be a number of at least 0; got -2"),
        (b'{"prior": 3}', r"config\.json.*--prior must be text; got 3"),
        (b'{"dataset": "x.npy"}', r"config\.json.* must .*network"),
    ],
)
def test_damaged_config(content, sentence, copy):
    (copy / "config.json").write_bytes(content)
    with pytest.raises((ValueError, TypeError), match=sentence):
        load_run(copy)


def test_truncated_and_foreign_checkpoints(copy):
    path = copy / "checkpoint.pt"
    whole = path.read_bytes()
    sentence = (
        r"^load_run: .*checkpoint\.pt must be a checkpoint of pyro_bvae; it cannot be read \("
    )
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=sentence) as caught:
            load_run(copy)
        text = str(caught.value)
        assert "\n" not in text and text.endswith("). Restore it, or train again.")
    foreign = (
        torch.zeros(2), {"state_dict": {}}, {"format": "new"}, {"format": FORMAT},
        {"format": 1, "vae": 3, "x_shape": [2], "n_classes": 0},
        {"format": 1, "vae": {}, "x_shape": "wide", "n_classes": 0},
    )  # fmt: skip
    for value in foreign:
        torch.save(value, path)
        with pytest.raises(
            ValueError, match=r"^load_run: .*checkpoint\.pt must be a checkpoint of"
        ):
            load_run(copy)
    torch.save({"format": 1, "vae": {}, "x_shape": [2], "n_classes": 0}, path)
    with pytest.raises(ValueError, match=r"^load_run: the model must fit .*Missing key"):
        load_run(copy)


def test_newer_checkpoint(copy):
    torch.save({"format": FORMAT + 1}, copy / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint\.pt has format 3, newer than 2\. Upgrade"):
        load_run(copy)


class Harm:
    def __reduce__(self):
        return (os.mkdir, ("harmed",))


def test_a_checkpoint_cannot_run_code(copy, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": FORMAT, "vae": Harm()}, copy / "checkpoint.pt")
    sentence = (
        r"must be a checkpoint of pyro_bvae; it cannot be read \((.{10,80})\)\. Restore it, or"
    )
    with pytest.raises(ValueError, match=sentence):  # torch says a page
        load_run(copy)
    assert not (tmp_path / "harmed").exists()


def test_damaged_history(copy):
    with (copy / "history.jsonl").open("a") as file:
        file.write('{"step": 6, "ep')
    assert len(load_run(copy).history) == 5  # killed while it wrote
    with (copy / "history.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match=r"load_run: .*history\.jsonl must hold .*line 6"):
        load_run(copy)


@pytest.mark.parametrize(
    "line", ["[1]", '{"step": "x"}', '{"format": 2}', "[" * 100_000, '{"a": {}}']
)
def test_history_of_something_else(line, copy):
    (copy / "history.jsonl").write_text(line + "\n")
    with pytest.raises(
        ValueError, match=r"history\.jsonl must hold one JSON record a line; line 1"
    ):
        load_run(copy)


# Where a run may go


def test_directory_in_use_is_refused(finished, tmp_path):
    before = (finished.path / "checkpoint.pt").read_bytes()
    with pytest.raises(
        FileExistsError, match=r"^--out must be a new or empty directory; .* is not"
    ):
        train(Config(steps=1), finished.path)
    assert (finished.path / "checkpoint.pt").read_bytes() == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match=r"--out must be a new or empty directory"):
        train(Config(steps=1), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_parent_that_is_a_file_or_not_writable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    sentence = r"^--out must lie where one can write; .*Choose another place\."
    with pytest.raises(OSError, match=sentence):
        train(Config(steps=1), tmp_path / "file" / "run")
    with monkeypatch.context() as patch:
        patch.setattr(writing.os, "access", lambda path, mode: False)
        with pytest.raises(PermissionError, match=sentence):
            train(Config(steps=1), tmp_path / "new" / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "values",
    [
        {"device": "nonsense"}, {"dataset": "absent.npz"}, {"prior": "absent_module:Prior"},
        {"prior_args": {"df": 3}}, {"network": "conv-bn"}, {"likelihood": "bernoulli"},
        {"binarize": "static"}, {"dataset": "digits", "likelihood_scale": "0.1"},
        {"prior": "mixture", "gamma": 9.0, "capacity": 5.0, "reduction": "example"},
    ],
)  # fmt: skip
def test_nothing_is_written_when_building_fails(values, tmp_path):
    with pytest.raises((ValueError, TypeError, FileNotFoundError)):
        train(Config(steps=1, **values), tmp_path / "a" / "run")
    assert list(tmp_path.iterdir()) == []


# The same numbers again


def test_seed_decides(finished, tmp_path, without_figures):
    """Twice in one process gives the same numbers, and Pyro's own store stays as it was."""
    same = train(SMALL, tmp_path / "same")
    assert list(pyro.get_param_store().keys()) == []
    assert same_but_for_seconds(same.history, finished.history)
    ours, theirs = finished.vae.cpu().state_dict(), same.vae.cpu().state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    timed = ("training_seconds",)
    for key in finished.metrics.keys() - timed:
        assert finished.metrics[key] == same.metrics[key], key
    other = train(dataclasses.replace(SMALL, seed=1), tmp_path / "other")
    assert all(a["loss"] != b["loss"] for a, b in zip(finished.history, other.history, strict=True))


def test_the_pictures_do_not_change_the_numbers(finished, tmp_path):
    run = train(SMALL, tmp_path / "run")
    assert run.metrics["elbo"] == finished.metrics["elbo"]


# Stopping early


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_run_keeps_what_it_has(error, tmp_path, without_figures):
    def stop(record, state):
        if state.epoch == 3:
            raise error("stop")

    said = r"Interrupted\. The last good .* kept in .*run" if error is KeyboardInterrupt else "stop"
    with pytest.raises(error, match=said):
        train(Config(steps=5), tmp_path / "run", callbacks=[stop])
    assert {p.name for p in (tmp_path / "run").iterdir()} == FILES - MEASURED
    run = load_run(tmp_path / "run")
    assert [record["step"] for record in run.history] == [1, 2, 3]
    assert torch.isfinite(run.vae.encode(torch.randn(4, 2))).all()
    with pytest.raises(FileNotFoundError, match=r"must hold metrics\.json"):
        _ = run.metrics


def test_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path, without_figures):
    good = {}

    def poison(record, state):
        if state.epoch == 1:
            good.update({k: v.clone() for k, v in state.vae.state_dict().items()})
        if state.epoch == 2:
            next(state.vae.parameters()).data.fill_(math.nan)

    with pytest.raises(FloatingPointError, match=r"the loss must be finite; got loss=nan.* step 2"):
        train(Config(steps=5), tmp_path / "run", callbacks=[poison])
    run = load_run(tmp_path / "run")
    assert [record["step"] for record in run.history] == [1, 2]
    assert all(torch.equal(good[k].cpu(), v) for k, v in run.vae.state_dict().items())
    assert not list((tmp_path / "run").glob("*.new"))


def test_weights_that_are_not_finite_are_not_saved(tmp_path, without_figures, monkeypatch):
    """A checkpoint due at every epoch does not replace a good one by a bad one."""
    monkeypatch.setattr(checkpoint.time, "monotonic", iter(range(0, 10_000, 100)).__next__)
    monkeypatch.setattr(checkpoint, "_SHARE", 0)

    def poison(record, state):
        if state.epoch == 3:  # after a step whose loss and gradient were finite
            next(holder[0].parameters()).data.fill_(math.nan)

    holder = []
    built = runs.build

    def remember(config):
        out = built(config)
        holder.append(out.vae)
        return out

    monkeypatch.setattr(runs, "build", remember)
    monkeypatch.setattr(runs, "held_out_terms", lambda built: lambda record, state: None)
    with pytest.raises(FloatingPointError, match="must be finite"):
        train(Config(steps=5), tmp_path / "run", callbacks=[poison])
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 2
    assert all(torch.isfinite(w).all() for w in load_run(tmp_path / "run").vae.parameters())


# From end to end


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "mine.npz"
    x = RNG.integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(path, x=x, labels=np.arange(60) % 3)
    return str(path)


@pytest.mark.parametrize(
    "values",
    [
        {"conditional": True},
        {"conditional": True, "encode_labels": True},
        {"gamma": 10.0, "capacity": 5.0},
        {"gamma": 10.0, "capacity": 5.0, "penalty": "relu", "reduction": "example"},
        {"beta_tc": 6.0},
        {"beta": 0.0, "alpha": 1.0, "divergence": "mmd", "alpha_warmup": 0.5},
        {"binarize": "dynamic", "n_particles": 2},
        {"likelihood": "laplace", "likelihood_scale": "0.1", "prior": "spike-slab"},
        {"alpha": 1.0, "divergence": "exclusive-kl", "estimator": "leave_one_out"},
    ],
)
def test_a_file_of_ones_own_end_to_end(values, npz, tmp_path, monkeypatch):
    drawn = values in ({"conditional": True}, {"gamma": 10.0, "capacity": 5.0})
    if not drawn:
        monkeypatch.setattr(measuring, "write_figures", lambda *args: [])
    config = Config(npz, steps=5, batch_size=20, latent_dim=3, **values)
    run = train(config, tmp_path / "run")
    assert {p.name for p in run.path.iterdir()} == FILES | ({"figures"} if drawn else set())
    if drawn:
        drawn_of_z = {"aggregate_posterior", "traversals", "kl_per_latent"}
        if not config.conditional:
            drawn_of_z.add("class_means")
        assert {p.stem for p in (run.path / "figures").iterdir()} == ALWAYS | drawn_of_z
    assert run.history[-1]["step"] == 5 and run.metrics["n"] == 6
    numbers = [v for record in run.history for v in record.values()]
    assert all(map(math.isfinite, numbers))
    m = run.metrics
    assert m["bound_on"] == ("log p(x|y)" if config.conditional else "log p(x)")
    # beta * latents / pixels; total correlation and gamma leave the KL a beta of 1.
    assert m["beta_norm"] == pytest.approx(values.get("beta", 1.0) * 3 / 64)
    assert (m["kl_sd"] is None) == (m["kl_estimator"] != "closed form")
    assert (m["latents"], m["divergence_components"]) == (3, 6) and m["divergence"] is not None
    loaded = load_run(run.path)
    assert loaded.vae.n_classes == (3 if config.conditional else 0)
    for name in ("capacity", "gamma"):
        if values.get(name):
            assert run.history[-1][name] == values[name]
    if "beta_tc" in values:
        assert run.history[-1]["alpha"] == 5
        assert run.metrics["divergence_name"] == "total-correlation"


def test_a_run_of_one_latent_has_no_density_picture(npz, tmp_path):
    run = train(Config(npz, steps=2, latent_dim=1), tmp_path / "run")
    assert {p.stem for p in (run.path / "figures").iterdir()} == ALWAYS | {"traversals"}


FULL = """
import pyro.distributions as dist, torch
class Full(torch.nn.Module):
    def __init__(self, x_shape, latent_dim):
        super().__init__()
        self.loc = torch.nn.Linear(x_shape[0], latent_dim)
    def forward(self, x):
        loc = self.loc(x)
        return dist.MultivariateNormal(loc, scale_tril=torch.eye(loc.shape[1]) * 0.5)
def net(x_shape, latent_dim, extra=0, scale=False):
    from pyro_bvae.networks import mlp
    return Full(x_shape, latent_dim), mlp(x_shape, latent_dim, extra, scale)[1]
"""


def test_a_posterior_of_full_covariance(tmp_path, monkeypatch):
    (tmp_path / "own_full.py").write_text(FULL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        with pytest.raises(TypeError, match=r"the posterior must be a product over latents"):
            train(Config(network="own_full:net", beta_tc=2.0, steps=2), "refused")
        assert not Path("refused").exists()
        run = train(Config(network="own_full:net", steps=2), "run")
    finally:
        sys.modules.pop("own_full", None)
    m = run.metrics
    assert m["divergence"] is None and m["divergence_name"] == "inclusive-kl"
    assert m["divergence_components"] == 400
    assert m["rate_minus_log_components"] == pytest.approx(m["kl"] - math.log(400))
    assert m["idle_means"].startswith("do not move with x")
    assert {p.stem for p in (run.path / "figures").iterdir()} == FIGURES - {"aggregate_posterior"}


def test_epochs_and_the_last_partial_batch(npz, tmp_path, without_figures):
    run = train(Config(npz, epochs=2, batch_size=20), tmp_path / "run")
    assert [record["step"] for record in run.history] == [3, 6]  # 54 rows: 20 + 20 + 14


def test_run_is_frozen(finished):
    with pytest.raises(dataclasses.FrozenInstanceError):
        finished.path = Path("elsewhere")
    assert isinstance(finished.vae, VAE)


@pytest.mark.parametrize("name", ["spike-slab", "mixture", "student-t"])
def test_prior_contours_are_the_marginal_of_the_two_latents_shown(name):
    from scipy.integrate import quad

    from pyro_bvae.figures.run import _prior_density
    from pyro_bvae.priors import PRIORS

    p_z = PRIORS[name](3)()
    log_marginal = _prior_density(p_z, np.array([2, 0]))
    point = np.array([[0.3, -0.2]])  # z2, z0

    def joint(z1):
        return p_z.log_prob(torch.tensor([-0.2, z1, 0.3])).exp().item()

    integral, _ = quad(joint, -15, 15, points=[-1, 0, 1], limit=500)
    assert np.exp(log_marginal(point))[0] == pytest.approx(integral, rel=1e-4)


def test_prior_contours_are_left_out_where_no_marginal_is_known():
    from pyro_bvae.figures.run import _prior_density
    from pyro_bvae.priors import Flow

    assert _prior_density(Flow(3)(), np.array([0, 1])) is None
    assert _prior_density(Flow(2)(), np.array([0, 1])) is not None
