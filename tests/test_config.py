"""Config: its choices, its JSON, its defaults, and every sentence it refuses an option with."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest

from pyro_bvae import config as options
from pyro_bvae import datasets, divergences, evaluation, likelihoods, metrics, networks, priors
from pyro_bvae.config import FORMAT, GROUPS, Config, flag

FIELDS = dataclasses.fields(Config)
WHOLE = ("image_size", "latent_dim", "n_particles", "epochs", "steps", "batch_size", "seed")
REAL = (
    "beta", "alpha", "gamma", "capacity", "beta_tc", "beta_warmup", "alpha_warmup",
    "capacity_ramp", "test_fraction", "lr",
)  # fmt: skip


@pytest.mark.parametrize(
    "choices, table",
    [
        (options.PRIORS, priors.PRIORS),
        (options.DIVERGENCES, divergences.DIVERGENCES),
        (options.LIKELIHOODS, likelihoods.LIKELIHOODS),
        (options.NETWORKS, networks.NETWORKS),
        (options.DATASETS, datasets.DATASETS),
        (options.METRICS, metrics.METRICS),
        (options.MEASURES, evaluation.MEASURES),
        (options.BASELINES, (*evaluation.BASELINES, "untrained")),
    ],
)
def test_choices_are_the_keys_of_the_dicts(choices, table):
    assert sorted(choices) == sorted(table)


def test_every_field_has_one_line_of_help():
    for field in FIELDS:
        text = field.metadata["help"]
        assert text and "\n" not in text and text.endswith("."), field.name


def test_groups_of_options_begin_at_fields_in_their_order():
    names = [field.name for field in FIELDS]
    firsts = [names.index(first) for first in GROUPS.values()]
    assert firsts[0] == 0 and firsts == sorted(firsts)


def test_importing_config_imports_no_torch():
    code = (
        "import sys; from pyro_bvae.config import Config; Config().resolved(); "
        "print([m for m in ('torch', 'pyro', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_config_is_frozen_and_equal_by_value():
    assert Config() == Config() != Config(beta=2.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().beta = 2.0


# JSON


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(prior="mixture", prior_args={"n_components": 3, "learned": True}, alpha=1.0),
        Config(dataset="fashion-mnist", prior="own.priors:Ring", gamma=10, capacity=5.5, seed=0),
        Config(dataset="my/images.npz", beta_tc=6.0, estimator="mss", epochs=3).resolved(),
    ],
)
def test_json_round_trip(config):
    values = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    assert values["format"] == FORMAT
    assert set(values) == {"format", *(field.name for field in FIELDS)}
    assert Config.from_dict(values) == config


def test_from_dict_leaves_its_argument_and_takes_a_part():
    values = {"format": 1, "beta": 4.0}
    assert Config.from_dict(values) == Config(beta=4.0)
    assert values == {"format": 1, "beta": 4.0}


def test_prior_args_are_not_shared():
    config = Config()
    config.to_dict()["prior_args"]["df"] = 5
    assert config.prior_args == {} and Config().prior_args is not config.prior_args


@pytest.mark.parametrize("written", [FORMAT + 1, 99, "2", None, 1.5])
def test_newer_or_odd_format_is_refused(written):
    with pytest.raises(ValueError, match=r"Config: format must be at most 1; got .* newer version"):
        Config.from_dict({"format": written})


def test_unknown_option_suggests_a_name():
    with pytest.raises(ValueError, match=r"Config: an option must be one of .*; got 'betta'\. Did"):
        Config.from_dict({"betta": 2})
    with pytest.raises(ValueError, match=r"Did you mean latent_dim\?$"):
        Config.from_dict({"latentdim": 2})
    with pytest.raises(ValueError, match=r"got 'qqqq'\.$"):
        Config.from_dict({"qqqq": 2})


# Choices


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"prior": "mixtur"}, r"--prior must be one of gaussian, .*'mixtur'\. Did you mean mix"),
        ({"prior": "x"}, r"--prior .* got 'x'\. Or package\.module:name of your own\.$"),
        ({"network": "conv_bn"}, r"--network must be one of .*'conv_bn'\. Did you mean conv-bn\?"),
        ({"likelihood": "bernouli"}, r"--likelihood must be .*Did you mean bernoulli\?"),
        ({"divergence": "mmdd", "alpha": 1.0}, r"--divergence must be .*Did you mean mmd\?"),
        ({"estimator": "loo"}, r"--estimator must be one of batch, leave_one_out, mss; got 'loo'"),
        ({"binarize": "yes"}, r"--binarize must be one of none, static, dynamic; got 'yes'"),
        ({"penalty": "relo"}, r"--penalty must be one of absolute, relu; .*Did you mean relu\?"),
        ({"reduction": "batches"}, r"--reduction must be .*Did you mean batch\?"),
    ],
)
def test_unknown_choice(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        Config(**values)


def test_open_choices_admit_text_of_ones_own():
    config = Config(dataset="a/folder", prior="m:P", network="m:net")
    assert (config.prior, config.network) == ("m:P", "m:net")


@pytest.mark.parametrize(
    "values",
    [
        {"dataset": 3}, {"dataset": None}, {"prior": 3}, {"prior": None}, {"network": 3},
        {"prior_args": "df=5"}, {"prior_args": None}, {"conditional": "no"}, {"download": 1},
        {"amsgrad": "yes"}, {"device": 0}, {"data_dir": 5}, {"binarize": None}, {"beta": None},
        {"seed": None}, {"likelihood": 3},
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_refused_by_name(values):
    """config.json is a file people edit."""
    (name,) = values
    with pytest.raises((ValueError, TypeError), match=rf"^{flag(name)} must be .*; got .*\."):
        Config(**values)


def test_prior_args_must_fit_into_json():
    with pytest.raises(TypeError, match=r"--prior-arg must be numbers, text or lists .*\{1\}"):
        Config(prior_args={"locs": {1}})


def test_likelihood_scale_may_be_a_number():
    config = Config(likelihood="normal", likelihood_scale=0.5)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


# Numbers


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, True, "1"])
@pytest.mark.parametrize("name", [*WHOLE, *REAL])
def test_numbers_out_of_bounds(name, value):
    kind = "a whole number" if name in WHOLE else "a number"
    with pytest.raises(ValueError, match=rf"^{flag(name)} must be {kind} of at least \d; got "):
        Config(**{name: value})


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_refuse_floats(name):
    with pytest.raises(ValueError, match=rf"^{flag(name)} must be a whole number .*; got 2\.0\.$"):
        Config(**{name: 2.0})


@pytest.mark.parametrize("name", [name for name in WHOLE if name != "seed"])
def test_counts_refuse_zero(name):
    with pytest.raises(ValueError, match=rf"^{flag(name)} must be a whole number of at least 1"):
        Config(**{name: 0})


@pytest.mark.parametrize("name", ["beta_warmup", "alpha_warmup", "capacity_ramp"])
def test_shares_lie_in_0_1(name):
    needed = {"alpha_warmup": {"alpha": 1.0}, "capacity_ramp": {"gamma": 9.0, "capacity": 5.0}}
    for share in (0, 0.5, 1):
        assert getattr(Config(**{name: share}, **needed.get(name, {})), name) == share
    with pytest.raises(ValueError, match=rf"^{flag(name)} must be a share .*\[0, 1\]; got 1\.01"):
        Config(**{name: 1.01})


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"test_fraction": 0.0}, r"--test-fraction must lie between 0 and 1; got 0\.0"),
        ({"test_fraction": 1}, r"--test-fraction must lie between 0 and 1; got 1\."),
        ({"lr": 0}, r"--lr must be greater than 0; got 0"),
        ({"seed": 2**32}, r"--seed must be below 2\*\*32; got 4294967296"),
        ({"beta_tc": 0.5}, r"--beta-tc must be a number of at least 1; got 0\.5"),
    ],
)
def test_further_bounds(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        Config(**values)


def test_neutral_numbers_are_legal():
    config = Config(beta=0, alpha=0, seed=0, beta_warmup=0)
    assert (config.beta, config.seed) == (0, 0)
    assert Config(seed=2**32 - 1).seed == 2**32 - 1
    assert Config(gamma=0, capacity=0).capacity == 0


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf", "1e999", "wide", "", "Learned"])
def test_bad_likelihood_scale(scale):
    sentence = r"--likelihood-scale must be a number > 0, 'learned' or 'decoder'; got "
    with pytest.raises(ValueError, match=sentence):
        Config(likelihood="normal", likelihood_scale=scale)


@pytest.mark.parametrize("scale", ["0.1", "1e-3", "learned", "decoder"])
def test_good_likelihood_scale(scale):
    assert Config(likelihood="laplace", likelihood_scale=scale).likelihood_scale == scale


# Rules over several options


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"epochs": 1, "steps": 2}, r"--epochs and --steps exclude .*; got 1 and 2\. Give one"),
        ({"capacity": 5.0}, r"--capacity 5\.0 needs --gamma, .*Try --gamma 100"),
        ({"gamma": 5.0}, r"--gamma 5\.0 needs --capacity, C in nats\. Try --capacity 20"),
        ({"gamma": 5.0, "capacity": 1.0, "beta": 2.0}, r"--gamma needs --beta 1, .*got --beta 2"),
        ({"gamma": 5.0, "capacity": 1.0, "alpha": 1.0}, r"--gamma and --alpha exclude"),
        ({"gamma": 5.0, "capacity": 1.0, "beta_tc": 2.0}, r"--gamma and --beta-tc exclude"),
        ({"alpha_warmup": 0.5}, r"--alpha-warmup 0\.5 needs --alpha > 0\. Give --alpha, e\.g\."),
        ({"alpha_warmup": 0.5, "beta_tc": 2.0}, r"--alpha-warmup 0\.5 needs --alpha > 0\."),
        ({"penalty": "relu"}, r"--penalty, --reduction and --capacity-ramp need --gamma and"),
        ({"reduction": "example"}, r"^--penalty, --reduction and .* need --gamma and --capacity\."),
        ({"capacity_ramp": 0.5}, r"^--penalty, --reduction and --capacity-ramp need --gamma"),
        (
            {"gamma": 5.0, "capacity": 1.0, "beta_warmup": 0.5},
            r"--beta-warmup 0\.5 has no effect beside --gamma, whose beta is 1\. Leave it out",
        ),
        ({"beta_tc": 2.0, "alpha": 1.0}, r"--beta-tc sets alpha, beta and the divergence itself"),
        ({"beta_tc": 2.0, "beta": 2.0}, r"--beta-tc sets .*Leave out --alpha, --beta and"),
        ({"estimator": "mss"}, r"--estimator mss needs --divergence exclusive-kl or total-corr"),
        (
            {"estimator": "batch", "divergence": "mmd", "alpha": 1.0},
            r"--estimator batch needs --divergence exclusive-kl",
        ),
        ({"encode_labels": True}, r"--encode-labels needs --conditional"),
        (
            {"likelihood": "bernoulli", "likelihood_scale": "0.1"},
            r"--likelihood-scale needs --likelihood normal or laplace; got bernoulli",
        ),
        (
            {"likelihood": "continuous-bernoulli", "likelihood_scale": "learned"},
            r"--likelihood-scale needs .* got continuous-bernoulli",
        ),
    ],
)
def test_rules_over_several_options(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        Config(**values)


def test_neighbours_of_the_rules_are_legal():
    """A divergence at alpha 0 is only measured; 0 and the default say nothing against gamma."""
    measured = Config(divergence="mmd").resolved()
    assert (measured.divergence, measured.alpha) == ("mmd", 0)
    for share in (0, Config().beta_warmup):
        assert Config(gamma=5.0, capacity=1.0, beta_warmup=share).beta_warmup == share
    assert Config(beta_warmup=0.5).beta_warmup == 0.5
    both = Config(gamma=5.0, capacity=1.0, penalty="relu", reduction="example", capacity_ramp=0)
    assert (both.penalty, both.reduction, both.capacity_ramp) == ("relu", "example", 0)


# Defaults


@pytest.mark.parametrize(
    "dataset, expected",
    [
        ("spirals", (2, "mlp", "normal", "decoder", None, 1500, 400, 5e-3, True)),
        ("digits", (10, "mlp", "bernoulli", None, 100, None, 64, 1e-3, False)),
        ("mnist", (10, "conv-bn", "bernoulli", None, 10, None, 64, 5e-4, False)),
        ("fashion-mnist", (50, "dcgan32", "laplace", "0.1", 10, None, 500, 5e-4, True)),
        # `build` knows the data, and the rest.
        ("mine.npz", (None, None, None, None, None, None, 64, 1e-3, False)),
    ],
)
def test_resolved_defaults(dataset, expected):
    c = Config(dataset=dataset).resolved()
    found = (
        c.latent_dim, c.network, c.likelihood, c.likelihood_scale,
        c.epochs, c.steps, c.batch_size, c.lr, c.amsgrad,
    )  # fmt: skip
    assert found == expected
    assert c.image_size == (32 if dataset.endswith("mnist") else None)
    assert c.resolved() == c


@pytest.mark.parametrize("dataset", [*options.DATASETS, "mine.npz"])
def test_every_data_set_resolves_again_to_itself(dataset):
    for values in (
        {"steps": 5}, {"epochs": 2}, {"likelihood": "normal"}, {"alpha": 1.0},
        {"likelihood": "bernoulli"}, {"gamma": 1.0, "capacity": 2.0}, {"beta_tc": 3.0},
    ):  # fmt: skip
        c = Config(dataset=dataset, **values).resolved()
        assert c.resolved() == c
        assert {name: getattr(c, name) for name in values} == values
        if dataset in options.DATASETS:
            assert (c.steps is None) != (c.epochs is None)
        else:
            assert (c.steps, c.epochs) == (values.get("steps"), values.get("epochs"))


def test_what_was_said_outweighs_the_defaults():
    c = Config(dataset="fashion-mnist", lr=1e-2, amsgrad=False, latent_dim=3, image_size=64)
    r = c.resolved()
    assert (r.lr, r.amsgrad, r.latent_dim, r.image_size) == (1e-2, False, 3, 64)
    # A scale belongs to its likelihood: another likelihood does not inherit it.
    other = Config(dataset="fashion-mnist", likelihood="bernoulli").resolved()
    assert other.likelihood_scale is None


@pytest.mark.parametrize(
    "latent_dim, name", [(1, "inclusive-kl"), (5, "inclusive-kl"), (6, "mmd-per-dim")]
)
def test_divergence_by_latent_dim(latent_dim, name):
    assert Config(latent_dim=latent_dim, alpha=1.0).resolved().divergence == name
    assert Config(latent_dim=latent_dim).resolved().divergence is None
    own = Config(latent_dim=latent_dim, alpha=1.0, divergence="mmd")
    assert own.resolved().divergence == "mmd"


# Hostile values


def nested(depth):
    value = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"beta": 10**400}, "--beta must be at most"),
        ({"lr": 10**5000}, r"--lr must be at most 1\.79.*; got a int"),
        ({"steps": 10**30}, "--steps must be at most 9223372036854775807; got 10+"),
        ({"latent_dim": 10**6}, "--latent-dim must be at most 65536; got 1000000"),
        ({"n_particles": 10**6}, "--n-particles must be at most 65536"),
        ({"seed": 10**5000}, "--seed must be at most"),
        ({"likelihood_scale": 10**5000}, "--likelihood-scale must be a number > 0"),
        (
            {"likelihood_scale": "1e-9"},
            r"--likelihood-scale must lie in \[1e-06, 1e\+06\] .* got '1e-9'",
        ),
        ({"prior": "x" * 10**6}, r"--prior must be one of .* got 'x+ \.\.\. x+'\. Or package"),
        ({"penalty": [["long"] * 10**4]}, r"--penalty must be text; got \[\['long'.* \.\.\. "),
        ({"dataset": nested(10**4)}, "--dataset must be text; got a list"),
        ({"prior_args": {"df": math.nan}}, "--prior-arg must be numbers, text or lists of them"),
        ({"prior_args": {"df": 10**5000}}, "--prior-arg must be numbers, text or lists of them"),
        (
            {"prior_args": {"df": nested(10**4)}},
            "--prior-arg must be numbers, text or lists of them",
        ),
        ({"prior_args": {3: 4}}, r"--prior-arg must be named by text; got \{3: 4\}"),
        ({"epochs": 10**18, "steps": 10**18}, "--epochs and --steps exclude each other"),
        (
            {"test_fraction": 10**300},
            r"--test-fraction must lie between 0 and 1; got 10+ \.\.\. 0+\.",
        ),
    ],
)
def test_enormous_values_make_short_sentences(values, sentence):
    with pytest.raises((ValueError, TypeError), match=f"^{sentence}") as caught:
        Config(**values)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("values", [None, 3, "text", [["beta", 2]]])
def test_options_are_names_and_values(values):
    with pytest.raises(TypeError, match="^Config: options must be names and values; got .*a dict"):
        Config.from_dict(values)


def test_prior_args_are_held_as_json_gives_them_back():
    given = {"locs": ((0, 1), (1, 0))}
    config = Config(prior_args=given)
    given["locs"] = "changed"
    assert config.prior_args == {"locs": [[0, 1], [1, 0]]}
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
