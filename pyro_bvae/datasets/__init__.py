"""Data sets: generated, bundled, downloaded, and of the user's own.

Examples:
    >>> train, test = load_dataset("spirals", seed=0)
    >>> train.x.shape, train.n_classes
    ((400, 2), 4)
"""

from ._torchvision import import_torchvision
from .data import Data, to_float
from .dsprites import render_dsprites
from .loading import DATASETS, find_loader, load_dataset, read_data
from .spirals import spirals

__all__ = [
    "DATASETS",
    "Data",
    "find_loader",
    "import_torchvision",
    "load_dataset",
    "read_data",
    "render_dsprites",
    "spirals",
    "to_float",
]
