"""metrics.json as rows to read, and as lines on the terminal."""

import numpy as np
import pytest
from pyro_bvae.cli.table import echo_table

from pyro_bvae.evaluation import measures, score_codes

BASIC = {
    "n": 100,
    "log_px_z": -80.25,
    "log_px_z_se": 1.5,
    "kl": 12.5,
    "kl_se": 0.25,
    "elbo": -92.75,
    "elbo_se": 1.25,
    "kl_estimator": "closed form",
    "kl_per_latent": [6.0, 6.5, 0.0],
    "latents": 3,
    "active_units": 2,
}
AGGREGATE = {
    "aggregate_components": 1000,
    "log_components": 6.907755,
    "mutual_information": 5.0,
    "mutual_information_se": 0.5,
    "aggregate_kl": 7.5,
    "aggregate_kl_se": 0.5,
    "total_correlation": 0.75,
    "total_correlation_se": 0.125,
    "dimension_wise_kl": None,
    "dimension_wise_kl_se": None,
    "information_bounded": False,
    "overlap": 6.5,
    "gaussian_total_correlation": 0.5,
    "divergences": {
        "inclusive-kl": 8.5,
        "mmd": 0.125,
        "mmd-per-dim": None,
        "exclusive-kl": 7.5,
        "total-correlation": 0.75,
    },
}


def told(metrics):
    return {row.key: (row.label, row.value, row.se, row.note) for row in measures(metrics)}


def test_nothing_measured_is_no_row():
    assert measures({}) == [] == measures({"n": 3, "kl": None, "divergences": {"mmd": None}})


def test_the_terms_and_their_errors():
    assert told(BASIC) == {
        "log_px_z": ("E log p(x|z)  (-distortion)", -80.25, 1.5, ""),
        "kl": ("KL(q(z|x) || p(z))  (rate)", 12.5, 0.25, ""),
        "elbo": ("ELBO at beta = 1, below log p(x)", -92.75, 1.25, ""),
        "active_units": ("active latents, KL > .01 nats", 2, None, "of 3"),
    }


def test_how_a_number_was_found_is_said():
    other = {
        "kl_estimator": "Monte Carlo, 1 sample",
        "kl_per_latent": None,
        "bound_on": "log p(x|y)",
        "log_marginal": -85.0,
        "log_marginal_se": 1.0,
        "log_marginal_samples": 1000,
        "log_marginal_rows": 60,
    }
    rows = told(BASIC | other)
    assert rows["log_px_z"][0] == "E log p(x|z, y)  (-distortion)"
    assert rows["kl"][3] == "Monte Carlo, 1 sample"
    assert rows["elbo"][0] == "ELBO at beta = 1, below log p(x|y)"
    assert rows["log_marginal"] == (
        "log p(x|y), importance-weighted", -85.0, 1.0, "K = 1000, 60 rows",
    )  # fmt: skip
    assert rows["active_units"][0] == "active latents, variance of means > .01"


def test_the_parts_of_the_rate():
    given = "1000 components"
    assert told(AGGREGATE) == {
        "mutual_information": ("I(x; z)", 5.0, 0.5, "log M = 6.91"),
        "aggregate_kl": ("KL(q(z) || p(z))", 7.5, 0.5, given),
        "total_correlation": ("total correlation of q(z)", 0.75, 0.125, given),
        "gaussian_total_correlation": (
            "total correlation, Gaussian", 0.5, None, "fit to posterior means, without their noise",
        ),
        "overlap": ("overlap, points a code may belong to", 6.5, None, "1 to 1000"),
        "divergences.inclusive-kl": ("D(q(z), p(z))  inclusive-kl", 8.5, None, "KL(p(z) || q(z))"),
        "divergences.mmd": ("D(q(z), p(z))  mmd", 0.125, None, "no unit"),
    }  # fmt: skip


def test_information_at_its_cap_is_a_bound_and_so_is_the_kl():
    bounded = AGGREGATE | {"mutual_information": 6.5, "information_bounded": True}
    rows = told(bounded)
    assert rows["mutual_information"][3] == ">=, log M = 6.91 caps it"
    assert rows["aggregate_kl"][3] == "<=, 1000 components"
    assert "=," not in rows["total_correlation"][3]


def test_the_divergence_trained_with_is_shown_once():
    trained = {"divergence": 0.25, "divergence_name": "mmd", "divergence_components": 400}
    rows = told(AGGREGATE | trained)
    assert rows["divergence"] == (
        "D(q(z), p(z))  mmd", 0.25, None, "all 400 rows as components",
    )  # fmt: skip
    assert "divergences.mmd" not in rows and "divergences.inclusive-kl" in rows
    rows = told(AGGREGATE | trained | {"divergence_at_half": 0.1254})
    assert rows["divergence"][3] == "all 400 rows as components; 0.125 at half of them"


def test_clusters_sparsity_sharpness_and_scores():
    rest = {
        "purity": 0.75,
        "components": 4,
        "components_used": 3,
        "nmi": 0.5,
        "ari": 0.25,
        "silhouette": None,
        "latents": 3,
        "hoyer": 0.5,
        "hoyer_null": 0.2661,
        "hoyer_prior": 0.75,
        "hoyer_dead": 0,
        "sharpness": 812.5,
        "sharpness_data": 3452.25,
        "scores": {
            "mig": {"value": 0.5, "details": {"n": 3}},
            "modularity": {"value": 0.25, "details": {}},
            "factor-vae-score": {"value": 0.75, "details": {"chance": 0.2513}},
            "dci": {
                "value": 0.5,
                "details": {"completeness": 0.375, "informativeness_test": 0.875},
            },
        },
    }
    assert told(rest) == {
        "purity": ("cluster purity", 0.75, None, ""),
        "components_used": ("components used", 3, None, "of 4"),
        "nmi": ("cluster NMI", 0.5, None, ""),
        "ari": ("cluster ARI", 0.25, None, ""),
        "hoyer": ("Hoyer sparsity", 0.5, None, "Gaussian 0.266, prior 0.750"),
        "sharpness": ("sharpness of reconstructions", 812.5, None, "of the data 3452"),
        "scores.mig": ("MIG", 0.5, None, ""),
        "scores.modularity": (
            "modularity", 0.25, None, "high also for codes that know little of every factor",
        ),
        "scores.factor-vae-score": ("FactorVAE score", 0.75, None, "chance 0.25"),
        "scores.dci": ("DCI disentanglement", 0.5, None, ""),
        "scores.dci.completeness": ("DCI completeness", 0.375, None, ""),
        "scores.dci.informativeness_test": (
            "DCI informativeness, test accuracy", 0.875, None, "",
        ),
    }  # fmt: skip
    left_out = ", 2 latents whose means do not move left out"
    assert told(rest | {"hoyer_dead": 2})["hoyer"][3].endswith(left_out)
    silhouette = told(rest | {"silhouette": 0.125})["silhouette"]
    assert silhouette == ("silhouette", 0.125, None, "of the codes by component")


def test_a_null_and_an_r2_are_said():
    dci = {"completeness": 0.375, "informativeness_test": 0.875, "factor_accuracy": [0.9, 0.85]}
    nulls = {"null": 0.021, "null_completeness": 0.5, "null_informativeness_test": 0.25}
    scores = {
        "beta-vae-score": {"value": 0.53, "details": {"chance": 1 / 3, "null": 0.5149}},
        "mcc": {"value": 0.5, "details": {"null": 0.034}},
        "irs": {"value": 0.5, "details": {"null": 0.4}},
        "dci": {"value": 0.5, "details": dci | nulls | {"regressed": [1]}},
    }
    notes = {key: row[3] for key, row in told({"scores": scores}).items()}
    assert notes == {
        "scores.beta-vae-score": "chance 0.33; permuted factors 0.51",
        "scores.mcc": "factors as numbers: their order counts; permuted factors 0.034",
        "scores.irs": "permuted factors 0.4",
        "scores.dci": "permuted factors 0.021",
        "scores.dci.completeness": "permuted factors 0.5",
        "scores.dci.informativeness_test": "permuted factors 0.25",
    }
    for regressed, unit in (([1], "accuracy or R^2"), ([0, 1], "R^2"), ([], "accuracy")):
        scores["dci"]["details"]["regressed"] = regressed
        label = told({"scores": scores})["scores.dci.informativeness_test"][0]
        assert label == f"DCI informativeness, test {unit}"


def test_scores_as_the_metrics_compute_them():
    """DCI has the details that are shown, and a chance is shown where it is computed."""
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 3, (60, 2))
    codes = factors + rng.normal(size=(60, 2))
    out = score_codes(codes, factors, ["dci", "beta-vae-score"])
    rows = told(out)
    details = out["scores"]["dci"]["details"]
    assert rows["scores.dci.completeness"][1] == details["completeness"]
    assert rows["scores.dci.informativeness_test"][1] == details["informativeness_test"]
    assert rows["scores.beta-vae-score"][3].startswith("chance 0.5; permuted factors 0.")


def test_every_row_has_a_key_of_its_own():
    keys = [row.key for row in measures(BASIC | AGGREGATE)]
    assert len(keys) == len(set(keys)) > 8


def lines(metrics, capsys):
    echo_table(metrics)
    return capsys.readouterr().out.splitlines()


def test_lines_of_the_terminal(capsys):
    extra = {
        "log_marginal": -90.0,
        "log_marginal_se": 1.0,
        "log_marginal_samples": 10,
        "log_marginal_rows": 60,
        "factors_left_out": ["colour", "factor 2"],
        "notes": ["MIG is biased."],
        "diagnosis": ["1 of 3 latents carry < 0.01 nats: lower beta."],
    }
    assert lines(BASIC | extra, capsys) == [
        "  E log p(x|z)  (-distortion)        -80.250 +- 1.500",
        "  KL(q(z|x) || p(z))  (rate)          12.500 +- 0.250",
        "  ELBO at beta = 1, below log p(x)   -92.750 +- 1.250",
        "  log p(x), importance-weighted      -90.000 +- 1.000  (K = 10, 60 rows)",
        "  active latents, KL > .01 nats        2      of 3",
        "Note: left out, having one value: colour, factor 2.",
        "Note: MIG is biased.",
        "Note: 1 of 3 latents carry < 0.01 nats: lower beta.",
    ]


def test_an_error_that_is_not_known_is_not_printed(capsys):
    one_row = {"elbo": -92.75, "elbo_se": None}
    assert lines(one_row, capsys) == ["  ELBO at beta = 1, below log p(x)   -92.750"]


def test_an_error_too_small_to_print_is_not_printed_as_0(capsys):
    small = {"kl": 0.0012, "kl_se": 0.0002, "kl_estimator": "closed form"}
    assert lines(small, capsys) == ["  KL(q(z|x) || p(z))  (rate)     0.001 +- <0.001"]


def test_nothing_measured_prints_nothing(capsys):
    assert lines({}, capsys) == []


@pytest.mark.parametrize(
    "value, shown",
    [
        (0.0, "    0.000"),
        (-3.0, "   -3.000"),
        (float("inf"), "      inf"),  # a density of 0 somewhere
        (float("nan"), "      nan"),
    ],
)
def test_only_counts_are_printed_whole(value, shown, capsys):
    assert lines({"elbo": value, "elbo_se": 0.0}, capsys)[0].endswith(f" {shown} +- 0.000")
