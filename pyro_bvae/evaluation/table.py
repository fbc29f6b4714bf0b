"""metrics.json as rows that a person reads."""

from __future__ import annotations

from typing import Any, NamedTuple


class Measure(NamedTuple):
    """One row: ``key`` is the same in every run, ``label`` says what it is, ``note`` how to read it."""

    key: str
    label: str
    value: float
    se: float | None  # standard error of the mean over rows, where it has one
    note: str


_ESTIMATED = "D(q(z), p(z))  {}"


def measures(metrics: dict[str, Any]) -> list[Measure]:
    """Everything of metrics.json that is one number, in order, as far as it was measured.

    Nats per example where no other unit is said.
    """
    m = metrics
    given, bound_on = "z", m.get("bound_on", "log p(x)")
    if bound_on == "log p(x|y)":
        given = "z, y"
    kl_note = "" if m.get("kl_estimator") == "closed form" else str(m.get("kl_estimator", ""))
    rows = _present(
        m,
        ("log_px_z", f"E log p(x|{given})  (-distortion)", ""),
        ("kl", "KL(q(z|x) || p(z))  (rate)", kl_note),
        ("elbo", f"ELBO at beta = 1, below {bound_on}", ""),
        ("log_marginal", f"{bound_on}, importance-weighted", _marginal_note(m)),
    )
    rows += _aggregate(m)
    rows += _present(
        m,
        ("purity", "cluster purity", ""),
        ("components_used", "components used", _of(m, "components")),
        ("nmi", "cluster NMI", ""),
        ("ari", "cluster ARI", ""),
        ("silhouette", "silhouette", "of the codes by component"),
        ("active_units", _active(m), _of(m, "latents")),
        ("hoyer", "Hoyer sparsity", _hoyer_note(m)),
        ("sharpness", "sharpness of reconstructions", _sharpness_note(m)),
    )
    for name, score in m.get("scores", {}).items():
        details = score.get("details", {})
        rows.append(
            Measure(
                f"scores.{name}",
                _TITLES.get(name, name),
                score["value"],
                score.get("value_se"),
                _score_note(name, details),
            )
        )
        if name == "dci":
            rows += _dci_parts(details)
    return rows


def _present(m: dict[str, Any], *rows: tuple[str, str, str]) -> list[Measure]:
    """Of rows of key, label and note, those that were measured."""
    return [
        Measure(key, label, float(m[key]), m.get(f"{key}_se"), note)
        for key, label, note in rows
        if m.get(key) is not None
    ]


def _aggregate(m: dict[str, Any]) -> list[Measure]:
    """D as trained, and the parts of the rate."""
    rows: list[Measure] = []
    m_rows = f"{m.get('aggregate_components')} components"
    by_name = dict(m.get("divergences") or {})
    name = m.get("divergence_name", "")
    if m.get("divergence") is not None:
        note = f"all {m['divergence_components']} rows as components"
        half = m.get("divergence_at_half")
        note += "" if half is None else f"; {half:.3g} at half of them"
        rows.append(
            Measure(
                "divergence", _ESTIMATED.format(name), m["divergence"], m.get("divergence_se"), note
            )
        )
        by_name.pop(name, None)
    bounded = bool(m.get("information_bounded"))
    log_m = f"log M = {m['log_components']:.2f}" if "log_components" in m else ""
    rows += _present(
        m,
        ("mutual_information", "I(x; z)", f">=, {log_m} caps it" if bounded else log_m),
        ("aggregate_kl", "KL(q(z) || p(z))", f"<=, {m_rows}" if bounded else m_rows),
        ("total_correlation", "total correlation of q(z)", m_rows),
        ("dimension_wise_kl", "sum_d KL(q(z_d) || p(z_d))", m_rows),
        (
            "gaussian_total_correlation",
            "total correlation, Gaussian",
            "fit to posterior means, without their noise",
        ),
        (
            "overlap",
            "overlap, points a code may belong to",
            f"1 to {m.get('aggregate_components')}",
        ),
    )
    # The other two are KL(q(z) || p(z)) and the total correlation above.
    for other in ("inclusive-kl", "mmd", "mmd-per-dim"):
        if by_name.get(other) is not None:
            unit = "KL(p(z) || q(z))" if other == "inclusive-kl" else "no unit"
            key = f"divergences.{other}"
            rows.append(Measure(key, _ESTIMATED.format(other), by_name[other], None, unit))
    return rows


def _of(m: dict[str, Any], whole: str) -> str:
    return f"of {m[whole]}" if whole in m else ""


def _active(m: dict[str, Any]) -> str:
    split = m.get("kl_per_latent") is not None
    return f"active latents, {'KL > .01 nats' if split else 'variance of means > .01'}"


def _marginal_note(m: dict[str, Any]) -> str:
    return f"K = {m.get('log_marginal_samples')}, {m.get('log_marginal_rows')} rows"


def _hoyer_note(m: dict[str, Any]) -> str:
    if m.get("hoyer") is None:
        return ""
    note = f"Gaussian {m['hoyer_null']:.3f}, prior {m['hoyer_prior']:.3f}"
    return note + (
        f", {m['hoyer_dead']} latents whose means do not move left out"
        if m.get("hoyer_dead")
        else ""
    )


def _score_note(name: str, details: dict[str, Any]) -> str:
    """What a score is to be compared with."""
    chance = f"chance {details['chance']:.2g}" if "chance" in details else _NOTES.get(name, "")
    return "; ".join(part for part in (chance, _null_note(details, "null")) if part)


def _null_note(details: dict[str, Any], key: str) -> str:
    return f"permuted factors {details[key]:.2g}" if key in details else ""


def _dci_parts(details: dict[str, Any]) -> list[Measure]:
    regressed, n_factors = details.get("regressed", []), len(details.get("factor_accuracy", []))
    unit = "test accuracy"
    if regressed:
        unit = "test R^2" if len(regressed) == n_factors else "test accuracy or R^2"
    titles = {
        "completeness": "DCI completeness",
        "informativeness_test": f"DCI informativeness, {unit}",
    }
    return [
        Measure(
            f"scores.dci.{part}", title, details[part], None, _null_note(details, f"null_{part}")
        )
        for part, title in titles.items()
    ]


def _sharpness_note(m: dict[str, Any]) -> str:
    return f"of the data {m['sharpness_data']:.0f}" if "sharpness_data" in m else ""


_TITLES = {
    "beta-vae-score": "BetaVAE score",
    "factor-vae-score": "FactorVAE score",
    "mig": "MIG",
    "aam": "AAM",
    "dci": "DCI disentanglement",
    "sap": "SAP",
    "irs": "IRS",
    "mcc": "MCC",
}
_NOTES = {
    "sap": "well below 1 for factors of many values, even of perfect codes",
    "modularity": "high also for codes that know little of every factor",
    "explicitness": "chance 0.5",
    "mcc": "factors as numbers: their order counts",
}
