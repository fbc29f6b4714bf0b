"""A training in Weights & Biases: a callback of two lines. Offline, so no account is needed.

pip install -e ".[wandb]"
python examples/wandb_logger.py                 writes runs/wandb/offline-run-*
wandb sync runs/wandb/offline-run-*             uploads it, for those who have an account

`train`, `resume` and `fit` take the callback alike. A record of `train` also has held-out terms.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyro
import torch
import wandb

from pyro_bvae import VAE, CapacityELBO, fit
from pyro_bvae.datasets import load_dataset
from pyro_bvae.likelihoods import Bernoulli
from pyro_bvae.networks import mlp
from pyro_bvae.priors import Gaussian
from pyro_bvae.schedules import linear
from pyro_bvae.training import Record, TrainingState


def log(record: Record, state: TrainingState) -> None:
    """Every number of a record, by step."""
    numbers = {name: value for name, value in record.items() if name != "step"}
    wandb.log(numbers, step=state.step)


def main() -> None:
    parser = argparse.ArgumentParser(description="Digits whose code grows to 10 nats, in wandb.")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", default="runs", help="where the folder wandb goes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    train, _ = load_dataset("digits")
    vae = VAE(*mlp(train.x_shape, 10), Gaussian(10), Bernoulli())
    settings = {"epochs": args.epochs, "batch_size": 64, "lr": 2e-3}
    Path(args.out).mkdir(parents=True, exist_ok=True)
    capacity = linear(0.0, 10.0, 0.7 * args.epochs * len(train) / 64)
    with wandb.init(project="pyro-bvae", mode="offline", dir=args.out, config=settings) as run:
        history = fit(
            vae, CapacityELBO(20.0, 0.0), train, **settings,
            schedules={"capacity": capacity}, callbacks=[log],
        )  # fmt: skip
    print(f"C = {history[-1]['capacity']:.1f} nats, KL {history[-1]['kl']:.1f}")
    print(f"Wrote {len(history)} records to {Path(run.dir).parent}")


if __name__ == "__main__":
    main()
