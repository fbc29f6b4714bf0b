"""What the arrays of a .npz or .h5 file mean, by the names they have there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .data import whole
from .dsprites import FACTORS as DSPRITES
from .names import clean, listed
from .rows import Refused

X_KEYS = ("x", "images", "imgs", "data")
LABEL_KEYS = ("labels", "label", "y", "targets", "target")
FACTOR_KEYS = ("factors", "latents_classes", "latents/classes", "latents")
CLASS_NAME_KEYS = ("class_names", "label_names", "target_names")
FACTOR_NAME_KEYS = ("factor_names", "latents_names")
_GROUPED = "latents/classes"  # of the published dSprites as .hdf5; latents_classes as .npz
_WITH_DSPRITES = ("metadata", "latents_values", "latents/values")


class Keys(NamedTuple):
    """The names of the arrays that are read: None where a file has none."""

    x: str
    labels: str | None = None
    factors: str | None = None
    class_names: str | None = None
    factor_names: str | None = None
    names: str | None = None  # of the classes or of the factors, whichever they fit


class Named(NamedTuple):
    """What belongs to x, as `Data` takes it."""

    labels: np.ndarray | None
    factors: np.ndarray | None
    factor_names: tuple[str, ...]
    class_names: tuple[str, ...]


def choose_keys(path: Path, found: Sequence[str]) -> Keys:
    """Choose among the arrays ``found`` in a file, `name` or `group/name`.

    An array in a group counts where no array at the top has its name, and no other group. x is under one
    of `X_KEYS`, or the only array whose meaning is not known.

    Raises:
        Refused: which one is x does not follow.
    """
    if len(found) == 1:
        return Keys(found[0])
    wanted = (LABEL_KEYS, FACTOR_KEYS, CLASS_NAME_KEYS, FACTOR_NAME_KEYS, ("names",))
    others = [_find(found, names) for names in wanted]
    rest = [key for key in found if key not in others]
    at_top = [key for key in rest if "/" not in key] or rest
    x = _find(found, X_KEYS) or (at_top[0] if len(at_top) == 1 else None)
    if x is None or x.endswith("/..."):
        raise Refused(
            f"{path}: the file must hold x under one of {', '.join(X_KEYS)}, or one array only beside "
            f"labels and factors; got {listed(found) or 'no array'}. Rename the array to x."
        )
    return Keys(x, *others)


def _find(found: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The first of the ``wanted`` that is there: spelt so, in other letters, or one group down."""
    spellings: tuple[Callable[[str], str], ...] = (
        str,
        str.lower,
        lambda key: key.lower().rpartition("/")[2],
    )
    for name in wanted:
        for spelling in spellings:
            same = [key for key in found if spelling(key) == name]
            if len(same) == 1:
                return same[0]
    return None


def interpret(
    path: Path, found: Sequence[str], keys: Keys, arrays: Mapping[str | None, np.ndarray | None]
) -> Named:
    """Find what belongs to x, and warn of arrays that were not read.

    Args:
        path: names the file.
        found: all its arrays.
        keys: of `choose_keys`.
        arrays: those of ``keys`` that could be read.
    """
    used = {keys.x, keys.labels, keys.factors}

    def names(key: str | None, n: int | None = None) -> tuple[str, ...]:
        """The words under ``key``; none where they are no words, or not ``n``, or taken."""
        array = None if key in used else arrays.get(key)
        if array is None or array.dtype.kind not in "US" or array.ndim != 1:
            return ()
        if n is not None and len(array) != n:
            return ()
        used.add(key)
        return tuple(clean(word) for word in array)

    labels, factors = arrays.get(keys.labels), arrays.get(keys.factors)
    if labels is not None and labels.dtype.kind == "f" and not whole(labels).all():
        labels = None  # of a regression
        used.remove(keys.labels)
    class_names: tuple[str, ...] = ()
    factor_names: tuple[str, ...] = ()
    if labels is not None and labels.dtype.kind in "US":
        labels, class_names = _numbered(labels)
    elif labels is not None:
        class_names = names(keys.class_names) or names(keys.names, len(np.unique(labels)))
    if factors is not None:
        width = factors.shape[-1] if factors.ndim == 2 else 0
        factor_names = names(keys.factor_names) or names(keys.names, width)
        factor_names = factor_names or _of_dsprites(keys.factors, factors)
    known = _WITH_DSPRITES if keys.factors in (_GROUPED, "latents_classes") else ()
    left = [key for key in sorted(found) if key not in used and key not in known]
    if left:
        warnings.warn(
            f"{path}: the file held also {listed(left)}, which {'was' if len(left) == 1 else 'were'} not "
            f"read. Labels, whole numbers or words, are read from one of {', '.join(LABEL_KEYS)}; factors from "
            "factors or latents; names from class_names, factor_names or names.",
            stacklevel=2,
        )
    return Named(labels, factors, factor_names, class_names)


def _numbered(words: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """The place of each word among them all, sorted; and those."""
    cleaned = np.array([clean(word) for word in words.ravel()])
    names, numbers = np.unique(cleaned, return_inverse=True)
    return numbers.reshape(words.shape), tuple(names.tolist())


def _of_dsprites(key: str | None, factors: np.ndarray) -> tuple[str, ...]:
    """Those of dSprites, for classes under a key of dSprites and within its ranges."""
    sizes = [len(values) for values in DSPRITES.values()]
    if key not in ("latents_classes", _GROUPED):
        return ()
    if factors.dtype.kind not in "iu" or factors.shape[1:] != (len(sizes),) or not len(factors):
        return ()
    return tuple(DSPRITES) if (factors.max(axis=0) < sizes).all() else ()
