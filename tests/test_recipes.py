"""The published experiments' files: each says what it is, and each of its settings builds and trains."""

import dataclasses
import re

import numpy as np
import pytest
from click.testing import CliRunner
from pyro_bvae.cli.main import main

from pyro_bvae import config, runs
from pyro_bvae.build import load
from pyro_bvae.datasets import DATASETS, Data
from pyro_bvae.recipes import SCALES, experiment_sweep, read_recipe, read_setting, recipe_names
from pyro_bvae.reproduce.pictures import FIGURES

NAMES = recipe_names()
SHAPES = {
    "mnist": (1, 32, 32),
    "fashion-mnist": (1, 32, 32),
    "dsprites": (1, 64, 64),
    "digits": (1, 8, 8),
}
SHAPES |= {"3d-chairs": (3, 64, 64), "celeba": (3, 64, 64), "spirals": (2,)}


def call(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)), prog_name="pyro-bvae")


def test_each_experiment_of_the_mission_has_its_file():
    assert set(NAMES) == {
        "mnist-objectives", "dsprites-objectives", "dsprites-higgins", "mnist-conditional", "dsprites-capacity",
        "chairs", "celeba", "spirals-clustering", "fashion-sparsity", "dsprites-independence", "overlap",
        "rate-distortion", "mnist-manifold",
    }  # fmt: skip


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is(name, scale):
    recipe = read_recipe(name, scale)
    assert (recipe.name, recipe.scale) == (name, scale) and recipe.title and recipe.note.strip()
    assert re.search(r"https://|course report", recipe.cites)
    assert re.search(r"core|GPU", recipe.cost)
    assert set(recipe.figures) <= set(FIGURES) and (recipe.figures or recipe.run_figures)
    assert set(recipe.measures) <= {*config.MEASURES, *config.METRICS}
    assert set(recipe.baselines) <= set(config.BASELINES)
    for column in recipe.columns:
        if column.startswith("scores."):
            assert column.removeprefix("scores.") in recipe.measures
    for cells in recipe.published.values():
        assert set(cells) <= set(recipe.columns)
    for setting in recipe.settings.values():
        assert setting.dataset in DATASETS
        assert setting.beta_warmup == 0 or setting.gamma is not None  # ours, not the publications'
    every = experiment_sweep(recipe)
    assert len(every.configs) == recipe.seeds * len(recipe.settings)


def test_published_numbers_stand_as_published():
    """As docs/mission.md and the publications have them; shares, not percent."""
    published = read_recipe("mnist-objectives").published
    assert {row: tuple(v for v, _ in cells.values()) for row, cells in published.items()} == {
        "vae": (76.72, 2159), "beta-4": (99.04, 1231), "capacity-absolute": (74.32, 2318),
        "capacity-relu": (73.94, 2343),
    }  # fmt: skip
    published = read_recipe("dsprites-objectives").published
    assert {row: tuple(v for v, _ in cells.values()) for row, cells in published.items()} == {
        "vae": (25.98, 0.5476), "beta-4": (51.54, 0.7502), "capacity-absolute": (12.97, 0.8232),
        "capacity-relu": (12.07, 0.8227),
    }  # fmt: skip
    published = read_recipe("dsprites-higgins").published
    assert {row: cells["scores.beta-vae-score"] for row, cells in published.items()} == {
        "factors": (1.0, None), "pixels": (0.4575, 0.008), "pca": (0.849, 0.004), "ica": (0.4203, 0.106),
        "DC-IGN": (0.993, 0.001), "InfoGAN": (0.735, 0.009), "untrained": (0.4414, 0.025),
        "vae": (0.6158, 0.005), "beta-4": (0.9923, 0.001),
    }  # fmt: skip


def test_settings_are_those_of_the_publications():
    spirals = read_setting("spirals-clustering/alpha-5").resolved()
    assert (spirals.alpha, spirals.beta, spirals.steps, spirals.batch_size) == (5, 0, 500, 400)
    assert (spirals.lr, spirals.amsgrad, spirals.latent_dim) == (1e-3, True, 2)
    sparse = read_setting("fashion-sparsity/w.8-alpha1000").resolved()
    assert (sparse.epochs, sparse.latent_dim, sparse.batch_size, sparse.lr) == (80, 50, 500, 5e-4)
    assert (sparse.likelihood, sparse.likelihood_scale, sparse.network) == (
        "laplace",
        "0.1",
        "dcgan32",
    )
    assert (sparse.alpha, sparse.amsgrad, sparse.beta) == (1000, True, 1)
    relu = read_setting("mnist-objectives/capacity-relu").resolved()
    assert (relu.capacity, relu.capacity_ramp * relu.epochs, relu.penalty) == (20, 20, "relu")
    assert (relu.lr, relu.batch_size, relu.latent_dim, relu.likelihood) == (
        5e-4,
        64,
        10,
        "bernoulli",
    )
    student = read_setting("dsprites-independence/student-t-beta-4").resolved()
    assert (student.prior_args, student.epochs, student.network) == ({"df": 9}, 20, "higgins64")
    pca = read_setting("dsprites-independence/pca-learned-beta-2").resolved()
    assert (pca.lr, pca.amsgrad, pca.batch_size, pca.latent_dim) == (5e-4, True, 64, 10)
    assert (pca.prior, pca.prior_args, pca.beta) == ("pca", {"learned": True}, 2)
    burgess = read_setting("dsprites-capacity/gamma-1000").resolved()
    assert (burgess.gamma, burgess.capacity, burgess.steps, burgess.latent_dim) == (
        1000,
        25,
        100_000,
        10,
    )
    assert (burgess.capacity_ramp, burgess.network, burgess.penalty) == (1, "burgess", "absolute")
    chairs, celeba = read_recipe("chairs").settings, read_recipe("celeba").settings
    assert {(c.beta, c.latent_dim) for c in chairs.values()} == {(4, 10), (4, 16)}
    assert {(c.beta, c.latent_dim) for c in celeba.values()} == {(10, 10), (10, 32)}
    assert {c.prior for c in read_recipe("overlap").settings.values()} == {"cross"}
    first = read_setting("mnist-conditional")  # where no setting is named
    assert (first.conditional, first.gamma, first.capacity) == (True, 100, 20)


def test_a_small_scale_changes_what_it_says_and_nothing_else():
    full, small = read_recipe("fashion-sparsity"), read_recipe("fashion-sparsity", "small")
    for name, setting in small.settings.items():
        assert dataclasses.replace(full.settings[name], epochs=10) == setting
    steps = read_recipe("dsprites-objectives", "small").settings["vae"]
    assert (steps.steps, steps.epochs) == (20_000, None)
    assert set(full.settings) - set(small.settings) == {"w0-alpha1000"}
    assert read_recipe("dsprites-higgins").seeds == 3
    assert read_recipe("dsprites-higgins", "small").seeds == 1


@pytest.fixture
def random_data(monkeypatch):
    """Random rows of each data set's shape: what is absent here, or takes long to load."""

    def loaded(name, **options):
        rng = np.random.default_rng(0)
        shape = SHAPES[name]
        x = rng.integers(0, 256, (24, *shape)).astype(np.uint8)
        if name == "spirals":
            x = rng.normal(size=(24, 2)).astype(np.float32)
        labels = np.arange(24) % 4
        return Data(x, labels), Data(x[:8], labels[:8])

    monkeypatch.setattr("pyro_bvae.build.load_dataset", loaded)


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_builds_and_trains(name, random_data, without_figures, tmp_path):
    seen = set()
    for scale in SCALES:
        for row, setting in read_recipe(name, scale).settings.items():
            short = dataclasses.replace(
                setting, steps=2, epochs=None, batch_size=12, latent_dim=setting.latent_dim and 3,
                compile=False,
            )  # fmt: skip
            key = repr(dataclasses.replace(short, beta=min(short.beta, 1)))
            if key in seen:  # the scales differ in how long they train, others in beta alone
                continue
            seen.add(key)
            run = runs.train(short, tmp_path / scale / row)
            assert run.history[-1]["step"] == 2 and np.isfinite(run.metrics["elbo"])
            assert load(run.config)[0].x_shape == SHAPES[setting.dataset]


def test_the_list_names_them_with_source_and_cost():
    said = call("list", "recipes").output
    for name in NAMES:
        recipe = read_recipe(name)
        assert f"{name}\n  {recipe.title}\n  {recipe.cites}\n  cost: {recipe.cost}" in said
        assert ", ".join(recipe.settings) in said


def test_train_takes_a_recipe_and_what_is_typed_beside_it(tmp_path, monkeypatch, without_figures):
    monkeypatch.chdir(tmp_path)
    options = ("--no-report", "--quiet", "--seed", 3)
    result = call(
        "train", "--recipe", "spirals-clustering/alpha-5", "--steps", 2, "--out", "a", *options
    )
    assert result.exit_code == 0, result.output
    trained, recipe = runs.load_run("a").config, read_setting("spirals-clustering/alpha-5")
    assert trained == dataclasses.replace(recipe, steps=2, seed=3, compile=False).resolved()

    arguments = ("--prior-arg", "scale=0.5", "--epochs", 1, "--alpha", 2, "--out", "b", *options)
    assert call("train", "--recipe", "spirals-clustering/beta-1", *arguments).exit_code == 0
    other = runs.load_run("b").config
    assert (other.prior_args, other.steps, other.epochs) == ({"scale": 0.5}, None, 1)
    assert (other.alpha, other.beta, other.prior) == (2, 1, "mixture")


def test_another_prior_does_not_keep_the_recipes_arguments():
    from pyro_bvae.cli.options import change_config

    student = read_setting("dsprites-independence/student-t-beta-1")
    assert change_config(student, {"prior": "gaussian"}).prior_args == {}
    assert change_config(student, {"prior_args": ("scale=2",)}).prior_args == {"df": 9, "scale": 2}


def test_another_objective_does_not_keep_the_recipes():
    from pyro_bvae.cli.options import change_config

    held = change_config(read_setting("mnist-objectives/beta-4"), {"gamma": 10.0, "capacity": 5.0})
    assert (held.beta, held.gamma, held.capacity, held.beta_warmup) == (1, 10, 5, 0)
    tc = change_config(read_setting("spirals-clustering/alpha-5"), {"beta_tc": 6.0})
    assert (tc.alpha, tc.beta, tc.divergence, tc.beta_tc) == (0, 1, None, 6)
    same = change_config(read_setting("fashion-sparsity/w0-alpha100"), {"prior": "spike-slab"})
    assert same.prior_args == {"spike_weight": 0.0}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("train", "--recipe", "spirals"), "an experiment must be one of .*; got 'spirals'"),
        (("train", "--recipe", "mnist-objective/vae"), "Did you mean mnist-objectives"),
        (("train", "--recipe", "overlap/rihgt"), "one of .*; got 'rihgt'. Did you mean right"),
        (("train", "--recipe", "../overlap"), "an experiment must be one of"),
        (("train", "--recipe", "mnist-objectives/beta-4", "--gamma", 3), "--gamma 3.* needs --capacity"),
        (("train", "--recipe", "overlap", "--resume", "x"), "got --recipe beside it"),
        (("reproduce", "overlaps"), "an experiment must be one of .*Did you mean overlap"),
        (("reproduce", "overlap", "--seeds", 0), "--seeds must be at least 1; got 0"),
        (("reproduce", "overlap", "--scale", "big"), "--scale must be one of full, small; got 'big'"),
        (("reproduce", "overlap", "--jobs", 0), "jobs must be at least 1"),
        (("list", "recipe"), "'recipe' is not 'recipes'"),
    ],
)  # fmt: skip
def test_bad_input_gets_a_sentence(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == 2
    assert re.search(sentence, " ".join(result.output.split()))
    assert not list(tmp_path.iterdir())


def test_wrong_kinds_in_python():
    with pytest.raises(ValueError, match="--scale must be one of full, small; got 'tiny'"):
        read_recipe("overlap", "tiny")
    with pytest.raises(TypeError, match="--seeds must be a whole number; got 2.0"):
        experiment_sweep(read_recipe("overlap"), 2.0)
