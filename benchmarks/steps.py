"""A training step of ours beside the same step by hand in torch, and in Pyro as commonly written.

    python -m benchmarks.steps                      all settings, minutes
    python -m benchmarks.steps spirals --rounds 40

For each setting, CPU milliseconds a step, medians of interleaved rounds. The batch is at hand; all but
Pyro's lay out convolutions channels last, and all use the command's malloc:

    torch, eager      no Pyro, no distribution objects (`benchmarks.floors`), one fused Adam
    torch, compiled   the same under torch.compile, D in its compiled form
    Pyro, common      pyro.infer.SVI, Trace_ELBO, pyro.optim.Adam, validation on, as tutorials have it;
                      Pyro has no D, so only where alpha = 0
    ours, eager       the step of fit(compile=False)
    ours, compiled    the step of fit(compile=True)
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro_bvae.cli.process import tune_allocator

from pyro_bvae import Config
from pyro_bvae.build import make_objective, make_vae
from pyro_bvae.svi import CompiledSVI
from pyro_bvae.tally import Tally
from pyro_bvae.training import JointAdam

from . import floors
from .timing import interleaved, write

_IMAGES = {"epochs": 1, "lr": 5e-4, "amsgrad": True}
SETTINGS: dict[str, dict[str, Any]] = {
    "spirals": {
        "config": {"prior": "mixture", "alpha": 1.0, "beta_warmup": 0.0},
        "shape": (2,),
        "floor": floors.mixture_normal,
        "divergence": floors.inclusive_kl_of_four,
        "rounds": 200,
    },
    "dsprites": {
        "config": {
            "dataset": "x.npy", "network": "higgins64", "likelihood": "bernoulli", "latent_dim": 10,
            "beta": 4.0, "batch_size": 64, **_IMAGES,
        },
        "shape": (1, 64, 64),
        "floor": floors.standard_normal_bernoulli,
        "divergence": None,
        "rounds": 20,
    },
    "fashion-mnist, alpha 0": {
        "config": {"dataset": "fashion-mnist", "prior": "spike-slab"},
        "shape": (1, 32, 32),
        "floor": floors.spike_slab_laplace,
        "divergence": None,
        "rounds": 10,
    },
    "fashion-mnist, alpha 100": {
        "config": {"dataset": "fashion-mnist", "prior": "spike-slab", "alpha": 100.0},
        "shape": (1, 32, 32),
        "floor": floors.spike_slab_laplace,
        "divergence": floors.mmd_of_spike_slab,
        "rounds": 10,
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Training steps side by side.")
    parser.add_argument("settings", nargs="*", help=f"of: {'; '.join(SETTINGS)}")
    parser.add_argument("--rounds", type=int, help="steps of each kind [default: by setting]")
    parser.add_argument("--eager", action="store_true", help="leave out what has to be compiled")
    parser.add_argument(
        "--default-malloc", action="store_true", help="without the command's malloc"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.default_malloc:
        tune_allocator()
    names = args.settings or list(SETTINGS)
    rows = [
        row
        for name in names
        for row in time_setting(name, args.rounds, not args.eager, torch.device(args.device))
    ]
    malloc = "default" if args.default_malloc else "tuned"
    write("steps", rows, args.out, device=args.device, malloc=malloc)


def time_setting(
    name: str, rounds: int | None, compiled: bool, device: torch.device
) -> list[dict[str, Any]]:
    """Every kind of step of one setting: milliseconds, and the ratio to each floor."""
    setting = SETTINGS[name]
    jobs = steps(setting, compiled, device)
    for job in jobs.values():  # first steps trace, compile, and fill caches
        for _ in range(4):
            job()
    seconds = interleaved(jobs, rounds or setting["rounds"], device.type)
    print(f"\n{name}")
    rows = []
    for kind, value in seconds.items():
        row = {"setting": name, "step": kind, "ms": round(1e3 * value, 3)}
        row |= {
            f"of {floor}": round(value / seconds[floor], 3)
            for floor in ("torch, eager", "torch, compiled")
            if floor in seconds
        }
        rows.append(row)
        ratios = "".join(f"   {v:6.2f} {k}" for k, v in row.items() if k.startswith("of "))
        print(f"  {kind:<18} {row['ms']:9.2f} ms{ratios}", flush=True)
    return rows


def steps(
    setting: dict[str, Any], compiled: bool, device: torch.device
) -> dict[str, Callable[[], Any]]:
    """A function for each kind of step; every kind has its own model, all with the same weights."""
    config = Config(**setting["config"]).resolved()
    batch = config.batch_size or 64
    x = torch.rand(batch, *setting["shape"], generator=torch.Generator().manual_seed(0)).to(device)
    lr, alpha = config.lr or 1e-3, config.alpha

    def floor(compile: bool) -> Callable[[], Any]:
        vae = _model(config, setting["shape"], device)
        terms = setting["floor"](vae, config.beta)
        return floors.trainer(terms, setting["divergence"], alpha, vae, x, lr, compile)

    jobs: dict[str, Callable[[], Any]] = {"torch, eager": floor(False)}
    if alpha == 0:
        vae = _model(config, setting["shape"], device).to(memory_format=torch.contiguous_format)
        jobs["Pyro, common"] = _common(vae, x, lr)
    jobs["ours, eager"] = _ours(config, _model(config, setting["shape"], device), x, False)
    if compiled:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            jobs["torch, compiled"] = floor(True)
        jobs["ours, compiled"] = _ours(config, _model(config, setting["shape"], device), x, True)
    return jobs


def _model(config: Config, shape: tuple[int, ...], device: torch.device) -> Any:
    torch.manual_seed(0)
    vae = make_vae(config, shape).to(device).train()
    if device.type == "cpu":  # as `fit` does
        vae.to(memory_format=torch.channels_last)
    return vae


def _ours(config: Config, vae: Any, x: torch.Tensor, compile: bool) -> Callable[[], Any]:
    objective = make_objective(config, 60_000)
    tally = Tally(objective, x.device)
    optim = JointAdam(vae.parameters(), lr=config.lr or 1e-3, amsgrad=True, hold=tally.bad)
    svi = CompiledSVI(vae.model, vae.guide, optim, tally, compile=compile)
    taken = iter(range(10**9))
    store: dict[str, Any] = {"params": {}, "constraints": {}}

    def step() -> None:
        # a store for each model, which a training of its own would not have to swap
        with pyro.get_param_store().scope(store), pyro.validation_enabled(False):
            svi.update(x, None)
        tally.keep(next(taken), optim.largest)

    return step


def eager_step(config: Config, shape: tuple[int, ...]) -> Callable[[], Any]:
    """A step of ours on the CPU, not compiled."""
    x = torch.rand(config.batch_size or 64, *shape, generator=torch.Generator().manual_seed(0))
    return _ours(config, _model(config, shape, x.device), x, False)


def _common(vae: Any, x: torch.Tensor, lr: float) -> Callable[[], Any]:
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": lr, "amsgrad": True}), Trace_ELBO())
    store: dict[str, Any] = {"params": {}, "constraints": {}}

    def step() -> None:
        with pyro.get_param_store().scope(store), pyro.validation_enabled(True):
            svi.step(x)

    return step


if __name__ == "__main__":
    main()
