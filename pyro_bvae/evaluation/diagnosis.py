"""What a colleague would say on seeing the numbers."""

from __future__ import annotations

from typing import Any

_OF_DIAGONAL = {
    "divergence": "D(q(z), p(z))",
    "mutual_information": "I(x; z), KL(q(z) || p(z)), total correlation, overlap",
}


def diagnose(metrics: dict[str, Any], config: Any) -> list[str]:
    """What a colleague would say on seeing the numbers: empty where nothing is amiss."""
    says: list[str] = []
    capacity = config.gamma is not None
    # What frees the code, and what sorts it into components, by the options in play.
    if capacity:
        freer = sorter = "raise capacity"
    elif config.beta_tc is not None:
        freer = sorter = "lower beta_tc"
    else:
        freer = "lower beta" if config.beta > 0 else ""
        sorter = "raise alpha or lower beta" if config.beta > 0 else "raise alpha"
    idle = metrics["latents"] - metrics["active_units"]
    if idle:
        fewer = "use fewer latents" if metrics["active_units"] else "lower lr"
        remedy = f"{freer} or {fewer}" if freer else fewer
        says.append(f"{idle} of {metrics['latents']} latents {metrics['idle_means']}: {remedy}.")
    if not config.conditional:  # the label goes to the decoder: classes may share components
        says += _diagnose_clusters(metrics, sorter)
    missing = [name for key, name in _OF_DIAGONAL.items() if metrics.get(key, 0) is None]
    if missing:
        says.append(
            f"Not measured: {', '.join(missing)}. Over all rows they need posteriors that are diagonal "
            "Normals; --divergence mmd and mmd-per-dim need only samples."
        )
    if metrics.get("divergence_name") in ("inclusive-kl", "exclusive-kl", "total-correlation"):
        says += _diagnose_bias(metrics, config)
    below = capacity and metrics["kl"] < 0.9 * config.capacity - 1
    if below and config.penalty == "relu":
        says.append(
            f"C has no effect: the KL is {metrics['kl']:.1f} nats, below C = {config.capacity:g}, where "
            "the one-sided penalty is 0: lower C, or use --penalty absolute."
        )
    elif below:
        says.append(
            f"The KL, {metrics['kl']:.1f} nats, has not reached C = {config.capacity:g}: train longer, "
            "raise gamma, or lower C."
        )
    return says + _diagnose_aggregate(metrics, config)


def _diagnose_aggregate(metrics: dict[str, Any], config: Any) -> list[str]:
    """A rate can be all distance from the prior: the objective and E log p(x|z) alone do not show it."""
    kl, rate = metrics.get("aggregate_kl"), metrics["kl"]
    # where I(x; z) reaches log M, what is missing of it counts as KL(q(z) || p(z))
    if kl is None or metrics.get("information_bounded") or kl < max(1, rate / 2):
        return []
    if config.gamma is not None:
        remedy = "lower C"
    else:
        remedy = "raise beta_tc" if config.beta_tc is not None else "raise beta or alpha"
    return [
        f"Most of the rate, {kl:.1f} of {rate:.1f} nats, is KL(q(z) || p(z)): the codes lie where the prior "
        f"does not, and what is decoded from its samples will not be like the data: train longer, or {remedy}."
    ]


def _diagnose_bias(metrics: dict[str, Any], config: Any) -> list[str]:
    bias = {what: metrics.get(f"rate_minus_log_{what}") or 0 for what in ("batch", "components")}
    remedies = [] if config.beta_tc is not None else ["--divergence mmd-per-dim"]
    if bias["batch"] > 1 or not remedies:
        remedies.append("a larger batch")
    remedy = ", or ".join(remedies)
    if max(bias.values()) > 1:
        return [
            f"D is dominated by its bias (rate - log of its components = {max(bias.values()):.1f} nats > "
            f"1): use {remedy}."
        ]
    away = metrics.get("divergence_outside") or 0
    if away > 0.05:
        return [
            f"D is dominated by its bias ({away:.0%} of the prior's samples lie outside every posterior, "
            f"where q(z) is the tail of the nearest one): use {remedy}."
        ]
    value, half = metrics.get("divergence"), metrics.get("divergence_at_half")
    if value is None or half is None or abs(value - half) < max(0.2, 0.1 * abs(value)):
        return []
    n = metrics["divergence_components"]
    return [
        f"D depends on how many rows it sees ({half:.2f} nats at {n // 2}, {value:.2f} at {n}), so much of it "
        f"is bias: compare it at equal rows only, or use {remedy}."
    ]


def _diagnose_clusters(metrics: dict[str, Any], remedy: str) -> list[str]:
    if "purity" not in metrics or metrics["purity"] >= 0.95:
        return []
    classes, components = metrics["classes"], metrics["components"]
    if metrics["components_used"] < min(classes, components):
        return [
            f"{classes} classes share {metrics['components_used']} of {components} components: {remedy}."
        ]
    if components < classes:
        return [f"The prior has {components} components for {classes} classes: raise n_components."]
    return [f"Classes share components (purity {metrics['purity']:.2f}): {remedy}."]
