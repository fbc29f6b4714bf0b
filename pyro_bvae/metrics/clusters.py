"""Do codes fall into the prior's components as the data fall into classes?"""

from __future__ import annotations

from typing import Any

import numpy as np

from .checks import check_codes
from .score import Score

SILHOUETTE_CODES = 2000
"""Codes the silhouette is computed from, whose cost is quadratic."""
USED_SHARE = 0.01
"""A component counts as used when it holds at least this share of the codes."""


def cluster_scores(
    assignments: np.ndarray, labels: np.ndarray, *, codes: np.ndarray | None = None
) -> Score:
    """Agreement of a clustering with class labels; the value is the purity, higher is better.

    Purity is the share of codes whose class is the most frequent one of their component,
    (1/n) sum_k max_c n_kc: 1 when no component mixes classes, and 1 also when every code has a
    component of its own, so read it with ``components_used``, NMI and ARI. Unchanged by relabelling
    components or classes.

    Args:
        assignments: component of each code, integers ``(n,)``.
        labels: class of each code, integers ``(n,)``.
        codes: ``(n, latent_dim)``, for the silhouette of the components.

    Returns:
        Score: purity in (0, 1]; details ``nmi``, ``ari``, ``components_used`` (those with at least 1 %
        of the codes), ``n``; with ``codes`` also ``silhouette``, in [-1, 1], higher is better: mean of
        (b - a) / max(a, b), a and b the mean Euclidean distances to the codes of one's own and of the
        nearest other component, over ``silhouette_codes`` evenly spaced codes, at most 2,000; None
        where they lie in one component, or each in its own.

    Examples:
        >>> cluster_scores(np.array([0, 0, 1, 1]), np.array([5, 5, 7, 5])).value
        0.75
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    assignments, labels = np.asarray(assignments), np.asarray(labels)
    if assignments.ndim != 1 or assignments.shape != labels.shape or not len(labels):
        raise ValueError(
            f"cluster_scores: assignments and labels must be integers of one shape (n,), n >= 1; got "
            f"{assignments.shape} and {labels.shape}."
        )
    _, component = np.unique(assignments, return_inverse=True)
    _, label = np.unique(labels, return_inverse=True)
    counts = np.zeros((component.max() + 1, label.max() + 1), dtype=np.int64)
    np.add.at(counts, (component, label), 1)
    n = len(labels)
    details: dict[str, Any] = {
        "nmi": float(normalized_mutual_info_score(labels, assignments)),
        "ari": float(adjusted_rand_score(labels, assignments)),
        "components_used": int((counts.sum(1) >= USED_SHARE * n).sum()),
        "n": n,
    }
    if codes is not None:
        codes = check_codes("cluster_scores", codes)
        if len(codes) != n:
            raise ValueError(
                f"cluster_scores: codes must have a row for each of the {n} assignments; got {len(codes)}. "
                "Pass those that were assigned."
            )
        rows = np.linspace(0, n - 1, min(n, SILHOUETTE_CODES)).round().astype(np.int64)
        details["silhouette"] = _silhouette(codes[rows], component[rows])
        details["silhouette_codes"] = len(rows)
    return Score(float(counts.max(1).sum() / n), details)


def _silhouette(codes: np.ndarray, component: np.ndarray) -> float | None:
    from sklearn.metrics import silhouette_score

    if not 2 <= len(np.unique(component)) < len(component):
        return None
    return float(silhouette_score(codes, component))
