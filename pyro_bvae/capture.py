"""`trace`: a training step as one graph of tensor operations, or `Refused`.

torch's tracer records operations on tensors. What Python reads off a tensor (a number, a list, a shape that
depends on data) would stay in the graph as it was, so it is refused here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import pyro.util
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .watching import Held

_LIFTED = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)
# Methods that lead out of the world of tensors, past torch's dispatcher.
_READERS = {
    "__array__", "__dlpack__", "__float__", "__int__", "__bool__", "__complex__", "__index__", "__format__",
    "__reduce_ex__", "__repr__", "apply_", "data_ptr", "map_", "map2_", "numpy", "storage", "tolist",
    "untyped_storage",
}  # fmt: skip
_MAKERS = {"tensor", "as_tensor", "asarray", "new_tensor"}


class Refused(Exception):
    """A step that cannot be compiled; nothing of it was left behind."""


def trace(
    step: Callable[..., list[Tensor]], tensors: list[Tensor], known: Iterable[Tensor]
) -> torch.fx.GraphModule:
    """The graph of ``step``; tensors it reads from elsewhere become the graph's buffers, by reference.

    Args:
        step: takes and returns tensors; runs once.
        tensors: its arguments.
        known: tensors that it may read from elsewhere.

    Raises:
        Refused: the graph would not do what the step does.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    def checked(*given: Tensor) -> list[Tensor]:
        with _FixedShapes():
            return step(*given)

    with _unvalidated():
        graph = make_fx(checked)(*tensors)
    places = {id(tensor) for tensor in known}
    for node in graph.graph.find_nodes(op="get_attr"):
        value = getattr(graph, node.target)
        literal = all(user.target in _LIFTED for user in node.users)  # a number in the program
        if isinstance(value, Tensor) and not literal and id(value) not in places:
            raise Refused("it reads a tensor from a place that cannot be watched: pass it")
    for name, value in list(vars(graph).items()):
        if isinstance(value, Tensor):
            delattr(graph, name)
            graph.register_buffer(name, value, persistent=False)
    return graph


class _OnlyTensors(TorchFunctionMode):
    """``item()`` gives the tensor: Pyro's ELBOs read numbers only to add them up."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.item:
            return args[0].detach()
        name = getattr(func, "__name__", "")
        if name in _READERS:
            raise Refused(f"a tensor is read by {name}")
        if name in _MAKERS and any(
            isinstance(x, (Tensor, np.ndarray)) for x in _items(args, kwargs)
        ):
            raise Refused(f"torch.{name} takes numbers out of a tensor or array: use torch.stack")
        return func(*args, **(kwargs or {}))


def _items(args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Iterator[Any]:
    """What is in the lists given to a function that makes a tensor, or an array that is given."""
    for data in (*args, *(kwargs or {}).values()):
        if not isinstance(data, Tensor):
            yield from tree_leaves(data)


class _FixedShapes(TorchDispatchMode):
    """No number is read off a tensor, and no shape depends on data."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tags = getattr(func, "tags", ())
        if torch.Tag.data_dependent_output in tags:
            raise Refused("a number is read off a tensor, as a branch on data does")
        if torch.Tag.dynamic_output_shape in tags:
            masks = (torch.bool, torch.uint8)
            by_number = func is torch.ops.aten.index.Tensor and not any(
                index is not None and index.dtype in masks for index in args[1]
            )
            if not by_number:
                raise Refused(f"a shape depends on data, in {func}: use masks of a fixed shape")
        return func(*args, **(kwargs or {}))


@contextmanager
def _unvalidated() -> Iterator[None]:
    """Pyro neither validates values nor looks for NaN: both read numbers, which a tracer cannot."""
    isnan = pyro.util.torch_isnan
    pyro.util.torch_isnan = lambda value: False  # type: ignore[assignment]
    try:
        with pyro.validation_enabled(False), _OnlyTensors():
            yield
    finally:
        pyro.util.torch_isnan = isnan


@contextmanager
def undone_on_failure(held: Held, known: set[Tensor], parameters: list[Tensor]) -> Iterator[None]:
    """Where the block fails, what it changed is put back, since the step will be taken eagerly."""
    store = pyro.get_param_store()
    kept = [(tensor, tensor.data, tensor.detach().clone()) for tensor in known]
    gradients = [(tensor, tensor.grad) for tensor in known if tensor.is_leaf]
    names, drawn, noise = set(store.keys()), _drawn(), torch.get_rng_state()
    devices = {p.device for p in parameters if p.is_cuda}
    cuda = {device: torch.cuda.get_rng_state(device) for device in devices}
    for tensor, _ in gradients:
        tensor.grad = None
    try:
        yield
        if any(tensor.data_ptr() != data.data_ptr() for tensor, data, _ in kept):
            raise Refused("a step puts other data into a tensor: write copy_")
        if _drawn() != drawn:
            raise Refused("Python's or NumPy's random numbers are drawn: draw torch's")
    except Exception as error:  # a user's program, or its compiler, may fail in any way
        held.restore()
        with torch.no_grad():
            for tensor, data, value in kept:
                tensor.data = data
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
        for parameter in parameters:
            parameter.grad = None
        for name in set(store.keys()) - names:
            del store[name]
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
        torch.set_rng_state(noise)
        for device, state in cuda.items():
            torch.cuda.set_rng_state(state, device)
        raise Refused(str(error) or type(error).__name__) from error
    finally:
        for tensor, gradient in gradients:
            tensor.grad = gradient


def _drawn() -> tuple[Any, Any]:
    """The states of Python's and NumPy's generators."""
    name, keys, *rest = np.random.get_state()
    return random.getstate(), (name, tuple(keys), *rest)
