"""CPU seconds of every metric at its default sizes, on noise codes with factors like those of dSprites.

    python -m benchmarks.metrics                 all; DCI takes a minute
    python -m benchmarks.metrics --sklearn       DCI beside scikit-learn's own trees, in turn: many minutes
    python -m benchmarks.metrics --rows 2000     quicker

One thread (OMP_NUM_THREADS=1), CPU time and not wall time: other jobs on the machine disturb it less.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pyro_bvae.metrics import METRICS, factor_vae_score, hoyer, mig_chen, udr

from .timing import interleaved, write

SIZES = (3, 6, 40, 32, 32)  # values of shape, scale, orientation, x and y


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU seconds of every metric.")
    parser.add_argument("--rows", type=int, default=15_000)
    parser.add_argument("--latents", type=int, default=10)
    parser.add_argument("--sklearn", action="store_true", help="time scikit-learn's DCI trees too")
    parser.add_argument("--out", type=Path, help="JSON file [default: benchmarks/results/...]")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # small samples: bias warnings
    codes, factors = sample(args.rows, args.latents)
    jobs: dict[str, Callable[[], Any]] = {
        name: lambda f=f: f(codes, factors) for name, f in METRICS.items()
    }
    jobs["mig-chen"] = lambda: mig_chen(codes, np.full_like(codes, 0.3), factors)
    jobs["hoyer"] = lambda: hoyer(codes)
    jobs["udr, 5 models"] = lambda: udr([codes + i for i in range(5)])
    many = sample(args.rows * 49, args.latents)  # 735,000 rows: about the whole of dSprites
    jobs["factor-vae-score, Mathieu, all of dSprites"] = lambda: factor_vae_score(
        *many, n_rows=1000, n_train=20_000, n_eval=0
    )
    if args.sklearn:
        jobs["dci, scikit-learn's trees"] = lambda: METRICS["dci"](
            codes, factors, estimator=gradient_boosting()
        )
    METRICS["beta-vae-score"](codes[:500], factors[:500], n_train=50, n_eval=50)  # imports sklearn
    rows = []
    for name, job in jobs.items():
        rows.append({"metric": name, "cpu_s": interleaved({name: job}, 1)[name]})
        print(f"{name:<44} {rows[-1]['cpu_s']:8.3f} s", flush=True)
    write("metrics", rows, args.out, n=args.rows, latents=args.latents)


def sample(n: int, latents: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors drawn at random, and codes that mix them with noise."""
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(0, size, n) for size in SIZES], 1)
    mix = rng.normal(size=(len(SIZES), latents))
    return (factors / SIZES) @ mix + rng.normal(size=(n, latents)), factors


def gradient_boosting() -> Any:
    from sklearn.ensemble import GradientBoostingClassifier

    return GradientBoostingClassifier()


if __name__ == "__main__":
    main()
