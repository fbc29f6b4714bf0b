"""Theory, executable: what beta does, and what it cannot do (Mathieu 2019, section 3).

1. The annealed prior. With f_beta = p^beta / F_beta and F_beta = integral of p^beta,

    -beta KL(q || p) = -KL(q || f_beta) + (beta - 1) H[q] + log F_beta,

   so beta > 1 narrows the prior and rewards the posterior's entropy: it sets how much codes overlap. Shown
   in closed form for N(0, I), F_beta = (2 pi)^(d (1 - beta) / 2) beta^(-d / 2), and any Gaussian q; for a
   Student-t and a spike-and-slab prior by quadrature.
2. Rotation. Under N(0, I) turning the latents, q as a full-covariance Normal and the decoder with the
   inverse before it, leaves L_beta = E log p(x|z) - beta KL(q || p) as it is: nothing asks for independent
   axes. Keeping only the diagonal of the turned covariance costs, and so do priors that know axes.

The script asserts what it says, in half a minute; `theory.png` shows both.

    python examples/theory.py

All in nats, float64. https://arxiv.org/abs/1812.02833
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_bvae import VAE, DecompositionELBO, fit
from pyro_bvae.datasets import Data, load_dataset
from pyro_bvae.likelihoods import Bernoulli
from pyro_bvae.networks import mlp
from pyro_bvae.plots import PALETTE
from pyro_bvae.priors import Gaussian, SpikeSlab, StudentT

BETAS = (0.5, 1.0, 2.0, 4.0)
LATENTS = 6  # of the trained models
LogDensity = Callable[[Tensor], Tensor]
Terms = tuple[float, float, float, float]  # -beta KL(q||p), -KL(q||f_beta), (beta-1) H, log F_beta


# 1. The annealed prior


def gaussian_terms(q: dist.MultivariateNormal, beta: float) -> Terms:
    """Both sides in closed form under p = N(0, I): f_beta is N(0, I / beta)."""
    d = q.event_shape[0]
    eye = torch.eye(d, dtype=q.loc.dtype)
    kl = kl_divergence(q, dist.MultivariateNormal(torch.zeros_like(q.loc), eye))
    kl_f = kl_divergence(q, dist.MultivariateNormal(torch.zeros_like(q.loc), eye / beta))
    log_f = d / 2 * ((1 - beta) * math.log(2 * math.pi) - math.log(beta))
    return -beta * kl.item(), -kl_f.item(), (beta - 1) * q.entropy().item(), log_f


def integral(f: LogDensity) -> float:
    """The integral of f over the line, by the trapezoid rule in t where z = sinh t reaches far tails."""
    t = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    return torch.trapezoid(f(t.sinh()) * t.cosh(), t).item()


def quadrature_terms(q: TorchDistribution, log_p: LogDensity, beta: float) -> Terms:
    """Both sides for any densities on the line, F_beta being an integral as well."""

    def expected(g: LogDensity) -> float:
        return integral(lambda z: q.log_prob(z).exp() * g(z))

    log_f = math.log(integral(lambda z: (beta * log_p(z)).exp()))
    kl = expected(lambda z: q.log_prob(z) - log_p(z))
    kl_f = expected(lambda z: q.log_prob(z) - (beta * log_p(z) - log_f))
    return -beta * kl, -kl_f, (beta - 1) * -expected(q.log_prob), log_f


def student_terms(q: dist.Normal, prior: StudentT, beta: float) -> Terms:
    """As `quadrature_terms`, with f_beta and F_beta known: a Student-t of df' = beta (df + 1) - 1.

    p^beta is proportional to (1 + z^2/df)^(-beta (df + 1) / 2), so f_beta's scale is sqrt(df / df'), and
    F_beta = p(0)^beta / f_beta(0). Two integrals are left, and H[q] is in closed form.
    """
    df = prior.double().log_df.exp().item()
    new = beta * (df + 1) - 1
    p = dist.StudentT(torch.tensor(df, dtype=torch.float64))
    f = dist.StudentT(torch.tensor(new, dtype=torch.float64), 0.0, math.sqrt(df / new))
    zero = torch.zeros((), dtype=torch.float64)
    log_f = (beta * p.log_prob(zero) - f.log_prob(zero)).item()

    def minus_kl(to: LogDensity) -> float:
        return -integral(lambda z: q.log_prob(z).exp() * (q.log_prob(z) - to(z)))

    log_p = log_density(prior)
    return beta * minus_kl(log_p), minus_kl(f.log_prob), (beta - 1) * q.entropy().item(), log_f


def log_density(prior: nn.Module) -> LogDensity:
    """log p of a prior of one latent, as a function of scalars."""
    with torch.no_grad():
        p_z = prior.double()()
    return lambda z: p_z.log_prob(z.unsqueeze(-1))


def show_identity() -> dict[str, list[Terms]]:
    """Print both sides of the identity and assert that they agree; the terms of each pair q, p."""
    full = torch.tensor([[1.0, 0.6, 0.2], [0.6, 0.5, 0.1], [0.2, 0.1, 0.3]], dtype=torch.float64)
    loc = torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)
    turned = torch.linalg.eigh(full)[1].T  # onto the principal axes: independent latents
    q = dist.MultivariateNormal(loc, full)
    q_turned = dist.MultivariateNormal(turned @ loc, turned @ full @ turned.T)
    line = dist.Normal(loc[0], full[1, 1])
    tails, sparse = StudentT(1, df=5.0), log_density(SpikeSlab(1, spike_weight=0.8))
    both = {
        "full-covariance q, p = N(0, I)": [gaussian_terms(q, b) for b in BETAS],
        "the same q turned onto its axes": [gaussian_terms(q_turned, b) for b in BETAS],
        "Gaussian q, p = Student-t, 5 df": [student_terms(line, tails, b) for b in BETAS],
        "Gaussian q, p = spike-and-slab": [quadrature_terms(line, sparse, b) for b in BETAS],
    }
    print("1. -beta KL(q||p) = -KL(q||f_beta) + (beta - 1) H[q] + log F_beta")
    for name, rows in both.items():
        print(f"   {name}\n    beta  left side =    -KL(q||f)  (beta-1)H  log F    difference")
        for beta, (left, *right) in zip(BETAS, rows, strict=True):
            terms = " ".join(f"{term:+10.4f}" for term in right)
            print(f"   {beta:5g} {left:+10.4f} = {terms}   {left - sum(right):+.0e}")
            assert abs(left - sum(right)) < 1e-10
    axes, principal = (
        both["full-covariance q, p = N(0, I)"],
        both["the same q turned onto its axes"],
    )
    assert np.allclose(axes, principal, rtol=0, atol=1e-10)
    print(
        "   Each term is the same for correlated latents as for independent ones: beta weighs the"
    )
    print("   entropy of q, which is overlap, and does not ask for independence.")
    return both


# 2. Rotation


class RotatedNormal(dist.MultivariateNormal):
    """N(R m, R diag(s^2) R^T) whose samples are those of N(m, diag(s^2)), rotated: the same noise.

    Its KL to our priors has no closed form in torch; of the one-sample estimate log q(z) - log p(z) a
    rotation changes nothing but log p(z).
    """

    def __init__(self, loc: Tensor, scale: Tensor, rotation: Tensor) -> None:
        self._straight = dist.Normal(loc, scale).to_event(1)
        self._rotation = rotation
        root = rotation * scale.unsqueeze(-2)  # (batch, d, d)
        super().__init__(loc @ rotation.T, root @ root.mT, validate_args=False)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self._straight.rsample(sample_shape) @ self._rotation.T

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> RotatedNormal:
        assert tuple(batch_shape) == tuple(
            self.batch_shape
        )  # all that a plate of its size asks for
        return self


class RotatedEncoder(nn.Module):
    """q(z|x) turned by R: as a full-covariance Normal, or with its diagonal only."""

    def __init__(self, encoder: nn.Module, rotation: Tensor, diagonal: bool) -> None:
        super().__init__()
        self.encoder, self.rotation, self.diagonal = encoder, rotation, diagonal

    def forward(self, x: Tensor) -> TorchDistribution:
        loc, scale = self.encoder(x)
        q_z = RotatedNormal(loc, scale, self.rotation)
        return dist.Normal(q_z.loc, q_z.variance.sqrt()).to_event(1) if self.diagonal else q_z


class Turn(nn.Module):
    """z (batch, d) -> R z."""

    def __init__(self, rotation: Tensor) -> None:
        super().__init__()
        self.rotation = rotation

    def forward(self, z: Tensor) -> Tensor:
        return z @ self.rotation.T


@torch.no_grad()
def plane(vae: VAE, x: Tensor) -> list[int]:
    """The latents of the narrowest and of the widest posteriors: where turning matters most."""
    order = vae.q_z(x).variance.mean(0).argsort()
    return [int(order[0]), int(order[-1])]


def rotated(vae: VAE, degrees: float, pair: list[int], diagonal: bool = False) -> VAE:
    """The same model, two latents turned in their plane: the decoder first turns them back."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rotation = torch.eye(LATENTS, dtype=torch.float64)
    i, j = pair
    rotation[i, i], rotation[i, j], rotation[j, i], rotation[j, j] = c, -s, s, c
    encoder = RotatedEncoder(vae.encoder, rotation, diagonal)
    decoder = nn.Sequential(Turn(rotation.T), vae.decoder)
    return VAE(encoder, decoder, vae.prior, vae.likelihood, beta=vae.beta)


@torch.no_grad()
def objective(vae: VAE, x: Tensor, seeds: int) -> np.ndarray:
    """L_beta on all rows of x, nats per example, under each of some seeds: (seeds,)."""
    values = []
    for seed in range(seeds):
        # The store would hand one model's parameters to the next of the same names.
        with pyro.get_param_store().scope():
            pyro.set_rng_seed(seed)
            terms = DecompositionELBO().terms(vae.model, vae.guide, x)
        values.append((terms.log_px_z - vae.beta * terms.kl).mean().item())
    return np.array(values)


def train(prior: nn.Module, data: Data, steps: int) -> VAE:
    """A VAE on the 8x8 digits; then in float64."""
    pyro.set_rng_seed(0)
    vae = VAE(*mlp(data.x_shape, LATENTS), prior, Bernoulli(), beta=1.0)
    fit(vae, DecompositionELBO(), data, steps=steps, batch_size=128, lr=3e-3)
    return vae.double()


Curve = tuple[np.ndarray, np.ndarray]  # change of L_beta at each angle, and its standard error


def turn(vae: VAE, x: Tensor, angles: np.ndarray, seeds: int, diagonal: bool = False) -> Curve:
    """L_beta at each angle less that at the first, by the same noise."""
    pair = plane(vae, x)
    values = np.array([objective(rotated(vae, a, pair, diagonal), x, seeds) for a in angles])
    change = values - values[0]
    return change.mean(1), change.std(1, ddof=1) / math.sqrt(seeds)


def show_rotation(steps: int, seeds: int) -> tuple[np.ndarray, dict[str, Curve]]:
    """Train under three priors, turn the latents and assert what happens to L_beta."""
    data, _ = load_dataset("digits")
    x = data.tensors(np.arange(len(data)))[0].double()
    angles = np.arange(0, 181, 22.5)
    isotropic = train(Gaussian(LATENTS), data, steps)
    unequal = train(Gaussian(LATENTS, scale=torch.linspace(1.2, 0.8, LATENTS)), data, steps)
    tails = train(StudentT(LATENTS, df=1.0), data, steps)
    curves = {
        "N(0, I), full covariance": turn(isotropic, x, angles, seeds),
        "N(0, I), diagonal kept": turn(isotropic, x, angles, seeds, diagonal=True),
        "unequal variances, full covariance": turn(unequal, x, angles, seeds),
        "Student-t, 1 df, full covariance": turn(tails, x, angles, seeds),
    }
    print("\n2. Two latents turned: the change of L_beta, nats per example (+- standard error)")
    for name, (mean, error) in curves.items():
        at = int(np.abs(mean).argmax())
        print(f"   {name:34} {mean[at]:+.1e} +- {error[at]:.0e} at {angles[at]:5.1f} degrees")
    (full, _), (kept, kept_se), *axes = curves.values()
    assert np.abs(full).max() < 1e-9
    print("   Under N(0, I) with the full covariance nothing changes: no axes are preferred.")
    at = int(kept.argmin())
    assert kept[at] < -4 * kept_se[at], "hidden by noise: raise --steps or --seeds"
    print(
        f"   Keeping the diagonal alone costs up to {-kept[at]:.2f} nats: a diagonal q prefers axes."
    )
    for mean, error in axes:
        at = int(np.abs(mean).argmax())
        assert abs(mean[at]) > 4 * error[at] > 0, "hidden by noise: raise --steps or --seeds"
    print("   Under unequal variances and under a Student-t L_beta changes: such priors know axes.")
    return angles, curves


# The figure


def draw(identity: list[Terms], angles: np.ndarray, curves: dict[str, Curve]) -> Figure:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_identity(left, np.array(identity))
    for k, (name, (mean, error)) in enumerate(curves.items()):
        style = {"color": PALETTE[k], "marker": "os^D"[k], "ms": 4, "capsize": 2}
        right.errorbar(angles, mean, 2 * error, label=name, **style)
    right.set(xlabel="rotation of the latents (degrees)", xticks=np.arange(0, 181, 45))
    right.set(
        ylabel="change of L (nats per example)",
        title="Two latents turned: digits, β = 1 (± 2 s.e.)",
    )
    right.set_ylim(top=-0.4 * right.get_ylim()[0])  # room for the names
    right.legend(fontsize=8)
    return figure


def draw_identity(ax: Axes, terms: np.ndarray) -> None:
    """The identity's three terms at each beta, their sum, and the left side on it."""
    names = (r"$-$KL($q\,$‖$\,f_\beta$)", r"($\beta-1$) H[$q$]", r"log $F_\beta$")
    at = np.arange(len(BETAS))
    for k, name in enumerate(names):
        ax.bar(at + 0.22 * (k - 1), terms[:, k + 1], 0.2, color=PALETTE[k], label=name)
    ax.plot(at, terms[:, 1:].sum(1), "o", mfc="none", color="black", ms=9, label="their sum")
    ax.plot(at, terms[:, 0], "x", color="black", label=r"$-\beta\,$KL($q\,$‖$\,p$)")
    ax.axhline(0, color="0.5", lw=0.8)
    ax.set_xticks(at, [f"β = {beta:g}" for beta in BETAS])
    ax.set(ylabel="nats", title="The annealed prior: full-covariance q, p = N(0, I)")
    ax.legend(fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description="What beta does, and what it cannot do.")
    parser.add_argument("--steps", type=int, default=600, help="of each training")
    parser.add_argument("--seeds", type=int, default=16, help="of the noise in measuring L_beta")
    parser.add_argument("--out", default="theory.png", help="where the figure goes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    identity = show_identity()
    angles, curves = show_rotation(args.steps, args.seeds)
    draw(identity["full-covariance q, p = N(0, I)"], angles, curves).savefig(args.out, dpi=150)
    print(f"Wrote {args.out}")


if __name__ == "__main__":
    main()
