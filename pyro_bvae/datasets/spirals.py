"""Spirals (the pinwheel): four curved arms in the plane, one class each."""

from __future__ import annotations

import numpy as np

from .data import Data


def spirals(n_per_arm: int = 100, n_arms: int = 4, seed: int = 0) -> Data:
    """Draw the pinwheel: `n_arms` Gaussian blobs, each bent and turned into an arm.

    A point (x₁, x₂) ~ N((1, 0), diag(.3², .1²)) of arm k is rotated about the origin,
    anticlockwise, by 2πk/n_arms + .25·exp(x₁): the farther out, the farther round.

    Args:
        n_per_arm: points of each arm, 1 or more.
        n_arms: arms, 1 or more.
        seed: 0 or more.

    Returns:
        `x` float32 `(n_arms * n_per_arm, 2)`, arm after arm, `labels` the arm of each point.

    Raises:
        ValueError: a count is below 1.

    References:
        Johnson et al. 2016, https://arxiv.org/abs/1603.06277 (the pinwheel);
        Mathieu et al. 2019, https://arxiv.org/abs/1812.02833 (as used here).

    Examples:
        >>> data = spirals(n_per_arm=5)
        >>> data.x.shape, data.n_classes
        ((20, 2), 4)
    """
    for name, value in (("n_per_arm", n_per_arm), ("n_arms", n_arms)):
        if value < 1:
            raise ValueError(f"spirals: {name} must be 1 or more; got {value}. Ask for a point.")
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(n_arms), n_per_arm)
    points = generator.normal((1.0, 0.0), (0.3, 0.1), (len(labels), 2))
    angle = 2 * np.pi * labels / n_arms + 0.25 * np.exp(points[:, 0])
    return Data(_rotate(points, angle).astype(np.float32), labels)


def _rotate(points: np.ndarray, angle: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack(
        (cos * points[:, 0] - sin * points[:, 1], sin * points[:, 0] + cos * points[:, 1]), axis=1
    )


def load_spirals(seed: int = 0) -> tuple[Data, Data]:
    """Draw 400 training and 400 test points, each from a seed of its own derived from `seed`."""
    train_seed, test_seed = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    return spirals(seed=int(train_seed)), spirals(seed=int(test_seed))
