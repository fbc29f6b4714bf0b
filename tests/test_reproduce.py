"""Experiments made again, on runs of two steps: the table against metrics.json, pictures, going on."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pyro_bvae.cli.main import main

from pyro_bvae import recipes, reproduce, runs
from pyro_bvae.datasets import Data, render_dsprites
from pyro_bvae.datasets.dsprites import FACTORS, N_IMAGES, SIZES
from pyro_bvae.recipes import experiment_sweep, read_recipe, read_setting
from pyro_bvae.reproduce import Outcome, measure_experiment, results_table, write_results
from pyro_bvae.sweep import run_sweep


def shortened(recipe, most=99, **options):
    """The same with two steps a run, and few seeds and settings."""
    options = {"steps": 2, "epochs": None, "batch_size": 16} | options
    kept = list(recipe.settings.items())[:most]
    settings = {name: dataclasses.replace(c, **options) for name, c in kept}
    return dataclasses.replace(recipe, settings=settings, seeds=2)


@pytest.fixture
def short(monkeypatch, tmp_path):
    read = recipes.read_recipe
    monkeypatch.setattr(recipes, "read_recipe", lambda *name: shortened(read(*name), 2))
    monkeypatch.chdir(tmp_path)
    return lambda *a: CliRunner().invoke(main, ["reproduce", *map(str, a)], prog_name="pyro-bvae")


def parsed(page):
    """Cells of the first table of a page, by row and column."""
    lines = [re.split(r" \| ", line[2:-2]) for line in page.splitlines() if line.startswith("| ")]
    head, _, *rows = lines
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def test_an_experiment_from_the_command_line(short, tmp_path, without_figures):
    result = short("overlap", "--scale", "small")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "runs" / "overlap-small"
    page = (folder / "results.md").read_text()
    assert "pyro-bvae reproduce overlap --scale small --seeds 2" in page
    assert "https://arxiv.org/abs/1812.02833" in page and "Runs: 4;" in page and "torch" in page
    table = parsed(page)
    assert list(table) == list(read_recipe("overlap").settings)[:2]
    # the mean over the two seeds of what metrics-on-train.json says, with its standard error
    values = [
        json.loads((folder / f"beta-0.5_alpha-3_seed-{s}" / "metrics-on-train.json").read_text())[
            "kl"
        ]
        for s in (0, 1)
    ]
    mean, error = map(float, table["right"]["rate E KL"].split(" ± "))
    assert mean == pytest.approx(np.mean(values), rel=1e-2)
    assert error == pytest.approx(abs(values[0] - values[1]) / 2, rel=0.06)
    assert np.asarray(Image.open(folder / "densities.png").convert("L")).std() > 5
    assert "![densities](densities.png)" in page

    again = short("overlap", "--scale", "small")
    assert "0 runs to train, 4 finished before" in again.output and "Measuring" not in again.output
    assert (folder / "results.md").read_text() == page
    more = short("overlap", "--scale", "small", "--seeds", 3)
    assert "2 runs to train, 4 finished before" in more.output
    assert more.output.count("Measuring") == 2


def test_runs_that_fail_are_told_and_the_others_shown(
    short, tmp_path, monkeypatch, without_figures
):
    train = runs.train

    def failing(config, out=None, **how):
        if config.beta == 0 or config.seed == 1:
            raise ValueError("--steps is wrong today")
        return train(config, out, **how)

    monkeypatch.setattr(runs, "train", failing)
    result = short("overlap")
    assert result.exit_code == 1 and "--steps is wrong today" in result.output
    table = parsed((tmp_path / "runs" / "overlap-full" / "results.md").read_text())
    assert [table[row]["runs"] for row in ("too-little", "right")] == ["0", "1"]
    assert float(table["right"]["rate E KL"]) > 0 and table["too-little"]["rate E KL"] == "–"


def test_where_no_run_finished_there_is_a_table_and_no_picture(short, tmp_path, monkeypatch):
    def failing(config, out=None, **how):
        raise FloatingPointError("the loss must be finite")

    monkeypatch.setattr(runs, "train", failing)
    assert short("overlap").exit_code == 1
    folder = tmp_path / "runs" / "overlap-full"
    assert "No run has finished." in (folder / "results.md").read_text()
    assert not list(folder.glob("*.png"))


def test_it_goes_on_on_another_device(short, tmp_path, without_figures):
    assert short("overlap", "--device", "cpu", "--seeds", 1).exit_code == 0
    again = short("overlap", "--device", "auto", "--seeds", 1)
    assert again.exit_code == 0 and "0 runs to train, 2 finished before" in again.output


def test_a_data_folder_is_no_matter_to_data_made_here(short, without_figures):
    assert short("overlap", "--data-dir", "none", "--download", "--seeds", 1).exit_code == 0


def test_an_interruption_while_measuring_keeps_what_was_measured(
    short, tmp_path, monkeypatch, without_figures
):
    measure, measured = reproduce.measured.measure_run, []

    def interrupted(path, *rest, **how):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(path)
        return measure(path, *rest, **how)

    monkeypatch.setattr(reproduce.measured, "measure_run", interrupted)
    result = short("overlap")
    assert result.exit_code == 130 and "keeps what was measured" in result.output
    monkeypatch.setattr(reproduce.measured, "measure_run", measure)
    again = short("overlap")
    assert again.exit_code == 0 and again.output.count("Measuring") == 2
    assert (tmp_path / "runs" / "overlap-full" / "results.md").is_file()


def test_of_each_setting_the_median_run_is_drawn(short, tmp_path, monkeypatch, without_figures):
    drawn = []
    monkeypatch.setattr(
        "pyro_bvae.plots.density_grid", lambda panels, columns: drawn.extend(panels)
    )
    assert short("overlap", "--seeds", 3).exit_code == 0
    for name, folder in (("too-little", "beta-0_alpha-0.5"), ("right", "beta-0.5_alpha-3")):
        files = [
            tmp_path / f"runs/overlap-full/{folder}_seed-{s}/metrics-on-train.json"
            for s in range(3)
        ]
        likelihoods = [json.loads(file.read_text())["log_px_z"] for file in files]
        median = likelihoods.index(sorted(likelihoods)[1])
        assert f"{name}, seed {median}" in [panel[0] for panel in drawn]


def test_settings_name_what_is_not_the_same_and_no_capacity_where_there_is_none(tmp_path):
    recipe = read_recipe("mnist-objectives")
    page = write_results(recipe, [Outcome("vae", None, [], [])], tmp_path).read_text()
    assert "- vae: beta 1\n- beta-4: beta 4\n" in page
    assert (
        "- capacity-relu: beta 1, gamma 100, capacity 20, capacity_ramp 0.2, penalty relu" in page
    )
    assert (
        "- alpha-5: beta 0, alpha 5\n"
        in write_results(read_recipe("spirals-clustering"), [], tmp_path).read_text()
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("celeba", "--data-dir", "none"), "celeba: .*must"),
        (("mnist-objectives", "--data-dir", "none"), "mnist: none/MNIST/raw must hold"),
        (("overlap", "--device", "cuda:99"), "--device cuda:99 must be"),
        (("overlap", "--seeds", 10**12), "there must be 1 to 10,000 runs"),
    ],
)
def test_bad_input_is_refused_before_any_run(short, arguments, sentence, tmp_path):
    result = short(*arguments)
    assert result.exit_code == 2
    assert re.search(sentence, " ".join(result.output.split())), result.output
    assert not list(tmp_path.iterdir())


@pytest.fixture
def few_sprites(monkeypatch):
    """900 of the images; a metric needs some rows of each factor's values."""
    rows = np.random.default_rng(0).choice(N_IMAGES, 900, replace=False)
    factors = np.stack(np.unravel_index(rows, SIZES), 1)
    x = render_dsprites(rows)[:, None] * np.uint8(255)
    data = Data(x, factors=factors, factor_names=tuple(FACTORS))
    monkeypatch.setattr(
        "pyro_bvae.build.load_dataset",
        lambda name, **options: (data.subset(np.arange(300)), data.subset(np.arange(300, 900))),
    )


@pytest.mark.slow
def test_baselines_stand_beside_the_models_and_the_published(
    few_sprites, without_figures, tmp_path
):
    recipe = shortened(read_recipe("dsprites-higgins", "small"))
    # raw pixels are 4,096 codes, which take minutes to score
    recipe = dataclasses.replace(recipe, baselines=("factors", "pca", "untrained"))
    rows = run_sweep(experiment_sweep(recipe), tmp_path / "out")
    told = []
    outcomes = measure_experiment(recipe, rows, told.append)
    names = ["vae", "beta-4", "factors", "pca", "untrained"]
    assert [o.name for o in outcomes] == [*names, "pixels", "ica", "DC-IGN", "InfoGAN"]
    assert len(told) == 4 + 6
    score = "scores.beta-vae-score"
    assert outcomes[2].value(score) == (1.0, 0.0)  # the factors themselves
    for outcome in outcomes[3:5]:
        assert 1 / 6 < outcome.value(score)[0] <= 1 and len(outcome.numbers) == 2
    assert outcomes[-1].value(score) is None
    head, *lines = results_table(recipe, outcomes)
    assert head == ["", "runs", "BetaVAE score", "published"]
    assert lines[2] == ["factors", "2", "1", "1"]
    assert lines[-1] == ["InfoGAN", "not ours", "–", "0.735 ± 0.009"]
    told.clear()
    assert measure_experiment(recipe, rows, told.append) == outcomes and not told
    page = write_results(recipe, outcomes, tmp_path / "out").read_text()
    assert "DC-IGN | not ours | – | 0.993 ± 0.001" in page


PICTURES = [
    ("mnist-objectives", ["compared", "reconstructions"]),
    ("fashion-sparsity", ["against-alpha"]),
    ("rate-distortion", ["rate-distortion"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "figures"), PICTURES)
def test_pictures_of_images(name, figures, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)

    def loaded(dataset, **options):
        x = rng.integers(0, 256, (40, 1, 32, 32)).astype(np.uint8)
        return Data(x, np.arange(40) % 10), Data(x[:20], np.arange(20) % 10)

    monkeypatch.setattr("pyro_bvae.build.load_dataset", loaded)
    recipe = shortened(read_recipe(name), compile=False)
    rows = run_sweep(experiment_sweep(recipe, 1), tmp_path / "out")
    page = write_results(recipe, measure_experiment(recipe, rows), tmp_path / "out").read_text()
    shown = re.findall(r"!\[.*\]\((.*)\)", page)
    expected = {f"{figure}.png" for figure in figures}
    expected |= {
        f"{row}-{figure.replace('_', '-')}.png"
        for row in recipe.settings
        for figure in recipe.run_figures
        if figure != "kl_per_latent"  # one record has no curve to show
    }
    assert expected <= set(shown)
    for file in shown:
        assert np.asarray(Image.open(tmp_path / "out" / file).convert("L")).std() > 5


def test_a_value_is_a_mean_over_runs_that_all_have_it():
    two = Outcome("x", None, [], [{"kl": 1.0, "nmi": 1.0}, {"kl": 2.0}])
    assert two.value("kl") == (1.5, 0.5) and two.value("nmi") is None
    assert Outcome("x", None, [], [{"kl": 1.0}, {"kl": math.nan}]).value("kl") is None
    one = Outcome("x", None, [], [{"kl": 1.0}])
    assert one.value("kl") == (1.0, None) and Outcome("x", None, [], []).value("kl") is None


def test_published_numbers_keep_their_digits():
    recipe = read_recipe("dsprites-higgins")
    outcomes = [Outcome(name, None, [], []) for name in recipe.published]
    shown = {line[0]: line[-1] for line in results_table(recipe, outcomes)[1:]}
    assert (shown["ica"], shown["factors"]) == ("0.4203 ± 0.106", "1")
    line = results_table(read_recipe("mnist-objectives"), [Outcome("vae", None, [], [])])[1]
    assert line[3:] == ["76.72", "–", "2159"]


def test_experiments_differ_by_seed_and_setting():
    sweep = experiment_sweep(read_recipe("spirals-clustering"), 2, device="cpu")
    assert sweep.varied == ("beta", "alpha") and len(sweep.configs) == 16
    assert [c.seed for c in sweep.configs[:4]] == [0, 1, 0, 1]
    assert sweep.configs[15] == dataclasses.replace(
        read_setting("spirals-clustering/alpha-8"), seed=1, device="cpu"
    )
    assert math.prod(SIZES) == N_IMAGES
