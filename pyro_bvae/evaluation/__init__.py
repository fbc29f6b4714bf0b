"""What a trained model does on data, in numbers: terms, log p(x), the parts of the rate, metrics."""

from .aggregate import aggregate_divergence, information
from .baselines import BASELINES, baseline_codes, spaced
from .codes import Codes, encode_data
from .diagnosis import diagnose
from .foreign import read_codes
from .held_out import MEASURES, Progress, applicable, check_measures, evaluate, score_codes
from .marginal import log_marginal
from .table import Measure, measures

__all__ = [
    "BASELINES",
    "MEASURES",
    "Codes",
    "Measure",
    "Progress",
    "aggregate_divergence",
    "applicable",
    "baseline_codes",
    "check_measures",
    "diagnose",
    "encode_data",
    "evaluate",
    "information",
    "log_marginal",
    "measures",
    "read_codes",
    "score_codes",
    "spaced",
]
