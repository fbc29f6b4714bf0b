"""A published experiment made again: a sweep, then its table and pictures beside the published ones."""

from .measured import Outcome, measure_experiment
from .page import results_table, write_results

__all__ = ["Outcome", "measure_experiment", "results_table", "write_results"]
