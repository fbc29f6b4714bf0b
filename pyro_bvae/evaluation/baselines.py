"""Codes that no training made: what a metric must be compared with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..datasets import Data

MAX_ROWS = 20_000
"""Rows that are fitted to, and rows that are coded, evenly spaced: pixels are wide."""


def baseline_codes(
    name: str, train: Data, data: Data, latent_dim: int, seed: int = 0
) -> np.ndarray:
    """Codes of ``data`` by the baseline ``name``; fitted to ``train`` where it is fitted.

    ``"factors"``: the ground-truth factors themselves; ``"pixels"``: x, flattened; ``"pca"`` and
    ``"ica"``: the first ``latent_dim`` principal or independent components (scikit-learn's PCA and
    FastICA). The comparison of Higgins 2017, table 1.

    Returns:
        Array ``(n, width)``, one row each of ``data``.

    Raises:
        ValueError: an unknown name, or factors asked of data without them.
    """
    if name not in BASELINES:
        raise ValueError(
            f"--baseline must be one of {', '.join(BASELINES)}, untrained; got {name!r}."
        )
    return BASELINES[name](train, data, latent_dim, seed)


def _factors(train: Data, data: Data, latent_dim: int, seed: int) -> np.ndarray:
    if data.factors is None:
        raise ValueError(
            "--baseline factors needs data with ground-truth factors; these have none."
        )
    return data.factors.astype(np.float32)


def _pixels(train: Data, data: Data, latent_dim: int, seed: int) -> np.ndarray:
    return _flat(data)


def _pca(train: Data, data: Data, latent_dim: int, seed: int) -> np.ndarray:
    from sklearn.decomposition import PCA

    x = _flat(spaced(train))
    model = PCA(min(latent_dim, *x.shape), random_state=seed).fit(x)
    return np.asarray(model.transform(_flat(data)), dtype=np.float32)


def _ica(train: Data, data: Data, latent_dim: int, seed: int) -> np.ndarray:
    from sklearn.decomposition import FastICA

    x = _flat(spaced(train))
    width = min(latent_dim, *x.shape)
    model = FastICA(width, whiten="unit-variance", max_iter=1000, random_state=seed).fit(x)
    return np.asarray(model.transform(_flat(data)), dtype=np.float32)


def spaced(data: Data, most: int = MAX_ROWS) -> Data:
    """At most ``most`` rows, evenly spaced."""
    if len(data) <= most:
        return data
    return data.subset(np.linspace(0, len(data) - 1, most).astype(np.int64))


def _flat(data: Data) -> np.ndarray:
    return data.tensors(np.arange(len(data)))[0].flatten(1).numpy()


BASELINES: dict[str, Callable[[Data, Data, int, int], np.ndarray]] = {
    "factors": _factors,
    "pixels": _pixels,
    "pca": _pca,
    "ica": _ica,
}
