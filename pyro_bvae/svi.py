"""`CompiledSVI`: Pyro's SVI whose step is captured once and then replayed, compiled.

Pyro builds its traces anew at every step, in Python. Here guide, model and objective run once under
torch's tracer, forward and backward together, which leaves one graph of tensor operations. Inductor
makes it a program (C++ on a CPU, Triton in a CUDA graph on a GPU), and later steps call that.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import pyro.util
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten


class CompiledSVI(SVI):
    """A drop-in for `pyro.infer.SVI` that compiles its step, for any model and guide.

    The first step of a batch shape runs as Pyro runs it; the second is captured while it runs; from the
    third on the compiled program is called. Loss and gradients are those of the eager step under the
    same seed, to float rounding, and so is what it leaves in buffers such as BatchNorm's.

    A captured program follows the tensors that it reads: parameters, buffers, and the numbers of our
    models and objectives (beta, alpha, gamma, C). It does not follow Python: branches and values that
    are no tensors stay as they were. Arguments that are no tensors, the training mode of modules, and
    what the loss gives as its ``structure`` are watched, and lead to a new capture. A second batch
    shape, such as a last short batch, runs eagerly. Where capturing or compiling fails (no C++
    compiler, a branch on data, an ELBO without a differentiable loss), one warning says so and every
    step runs eagerly.

    Args:
        model: a Pyro model.
        guide: a Pyro guide.
        optim: a Pyro optimiser.
        loss: an ELBO, ours or Pyro's; or a function ``(model, guide, *args, **kwargs) -> Tensor ()``.
        compile: False runs every step eagerly.

    Example:
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
        self._parameters: list[Tensor] = []
        self._seen: set[Hashable] = set()
        self._programs: dict[Hashable, _Program] = {}
        self.compiled = compile
        """Whether steps are compiled; False once that has failed."""
        if compile and self._differentiable is None:
            self.compiled = False
            _warn(f"{type(loss).__name__} has no differentiable_loss")

    def step(self, *args: Any, **kwargs: Any) -> float:
        """One gradient step; returns the loss. The arguments go to model and guide."""
        return self.update(*args, **kwargs).item()

    def update(self, *args: Any, **kwargs: Any) -> Tensor:
        """`step` that does not wait for the device: the loss as a tensor ``()``."""
        if self._differentiable is None:
            return torch.as_tensor(super().step(*args, **kwargs))
        ran = self._run((args, kwargs)) if self.compiled else None
        if ran is not None:
            parameters, (loss, *grads) = ran
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.grad = grad
            return self._optimise(loss.clone())  # a CUDA graph writes the next one to its place
        with poutine.trace(param_only=True) as captured:
            loss = self._differentiable(self.model, self.guide, *args, **kwargs)
        sites: Any = captured.trace.nodes.values()
        self._parameters = list(dict.fromkeys(site["value"].unconstrained() for site in sites))
        if loss.requires_grad:
            loss.backward()
        return self._optimise(loss)

    def _optimise(self, loss: Tensor) -> Tensor:
        self.optim(self._parameters)
        for parameter in self._parameters:
            parameter.grad = None
        return loss.detach()

    def _run(self, arguments: tuple[Any, Any]) -> tuple[list[Tensor], Sequence[Tensor]] | None:
        """Capture or replay: parameters, then loss and their gradients. None: run eagerly."""
        leaves, spec = tree_flatten(arguments)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        shapes = tuple((x.shape, x.dtype, x.device) for x in tensors)
        plain = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        modes = tuple(module.training for module in self._modules())
        key = (str(spec), plain, modes, getattr(self._objective, "structure", None))
        try:
            program = self._programs.get(key)
            if program is None and (key, shapes) in self._seen:
                self._programs[key], result = self._capture(shapes, leaves, spec)
                return self._programs[key].parameters, result
            if program is not None and program.shapes == shapes:
                with torch.no_grad():
                    return program.parameters, program.run(*tensors)
            self._seen.add((key, shapes))
        except Exception as error:  # a stranger's program, or its compiler, may fail in any way
            self.compiled = False
            self._programs.clear()
            line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            _warn(line)
        return None

    def _modules(self) -> Iterator[nn.Module]:
        """The modules that model and guide are methods of, with their parts."""
        owners = [getattr(f, "__self__", f) for f in (self.model, self.guide)]
        for owner in dict.fromkeys(owner for owner in owners if isinstance(owner, nn.Module)):
            yield from owner.modules()

    def _capture(
        self, shapes: tuple[Any, ...], leaves: list[Any], spec: Any
    ) -> tuple[_Program, list[Tensor]]:
        """Take this step under the tracer, on the real tensors: its result is the step's."""
        trained = [p for p in self._parameters if p.requires_grad]
        reached: list[Tensor] = []
        result: list[Tensor] = []

        def step(*tensors: Tensor) -> list[Tensor]:
            given = iter(tensors)
            filled = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            args, kwargs = tree_unflatten(filled, spec)
            assert self._differentiable is not None
            loss = self._differentiable(self.model, self.guide, *args, **kwargs)
            grads = torch.autograd.grad(loss, trained, allow_unused=True)
            reached[:] = [p for p, grad in zip(trained, grads, strict=True) if grad is not None]
            result[:] = [loss.detach(), *(grad for grad in grads if grad is not None)]
            return result

        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        buffers = [buffer for module in self._modules() for buffer in module.buffers(recurse=False)]
        with _undone_on_failure(buffers, {x.device for x in tensors}):
            graph = _trace(step, tensors)
        return _Program(shapes, reached, _compile(graph)), result


class _Program(NamedTuple):
    """A captured step: the batch it takes, the parameters that it has gradients for, and itself."""

    shapes: tuple[Any, ...]
    parameters: list[Tensor]
    run: Callable[..., Sequence[Tensor]]


class _ItemsAreTensors(TorchFunctionMode):
    """``item()`` gives the tensor: Pyro's ELBOs read numbers only to add them up."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.item:
            return args[0].detach()
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
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


@contextmanager
def _undone_on_failure(buffers: list[Tensor], devices: set[torch.device]) -> Iterator[None]:
    """Where the block fails, noise and buffers are put back: the step will be taken again."""
    kept = [buffer.clone() for buffer in buffers]
    noise = torch.get_rng_state()
    cuda = {d: torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda"}
    try:
        yield
    except Exception:
        with torch.no_grad():
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.copy_(value)
        torch.set_rng_state(noise)
        for device, state in cuda.items():
            torch.cuda.set_rng_state(state, device)
        raise


def _compile(graph: torch.fx.GraphModule) -> Callable[..., Sequence[Tensor]]:
    with warnings.catch_warnings():  # torch's own, of its own parts
        warnings.simplefilter("ignore", DeprecationWarning)
        import torch._inductor.compile_fx  # noqa: F401
    # fallback_random: the noise of eager torch, number by number
    options: dict[str, Any] = {"fallback_random": True}
    if any(buffer.is_cuda for buffer in (*graph.parameters(), *graph.buffers())):
        options["triton.cudagraphs"] = True
    compiled: Callable[..., Sequence[Tensor]] = torch.compile(
        graph, fullgraph=True, dynamic=False, options=options
    )
    return compiled


def _warn(reason: str) -> None:
    warnings.warn(
        f"CompiledSVI: the step could not be compiled ({reason[:200]}). It runs eagerly.",
        RuntimeWarning,
        stacklevel=2,
    )
