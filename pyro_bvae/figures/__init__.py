"""The pictures of a run: from the model and its codes to PNG and GIF files."""

from .run import write_figures
from .samples import save_samples
from .traversals import save_traversal

__all__ = ["save_samples", "save_traversal", "write_figures"]
