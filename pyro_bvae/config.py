"""`Config`: every option of a training, as text. It imports no torch; the command line derives from it."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import sys
from dataclasses import dataclass
from typing import Any

FORMAT = 1
PRIORS = (
    "gaussian", "pca", "student-t", "laplace", "mixture", "spike-slab", "cross", "vamp", "flow",
)  # fmt: skip
DIVERGENCES = ("inclusive-kl", "exclusive-kl", "mmd", "mmd-per-dim", "total-correlation")
ESTIMATORS = ("batch", "leave_one_out", "mss")
LIKELIHOODS = ("normal", "laplace", "bernoulli", "continuous-bernoulli")
NETWORKS = ("mlp", "dcgan32", "conv-bn", "burgess", "higgins64")
DATASETS = (
    "spirals", "digits", "mnist", "fashion-mnist", "dsprites", "3d-shapes", "mpi3d-toy", "mpi3d-realistic",
    "mpi3d-real", "3d-chairs", "celeba",
)  # fmt: skip
METRICS = (
    "beta-vae-score", "factor-vae-score", "mig", "aam", "dci", "sap", "modularity", "explicitness",
    "irs", "mcc",
)  # fmt: skip
MEASURES = ("log-marginal", "aggregate", "sharpness")
BASELINES = ("factors", "pixels", "pca", "ica", "untrained")


def _option(default: Any, text: str, choices: tuple[str, ...] = (), open: bool = False) -> Any:
    """A field with its line of help; ``open`` choices also admit other text."""
    metadata = {"help": text, "choices": choices, "open": open}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """One training. Fields left None take the data set's default; see `Config.resolved`."""

    dataset: str = _option(
        "spirals", "Data set, or a path: .npy, .npz, .h5 or a folder of images.", DATASETS, True
    )
    data_dir: str | None = _option(
        None, "Folder holding the data sets [default: $PYRO_BVAE_DATA, else ./data]."
    )
    download: bool = _option(False, "Fetch the data set into the data folder where it is missing.")
    image_size: int | None = _option(None, "Resize images to this height and width, in pixels.")
    binarize: str = _option(
        "none",
        "Grey values to 0 and 1: static at one half, dynamic sampled anew each step.",
        ("none", "static", "dynamic"),
    )
    test_fraction: float = _option(
        0.1, "Share held out where the data set has no test set of its own."
    )

    prior: str = _option(
        "gaussian", "Prior p(z), or package.module:Class of your own.", PRIORS, True
    )
    prior_args: dict[str, Any] = _option(
        {}, "Argument of the prior, e.g. n_components=10; repeatable."
    )
    latent_dim: int | None = _option(None, "Number of latents.")
    network: str | None = _option(
        None, "Encoder and decoder, or package.module:function of your own.", NETWORKS, True
    )
    likelihood: str | None = _option(None, "Likelihood p(x|z).", LIKELIHOODS)
    likelihood_scale: str | None = _option(
        None, "Scale of normal and laplace: a number, learned, or decoder (per pixel)."
    )
    conditional: bool = _option(False, "Append the class label to z at the decoder.")
    encode_labels: bool = _option(False, "With --conditional: show the encoder the label too.")

    beta: float = _option(1.0, "Weight of KL(q(z|x) || p(z)): how much posteriors overlap.")
    beta_warmup: float = _option(
        2 / 3, "Share of training over which beta rises from 0; 0 switches it off."
    )
    alpha: float = _option(
        0.0, "Weight of D(q(z), p(z)): how strongly to impose the prior's structure."
    )
    alpha_warmup: float = _option(0.0, "Share of training over which alpha rises from 0.")
    divergence: str | None = _option(
        None,
        "D, at alpha 0 only measured [default: inclusive-kl up to 5 latents, mmd-per-dim above].",
        DIVERGENCES,
    )
    estimator: str | None = _option(
        None,
        "Estimator of q(z) in D [default: batch for exclusive-kl, mss for total-correlation].",
        ESTIMATORS,
    )
    beta_tc: float | None = _option(
        None, "Weight of the beta-TCVAE: total-correlation with alpha = beta_tc - 1, beta = 1."
    )
    gamma: float | None = _option(None, "Weight of |KL - C|, in place of beta and alpha.")
    capacity: float | None = _option(None, "C in nats, at the end of its ramp from 0.")
    capacity_ramp: float = _option(
        1 / 3, "Share of training over which C rises; 0 holds it constant."
    )
    penalty: str = _option(
        "absolute", "absolute: |KL - C|; relu: max(0, KL - C).", ("absolute", "relu")
    )
    reduction: str = _option(
        "batch", "Penalise the batch-mean KL, or each example's.", ("batch", "example")
    )
    n_particles: int = _option(1, "Samples of z per example and step.")

    epochs: int | None = _option(None, "Passes over the data.")
    steps: int | None = _option(None, "Optimiser steps, instead of --epochs.")
    batch_size: int | None = _option(None, "Rows a step.")
    lr: float | None = _option(None, "Adam's learning rate.")
    amsgrad: bool | None = _option(None, "Adam's AMSGrad variant.")
    seed: int = _option(0, "Seed of every random number.")
    device: str = _option("auto", "cpu, cuda, cuda:1, ...; auto takes CUDA where there is one.")
    compile: bool | None = _option(
        None,
        "Compile the step, which takes half a minute and a C++ compiler [default: where a training is "
        "long enough to repay it; never with parts of your own].",
    )

    def __post_init__(self) -> None:
        _check_kinds(self)
        for field in dataclasses.fields(self):
            value, meta = getattr(self, field.name), field.metadata
            closed = meta["choices"] and not meta["open"]
            if closed and value is not None and value not in meta["choices"]:
                raise ValueError(unknown(flag(field.name), value, meta["choices"]))
        _check_numbers(self)
        _check_together(self)

    def resolved(self) -> Config:
        """With the data set's defaults filled in, as far as its name tells; `build` does the rest."""
        defaults: dict[str, Any] = dict(DATASET_DEFAULTS.get(self.dataset, _OWN_DATA))
        if self.steps is not None or self.epochs is not None:
            defaults.pop("steps", None)
            defaults.pop("epochs", None)
        if self.likelihood is not None or self.likelihood_scale is not None:
            defaults.pop("likelihood_scale", None)
        missing = {k: v for k, v in defaults.items() if getattr(self, k) is None}
        config = dataclasses.replace(self, **missing)
        if config.alpha > 0 and config.divergence is None and config.latent_dim is not None:
            config = dataclasses.replace(config, divergence=default_divergence(config.latent_dim))
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the format's number."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """The inverse of `to_dict`.

        Raises:
            TypeError: not names and values.
            ValueError: a newer format, or a name that is no option.
        """
        if not isinstance(values, dict):
            raise TypeError(
                f"Config: options must be names and values; got {brief(values)}. Give a dict."
            )
        values = dict(values)
        written = values.pop("format", FORMAT)
        if isinstance(written, bool) or not isinstance(written, int) or written > FORMAT:
            raise ValueError(
                f"Config: format must be at most {FORMAT}; got {brief(written)}. "
                "It was written by a newer version: upgrade pyro_bvae."
            )
        names = tuple(field.name for field in dataclasses.fields(cls))
        for name in values:
            if name not in names:
                raise ValueError(unknown("Config: an option", name, names))
        return cls(**values)


# The groups of ``pyro-bvae train --help``, each with its first option.
GROUPS = {"Data": "dataset", "Model": "prior", "Objective": "beta", "Training": "epochs"}
DATASET_DEFAULTS: dict[str, dict[str, Any]] = {
    "spirals": {
        "latent_dim": 2, "network": "mlp", "likelihood": "normal", "likelihood_scale": "decoder",
        "steps": 1500, "batch_size": 400, "lr": 5e-3, "amsgrad": True,
    },
    "digits": {
        "latent_dim": 10, "network": "mlp", "likelihood": "bernoulli",
        "epochs": 100, "batch_size": 64, "lr": 1e-3, "amsgrad": False,
    },
    "mnist": {
        "latent_dim": 10, "network": "conv-bn", "likelihood": "bernoulli", "image_size": 32,
        "epochs": 10, "batch_size": 64, "lr": 5e-4, "amsgrad": False,
    },
    "fashion-mnist": {
        "latent_dim": 50, "network": "dcgan32", "likelihood": "laplace", "likelihood_scale": "0.1",
        "image_size": 32, "epochs": 10, "batch_size": 500, "lr": 5e-4, "amsgrad": True,
    },
    "dsprites": {
        "latent_dim": 10, "network": "burgess", "likelihood": "bernoulli",
        "epochs": 1, "batch_size": 64, "lr": 5e-4, "amsgrad": False,
    },
    "3d-shapes": {
        "latent_dim": 10, "network": "burgess", "likelihood": "bernoulli",
        "epochs": 1, "batch_size": 64, "lr": 5e-4, "amsgrad": False,
    },
    "mpi3d-toy": {
        "latent_dim": 10, "network": "burgess", "likelihood": "bernoulli",
        "epochs": 1, "batch_size": 64, "lr": 5e-4, "amsgrad": False,
    },
    "mpi3d-realistic": {
        "latent_dim": 10, "network": "burgess", "likelihood": "bernoulli",
        "epochs": 1, "batch_size": 64, "lr": 5e-4, "amsgrad": False,
    },
    "mpi3d-real": {
        "latent_dim": 10, "network": "burgess", "likelihood": "bernoulli",
        "epochs": 1, "batch_size": 64, "lr": 5e-4, "amsgrad": False,
    },
    "3d-chairs": {
        "latent_dim": 16, "network": "higgins64", "likelihood": "bernoulli", "image_size": 64,
        "epochs": 10, "batch_size": 64, "lr": 5e-4, "amsgrad": False,
    },
    "celeba": {
        "latent_dim": 32, "network": "higgins64", "likelihood": "bernoulli", "image_size": 64,
        "epochs": 5, "batch_size": 64, "lr": 5e-4, "amsgrad": False,
    },
}  # fmt: skip
_OWN_DATA: dict[str, Any] = {"batch_size": 64, "lr": 1e-3, "amsgrad": False}  # fmt: skip


def default_compile(config: Config, steps: int) -> bool:
    """Whether ``steps`` of a resolved configuration repay the half minute that compiling takes.

    Never with a prior or network of the user's own: in a compiled step their Python runs only once.
    """
    assert config.network is not None and config.batch_size is not None
    if ":" in config.prior + config.network:
        return False
    return steps >= 10_000 if config.network == "mlp" else steps * config.batch_size >= 300_000


def default_divergence(latent_dim: int) -> str:
    """D where none is named: batch estimates of KLs are mostly bias in many dimensions."""
    return "inclusive-kl" if latent_dim <= 5 else "mmd-per-dim"


def flag(name: str) -> str:
    """The command-line spelling of a field: ``beta_warmup`` -> ``--beta-warmup``."""
    return "--prior-arg" if name == "prior_args" else "--" + name.replace("_", "-")


def brief(value: object) -> str:
    """``repr`` on one short line; no text at all of what is too large or too deep to be written."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of more than 4300 digits; lists within lists
        text = f"a {type(value).__name__}"
    text = text.replace("\n", " ")
    return text if len(text) <= _BRIEF else f"{text[: _BRIEF // 2]} ... {text[-_BRIEF // 4 :]}"


def unknown(what: str, value: object, known: tuple[str, ...]) -> str:
    """The sentence that refuses ``value``, with the nearest of the names that are ``known``."""
    close = difflib.get_close_matches(value[:_BRIEF], known, 1) if isinstance(value, str) else []
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"{what} must be one of {', '.join(known)}; got {brief(value)}.{hint}"


_BRIEF = 80  # characters of a value in an error
_KINDS = {"str": (str, "text"), "bool": (bool, "true or false"), "dict": (dict, "names and values")}


def _check_kinds(config: Config) -> None:
    """Text, switches and the prior's arguments, as config.json may hold them; numbers come next."""
    for field in dataclasses.fields(config):
        value, declared = getattr(config, field.name), str(field.type)
        kind, words = _KINDS.get(declared.split(" ")[0].split("[")[0], (object, ""))
        if isinstance(value, kind) or (value is None and "None" in declared):
            continue
        if field.name == "likelihood_scale":  # a number serves as well as its text
            continue
        raise TypeError(f"{flag(field.name)} must be {words}; got {brief(value)}.")
    if any(not isinstance(name, str) for name in config.prior_args):
        raise TypeError(f"--prior-arg must be named by text; got {brief(config.prior_args)}.")
    try:
        plain = json.loads(json.dumps(config.prior_args, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            "--prior-arg must be numbers, text or lists of them; got "
            f"{brief(config.prior_args)} ({brief(str(error))}). Convert it, for example with tolist()."
        ) from error
    # As config.json will give it back: lists for tuples, and nothing that the caller can still change.
    object.__setattr__(config, "prior_args", plain)


def _check_numbers(config: Config) -> None:
    at_least = {
        "image_size": 1, "latent_dim": 1, "n_particles": 1, "epochs": 1, "steps": 1, "batch_size": 1,
        "seed": 0, "beta": 0, "alpha": 0, "gamma": 0, "capacity": 0, "beta_tc": 1,
        "beta_warmup": 0, "alpha_warmup": 0, "capacity_ramp": 0, "test_fraction": 0, "lr": 0,
    }  # fmt: skip
    at_most = {"latent_dim": 1 << 16, "n_particles": 1 << 16}  # more would only fill the memory
    for name, least in at_least.items():
        value, declared = getattr(config, name), str(Config.__dataclass_fields__[name].type)
        if value is None and "None" in declared:
            continue
        whole = "int" in declared
        kind = "a whole number" if whole else "a number"
        bad = isinstance(value, bool) or not isinstance(value, int if whole else (int, float))
        if bad or not value >= least or value == math.inf:
            raise ValueError(
                f"{flag(name)} must be {kind} of at least {least}; got {brief(value)}."
            )
        most = at_most.get(name, sys.maxsize if whole else sys.float_info.max)
        if value > most:  # a whole number that no float or no tensor can hold
            raise ValueError(f"{flag(name)} must be at most {most}; got {brief(value)}.")
    for name in ("beta_warmup", "alpha_warmup", "capacity_ramp"):
        if getattr(config, name) > 1:
            raise ValueError(
                f"{flag(name)} must be a share of training in [0, 1]; got {brief(getattr(config, name))}."
            )
    if not 0 < config.test_fraction < 1:
        raise ValueError(
            f"--test-fraction must lie between 0 and 1; got {brief(config.test_fraction)}."
        )
    if config.lr == 0:
        raise ValueError("--lr must be greater than 0; got 0.")
    if config.seed >= 2**32:
        raise ValueError(f"--seed must be below 2**32; got {brief(config.seed)}.")
    _check_scale(config.likelihood_scale)


def _check_scale(scale: str | None) -> None:
    if scale in (None, "learned", "decoder"):
        return
    try:
        value = float(str(scale))
    except (ValueError, RecursionError):
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(
            f"--likelihood-scale must be a number > 0, 'learned' or 'decoder'; got {brief(scale)}."
        )
    if not 1e-6 <= value <= 1e6:  # its square is taken in float32
        raise ValueError(
            f"--likelihood-scale must lie in [1e-06, 1e+06] where it is a number; got {brief(scale)}."
        )


def _check_together(config: Config) -> None:
    c = config
    own = ":"
    for name, choices in (("prior", PRIORS), ("network", NETWORKS)):
        value = getattr(c, name)
        if value is not None and value not in choices and own not in value:
            raise ValueError(
                unknown(flag(name), value, choices) + " Or package.module:name of your own."
            )
    rules = [
        (c.epochs is not None and c.steps is not None,
         f"--epochs and --steps exclude each other; got {brief(c.epochs)} and {brief(c.steps)}. Give one."),
        (c.capacity is not None and c.gamma is None,
         f"--capacity {brief(c.capacity)} needs --gamma, the weight of |KL - C|. Try --gamma 100."),
        (c.gamma is not None and c.capacity is None,
         f"--gamma {brief(c.gamma)} needs --capacity, C in nats. Try --capacity 20."),
        (c.gamma is not None and c.beta != 1,
         f"--gamma needs --beta 1, since gamma weighs the KL; got --beta {brief(c.beta)}. Leave --beta out."),
        (c.gamma is not None and (c.alpha > 0 or c.beta_tc is not None),
         f"--gamma and {'--alpha' if c.alpha > 0 else '--beta-tc'} exclude each other. Leave one of them out."),
        (c.alpha_warmup > 0 and c.alpha == 0,
         f"--alpha-warmup {c.alpha_warmup:g} needs --alpha > 0. Give --alpha, e.g. --alpha 1."),
        (c.gamma is None and (c.penalty, c.reduction, c.capacity_ramp) != ("absolute", "batch", 1 / 3),
         "--penalty, --reduction and --capacity-ramp need --gamma and --capacity. Give both, or none."),
        (c.gamma is not None and c.beta_warmup not in (0, 2 / 3),
         f"--beta-warmup {c.beta_warmup:g} has no effect beside --gamma, whose beta is 1. Leave it out."),
        (c.beta_tc is not None and (c.alpha > 0 or c.beta != 1 or c.divergence is not None),
         "--beta-tc sets alpha, beta and the divergence itself. Leave out --alpha, --beta and --divergence."),
        (c.estimator is not None and c.beta_tc is None
         and c.divergence not in ("exclusive-kl", "total-correlation"),
         f"--estimator {c.estimator} needs --divergence exclusive-kl or total-correlation."),
        (c.encode_labels and not c.conditional,
         "--encode-labels needs --conditional."),
        (c.likelihood in ("bernoulli", "continuous-bernoulli") and c.likelihood_scale is not None,
         f"--likelihood-scale needs --likelihood normal or laplace; got {c.likelihood}."),
    ]  # fmt: skip
    for broken, sentence in rules:
        if broken:
            raise ValueError(sentence)
