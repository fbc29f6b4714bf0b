"""The one container every data set ends in: images or vectors, with labels and factors beside them.

An array that fits in memory is an `ndarray`; anything read from disk piece by piece is a `Rows`
object, which looks like the array and returns the rows it is asked for.
"""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .rows import Rows, Subset, is_resident

if TYPE_CHECKING:
    import torch

_DTYPES = (np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.float64))


# eq=False: comparing two arrays has no single truth value, so instances compare by identity.
@dataclass(frozen=True, eq=False)
class Data:
    """A data set: `x` with optional class labels and ground-truth factors.

    Examples:
        >>> data = Data(np.zeros((3, 2), np.float32), labels=np.array([0, 2, 1]))
        >>> len(data), data.x_shape, data.n_classes, data.resident
        (3, (2,), 3, True)
        >>> data.subset(np.array([2, 0])).labels
        array([1, 0])

    Attributes:
        x: uint8 (0 to 255, read as [0, 1]), float32 or float64; images `(n, channels, height, width)`,
            vectors `(n, d)`; an array, a memory-mapped array or `Rows`.
        labels: `(n,)` integers from 0, stored as int64, or None.
        factors: `(n, n_factors)` integers, stored as int64, or None.
        factor_names: one name a column of `factors`, or empty.

    Raises:
        TypeError: `x`, `labels` or `factors` is of the wrong kind.
        ValueError: lengths disagree, there is no row, a float is NaN or infinite, or a label is
            negative.
    """

    x: np.ndarray | Rows
    labels: np.ndarray | None = None
    factors: np.ndarray | None = None
    factor_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_x(self.x)
        if self.labels is not None:
            labels = _integers("labels", self.labels, (len(self.x),))
            if labels.min() < 0:
                raise ValueError(
                    f"Data: labels must be 0 or more; got {labels.min()} in row "
                    f"{labels.argmin()}. Number the classes from 0."
                )
            object.__setattr__(self, "labels", labels)
        width = None
        if self.factors is not None:
            width = np.shape(self.factors)[-1] if np.ndim(self.factors) == 2 else "n_factors"
            factors = _integers("factors", self.factors, (len(self.x), width))
            object.__setattr__(self, "factors", factors)
        object.__setattr__(self, "factor_names", tuple(self.factor_names))
        if self.factor_names and len(self.factor_names) != width:
            raise ValueError(
                f"Data: factor_names must name each column of factors ({width or 0}); got "
                f"{self.factor_names}. Give one name a column, or none at all."
            )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one row of `x`."""
        return tuple(self.x.shape[1:])

    @property
    def n_classes(self) -> int:
        """Largest label plus one; 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    @property
    def resident(self) -> bool:
        """True if `x` is an array in memory, False if it is memory-mapped or read lazily."""
        return is_resident(self.x)

    def batch(self, index: np.ndarray) -> np.ndarray:
        """Return the rows `index` (int64 `(batch,)`) of `x` as an array `(batch, *x_shape)`."""
        return np.asarray(self.x[index])

    def tensors(
        self,
        rows: np.ndarray,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return `rows` as networks read them: x by `to_float` and labels, on `device`.

        Returns:
            x `(batch, *x_shape)` of `dtype`, float32 by default; labels int64 `(batch,)`, or None without
            labels.
        """
        import torch

        x = torch.from_numpy(np.require(self.batch(rows), requirements=["C", "W"]))
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows]).to(device)
        return to_float(x.to(device), dtype), labels

    def subset(self, indices: np.ndarray) -> Data:
        """Return the rows `indices` as a `Data` of its own; a lazily read `x` stays lazy.

        Args:
            indices: integers `(m,)` in 0 to n − 1, in any order.

        Raises:
            TypeError: `indices` are not integers (a boolean mask, for example).
            ValueError: an index lies outside the data.
        """
        indices = np.asarray(indices)
        if indices.dtype.kind not in "iu":
            raise TypeError(
                f"Data: subset indices must be integers; got {indices.dtype}. "
                "Turn a mask into indices with numpy.flatnonzero."
            )
        outside = indices[(indices < 0) | (indices >= len(self))]
        if outside.size:
            raise ValueError(
                f"Data: subset indices must lie in 0 to {len(self) - 1}; got {outside[0]}. "
                "Choose rows that exist."
            )
        indices = indices.astype(np.int64)
        return Data(
            self.x[indices] if self.resident else Subset(self.x, indices),
            None if self.labels is None else self.labels[indices],
            None if self.factors is None else self.factors[indices],
            self.factor_names,
        )


def _check_x(x: object) -> None:
    shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
    if shape is None or not isinstance(dtype, np.dtype) or not isinstance(x, Sized):
        raise TypeError(
            f"Data: x must be a numpy array or an object with shape, numpy dtype, __len__ and "
            f"__getitem__; got {type(x).__name__}. Convert it with numpy.asarray."
        )
    if dtype not in _DTYPES:
        raise TypeError(
            f"Data: x must be uint8, float32 or float64; got {dtype.name}. "
            "Convert it with x.astype(numpy.float32), or scale grey values to uint8 0 to 255."
        )
    if len(shape) < 2 or 0 in shape:
        raise ValueError(
            f"Data: x must have at least one row of at least one value, as (n, d) or "
            f"(n, channels, height, width); got shape {tuple(shape)}. Reshape it."
        )
    if isinstance(x, np.ndarray) and is_resident(x) and dtype.kind == "f":
        finite = np.isfinite(x)
        if not finite.all():
            first = int(np.flatnonzero(~finite.reshape(len(x), -1).all(axis=1))[0])
            raise ValueError(
                f"Data: x must be finite; got {finite.size - int(finite.sum())} NaN or infinite "
                f"values, the first in row {first}. Remove or fill those rows."
            )


def _integers(name: str, values: object, shape: tuple[object, ...]) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"Data: {name} must be integers; got {array.dtype.name}. "
            "Number the values from 0, for example with numpy.unique(..., return_inverse=True)."
        )
    if array.shape != shape:
        expected = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
        raise ValueError(
            f"Data: {name} must have shape {expected}; got {array.shape}. "
            "Give one row for each row of x."
        )
    return array.astype(np.int64, copy=False)


def split(data: Data, test_fraction: float, seed: int) -> tuple[Data, Data]:
    """Split `data` at random into train and test parts, at least one row each.

    Args:
        data: at least two rows.
        test_fraction: share of the rows held out, in (0, 1).
        seed: of the permutation; the same seed gives the same rows.

    Returns:
        `(train, test)`, disjoint, together all of `data`.

    Raises:
        ValueError: `test_fraction` is outside (0, 1), or there is only one row.
    """
    if isinstance(test_fraction, bool) or not isinstance(test_fraction, (int, float)):
        raise TypeError(
            f"split: test_fraction must be a number; got {type(test_fraction).__name__}. "
            "Try --test-fraction 0.1."
        )
    if not 0 < test_fraction < 1:
        raise ValueError(
            f"split: test_fraction must lie between 0 and 1; got {test_fraction}. "
            "Try --test-fraction 0.1."
        )
    if len(data) < 2:
        raise ValueError(
            "split: data must have at least 2 rows, one to train on and one to test on; got 1. "
            "Add rows."
        )
    order = np.random.default_rng(seed).permutation(len(data))
    n_test = min(max(round(len(data) * test_fraction), 1), len(data) - 1)
    return data.subset(order[n_test:]), data.subset(order[:n_test])


def as_data(x: Any, owner: str) -> Data:
    """Return `x` as `Data`: a `Data`, an array or a tensor `(n, *x_shape)`, or the pair (x, labels).

    Half-precision floats become float32, and tensors are copied to the CPU.

    Args:
        x: the rows.
        owner: names the function in errors.

    Raises:
        TypeError: of another kind, such as a `DataLoader`.
        ValueError: as `Data`.
    """
    if isinstance(x, Data):
        return x
    pair = x if isinstance(x, (tuple, list)) and len(x) == 2 else (x,)
    arrays = [_array(part) for part in pair]
    if any(array is None for array in arrays):
        raise TypeError(
            f"{owner}: data must be Data, an array or tensor (n, *x_shape), or the pair (x, labels); got "
            f"{type(x).__name__}. Collect its rows, as in pyro_bvae.datasets.Data(x, labels=labels)."
        )
    return Data(*arrays)


def _array(x: Any) -> np.ndarray | None:
    """A tensor or an array as an array that `Data` takes where it can; None for another kind."""
    if hasattr(x, "detach"):  # a tensor: torch is not imported to find that out
        x = x.detach().cpu()
        x = (x if x.dtype.itemsize > 2 or not x.dtype.is_floating_point else x.float()).numpy()
    if isinstance(x, np.ndarray) and x.dtype == np.float16:
        return x.astype(np.float32)
    return x if isinstance(x, np.ndarray) else None


def to_float(x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Turn stored values into what a network reads, on whichever device they already are.

    Args:
        x: uint8 `(batch, *x_shape)`, 0 to 255, or any other dtype.
        dtype: of the model.

    Returns:
        `(batch, *x_shape)` of `dtype`, float32 by default: uint8 divided by 255 into [0, 1], others
        unchanged.

    Examples:
        >>> import torch
        >>> to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
        tensor([0.0000, 0.2000, 1.0000])
    """
    import torch

    values = x.to(dtype or torch.float32)
    return values / 255 if x.dtype == torch.uint8 else values
