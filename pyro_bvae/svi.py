"""`CompiledSVI`: Pyro's SVI whose step is captured once and then replayed, compiled.

Pyro builds its traces anew at every step, in Python. Here guide, model and objective run once under
torch's tracer, forward and backward together, which leaves one graph of tensor operations. Inductor
makes it a program (C++ on a CPU, Triton in a CUDA graph on a GPU), and later steps call that.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.util
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

_MOST_KINDS = 16  # of steps: each takes a compilation
_logger = logging.getLogger(__name__)


class CompiledSVI(SVI):
    """A drop-in for `pyro.infer.SVI` that compiles its step, for any model and guide.

    The first step runs as Pyro runs it; the second of the same batch shape is captured while it runs; from
    the third on the compiled program is called. Loss and gradients are those of the eager step under
    the same seed, to float rounding, and so is what it leaves in buffers such as BatchNorm's.

    A captured program follows the tensors that it reads: parameters, buffers, and the numbers of our
    models and objectives (beta, alpha, gamma, C). It does not follow Python: branches and values that
    are no tensors stay as they were. Watched, and captured anew when they change, are arguments that are
    no tensors, the training mode of the modules that are called, which parameters want a gradient,
    Pyro's parameter store, and what the loss gives as its ``structure``. Another batch shape, such as
    a last short batch, runs eagerly. Where capturing or compiling fails (no C++ compiler, a branch on
    data, an ELBO without a differentiable loss), one warning says so and every step runs eagerly.

    Args:
        model: a Pyro model.
        guide: a Pyro guide.
        optim: a Pyro optimiser.
        loss: an ELBO, ours or Pyro's; or a function ``(model, guide, *args, **kwargs) -> Tensor ()``.
        compile: False runs every step eagerly.

    Examples:
        >>> import pyro.distributions as dist
        >>> from pyro.infer import Trace_ELBO
        >>> from pyro.optim import Adam
        >>> def model(x):
        ...     loc = pyro.param("loc", lambda: torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> svi = CompiledSVI(model, lambda x: None, Adam({"lr": 0.1}), Trace_ELBO())
        >>> round(svi.step(torch.zeros(2)), 3)  # -2 log N(0; 0, 1)
        1.838
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: PyroOptim,
        loss: ELBO | Callable[..., Tensor],
        *,
        compile: bool = True,
    ) -> None:
        super().__init__(model, guide, optim, loss)
        self._objective = loss
        self._differentiable: Callable[..., Tensor] | None = (
            getattr(loss, "differentiable_loss", None) if isinstance(loss, ELBO) else loss
        )
        self._kinds: dict[Hashable, _Kind] = {}
        self._latest: _Kind | None = None
        self._watched = 0
        self.compiled = compile
        """Whether steps are compiled; False once that has failed."""
        if compile and self._differentiable is None:
            self._refuse(f"{type(loss).__name__} has no differentiable_loss")

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """One gradient step; returns the loss. The arguments go to model and guide."""
        if self._differentiable is None:
            return super().step(*args, **kwargs)
        return self.update(*args, **kwargs).item()

    def update(self, *args: Any, **kwargs: Any) -> Tensor:
        """`step` that does not wait for the device: the loss as a tensor ``()``."""
        if self._differentiable is None:
            return torch.as_tensor(super().step(*args, **kwargs))
        taken = None
        if self.compiled:
            try:
                taken = self._take(args, kwargs)
            except _Failed as error:
                self._refuse(str(error))
        loss, parameters = taken or self._backward(args, kwargs)
        self.optim(parameters)
        for parameter in parameters:
            parameter.grad = None
        return loss

    def get_state(self) -> dict[str, Any]:
        """How far the latest kind of step is on its way to being compiled: numbers only.

        ``seen`` are the batch sizes that were stepped on, ``captured`` the one compiled or None.
        """
        if self._latest is None:
            return {"compiled": self.compiled, "seen": [], "captured": None}
        seen, captured = self._latest.shapes, self._latest.captured
        return {
            "compiled": self.compiled,
            "seen": sorted(_rows(shapes) for shapes in seen),
            "captured": None if captured is None else _rows(captured),
        }

    def set_state(self, state: dict[str, Any], example: Callable[[int], tuple[Any, ...]]) -> None:
        """Come to where `get_state` was called: what was eager there will be, what was compiled too.

        The step is run and captured on examples and its results thrown away; buffers such as BatchNorm's
        and the generators are left changed, for the caller to put back.

        Args:
            state: of `get_state`.
            example: arguments of a step for a batch size.
        """
        self.compiled = self.compiled and state["compiled"]
        if not self.compiled or not state["seen"]:
            return
        args = example(state["captured"] or state["seen"][0])
        leaves, spec = tree_flatten((args, {}))
        try:
            kind, (_, parameters) = self._watch(args, {})
            for parameter in parameters:
                parameter.grad = None
            kind.shapes = {_shapes(tree_flatten((example(n), {}))[0]) for n in state["seen"]}
            if state["captured"] is not None:
                self._capture(kind, leaves, spec)
                kind.captured = _shapes(leaves)
        except _Failed as error:
            self._refuse(str(error))
            return
        self._kinds[self._key(leaves, spec)] = self._latest = kind

    def _key(self, leaves: list[Any], spec: TreeSpec) -> Hashable:
        """What tells one kind of step from another, beside what is watched."""
        plain = tuple((type(x), None if isinstance(x, Tensor) else x) for x in leaves)
        return str(spec), plain, getattr(self._objective, "structure", None)

    def _backward(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, list[Tensor]]:
        """An eager step up to its gradients: the loss and the parameters."""
        assert self._differentiable is not None
        with poutine.trace(param_only=True) as captured:
            loss = self._differentiable(self.model, self.guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        sites: Any = captured.trace.nodes.values()
        parameters = dict.fromkeys(site["value"].unconstrained() for site in sites)
        # Of other memory layouts the store holds copies; our optimiser knows the parameters themselves.
        return loss.detach(), list(getattr(self.optim, "parameters", parameters))

    def _take(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, list[Tensor]] | None:
        """`_backward` by a program where there is one, or by its capture; None: take it eagerly."""
        leaves, spec = tree_flatten((args, kwargs))
        shapes, key = _shapes(leaves), self._key(leaves, spec)
        try:
            kind = self._kinds.get(key)
        except TypeError as error:  # an argument that cannot be hashed
            raise _Failed(error) from error
        if kind is None or kind.state != _state(kind):
            self._kinds[key], taken = self._watch(args, kwargs)
            self._kinds[key].shapes.add(shapes)
            self._latest = self._kinds[key]
            return taken
        self._latest = kind
        if kind.program is None and shapes in kind.shapes:
            loss, *grads = self._capture(kind, leaves, spec)
            kind.captured = shapes
        elif kind.program is not None and shapes == kind.captured:
            loss, *grads = self._replay(kind, [x for x in leaves if isinstance(x, Tensor)])
        else:
            kind.shapes.add(shapes)
            return None
        for parameter, grad in zip(kind.reached, grads, strict=True):
            parameter.grad = grad
        return loss.clone(), kind.parameters  # a CUDA graph writes the next loss to the same place

    def _watch(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[_Kind, tuple[Tensor, list[Tensor]]]:
        """An eager step, and what a program of its kind would depend on."""
        self._watched += 1
        if self._watched > _MOST_KINDS:
            raise _Failed("its arguments, or modes of its modules, keep changing: pass tensors")
        called: dict[nn.Module, None] = {}
        hook = register_module_forward_pre_hook(lambda module, inputs: called.setdefault(module))
        try:
            loss, parameters = self._backward(args, kwargs)
        finally:
            hook.remove()
        reached = [p for p in parameters if p.grad is not None]
        kind = _Kind(list(called), parameters, reached)
        kind.state = _state(kind)
        return kind, (loss, parameters)

    def _capture(self, kind: _Kind, leaves: list[Any], spec: TreeSpec) -> list[Tensor]:
        """Take this step under the tracer, on the real tensors: its result is the step's."""
        result: list[Tensor] = []

        def step(*tensors: Tensor) -> list[Tensor]:
            given = iter(tensors)
            filled = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            args, kwargs = tree_unflatten(filled, spec)
            assert self._differentiable is not None
            loss = self._differentiable(self.model, self.guide, *args, **kwargs)
            result[:] = [loss.detach(), *torch.autograd.grad(loss, kind.reached)]
            return result

        with _undone_on_failure(kind):
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            kind.program = _compile(_trace(step, tensors))
        return result

    def _replay(self, kind: _Kind, tensors: list[Tensor]) -> Sequence[Tensor]:
        assert kind.program is not None
        with torch.no_grad():
            if kind.proven:
                return kind.program(*tensors)
            with _undone_on_failure(kind):  # the first call compiles: no compiler, no support, ...
                result = kind.program(*tensors)
        kind.proven = True
        return result

    def _refuse(self, reason: str) -> None:
        self.compiled = False
        self._kinds.clear()
        line = next(iter(reason.strip().splitlines()), "")
        warnings.warn(
            f"CompiledSVI: the step could not be compiled ({line[:200]}). It runs eagerly.",
            RuntimeWarning,
            stacklevel=3,
        )


_Shapes = tuple[tuple[torch.Size, torch.dtype, torch.device], ...]  # of a step's tensors


def _shapes(leaves: list[Any]) -> _Shapes:
    return tuple((x.shape, x.dtype, x.device) for x in leaves if isinstance(x, Tensor))


def _rows(shapes: _Shapes) -> int:
    """The batch size of a step: the length of its first tensor."""
    return shapes[0][0][0] if shapes and shapes[0][0] else 1


@dataclass
class _Kind:
    """Steps that one program serves."""

    modules: list[nn.Module]  # that are called
    parameters: list[Tensor]
    reached: list[Tensor]  # of these, what has a gradient
    state: Hashable = None
    shapes: set[_Shapes] = field(default_factory=set)  # of its batches so far
    captured: _Shapes | None = None  # the shapes that the program takes
    program: Callable[..., Sequence[Tensor]] | None = None
    proven: bool = False


def _state(kind: _Kind) -> Hashable:
    """What a program depends on besides arguments, as far as it can be watched."""
    return (
        tuple(module.training for module in kind.modules),
        tuple(parameter.requires_grad for parameter in kind.parameters),
        tuple(id(value) for _, value in pyro.get_param_store().named_parameters()),
    )


class _Failed(Exception):
    """A step that cannot be compiled; nothing of it was left behind."""


class _ItemsAreTensors(TorchFunctionMode):
    """``item()`` gives the tensor: Pyro's ELBOs read numbers only to add them up."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.item:
            return args[0].detach()
        if func in (Tensor.numpy, Tensor.__array__):  # the tracer would take it for a constant
            raise TypeError("a tensor is read by numpy")
        return func(*args, **(kwargs or {}))


@contextmanager
def _unwatched() -> Iterator[None]:
    """Pyro neither validates values nor looks for NaN: both read numbers, which a tracer cannot."""
    isnan = pyro.util.torch_isnan
    pyro.util.torch_isnan = lambda value: False  # type: ignore[assignment]
    try:
        with pyro.validation_enabled(False), _ItemsAreTensors():
            yield
    finally:
        pyro.util.torch_isnan = isnan


def _trace(step: Callable[..., list[Tensor]], tensors: list[Tensor]) -> torch.fx.GraphModule:
    """The graph of ``step``; tensors it reads from elsewhere become the graph's buffers, by reference."""
    from torch.fx.experimental.proxy_tensor import make_fx

    with _unwatched():
        graph = make_fx(step)(*tensors)
    for name, value in list(vars(graph).items()):
        if isinstance(value, Tensor):
            delattr(graph, name)
            graph.register_buffer(name, value, persistent=False)
    return graph


@contextmanager
def _undone_on_failure(kind: _Kind) -> Iterator[None]:
    """Where the block fails, noise and buffers are put back, since the step will be taken eagerly."""
    buffers = [buffer for module in kind.modules for buffer in module.buffers(recurse=False)]
    kept = [buffer.clone() for buffer in buffers]
    noise = torch.get_rng_state()
    devices = {p.device for p in kind.parameters if p.is_cuda}
    cuda = {device: torch.cuda.get_rng_state(device) for device in devices}
    try:
        yield
    except Exception as error:  # a stranger's program, or its compiler, may fail in any way
        with torch.no_grad():
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.copy_(value)
        torch.set_rng_state(noise)
        for device, state in cuda.items():
            torch.cuda.set_rng_state(state, device)
        raise _Failed(str(error) or type(error).__name__) from error


def _compile(graph: torch.fx.GraphModule) -> Callable[..., Sequence[Tensor]]:
    _logger.info("Compiling the training step, which takes about half a minute ...")
    with warnings.catch_warnings():  # torch's own, of its own parts
        warnings.simplefilter("ignore", DeprecationWarning)
        import torch._inductor.compile_fx  # noqa: F401
    # fallback_random: the noise of eager torch, number by number
    cuda = any(tensor.is_cuda for tensor in (*graph.parameters(), *graph.buffers()))
    options: dict[str, Any] = {"fallback_random": True, "triton.cudagraphs": cuda}
    compiled = torch.compile(graph, fullgraph=True, dynamic=False, options=options)

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        if cuda:
            torch.compiler.cudagraph_mark_step_begin()  # what the last step gave is no longer needed
        found: Sequence[Tensor] = compiled(*tensors)
        return found

    return run
