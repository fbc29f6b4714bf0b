"""Models side by side: what is drawn stands where the numbers say."""

import numpy as np
import pytest

from pyro_bvae import plots


def drawn(ax):
    """Points of each series, in order, with its error bars."""
    out = []
    for line, _, bars in ax.containers:
        errors = [segment for bar in bars for segment in bar.get_segments()]
        out.append((np.column_stack(line.get_data()), errors))
    return out


def test_ours_stand_beside_the_published():
    rows = ["vae", "beta-4", "others"]
    panels = {"loss": [((3.0, 0.5), (2.5, None)), ((4.0, None), (5.0, 0.1)), (None, (6.0, None))]}
    figure = plots.compared(rows, panels)
    (ax,) = figure.axes
    ours, published = sorted(drawn(ax), key=lambda points: len(points[0]))
    series = {"ours": ours, "published": published}
    # the first row is on top
    np.testing.assert_array_equal(series["ours"][0], [[3.0, 2], [4.0, 1]])
    np.testing.assert_array_equal(series["published"][0], [[2.5, 2], [5.0, 1], [6.0, 0]])
    np.testing.assert_array_equal(series["ours"][1][0], [[2.5, 2], [3.5, 2]])
    assert [text.get_text() for text in ax.get_yticklabels()] == rows
    assert ax.get_xlabel() == "loss"


def test_a_row_that_nobody_has_measured_is_empty():
    figure = plots.compared(["a"], {"x": [(None, None)]})
    assert all(not len(points) for points, _ in drawn(figure.axes[0]))


def test_measures_against_an_option_stand_at_equal_distances():
    panels = {"Hoyer": {"sparse": [(0, 0.2, 0.0), (1000, 0.6, 0.1)], "Gaussian": [(100, 0.3, 0.0)]}}
    panels["log p"] = {"Gaussian": [(0, 5.0, 0.0)]}
    figure = plots.against(panels, "α")
    ax, other = figure.axes
    sparse, gaussian = drawn(ax)
    series = {"sparse": sparse, "Gaussian": gaussian}
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["sparse", "Gaussian"]
    # one colour a kind, whichever panel it is in
    assert other.containers[0][0].get_color() == ax.containers[1][0].get_color()
    np.testing.assert_array_equal(series["sparse"][0], [[0, 0.2], [2, 0.6]])
    np.testing.assert_array_equal(series["Gaussian"][0], [[1, 0.3]])
    np.testing.assert_allclose(series["sparse"][1][1], [[2, 0.5], [2, 0.7]])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "100", "1000"]


def test_two_measures_of_named_models():
    points = [("isotropic", (20.0, 1.0), (0.6, 0.02)), ("student-t", (22.0, 0.0), (0.8, 0.0))]
    (ax,) = plots.scores(points, "distortion", "score").axes
    ((places, _),) = drawn(ax)
    np.testing.assert_array_equal(places, [[20, 0.6], [22, 0.8]])
    assert {"isotropic", "student-t"} <= {text.get_text() for text in ax.texts}


@pytest.mark.parametrize(
    ("draw", "sentence"),
    [
        (lambda: plots.compared([], {"x": []}), "rows and panels must not be empty"),
        (lambda: plots.compared(["a"], {"x": []}), "panels must have 1 rows each"),
        (lambda: plots.against({}, "α"), "panels must not be empty"),
        (lambda: plots.against({"x": {"a": []}}, "α"), "panels must not be empty"),
        (lambda: plots.scores([], "x", "y"), "points must not be empty"),
        (lambda: plots.scores([("a", (np.nan, 0), (0, 0))], "x", "y"), "points must be finite"),
    ],
)
def test_bad_arrays(draw, sentence):
    with pytest.raises(ValueError, match=sentence):
        draw()
