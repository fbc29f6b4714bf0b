"""From a `Config` to data, model and objective: the only reader of the dicts and of ``module:attr``."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from . import likelihoods, networks, priors
from .config import Config, default_compile
from .datasets import Data, load_dataset, read_data
from .datasets.rows import Subset
from .device import choose_device
from .divergences import DIVERGENCES
from .elbo import CapacityELBO, DecompositionELBO
from .schedules import Schedule, linear
from .terms import TermsELBO
from .training import makes_record, steps_per_epoch
from .vae import VAE

_BLOCK = 4096  # rows of a file scanned at a time
_NOT_FINITE = "--dataset: values must be finite; got NaN or infinity. Remove or fill those rows."
_HELD_BYTES = 1 << 30  # data on disk up to this size are read once
_LEAST_STEPS = 2000  # of a training on data of one's own, whatever its size
_MOST_UNSEEN = 1000  # classes without a row, as in a part of a larger data set
_ROWS_FOR_PRIOR = 10_000  # for priors that start at the data


class Built(NamedTuple):
    """Everything `fit` needs, and the configuration with every default filled in."""

    config: Config
    train: Data
    test: Data
    vae: VAE
    objective: TermsELBO
    schedules: dict[str, Schedule]
    transform: Callable[[Tensor], Tensor] | None


def build(config: Config) -> Built:
    """Load the data and make the model, checked on one batch, all before any training.

    Raises:
        ValueError, TypeError, FileNotFoundError: one sentence naming the option and what to do.
    """
    device = choose_device(config.device)
    config = config.resolved()
    _check_own_parts(config)
    train, test = load(config)
    config = _resolve_by_data(config, train)
    check_values(config, train)
    check_values(config, test)
    n_classes = max(train.n_classes, test.n_classes) if config.conditional else 0
    if config.conditional and not n_classes:
        raise ValueError("--conditional needs labels; the data set has none. Leave it out.")
    if config.conditional:
        _check_classes(n_classes, train, test)
    vae = make_vae(config, train.x_shape, n_classes, x=train.x).to(device)
    objective = make_objective(config, len(train))
    _check_on_batch(vae, objective, config, train, device)
    schedules = make_schedules(config, total_steps(config, len(train)))
    return Built(config, train, test, vae, objective, schedules, make_transform(config))


def _check_classes(n_classes: int, train: Data, test: Data) -> None:
    """Every number up to the largest label gets weights: most must be those of a class."""
    n_seen = len({k for d in (train, test) if d.labels is not None for k in np.unique(d.labels)})
    if n_classes - n_seen > _MOST_UNSEEN:
        raise ValueError(
            f"--conditional needs labels that number the classes from 0; got {n_seen} values up to "
            f"{n_classes - 1}. Number them, for example with numpy.unique(labels, return_inverse=True)."
        )


def load(config: Config) -> tuple[Data, Data]:
    """The data sets of ``config``, train and test; what is small enough is held in memory."""
    train, test = load_dataset(
        config.dataset,
        data_dir=config.data_dir,
        download=config.download,
        image_size=config.image_size,
        binarize="none" if config.binarize == "dynamic" else config.binarize,
        test_fraction=config.test_fraction,
        seed=config.seed,
    )
    one, other = train.x, test.x
    if isinstance(one, Subset) and isinstance(other, Subset) and one.source is other.source:
        # Parts of one file are read together: what is compressed is unpacked once.
        rows = np.concatenate([one.indices, other.indices])
        both = _hold(Data(Subset(one.source, rows))).x
        if isinstance(both, np.ndarray):
            n = len(train)
            return dataclasses.replace(train, x=both[:n]), dataclasses.replace(test, x=both[n:])
    return _hold(train), _hold(test)


def load_whole(config: Config, path: str) -> Data:
    """All rows of the file or folder at ``path``, in the form of ``config``'s own data."""
    binarize = "none" if config.binarize == "dynamic" else config.binarize
    return _hold(read_data(path, image_size=config.image_size, binarize=binarize))


def _hold(data: Data) -> Data:
    if data.resident or math.prod(data.x.shape) * data.x.dtype.itemsize > _HELD_BYTES:
        return data
    x = data.batch(np.arange(len(data)))
    if not np.isfinite(x).all():  # said here: Data would name a row of this part, not of the file
        raise ValueError(_NOT_FINITE)
    return dataclasses.replace(data, x=x)


def _resolve_by_data(config: Config, train: Data) -> Config:
    """What hangs on the data: network, likelihood and D by its shape, compiling by the steps."""
    images = len(train.x_shape) == 3
    square = len(train.x_shape) == 3 and train.x_shape[1:] in ((32, 32), (64, 64))
    missing: dict[str, Any] = {}
    if config.network is None:
        missing["network"] = "conv-bn" if square else "mlp"
    if config.likelihood is None:
        missing["likelihood"] = "bernoulli" if images else "normal"
    likelihood = config.likelihood or missing["likelihood"]
    if config.likelihood_scale is None and likelihood in ("normal", "laplace"):
        # The same for pixels as uint8 and as floats; floats of another range are in units of their own.
        low, high = _range(train) if images and train.x.dtype != np.uint8 else (0.0, 1.0)
        missing["likelihood_scale"] = "0.1" if images and low >= 0 and high <= 1 else "learned"
    if config.latent_dim is None:
        missing["latent_dim"] = min(10, math.prod(train.x_shape))
    if config.steps is None and config.epochs is None:
        an_epoch = steps_per_epoch(len(train), config.batch_size or len(train))
        missing["epochs"] = max(20, -(-_LEAST_STEPS // an_epoch))
    config = dataclasses.replace(config, **missing).resolved()
    if config.compile is None:
        steps = total_steps(config, len(train))
        config = dataclasses.replace(config, compile=default_compile(config, steps))
    return config


def check_values(config: Config, data: Data) -> None:
    """Floats must be finite, and in [0, 1] where the likelihood wants it."""
    if data.x.dtype == np.uint8:
        return
    if config.binarize != "none":
        raise ValueError(
            f"--binarize needs images of whole grey values (uint8); got {data.x.dtype}."
        )
    low, high = _range(data)
    if config.likelihood in ("bernoulli", "continuous-bernoulli") and (low < 0 or high > 1):
        raise ValueError(
            f"--likelihood {config.likelihood} needs data in [0, 1]; got values from {low:g} to {high:g}. "
            "Divide by 255, save grey values as uint8, or use --likelihood normal."
        )


def _range(data: Data) -> tuple[float, float]:
    """Smallest and largest value of floating data, block by block; refused where not finite."""
    low, high = np.inf, -np.inf
    for start in range(0, len(data), _BLOCK):
        x = data.batch(np.arange(start, min(start + _BLOCK, len(data))))
        if not np.isfinite(x).all():
            raise ValueError(_NOT_FINITE)
        low, high = min(low, float(x.min())), max(high, float(x.max()))
    return low, high


def total_steps(config: Config, n_train: int) -> int:
    """Optimiser steps of a resolved configuration."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None and config.batch_size is not None
    return config.epochs * steps_per_epoch(n_train, config.batch_size)


def records_made(built: Built, step: int) -> int:
    """How many records the training has made after ``step``; none where it has no such step."""
    n, c = len(built.train), built.config
    assert c.batch_size is not None
    total, per_epoch = total_steps(c, n), steps_per_epoch(n, c.batch_size)
    steps = range(1, step + 1) if step <= total else ()
    return sum(makes_record(s, total, per_epoch) for s in steps)


def make_vae(config: Config, x_shape: Sequence[int], n_classes: int = 0, x: Any = None) -> VAE:
    """The model of a resolved configuration; ``x``, the training data, initialises priors that ask."""
    assert config.latent_dim is not None
    encoder_shape = (x_shape[0] + n_classes * config.encode_labels, *x_shape[1:])
    scale = config.likelihood_scale == "decoder"
    encoder, decoder = _make_network(config, x_shape, n_classes, scale)
    if config.encode_labels:
        encoder, _ = _make_network(config, encoder_shape, 0, False)
    prior = make_prior(config, x_shape, x)
    options: dict[str, Any] = {}
    if config.likelihood_scale is not None:
        words = ("learned", "decoder")
        text = config.likelihood_scale
        options["scale"] = text if text in words else float(text)
    likelihood = likelihoods.LIKELIHOODS[str(config.likelihood)](**options)
    beta = 1.0 if config.gamma is not None else config.beta
    return VAE(encoder, decoder, prior, likelihood, beta, n_classes, config.encode_labels)


def _make_network(
    config: Config, x_shape: Sequence[int], extra: int, scale: bool
) -> tuple[nn.Module, nn.Module]:
    make: networks.Network = _find(config.network, networks.NETWORKS, "--network")
    rule = f"--network {config.network} must take (x_shape, latent_dim, extra, scale) and return"
    try:
        pair: Any = make(x_shape, config.latent_dim, extra, scale)
    except (TypeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise TypeError(f"{rule} (encoder, decoder); {_line(error)}. Mend it.") from error
    if not (isinstance(pair, tuple) and [isinstance(m, nn.Module) for m in pair] == [True, True]):
        raise TypeError(f"{rule} (encoder, decoder), two modules; got {type(pair).__name__}.")
    return pair


def _check_own_parts(config: Config) -> None:
    """A prior and a network that cannot be found are refused before the data are read."""
    _prior_of(config, ())
    if config.network is not None:
        _find(config.network, networks.NETWORKS, "--network")


def make_prior(config: Config, x_shape: Sequence[int], x: Any = None) -> nn.Module:
    """The prior of a configuration; without data, pca and vamp wait for their checkpoint."""
    make, options = _prior_of(config, x_shape, x)
    try:
        prior: nn.Module = make(**options)
    except ValueError:
        raise
    except Exception as error:  # a prior of the user's own may fail in any way
        if is_out_of_memory(error):
            raise
        raise TypeError(f"--prior {config.prior}: {_line(error)}. Mend its --prior-arg.") from error
    return prior


def _prior_of(
    config: Config, x_shape: Sequence[int], x: Any = None
) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    """What makes the prior, and its arguments, of names that it knows."""
    make = _find(config.prior, priors.PRIORS, "--prior")
    options = dict(config.prior_args)
    if x is None and config.prior == "pca":
        make = priors.Gaussian
    known = inspect.signature(make).parameters
    if "x_shape" in known:
        options.setdefault("x_shape", tuple(x_shape))
    if "x" in known and x is not None and config.prior in priors.PRIORS:
        rows = np.linspace(0, len(x) - 1, min(len(x), _ROWS_FOR_PRIOR)).astype(np.int64)
        options["x"] = np.asarray(x[rows])
    if "latent_dim" in known:
        options.setdefault("latent_dim", config.latent_dim)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
    of_data = [name for name in ("x", "x_shape") if name in config.prior_args]
    if of_data and config.prior in priors.PRIORS:
        raise ValueError(
            f"--prior-arg of {config.prior} must not be {of_data[0]}, which the data give. Leave it out."
        )
    wrong = [name for name in options if name not in known and not takes_any]
    if wrong:
        args = ", ".join(n for n in known if n not in ("latent_dim", "x", "x_shape")) or "none"
        raise ValueError(f"--prior-arg of {config.prior} must be one of: {args}; got {wrong[0]!r}.")
    return make, options


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory did not suffice, on whichever device: torch says so by a RuntimeError."""
    words = ("allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def make_transform(config: Config) -> Callable[[Tensor], Tensor] | None:
    """What each batch passes through on its way to the model."""
    return torch.bernoulli if config.binarize == "dynamic" else None


def make_objective(config: Config, n_train: int) -> TermsELBO:
    """The objective of a resolved configuration."""
    particles: dict[str, Any] = {"num_particles": config.n_particles}
    if config.gamma is not None:
        assert config.capacity is not None
        return CapacityELBO(
            config.gamma, config.capacity, config.penalty, config.reduction, **particles
        )
    alpha, name = config.alpha, config.divergence
    if config.beta_tc is not None:
        alpha, name = config.beta_tc - 1, "total-correlation"
    return DecompositionELBO(alpha, make_divergence(config, name, n_train), **particles)


def make_divergence(config: Config, name: str | None, n_train: int) -> Callable[..., Tensor] | None:
    """D by its key, with the configuration's estimator."""
    if name is None:
        return None
    options: dict[str, Any] = {}
    if name in ("exclusive-kl", "total-correlation"):
        options["dataset_size"] = n_train
        if config.estimator is not None:
            options["estimator"] = config.estimator
    return functools.partial(DIVERGENCES[name], **options)


def make_schedules(config: Config, steps: int) -> dict[str, Schedule]:
    """Warm-ups of beta and alpha and the ramp of C, over their shares of ``steps``."""
    schedules: dict[str, Schedule] = {}
    if config.gamma is not None:
        assert config.capacity is not None
        schedules["capacity"] = linear(0, config.capacity, config.capacity_ramp * steps)
    elif config.beta_warmup > 0 and config.beta > 0:
        schedules["beta"] = linear(0, config.beta, config.beta_warmup * steps)
    if config.alpha_warmup > 0 and config.alpha > 0:
        schedules["alpha"] = linear(0, config.alpha, config.alpha_warmup * steps)
    return schedules


def _find(name: str | None, known: dict[str, Any], option: str) -> Any:
    """The entry ``name`` of a dict, or the attribute that ``module:attr`` names."""
    assert name is not None
    if name in known:
        return known[name]
    module_name, _, attr = name.partition(":")
    if os.getcwd() not in sys.path:  # a console script's path does not hold the user's folder
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module_name)
        for part in attr.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module of the user's own may fail in any way
        raise ValueError(
            f"{option} must name something that can be imported as package.module:name; got {name!r} "
            f"({_line(error)}). Check the spelling, and run where the module can be found."
        ) from error
    if not callable(found):
        raise TypeError(
            f"{option} must be a class or a function; got {name!r}, a {type(found).__name__}."
        )
    return found


def _check_on_batch(
    vae: VAE, objective: TermsELBO, config: Config, train: Data, device: torch.device
) -> None:
    """Run a few rows through the model and the objective; nothing is changed by it."""
    rows = np.arange(min(len(train), 4))
    x, labels = train.tensors(rows, device)
    labels = labels if vae.n_classes else None
    try:
        vae.check(x, labels)
    except ValueError as error:
        if not isinstance(error.__cause__, RuntimeError):
            raise
        if is_out_of_memory(error.__cause__):
            raise error.__cause__ from error
        raise ValueError(
            f"{error} They come from --network {config.network} and --prior {config.prior}; "
            "--network mlp takes any x."
        ) from error
    if len(rows) < 2:
        return
    vae.eval()
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        pyro.get_param_store().scope(),
    ):
        objective.loss(vae.model, vae.guide, x, labels)
    vae.train()


def _line(error: Exception) -> str:
    """The first line of an error that is not ours, without its full stop."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
