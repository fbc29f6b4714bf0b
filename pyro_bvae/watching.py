"""`Held`: the Python values and tensors that programs can reach, and whether they have changed.

A captured step replays tensor operations. What its model, guide and loss hold besides their arguments
(attributes, closures, globals that they name, lists and dicts of these) is read when it is captured.
"""

from __future__ import annotations

import dis
import functools
import operator
import random
import sys
from collections import deque
from collections.abc import Iterator
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

_LIBRARIES = ("numpy", "pyro", "pyro_bvae", "torch")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
# What Pyro and torch write in Python and a program may still set: they are looked into.
_OPEN = (nn.Module, torch.distributions.Distribution, Messenger, ELBO)
# Their state changes at each use, and lies in C.
_STREAMS = (Iterator, random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
_MOST_ITEMS = 256  # of a list or array that are compared at each step
_OF_EVERY_MODULE = {*vars(nn.Module())} - {"training"}


class Held:
    """What ``roots`` can reach, as it is now.

    Of an object that is not a library's, only attributes count that the code found on the way names.
    Functions and classes of libraries are not looked into, nor are the contents of large NumPy arrays. Those
    of tensors need not be, since a captured step reads the tensors themselves.

    Args:
        roots: functions, modules, objectives, or other objects.
    """

    def __init__(self, *roots: Any) -> None:
        self._names: set[str] = set()
        found = -1
        while found != len(
            self._names
        ):  # code found late may name attributes of objects seen before
            found = len(self._names)
            self.tensors: list[Tensor] = []
            self.stream: str | None = None
            """Name of a generator or iterator among the values: its uses cannot be watched."""
            self._seen: dict[int, Any] = {}  # by id; kept, so that no id is used twice
            self._owners: list[dict[str, Any]] = []
            self._keys: list[str] = []
            self._values: list[Any] = []
            self._cells: list[tuple[CellType, str, Any]] = []
            self._items: list[
                tuple[Any, str, tuple[Any, ...]]
            ] = []  # of lists, sets; keys of dicts
            self._arrays: list[tuple[np.ndarray, str, np.ndarray]] = []
            self._of_classes: list[tuple[type, str, Any]] = []
            for root in roots:
                self._look(root, getattr(root, "__name__", type(root).__name__), root=True)

    def changed(self) -> str | None:
        """The name of a value that is not what it was, or None."""
        if not all(map(operator.is_, map(dict.get, self._owners, self._keys), self._values)):
            for i, (owner, key) in enumerate(zip(self._owners, self._keys, strict=True)):
                if not _same(owner.get(key), self._values[i]):
                    return str(key)
                self._values[i] = owner.get(key)
        for cell, name, value in self._cells:
            if not _same(_content(cell), value):
                return name
        for cls, name, value in self._of_classes:
            if not _same(vars(cls).get(name), value):
                return name
        for items, name, values in self._items:
            first = values[:_MOST_ITEMS]
            same = all(map(operator.is_, items, first)) or all(map(_same, items, first))
            if len(items) != len(values) or not same:
                return name
        for array, name, before in self._arrays:
            if array.tobytes() != before.tobytes():
                return name
        return None

    def restore(self) -> None:
        """Put back what has changed."""
        for owner, key, value in zip(self._owners, self._keys, self._values, strict=True):
            if owner.get(key) is not value:
                owner[key] = value
        for cell, _, value in self._cells:
            if _content(cell) is not value:
                cell.cell_contents = value
        for cls, name, value in self._of_classes:
            if vars(cls).get(name) is not value:
                setattr(cls, name, value)
        for items, _, values in self._items:
            if isinstance(items, dict):
                for key in [key for key in items if key not in values]:
                    del items[key]
            else:
                items.clear()
                (items.update if isinstance(items, set) else items.extend)(values)
        for array, _, before in self._arrays:
            array[...] = before

    def _look(self, value: Any, name: str, root: bool = False) -> None:
        if isinstance(value, (*_PLAIN, type)) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            self.tensors.append(value)
        elif isinstance(value, FunctionType):
            self._look_into_function(value)
        elif isinstance(value, MethodType):
            self._look((value.__self__, value.__func__), name)
        elif isinstance(value, functools.partial):
            self._look((value.func, value.args, value.keywords), name)
        elif isinstance(value, (dict, list, tuple, set, deque)):
            if not isinstance(value, tuple):
                self._items.append((value, name, tuple(value)))
            for item in list(value)[:_MOST_ITEMS]:
                if isinstance(value, dict):
                    self._hold(value, item, f"{name}[{item!r}]")
                else:
                    self._look(item, name)
        elif isinstance(value, np.ndarray):
            if value.size <= _MOST_ITEMS:
                self._arrays.append((value, name, value.copy()))
        elif isinstance(value, _STREAMS):
            self.stream = name
        elif isinstance(value, _OPEN) or root or not _of_library(type(value)):
            self._look_into_object(value)

    def _hold(self, owner: Any, key: Any, name: str | None = None) -> None:
        self._owners.append(owner)
        self._keys.append(key)
        self._values.append(owner[key])
        self._look(owner[key], name or str(key))

    def _is_named(self, key: str) -> bool:
        return key in self._names or not self._names.isdisjoint(("getattr", "vars", "__dict__"))

    def _look_into_object(self, value: Any) -> None:
        of_library = _of_library(type(value))
        attributes = getattr(value, "__dict__", {})
        for key, kept in list(attributes.items()):
            if isinstance(value, nn.Module) and key in _OF_EVERY_MODULE:
                continue
            if isinstance(
                attributes.get(f"_{key}"), Tensor
            ):  # a number of ours that a tensor follows
                continue
            # a library's own caches, containers and helpers may be made again at each call
            public = isinstance(kept, (*_PLAIN, Tensor)) and not key.startswith("_")
            if public if of_library else key == "training" or self._is_named(key):
                self._hold(attributes, key)
            elif of_library and isinstance(kept, (Tensor, *_OPEN, FunctionType, MethodType)):
                self._look(kept, key)
        if isinstance(value, nn.Module):
            samples = attributes.get("_pyro_samples", {})  # priors of a PyroModule
            for part in (value._parameters, value._buffers, value._modules, samples):
                for key in part:
                    self._hold(part, key)
        for cls in type(value).__mro__:
            for key, kept in () if _closed(cls) else vars(cls).items():
                if key == "forward" or key.startswith("__call") or self._is_named(key):
                    kept = getattr(kept, "fget", getattr(kept, "__func__", kept))
                    self._of_classes.append((cls, key, vars(cls)[key]))
                    self._look(kept, key)

    def _look_into_function(self, function: FunctionType) -> None:
        if _closed(function):
            return
        code, names = function.__code__, function.__globals__
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self._cells.append((cell, name, _content(cell)))
            self._look(_content(cell), name)
        self._look((function.__defaults__, function.__kwdefaults__), function.__name__)
        read, attributes = _names_of(code)
        self._names |= attributes | read
        for name in sorted(read & names.keys()):
            kept = names[name]
            if not isinstance(kept, (ModuleType, type, FunctionType)):
                self._hold(names, name)
            elif isinstance(kept, FunctionType):
                self._look(kept, name)
            elif isinstance(kept, ModuleType) and not _closed(kept):
                for key in sorted(attributes & vars(kept).keys()):
                    if not isinstance(vars(kept)[key], (ModuleType, type, FunctionType)):
                        self._hold(vars(kept), key)
                    else:
                        self._look(vars(kept)[key], key)


def _of_library(thing: Any) -> bool:
    """Whether a function, class or module is torch's, Pyro's or ours."""
    module = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", "")
    return (module or "").partition(".")[0] in _LIBRARIES


def _closed(thing: Any) -> bool:
    """Whether a function, class or module is a library's, or Python's."""
    module = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", "")
    return _of_library(thing) or (module or "").partition(".")[0] in sys.stdlib_module_names


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, _PLAIN) and a == b)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a variable that has no value yet
        return None


@functools.lru_cache(maxsize=512)
def _names_of(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Globals that a function's code reads, and all names of attributes, functions within it included."""
    loads = ("LOAD_GLOBAL", "LOAD_NAME")
    read = {i.argval for i in dis.get_instructions(code) if i.opname in loads}
    attributes = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            for names, more in zip((read, attributes), _names_of(constant), strict=True):
                names |= more
    return frozenset(read), frozenset(attributes)
