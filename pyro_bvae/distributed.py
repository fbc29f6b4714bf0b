"""Training on several processes: ``torchrun --nproc-per-node W -m pyro_bvae.cli train ...``.

W processes (ranks) at batch B compute what one computes at batch B. A rank encodes and decodes its own
rows only. What stands between is small and the same on every rank: the posteriors of all B rows are
gathered after the encoder, z is drawn for all of them from generators in the same state, log p(x|z) is
gathered after the decoder. So the KL, |mean KL - C| and D(q(z), p(z)) see the whole batch, which the
mean of W objectives of B/W rows would not give. Three messages a step.

BatchNorm alone differs: in training it normalises by the rank's own rows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
import torch.distributed as group
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from .vae import VAE

_TIMEOUT = timedelta(minutes=10)  # ranks wait while rank 0 measures on held-out data
# What defines each family of posteriors that can be gathered.
_PARAMETERS = {
    dist.Normal: ("loc", "scale"),
    dist.Laplace: ("loc", "scale"),
    dist.MultivariateNormal: ("loc", "scale_tril"),
}


def ranks() -> tuple[int, int, int]:
    """This process's rank, how many there are, its rank on this machine; ``(0, 1, 0)`` without torchrun."""
    rank, world, local = (os.environ.get(n) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if not rank or not world:  # absent, or empty as in a container's settings
        return 0, 1, 0
    return int(rank), int(world), int(local or 0)


@contextmanager
def processes(device: str | torch.device = "cpu") -> Iterator[tuple[int, int]]:
    """Joins the processes that torchrun started, and leaves them afterwards: gloo, or NCCL on CUDA.

    On CUDA the GPU of the local rank becomes the current one. A single process has nothing to join.

    Args:
        device: where the model will be.

    Yields:
        This process's rank and their number.

    Raises:
        ValueError: a device that is neither CPU nor CUDA, or fewer GPUs than processes.
        ConnectionError: the processes did not find each other, or another one stopped.
    """
    rank, world, local = ranks()
    if world == 1:
        yield rank, world
        return
    kind = torch.device(device).type
    if torch.device(device).index is not None:
        raise ValueError(
            f"torchrun: --device must be cpu or cuda, where each process takes its own; got {device}."
        )
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"torchrun: --device must be cpu or cuda; got {kind}. Use --device cpu.")
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"torchrun: --nproc-per-node must be at most the number of GPUs, "
                f"{torch.cuda.device_count()}; got {local + 1} or more. Start fewer, or use --device cpu."
            )
        torch.cuda.set_device(local)
    try:
        group.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise ConnectionError(
            f"torchrun: the {world} processes must find each other; got: {_line(error)}. Look at "
            "MASTER_ADDR, MASTER_PORT and the firewall, or start them anew."
        ) from error
    try:
        yield rank, world
    finally:
        group.destroy_process_group()


def agree(what: bytes, sentence: str) -> None:
    """Every rank calls this with the same bytes, or every rank raises.

    Raises:
        ValueError: ``sentence``, where they differ.
    """
    if not group.is_initialized():
        return
    digest = int.from_bytes(hashlib.blake2b(what, digest_size=7).digest(), "big")
    place = "cuda" if group.get_backend() == "nccl" else "cpu"
    ends = torch.tensor([digest, -digest], device=place)
    with _sentence():
        group.all_reduce(ends, group.ReduceOp.MAX)
    if ends.sum() != 0:  # the largest less the smallest
        raise ValueError(sentence)


def agree_on_noise(device: torch.device) -> None:
    """The ambient generators are in one state on every rank, as they are where noise is drawn alike.

    Raises:
        ValueError: they are not.
    """
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    agree(
        state.numpy().tobytes(),
        "torchrun: all processes must draw the same noise; they have drawn different amounts. Where the "
        "network has Dropout, choose a batch size that divides the rows, and processes that divide it.",
    )


def own_rows(batch: int, rank: int, world: int) -> slice:
    """The rows of a batch that are this rank's: as ``torch.tensor_split`` splits them.

    Where some rank would have fewer than two, which BatchNorm cannot take, all do the whole batch.

    Examples:
        >>> [own_rows(7, rank, 3) for rank in range(3)]
        [slice(0, 3, None), slice(3, 5, None), slice(5, 7, None)]
        >>> own_rows(7, 2, 4)
        slice(0, 7, None)
    """
    if batch < 2 * world:
        return slice(0, batch)
    size, longer = divmod(batch, world)
    start = rank * size + min(rank, longer)
    return slice(start, start + size + (rank < longer))


class ShardedVAE(VAE):
    """A `VAE` whose model and guide, given ``batch``, work on this rank's rows of a batch of that size.

    Their sites stand in a plate of ``batch`` rows, alike on every rank. Without ``batch``, and in all
    other methods, it is the VAE it was made of: same parts, same names in the state dict.
    """

    @classmethod
    def of(cls, vae: VAE) -> ShardedVAE:
        """``vae``'s own parts, on the device that trains them, filled with rank 0's values.

        Raises:
            TypeError: a subclass of VAE, whose own model and guide would be lost.
        """
        if type(vae) is not VAE:
            raise TypeError(
                f"ShardedVAE: the model must be a VAE itself; got {type(vae).__name__}. "
                "Train it in one process."
            )
        parts = vae.encoder, vae.decoder, vae.prior, vae.likelihood
        sharded = cls(*parts, vae.beta, vae.n_classes, vae.encode_labels).train(vae.training)
        sharded.registered = vae.registered
        for value in sharded.state_dict().values():
            whole = value.contiguous()
            with _sentence():
                group.broadcast(whole, 0)
            value.copy_(whole)
        return sharded

    @staticmethod
    def rows(batch: int) -> slice:
        """`own_rows` of this process."""
        return own_rows(batch, group.get_rank(), group.get_world_size())

    def model(self, x: Tensor, labels: Tensor | None = None, batch: int | None = None) -> Tensor:
        """p(z) of ``batch`` rows and p(x|z) of the own; returns z ``(batch, latent_dim)``."""
        if batch is None:
            return super().model(x, labels)
        self._register("prior", "decoder", "likelihood")
        rows = self.rows(batch)
        with pyro.plate("data", batch):
            p_z = self.p_z()
            with self._beta_scale():
                z = pyro.sample("z", p_z, infer=cast(Any, {"prior": p_z}))
            own_z = z[..., rows, :]
            if len(x) < batch and own_z.requires_grad:
                # log p(x|z)'s gradient comes multiplied by W, as z's will be once more by `_Gather`
                own_z.register_hook(lambda grad: grad / group.get_world_size())
            log_px_z = self.log_px_z(x, own_z, labels).movedim(-1, 0)
            pyro.factor("x", _gather(log_px_z, rows, batch).movedim(0, -1))
        return z

    def guide(self, x: Tensor, labels: Tensor | None = None, batch: int | None = None) -> Tensor:
        """q(z|x) of ``batch`` rows, of which x are the own; returns z ``(batch, latent_dim)``."""
        if batch is None:
            return super().guide(x, labels)
        self._register("encoder")
        with pyro.plate("data", batch):
            q_z = _gather_posteriors(self.q_z(x, labels), self.rows(batch), batch)
            with self._beta_scale():
                z: Tensor = pyro.sample("z", q_z, infer=cast(Any, {"posterior": q_z}))
                return z

    def transformed(self, transform: Callable[[Tensor], Tensor], x: Tensor, batch: int) -> Tensor:
        """``transform(x)`` of the own rows x as it would be within the whole batch.

        Noise is drawn for ``batch`` rows on every rank: generators stay in the same state. For functions
        of each number by itself that draw as much whatever it is, as ``torch.bernoulli`` does.
        """
        rows = self.rows(batch)
        filled = (torch.arange(batch, device=x.device) - rows.start) % len(
            x
        )  # own, again and again
        return transform(x[filled])[rows]

    @torch.no_grad()
    def average(self) -> None:
        """Between backward and optimiser: each gradient becomes its mean over ranks, the whole one.

        BatchNorm's running statistics too: each rank's are of its own rows.
        """
        norms = (module for module in self.modules() if isinstance(module, _NormBase))
        running = [b for norm in norms for b in norm.buffers() if b.is_floating_point()]
        tensors = [p.grad for p in self.parameters() if p.grad is not None] + running
        mean = _sum(torch.cat([t.flatten() for t in tensors])) / group.get_world_size()
        for tensor, part in zip(tensors, mean.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))


class _Gather(torch.autograd.Function):
    """``(own rows, *)`` to ``(batch, *)``, the same on every rank.

    Every rank goes on to the same loss, so its gradient of the own rows is whole: no message is needed.
    It is multiplied by W, since parameters' gradients are averaged and others have no part in these rows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: slice, batch: int) -> Tensor:
        ctx.rows = rows
        whole = x.new_zeros(batch, *x.shape[1:])
        whole[rows] = x
        return _sum(whole)  # exact: the others add zeros

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[ctx.rows] * group.get_world_size(), None, None


def _gather(x: Tensor, rows: slice, batch: int) -> Tensor:
    return x if len(x) == batch else cast(Tensor, _Gather.apply(x, rows, batch))


def _gather_posteriors(
    q_z: TorchDistributionMixin, rows: slice, batch: int
) -> TorchDistributionMixin:
    """The posteriors of all rows from those of the own: one message for all their parameters."""
    base: Any = q_z.base_dist if isinstance(q_z, dist.Independent) else q_z
    names = _PARAMETERS.get(type(base))
    if names is None:
        raise TypeError(
            f"ShardedVAE: the encoder must return (loc, scale) or Pyro's Normal, Laplace or "
            f"MultivariateNormal; got {type(base).__name__}. Train it in one process."
        )
    parts = [getattr(base, name) for name in names]
    whole = _gather(torch.cat([part.flatten(1) for part in parts], 1), rows, batch)
    columns = whole.split([part[0].numel() for part in parts], 1)
    shapes = [(batch, *part.shape[1:]) for part in parts]
    values = {n: c.reshape(s) for n, c, s in zip(names, columns, shapes, strict=True)}
    gathered = cast(TorchDistributionMixin, type(base)(**values))
    return gathered.to_event(len(base.batch_shape) - len(q_z.batch_shape))


def _sum(x: Tensor) -> Tensor:
    """``x`` becomes its sum over ranks, bit by bit the same on all."""
    with _sentence():
        group.all_reduce(x)
    return x


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:150].rstrip(".")


@contextmanager
def _sentence() -> Iterator[None]:
    """A message that fails, as it does when another process is gone, as one sentence."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            "Another process of this training stopped, or was not heard of for ten minutes; its own "
            f"message says why ({_line(error)}). Start all of them again."
        ) from error
