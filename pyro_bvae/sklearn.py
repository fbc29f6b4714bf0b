"""`DecompositionVAE`: beta-VAEs and decomposition as a scikit-learn transformer of tables."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, cast

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.distributions import kl_divergence

from .build import make_divergence, make_prior
from .config import Config, brief, default_divergence, flag
from .datasets import Data
from .datasets.data import unmasked
from .divergences import Divergence
from .elbo import DecompositionELBO
from .likelihoods import LIKELIHOODS
from .networks import Network, mlp
from .noise import noise_state
from .priors.arguments import whole
from .training import Record, TrainingState, fit, steps_per_epoch
from .vae import ALONE, VAE, evaluating

_LEAST_EPOCHS, _LEAST_STEPS = 20, 200  # where no number of epochs is given
_SAMPLES = 64  # of z, at least, that a score is a mean over
_ENTRIES = 1 << 18  # of x, decoded at a time
_DTYPES = (np.float64, np.float32)
_ARGUMENTS = {flag(field.name): field.name for field in fields(Config)}


class DecompositionVAE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A variational autoencoder of the rows of a table, with a chosen overlap and a chosen structure.

    Adam maximises, in nats per row,

        E log p(x|z) - beta KL(q(z|x) || p(z)) - alpha D(q(z), p(z))

    with p(z) the prior, q(z|x) a diagonal Normal from the encoder, and q(z) its mean over a batch. beta
    controls how much posteriors overlap, alpha imposes the prior's structure on the codes. beta = 1 and
    alpha = 0, the defaults, are the VAE, whose optimum with linear networks is probabilistic PCA.

    Standardise features first (`sklearn.preprocessing.StandardScaler`): by default one learned scale of
    p(x|z) serves them all. Training is in float32 on the CPU; codes and scores are computed in float64 and
    returned in the dtype of X where that is float32, else as float64. Those of a row depend on that row
    alone, to rounding: what noise a score needs is the same for all rows and calls. Sample weights and
    missing values are not supported.

    Args:
        latent_dim: number of latents, which are the columns of the codes.
        prior: p(z), a name of `pyro_bvae.priors.PRIORS`, or a module of your own, of which a copy is trained.
        prior_args: arguments of a prior that is named, e.g. ``{"n_components": 3}``.
        beta: weight of the KL, >= 0.
        alpha: weight of D, >= 0. Batches stand for all the data in D: large ones serve it.
        divergence: D, a name of `pyro_bvae.divergences.DIVERGENCES` or a function ``(q_z, p_z, z)``;
            inclusive-kl up to 5 latents and mmd-per-dim above by default.
        likelihood: p(x|z), a name of `pyro_bvae.likelihoods.LIKELIHOODS`; the two Bernoullis want
            features in [0, 1].
        likelihood_scale: of normal and laplace: ``"learned"``, one for all; ``"decoder"``, one for each
            feature and row; or a number.
        network: ``"mlp"``, or a function ``(x_shape, latent_dim, extra, scale) -> (encoder, decoder)`` as
            in `pyro_bvae.networks`, whose encoder returns ``(loc, scale)``.
        hidden: units of the mlp's one layer on either side.
        epochs: passes over the data; 20 by default, and on small data as many as make 200 steps.
        batch_size: rows a step.
        lr: Adam's learning rate.
        random_state: of first weights, noise and the order of rows: a seed, a
            ``numpy.random.RandomState``, or None for numpy's own.

    Attributes:
        vae_: the model, a `pyro_bvae.VAE`.
        history_: records as `pyro_bvae.fit` returns them, one an epoch of each call.
        n_features_in_, feature_names_in_: those of every scikit-learn estimator.

    Raises:
        ValueError, TypeError: an argument, when it is first used; or data.
        FloatingPointError: the loss was not finite: standardise, or lower ``lr``.

    Examples:
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> model = make_pipeline(StandardScaler(), DecompositionVAE(2, beta=0.5, random_state=0))
        >>> model.fit_transform(load_iris().data).shape
        (150, 2)
        >>> model[-1].sample(5).shape
        (5, 4)

    References: https://arxiv.org/abs/1312.6114, https://arxiv.org/abs/1812.02833
    """

    def __init__(
        self,
        latent_dim: int = 2,
        *,
        prior: str | nn.Module = "gaussian",
        prior_args: dict[str, Any] | None = None,
        beta: float = 1.0,
        alpha: float = 0.0,
        divergence: str | Divergence | None = None,
        likelihood: str = "normal",
        likelihood_scale: str | float = "learned",
        network: str | Network = "mlp",
        hidden: int = 100,
        epochs: int | None = None,
        batch_size: int = 64,
        lr: float = 5e-3,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.latent_dim = latent_dim
        self.prior, self.prior_args = prior, prior_args
        self.beta = beta
        self.alpha, self.divergence = alpha, divergence
        self.likelihood, self.likelihood_scale = likelihood, likelihood_scale
        self.network, self.hidden = network, hidden
        self.epochs, self.batch_size, self.lr = epochs, batch_size, lr
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> DecompositionVAE:
        """Train a new model on ``X (n_samples, n_features)``, two rows or more; y is ignored."""
        with _in_arguments():
            config = self._config()
            x = self._rows(X, reset=True, dtype=np.float32, ensure_min_samples=2)
            self._start(x, config)
            per_epoch = steps_per_epoch(len(x), cast(int, config.batch_size))
            epochs = config.epochs or max(_LEAST_EPOCHS, -(-_LEAST_STEPS // per_epoch))
            return self._train(x, config, epochs)

    def partial_fit(self, X: Any, y: Any = None) -> DecompositionVAE:
        """Go on training for one pass over ``X (n_samples, n_features)``; y is ignored.

        Model, optimiser and noise are as the last call of this or `fit` left them; the first call starts
        a model. beta, alpha, ``divergence``, ``batch_size`` and ``lr`` are as they are now, other
        arguments as they were at the start.
        """
        with _in_arguments():
            config = self._config()
            first = not hasattr(self, "vae_")
            x = self._rows(X, reset=first, dtype=np.float32)
            if first:
                self._start(x, config)
            return self._train(x, config, 1)

    def transform(self, X: Any) -> np.ndarray:
        """Posterior means of ``X (n_samples, n_features)``: ``(n_samples, latent_dim)``."""
        check_is_fitted(self, "vae_")
        return self._evaluated(VAE.encode, self._rows(X))

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Means of p(x|z) at the codes ``X (n_samples, latent_dim)``: ``(n_samples, n_features)``."""
        check_is_fitted(self, "vae_")
        z = check_array(X, dtype=_DTYPES, input_name="X", estimator=self)
        if z.shape[1] != self._n_features_out:
            raise ValueError(
                f"DecompositionVAE: codes must have one column for each of {self._n_features_out} latents; "
                f"got {z.shape[1]}. Pass what transform returns."
            )
        return self._evaluated(lambda vae, part: vae.p_x(part).mean, z)

    def score_samples(self, X: Any) -> np.ndarray:
        """The ELBO of each row, E log p(x|z) - KL(q(z|x) || p(z)): a lower bound on log p(x).

        beta is 1 and alpha 0 here, whatever was trained. E, and a KL without a closed form, are means over
        64 samples of z, or twice ``latent_dim`` if that is more, by the same noise for every row.

        Args:
            X: ``(n_samples, n_features)``.

        Returns:
            ``(n_samples,)``, nats per row, higher is better.
        """
        check_is_fitted(self, "vae_")
        noise = _shared_noise(self._n_features_out)
        X = self._rows(X)
        return self._evaluated(lambda vae, part: _elbo(vae, part, noise), X, len(noise))

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of `score_samples`: what a search maximises where no other score is named.

        It asks for a good model of X. For good codes, search by the score of what uses them.
        """
        return float(np.mean(self.score_samples(X)))

    def sample(
        self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None
    ) -> np.ndarray:
        """New rows, z ~ p(z) and x ~ p(x|z): float64 ``(n_samples, n_features)``."""
        check_is_fitted(self, "vae_")
        if not isinstance(_plain(n_samples), int) or n_samples < 1:
            raise ValueError(
                f"DecompositionVAE: n_samples must be an integer >= 1; got {brief(n_samples)}."
            )
        vae = _float64(self.vae_)
        with evaluating(vae, seed=_seed(random_state)):
            z = vae.p_z().sample((n_samples,)).double()
            return cast(np.ndarray, vae.p_x(z).sample().numpy())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _config(self) -> Config:
        """The arguments that a `Config` has too, checked as it checks them."""
        names = ["latent_dim", "beta", "alpha", "likelihood", "batch_size", "lr", "epochs"]
        names += ["likelihood_scale"] if self.likelihood in ("normal", "laplace") else []
        names += [name for name in ("prior", "divergence") if not callable(getattr(self, name))]
        given = {name: _plain(getattr(self, name)) for name in names}
        for name, value in given.items():
            if value is None and name not in ("epochs", "divergence"):  # a Config would fill it in
                raise TypeError(
                    f"DecompositionVAE: {name} must be given; got None. Leave it out for the default."
                )
        return Config(**given, prior_args={} if self.prior_args is None else self.prior_args)

    def _rows(self, X: Any, reset: bool = False, dtype: Any = _DTYPES, **rules: Any) -> np.ndarray:
        """X as an array ``(n_samples, n_features)``, checked."""
        if isinstance(X, np.ma.MaskedArray):  # whose mask scikit-learn drops
            X = unmasked("X", X, "DecompositionVAE")
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold is refused
            x = validate_data(self, X, reset=reset, dtype=dtype, **rules)
        bounded = self.likelihood in ("bernoulli", "continuous-bernoulli")
        if bounded and (x.min() < 0 or x.max() > 1):
            raise ValueError(
                f"DecompositionVAE: X must lie in [0, 1] for likelihood {self.likelihood!r}; got {x.min():g} "
                f"to {x.max():g}. Put MinMaxScaler(clip=True) before it, or use likelihood='normal'."
            )
        return cast(np.ndarray, x)

    def _start(self, x: np.ndarray, config: Config) -> None:
        """A new model, once it is checked on some rows."""
        self._rng = torch.Generator().manual_seed(_seed(self.random_state)).get_state()
        with self._own_noise():
            vae = self._make_vae(x, config)
        rows, wide = torch.from_numpy(x[:4]).double(), _float64(vae)
        wide.check(rows)
        with evaluating(wide):
            q_z = wide.q_z(rows)
        if not isinstance(getattr(q_z, "base_dist", None), torch.distributions.Normal):
            raise TypeError(
                f"DecompositionVAE: network's encoder must return (loc, scale); got {type(q_z).__name__}. "
                "Use pyro_bvae.VAE for other posteriors."
            )
        self.vae_ = vae
        self.history_: list[Record] = []
        self._moments: dict[int, Any] = {}  # Adam's
        self._n_features_out = q_z.event_shape[0]

    def _make_vae(self, x: np.ndarray, config: Config) -> VAE:
        shape, latent_dim, scale = (
            x.shape[1:],
            cast(int, config.latent_dim),
            config.likelihood_scale,
        )
        if self.network == "mlp":
            hidden = whole(self, "hidden", _plain(self.hidden))
            encoder, decoder = mlp(shape, latent_dim, scale=scale == "decoder", hidden=hidden)
        elif callable(self.network):
            encoder, decoder = self.network(shape, latent_dim, 0, scale == "decoder")
        else:
            raise TypeError(
                "DecompositionVAE: network must be 'mlp' or a function (x_shape, latent_dim, extra, scale); "
                f"got {brief(self.network)}. The others are for images, which rows are not."
            )
        if not callable(self.prior):
            prior = make_prior(config, shape, x)
        elif isinstance(self.prior, nn.Module) and not self.prior_args:
            prior = copy.deepcopy(self.prior)  # what was given stays as it was
        else:
            raise TypeError(
                "DecompositionVAE: prior must be a name, or a module without prior_args; got "
                f"{brief(self.prior)} with {brief(self.prior_args)}. Build the module with its arguments."
            )
        options = {} if scale is None else {"scale": scale}
        return VAE(encoder, decoder, prior, LIKELIHOODS[str(config.likelihood)](**options))

    def _train(self, x: np.ndarray, config: Config, epochs: int) -> DecompositionVAE:
        """Go on with the model for some passes over x."""
        divergence: Any = self.divergence
        if not callable(divergence):
            name = config.divergence or default_divergence(self._n_features_out)
            divergence = make_divergence(config, name, len(x))
        objective = DecompositionELBO(config.alpha, divergence)
        last: list[TrainingState] = []
        with self._own_noise():
            self.history_ += fit(
                self.vae_,
                objective,
                Data(x),
                epochs=epochs,
                batch_size=cast(int, config.batch_size),
                lr=cast(float, config.lr),
                callbacks=[lambda record, state: last.append(state)],
                resume=self._place(config),
            )
        self._moments = last[-1].optim.get_state()["state"]
        return self

    def _place(self, config: Config) -> dict[str, Any]:
        """Where a training starts, as `TrainingState.state_dict` has it, with the moments of the last one."""
        order = torch.Generator().manual_seed(int(torch.randint(1 << 31, ())))
        return {
            "vae": self.vae_.state_dict(),
            "optim": {"state": self._moments, "param_groups": [{"lr": config.lr}]},
            "svi": {"compiled": False, "seen": [], "captured": None},
            "numbers": {"beta": config.beta, "alpha": config.alpha},
            "noise": noise_state(torch.device("cpu")),
            "data_order": order.get_state(),
            "step": 0, "epoch": 0, "batch": 0, "seconds": 0.0, "sums": {}, "counts": {},
        }  # fmt: skip

    @contextmanager
    def _own_noise(self) -> Iterator[None]:
        """torch's generator is the estimator's meanwhile, and goes on where that had stopped."""
        with ALONE, torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._rng)
            yield
            self._rng = torch.get_rng_state()

    def _evaluated(
        self, function: Callable[[VAE, Tensor], Tensor], X: np.ndarray, decoded: int = 1
    ) -> np.ndarray:
        """``function(vae, X)``, part by part; of a row it makes ``decoded`` x."""
        vae = _float64(self.vae_)
        size = max(1, _ENTRIES // (decoded * self.n_features_in_))
        with evaluating(vae):
            x = torch.from_numpy(X.astype(np.float64))
            found = torch.cat([function(vae, part) for part in x.split(size)])
        return found.numpy().astype(X.dtype)


def _float64(vae: VAE) -> VAE:
    """A copy in float64, whose sums differ by 1e-16 when a row comes in another batch."""
    return copy.deepcopy(vae).double()


def _elbo(vae: VAE, x: Tensor, noise: Tensor) -> Tensor:
    """The ELBO at beta = 1 with z = loc + scale * noise: ``(batch,)``, nats."""
    q_z, p_z = vae.q_z(x), vae.p_z()
    z = q_z.mean + q_z.stddev * noise.unsqueeze(1)  # (samples, batch, latent_dim)
    try:
        kl = kl_divergence(q_z, p_z)
    except NotImplementedError:
        kl = (q_z.log_prob(z) - p_z.log_prob(z)).mean(0)
    return vae.log_px_z(x, z).mean(0) - kl


def _shared_noise(latent_dim: int) -> Tensor:
    """Standard normal ``(samples, latent_dim)``: pairs e, -e with the identity for second moments.

    Its error is that of all rows, and no mean over rows removes it. Of functions up to the second degree,
    such as the log-likelihood of a linear decoder, there is none.
    """
    pairs = max(_SAMPLES // 2, latent_dim)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(pairs, latent_dim, generator=generator, dtype=torch.float64)
    half = torch.linalg.qr(drawn).Q * math.sqrt(pairs)
    return torch.cat([half, -half])


def _plain(value: Any) -> Any:
    """Python's number for one of numpy's, of which grids are made."""
    return value.item() if isinstance(value, np.generic) else value


def _seed(random_state: int | np.random.RandomState | None) -> int:
    return int(check_random_state(random_state).randint(1 << 31))


@contextmanager
def _in_arguments() -> Iterator[None]:
    """What our parts say of options of the command line, said of arguments."""
    try:
        yield
    except (ValueError, TypeError) as error:
        told = str(error)
        said = re.sub("--[a-z-]*[a-z]", lambda found: _ARGUMENTS.get(found[0], found[0]), told)
        if said == told:
            raise
        if told.startswith("--"):
            said = f"DecompositionVAE: {said}"
        raise (ValueError if isinstance(error, ValueError) else TypeError)(said) from error
