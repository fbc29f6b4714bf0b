"""`CompiledSVI`: Pyro's SVI whose step is captured once and then replayed, compiled.

Pyro builds its traces anew at every step, in Python. Here guide, model and objective run once under
torch's tracer, forward and backward together, which leaves one graph of tensor operations. Inductor
makes it a program (C++ on a CPU, Triton in a CUDA graph on a GPU), and later steps call that.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.util
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI
from pyro.infer.util import torch_item
from pyro.optim import PyroOptim
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from .capture import Refused, trace, undone_on_failure
from .watching import Held

_MOST_KINDS = 16  # of steps: each takes a compilation
_logger = logging.getLogger(__name__)


class CompiledSVI(SVI):
    """A drop-in for `pyro.infer.SVI` that compiles its step, for any model and guide.

    The first step runs as Pyro runs it; the second of the same batch shape is captured while it runs; from
    the third on the compiled program is called. Loss and gradients are those of the eager step under
    the same seed, to float rounding, and so is what it leaves in buffers such as BatchNorm's. This was
    tested on torch 2.13. On older versions two passes of torch's compiler that change the order of draws are
    switched off, so that D's noise should be the eager step's too; no older version was run.

    A captured program follows the tensors that it reads: parameters, buffers, and the numbers of our
    models and objectives (beta, alpha, gamma, C). Watched, and captured anew when they change, are arguments
    that are no tensors, the values that model, guide and loss hold (attributes, closures, globals that
    they name), the modes of the modules that are called, which parameters want a gradient, and Pyro's
    parameter store. Another batch shape, such as a last short batch, runs eagerly. Where a step cannot be
    captured or compiled, one warning says why and every step runs eagerly: no C++ compiler; a number
    or a shape that Python reads off a tensor, as a branch on data does; values that change in each step,
    such as a counter. What Python reads elsewhere (files, the clock, NumPy arrays changed in place) is not
    watched.

    Args:
        model: a Pyro model.
        guide: a Pyro guide.
        optim: a Pyro optimiser.
        loss: an ELBO, ours or Pyro's; or a function ``(model, guide, *args, **kwargs) -> Tensor ()``.
        loss_and_grads: beside a function as ``loss``, what computes it and its gradients in a step.
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
        loss: ELBO | Callable[..., Any],
        loss_and_grads: Callable[..., Any] | None = None,
        *,
        compile: bool = True,
    ) -> None:
        if loss_and_grads is None and not isinstance(loss, ELBO):
            loss_and_grads = self._differentiated
        super().__init__(model, guide, optim, loss, loss_and_grads)
        self._objective = loss
        self._kinds: dict[Hashable, _Kind] = {}
        self._latest: _Kind | None = None
        self._watched = 0
        self._reached: set[Tensor] = set()  # parameters that a step has had a gradient for
        self.compiled = compile
        """Whether steps are compiled; False once that has failed."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """One gradient step; returns the loss. The arguments go to model and guide."""
        loss = self._step(args, kwargs)
        return type(loss)(map(torch_item, loss)) if isinstance(loss, tuple) else torch_item(loss)

    def update(self, *args: Any, **kwargs: Any) -> Tensor:
        """`step` that gives the loss as a tensor ``()``.

        It does not wait for the device where it is compiled, or the loss is a function.
        """
        loss = self._step(args, kwargs)
        return loss if isinstance(loss, Tensor) else torch.as_tensor(loss, dtype=torch.float64)

    def _step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        taken = None
        if self.compiled:
            try:
                taken = self._take(args, kwargs)
            except Refused as error:
                self._refuse(str(error))
        loss, parameters = taken or self._backward(args, kwargs)
        for parameter in parameters:
            if parameter.grad is not None:
                self._reached.add(parameter)
            elif parameter in self._reached:  # Pyro keeps gradients of 0, with which Adam moves on
                parameter.grad = torch.zeros_like(parameter)
        self.optim(parameters)
        _drop_gradients(parameters)
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
        self._reached.update(getattr(self.optim, "stepped", ()))
        if not self.compiled or not state["seen"]:
            return
        args = example(state["captured"] or state["seen"][0])
        leaves, spec = tree_flatten((args, {}))
        try:
            kind, _ = self._watch(args, {})
            _drop_gradients(kind.parameters)
            kind.shapes = {_shapes(tree_flatten((example(n), {}))[0]) for n in state["seen"]}
            if state["captured"] is not None:
                self._capture(kind, leaves, spec)
                kind.captured = _shapes(leaves)
                _drop_gradients(kind.parameters)
        except Refused as error:
            self._refuse(str(error))
            return
        self._kinds[self._key(leaves, spec)] = self._latest = kind

    def _key(self, leaves: list[Any], spec: TreeSpec) -> Hashable:
        """What tells one kind of step from another, beside what is watched."""
        plain = tuple((type(x), None if isinstance(x, Tensor) else x) for x in leaves)
        return str(spec), plain, getattr(self._objective, "structure", None)

    def _differentiated(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        """A loss that is a function, and its gradients; Pyro's own would keep the graph of autograd."""
        loss = self.loss(model, guide, *args, **kwargs)
        if getattr(loss, "requires_grad", False):
            loss.backward()
        return loss

    def _backward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, list[Tensor]]:
        """A step as Pyro takes it, up to its gradients: the loss and the parameters."""
        with poutine.trace(param_only=True) as captured:
            loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
        sites: Any = captured.trace.nodes.values()
        parameters = dict.fromkeys(site["value"].unconstrained() for site in sites)
        if isinstance(loss, Tensor):
            loss = loss.detach()
        # Of other memory layouts the store holds copies; our optimiser knows the parameters themselves.
        return loss, list(getattr(self.optim, "parameters", parameters))

    def _take(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, list[Tensor]] | None:
        """`_backward` by a program where there is one, or by its capture; None: take it eagerly."""
        leaves, spec = tree_flatten((args, kwargs))
        shapes, key = _shapes(leaves), self._key(leaves, spec)
        try:
            kind = self._kinds.get(key)
        except TypeError as error:  # an argument that cannot be hashed
            raise Refused(str(error)) from error
        changed = None if kind is None else kind.held.changed()
        if kind is None or changed is not None or kind.state != _state(kind):
            self._kinds[key], taken = self._watch(args, kwargs, changed)
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
        self, args: tuple[Any, ...], kwargs: dict[str, Any], changed: str | None = None
    ) -> tuple[_Kind, tuple[Any, list[Tensor]]]:
        """An eager step, and what a program of its kind would depend on."""
        self._watched += 1
        if self._watched > _MOST_KINDS:
            what = f", such as {changed!r}," if changed else ""
            raise Refused(
                f"its arguments or what its programs hold{what} keep changing: pass tensors"
            )
        if _PYRO_STACK:
            raise Refused("a handler is around the step: put it around model and guide")
        called: dict[Any, None] = {}
        hook = register_module_forward_pre_hook(lambda module, inputs: called.setdefault(module))
        try:
            loss, parameters = self._backward(args, kwargs)
        finally:
            hook.remove()
        reached = [p for p in parameters if p.grad is not None]
        # an objective with a structure says itself what has to be watched
        watched = [] if hasattr(self._objective, "structure") else [self._objective]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if not isinstance(leaf, Tensor)]
        held = Held(self.model, self.guide, self.loss_and_grads, *watched, *called, *given)
        known = {*held.tensors, *Held(self._objective).tensors} - {*parameters}
        kind = _Kind(held, parameters, reached, known)
        kind.state = _state(kind)
        return kind, (loss, parameters)

    def _capture(self, kind: _Kind, leaves: list[Any], spec: TreeSpec) -> list[Tensor]:
        """Take this step under the tracer, on the real tensors: its result is the step's."""
        result: list[Tensor] = []

        def step(*tensors: Tensor) -> list[Tensor]:
            given = iter(tensors)
            filled = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            args, kwargs = tree_unflatten(filled, spec)
            loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
            if not isinstance(loss, Tensor):
                raise Refused("its loss is no tensor")
            kind.reached = [p for p in kind.parameters if p.grad is not None]
            result[:] = [loss.detach(), *(p.grad for p in kind.reached if p.grad is not None)]
            return result

        with undone_on_failure(kind.held, kind.known, kind.parameters):
            if kind.held.stream is not None:
                raise Refused(f"{kind.held.stream!r} gives another value at each use: pass tensors")
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            if any(tensor.requires_grad for tensor in tensors):
                raise Refused("an argument wants a gradient")
            graph = trace(step, tensors, [*kind.parameters, *kind.known])
            if any(t.is_leaf and t.grad is not None for t in kind.known):
                raise Refused(
                    "Pyro does not know a tensor that is trained: pyro.module registers it"
                )
            name = kind.held.changed()
            if name is not None:
                raise Refused(f"a step changes {name!r}: leave it out, or pass a tensor")
            kind.program = _compile(graph)
        return result

    def _replay(self, kind: _Kind, tensors: list[Tensor]) -> Sequence[Tensor]:
        assert kind.program is not None
        with torch.no_grad():
            if kind.proven:
                return kind.program(*tensors)
            with undone_on_failure(
                kind.held, kind.known, kind.parameters
            ):  # the first call compiles: no compiler, no support, ...
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


def _drop_gradients(parameters: list[Tensor]) -> None:
    for parameter in parameters:
        parameter.grad = None


_Shapes = tuple[tuple[torch.Size, torch.dtype, torch.device, bool], ...]  # of a step's tensors


def _shapes(leaves: list[Any]) -> _Shapes:
    return tuple(
        (x.shape, x.dtype, x.device, x.requires_grad) for x in leaves if isinstance(x, Tensor)
    )


def _rows(shapes: _Shapes) -> int:
    """The batch size of a step: the length of its first tensor."""
    return shapes[0][0][0] if shapes and shapes[0][0] else 1


@dataclass
class _Kind:
    """Steps that one program serves."""

    held: Held
    parameters: list[Tensor]
    reached: list[Tensor]  # of these, what has a gradient
    known: set[Tensor]  # that a step may read besides
    state: Hashable = None
    shapes: set[_Shapes] = field(default_factory=set)  # of its batches so far
    captured: _Shapes | None = None  # the shapes that the program takes
    program: Callable[..., Sequence[Tensor]] | None = None
    proven: bool = False


def _state(kind: _Kind) -> Hashable:
    """What a program depends on besides arguments and what its programs hold."""
    return (
        tuple(parameter.requires_grad for parameter in kind.parameters),
        tuple(id(value) for _, value in pyro.get_param_store().named_parameters()),
        tuple(_PYRO_STACK),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.get_default_dtype(),
    )


def _minor_version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


def _compile(graph: torch.fx.GraphModule) -> Callable[..., Sequence[Tensor]]:
    _logger.info("Compiling the training step, which takes about half a minute ...")
    with warnings.catch_warnings():  # torch's own, of its own parts
        warnings.simplefilter("ignore", DeprecationWarning)
        import torch._inductor.compile_fx  # noqa: F401
    # fallback_random: the noise of eager torch, number by number. Before torch 2.13 these passes of the
    # compiler change the order of draws, such as of z and of D's samples of the prior.
    passes = ("reorder_for_locality", "reorder_for_peak_memory")
    cuda = any(tensor.is_cuda for tensor in (*graph.parameters(), *graph.buffers()))
    options: dict[str, Any] = {"fallback_random": True, "triton.cudagraphs": cuda}
    if _minor_version() < (2, 13):
        options |= dict.fromkeys({*passes} & {*torch._inductor.list_options()}, False)
    compiled = torch.compile(graph, fullgraph=True, dynamic=False, options=options)

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        if cuda:
            torch.compiler.cudagraph_mark_step_begin()  # what the last step gave is no longer needed
        found: Sequence[Tensor] = compiled(*tensors)
        return found

    return run
