"""D(q(z), p(z)), value and gradient, beside its direct form: time, memory, accuracy.

    python -m benchmarks.aggregate            ten minutes
    python -m benchmarks.aggregate --quick    small batches: does it run?

The direct forms are what one writes first: all pairs at once under autograd, n x B x D numbers. Memory is
what the peak of a fresh process grows by, over all of value and gradient (Linux).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from pyro_bvae.cli.process import tune_allocator
from torch import Tensor

from pyro_bvae.divergences import DIVERGENCES

from .floors import WIDTHS, compiled_mmd
from .timing import interleaved, write

Form = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # z, loc, scale, samples of N(0, I) -> ()
_DIRECT_LIMIT = 6e9  # bytes that a direct form may take
SIZES = ((500, 10), (500, 50), (2000, 50), (8000, 10), (8000, 50))
SMALL = ((40, 3),)


def main() -> None:
    parser = argparse.ArgumentParser(description="D beside its direct forms.")
    parser.add_argument("--quick", action="store_true", help="small batches")
    parser.add_argument("--eager", action="store_true", help="leave out what has to be compiled")
    parser.add_argument(
        "--one", nargs=4, metavar=("FORM", "NAME", "B", "D"), help=argparse.SUPPRESS
    )
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        form, name, batch, latents = args.one
        print(json.dumps(measure_memory(form, name, int(batch), int(latents))))
        return
    tune_allocator()
    sizes = SMALL if args.quick else SIZES
    times = [row for b, d in sizes for row in time_forms(b, d, args.quick, not args.eager)]
    rows = {"time and memory": times, "accuracy": accuracy(args.quick)}
    write("aggregate", rows, args.out, args.quick)


def log_q(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """log N(z_i; loc_j, scale_j^2) for each d: ``(n, B, D)``."""
    standard = (z.unsqueeze(1) - loc) / scale
    return -0.5 * standard.square() - scale.log() - 0.5 * math.log(2 * math.pi)


def log_p(z: Tensor) -> Tensor:
    return (-0.5 * z.square() - 0.5 * math.log(2 * math.pi)).sum(-1)


def _pairs(a: Tensor, b: Tensor, per_dim: bool, same: bool) -> Tensor:
    square = (a.unsqueeze(1) - b).square()
    square = square if per_dim else square.sum(-1, keepdim=True) / a.shape[1]
    kernel = sum((c / (c + square)).sum(-1) for c in WIDTHS)
    assert isinstance(kernel, Tensor)
    if not same:
        return kernel.mean()
    return (kernel.sum() - kernel.diagonal().sum()) / (len(a) * (len(a) - 1))


def _mmd(per_dim: bool) -> Form:
    def form(z: Tensor, loc: Tensor, scale: Tensor, z_p: Tensor) -> Tensor:
        within = _pairs(z, z, per_dim, True) + _pairs(z_p, z_p, per_dim, True)
        return within - 2 * _pairs(z, z_p, per_dim, False)

    return form


def _inclusive(z: Tensor, loc: Tensor, scale: Tensor, z_p: Tensor) -> Tensor:
    mixture = torch.logsumexp(log_q(z_p, loc, scale).sum(-1), 1) - math.log(len(loc))
    return (log_p(z_p) - mixture).mean()


def _exclusive(z: Tensor, loc: Tensor, scale: Tensor, z_p: Tensor) -> Tensor:
    mixture = torch.logsumexp(log_q(z, loc, scale).sum(-1), 1) - math.log(len(loc))
    return (mixture - log_p(z)).mean()


def _total_correlation(z: Tensor, loc: Tensor, scale: Tensor, z_p: Tensor) -> Tensor:
    each = log_q(z, loc, scale)
    log_b = math.log(len(loc))
    joint = torch.logsumexp(each.sum(-1), 1) - log_b
    return (joint - (torch.logsumexp(each, 1) - log_b).sum(-1)).mean()


DIRECT: dict[str, tuple[Form, int]] = {  # and how many n x B x D tensors autograd keeps, about
    "inclusive-kl": (_inclusive, 4),
    "exclusive-kl": (_exclusive, 4),
    "mmd": (_mmd(False), 4),
    "mmd-per-dim": (_mmd(True), 40),
    "total-correlation": (_total_correlation, 6),
}


class _Given(dist.Normal):
    """N(0, I) whose samples are given."""

    samples: Tensor

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.samples


def _ours(name: str) -> Form:
    def form(z: Tensor, loc: Tensor, scale: Tensor, z_p: Tensor) -> Tensor:
        given = _Given(torch.zeros_like(z[0]), torch.ones_like(z[0]))
        given.samples = z_p
        options = {"estimator": "batch"} if name == "total-correlation" else {}
        return DIVERGENCES[name](
            dist.Normal(loc, scale).to_event(1), given.to_event(1), z, **options
        )

    return form


def _compiled(z: Tensor, loc: Tensor, scale: Tensor, z_p: Tensor) -> Tensor:
    return compiled_mmd(z, z_p)


def form_of(kind: str, name: str) -> Form:
    return {"ours": _ours(name), "direct": DIRECT[name][0], "compiled": _compiled}[kind]


def job(
    form: Form, batch: int, latents: int, dtype: torch.dtype = torch.float32, **kind: Any
) -> Any:
    """Value and gradients of ``form`` by z, loc and scale."""
    inputs = sample(batch, latents, **kind)
    z, loc, scale = (t.to(dtype).requires_grad_() for t in inputs[:3])

    def run() -> tuple[Tensor, ...]:
        value = form(z, loc, scale, inputs[3].to(dtype))
        gradients = torch.autograd.grad(value, (z, loc, scale), allow_unused=True)
        return value.detach(), *(g for g in gradients if g is not None)

    return run


def sample(batch: int, latents: int, sigma: float = 0.3, spread: float = 1.0) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    loc = spread * torch.randn(batch, latents, generator=g)
    scale = sigma * (0.5 + torch.rand(batch, latents, generator=g))
    z = loc + scale * torch.randn(batch, latents, generator=g)
    return z, loc, scale, z[torch.randperm(batch, generator=g)] + 0.1 * scale


def time_forms(batch: int, latents: int, quick: bool, compiled: bool) -> list[dict[str, Any]]:
    rows = []
    for name, (_, kept) in DIRECT.items():
        kinds = ["ours"]
        if kept * 4.0 * batch**2 * latents < _DIRECT_LIMIT:
            kinds.append("direct")
        if name == "mmd-per-dim" and compiled:
            kinds.append("compiled")
        jobs = {kind: job(form_of(kind, name), batch, latents) for kind in kinds}
        for kind, each in jobs.items():
            if batch <= 2000 or kind == "compiled":
                each()
        seconds = interleaved(jobs, 2 if quick else 7 if batch <= 2000 else 1)
        row: dict[str, Any] = {"D": name, "batch": batch, "latents": latents}
        for kind in kinds:
            row[f"{kind} ms"] = round(1e3 * seconds[kind], 3)
            if not quick:
                row[f"{kind} MB"] = round(fresh_memory(kind, name, batch, latents) / 1e6, 1)
        rows.append(row)
        print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    return rows


def fresh_memory(kind: str, name: str, batch: int, latents: int) -> int:
    command = [sys.executable, "-m", "benchmarks.aggregate", "--one", kind, name]
    found = subprocess.run(
        [*command, str(batch), str(latents)], capture_output=True, text=True, check=True
    )
    return int(json.loads(found.stdout.splitlines()[-1]))


def measure_memory(kind: str, name: str, batch: int, latents: int) -> int:
    """Growth of the resident set at its peak, above what lay there before value and gradient.

    What the compiled form compiles is not counted: it has run once before.
    """
    job(form_of(kind, name), batch if kind == "compiled" else 8, latents)()
    run = job(form_of(kind, name), batch, latents)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak so far is forgotten
    before = _peak()
    run()
    return _peak() - before


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def accuracy(quick: bool) -> list[dict[str, Any]]:
    """Errors in float32 against the direct form in float64: of the value, and the worst gradient."""
    rows = []
    for name in DIRECT:
        for sigma in (1e-3, 0.1) if quick else (1e-4, 1e-3, 0.01, 0.1, 1.0):
            for latents in (2,) if quick else (2, 50):
                kind = {"sigma": sigma, "spread": 3.0}
                exact = job(form_of("direct", name), 200, latents, torch.float64, **kind)()
                row: dict[str, Any] = {"D": name, "sigma": sigma, "latents": latents}
                row["value"] = exact[0].item()
                for form in ("ours", "direct"):
                    found = job(form_of(form, name), 200, latents, **kind)()
                    errors = [
                        ((a.double() - b).abs().max() / b.abs().max()).item()
                        for a, b in zip(found[1:], exact[1:], strict=True)
                    ]
                    row[f"{form}: value"] = abs(found[0].double() - exact[0]).item()
                    row[f"{form}: gradient"] = max(errors)
                rows.append(row)
                print(
                    "  ".join(
                        f"{k} {v:.2g}" if isinstance(v, float) else f"{v}" for k, v in row.items()
                    )
                )
    return rows


if __name__ == "__main__":
    main()
