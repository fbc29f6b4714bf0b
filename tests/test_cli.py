"""The command line: help, a training from end to end, and a sentence for every bad input."""

import importlib
import math
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pyro_bvae.cli.main import COMMANDS, main
from pyro_bvae.cli.options import make_config

from pyro_bvae import config as options
from pyro_bvae import measuring, plots, runs, writing
from pyro_bvae.config import Config, flag
from pyro_bvae.vae import VAE

RNG = np.random.default_rng(0)
FAST = ["--steps", "3", "--quiet", "--device", "cpu"]


def call(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="pyro-bvae")


def message(result):
    """What standard error says beside the line of progress."""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Loading data")]
    return "\n".join(lines)


OWN_PRIORS = """
import pyro.distributions as dist
import torch


class Ring(torch.nn.Module):
    def __init__(self, latent_dim, radius=1.0):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.full((latent_dim,), float(radius)))

    def forward(self):
        return dist.Normal(self.loc, 1.0).to_event(1)


class Unfolded(Ring):
    def forward(self):
        return dist.Normal(self.loc, 1.0)


class Strange(torch.distributions.Normal):
    def __init__(self):
        super().__init__(0.0, 1.0)


class Foreign(Ring):
    def forward(self):
        return Strange()


class Full(torch.nn.Module):
    def __init__(self, x_shape, latent_dim):
        super().__init__()
        self.loc = torch.nn.Linear(x_shape[0], latent_dim)

    def forward(self, x):
        loc = self.loc(x)
        return dist.MultivariateNormal(loc, scale_tril=torch.eye(loc.shape[1]) * 0.5)


def full_covariance(x_shape, latent_dim, extra=0, scale=False):
    from pyro_bvae.networks import mlp

    return Full(x_shape, latent_dim), mlp(x_shape, latent_dim, extra, scale)[1]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, with a module of one's own beside it on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_priors.py").write_text(OWN_PRIORS)
    importlib.invalidate_caches()
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
    sys.modules.pop("own_priors", None)


@pytest.fixture
def without_figures(monkeypatch):
    monkeypatch.setattr(measuring, "write_figures", lambda *args: [])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One run and what the command printed about it."""
    out = tmp_path_factory.mktemp("cli") / "run"
    result = call("train", "--prior", "mixture", "--alpha", 1, "--out", out, *FAST)
    assert result.exit_code == 0, result.output
    return out, result


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    x = RNG.integers(0, 256, (30, 8, 8), dtype=np.uint8)
    np.savez(folder / "mine.npz", x=x, labels=np.arange(30) % 3)
    result = call(
        "train", "--dataset", folder / "mine.npz", "--conditional", "--latent-dim", 2,
        "--out", folder / "run", *FAST,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder / "run", result


# Help


def test_group_help_names_every_command():
    text = call("--help").output
    assert all(re.search(rf"^  {name} +\S", text, re.M) for name in COMMANDS)
    assert "pyro-bvae train --prior mixture" in text
    assert call("-h").output == text
    assert re.fullmatch(r"pyro-bvae, version [\d.]+\n", call("--version").output)


def test_train_help_names_every_option_with_its_default():
    text = re.sub(r"-\n +", "-", call("train", "--help").output)  # click breaks lines at hyphens
    text = " ".join(text.split())
    for name in Config.__dataclass_fields__:
        assert flag(name) + " " in text, name
    assert "--out" in text and "--quiet" in text
    for keys in (options.PRIORS, options.NETWORKS, options.DATASETS, options.DIVERGENCES):
        assert all(key in text for key in keys)
    assert "[default: 0.667]" in text and "[default: spirals]" in text


def headings(text):
    """Of a help text: each heading, and the options below it."""
    found, names = {}, []
    for line in text.splitlines():
        if re.match(r"\w+:$", line):
            names = found[line[:-1]] = []
        elif name := re.match(r"  (-\S+)", line):
            names.append(name[1].rstrip(","))
    return found


def test_train_help_groups_its_options_in_the_order_of_config():
    found = headings(call("train", "--help").output)
    assert list(found) == ["Data", "Model", "Objective", "Training", "Output", "Other"]
    assert [names[0] for names in found.values()] == [
        "--dataset", "--prior", "--beta", "--epochs", "--out", "--trust"
    ]  # fmt: skip
    fields = [flag(name) for name in Config.__dataclass_fields__]
    assert [name for names in found.values() for name in names if name in fields] == fields
    assert not {*found["Output"], *found["Other"]} & set(fields)


def test_train_help_says_what_holds_where_an_option_is_not_given():
    context = main.get_command(None, "train").make_context("train", [])
    off = {"prior_args", "beta_tc", "gamma", "capacity", "resume", "recipe", "tensorboard"}
    for option in context.command.params:
        two_ways = not option.is_flag or bool(option.secondary_opts)
        assert ("[default" in option.help) == (two_ways and option.name not in off), option.name


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_terminal_and_ends_in_examples_that_can_be_typed(name):
    lines = call(name, "--help").output.splitlines()
    assert max(map(len, lines)) <= 80
    examples = lines[lines.index("  Examples:") + 1 :]
    assert examples and all(line.startswith(f"    pyro-bvae {name}") for line in examples)
    for line in examples:
        context = main.get_command(None, name).make_context(name, shlex.split(line)[2:])
        if name == "train":
            make_config({k: context.params[k] for k in Config.__dataclass_fields__})


def test_list_names_every_key():
    result = call("list")
    assert result.exit_code == 0
    words = set(re.split(r"[\s,]+", result.output))
    for keys in (
        options.PRIORS, options.DIVERGENCES, options.LIKELIHOODS, options.NETWORKS, options.DATASETS,
        options.METRICS, options.MEASURES, options.BASELINES,
    ):  # fmt: skip
        assert set(keys) <= words


def test_list_keeps_names_and_what_follows_apart():
    for name in options.DATASET_DEFAULTS:
        assert f"  {name} " in call("list").output


# From options to Config


def given(*arguments):
    """The Config that `train` makes of a command line."""
    command = main.get_command(None, "train")
    context = command.make_context("train", [str(a) for a in arguments])
    values = {k: v for k, v in context.params.items() if k not in ("out", "quiet")}
    fields = Config.__dataclass_fields__
    return make_config({k: v for k, v in values.items() if k in fields})


def test_no_options_are_the_defaults_of_config():
    assert given() == Config()


def test_options_arrive():
    config = given(
        "--dataset", "x.npz", "--latent-dim", 3, "--lr", "1e-2", "--conditional", "--amsgrad",
        "--gamma", 10, "--capacity", 5, "--penalty", "relu", "--likelihood-scale", "learned",
        "--likelihood", "laplace", "--seed", 7,
    )  # fmt: skip
    assert config == Config(
        "x.npz", latent_dim=3, lr=1e-2, conditional=True, amsgrad=True, gamma=10.0, capacity=5.0,
        penalty="relu", likelihood_scale="learned", likelihood="laplace", seed=7,
    )  # fmt: skip
    assert given("--no-amsgrad").amsgrad is False and given().amsgrad is None


@pytest.mark.parametrize(
    "text, expected",
    [
        ("df=5", {"df": 5}),
        ("scale=0.5", {"scale": 0.5}),
        ("learned=true", {"learned": True}),
        ("n-components=10", {"n_components": 10}),
        ("locs=[[0,1],[2,3]]", {"locs": [[0, 1], [2, 3]]}),
        ("name=text of mine", {"name": "text of mine"}),
        ("equation=a=b", {"equation": "a=b"}),
        ("empty=", {"empty": ""}),
    ],
)
def test_prior_arg(text, expected):
    assert given("--prior-arg", text).prior_args == expected


def test_prior_arg_is_repeatable():
    found = given("--prior-arg", "df=5", "--prior-arg", "scale=2").prior_args
    assert found == {"df": 5, "scale": 2}


# Train and sample


def test_train_prints_a_summary_and_what_comes_next(trained):
    out, result = trained
    lines = result.stdout.splitlines()
    assert lines[1].startswith("Trained spirals with the mixture prior: 3 steps in ")
    assert lines[1].endswith(" s on cpu. Final beta 1, alpha 1.")
    assert lines[2] == "Model: 2 latents, network mlp, likelihood normal."
    assert "Held-out, nats per example (n = 400):" in lines
    for label in ("E log p(x|z)", "KL(q(z|x) || p(z))", "ELBO at beta = 1"):
        number = r"-?\d+\.\d{3} \+- \d\.\d{3}(  \(Monte Carlo, 1 sample\))?"
        assert re.search(rf"^  {re.escape(label)}.* +{number}$", result.stdout, re.M)
    said = r"^  D\(q\(z\), p\(z\)\)  inclusive-kl +-?\d+\.\d{3}  \(all 400 rows as components; \S+ at half"
    assert re.search(said, result.stdout, re.M)
    assert re.search(r"^  cluster purity +[01]\.\d{3}$", result.stdout, re.M)
    assert re.search(r"^  components used +\d +of 4$", result.stdout, re.M)
    assert re.search(
        r"^  active latents, variance of means > .01 +[012] +of 2$", result.stdout, re.M
    )
    assert "below log p(x)" in result.stdout and "p(x|y)" not in result.stdout
    assert lines[-2].startswith(f"Run: {out}; look at {out}") and lines[-2].endswith(" first")
    assert lines[-1].startswith("Next: pyro-bvae ") and str(out) in lines[-1]
    assert message(result) == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--gamma", 10, "--capacity", 3), "Final gamma 10, C 3 nats."),
        (("--beta-tc", 6), "Final beta_tc 6."),
    ],
)
def test_summary_names_the_objective(options, said, tmp_path):
    result = call("train", *options, "--out", tmp_path / "run", *FAST)
    assert result.stdout.splitlines()[1].endswith(said), result.output


def test_summary_of_a_conditional_model_is_given_the_label(conditional):
    out, result = conditional
    assert re.search(r"^  E log p\(x\|z, y\)  \(-distortion\) +-?\d", result.stdout, re.M)
    assert re.search(r"^  ELBO at beta = 1, below log p\(x\|y\) +-?\d", result.stdout, re.M)
    norm = runs.load_run(out).metrics["beta_norm"]
    assert norm == 2 / 64 and "Final beta 1 (beta_norm 0.0312)." in result.stdout


def test_a_posterior_of_full_covariance_has_no_divergence_and_no_traceback(here):
    result = call("train", "--network", "own_priors:full_covariance", "--out", "run", *FAST)
    assert result.exit_code == 0, result.output
    assert "\n  D(q(z), p(z))" not in result.stdout and "Traceback" not in result.output
    assert "Not measured: D(q(z), p(z))." in result.stdout
    assert result.stdout.splitlines()[-2].startswith("Run: run; ")
    assert not Path("run/figures/aggregate_posterior.png").exists()


def test_what_it_says_comes_next_works(trained, here):
    out, result = trained
    shutil.copytree(out, "run")
    command = result.stdout.splitlines()[-1].removeprefix("Next: pyro-bvae ").split()
    assert str(out) in command
    following = call(*("run" if word == str(out) else word for word in command))
    assert following.exit_code == 0, following.output
    path = Path(following.stdout.splitlines()[-1].removeprefix("Wrote "))
    assert path.parent == Path("run") and path.is_file()


def test_samples_are_drawn_into_the_run(trained, here):
    shutil.copytree(trained[0], "run")
    assert call("sample", "run").output == "Wrote run/figures/samples-0.png\n"
    assert Path("run/figures/samples-0.png").read_bytes()[:4] == b"\x89PNG"


def test_summary_is_that_of_metrics(trained):
    out, result = trained
    m = runs.load_run(out).metrics
    assert f"{m['elbo']:9.3f} +- {m['elbo_se']:.3f}" in result.stdout
    for sentence in m["diagnosis"]:
        assert f"Note: {sentence}" in result.stdout


@pytest.mark.slow
def test_one_real_process(tmp_path):
    """The console script, as a shell starts it, with a prior of one's own from the current folder."""
    (tmp_path / "own_priors.py").write_text(OWN_PRIORS)
    script = Path(sys.executable).with_name("pyro-bvae")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "pyro_bvae.cli"]
    done = subprocess.run(
        [*command, "train", "--prior", "own_priors:Ring", "--out", "run", "--steps", "3",
         "--device", "cpu"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"Next: pyro-bvae \w+ run --trust", done.stdout.splitlines()[-1])
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr


def test_parameters_of_a_prior_of_ones_own_move(here, without_figures):
    result = call(
        "train", "--prior", "own_priors:Ring", "--prior-arg", "radius=2.5", "--alpha", 1,
        "--out", "run", *FAST,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"Next: pyro-bvae \w+ run --trust", result.stdout.splitlines()[-1])
    weights = torch.load("run/checkpoint.pt", weights_only=True)["vae"]
    # Three steps of Adam at 5e-3: each moves the parameter by about that much.
    moved = (weights["prior.loc"] - 2.5).abs()
    assert (moved > 1e-3).all() and (moved < 0.02).all()


def test_run_with_code_of_ones_own_needs_trust(here, without_figures):
    assert call("train", "--prior", "own_priors:Ring", "--out", "run", *FAST).exit_code == 0
    refused = call("sample", "run")
    assert refused.exit_code == 2
    assert re.match(r"Error: load_run: run names code to import, own_priors:Ring", refused.stderr)
    assert call("sample", "run", "--trust").exit_code == 0


def test_sample_numbers(trained, tmp_path):
    out, _ = trained
    result = call("sample", out, "-n", 5, "--out", tmp_path / "new" / "x.npz")
    assert result.output == f"Wrote {tmp_path / 'new' / 'x.npz'}\n"
    with np.load(tmp_path / "new" / "x.npz") as file:
        assert file.files == ["x"] and file["x"].shape == (5, 2)
        first = file["x"]
    for seed, same in ((0, True), (1, False)):
        call("sample", out, "-n", 5, "--seed", seed, "--out", tmp_path / "y.npz")
        with np.load(tmp_path / "y.npz") as file:
            assert np.array_equal(file["x"], first) == same


@pytest.mark.parametrize(
    "options, title, labels",
    [
        (("-n", 5), "samples from the prior, classes in turn", [0, 1, 2, 0, 1]),
        (("-n", 4, "--label", 2), "samples from the prior, class 2", [2, 2, 2, 2]),
    ],
)
def test_samples_of_a_conditional_image_model_say_their_class(
    options, title, labels, conditional, tmp_path, monkeypatch
):
    seen, p_x, samples = {}, VAE.p_x, plots.samples

    def record(x, title):
        seen.update(shape=x.shape, title=title)
        return samples(x, title)

    def watch(self, z, labels=None):
        seen["labels"] = labels.tolist()
        return p_x(self, z, labels)

    monkeypatch.setattr(plots, "samples", record)
    monkeypatch.setattr(VAE, "p_x", watch)
    out = ("--out", tmp_path / "x.png")
    assert call("sample", conditional[0], *options, *out).exit_code == 0
    assert seen == {"shape": (len(labels), 1, 8, 8), "title": title, "labels": labels}


def test_pictures_of_a_conditional_run_hold_one_draw_a_row(conditional, monkeypatch):
    from pyro_bvae.figures.samples import samples_by_class

    drawn, p_x = [], VAE.p_x

    def watch(self, z, labels=None):
        drawn.append((z, labels))
        return p_x(self, z, labels)

    monkeypatch.setattr(VAE, "p_x", watch)
    with torch.no_grad():
        samples_by_class(runs.load_run(conditional[0]).vae, rows=4)
    z, labels = drawn[-1]
    z = z.reshape(4, 3, -1)
    assert labels.reshape(4, 3).tolist() == [[0, 1, 2]] * 4
    assert torch.equal(z, z[:, :1].expand_as(z)) and len(z[:, 0].unique(dim=0)) == 4


def test_sample_of_a_class(conditional, tmp_path):
    conditional, _ = conditional
    path = tmp_path / "x.npz"
    assert call("sample", conditional, "-n", 7, "--out", path).exit_code == 0
    with np.load(path) as file:
        assert file["labels"].tolist() == [0, 1, 2, 0, 1, 2, 0]
        assert file["x"].shape == (7, 1, 8, 8)
    assert call("sample", conditional, "--label", 2, "-n", 3, "--out", path).exit_code == 0
    with np.load(path) as file:
        assert file["labels"].tolist() == [2, 2, 2]
    assert call("sample", conditional, "--out", tmp_path / "x.png").exit_code == 0
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_progress_goes_to_standard_error(here, without_figures):
    result = call("train", "--steps", 3, "--device", "cpu", "--out", "run")
    assert result.exit_code == 0
    assert "Loading data and building the model ..." in result.stderr
    assert "Loading" not in result.stdout and "%|" not in result.stdout


def test_the_command_says_where_it_wrote_by_default(here, without_figures):
    result = call("train", *FAST)
    assert "runs/spirals-gaussian-1" in result.stdout.splitlines()[-1]
    assert Path("runs/spirals-gaussian-1/metrics.json").is_file()


# Stopping early


def test_interrupt(here, monkeypatch, without_figures):
    def stop(self, record, state):
        if state.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("pyro_bvae.cli.train._Bar.record", stop)
    result = call("train", "--out", "run", *FAST)
    assert result.exit_code == 130
    assert message(result) == (
        "Error: Interrupted. The last good checkpoint and the history are kept in run. Go on with: "
        "pyro-bvae train --resume run."
    )
    assert len(runs.load_run("run").history) == 2


def test_loss_that_is_not_finite(here, monkeypatch, without_figures):
    def poison(self, record, state):
        if state.epoch == 2:
            next(state.vae.parameters()).data.fill_(math.nan)

    monkeypatch.setattr("pyro_bvae.cli.train._Bar.record", poison)
    result = call("train", "--out", "run", *FAST)
    assert result.exit_code == 1
    assert re.fullmatch(
        r"Error: fit: the loss must be finite; .* are kept in run\.", message(result)
    )
    assert runs.load_run("run").history[0]["step"] == 1


# Bad input


def write_files(folder):
    x = RNG.normal(size=(5000, 2)).astype(np.float32)
    np.save(folder / "good.npy", x)
    x[4000, 1] = math.nan
    np.save(folder / "nan.npy", x)
    np.savez(folder / "grey.npz", x=RNG.integers(0, 256, (20, 8, 8), dtype=np.uint8))
    np.savez(folder / "wide.npz", x=RNG.normal(size=(20, 8, 8)).astype(np.float32))
    np.savez(folder / "rgba.npz", x=RNG.integers(0, 256, (20, 8, 8, 4), dtype=np.uint8))
    (folder / "corrupt.npz").write_bytes((folder / "grey.npz").read_bytes()[:300])
    np.save(folder / "objects.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    np.savez(folder / "one_row.npz", x=np.zeros((1, 2), np.float32))
    (folder / "empty").mkdir()
    (folder / "a_file").write_text("mine")
    (folder / "used").mkdir()
    (folder / "used" / "mine.txt").write_text("mine")
    (folder / "broken_module.py").write_text("def (:\n")


BAD = {
    "unknown prior": ("--prior mixtur", r"--prior must be .*Did you mean mixture\?"),
    "prior of wrong event shape": ("--prior own_priors:Unfolded", r"event_shape \(2,\); got \(2,\)"),
    "prior of torch": ("--prior own_priors:Foreign", r"must be a distribution from pyro\.dist"),
    "absent prior": ("--prior own_priors:Absent", r"--prior must name something that can be imp"),
    "module with an error": ("--prior broken_module:P", r"--prior must name .*invalid syntax"),
    "no module": ("--prior :P", r"--prior must name something that can be imported"),
    "unknown prior-arg": ("--prior mixture --prior-arg df=5", r"--prior-arg of mixture must be one"),
    "bad prior-arg": ("--prior student-t --prior-arg df=-1", r"df must be a finite number > 0; got"),
    "text as prior-arg": ("--prior-arg scale=wide", r"Gaussian: scale must be numbers in rows"),
    "list as prior-arg": ("--prior-arg scale=[1,2,3]", r"Gaussian: scale must be one number, or 2"),
    "prior-arg without =": ("--prior-arg df", r"--prior-arg must be KEY=VALUE; got 'df'"),
    "prior-arg without key": ("--prior-arg =5", r"--prior-arg must be KEY=VALUE; got '=5'"),
    "pca beyond the rank": ("--prior pca --latent-dim 3", r"at most the rank .*, 2; got 3"),
    "flow in 1-D": ("--prior flow --latent-dim 1", r"Flow: latent_dim must be at least 2"),
    "nan": ("--dataset nan.npy", r"--dataset: values must be finite; got NaN"),
    "wide images": ("--dataset wide.npz", r"bernoulli needs data in \[0, 1\]; got values from -?\d"),
    "four channels": ("--dataset rgba.npz", r"images must have 1 or 3 channels; got shape \(20, 8"),
    "full covariance": (
        "--network own_priors:full_covariance --beta-tc 2", r"the posterior must be a product over",
    ),
    "no closed form": (
        "--prior mixture --gamma 9 --capacity 5 --reduction example", r"needs a KL in closed form",
    ),
    "image size": ("--dataset digits --network dcgan32", r"dcgan32: images must be 32x32; got x of"),
    "no image size": ("--dataset good.npy --image-size 32", r"image_size must be left out for vec"),
    "empty folder": ("--dataset empty", r"empty: the folder must hold images"),
    "corrupt npz": ("--dataset corrupt.npz", r"corrupt\.npz: the file must be a complete \.npz"),
    "pickled npy": ("--dataset objects.npy", r"objects\.npy: the file must be .*without pickled"),
    "one row": ("--dataset one_row.npz", r"must have at least 2 rows"),
    "unknown suffix": ("--dataset a_file", r"a_file: the file must be one of \.npy \.npz"),
    "absent file": ("--dataset absent.npz", r"absent\.npz: the file or folder must exist"),
    "unknown data set": ("--dataset spiral", r"must be one of spirals, .*Did you mean spirals\?"),
    "missing mnist": ("--dataset mnist --data-dir empty", r"mnist: empty/MNIST/raw must hold .*down"),
    "points as images": ("--network conv-bn", r"conv-bn: images must be 32x32 or 64x64"),
    "unknown network": ("--network resnet", r"--network must be one of mlp, .*; got 'resnet'"),
    "absent network": ("--network own_priors:net", r"--network must name something that can be imp"),
    "bernoulli on points": ("--likelihood bernoulli", r"needs data in \[0, 1\]; got values from"),
    "bernoulli on a mapped file": (
        "--dataset good.npy --likelihood bernoulli", r"needs data in \[0, 1\]; got values from",
    ),
    "scale of bernoulli": (
        "--dataset digits --likelihood-scale 0.1", r"--likelihood-scale needs --likelihood normal",
    ),
    "bad scale": ("--likelihood-scale wide", r"--likelihood-scale must be a number > 0, 'learned'"),
    "binarize floats": ("--binarize static", r"binarize must be 'none' for float32 data"),
    "binarize floats anew": ("--binarize dynamic", r"--binarize needs images of whole grey values"),
    "conditional without labels": ("--dataset grey.npz --conditional", r"--conditional needs labels"),
    "encode labels": ("--encode-labels", r"--encode-labels needs --conditional"),
    "cuda absent": ("--device cuda", r"--device cuda must be present; .*Use --device cpu"),
    "no device": ("--device gpu", r"--device must be auto, cpu, cuda or cuda:N; got 'gpu'"),
    "device without numbers": ("--device meta", r"--device must be auto, .*; got 'meta'"),
    "gamma and beta": ("--gamma 9 --capacity 5 --beta 2", r"--gamma needs --beta 1, .*got --beta 2"),
    "capacity without gamma": ("--capacity 5", r"--capacity 5\.0 needs --gamma"),
    "gamma without capacity": ("--gamma 5", r"--gamma 5\.0 needs --capacity"),
    "gamma and alpha": ("--gamma 9 --capacity 5 --alpha 1", r"--gamma and --alpha exclude each other"),
    "alpha-warmup at alpha 0": ("--alpha-warmup 0.5", r"--alpha-warmup 0\.5 needs --alpha > 0"),
    "penalty without gamma": ("--penalty relu", r"--capacity-ramp need --gamma and --capacity"),
    "beta-warmup beside gamma": (
        "--gamma 9 --capacity 5 --beta-warmup 0.5", r"--beta-warmup 0\.5 has no effect beside --gam",
    ),
    "epochs and steps": ("--epochs 1 --steps 2", r"--epochs and --steps exclude each other"),
    "negative alpha": ("--alpha -1", r"--alpha must be a number of at least 0; got -1\.0"),
    "beta nan": ("--beta nan", r"--beta must be a number of at least 0; got nan"),
    "lr inf": ("--lr inf", r"--lr must be a number of at least 0; got inf"),
    "latent_dim 0": ("--latent-dim 0", r"--latent-dim must be a whole number of at least 1; got 0"),
    "no test rows": ("--dataset good.npy --test-fraction 0", r"--test-fraction must lie between 0"),
    "test fraction of spirals": ("--test-fraction 0.2", r"test_fraction must be left out"),
    "seed": ("--seed 4294967296", r"--seed must be below 2\*\*32"),
    "estimator alone": ("--estimator mss --alpha 1", r"--estimator mss needs --divergence exclusive"),
    "beta-tc and alpha": ("--beta-tc 4 --alpha 1", r"--beta-tc sets alpha, beta and the diverg"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(name, here, monkeypatch):
    arguments, sentence = BAD[name]
    write_files(here)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = sorted(here.rglob("*"))
    result = call("train", *arguments.split(), "--out", "out/run", "--quiet")
    assert result.exit_code == 2, result.output
    text = message(result)
    assert text.startswith("Error: ") and "\n" not in text and text.endswith((".", "?"))
    assert re.search(sentence, text), text
    assert result.stdout == "" and "Traceback" not in result.output
    assert [p for p in sorted(here.rglob("*")) if "__pycache__" not in p.parts] == before


@pytest.mark.parametrize(
    "out, sentence",
    [
        ("used", r"--out must be a new or empty directory; used is not"),
        ("a_file", r"--out must be a new or empty directory; a_file is not"),
        ("a_file/run", r"--out must lie where one can write; \S*a_file is not"),
        ("locked/run", r"--out must lie where one can write; .* is not"),
    ],
)
def test_bad_output_directories(out, sentence, here, monkeypatch):
    write_files(here)
    if out.startswith("locked"):
        monkeypatch.setattr(writing.os, "access", lambda path, mode: False)
    before = sorted(here.rglob("*"))
    result = call("train", "--out", out, *FAST)
    assert result.exit_code == 2 and re.fullmatch(f"Error: {sentence}.*", message(result))
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ("train --epochs many", r"Invalid value for '--epochs': 'many' is not a valid integer"),
        ("train --beta x", r"Invalid value for '--beta': 'x' is not a valid float"),
        ("train --penalty cubic", r"--penalty must be one of absolute, relu; got 'cubic'\. See"),
        (
            "train --divergence mmdd",
            r"--divergence must be one of .*; got 'mmdd'\. Did you mean mmd\?",
        ),
        ("train --likelihood gauss", r"--likelihood must be one of normal, .*; got 'gauss'\."),
        ("train --estimator loo", r"--estimator must be one of batch, .*; got 'loo'\."),
        (
            "evaluate run --baseline pac",
            r"--baseline must be one of .*; got 'pac'\. Did you mean pca\?",
        ),
        ("reproduce overlap --scale smal", r"--scale must be one of .* Did you mean small\?"),
        ("list recipe", r"'recipe' is not.* 'recipes'"),
        ("train --bta 2", r"No such option[: ]+'?--bta'?.*--beta"),
        ("train surplus", r"unexpected extra argument"),
        ("tarin", r"a command must be one of train, .*; got 'tarin'\. Did you mean train\?"),
        ("--bta", r"No such option[: ]+'?--bta"),
        ("--bta train", r"No such option[: ]+'?--bta"),
        ("sample", r"Missing argument 'RUN'"),
        ("sample run -n 0", r"Invalid value for '-n': 0 is not in the range"),
        ("sample run --label -1", r"Invalid value for '--label': -1 is not in the range"),
        ("sample run --seed -1", r"Invalid value for '--seed': -1 is not in the range"),
        ("sample run --seed 4294967296", r"Invalid value for '--seed': .* is not in the range"),
    ],
)
def test_usage_errors_of_click(arguments, sentence, here):
    before = sorted(here.rglob("*"))
    result = call(*arguments.split())
    assert result.exit_code == 2 and "Traceback" not in result.output
    (line,) = result.stderr.splitlines()
    assert re.match(f"Error: .*{sentence}", line), line
    name = next((word for word in arguments.split() if word in COMMANDS), None)
    where = f"pyro-bvae {name}" if name and not arguments.startswith("-") else "pyro-bvae"
    assert line.endswith(f" See {where} --help.")
    assert sorted(here.rglob("*")) == before


def test_bad_samples(trained, conditional, here):
    (out, _), (conditional, _) = trained, conditional
    (here / "a_file").write_text("mine")
    for arguments, sentence in (
        (["nowhere"], r"load_run: nowhere must be a run's directory; it is not a directory\."),
        ([out, "--label", 1], r"--label needs a conditional model; got 1\. Leave it out"),
        ([conditional, "--label", 3], r"--label must be below 3; got 3"),
        ([out, "--out", "x.pdf"], r"--out must end in \.png or \.npz; got 'x\.pdf'"),
        ([out, "--out", "a_file/x.png"], r"--out must lie where one can write; .*a_file"),
        ([out, "--out", "a_file/new/x.npz"], r"--out must lie where one can write; .*a_file"),
    ):
        result = call("sample", *arguments)
        assert result.exit_code == 2, (arguments, result.output)
        text = message(result)
        assert re.match(f"Error: {sentence}", text) and "\n" not in text, text
        assert [p.name for p in here.iterdir() if p.suffix in (".png", ".npz")] == []


def test_damaged_run_is_one_sentence(trained, here):
    out, _ = trained
    run = here / "run"
    run.mkdir()
    for name in ("config.json", "history.jsonl"):
        (run / name).write_bytes((out / name).read_bytes())
    (run / "checkpoint.pt").write_bytes((out / "checkpoint.pt").read_bytes()[:500])
    result = call("sample", "run")
    assert result.exit_code == 2
    assert re.fullmatch(r"Error: load_run: run/checkpoint\.pt must be a .*\.", message(result))


@pytest.mark.filterwarnings("default")
def test_a_step_that_cannot_be_compiled_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def compiler(graph):
        raise RuntimeError("no C++ compiler\nwhich is sad")

    monkeypatch.setattr("pyro_bvae.svi._compile", compiler)
    result = call("train", *FAST, "--compile", "--out", "run", "--no-report")
    assert result.exit_code == 0, result.output
    note = "Note: CompiledSVI: the step could not be compiled (no C++ compiler). It runs eagerly."
    assert message(result) == note
    assert runs.load_run("run").config.compile is True
