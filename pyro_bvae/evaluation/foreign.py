"""Codes and factors on disk, made by any library."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..metrics.checks import check_array, check_pair


def read_codes(codes: Path, factors: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read codes ``(n, latent_dim)`` and integer factors ``(n, n_factors)``.

    Args:
        codes: .npy, or .npz whose array is called codes, z or loc or is the only one.
        factors: the same, called factors or latents_classes.

    Raises:
        FileNotFoundError, ValueError, TypeError: one sentence.
    """
    z = _read_array("--codes", codes, ("codes", "z", "loc"))
    f = _read_array("--factors", factors, ("factors", "latents_classes"))
    check_pair("evaluate", z, f)  # what it returns has lost the factors' order
    return z, f


def _read_array(option: str, path: Path, keys: tuple[str, ...]) -> np.ndarray:
    check_array(option, path)
    rule = f"{option} must be a .npy file, or .npz with one array or one called {' or '.join(keys)}"
    try:
        with path.open("rb") as opened:
            found = np.load(opened, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            names = [k for k in keys if k in found.files] or found.files[: len(found.files) == 1]
            if names:
                return np.asarray(found[names[0]])
            held = ", ".join(found.files) or "no array"
    except Exception as error:  # numpy and zipfile raise many kinds on damaged files
        raise ValueError(f"{rule}; {path} cannot be read ({type(error).__name__}).") from error
    raise ValueError(f"{rule}; {path} holds {held}. Rename one.")
