"""The published experiments, one TOML file each: what is trained, and what was published about it.

No torch is imported here.
"""

from .planned import experiment_sweep, varied_options
from .reading import SCALES, Recipe, read_recipe, read_setting, recipe_names

__all__ = [
    "SCALES",
    "Recipe",
    "experiment_sweep",
    "read_recipe",
    "read_setting",
    "recipe_names",
    "varied_options",
]
