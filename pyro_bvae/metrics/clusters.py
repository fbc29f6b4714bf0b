"""Do codes fall into the prior's components as the data fall into classes?"""

from __future__ import annotations

import numpy as np

from .score import Score

USED_SHARE = 0.01
"""A component counts as used when it holds at least this share of the codes."""


def cluster_scores(assignments: np.ndarray, labels: np.ndarray) -> Score:
    """Agreement of a clustering with class labels; the value is the purity, higher is better.

    Purity is the share of codes whose class is the most frequent one of their component,
    (1/n) sum_k max_c n_kc: 1 when no component mixes classes, and 1 also when every code has a
    component of its own, so read it with ``components_used``, NMI and ARI. Unchanged by relabelling
    components or classes.

    Args:
        assignments: component of each code, integers ``(n,)``.
        labels: class of each code, integers ``(n,)``.

    Returns:
        Score: purity in (0, 1]; details ``nmi``, ``ari``, ``components_used`` (those with at least 1 %
        of the codes), ``n``.

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
    details = {
        "nmi": float(normalized_mutual_info_score(labels, assignments)),
        "ari": float(adjusted_rand_score(labels, assignments)),
        "components_used": int((counts.sum(1) >= USED_SHARE * n).sum()),
        "n": n,
    }
    return Score(float(counts.max(1).sum() / n), details)
