"""Data sets: generated, bundled, downloaded, and of the user's own.

Example:
    >>> train, test = load_dataset("spirals", seed=0)
    >>> train.x.shape, train.n_classes
    ((400, 2), 4)
"""

from .data import Data, to_float
from .loading import DATASETS, load_dataset
from .spirals import spirals

__all__ = ["DATASETS", "Data", "load_dataset", "spirals", "to_float"]
