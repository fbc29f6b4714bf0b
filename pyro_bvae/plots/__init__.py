"""Pictures of data, codes and training: numpy arrays in, a matplotlib `Figure` out.

Nothing here saves, shows, sees a model or touches pyplot. Sizes suit `savefig(path, dpi=150)`.
Images are `(channels, height, width)` floats in [0, 1], clipped. Bad input raises `ValueError`.
"""

from .base import PALETTE
from .comparisons import against, compared, scores
from .curves import kl_per_latent, rate_distortion, training_curves
from .decoded import manifold, traversal_curves, traversals
from .densities import aggregate_density, aggregate_posterior, density_grid
from .examples import data, reconstructions, samples
from .factors import class_means, factor_responses, position_maps

__all__ = [
    "PALETTE",
    "against",
    "aggregate_density",
    "aggregate_posterior",
    "class_means",
    "compared",
    "data",
    "density_grid",
    "factor_responses",
    "kl_per_latent",
    "manifold",
    "position_maps",
    "rate_distortion",
    "reconstructions",
    "samples",
    "scores",
    "training_curves",
    "traversal_curves",
    "traversals",
]
