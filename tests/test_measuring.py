"""Measuring a run on disk, the baselines of its data, and codes of any library: files and sentences."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_bvae import measuring, writing
from pyro_bvae.build import load
from pyro_bvae.config import FORMAT, Config
from pyro_bvae.datasets import read_data
from pyro_bvae.evaluation import baseline_codes, encode_data, score_codes
from pyro_bvae.measuring import (
    measure_baseline,
    measure_codes,
    measure_run,
)
from pyro_bvae.metrics import METRICS, sharpness
from pyro_bvae.runs import load_run, train
from pyro_bvae.writing import write_json

TWO = ["mig", "mcc"]


def write_images(path, n=120, **others):
    """Squares of two sizes at four places, in one colour: factors with names of their own."""
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(0, 2, n), rng.integers(0, 4, n), np.full(n, 3)], 1)
    x = rng.integers(0, 60, (n, 8, 8), dtype=np.uint8)
    for image, (size, place, _) in zip(x, factors, strict=True):
        image[2 : 4 + 2 * size, place : place + 3] = 255
    np.savez(path, x=x, factors=factors, **others)


def tiny(dataset, **options):
    defaults = {"steps": 2, "latent_dim": 3, "batch_size": 40, "test_fraction": 0.25}
    return Config(str(dataset), device="cpu", **defaults | options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data with factors and labels, and runs on them; tests must not change it."""
    folder = tmp_path_factory.mktemp("measuring")
    write_images(folder / "squares.npz", labels=np.arange(120) % 3)
    write_images(folder / "plain.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "write_figures", lambda *args: [])
        train(tiny(folder / "squares.npz"), folder / "run")
        train(tiny(folder / "squares.npz", conditional=True), folder / "conditional")
        train(tiny(folder / "plain.npz", lr=1e-20, steps=1), folder / "frozen")
    return folder


@pytest.fixture
def run(folder, tmp_path):
    """A copy of the run that a test may change."""
    shutil.copytree(folder / "run", tmp_path / "run")
    return load_run(tmp_path / "run")


def measure(run, **options):
    return measure_run(run.path, run.config, run.vae, **{"measures": []} | options)


def contents(path):
    return {p.name: p.read_bytes() for p in path.iterdir() if p.is_file()}


def changed(before, path):
    after = contents(path)
    assert not [name for name in after if name.endswith(".new")]
    return {name for name in before | after if before.get(name) != after.get(name)}


# A run


def test_what_training_measures(folder):
    run = load_run(folder / "run")
    m, (_, test) = run.metrics, load(run.config)
    assert (m["format"], m["on"], m["n"], m["seed"]) == (FORMAT, "test", 30, 0)
    assert m["beta"] == run.history[-1]["beta"] > 0  # after two steps still on its way to 1
    assert m["beta_norm"] == m["beta"] * 3 / 64 and m["bound_on"] == "log p(x)"
    assert m["training_seconds"] == pytest.approx(sum(r["seconds"] for r in run.history))
    assert m["divergence_components"] == 30 and isinstance(m["diagnosis"], list)
    assert load_run(folder / "conditional").metrics["bound_on"] == "log p(x|y)"
    # Evenly spaced held-out rows and their posteriors.
    examples = run.examples
    assert set(examples) == {"x", "loc", "scale", "labels"}
    rows = np.linspace(0, 29, 16).astype(int)
    x, labels = test.tensors(rows)
    assert np.array_equal(examples["x"], x.numpy())
    assert np.array_equal(examples["labels"], labels.numpy())
    q_z = run.vae.q_z(x)
    np.testing.assert_allclose(examples["loc"], q_z.mean.detach(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(examples["scale"], q_z.stddev.detach(), rtol=1e-4)
    assert set(load_run(folder / "frozen").examples) == {"x", "loc", "scale"}


def test_held_out_rows_measured_anew_and_further(run):
    before, trained, x = contents(run.path), run.metrics, run.examples["x"]
    (run.path / "examples.npz").unlink()
    state = torch.random.get_rng_state()
    m, path = measure(run, measures=["log-marginal", *TWO], n_samples=3, n_rows=20, seed=4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert path == run.path / "metrics.json" and m == run.metrics == json.loads(path.read_text())
    assert changed(before, run.path) <= {"metrics.json", "examples.npz"}
    assert np.array_equal(run.examples["x"], x)
    for name in ("training_seconds", "rate_minus_log_batch", "divergence_name", "latents"):
        assert m[name] == trained[name]
    assert m["seed"] == 4 and m["elbo"] != trained["elbo"]
    assert m["elbo"] == pytest.approx(trained["elbo"], abs=4 * m["elbo_se"])
    assert (m["log_marginal_samples"], m["log_marginal_rows"]) == (3, 20)
    assert list(m["scores"]) == TWO and m["factors_left_out"] == ["factor 2"]
    again, _ = measure(run, measures=["log-marginal", *TWO], n_samples=3, n_rows=20, seed=4)
    assert again == m


def test_the_run_s_own_seed_finds_what_training_found(run):
    trained = run.metrics
    m, _ = measure(run, measures=[])
    # Two steps end within the warm-up of beta, and a loaded model has its configured one.
    assert {k for k in trained if m[k] != trained[k]} == {"beta", "beta_norm"}
    assert set(m) == set(trained) and m["divergence"] is not None


def test_what_is_not_measured_again_is_kept(run):
    first, _ = measure(run, measures=["log-marginal", "mig"], n_samples=2)
    second, _ = measure(run, measures=["sharpness", "mcc"])
    assert second["log_marginal"] == first["log_marginal"]
    assert second["scores"]["mig"] == first["scores"]["mig"]
    assert set(second["scores"]) == {"mig", "mcc"} and "sharpness" in second
    assert set(first["notes"]) <= set(second["notes"])


def test_all_that_applies_by_default(run, monkeypatch):
    for name in set(METRICS) - {"mig", "dci"}:
        monkeypatch.delitem(METRICS, name)
    m, _ = measure(run, measures=None, n_samples=2)
    assert {"log_marginal", "overlap", "sharpness"} <= set(m) and list(m["scores"]) == ["mig"]


def test_training_rows_have_a_file_of_their_own(run):
    before, said = contents(run.path), []
    m, path = measure(
        run, on="train", measures=["mcc"], on_progress=lambda name, share: said.append(name)
    )
    assert (path.name, m["n"], m["on"]) == ("metrics-on-train.json", 90, "train")
    assert changed(before, run.path) == {"metrics-on-train.json"}
    assert m["seed"] == 0  # the run's own
    assert "training_seconds" not in m and said == ["mcc"]


def test_rows_of_a_file(run, folder, tmp_path):
    before = contents(run.path)
    m, path = measure(run, on=str(folder / "plain.npz"), measures=["mcc"])
    assert (path.name, m["n"], m["on"]) == ("metrics-on-plain.json", 120, str(folder / "plain.npz"))
    with np.load(folder / "plain.npz") as arrays:
        np.save(tmp_path / "few.npy", arrays["x"][:20])
    m, path = measure(run, on=str(tmp_path / "few.npy"))
    assert (path.name, m["n"]) == ("metrics-on-few.json", 20)
    data = read_data(tmp_path / "few.npy")
    torch.manual_seed(0)
    codes = encode_data(run.vae, data)
    assert m["kl"] == pytest.approx(codes.kl.mean().item(), rel=1e-6)
    assert changed(before, run.path) == {"metrics-on-plain.json", "metrics-on-few.json"}


def test_numbers_of_other_rows_are_never_mixed(run, folder, tmp_path, monkeypatch):
    """Two files of one name, one called as a part of the data, others as files of measures."""
    monkeypatch.setattr(measuring, "make_divergence", lambda *args: None)  # the slowest part
    for name in ("a/mine.npz", "b/mine.npz", "train.npz", "baseline-pca.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "plain.npz", tmp_path / name)
    measure(run, on=str(tmp_path / "a/mine.npz"), measures=["mig"])
    measure(run, on="train", measures=["mig"])
    measure_baseline(run.path, run.config, "pca", measures=["mig"])
    measure_baseline(run.path, run.config, "pca", measures=["mig"], on=str(tmp_path / "a/mine.npz"))
    m, _ = measure(run, on=str(tmp_path / "baseline-pca.npz"))
    assert "scores" not in m and "baseline" not in m and m["n"] == 120
    before = contents(run.path)
    assert {"metrics-baseline-pca.json", "metrics-baseline-pca-on-mine.json"} <= set(before)
    monkeypatch.setattr(measuring, "encode_data", lambda *args: pytest.fail("work was begun"))
    monkeypatch.setattr(measuring, "evaluate", lambda *args, **kw: pytest.fail("work was begun"))
    monkeypatch.setattr(measuring, "baseline_codes", lambda *args: pytest.fail("work was begun"))
    sentence = (
        r"^--on .*{}\.npz: the file for its measures, .*\.json, holds those of {}\. Rename one"
    )
    for name, other in (("b/mine", r".*a/mine\.npz"), ("train", "train")):
        on = str(tmp_path / f"{name}.npz")
        with pytest.raises(ValueError, match=sentence.format(name, other)):
            measure(run, on=on)
    with pytest.raises(ValueError, match=sentence.format("b/mine", r".*a/mine\.npz")):
        measure_baseline(run.path, run.config, "pca", on=str(tmp_path / "b/mine.npz"))
    assert changed(before, run.path) == set()


def test_only_numbers_of_the_same_rows_and_seed_are_kept(run, folder, tmp_path):
    first, _ = measure(run, measures=["mcc"])
    again, _ = measure(run, measures=["sharpness"])
    assert again["seed"] == 0 and again["scores"] == first["scores"]
    other, _ = measure(run, seed=4)
    of_training = {"rate_minus_log_batch", "training_seconds"}
    assert not {"scores", "sharpness", "factors"} & set(other) and of_training <= set(other)
    measure(run, on="train", measures=["mcc"])
    again, _ = measure(run, on="train", measures=["sharpness"])
    assert "scores" in again and "sharpness" in again
    path = tmp_path / "mine.npz"  # a file's rows may be others the next time
    shutil.copy(folder / "plain.npz", path)
    measure(run, on=str(path), measures=["mcc"])
    again, _ = measure(run, on=str(path), measures=["sharpness"])
    assert "scores" not in again and not of_training & set(again)
    values = json.loads((run.path / "metrics.json").read_text())
    (run.path / "metrics.json").write_text(json.dumps(values | {"n": 29, "sharpness": 1.0}))
    again, _ = measure(run, seed=4)
    assert "sharpness" not in again and of_training <= set(again)


def test_binary_data_are_drawn_as_in_training(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "write_figures", lambda *args: [])
    run = train(tiny(folder / "plain.npz", binarize="dynamic"), tmp_path / "run")
    seen, q_z = set(), type(run.vae).q_z
    monkeypatch.setattr(
        type(run.vae),
        "q_z",
        lambda self, x, *a: seen.update(x.unique().tolist()) or q_z(self, x, *a),
    )
    measure(run, measures=["log-marginal"], n_samples=1)
    assert {0.0, 1.0} < seen  # the check beforehand sees grey values
    seen.clear()
    monkeypatch.setattr(type(run.vae), "check", lambda *args: None)
    measure(run, measures=["log-marginal"], n_samples=1)
    assert seen == {0.0, 1.0}
    seen.clear()
    m, _ = measure(run, measures=["sharpness"])
    assert seen == {0.0, 1.0}
    grey = sharpness(load(run.config)[1].x).value
    assert m["sharpness_data"] > 2 * grey  # of what was encoded
    examples = run.examples
    assert set(np.unique(examples["x"])) == {0, 1}
    with torch.no_grad():
        q_z_of_x = q_z(run.vae, torch.from_numpy(examples["x"]))
    np.testing.assert_allclose(examples["loc"], q_z_of_x.mean, rtol=1e-4, atol=1e-6)


REFUSED = {
    "absent": (
        {"on": "absent.npz"},
        r"^--on must be test, train, or a file or folder that exists; got 'absent\.npz'\.$",
    ),
    "wrong shape": (
        {"on": "wide.npy"},
        r"^--on wide\.npy: rows must be shaped as those of the run; .* cannot take \(1, 9, 9\)\. Meas",
    ),
    "vectors": ({"on": "vectors.npy"}, r"^--on vectors\.npy: .* cannot take \(64,\)\. Measure"),
    "range": ({"on": "floats.npy"}, r"needs data in \[0, 1\]; got values from 0 to 2"),
    "nan": ({"on": "nan.npy"}, r"must be finite"),
    "damaged": ({"on": "damaged.npz"}, r"damaged\.npz: the file must be a complete \.npz"),
    "no factors": (
        {"on": "few.npy", "measures": ["mig"]}, r"--metrics mig needs ground-truth factors that vary",
    ),
    "unknown": ({"measures": ["mgi"]}, r"--metrics must be among .*; got 'mgi'\. Did you mean mig\?$"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_is_refused_before_any_work(name, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.zeros((20, 8, 8), np.uint8)
    np.save("few.npy", x)
    np.save("wide.npy", np.zeros((20, 9, 9), np.uint8))
    np.save("vectors.npy", np.zeros((20, 64), np.float32))
    np.save("floats.npy", 2 * np.eye(8, dtype=np.float32)[None].repeat(3, 0))
    np.save("nan.npy", np.full((3, 8, 8), math.nan, np.float32))
    np.savez("damaged.npz", x=x)
    Path("damaged.npz").write_bytes(Path("damaged.npz").read_bytes()[:200])
    options, sentence = REFUSED[name]
    before = contents(run.path)
    monkeypatch.setattr(measuring, "encode_data", lambda *args: pytest.fail("work was begun"))
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        measure(run, **options)
    assert changed(before, run.path) == set()


@pytest.mark.parametrize("row", [1, 50])
def test_a_class_the_model_does_not_know(row, folder, tmp_path):
    run = load_run(folder / "conditional")
    labels = np.zeros(120, int)
    labels[row] = 3
    write_images(tmp_path / "more.npz", labels=labels)
    before = contents(run.path)
    sentence = r"^--on .*more\.npz: labels must be below 3, the classes of the run; got 3\."
    with pytest.raises(ValueError, match=sentence):
        measure(run, on=str(tmp_path / "more.npz"))
    with pytest.raises(ValueError, match=r"plain\.npz: rows must have labels, as the run is cond"):
        measure(run, on=str(folder / "plain.npz"))
    assert changed(before, run.path) == set()


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff"])
def test_a_damaged_file_of_measures(content, run):
    (run.path / "metrics.json").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"^evaluate: .*metrics\.json must be what it wrote; .*Delete it\."
    ):
        measure(run)


def test_a_failure_on_the_way_leaves_the_files_as_they_were(run, monkeypatch):
    before = contents(run.path)

    def fail(*args, **kwargs):
        raise RuntimeError("no memory")

    monkeypatch.setitem(METRICS, "mig", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        measure(run, measures=["aggregate", "mig"])
    assert changed(before, run.path) == set()


# Baselines


@pytest.mark.parametrize("baseline, latents", [("factors", 3), ("pixels", 64), ("pca", 3)])
def test_a_baseline_is_measured_on_the_same_rows(baseline, latents, run):
    before = contents(run.path)
    train_rows, test = load(run.config)
    m, path = measure_baseline(run.path, run.config, baseline, measures=TWO, seed=2)
    codes = baseline_codes(baseline, train_rows, test, 3, seed=2)
    direct = score_codes(codes, test.factors, TWO, seed=2)
    assert {name: s["value"] for name, s in m["scores"].items()} == {
        name: pytest.approx(s["value"]) for name, s in direct["scores"].items()
    }
    assert (m["baseline"], m["on"], m["n"], m["seed"]) == (baseline, "test", 30, 2)
    assert m["latents"] == latents and m["factors_left_out"] == ["factor 2"]
    assert path == run.path / f"metrics-baseline-{baseline}.json"
    assert json.loads(path.read_text()) == m
    assert changed(before, run.path) == {path.name}
    if baseline == "factors":
        assert m["scores"]["mcc"]["value"] == pytest.approx(1)


def test_untrained_is_the_model_before_its_first_step(folder, run, tmp_path):
    """A run at a learning rate of nothing never leaves it."""
    shutil.copytree(folder / "frozen", tmp_path / "frozen")
    frozen = load_run(tmp_path / "frozen")
    state = torch.random.get_rng_state()
    m, _ = measure_baseline(frozen.path, frozen.config, "untrained", measures=TWO)
    assert torch.equal(state, torch.random.get_rng_state())
    same, _ = measure(frozen, measures=TWO)
    assert m["scores"] == same["scores"] and m["latents"] == 3
    other, _ = measure_baseline(run.path, run.config, "untrained", measures=TWO, on="train")
    trained, _ = measure(run, measures=TWO, on="train")
    assert other["scores"] != trained["scores"] and (other["n"], other["on"]) == (90, "train")


def test_baselines_that_cannot_be_measured(run, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("few.npy", np.zeros((20, 8, 8), np.uint8))
    before = contents(run.path)
    for baseline, options, sentence in (
        ("lda", {}, r"^--baseline must be one of factors, .*untrained; got 'lda'"),
        (
            "pca",
            {"on": "few.npy"},
            r"^--baseline needs data with ground-truth factors; these have none\.$",
        ),
        ("pca", {"measures": ["sharpness"]}, r"^--metrics of codes must be among .*'sharpness'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            measure_baseline(run.path, run.config, baseline, **{"measures": ["mig"]} | options)
    assert changed(before, run.path) == set()


# Codes of any library

CODES = np.random.default_rng(1).normal(size=(200, 2))
FACTORS = np.digitize(CODES, [-0.7, 0.0, 0.7])


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_codes_on_disk_are_scored_whatever_their_file(tmp_path):
    np.save(tmp_path / "codes.npy", CODES.astype(np.float32))
    np.save(tmp_path / "factors.npy", FACTORS)
    one = save(tmp_path / "one.npz", embedding=CODES)
    noise = np.zeros((200, 2))
    named = save(tmp_path / "named.npz", loc=noise, z=noise, codes=CODES, images=noise)
    loc = save(tmp_path / "loc.npz", scale=noise, loc=CODES)
    both = save(tmp_path / "both.npz", latents_values=noise, latents_classes=FACTORS)
    scores = score_codes(CODES, FACTORS, TWO, seed=7)["scores"]
    direct = [scores[name]["value"] for name in TWO]
    files = (tmp_path / "codes.npy", one, named, loc)
    for codes in files:
        for factors in (tmp_path / "factors.npy", both):
            m = measure_codes(codes, factors, TWO, seed=7)
            values = [m["scores"][name]["value"] for name in TWO]
            assert values == pytest.approx(direct, abs=1e-6)
            assert (m["n"], m["latents"], m["seed"]) == (200, 2, 7)
            assert m["factors_left_out"] == []


def test_real_valued_factors_on_disk(tmp_path):
    """Metrics of numbers take them as they are; the others say that they cut them in bins."""
    real = np.linspace(0, 1, 400).reshape(200, 2) ** [1, 2]
    files = save(tmp_path / "z.npz", z=3 - real), save(tmp_path / "f.npz", f=real)
    m = measure_codes(*files)
    assert set(m["scores"]) == set(METRICS) - {"dci"}
    assert m["scores"]["mcc"]["value"] == pytest.approx(1, abs=1e-12)
    assert any(note.startswith("Cut in 20 bins of equal width by ") for note in m["notes"])
    whole = save(tmp_path / "whole.npz", f=FACTORS.astype(np.float32))
    codes = save(tmp_path / "codes.npz", codes=CODES)
    expected = score_codes(CODES, FACTORS, TWO)["scores"]
    assert measure_codes(codes, whole, TWO)["scores"] == expected


def test_all_metrics_but_dci_by_default(tmp_path, monkeypatch):
    for name in set(METRICS) - {"mig", "dci"}:
        monkeypatch.delitem(METRICS, name)
    monkeypatch.setitem(METRICS, "dci", lambda *args, **kwargs: pytest.fail("takes minutes"))
    files = save(tmp_path / "z.npz", z=CODES), save(tmp_path / "f.npz", f=FACTORS)
    assert list(measure_codes(*files)["scores"]) == ["mig"]


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"dci"}))
def test_every_metric_can_be_written(name, tmp_path):
    out = score_codes(CODES, FACTORS, [name])
    write_json(tmp_path / "out.json", out)
    assert json.loads((tmp_path / "out.json").read_text())["scores"][name]["value"] > 0


BAD_ARRAYS = {
    "nan": (np.where(CODES > 2, math.nan, CODES), FACTORS, r"^evaluate: codes must be finite; got"),
    "shape of codes": (CODES[:, 0], FACTORS, r"^evaluate: codes must have shape \(n, latent_dim\)"),
    "text": (CODES.astype(str), FACTORS, r"^evaluate: codes must be real numbers; got dtype <U"),
    "rows": (CODES, FACTORS[:50], r"^evaluate: factors must have shape \(200, n_factors\)"),
    "shape of factors": (CODES, FACTORS[:, 0], r"^evaluate: factors must have shape \(200, n_fac"),
    "text factors": (
        CODES,
        FACTORS.astype(str),
        r"^evaluate: factors must be numbers; got dtype <U",
    ),
    "factors with NaN": (
        CODES,
        CODES * math.nan,
        r"^evaluate: factors must be finite; got 400 NaN",
    ),
    "one value": (CODES, FACTORS * [1, 0], r"^evaluate: each factor must .*factor 1 is always 0"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_codes_and_factors_that_do_not_serve(name, tmp_path):
    codes, factors, sentence = BAD_ARRAYS[name]
    np.save(tmp_path / "codes.npy", codes)
    np.save(tmp_path / "factors.npy", factors)
    with pytest.raises((ValueError, TypeError), match=sentence):
        measure_codes(tmp_path / "codes.npy", tmp_path / "factors.npy", TWO)


def test_a_metric_of_codes_that_is_none(tmp_path):
    files = save(tmp_path / "z.npz", z=CODES), save(tmp_path / "f.npz", f=FACTORS)
    with pytest.raises(ValueError, match=r"^--metrics of codes must be among .*; got 'aggregate'"):
        measure_codes(*files, ["mig", "aggregate"])
    with pytest.raises(ValueError, match=r"got 'mgi'\. Did you mean mig\?$"):
        measure_codes(*files, ["mgi"])


def test_what_a_metric_of_codes_refuses(tmp_path, monkeypatch):
    """By default a note, asked for by name an error."""

    def refuses(codes, factors, *, seed=0):
        raise ValueError("mcc: codes must have more rows; got 200.")

    for name in set(METRICS) - {"mig", "mcc"}:
        monkeypatch.delitem(METRICS, name)
    monkeypatch.setitem(METRICS, "mcc", refuses)
    files = save(tmp_path / "z.npz", z=CODES), save(tmp_path / "f.npz", f=FACTORS)
    m = measure_codes(*files)
    assert list(m["scores"]) == ["mig"]
    assert m["notes"][-1] == "mcc: codes must have more rows; got 200."
    with pytest.raises(ValueError, match=r"^mcc: codes must have more rows; got 200\.$"):
        measure_codes(*files, ["mcc"])


RULE = r"^--codes must be a \.npy file, or \.npz with one array or one called codes or z or loc; .*"


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("two.npz", {"a": CODES, "b": CODES}, RULE + r"two\.npz holds a, b\. Rename one\."),
        ("none.npz", {}, RULE + r"none\.npz holds no array\. Rename one\."),
        ("pickled.npz", {"z": np.array([{}, 1], object)}, RULE + r"cannot be read \(ValueError\)"),
        ("text.npy", b"mine", RULE + r"text\.npy cannot be read \("),
        ("empty.npy", b"", RULE + r"empty\.npy cannot be read \(EOFError\)"),
    ],
)
def test_files_that_hold_no_codes(name, content, sentence, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(ValueError, match=sentence):
        measure_codes(path, save(tmp_path / "f.npz", f=FACTORS))


def test_damaged_and_missing_codes(tmp_path):
    path = save(tmp_path / "z.npz", z=CODES)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for content in (whole[:300], whole[:-30], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=RULE + r"z\.npz cannot be read \("):
            measure_codes(path, path)
    for codes, factors, option in (("no.npy", "z.npz", "--codes"), ("f.npz", "", "--factors")):
        save(tmp_path / "f.npz", f=FACTORS)
        with pytest.raises(
            FileNotFoundError, match=rf"^{option} must name a \.npy or \.npz file; "
        ):
            measure_codes(tmp_path / codes, tmp_path / factors)


# Files


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "m.json"
    write_json(path, {"a": [1.5, None]})
    assert json.loads(path.read_text()) == {"a": [1.5, None]}
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"a": object()})
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]
    assert json.loads(path.read_text()) == {"a": [1.5, None]}
    seen = []
    replace = writing.os.replace

    def watch(source, target):
        seen.append((json.loads(Path(source).read_text()), json.loads(path.read_text())))
        replace(source, target)

    monkeypatch.setattr(writing.os, "replace", watch)
    write_json(path, {"b": 2})
    assert seen == [({"b": 2}, {"a": [1.5, None]})] and [*tmp_path.iterdir()] == [path]


def test_examples_that_cannot_be_read(run):
    path = run.path / "examples.npz"
    sentence = (
        r"^load_run: .*examples\.npz must be the examples that training wrote; it cannot be read \(.*\)\. "
        r"Delete it: pyro-bvae evaluate writes it anew\.$"
    )
    whole = path.read_bytes()
    for content in (whole[:200], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            _ = run.examples
    for arrays in ({"x": CODES, "loc": CODES}, {"x": np.array([{}], object)}):
        save(path, **arrays)
        with pytest.raises(ValueError, match=sentence):
            _ = run.examples
    path.unlink()
    assert run.examples is None
    measure(run)  # and evaluate writes it anew
    assert set(run.examples) == {"x", "loc", "scale", "labels"}
