"""Pictures of latents and of several models, compared with what is worked out by hand."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from pyro_bvae import plots
from pyro_bvae.plots.names import spread


def draw(figure):
    """Render, so that layout and drawing errors (and warnings) surface."""
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    return figure


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# Decoded places


def test_manifold_of_images_has_the_second_latent_growing_upwards(rng):
    x = rng.random((3, 4, 1, 16, 16))
    values = np.linspace(-1.5, 1.5, 4), np.array([-2.0, 0.0, 2.0])
    (ax,) = draw(plots.manifold(x, values, names=("z5", "z2"))).axes
    canvas = ax.images[0].get_array()
    np.testing.assert_array_equal(canvas[:16, -16:, 0], x[2, 3, 0])  # top right: both highest
    np.testing.assert_array_equal(canvas[-16:, :16, 0], x[0, 0, 0])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["2.0", "", "-2.0"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["-1.5", "", "0.5", ""]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("z5", "z2")


def test_manifold_of_points_is_a_mesh_coloured_by_each_latent(rng):
    across, up = np.array([-1.0, 0.0, 1.0]), np.array([2.0, 4.0])
    x = np.stack(np.broadcast_arrays(10 * across[None], up[:, None]), -1)  # x = (10 z0, z1)
    left, right, bar = draw(plots.manifold(x, (across, up), reference=x[0])).axes
    for ax, values, coordinate, scale in ((left, across, 0, 10), (right, up, 1, 1)):
        _, mesh = ax.collections
        assert len(mesh.get_segments()) == len(values)
        for line, value in zip(mesh.get_segments(), mesh.get_array(), strict=True):
            assert (line[:, coordinate] == scale * value).all()
        np.testing.assert_array_equal(mesh.get_array(), values)
        np.testing.assert_array_equal(ax.collections[0].get_offsets(), x[0])
        assert np.ptp(ax.get_xlim()) == pytest.approx(np.ptp(ax.get_ylim()))
        assert ax.get_xlim()[0] < -10 and ax.get_xlim()[1] > 10
    assert bar.get_ylim() == (-1, 4)


def test_a_fine_mesh_shows_fifteen_smooth_lines(rng):
    x = rng.random((45, 45, 2))
    values = np.linspace(-1, 1, 45)
    mesh = plots.manifold(x, (values, values)).axes[0].collections[0]
    assert len(mesh.get_segments()) == 15
    np.testing.assert_array_equal(mesh.get_segments()[-1], x[:, 44])


def test_traversal_curves_run_through_the_decoded_points(rng):
    x, reference = rng.normal(size=(8, 5, 2)), rng.normal(size=(20, 2))
    labels = [f"z{k}" for k in range(8)]
    columns = ["-3", "", "0", "", "3"]
    figure = draw(
        plots.traversal_curves(x, labels, columns, start=x[0, 0] + 1, reference=reference)
    )
    (ax,) = figure.axes
    curves = {line.get_label(): line for line in ax.lines}
    for label, row in zip(labels, x, strict=True):
        np.testing.assert_array_equal(curves[label].get_xydata(), row)
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), reference)
    np.testing.assert_array_equal(curves["x"].get_xydata(), [x[0, 0] + 1])
    ends = ax.lines[1], ax.lines[2]  # of the first curve, hollow then filled
    assert ends[0].get_markerfacecolor() == "white" != ends[1].get_markerfacecolor()
    np.testing.assert_array_equal(ends[1].get_xydata(), [x[0, -1]])
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == ["data", *labels, "-3", "3", "x"]
    assert len({(curves[k].get_color(), curves[k].get_linestyle()) for k in labels}) == 8


def test_traversal_curves_of_vectors_lie_in_the_plane_of_the_reference(rng):
    reference = rng.normal(size=(500, 4)) * [0.1, 10, 0.1, 3]
    x = np.zeros((1, 3, 4))
    x[0, :, 1] = [-5, 0, 5]
    (ax,) = draw(plots.traversal_curves(x, ["z0"], ["a", "b", "c"], reference=reference)).axes
    assert ax.get_xlabel() == "principal component 1"
    moved = np.ptp(ax.lines[0].get_xydata(), axis=0)
    # The components tilt by about the ratio of the variances over sqrt(n).
    np.testing.assert_allclose(moved, [10, 0], atol=0.3)


# The training


def kl_history(capacity=None):
    rows = [{"step": 10 * i, "kl": 1.0} for i in range(1, 11)]
    for i, row in enumerate(rows[1::2]):
        row |= {f"test_kl_z{k}": float((i + 1) * (k + 1)) for k in range(14)}
    for i, row in enumerate(rows if capacity else []):
        row["capacity"] = min(2.0 * (i + 1), capacity)
    return rows


def test_kl_per_latent_names_the_largest_and_greys_the_rest():
    (ax,) = draw(plots.kl_per_latent(kl_history())).axes
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_array_equal(lines["z13"].get_xdata(), [20, 40, 60, 80, 100])
    np.testing.assert_array_equal(lines["z13"].get_ydata(), 14 * np.arange(1, 6))
    assert ax.get_xlabel() == "step" and "nats" in ax.get_ylabel()
    names = {text.get_text(): text for text in ax.texts}
    assert set(names) == {f"z{k}" for k in range(2, 14)}  # twelve of fourteen
    assert {lines[k].get_color() for k in ("z0", "z1")} == {"0.8"}
    assert all(names[k].get_color() == lines[k].get_color() for k in names)
    boxes = sorted((t.get_window_extent() for t in ax.texts), key=lambda box: box.y0)
    assert all(a.y1 <= b.y1 and a.y0 + 8 < b.y0 for a, b in zip(boxes, boxes[1:], strict=False))
    heights = [names[f"z{k}"].get_position()[1] for k in range(2, 14)]
    assert heights == sorted(heights)


def test_kl_per_latent_stands_against_the_capacity_while_it_rises():
    (ax,) = draw(plots.kl_per_latent(kl_history(capacity=12.0))).axes
    line = next(line for line in ax.lines if line.get_label() == "z13")
    # C = 2 a record up to 12 at step 60; held-out terms at steps 20, 40, 60 and two after it.
    np.testing.assert_array_equal(line.get_xdata(), [4, 8, 12])
    np.testing.assert_array_equal(line.get_ydata(), [14, 28, 42])
    ends = [tuple(o.get_xydata()[0]) for o in ax.lines if o.get_marker() == "o"]
    assert (12, 70) in ends  # the last record's value, at C's largest
    assert ax.get_xlabel().startswith("C (nats)")
    # C is as good as risen at step 40: the next record, long after it, would stand above that one
    risen = [row | {"capacity": min(row["step"] / 40, 1) * 11.95} for row in kl_history()]
    risen[-1]["capacity"] = 12.0
    (ax,) = draw(plots.kl_per_latent(risen)).axes
    line = next(line for line in ax.lines if line.get_label() == "z13")
    np.testing.assert_allclose(line.get_xdata(), [5.975, 11.95])
    flat = [row | {"capacity": 5.0} for row in kl_history()]
    assert plots.kl_per_latent(flat).axes[0].get_xlabel() == "step"


def test_names_are_moved_apart_by_no_more_than_they_must():
    np.testing.assert_allclose(spread(np.array([0.0, 1.0, 2.0]), 0.5, -1, 3), [0, 1, 2])
    np.testing.assert_allclose(spread(np.array([5.0, 5.0, 5.0]), 1.0, 0, 6), [4, 5, 6])
    np.testing.assert_allclose(spread(np.array([1.0, 0.9]), 0.5, 0, 6), [1.4, 0.9])


# Several models

MODELS = [
    ("β = 0.25", 24.1, 71.2, 0.1, 0.4),
    ("β = 0.5", 20.3, 73.9, 0.1, 0.4),
    ("β = 1", 17.2, 76.7, 0.1, 0.4),
    ("β = 4", 7.5, 99.0, 0.1, 0.6),
    ("capacity, γ = 100", 19.9, 74.3, 0.1, 0.4),
    ("one-sided capacity", 20.0, 73.9, 0.1, 0.4),
    ("VAE", 17.3, 76.5, 0.1, 0.4),
    ("mixture prior", 16.8, 77.3, 0.1, 0.4),
]


def test_rate_distortion_draws_points_bars_and_lines_of_equal_elbo():
    (ax,) = draw(plots.rate_distortion(MODELS)).axes
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [m[1:3] for m in MODELS])
    bars = [np.array(c.get_segments()) for c in ax.collections if hasattr(c, "get_segments")]
    np.testing.assert_allclose(np.ptp(bars[0][:, :, 0], axis=1), [2 * m[3] for m in MODELS])
    np.testing.assert_allclose(np.ptp(bars[1][:, :, 1], axis=1), [2 * m[4] for m in MODELS])
    equal = [line for line in ax.lines if hasattr(line, "get_slope")]
    assert len(equal) >= 3 and {line.get_slope() for line in equal} == {-1}
    sums = [sum(line.get_xy1()) for line in equal]
    step = float(equal[0].get_label().split(", ")[1].split()[0])
    np.testing.assert_allclose(np.diff(sums), step)
    np.testing.assert_allclose(np.array(sums) % step, 0, atol=1e-9)
    assert "nats" in ax.get_xlabel() and "nats" in ax.get_ylabel()


def test_names_cover_neither_points_nor_each_other():
    (ax,) = draw(plots.rate_distortion(MODELS)).axes
    texts = [t for t in ax.texts if t.get_text()]
    assert [t.get_text() for t in texts] == [m[0] for m in MODELS]
    pixels = ax.transData.transform([m[1:3] for m in MODELS])
    boxes = [Text.get_window_extent(t) for t in texts]  # the annotation's own holds its arrow too
    for k, box in enumerate(boxes):
        assert not any(box.contains(*point) for point in pixels)
        assert not any(box.overlaps(other) for other in boxes[:k])
        gaps = [np.hypot(*np.clip([box.min - p, p - box.max], 0, None).max(0)) for p in pixels]
        assert np.argmin(gaps) == k


def test_models_without_errors_and_one_alone_are_drawn():
    (ax,) = draw(plots.rate_distortion([("one", 3.0, -4.0)])).axes
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [(3, -4)])
    assert ax.get_ylim()[0] < -4 < ax.get_ylim()[1]


# Factors


def test_responses_are_means_and_deviations_at_each_value():
    factors = np.array([[0, 7, 0], [0, 7, 1], [2, 7, 0], [2, 7, 1]])
    codes = np.array([[1.0, 5.0], [3.0, 5.0], [-1.0, 5.0], [-1.0, 5.0]])
    figure = draw(
        plots.factor_responses(
            codes, factors, ["size", "colour", "x"], order=[1, 0], row_labels=["z1  0 nats", "z0"]
        )
    )
    panels = np.array(figure.axes).reshape(2, 2)  # the constant factor has no column
    assert [ax.get_title() for ax in panels[0]] == ["size", "x"]
    assert [ax.get_ylabel() for ax in panels[:, 0]] == ["z1\n0 nats", "z0"]
    np.testing.assert_array_equal(panels[0, 0].lines[0].get_xydata(), [(0, 5), (2, 5)])
    np.testing.assert_array_equal(panels[1, 0].lines[0].get_xydata(), [(0, 2), (2, -1)])
    np.testing.assert_array_equal(panels[1, 1].lines[0].get_xydata(), [(0, 0), (1, 1)])
    band = panels[1, 1].collections[0].get_paths()[0].vertices
    assert {tuple(p) for p in band} >= {(0, -1), (0, 1), (1, -1), (1, 3)}  # sd 1 and 2
    assert panels[0, 0].get_ylim() == panels[1, 1].get_ylim()


def test_position_maps_are_cell_means_on_one_symmetric_scale():
    rows, columns = (v.ravel() for v in np.mgrid[0:2, 0:3].repeat(20, axis=2))
    keep = ~((rows == 1) & (columns == 2))
    rows, columns = rows[keep], columns[keep]
    codes = np.stack([rows - 10.0 * columns, np.full(len(rows), 3.0)], 1)
    codes[:, 0] += np.tile([-1, 1], len(rows) // 2)  # its mean in every cell is 0
    figure = draw(plots.position_maps(codes, rows, columns, order=[0, 1], names=("y", "x")))
    first, second, bar = figure.axes
    cells = np.ma.filled(first.images[0].get_array(), np.nan)
    np.testing.assert_allclose(cells, [[0, -10, -20], [1, -9, np.nan]])
    assert first.images[0].get_extent() == [-0.5, 2.5, 1.5, -0.5]  # y grows downwards
    for ax in (first, second):
        low, high = ax.images[0].get_clim()
        assert low == -high and 19 < high <= 20
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("x", "y")
    assert bar.get_ylabel() == "mean code"


def test_position_maps_merge_neighbours_where_rows_are_few(rng):
    rows, columns = rng.integers(0, 8, 128), rng.integers(0, 8, 128)
    codes = rng.normal(size=(128, 1))
    figure = draw(plots.position_maps(codes, rows, columns))
    (ax, _), title = figure.axes, figure.get_suptitle()
    assert title == "mean code over posX and posY, 2 × 2 values a cell"
    cells = ax.images[0].get_array()
    assert cells.shape == (4, 4)  # 128 rows in 64 cells: two values a side make it 8 a cell
    inside = (rows // 2 == 1) & (columns // 2 == 3)
    assert cells[1, 3] == pytest.approx(codes[inside].mean())
    assert ax.images[0].get_extent() == [-0.5, 7.5, 7.5, -0.5]
    # a cell is named by the two values it holds, at the middle of the two
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0–1", "2–3", "4–5", "6–7"]
    assert ax.get_xticks().tolist() == [0.5, 2.5, 4.5, 6.5]


def test_position_maps_name_values_wherever_they_lie(rng):
    rows, columns = (v.ravel() for v in np.mgrid[0:3, 0:5].repeat(10, axis=2))
    codes = np.stack([rows, rng.normal(size=len(rows))], 1)
    first, second, _ = draw(plots.position_maps(codes, 4 * rows, 10 * columns - 7)).axes
    assert [t.get_text() for t in first.get_yticklabels()] == ["0", "4", "8"]
    assert first.get_yticks().tolist() == [0, 1, 2]
    # of five, the first, the last, and two between
    assert second.get_xticks().tolist() == [0, 1, 3, 4]
    assert [t.get_text() for t in second.get_xticklabels()] == ["-7", "3", "23", "33"]
    assert (first.get_xlim(), first.get_ylim()) == ((-0.5, 4.5), (2.5, -0.5))
    # three values in cells of two: the last cell holds one
    few = plots.position_maps(codes[::10], rows[::10] * 4, columns[::10] * 0 + 3)
    assert [t.get_text() for t in draw(few).axes[0].get_yticklabels()] == ["0–4", "8"]
    assert [t.get_text() for t in few.axes[0].get_xticklabels()] == ["3"]


def test_the_latents_that_vary_most_are_shown_first(rng):
    codes = rng.normal(size=(300, 12)) * np.arange(1, 13)
    figure = plots.factor_responses(codes, rng.integers(0, 3, (300, 1)))
    assert [ax.get_ylabel() for ax in figure.axes] == [f"z{k}" for k in range(11, 1, -1)]


CODES, FACTORS, HALF = np.zeros((4, 2)), np.arange(8).reshape(4, 2), np.zeros((2, 2, 3))
GRID = np.zeros(2), np.ones(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.manifold(HALF, (np.zeros(3), np.ones(2))), r"values must number \(2, 2\)"),
        (lambda: plots.manifold(HALF[0], GRID), "x must be a non-empty array of 3 or 5 dim"),
        (lambda: plots.manifold(HALF, GRID, reference=CODES), "reference must have 3 columns"),
        (lambda: plots.traversal_curves(HALF, ["a"], ["b", "c"]), r"labels must number \(2, 2\)"),
        (
            lambda: plots.traversal_curves(HALF, ["a"] * 2, ["b"] * 2, start=np.zeros(2)),
            "start must have 3 columns",
        ),
        (lambda: plots.kl_per_latent([{"step": 1, "kl": 2.0}]), "history must have finite test_kl"),
        (lambda: plots.rate_distortion([]), "points must not be empty"),
        (lambda: plots.rate_distortion([("a", 1.0)]), "points must have 3 or 5 entries"),
        (lambda: plots.rate_distortion([("a", 1.0, np.nan)]), "points must be finite"),
        (lambda: plots.rate_distortion([("a", 1, 2, -1, 0)]), "standard errors must be 0 or more"),
        (lambda: plots.factor_responses(CODES, FACTORS[:2]), "factors must have 4 rows"),
        (lambda: plots.factor_responses(CODES, FACTORS, ["a"]), "factor_names must be 2"),
        (lambda: plots.factor_responses(CODES, FACTORS * 0), "factors must vary"),
        (lambda: plots.factor_responses(CODES, FACTORS, order=[2]), "order must name latents from"),
        (
            lambda: plots.factor_responses(CODES, FACTORS, order=[1], row_labels=["a", "b"]),
            "row_labels must number 1",
        ),
        (
            lambda: plots.position_maps(CODES, np.zeros(3), np.zeros(4)),
            r"row_factor must be \(4,\)",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match="plots: .*" + message):
        call()
