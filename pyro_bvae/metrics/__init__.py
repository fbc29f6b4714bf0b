"""Measures of a representation: arrays in, `Score` out; codes may come from any library."""

from .clusters import cluster_scores
from .score import Score
from .sparsity import hoyer

__all__ = ["Score", "cluster_scores", "hoyer"]
