"""Several processes compute what one does: losses, gradients and steps of 1, 2 and 4 gloo ranks.

The file is also the program that the ranks run, ``python test_distributed.py FOLDER JOB:W ...``: it
imports torch once and forks W processes for each job, with the variables that torchrun would set.
"""

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_bvae import VAE, CapacityELBO, DecompositionELBO
from pyro_bvae.distributed import (
    ShardedVAE,
    _gather,
    agree,
    agree_on_noise,
    own_rows,
    processes,
    ranks,
)
from pyro_bvae.divergences import DIVERGENCES
from pyro_bvae.likelihoods import Bernoulli, Normal
from pyro_bvae.networks import NETWORKS, mlp
from pyro_bvae.optim import JointAdam
from pyro_bvae.priors import Flow, Gaussian, Mixture, VampPrior

STEPS = 10
NOISE = 11


# ---- what is computed, alike in one process and in several ---------------------------------------


class Posterior(nn.Module):
    """An encoder that returns a distribution: each family that can be gathered, and one that cannot."""

    def __init__(self, family):
        super().__init__()
        torch.manual_seed(0)
        self.family, self.net = family, nn.Linear(3, 8)

    def forward(self, x):
        loc, raw = self.net(x).split([2, 6], 1)
        scale = raw[:, :2].exp()
        if self.family == "laplace":
            return dist.Laplace(loc, scale).to_event(1)
        if self.family == "student-t":
            return dist.StudentT(5.0, loc, scale).to_event(1)
        return dist.MultivariateNormal(
            loc, scale_tril=scale.diag_embed() + raw[:, 2:].view(-1, 2, 2).tril(-1)
        )


def tiny(prior=Gaussian, likelihood=None, encoder=None, beta=1.5, n_classes=0):
    """A model of 3 numbers, and of 2 latents; its labels, where it has some, go to the encoder too."""
    torch.manual_seed(0)
    per_pixel = likelihood == "decoder"
    encoder = encoder or mlp((3 + n_classes,), 2, hidden=8)[0]
    decoder = mlp((3,), 2, hidden=8, scale=per_pixel, extra=n_classes)[1]
    prior = prior(2)
    return VAE(encoder, decoder, prior, Normal(likelihood or 0.5), beta, n_classes, n_classes > 0)


vamp = functools.partial(VampPrior, n_components=3, x_shape=(3,))
mixture = functools.partial(Mixture, learned=True)
CASES = {
    "beta-vae": lambda: (tiny(), DecompositionELBO()),
    "vamp": lambda: (tiny(vamp), DecompositionELBO(2.0, DIVERGENCES["exclusive-kl"])),
    "mixture": lambda: (tiny(mixture), DecompositionELBO(2.0, DIVERGENCES["mmd"])),
    "flow": lambda: (tiny(Flow), DecompositionELBO(2.0, DIVERGENCES["inclusive-kl"])),
    "learned scale": lambda: (tiny(likelihood="learned"), DecompositionELBO()),
    "decoder's scale": lambda: (tiny(likelihood="decoder"), DecompositionELBO()),
    "labels": lambda: (tiny(n_classes=3), DecompositionELBO()),
    "laplace posterior": lambda: (tiny(encoder=Posterior("laplace")), DecompositionELBO()),
    "full posterior": lambda: (tiny(encoder=Posterior("mvn")), DecompositionELBO()),
    "particles": lambda: (tiny(mixture), DecompositionELBO(num_particles=2)),
    "vectorised": lambda: (
        tiny(mixture, "learned"),
        DecompositionELBO(
            1.0, DIVERGENCES["mmd"], num_particles=2, vectorize_particles=True, max_plate_nesting=1
        ),
    ),
    **{
        name: lambda d=d: (tiny(likelihood="learned"), DecompositionELBO(3.0, d))
        for name, d in DIVERGENCES.items()
    },
    **{
        f"{penalty} {reduction}": lambda p=penalty, r=reduction: (
            tiny(beta=1.0),
            CapacityELBO(7.0, 0.4, p, r),
        )
        for penalty in ("absolute", "relu")
        for reduction in ("batch", "example")
    },
}  # fmt: skip
CASES["total-correlation"] = lambda: (
    tiny(),
    DecompositionELBO(3.0, functools.partial(DIVERGENCES["total-correlation"], dataset_size=50)),
)
# Rows of a batch: 9 are uneven on 2 and on 4 ranks; below two each, every rank does all of them.
BATCHES = dict.fromkeys(CASES, 9) | {f"{n} rows": n for n in (8, 11, 7, 2)}
FEW = ("vamp", "labels", "vectorised", "relu example", "7 rows")
DTYPES = {torch.float32: 1e-5, torch.float64: 1e-10}


def make(name, dtype):
    torch.set_default_dtype(dtype)
    try:
        return CASES.get(name, CASES["beta-vae"])()
    finally:
        torch.set_default_dtype(torch.float32)


def rows(batch, dtype, seed=5):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 3, generator=generator, dtype=dtype)
    return x, torch.randint(3, (batch,), generator=generator)


def backward(vae, objective, x, labels, *batch):
    loss, terms = objective.loss_and_terms(vae.model, vae.guide, x, labels, *batch)
    loss = loss / len(terms.kl)
    loss.backward()
    if batch:
        vae.average()
    return loss.item()


def gradients(name, dtype, shard=None):
    """The loss and every parameter's gradient."""
    (vae, objective), batch = make(name, dtype), BATCHES[name]
    x, labels = rows(batch, dtype)
    labels = labels if vae.n_classes else None
    extra = ()
    if shard is not None:
        vae, own, extra = ShardedVAE.of(vae), shard(batch), (batch,)
        x, labels = x[own], None if labels is None else labels[own]
    torch.manual_seed(NOISE)
    loss = backward(vae, objective, x, labels, *extra)
    found = {n: p.grad for n, p in vae.named_parameters() if p.grad is not None}
    return {"loss": torch.tensor(loss, dtype=dtype), **found, "noise": torch.rand(3)}


def seeded_loss(vae, x):
    torch.manual_seed(NOISE)
    return DecompositionELBO().loss(vae.model, vae.guide, x)


def ten_steps(shard=None):
    """Parameters after ten steps of Adam on grey rows, binarised anew at each."""
    torch.manual_seed(0)
    vae, objective = tiny(mixture, "learned"), DecompositionELBO(2.0, DIVERGENCES["mmd"])
    vae = vae if shard is None else ShardedVAE.of(vae)
    optim = JointAdam(vae.parameters(), lr=0.01)
    torch.manual_seed(NOISE)
    for step in range(STEPS):
        batch = 10 - step % 2
        x, extra = rows(batch, torch.float32, step)[0].sigmoid(), ()
        if shard is None:
            x = torch.bernoulli(x)
        else:
            x, extra = vae.transformed(torch.bernoulli, x[shard(batch)], batch), (batch,)
        backward(vae, objective, x, None, *extra)
        optim(None)
        vae.zero_grad()
    return dict(vae.state_dict())


def normalised(shard=None):
    """A step of a network with BatchNorm: its running statistics."""
    torch.manual_seed(0)
    vae = VAE(*NETWORKS["conv-bn"]((1, 32, 32), 2), Gaussian(2), Bernoulli())
    x = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    vae = vae if shard is None else ShardedVAE.of(vae)
    torch.manual_seed(NOISE)
    args = (x,) if shard is None else (x[shard(8)], None, 8)
    backward(vae, DecompositionELBO(), args[0], None, *args[2:])
    return {n: b for n, b in vae.named_buffers() if "running" in n}


# ---- the ranks ---------------------------------------------------------------------------------


def refused(function, *args):
    try:
        return function(*args)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def equal(rank, world, cases=tuple(BATCHES), dtypes=tuple(DTYPES)):
    """Everything of this rank that the tests compare."""

    def shard(batch):
        return own_rows(batch, rank, world)

    x = rows(9, torch.float32)[0]
    student = ShardedVAE.of(tiny(encoder=Posterior("student-t")))
    moved, part = tiny(), x[shard(9)].requires_grad_()
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter += rank
    moved = ShardedVAE.of(moved)
    whole = _gather(part, shard(9), 9)
    (whole * rows(9, torch.float32, 6)[0]).sum().backward()
    cpu = torch.device("cpu")
    in_step = refused(agree_on_noise, cpu)
    torch.rand(1 + (rank == 1))
    out_of_step = refused(agree_on_noise, cpu)
    return {(name, d): gradients(name, d, shard) for name in cases for d in dtypes} | {
        "steps": ten_steps(shard),
        "norms": normalised(shard) if cases is not FEW else {},
        "in step": in_step,
        "out of step": out_of_step,
        "moved": {n: p.detach() for n, p in moved.named_parameters()},
        "alone": seeded_loss(moved, x),
        "whole": whole.detach(),
        "adjoint": part.grad,
        "student-t": refused(student.guide, x[shard(9)], None, 9),
        "same": refused(agree, b"options", "Options must be the same."),
        "different": refused(agree, b"%d" % (rank == 1), "Options must be the same."),
    }


def few(rank, world):
    return equal(rank, world, FEW, (torch.float64,))


def killed(rank, world):
    """Rank 1 is killed in the midst; the others return their error, and when."""
    vae, objective = ShardedVAE.of(tiny()), DecompositionELBO()
    x = rows(8, torch.float32)[0][own_rows(8, rank, world)]
    for step in range(1000):
        if rank == 1 and step == 3:
            torch.save({"killed": time.time()}, Path(sys.argv[1]) / f"killed-{world}-1.pt")
            os.kill(os.getpid(), signal.SIGKILL)
        backward(vae, objective, x, None, 8)
    return {"error": "nobody stopped"}


def process(job, out, rank, world):
    """One rank: what the job returns, or its error, in a file."""
    torch.set_num_threads(1)
    try:
        with processes() as place:
            assert place == (rank, world)
            found = job(rank, world)
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}", "at": time.time()}
        if not isinstance(error, ConnectionError):
            traceback.print_exc()
    torch.save(found, out / f"{job.__name__}-{world}-{rank}.pt")


def free_port():
    with contextlib.closing(socket.socket()) as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def launch(out, jobs):
    """Fork all ranks of all jobs at once, and wait."""
    children = []
    for job, world in jobs:
        place = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        for rank in range(world):
            child = os.fork()
            if child == 0:
                place |= {"RANK": rank, "LOCAL_RANK": rank}
                os.environ |= {name: str(value) for name, value in place.items()}
                process(job, out, rank, world)
                os._exit(0)
            children.append(child)
    for child in children:
        os.waitpid(child, 0)


# ---- the tests ---------------------------------------------------------------------------------


def run(out, *jobs, **options):
    """Each job's results, rank by rank; under torchrun's launcher where ``launcher`` is given."""
    command = [sys.executable, *options.get("launcher", ()), __file__, str(out), *jobs]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, timeout=120, capture_output=True, text=True)
    results = {}
    for job in jobs:
        name, world = job.split(":")
        files = [out / f"{name}-{world}-{rank}.pt" for rank in range(int(world))]
        results[job] = [torch.load(f, weights_only=False) if f.is_file() else None for f in files]
    return results, done


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    results, done = run(tmp_path_factory.mktemp("four"), "few:4", "killed:3")
    assert not done.stderr, done.stderr
    return results


@functools.cache
def alone(name, dtype):
    return gradients(name, dtype)


def assert_gradients(found, names, dtypes=tuple(DTYPES)):
    """Against one process; the largest difference relative to the tensor's largest number."""
    for name in names:
        for dtype in dtypes:
            expected = alone(name, dtype)
            for of_rank in found:
                values = of_rank[name, dtype]
                assert values.keys() == expected.keys()
                for key, value in values.items():
                    error = (value - expected[key]).abs().max() / expected[key].abs().max()
                    assert error <= DTYPES[dtype], (name, dtype, key, error)
                assert torch.equal(values["noise"], expected["noise"])  # generators in one state


def assert_rest(found, world):
    expected = ten_steps()
    for key, value in found[0]["steps"].items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)
    x, y = (rows(9, torch.float32, seed)[0] for seed in (5, 6))
    original = tiny()
    for rank, of_rank in enumerate(found):
        for name in ("steps", "norms"):  # bit by bit, or ranks would drift apart
            assert all(torch.equal(v, found[0][name][k]) for k, v in of_rank[name].items())
        for key, value in original.named_parameters():
            assert torch.equal(of_rank["moved"][key], value)
        assert of_rank["alone"] == seeded_loss(original, x)
        assert torch.equal(of_rank["whole"], x)
        torch.testing.assert_close(of_rank["adjoint"], world * y[own_rows(9, rank, world)])
        assert of_rank["student-t"] == (
            "TypeError: ShardedVAE: the encoder must return (loc, scale) or Pyro's Normal, Laplace or "
            "MultivariateNormal; got StudentT. Train it in one process."
        )
        assert of_rank["same"] is None and of_rank["in step"] is None
        assert of_rank["out of step"].startswith(
            "ValueError: torchrun: all processes must draw the same noise; they have drawn different"
        )
        assert of_rank["different"] == "ValueError: Options must be the same."


@pytest.mark.slow
def test_four_ranks_are_one_process(four):
    assert_gradients(four["few:4"], FEW, (torch.float64,))
    assert_rest(four["few:4"], 4)


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_with_a_sentence(four):
    of_ranks = four["killed:3"]
    killed_at = of_ranks.pop(1)["killed"]
    for found in of_ranks:
        assert found["error"].startswith(
            "ConnectionError: Another process of this training stopped"
        )
        assert found["at"] - killed_at < 5  # some 50 ms, measured


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_losses_and_gradients_are_those_of_one_process(world, tmp_path):
    job = f"equal:{world}"
    results, done = run(tmp_path, job)
    assert not done.stderr, done.stderr
    assert_gradients(results[job], BATCHES)
    assert_rest(results[job], world)
    norms = results[job][0]["norms"]
    first = next(iter(norms))  # nothing before it was normalised by fewer rows
    torch.testing.assert_close(norms[first], normalised()[first])


@pytest.mark.slow
def test_torchrun_starts_them(tmp_path):
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    results, done = run(tmp_path, "few:2", launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert_gradients(results["few:2"], FEW, (torch.float64,))


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("batch", [1, 2, 5, 8, 13, 14, 250])
def test_every_row_is_of_one_rank_or_all_of_every(batch, world):
    everything = torch.arange(batch)
    found = [everything[own_rows(batch, rank, world)] for rank in range(world)]
    if batch < 2 * world:
        assert all(torch.equal(part, everything) for part in found)
    else:
        expected = torch.tensor_split(everything, world)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert min(len(part) for part in found) >= 2


def place(monkeypatch, **variables):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


def test_ranks_are_read_from_torchruns_variables(monkeypatch):
    place(monkeypatch)
    assert ranks() == (0, 1, 0)
    with processes() as found:
        assert found == (0, 1) and not torch.distributed.is_initialized()
        agree(b"anything", "One process agrees with itself.")
    place(monkeypatch, RANK=5, WORLD_SIZE=8, LOCAL_RANK=1)
    assert ranks() == (5, 8, 1)
    place(monkeypatch, RANK=1, WORLD_SIZE=2)
    assert ranks() == (1, 2, 0)


def test_refusals(monkeypatch):
    place(monkeypatch, RANK=1, WORLD_SIZE=2, LOCAL_RANK=1)
    with pytest.raises(
        ValueError, match="--device must be cpu or cuda; got meta. Use --device cpu"
    ):
        processes("meta").__enter__()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="number of GPUs, 1; got 2 or more. Start fewer"):
        processes("cuda").__enter__()

    class Own(VAE):
        pass

    part = nn.Identity()
    with pytest.raises(TypeError, match="must be a VAE itself; got Own. Train it in one process"):
        ShardedVAE.of(Own(part, part, Gaussian(2), Normal()))


if __name__ == "__main__":
    known = {"equal": equal, "few": few, "killed": killed}
    folder, asked = Path(sys.argv[1]), [word.split(":") for word in sys.argv[2:]]
    if "RANK" in os.environ:  # torchrun started this one
        process(known[asked[0][0]], folder, *ranks()[:2])
    else:
        launch(folder, [(known[name], int(world)) for name, world in asked])
