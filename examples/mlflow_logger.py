"""A training in MLflow: a callback of two lines, and a database in one file.

pip install -e ".[mlflow]"
python examples/mlflow_logger.py                          writes runs/mlflow.db
mlflow ui --backend-store-uri sqlite:///runs/mlflow.db    shows it (pip install mlflow)

`train`, `resume` and `fit` take the callback alike. A record of `train` also has held-out terms.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mlflow
import pyro
import torch

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
    mlflow.log_metrics(numbers, step=state.step)


def main() -> None:
    parser = argparse.ArgumentParser(description="Digits whose code grows to 10 nats, in MLflow.")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", default="runs", help="where mlflow.db goes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    train, _ = load_dataset("digits")
    vae = VAE(*mlp(train.x_shape, 10), Gaussian(10), Bernoulli())
    settings = {"epochs": args.epochs, "batch_size": 64, "lr": 2e-3}
    capacity = linear(0.0, 10.0, 0.7 * args.epochs * len(train) / 64)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    store = Path(args.out, "mlflow.db").resolve()
    mlflow.set_tracking_uri(f"sqlite:///{store}")
    mlflow.set_experiment("pyro-bvae")
    with mlflow.start_run() as run:
        mlflow.log_params(settings)
        history = fit(
            vae, CapacityELBO(20.0, 0.0), train, **settings,
            schedules={"capacity": capacity}, callbacks=[log],
        )  # fmt: skip
    print(f"C = {history[-1]['capacity']:.1f} nats, KL {history[-1]['kl']:.1f}")
    print(f"Wrote {len(history)} records of run {run.info.run_id} to {store}")


if __name__ == "__main__":
    main()
