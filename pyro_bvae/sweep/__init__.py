"""Many trainings from one file, in parallel, each taken up again where it was stopped."""

from .reading import Sweep, over_seeds, read_sweep
from .rows import Row, mean_metrics
from .running import run_sweep

__all__ = ["Row", "Sweep", "mean_metrics", "over_seeds", "read_sweep", "run_sweep"]
