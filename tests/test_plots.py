"""Properties of the figures that a wrong formula or a wrong axis would break."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.stats import norm

from pyro_bvae import plots

SQUARE = (-2.0, 2.0, -2.0, 2.0)


def mass(density, extent=SQUARE):
    n = len(density)
    return density.sum() * (extent[1] - extent[0]) * (extent[3] - extent[2]) / n**2


def draw(figure):
    """Render, so that layout and drawing errors (and warnings) surface."""
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    return figure


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_density_holds_the_mass_inside_the_extent():
    inside = (norm.cdf(2, 0.5, 0.7) - norm.cdf(-2, 0.5, 0.7)) * (
        norm.cdf(1, -0.3, 1.5) - norm.cdf(-1, -0.3, 1.5)
    )
    extent = (-2, 2, -1, 1)
    density = plots.aggregate_density(np.array([[0.5, -0.3]]), np.array([[0.7, 1.5]]), extent)
    assert density.shape == (300, 300)
    assert mass(density, extent) == pytest.approx(inside, rel=1e-10)
    assert mass(density, extent) < 1


def test_density_is_the_mixtures_at_the_right_cell():
    loc, scale = np.array([[1.0, -0.5], [-1.0, 0.0]]), np.array([[0.3, 0.2], [0.5, 0.4]])
    density = plots.aggregate_density(loc, scale, SQUARE)
    centres = (np.arange(300) + 0.5) * 4 / 300 - 2
    x, y = np.meshgrid(centres, centres)  # rows are y
    points = np.stack([x, y], -1)[:, :, None]
    oracle = norm.pdf(points, loc, scale).prod(-1).mean(-1)
    # The midpoint rule's error is h^2 / 24 times the Laplacian, at most 2 p / min(scale)^2 here.
    np.testing.assert_allclose(density, oracle, atol=(4 / 300) ** 2 / 12 / 0.04 * oracle.max())
    assert density[:, x[0] > 0].sum() > density[:, x[0] < 0].sum() * 0.99
    row, column = np.unravel_index(density.argmax(), density.shape)
    assert (centres[column], centres[row]) == pytest.approx((1.0, -0.5), abs=0.02)


@pytest.mark.parametrize("scale", [0.003, 1e-6])
def test_posteriors_narrower_than_a_cell_keep_their_mass(scale, rng):
    loc = rng.uniform(-1.9, 1.9, (50, 2))
    density = plots.aggregate_density(loc, np.full((50, 2), scale), SQUARE)
    assert mass(density) == pytest.approx(1, rel=1e-9)


def test_density_does_not_depend_on_the_chunks(rng):
    loc, scale = rng.normal(size=(5000, 2)), rng.uniform(0.1, 1, (5000, 2))
    parts = [plots.aggregate_density(loc[i::2], scale[i::2], SQUARE, 40) for i in (0, 1)]
    whole = plots.aggregate_density(loc, scale, SQUARE, 40)
    np.testing.assert_allclose(whole, np.mean(parts, axis=0), rtol=1e-9)


def test_aggregate_posterior_shows_the_density_and_labels_its_axes(rng):
    loc, scale = rng.normal(size=(100, 2)) * 3 + (4, 0), np.full((100, 2), 0.2)
    labels = np.arange(100) % 10
    figure = draw(plots.aggregate_posterior(loc, scale, labels=labels, names=("a", "b")))
    ax, bar = figure.axes
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert right - left == pytest.approx(top - bottom)
    assert left <= min(-2, loc[:, 0].min() - 0.6) and right >= loc[:, 0].max() + 0.6
    assert bottom <= min(-2, loc[:, 1].min() - 0.6) and top >= max(2, loc[:, 1].max() + 0.6)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("a", "b")
    assert bar.get_ylabel().startswith("density")
    extent = (left, right, bottom, top)
    np.testing.assert_allclose(
        ax.images[0].get_array(), plots.aggregate_density(loc, scale, extent), rtol=1e-9
    )
    assert ax.images[0].origin == "lower"
    assert len(ax.collections) == 10
    assert len({(c.get_facecolor().tobytes(), len(c.get_paths()[0])) for c in ax.collections}) == 10


def test_few_high_peaks_are_clipped_and_said_so():
    loc = np.zeros((100, 2))
    smooth, peaked = np.full((100, 2), 0.5), np.full((100, 2), 0.5)
    peaked[:2] = 0.001
    for scale, clipped in ((smooth, False), (peaked, True)):
        figure = draw(plots.aggregate_posterior(loc, scale))
        image = figure.axes[0].images[0]
        assert bool(image.norm.vmax < image.get_array().max()) is clipped
        assert ("clipped" in figure.axes[1].get_ylabel()) is clipped
        assert image.norm.vmax == pytest.approx(1 / (2 * np.pi * 0.25), rel=0.1)


def test_prior_lines_enclose_half_and_nine_tenths_of_its_mass():
    prior = lambda z: -0.5 * (z**2).sum(1) / 0.25  # noqa: E731, not normalised: it need not be
    figure = draw(plots.aggregate_posterior(np.zeros((1, 2)), np.ones((1, 2)), prior=prior))
    contours = next(c for c in figure.axes[0].collections if hasattr(c, "levels"))
    radii = sorted(np.linalg.norm(p.vertices, axis=1).mean() for p in contours.get_paths())
    # A 2-D Normal holds 1 - exp(-r^2 / 2 s^2) of its mass within r.
    np.testing.assert_allclose(radii, 0.5 * np.sqrt(-2 * np.log([0.5, 0.1])), rtol=0.01)
    assert "50 % and 90 %" in figure.legends[0].get_texts()[0].get_text()


def test_a_flat_prior_has_no_lines_and_the_callers_axes_are_used():
    figure = Figure()
    axes = figure.subplots(1, 2)
    flat = lambda z: np.zeros(len(z))  # noqa: E731
    arrays = np.zeros((3, 2)), np.ones((3, 2))
    assert plots.aggregate_posterior(*arrays, prior=flat, ax=axes[1]) is figure
    assert axes[1].images and not axes[0].images and not axes[1].collections


def history(n=100):
    rows = [{"step": 10 * i, "log_px_z": -50.0 - 40 * np.exp(-i / 30), "kl": 5.0} for i in range(n)]
    rows[0] |= {"log_px_z": -1e6, "kl": float("nan")}
    for row in rows[9::10]:
        row |= {"test_log_px_z": row["log_px_z"] - 1, "test_divergence": None}
    return rows


def test_training_curves_draw_the_history_and_keep_the_outlier_outside():
    rows = history()
    figure = draw(plots.training_curves(rows))
    log_px_z, kl = figure.axes  # a constant or an absent number gets no panel
    train, held_out = log_px_z.lines
    np.testing.assert_array_equal(train.get_xdata(), [row["step"] for row in rows])
    np.testing.assert_array_equal(train.get_ydata(), [row["log_px_z"] for row in rows])
    np.testing.assert_array_equal(held_out.get_xdata(), np.arange(9, 100, 10) * 10)
    assert train.get_marker() in ("", "None") and held_out.get_marker() == "o"
    assert (log_px_z.get_xlabel(), log_px_z.get_ylabel()) == ("step", "nats per example")
    low, high = log_px_z.get_ylim()
    assert -200 < low < rows[-1]["log_px_z"] - 1 < rows[-1]["log_px_z"] < high
    assert len(kl.lines[0].get_ydata()) == 99  # the NaN is left out
    assert kl.get_ylim()[0] < 5 < kl.get_ylim()[1]


def test_a_late_jump_is_inside_and_a_calm_start_is_not_cut():
    jump = [{"step": i, "elbo": 0.1 * (i % 2) if i < 199 else 90.0} for i in range(200)]
    low, high = draw(plots.training_curves(jump)).axes[0].get_ylim()
    assert low < 0 and high > 90
    calm = [{"step": i, "elbo": float(i)} for i in range(20)]
    low, high = draw(plots.training_curves(calm)).axes[0].get_ylim()
    assert low < 0 and high > 19


def test_scheduled_numbers_have_a_panel_only_if_they_vary():
    rows = [{"step": i, "divergence": 1.0, "beta": i / 9, "alpha": 3.0} for i in range(10)]
    divergence, scheduled = draw(plots.training_curves(rows)).axes
    assert divergence.get_ylabel() == "D(q(z), p(z))"
    assert [line.get_label() for line in scheduled.lines] == ["β"]


def test_images_stand_where_they_belong(rng):
    x = rng.random((13, 1, 8, 8))
    figure = draw(plots.reconstructions(x, 1 - x))
    (ax,) = figure.axes
    canvas = ax.images[0].get_array()
    assert canvas.shape == (4 * 9 - 1, 10 * 9 - 1, 3)
    np.testing.assert_array_equal(canvas[18:26, 18:26], np.repeat(x[12].transpose(1, 2, 0), 3, 2))
    np.testing.assert_allclose(canvas[27:35, 18:26], 1 - canvas[18:26, 18:26])
    assert canvas[18:, 27:].min() == 1  # white where a row is short
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels == ["x", "reconstruction"] * 2


def test_traversals_take_colour_and_label_rows_and_columns(rng):
    images = rng.random((2, 3, 3, 16, 16))
    ax = draw(plots.traversals(images, ["z0", "z1"], ["x", "-3", "3"])).axes[0]
    np.testing.assert_array_equal(
        ax.images[0].get_array()[17:, 34:], images[1, 2].transpose(1, 2, 0)
    )
    assert [text.get_text() for text in ax.get_xticklabels()] == ["x", "-3", "3"]
    with pytest.raises(ValueError, match=r"labels must number \(2, 3\).*got \(1, 3\)"):
        plots.traversals(images, ["z0"])


def test_vectors_are_shown_by_principal_components(rng):
    x = rng.normal(size=(500, 5)) * [1, 10, 0.1, 3, 0.1]
    ax = draw(plots.data(x)).axes[0]
    shown = np.asarray(ax.collections[0].get_offsets())
    np.testing.assert_allclose(shown.var(0), [100, 9], rtol=0.2)
    assert ax.get_xlabel() == "principal component 1"
    draw(plots.data(x[:, :1]))


def test_points_keep_their_coordinates_and_share_axes(rng):
    x, labels = rng.normal(size=(40, 2)), np.repeat(["a", "b"], 20)
    left, right = draw(plots.reconstructions(x, x / 2, labels)).axes
    np.testing.assert_array_equal(left.collections[1].get_offsets(), x[20:])
    assert left.get_xlim() == right.get_xlim() and left.get_aspect() == 1
    (ax,) = draw(plots.samples(x, reference=x + 1)).axes
    assert len(ax.collections) == 2 and ax.get_title() == "samples from the prior"
    (many,) = draw(plots.data(x, rng.normal(size=40))).axes
    assert len(many.collections) == 1  # forty kinds of label: colours, no legend
    assert many.get_legend() is None


def test_class_means_are_the_means_of_each_class():
    codes = np.array([[1.0, -2.0], [-3.0, 0.0], [5.0, 5.0]])
    figure = draw(plots.class_means(codes, np.array([0, 0, 2]), ["zero", "one", "two"]))
    heights = [[bar.get_height() for bar in ax.patches] for ax in figure.axes]
    assert heights == [[2, 1], [5, 5]]
    assert [ax.get_ylabel() for ax in figure.axes] == ["zero", "two"]


def test_density_grid_has_one_square_panel_each():
    panel = ("β = 1", np.zeros((4, 2)), np.full((4, 2), 0.1))
    figure = draw(plots.density_grid([panel] * 7, 4))
    assert len(figure.axes) == 7
    assert figure.axes[0].images[0].get_extent() == [-2, 2, -2, 2]
    assert not len(figure.axes[0].get_xticks())


POINTS = np.zeros((4, 2))
NAN = np.array([[0.0, np.nan]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.data(NAN), "x must be finite; got 1 NaN or infinite values of 2"),
        (lambda: plots.data(np.zeros((0, 2))), "x must be a non-empty array"),
        (lambda: plots.data(POINTS, np.zeros(3)), r"labels must be \(4,\); got \(3,\)"),
        (lambda: plots.data(np.full((1, 1, 4, 4), 255, np.uint8)), "integers up to 255"),
        (lambda: plots.data(np.zeros((1, 2, 4, 4))), "x must have 1 or 3 channels"),
        (lambda: plots.reconstructions(POINTS, POINTS[:2]), "x_hat must have the shape of x"),
        (lambda: plots.samples(POINTS, reference=np.zeros((4, 3))), "reference must have"),
        (lambda: plots.aggregate_density(POINTS, POINTS, SQUARE), "scale must be positive; got"),
        (lambda: plots.aggregate_posterior(NAN, NAN + 1), "loc must be finite"),
        (lambda: plots.aggregate_posterior(np.ones((4, 3)), np.ones((4, 3))), r"both be \(n, 2\)"),
        (lambda: plots.density_grid([], 4), "panels must not be empty"),
        (lambda: plots.training_curves([]), "history must have finite terms"),
        (lambda: plots.training_curves([{"step": 1, "kl": np.nan}]), "history must have finite"),
        (lambda: plots.class_means(POINTS, np.arange(4), ["a"]), "class_names must name"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match="plots: .*" + message):
        call()


def test_no_global_state_is_touched():
    before = dict(matplotlib.rcParams)
    draw(plots.data(POINTS + np.arange(4)[:, None]))
    assert dict(matplotlib.rcParams) == before
    loaded = "{'matplotlib.pyplot', 'torch'} & set(sys.modules)"
    code = f"import sys, pyro_bvae.plots; print(not {loaded})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True"
