"""``pyro-bvae evaluate``: tables, files, and a sentence for every bad input."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tqdm
from click.testing import CliRunner
from pyro_bvae.cli.main import main

from pyro_bvae import measuring
from pyro_bvae.config import FORMAT, Config
from pyro_bvae.metrics import METRICS, mcc
from pyro_bvae.runs import load_run, train

FEW = (
    "noise scores well above its chance at times: compare each score with that of permuted factors."
)
RNG = np.random.default_rng(0)
CODES = RNG.normal(size=(300, 2))
FACTORS = np.digitize(CODES, [-0.7, 0.0, 0.7])


def call(*arguments):
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)], prog_name="pyro-bvae")


def succeed(*arguments):
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


def write_images(path):
    factors = np.stack([RNG.integers(0, 2, 80), RNG.integers(0, 4, 80), np.full(80, 3)], 1)
    x = RNG.integers(0, 60, (80, 8, 8), dtype=np.uint8)
    for image, (size, place, _) in zip(x, factors, strict=True):
        image[2 : 4 + 2 * size, place : place + 3] = 255
    np.savez(path, x=x, factors=factors)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs on images with factors and on points without; tests must not change them."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_images(folder / "squares.npz")
    config = Config(
        str(folder / "squares.npz"), steps=2, latent_dim=3, batch_size=40, test_fraction=0.5,
        device="cpu",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "write_figures", lambda *args: [])
        train(config, folder / "run")
        train(Config(steps=2, device="cpu"), folder / "points")
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """The current folder, with copies of the runs and codes of some other library."""
    monkeypatch.chdir(tmp_path)
    for name in ("run", "points"):
        shutil.copytree(trained / name, name)
    shutil.copy(trained / "squares.npz", "squares.npz")
    np.save("codes.npy", CODES)
    np.save("factors.npy", FACTORS)
    return tmp_path


def files(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def notes(result):
    return [line for line in result.stdout.splitlines() if line.startswith("Note: ")]


# A run


def test_a_run_with_chosen_metrics(here):
    result = succeed(
        "run", "--metrics", "mig,aggregate", "--metrics", "log-marginal",
        "--samples", 3, "--rows", 10, "--seed", 5, "--quiet",
    )  # fmt: skip
    lines, m = result.stdout.splitlines(), load_run("run").metrics
    assert lines[0] == "run on test, nats per example where no unit is said (n = 40):"
    assert lines[-1] == "Wrote run/metrics.json"
    assert result.stderr == "Loading data and encoding it ...\n"
    assert m["seed"] == 5 and list(m["scores"]) == ["mig"]
    assert (m["log_marginal_samples"], m["log_marginal_rows"]) == (3, 10)
    for label, key in (
        ("ELBO at beta = 1, below log p(x)", "elbo"),
        ("log p(x), importance-weighted", "log_marginal"),
        ("I(x; z)", "mutual_information"),
        ("total correlation of q(z)", "total_correlation"),
    ):
        error = m[f"{key}_se"]
        value = f"{m[key]:9.3f} +- {f'{error:.3f}' if error >= 0.0005 else '<0.001'}"
        assert re.search(rf"^  {re.escape(label)} +{re.escape(value.strip())}", result.stdout, re.M)
    assert re.search(
        rf"^  MIG +{m['scores']['mig']['value']:.3f}  \(permuted f", result.stdout, re.M
    )
    assert "(K = 3, 10 rows)" in result.stdout and "sharpness" not in result.stdout
    assert "Note: left out, having one value: factor 2." in notes(result)
    # The metrics' warnings are notes and nothing else.
    assert any(note.startswith("Note: With n = 40 rows") for note in notes(result))
    assert "Left out, as" not in result.stdout


def test_progress_goes_to_standard_error_where_that_is_a_terminal(here, monkeypatch):
    log_file = succeed("run", "--metrics", "mcc")
    assert log_file.stderr == "Loading data and encoding it ...\n"
    bar = tqdm.tqdm
    seen = []
    monkeypatch.setattr(
        tqdm, "tqdm", lambda **o: seen.append(o["disable"]) or bar(**o | {"disable": False})
    )
    result = succeed("run", "--metrics", "mcc")
    assert "mcc" in result.stderr and "%|" in result.stderr and "%|" not in result.stdout
    succeed("run", "--metrics", "mcc", "--quiet")
    assert seen == [None, True]


def test_all_that_applies_by_default_and_names_with_spaces(here, monkeypatch):
    for name in set(METRICS) - {"mig", "mcc", "dci"}:
        monkeypatch.delitem(METRICS, name)
    left_out = "Left out, as it can take minutes: --metrics dci"
    result = succeed("run", "--samples", 2, "--rows", 3, "--quiet")
    assert result.stdout.splitlines()[-2:] == [left_out, "Wrote run/metrics.json"]
    assert list(load_run("run").metrics["scores"]) == ["mig", "mcc"]
    for arguments in (
        ["--codes", "codes.npy", "--factors", "factors.npy"],
        ["run", "--baseline", "pca"],
    ):
        lines = succeed(*arguments, "--quiet").stdout.splitlines()
        assert left_out in lines
        lines = succeed(*arguments, "--metrics", "mig, mcc", "--quiet").stdout.splitlines()
        assert left_out not in lines and any(line.startswith("  MCC") for line in lines)


def test_points_by_default(here):
    result = succeed("points", "--samples", 2, "--rows", 100, "--quiet")
    m = load_run("points").metrics
    assert {"log_marginal", "overlap", "divergences"} <= set(m) and "scores" not in m
    assert "K = 2, 100 rows" in result.stdout and "Left out, as" not in result.stdout


def test_other_rows(here):
    before = files(here)
    result = succeed("run", "--metrics", "mcc", "--on", "train", "--quiet")
    assert result.stdout.startswith("run on train, ")
    assert result.stdout.endswith("Wrote run/metrics-on-train.json\n")
    result = succeed("run", "--metrics", "mcc", "--on", "squares.npz", "--quiet")
    assert "(n = 80)" in result.stdout.splitlines()[0]
    after = files(here)
    assert {p.name for p in after.keys() - before.keys()} == {
        "metrics-on-train.json",
        "metrics-on-squares.json",
    }
    assert before.items() <= after.items()


@pytest.mark.parametrize("baseline", ["factors", "pixels", "pca", "ica", "untrained"])
def test_a_baseline(baseline, here):
    result = succeed("run", "--baseline", baseline, "--metrics", "mcc", "--quiet")
    m = json.loads(Path(f"run/metrics-baseline-{baseline}.json").read_text())
    lines = result.stdout.splitlines()
    assert lines[0] == f"baseline {baseline} on test (n = 40):"
    assert lines[1].startswith(f"  MCC {m['scores']['mcc']['value']:9.3f}  (")
    assert lines[2:] == [
        "Note: left out, having one value: factor 2.",
        f"Note: With 40 rows {FEW}",
        f"Wrote run/metrics-baseline-{baseline}.json",
    ]


# Codes of any library


def test_codes_against_factors(here):
    before = files(here)
    result = succeed("--codes", "codes.npy", "--factors", "factors.npy", "--metrics", "mcc,irs")
    assert files(here) == before
    lines = result.stdout.splitlines()
    assert lines[0] == "codes.npy (n = 300, 2 latents):"
    score = mcc(CODES, FACTORS)
    null = f"permuted factors {score.details['null']:.2g}"
    assert lines[1] == f"  MCC {score.value:9.3f}  (factors as numbers: their order counts; {null})"
    assert lines[2].startswith("  IRS ") and "(permuted factors 0." in lines[2]
    assert lines[3:] == [f"Note: With 300 rows {FEW}"]


def test_codes_of_one_archive_and_a_file_of_scores(here):
    np.savez("both.npz", z=CODES, latents_classes=FACTORS, images=np.zeros((300, 4)))
    result = succeed(
        "--codes", "both.npz", "--factors", "both.npz", "--metrics", "mcc",
        "--out", "a/b/new.json",
    )  # fmt: skip
    assert result.stdout.splitlines()[-1] == "Wrote a/b/new.json"
    m = json.loads(Path("a/b/new.json").read_text())
    assert m["scores"]["mcc"]["value"] == pytest.approx(mcc(CODES, FACTORS).value)
    assert (m["n"], m["latents"], m["seed"]) == (300, 2, 0)
    assert [path.name for path in Path("a/b").iterdir()] == ["new.json"]


# Bad input


def write_files():
    np.save("few.npy", np.zeros((20, 8, 8), np.uint8))
    np.save("wide.npy", np.zeros((20, 9, 9), np.uint8))
    np.savez("damaged.npz", x=CODES)
    whole = Path("damaged.npz").read_bytes()
    Path("damaged.npz").write_bytes(whole[: len(whole) // 2])
    np.save("pickled.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    np.save("flat.npy", CODES[:, 0])
    np.save("nan.npy", np.where(CODES > 2, math.nan, CODES))
    np.save("short.npy", FACTORS[:99])
    np.save("constant.npy", FACTORS * [1, 0])
    np.save("cube.npy", FACTORS[:, :, None])
    np.savez("several.npz", a=CODES, b=CODES)
    Path("text.npy").write_text("mine")
    for name in ("folder", "folder.json"):
        Path(name).mkdir()
    for name in ("untrained", "newer", "broken"):
        shutil.copytree("run", name)
    Path("untrained/checkpoint.pt").unlink()
    config = json.loads(Path("newer/config.json").read_text())
    Path("newer/config.json").write_text(json.dumps(config | {"format": FORMAT + 1}))
    Path("broken/checkpoint.pt").write_bytes(Path("run/checkpoint.pt").read_bytes()[:500])
    Path("broken/metrics.json").write_text("{")


PAIR = "--codes codes.npy --factors factors.npy"
BAD = {
    "neither": ("", r"evaluate needs a RUN, or both --codes and --factors"),
    "codes alone": ("--codes codes.npy", r"evaluate needs a RUN, or both --codes and --factors"),
    "factors alone": ("--factors factors.npy", r"evaluate needs a RUN, or both"),
    "run and codes": (f"run {PAIR}", r"--codes, --factors and --out go without RUN"),
    "run and out": ("run --out x.json", r"--codes, --factors and --out go without RUN"),
    "codes and baseline": (f"{PAIR} --baseline pca", r"--baseline has no meaning beside --codes\. Leave"),
    "codes and rows": (f"{PAIR} --rows 3", r"--rows has no meaning beside --codes\. Leave it"),
    "codes and on": (f"{PAIR} --on train", r"--on has no meaning beside --codes\. Leave it out"),
    "codes and samples": (f"{PAIR} --samples 3", r"--samples has no meaning beside --codes\. Leave"),
    "codes and trust": (f"{PAIR} --trust", r"--trust has no meaning beside --codes\. Leave it out"),
    "baseline and rows": ("run --baseline pca --rows 3", r"--rows has no meaning beside --baseline\."),
    "baseline and samples": (
        "run --baseline pca --samples 3", r"--samples has no meaning beside --baseline\. Leave it out",
    ),
    "rows of nothing": (
        "run --metrics mig --rows 3", r"--rows has no meaning without --metrics log-marginal\. Leave",
    ),
    "samples of nothing": (
        "run --metrics mig --samples 3", r"--samples has no meaning without --metrics log-marginal\.",
    ),
    "no run": ("nowhere", r"load_run: nowhere must be a run's directory; it is not a directory\.$"),
    "not a run": ("folder", r"load_run: folder must hold config\.json; .*Is it a run\?"),
    "no checkpoint": ("untrained", r"untrained has no checkpoint\.pt\. Go on with: .* untrained\.$"),
    "newer format": ("newer", r"format must be at most 1; got 2\. .*upgrade"),
    "damaged checkpoint": ("broken", r"broken/checkpoint\.pt must be a checkpoint of pyro_bvae"),
    "unknown metric": ("run --metrics mgi", r"--metrics must be .*; got 'mgi'\. Did you mean mig\?$"),
    "no factors": ("points --metrics mig", r"--metrics mig needs ground-truth factors that vary"),
    "no images": ("points --metrics sharpness", r"--metrics sharpness needs images; x has shape"),
    "no file": ("run --on absent.npy", r"--on must be test, train, or a .*; got 'absent\.npy'"),
    "wrong shape": ("run --on wide.npy", r"--on wide\.npy: rows must be shaped as those of"),
    "damaged data": ("run --on damaged.npz", r"damaged\.npz: the file must be a complete \.npz"),
    "pickled data": ("run --on pickled.npy", r"pickled\.npy: the file must be .*without pickled"),
    "factors of a file": ("run --on few.npy --metrics mig", r"needs ground-truth factors that vary"),
    "baseline without factors": (
        "points --baseline pca", r"--baseline needs data with ground-truth factors; these have none",
    ),
    "factors without factors": (
        "points --baseline factors --metrics mig", r"--baseline needs data with ground-truth factors",
    ),
    "measure of a baseline": (
        "run --baseline pca --metrics aggregate", r"--metrics of codes must be among .*'aggregate'",
    ),
    "metric of codes": (f"{PAIR} --metrics mgi", r"--metrics of codes must be .*Did you mean mig\?$"),
    "no codes": ("--codes no.npy --factors factors.npy", r"--codes must name a .*no\.npy is not"),
    "no factor file": ("--codes codes.npy --factors no.npy", r"--factors must name .*no\.npy is not"),
    "damaged npz": ("--codes damaged.npz --factors factors.npy", r"--codes must be .*cannot be read"),
    "pickled npy": ("--codes pickled.npy --factors factors.npy", r"--codes must be .*cannot be read"),
    "text": ("--codes codes.npy --factors text.npy", r"--factors must be .*text\.npy cannot be read"),
    "several arrays": (
        "--codes several.npz --factors factors.npy", r"several\.npz holds a, b\. Rename one\.",
    ),
    "flat codes": ("--codes flat.npy --factors factors.npy", r"codes must have shape \(n, latent_d"),
    "nan codes": ("--codes nan.npy --factors factors.npy", r"codes must be finite; got \d+ NaN"),
    "fewer factors": ("--codes codes.npy --factors short.npy", r"must have shape \(300, n_factors\)"),
    "cube of factors": ("--codes codes.npy --factors cube.npy", r"factors must have shape \(300, n_f"),
    "one value": (
        "--codes codes.npy --factors constant.npy", r"at least 2 values; factor 1 is always 0",
    ),
    "out is no JSON": (f"{PAIR} --out codes.npy", r"--out must end in \.json; got 'codes\.npy'\.$"),
    "out is a folder": (f"{PAIR} --out folder.json", r"--out must lie .* folder\.json \(it is a direc"),
    "out below a file": (f"{PAIR} --out text.npy/m.json", r"--out must lie where one can write; "),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_writes_nothing(name, here):
    arguments, sentence = BAD[name]
    write_files()
    before = files(here)
    result = call(*arguments.split(), "--quiet")
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Loading")]
    assert len(lines) == 1 and lines[0].startswith("Error: ") and lines[0].endswith((".", "?"))
    assert re.search(sentence, lines[0]), lines
    assert result.stdout == "" and "Traceback" not in result.output
    assert files(here) == before


def test_a_damaged_file_of_measures_is_one_sentence(here):
    Path("run/metrics.json").write_text("{")
    result = call("run", "--metrics", "mcc")
    assert (
        result.exit_code == 2
        and "Error: evaluate: run/metrics.json must be what it wrote" in result.stderr
    )


def test_a_run_with_code_of_ones_own_needs_trust(here):
    config = json.loads(Path("run/config.json").read_text())
    Path("run/config.json").write_text(json.dumps(config | {"prior": "own_absent:Prior"}))
    result = call("run")
    assert result.exit_code == 2 and "names code to import, own_absent:Prior" in result.stderr
    result = call("run", "--trust")
    assert result.exit_code == 2 and "must name something that can be imported" in result.stderr


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ("run --baseline lda", r"--baseline must be one of factors, .*; got 'lda'"),
        ("run --samples 0", r"Invalid value for '--samples': 0 is not in the range"),
        ("run --rows 0", r"Invalid value for '--rows': 0 is not in the range"),
        ("run --seed -1", r"Invalid value for '--seed': -1 is not in the range"),
        ("run other", r"evaluate takes one RUN; got run other\. Evaluate them one by one\."),
    ],
)
def test_usage_errors_of_click(arguments, sentence, here):
    before = files(here)
    result = call(*arguments.split())
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert re.search(sentence, result.stderr.splitlines()[-1]) and files(here) == before
