"""Which pictures a run gets, what stands in them, and moving ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from pyro_bvae import plots
from pyro_bvae.datasets import Data
from pyro_bvae.evaluation import encode_data
from pyro_bvae.figures import run, save_samples, save_traversal, write_figures
from pyro_bvae.figures.base import save_png
from pyro_bvae.figures.run import _positions
from pyro_bvae.figures.traversals import Start, draw, find_start, traverse
from pyro_bvae.likelihoods import Bernoulli, Normal
from pyro_bvae.networks import mlp
from pyro_bvae.priors import Gaussian, Mixture
from pyro_bvae.vae import VAE

HISTORY = [{"step": k, "elbo": -1.0, "test_kl_z0": 1.0, "test_kl_z1": 0.5} for k in (1, 2)]
ALWAYS = {"data", "reconstructions", "samples", "training"}


def make_vae(x_shape, latent_dim, n_classes=0, prior=None):
    torch.manual_seed(0)
    parts = mlp(x_shape, latent_dim, n_classes)
    likelihood = Bernoulli() if len(x_shape) == 3 else Normal(0.1)
    return VAE(*parts, prior or Gaussian(latent_dim), likelihood, n_classes=n_classes)


def make_data(x_shape, labels=True, factors=None, names=()):
    x = np.random.default_rng(0).random((40, *x_shape)).astype(np.float32)
    return Data(x, np.arange(40) % 3 if labels else None, factors, names)


@pytest.fixture
def unsaved(monkeypatch):
    """Saving takes most of the time; the names are returned all the same."""
    monkeypatch.setattr(run, "save_png", lambda *args: None)


def names(tmp_path, vae, data, history=HISTORY):
    codes = encode_data(vae, data)
    return {path.stem for path in write_figures(tmp_path, vae, data, data, codes, history)}


GRID = np.stack([np.arange(40) // 8, np.arange(40) % 8], 1)


@pytest.mark.parametrize(
    ("x_shape", "latent_dim", "n_classes", "data", "extra"),
    [
        ((2,), 2, 0, {}, {"aggregate_posterior", "manifold"}),
        ((2,), 1, 0, {}, set()),
        (
            (5,),
            3,
            0,
            {},
            {"aggregate_posterior", "traversals", "class_means", "kl_per_latent"},
        ),
        ((1, 4, 4), 2, 0, {}, {"aggregate_posterior", "manifold", "traversals"}),
        ((3, 4, 4), 1, 0, {}, {"traversals"}),
        ((1, 4, 4), 3, 3, {}, {"aggregate_posterior", "traversals", "kl_per_latent"}),
        (
            (1, 4, 4),
            3,
            0,
            {"labels": False, "factors": GRID, "names": ("size", "hue")},
            {"aggregate_posterior", "traversals", "kl_per_latent", "factor_responses"},
        ),
        (
            (1, 4, 4),
            2,
            0,
            {"labels": False, "factors": GRID, "names": ("posX", "posY")},
            {"aggregate_posterior", "manifold", "traversals", "factor_responses", "position_maps"},
        ),
    ],
)
def test_a_run_gets_the_pictures_that_apply(
    x_shape, latent_dim, n_classes, data, extra, tmp_path, unsaved
):
    vae = make_vae(x_shape, latent_dim, n_classes)
    assert names(tmp_path, vae, make_data(x_shape, **data)) == ALWAYS | extra


def test_pictures_are_files_and_the_model_and_the_noise_stay_as_they_were(tmp_path):
    vae, data = make_vae((2,), 1), make_data((2,))
    codes = encode_data(vae, data)
    vae.train()
    before = torch.get_rng_state()
    paths = write_figures(tmp_path / "new", vae, data, data, codes, HISTORY)
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in paths)
    assert vae.training and torch.equal(torch.get_rng_state(), before)


def test_a_history_without_the_kl_of_latents_has_no_picture_of_it(tmp_path, unsaved):
    vae = make_vae((2,), 3)
    for history in ([{"step": 1, "elbo": -1.0}], HISTORY[:1]):  # nor has a single measurement
        assert "kl_per_latent" not in names(tmp_path, vae, make_data((2,)), history)


def test_positions_are_the_factors_of_that_name():
    factors = np.stack([np.arange(40) % k for k in (3, 8, 9)], 1)
    assert _positions(make_data((2,), factors=factors)) is None  # they may be anything
    assert _positions(make_data((2,), factors=factors, names=("a", "b", "c"))) is None
    assert _positions(make_data((2,), factors=factors, names=("PosY", "posX", "c"))) == [0, 1]
    assert _positions(make_data((2,))) is None


# What a traversal shows

METRICS = {"latents": 3, "kl_per_latent": [0.004, 0.2, 0.7], "active_latents": [1, 2]}


def test_a_traversal_starts_at_the_example_and_ends_at_the_span():
    vae = make_vae((1, 4, 4), 3).eval()
    x = np.full((1, 4, 4), 0.25, np.float32)
    start = Start(torch.tensor([0.1, 0.2, 0.3]), "held-out example 7", x)
    path = traverse(vae, METRICS, start, 5, span=2.0)
    assert path.row_labels == ["z2  0.7 nats", "z1  0.2 nats", "z0  0.00 nats"]
    assert path.column_labels == ["-2", "-1", "0", "1", "2"]
    assert "ordered by KL" in path.title and "held-out example 7" in path.title
    with torch.no_grad():
        mean = vae.p_x(torch.tensor([[0.1, -1.0, 0.3], [0.1, 0.2, 0.3]])).mean
    np.testing.assert_allclose(path.x[1, 1], mean[0], rtol=1e-5)
    np.testing.assert_allclose(path.start[1], mean[1], rtol=1e-5)
    (ax,) = draw(path).axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ["x", "recon.", *path.column_labels]
    canvas = ax.images[0].get_array()
    assert (canvas[5:9, :4] == 0.25).all()  # each row begins with x itself
    np.testing.assert_allclose(canvas[5:9, 15:19, 0], mean[0, 0], rtol=1e-5)


def test_a_traversal_can_be_cut_to_the_active_and_to_the_first():
    vae, start = make_vae((2,), 3), Start(torch.zeros(3), "z = 0")
    assert traverse(vae, METRICS, start, active=True).x.shape == (2, 9, 2)
    path = traverse(vae, METRICS, start, most=1)
    assert path.row_labels == ["z2  0.7 nats"] and "1 of 3" in path.title
    assert path.start is None


def test_values_follow_a_prior_that_is_not_standard():
    start = Start(torch.zeros(2), "z = 0")
    for prior, quantiles in ((Gaussian(2), False), (Mixture(2), True)):
        path = traverse(make_vae((2,), 2, prior=prior), {"latents": 2}, start, 3)
        assert path.column_labels == (["1 %", "", "99 %"] if quantiles else ["-3", "0", "3"])
    assert path.row_labels[0] == "z0\n-1.3 … 1.3"  # components at +-1 with standard deviation .17
    vae = make_vae((2,), 2)
    assert traverse(vae, {"latents": 2}, start, 3, quantiles=True).column_labels[0] == "1 %"


def test_the_start_is_an_example_or_zero():
    examples = {"x": np.ones((4, 2), np.float32), "labels": np.array([0, 2, 1, 1])}
    examples["loc"] = np.arange(12, dtype=np.float32).reshape(4, 3)
    vae = make_vae((2,), 3, n_classes=3)
    start = find_start(vae, examples, 1)
    assert start.z.tolist() == [3, 4, 5] and start.label == 2
    assert find_start(vae, examples, 1, 0).label == 0
    start = find_start(vae, None)
    assert start.z.tolist() == [0, 0, 0] and (start.label, start.x) == (0, None)
    assert find_start(make_vae((2,), 3), examples, 1).label is None
    with pytest.raises(ValueError, match="--example must be from 0 to 3; got 4"):
        find_start(vae, examples, 4)
    with pytest.raises(ValueError, match="--example must be 0, as this run holds none"):
        find_start(vae, None, 1)


def frames(path):
    """The frames of a GIF that shows each for .08 s."""
    with Image.open(path) as image:
        assert image.format == "GIF" and image.info["loop"] == 0
        out = []
        for k in range(image.n_frames):
            image.seek(k)
            assert image.info["duration"] == 80
            out.append(np.asarray(image.convert("RGB")).astype(int))
    return out


def test_a_gif_of_images_goes_there_and_back(tmp_path):
    vae, path = make_vae((1, 8, 8), 3).eval(), tmp_path / "x.gif"
    examples = {"x": np.full((1, 1, 8, 8), 0.25, np.float32)}
    examples["loc"] = np.zeros((1, 3), np.float32)
    save_traversal(path, vae, METRICS, examples, columns=6, span=3.0)
    shown = frames(path)
    assert len(shown) == 10
    for k in range(1, 5):
        np.testing.assert_array_equal(shown[k], shown[-k])
    # Two still cells, then the latents in order; a cell is 72 pixels, 6 apart.
    with torch.no_grad():
        mean = vae.p_x(torch.tensor([[0.0, 0.0, -3.0], [0.0, 0.0, 3.0]])).mean.numpy()
    for frame, image in ((shown[0], mean[0, 0]), (shown[5], mean[1, 0])):
        seen = frame[6 : 6 + 72 : 9, 6 + 2 * 78 : 6 + 2 * 78 + 72 : 9, 0]
        np.testing.assert_allclose(seen / 255, image, atol=0.036)  # a level of 31
        np.testing.assert_allclose(frame[6:78, 6:78] / 255, 0.25, atol=0.036)
    assert (shown[0] != shown[5]).any()


def test_a_gif_of_points_moves_over_still_axes(tmp_path):
    vae, path = make_vae((2,), 2).eval(), tmp_path / "x.gif"
    save_traversal(path, vae, {"latents": 2}, None, columns=3)
    shown = frames(path)
    assert len(shown) == 4
    np.testing.assert_array_equal(shown[1], shown[3])
    assert (shown[0] != shown[2]).any()
    assert all((frame[-40:] == shown[0][-40:]).all() for frame in shown)  # below: the axis's name


def test_points_are_shown_over_samples(tmp_path, monkeypatch):
    seen, curves = {}, plots.traversal_curves

    def watch(*args, **options):
        seen.update(options)
        return curves(*args, **options)

    monkeypatch.setattr(plots, "traversal_curves", watch)
    examples = {"x": np.ones((1, 2), np.float32), "loc": np.zeros((1, 2), np.float32)}
    save_traversal(tmp_path / "x.png", make_vae((2,), 2), {"latents": 2}, examples)
    assert seen["reference"].shape == (500, 2) and seen["reference_label"] == "samples"
    assert seen["start"].tolist() == [1, 1]


# Files


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"example": 1}, "--example must be 0"),
        ({"label": 0}, "--label needs a conditional model"),
        ({"columns": 1}, "--columns must be 2 or more"),
        ({"active": True}, "Measure the run first"),
    ],
)
def test_what_is_refused_leaves_no_folder(options, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        save_traversal(tmp_path / "new" / "x.png", make_vae((2,), 2), {}, None, **options)
    assert not list(tmp_path.iterdir())


def test_pixels_are_those_of_savefig(tmp_path):
    def draw():
        figure = Figure(figsize=(3, 2), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        image = axes[0].imshow(np.arange(6).reshape(2, 3))
        axes[1].plot([0, 1e4], [1, 2], label="a name")
        figure.colorbar(image, ax=axes, label="value")
        figure.legend(loc="outside lower center")
        return figure

    draw().savefig(tmp_path / "twice.png", dpi=150)
    save_png(draw(), tmp_path / "once.png")
    twice, once = (Image.open(tmp_path / name).convert("RGB") for name in ("twice.png", "once.png"))
    assert once.size == (450, 300) and np.array_equal(np.asarray(twice), np.asarray(once))


@pytest.mark.parametrize("suffix", ["png", "gif", "npz"])
def test_a_file_is_whole_or_stays_as_it_was(suffix, tmp_path, monkeypatch):
    def interrupted(place, *args, **options):
        Path(place).write_bytes(b"half")
        raise KeyboardInterrupt

    path, vae = tmp_path / f"x.{suffix}", make_vae((1, 4, 4), 2)
    path.write_bytes(b"before")

    def save():
        if suffix == "npz":
            save_samples(path, vae, 2)
        else:
            save_traversal(path, vae, {}, None, columns=2)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", lambda self, place, **options: interrupted(place))
        patch.setattr(np, "savez_compressed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save()
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
    save()
    assert len(path.read_bytes()) > 100 and list(tmp_path.iterdir()) == [path]
