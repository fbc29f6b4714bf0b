"""The clustering figure of Mathieu 2019 (fig. 3): overlap by beta, structure by alpha.

Trains the pinwheel under a four-component mixture prior at the published settings (500 steps of 400
points, Adam with AMSGrad, lr 1e-3, D = inclusive KL, no warm-up): beta in .01, .5, 1, 1.2 at alpha = 0, and
alpha in 1, 3, 5, 8 at beta = 0. Prints what it measured on the 400 training points, as means and standard
errors over the seeds, and draws the density of the aggregate posterior on [-2, 2]^2: of each setting the seed
whose purity is the median, since single seeds differ.

    python examples/spirals.py                 one seed, about a minute: spirals.png
    python examples/spirals.py --seeds 8       the table and the picture of README, eight seeds

The official code counts log p(z) once per latent dimension in this prior's KL, so its beta row merges more
than this one. https://arxiv.org/abs/1812.02833
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch

from pyro_bvae import VAE, DecompositionELBO, fit
from pyro_bvae.datasets import spirals
from pyro_bvae.divergences import inclusive_kl
from pyro_bvae.evaluation import encode_data, evaluate
from pyro_bvae.likelihoods import Normal
from pyro_bvae.networks import mlp
from pyro_bvae.plots import density_grid
from pyro_bvae.priors import Mixture

SETTINGS = [(beta, 0.0) for beta in (0.01, 0.5, 1.0, 1.2)] + [
    (0.0, a) for a in (1.0, 3.0, 5.0, 8.0)
]
COLUMNS = ("divergence", "log_px_z", "kl", "purity", "components_used", "posterior_scale")


def train(beta: float, alpha: float, seed: int, steps: int) -> tuple[VAE, dict[str, float]]:
    """One model at the published settings, and its measures on the training points."""
    pyro.set_rng_seed(seed)
    data = spirals(seed=seed)
    vae = VAE(*mlp((2,), 2, scale=True), Mixture(2), Normal("decoder"), beta=beta)
    objective = DecompositionELBO(alpha, inclusive_kl)
    fit(vae, objective, data, steps=steps, batch_size=400, lr=1e-3, amsgrad=True, seed=seed)
    return vae, evaluate(vae, data, divergence=partial(inclusive_kl, n_samples=20_000), seed=seed)


def run_setting(beta: float, alpha: float, seeds: int, steps: int) -> tuple[np.ndarray, Any]:
    """Measures ``(seeds, len(COLUMNS))``, and title, means and deviations of the run of median purity."""
    measured, panels = [], []
    name = f"β = {beta:g}" if alpha == 0 else f"α = {alpha:g}"
    for seed in range(seeds):
        vae, metrics = train(beta, alpha, seed, steps)
        measured.append([metrics[column] for column in COLUMNS])
        codes = encode_data(vae, spirals(seed=seed))
        panels.append((f"{name}, seed {seed}", codes.loc.numpy(), codes.scale.numpy()))
    table = np.array(measured)
    purity = table[:, COLUMNS.index("purity")]
    median = np.argsort(purity, kind="stable")[(seeds - 1) // 2]
    return table, panels[median]


def main() -> None:
    parser = argparse.ArgumentParser(description="The clustering figure on the pinwheel data.")
    parser.add_argument(
        "--seeds", type=int, default=1, help="how many; the figure shows the median"
    )
    parser.add_argument("--steps", type=int, default=500, help="500 is the published number")
    parser.add_argument("--out", default="spirals.png", help="where the figure goes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    panels = []
    print("beta alpha " + " ".join(f"{name:>16}" for name in COLUMNS) + "   (mean +- s.e.)")
    for beta, alpha in SETTINGS:
        table, panel = run_setting(beta, alpha, args.seeds, args.steps)
        panels.append(panel)
        cells = " ".join(map(mean_and_error, table.T))
        print(f"{beta:4g} {alpha:5g} {cells}", flush=True)
        if args.seeds > 1:
            print(
                f"           purity of each seed: {np.round(table[:, 3], 3).tolist()}", flush=True
            )
    density_grid(panels, 4).savefig(args.out, dpi=150)
    print(f"Wrote {args.out}")


def mean_and_error(values: np.ndarray) -> str:
    """The mean, and its standard error where there are several values."""
    if len(values) < 2:
        return f"{values[0]:16.3f}"
    return f"{values.mean():9.3f} +-{values.std(ddof=1) / math.sqrt(len(values)):5.3f}"


if __name__ == "__main__":
    main()
