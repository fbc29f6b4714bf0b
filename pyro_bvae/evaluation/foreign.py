"""Codes and factors on disk, made by any library."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..datasets.names import listed
from ..datasets.numpy_files import read_npy, read_npz
from ..datasets.rows import Refused
from ..metrics.checks import check_array
from ..metrics.factors import check_pair


def read_codes(codes: Path, factors: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read codes ``(n, latent_dim)`` and factors ``(n, n_factors)``, whole numbers or real ones.

    Args:
        codes: .npy, or .npz whose array is called codes, z or loc or is the only one.
        factors: the same, called factors or latents_classes.

    Raises:
        FileNotFoundError, ValueError, TypeError: one sentence.
    """
    z = _read_array("--codes", codes, ("codes", "z", "loc"))
    f = _read_array("--factors", factors, ("factors", "latents_classes"))
    check_pair("evaluate", z, f, cut_real=False)  # only checked: its classes have lost their order
    return z, f


def _read_array(option: str, path: Path, keys: tuple[str, ...]) -> np.ndarray:
    check_array(option, path)
    rule = f"{option} must be a .npy file, or .npz with one array or one called {' or '.join(keys)}"

    def choose(found: list[str]) -> list[str]:
        names = [key for key in keys if key in found] or found[: len(found) == 1]
        if not names:
            held = listed(found) or "no array"
            raise Refused(f"{rule}; {path} holds {held}. Rename one.")
        return names[:1]

    try:
        with path.open("rb") as opened:
            zipped = opened.read(2) == b"PK"
        array = read_npz(path, choose)[0] if zipped else read_npy(path)
    except Refused:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds on damaged files
        raise ValueError(f"{rule}; {path} cannot be read ({type(error).__name__}).") from error
    return np.asarray(array)
