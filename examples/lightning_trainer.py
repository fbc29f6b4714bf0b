"""A VAE of ours under Lightning's Trainer, by way of Pyro's `ELBOModule`: clusters in the spirals.

pip install -e ".[lightning]"
python examples/lightning_trainer.py

The steps are those of `fit`: with the data in the same order, weights agree to the last bit.
"""

from __future__ import annotations

import argparse

import pyro
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pyro_bvae import VAE, DecompositionELBO
from pyro_bvae.datasets import import_torchvision, spirals
from pyro_bvae.divergences import inclusive_kl
from pyro_bvae.evaluation import evaluate
from pyro_bvae.likelihoods import Normal
from pyro_bvae.networks import mlp
from pyro_bvae.priors import Mixture
from pyro_bvae.schedules import Schedule, linear
from pyro_bvae.terms import TermsELBO

import_torchvision()  # Lightning imports it too, and fails where its binary is of another torch
import lightning as L  # noqa: E402


class Decomposition(L.LightningModule):
    """A VAE and an objective; beta follows a schedule of the step."""

    def __init__(self, vae: VAE, objective: TermsELBO, beta: Schedule, lr: float) -> None:
        super().__init__()
        self.vae, self.beta, self.lr = vae, beta, lr
        self.loss = objective(vae.model, vae.guide)  # type: ignore[arg-type]  # any callables will do

    def training_step(self, batch: list[Tensor]) -> Tensor:
        self.vae.beta = self.beta(self.global_step)
        # Models name their networks in Pyro's parameter store. Adam holds the parameters themselves and needs
        # no store, but what is left there would be trained by the next SVI in place of its own model.
        with pyro.get_param_store().scope():
            loss: Tensor = self.loss(*batch) / len(batch[0])  # the objective sums over the batch
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.vae.parameters(), lr=self.lr, fused=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Clusters in the spirals, trained by Lightning.")
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    data = spirals(seed=0)
    vae = VAE(*mlp((2,), 2, scale=True), Mixture(2), Normal("decoder"))
    objective = DecompositionELBO(1.0, inclusive_kl)
    module = Decomposition(vae, objective, linear(0.0, 1.0, 2 * args.steps / 3), lr=5e-3)
    rows = DataLoader(TensorDataset(torch.from_numpy(data.x)), batch_size=400, shuffle=True)
    trainer = L.Trainer(
        max_steps=args.steps, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, rows)
    metrics = evaluate(vae.eval(), data, divergence=inclusive_kl)
    print(f"D {metrics['divergence']:.2f}, KL {metrics['kl']:.2f} nats")
    print(f"{metrics['components_used']} components used, purity {metrics['purity']:.3f}")


if __name__ == "__main__":
    main()
