"""The one container every data set ends in: images or vectors, with labels and factors beside them.

An array that fits in memory is an `ndarray`; anything read from disk piece by piece is a `Rows`
object, which looks like the array and returns the rows it is asked for.
"""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from .rows import Mapped, Rows, Subset, is_resident

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
        x: uint8 (0 to 255, read as [0, 1]), float32 or float64, in any byte order; images
            `(n, channels, height, width)`, vectors `(n, d)`; an array, a memory-mapped array or `Rows`.
        labels: whole numbers from 0, `(n,)` or `(n, 1)`, stored as int64 `(n,)`, or None.
        factors: numbers `(n, n_factors)`, stored as int64 where all are whole, else as float64, or None.
        factor_names: one name a column of `factors`, or empty.
        class_names: `class_names[label]` is the name of a class; or empty.

    Raises:
        TypeError: `x`, `labels` or `factors` is of the wrong kind.
        ValueError: lengths disagree, there is no row, a value is masked, NaN or infinite, or a label is
            negative.
    """

    x: np.ndarray | Rows
    labels: np.ndarray | None = None
    factors: np.ndarray | None = None
    factor_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", _checked_x(self.x))
        if self.labels is not None:
            object.__setattr__(self, "labels", _checked_labels(self.labels, len(self.x)))
        width = None
        if self.factors is not None:
            factors = _numbers("factors", self.factors)
            width = factors.shape[-1] if factors.ndim == 2 else "n_factors"
            _check_shape("factors", factors, (len(self.x), width))
            object.__setattr__(self, "factors", factors)
        object.__setattr__(self, "factor_names", tuple(self.factor_names))
        if self.factor_names and len(self.factor_names) != width:
            raise ValueError(
                f"Data: factor_names must name each column of factors ({width or 0}); got "
                f"{self.factor_names}. Give one name a column, or none at all."
            )
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.class_names and len(self.class_names) < self.n_classes:
            raise ValueError(
                f"Data: class_names must name each class, {self.n_classes} or more; got "
                f"{len(self.class_names)}. Give one name a class, or none at all."
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
        return unmasked("x", self.x[index])

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
        return to_float(narrow(x, dtype).to(device), dtype), labels

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
            self.class_names,
        )


def _checked_x(x: np.ndarray | Rows) -> np.ndarray | Rows:
    """``x`` as uint8 or float32 in this machine's byte order, in memory as a plain array."""
    shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
    if shape is None or not isinstance(dtype, np.dtype) or not isinstance(x, Sized):
        raise TypeError(
            f"Data: x must be a numpy array or an object with shape, numpy dtype, __len__ and "
            f"__getitem__; got {type(x).__name__}. Convert it with numpy.asarray."
        )
    plain = dtype.newbyteorder("=")
    if plain not in _DTYPES:
        raise TypeError(
            f"Data: x must be uint8, float32 or float64; got {dtype.name}. "
            "Convert it with x.astype(numpy.float32), or scale grey values to uint8 0 to 255."
        )
    if len(shape) < 2 or 0 in shape:
        raise ValueError(
            f"Data: x must have at least one row of at least one value, as (n, d) or "
            f"(n, channels, height, width); got shape {tuple(shape)}. Reshape it."
        )
    if not (isinstance(x, np.ndarray) and is_resident(x)):
        return x if dtype == plain else Mapped(x, _native, tuple(shape), plain)
    array = unmasked("x", x).astype(plain, copy=False)
    if plain.kind == "f":
        finite = np.isfinite(array)
        if not finite.all():
            first = int(np.flatnonzero(~finite.reshape(len(x), -1).all(axis=1))[0])
            raise ValueError(
                f"Data: x must be finite; got {finite.size - int(finite.sum())} NaN or infinite "
                f"values, the first in row {first}. Remove or fill those rows."
            )
    return array


def _native(rows: np.ndarray) -> np.ndarray:
    return rows.astype(rows.dtype.newbyteorder("="))


def unmasked(name: str, values: Any, owner: str = "Data") -> np.ndarray:
    """A plain array of ``values``.

    Raises:
        ValueError: some of them are masked: the values under a mask have no meaning.
    """
    if np.ma.is_masked(values):
        mask = np.ma.getmaskarray(values)
        first = int(np.flatnonzero(mask.reshape(len(mask), -1).any(axis=1))[0])
        raise ValueError(
            f"{owner}: {name} must have no masked values; got {int(mask.sum())}, the first in row {first}. "
            "Fill them, for example with .filled(0), or remove those rows."
        )
    return np.asarray(values)


def _checked_labels(values: object, n: int) -> np.ndarray:
    labels = _numbers("labels", values)
    if labels.shape == (n, 1):
        labels = labels[:, 0]
    _check_shape("labels", labels, (n,))
    if labels.dtype.kind == "f":
        first = int(np.flatnonzero(~whole(labels))[0])
        raise TypeError(
            f"Data: labels must be integers; got {labels[first]:g} in row {first}. "
            "Number the classes from 0, for example with numpy.unique(..., return_inverse=True)."
        )
    if labels.min() < 0:
        raise ValueError(
            f"Data: labels must be 0 or more; got {labels.min()} in row "
            f"{labels.argmin()}. Number the classes from 0."
        )
    return labels


def _numbers(name: str, values: object) -> np.ndarray:
    """``values`` as int64 where all are whole, else as float64."""
    array = unmasked(name, values)
    if array.dtype.kind not in "iuf":
        raise TypeError(
            f"Data: {name} must be {'integers' if name == 'labels' else 'numbers'}; got {array.dtype.name}. "
            "Number the values from 0, for example with numpy.unique(..., return_inverse=True)."
        )
    if array.dtype.kind == "f":
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1) if array.ndim else []
        if np.any(bad):
            first = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"Data: {name} must be finite; got {array[first]} in row {first}. Remove those rows."
            )
        if not whole(array).all():
            return array.astype(np.float64)
    return array.astype(np.int64, copy=False)


def whole(array: np.ndarray) -> np.ndarray:
    """Which floats are whole numbers that they tell from their neighbours."""
    return (array == np.rint(array)) & (np.abs(array) < 2**53)


def _check_shape(name: str, array: np.ndarray, shape: tuple[object, ...]) -> None:
    if array.shape != shape:
        expected = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
        one_hot = " From one row of 0 and 1 each, take labels.argmax(axis=1)." * (name == "labels")
        raise ValueError(
            f"Data: {name} must have shape {expected}; got {array.shape}. "
            f"Give one row for each row of x.{one_hot}"
        )


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


DataLike = Union[Data, np.ndarray, "torch.Tensor", tuple[Any, Any]]
"""What `as_data` takes."""


def as_data(x: DataLike, owner: str) -> Data:
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
    pair = x if isinstance(x, (tuple, list)) and len(x) == 2 else (x, None)
    rows, labels = (_array(part) for part in pair)
    if rows is None or (labels is None and pair[1] is not None):
        raise TypeError(
            f"{owner}: data must be Data, an array or tensor (n, *x_shape), or the pair (x, labels); got "
            f"{type(x).__name__}. Collect its rows, as in pyro_bvae.datasets.Data(x, labels=labels)."
        )
    return Data(rows, labels)


def _array(x: Any) -> np.ndarray | None:
    """A tensor or an array as an array that `Data` takes where it can; None for another kind."""
    if hasattr(x, "detach"):  # a tensor: torch is not imported to find that out
        x = x.detach().cpu()
        x = (x if x.dtype.itemsize > 2 or not x.dtype.is_floating_point else x.float()).numpy()
    if isinstance(x, np.ndarray) and x.dtype == np.float16:
        return x.astype(np.float32)
    return x if isinstance(x, np.ndarray) else None


def narrow(x: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """Floats in `dtype`, float32 by default, before they go to a device that may lack float64."""
    import torch

    return x.to(dtype or torch.float32) if x.is_floating_point() else x


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
