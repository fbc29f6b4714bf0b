"""A sweep's rows: means, sweep.csv and the page."""

import csv
import dataclasses
import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from pyro_bvae.config import Config
from pyro_bvae.report import write_sweep_report
from pyro_bvae.sweep import Row, mean_metrics
from pyro_bvae.sweep.rows import write_csv

TINY = Config(prior="mixture", steps=2, device="cpu")


def lines_of(path):
    with path.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


# Rows


def row_of(setting, seed=0, status="finished", error="", **metrics):
    """A row as `run_sweep` makes it."""
    config = dataclasses.replace(TINY, seed=seed, **setting).resolved()
    terms = (
        {"format": 1, "n": 40, "seed": seed, "log_px_z": -1.0, "kl": 2.0, "elbo": -3.0}
        if not error
        else {}
    )
    name = "_".join([*(f"{k}-{v}" for k, v in setting.items()), f"seed-{seed}"])
    return Row(Path("out") / name, config, status, error, terms | metrics)


def test_means_are_those_by_hand():
    rows = [
        row_of({}, 0, elbo=1.0, kl_estimator="x", scores={"mig": {"value": 0.2, "details": {}}}),
        row_of({}, 1, elbo=2.0, kl_estimator="x", scores={"mig": {"value": 0.4, "details": {}}}),
        row_of({}, 2, elbo=6.0, kl_estimator="y", notes=["only here"], purity=0.5),
        row_of({}, 3, "failed", "no"),
    ]
    mean = mean_metrics(rows)
    assert mean["runs"] == 3 and mean["elbo"] == 3.0
    # Deviations -2, -1 and 3: variance 14 / 2, and its root over that of 3.
    assert mean["elbo_se"] == pytest.approx(math.sqrt(7 / 3))
    assert mean["scores"]["mig"]["value"] == pytest.approx(0.3)
    assert mean["scores"]["mig"]["value_se"] == pytest.approx(0.1)
    assert mean["kl"] == 2.0 and mean["kl_se"] == 0.0 and (mean["format"], mean["n"]) == (1, 40)
    assert "n_se" not in mean and "seed" not in mean
    assert mean["purity"] == 0.5 and "purity_se" not in mean and "kl_estimator" not in mean
    assert mean_metrics(rows[3:]) == {} and "elbo_se" not in mean_metrics(rows[:1])


def test_a_standard_error_over_rows_gives_way_to_that_over_runs():
    rows = [row_of({}, seed, elbo=value, elbo_se=9.0) for seed, value in enumerate((1.0, 3.0))]
    assert mean_metrics(rows)["elbo_se"] == 1.0
    assert "elbo_se" not in mean_metrics(rows[:1])


def test_csv_of_runs_that_did_not_finish_and_of_odd_values(tmp_path):
    pandas = pytest.importorskip("pandas")

    args = {"prior_args": {"n_components": 4, "learned": True}}
    rows = [
        row_of(args, 0, scores={"mig": {"value": 0.25, "details": {"chance": 0.1}}}, kl_sd=None),
        row_of({"prior_args": {}}, 1, "failed", 'a "word", and\u00a0more'),
        row_of({"prior_args": {}}, 2, beta=0.5, elbo=math.nan),
    ]
    rows = [dataclasses.replace(row, path=tmp_path / f"run-{i}") for i, row in enumerate(rows)]
    write_csv(rows, ["prior_args"], tmp_path / "sweep.csv")
    lines = lines_of(tmp_path / "sweep.csv")
    assert [line["run"] for line in lines] == ["run-0", "run-1", "run-2"]
    assert json.loads(lines[0]["prior_args"]) == args["prior_args"]
    assert lines[1]["error"] == 'a "word", and\u00a0more' and lines[1]["elbo"] == ""
    assert [line["scores.mig"] for line in lines] == ["0.25", "", ""] and "kl_sd" not in lines[0]
    frame = pandas.read_csv(tmp_path / "sweep.csv")
    assert frame["elbo"].isna().tolist() == [False, True, True]
    table = np.loadtxt(tmp_path / "sweep.csv", str, delimiter=",", quotechar='"')
    assert table.shape == (4, len(lines[0]))


# The page


def page_of(rows, varied, path):
    write_sweep_report(rows, varied, path)
    text = path.read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!#)|url\(|<script|@import', text) and len(text) < 5_000_000
    return text


GRID_ROWS = [
    row_of({"alpha": a, "beta": b}, seed, elbo=-10.0 * a + b + 0.4 * seed, divergence=1.0 + a,
           divergence_components=40, divergence_name="mmd", kl=1.0 + b, active_units=1 + a, latents=4)
    for a in (0, 2) for b in (0.5, 4.0) for seed in (0, 1)
]  # fmt: skip


def test_page_holds_settings_heat_maps_and_plots(tmp_path):
    text = page_of(GRID_ROWS, ["alpha", "beta"], tmp_path / "sweep.html")
    assert "Sweep of 4 settings" in text and "2 runs of each setting, 8 in all: 8 finished." in text
    # -20 + 4 and -20 + 4.4: their mean, and half their distance.
    assert text.count("<td>-15.80 ± 0.20</td>") == 1
    assert len(re.findall(r'<td style="--heat: \d+%">', text)) == 2 * 4  # ELBO and D
    cells = re.findall(r'<td style="--heat: (\d+)%">(-?[\d.]+)<small>± 0.20</small></td>', text)
    assert cells == [("51", "0.70"), ("60", "4.20"), ("0", "-19.30"), ("9", "-15.80")]
    assert text.count("<h3>D, mmd</h3>") == 1
    for title in ("Distortion over rate", "ELBO over D, mmd", "active latents over KL, the rate"):
        (figure,) = re.findall(f"<figcaption>{re.escape(title)}</figcaption>.*?</figure>", text)
        assert figure.count("<circle") == 8 and "<title>alpha 2, beta 4, seed 1</title>" in figure
    assert all(f"</span>alpha {a}, beta {b}</li>" in text for a in (0, 2) for b in (0.5, 4))
    assert "Not finished" not in text


def test_alpha_goes_down_and_beta_across_in_whatever_order_they_vary(tmp_path):
    text = page_of(GRID_ROWS, ["beta", "alpha"], tmp_path / "sweep.html")
    assert (
        text.count(
            '<th scope="col">alpha \\ beta</th><th scope="col">0.5</th><th scope="col">4</th>'
        )
        == 2
    )


def test_a_third_option_has_its_own_heat_maps_and_text_makes_none(tmp_path):
    others = [
        dataclasses.replace(row, config=dataclasses.replace(row.config, prior="vamp"))
        for row in GRID_ROWS
    ]
    text = page_of([*GRID_ROWS, *others], ["prior", "alpha", "beta"], tmp_path / "sweep.html")
    assert text.count("<figcaption>prior vamp") == text.count("<figcaption>prior mixture") == 2
    text = page_of([GRID_ROWS[0], others[0]], ["prior"], tmp_path / "sweep.html")
    assert "Heat maps" not in text and "<td>vamp</td>" not in text and ">vamp</th>" in text


def test_one_number_that_varies_is_an_axis(tmp_path):
    text = page_of(GRID_ROWS[::4], ["alpha"], tmp_path / "sweep.html")
    (figure,) = re.findall("<figcaption>ELBO over alpha</figcaption>.*?</figure>", text)
    assert figure.count("<circle") == 2 and "Heat maps" not in text


def test_numbers_of_many_magnitudes_are_coloured_by_their_logarithm(tmp_path):
    rows = [
        row_of({"alpha": a, "beta": b}, elbo=float(k), divergence=10.0**k, divergence_components=9,
               divergence_name="mmd")
        for k, (a, b) in enumerate(itertools.product((0, 1), (1, 2)))
    ]  # fmt: skip
    text = page_of(rows, ["alpha", "beta"], tmp_path / "sweep.html")
    (table,) = re.findall("<h3>D, mmd.*?</figure>", text, re.S)
    assert "by its logarithm" in table and ">log10 of D, mmd</text>" in text
    assert re.findall(r"--heat: (\d+)%", table) == ["0", "20", "40", "60"]


def test_failed_runs_are_listed_and_nothing_of_them_is_markup(tmp_path):
    rows = [*GRID_ROWS[:1], row_of({"alpha": 9}, 1, "failed", "no <script>alert(1)</script>")]
    text = page_of(rows, ["alpha"], tmp_path / "sweep.html")
    assert (
        "no &lt;script&gt;alert(1)" in text
        and "Not finished" in text
        and "1 finished, 1 failed" in text
    )
    assert "<td>0 of 1</td>" in text


def test_a_page_without_any_finished_run(tmp_path):
    rows = [row_of({}, 0, "failed", "no"), row_of({}, 1, "pending", " ")]
    text = page_of(rows, [], tmp_path / "sweep.html")
    assert "Sweep over seeds" in text and "1 failed, 1 to come" in text and "<circle" not in text


def test_a_large_sweep_keeps_to_its_size(tmp_path):
    rows = [
        dataclasses.replace(GRID_ROWS[0], config=dataclasses.replace(TINY, alpha=a, seed=seed))
        for a in range(1000) for seed in range(3)
    ]  # fmt: skip
    text = page_of(rows, ["alpha"], tmp_path / "sweep.html")
    assert "500 more settings are in sweep.csv" in text and "at most 2000 of them" in text


def test_runs_on_different_data_are_not_held_against_each_other(tmp_path):
    rows = [row_of({"dataset": name}) for name in ("spirals", "digits")]
    assert "cannot be held against each other" in page_of(
        rows, ["dataset"], tmp_path / "sweep.html"
    )
