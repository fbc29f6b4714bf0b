"""From text to objects: every pair of prior and network, parts of one's own, and every refusal."""

import dataclasses
import importlib
import math
import sys
import textwrap
from functools import partial

import numpy as np
import pyro
import pytest
import torch

from pyro_bvae import divergences
from pyro_bvae.build import (
    build,
    load_whole,
    make_divergence,
    make_objective,
    make_prior,
    make_schedules,
    make_vae,
    total_steps,
)
from pyro_bvae.config import NETWORKS, PRIORS, Config, default_compile
from pyro_bvae.device import choose_device
from pyro_bvae.elbo import CapacityELBO, DecompositionELBO
from pyro_bvae.likelihoods import LIKELIHOODS
from pyro_bvae.training import fit

RNG = np.random.default_rng(0)
SIDES = {"mlp": 8, "dcgan32": 32, "conv-bn": 32, "burgess": 32, "higgins64": 64}
SMALL = {"latent_dim": 2, "steps": 1, "batch_size": 8}


@pytest.fixture(autouse=True)
def seed():
    pyro.set_rng_seed(0)


@pytest.fixture
def images(tmp_path):
    """(side, labels) -> path of an .npz of 20 grey images."""

    def write(side=8, labels=False):
        path = tmp_path / f"images{side}.npz"
        x = RNG.integers(0, 256, (20, side, side), dtype=np.uint8)
        np.savez(path, x=x, **({"labels": np.arange(20) % 3} if labels else {}))
        return str(path)

    return write


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Source text -> name of a module in the current folder, importable for this test only."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    before = set(sys.modules)

    def write(text, name="own_parts"):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        importlib.invalidate_caches()
        return name

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


# Device


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto") == torch.device(wanted)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:x", "cuda:-1", "meta", "mps", "xla"])
def test_device_must_be_cpu_or_cuda(name):
    with pytest.raises(ValueError, match=rf"^--device must be auto, cpu, .*; got '{name}'\."):
        choose_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:3"])
def test_cuda_absent(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=rf"^--device {name} must be present; .*Use --device cpu"):
        build(Config(device=name))


def test_cuda_device_beyond_the_last(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"one of the 2 CUDA devices; got 'cuda:2'\."):
        choose_device("cuda:2")


# Every pair


def test_table_of_sides_covers_the_networks():
    assert set(SIDES) == set(NETWORKS)


def pairs():
    """Every prior with every network; the principal axes of 4,096 pixels take their time."""
    for prior in PRIORS:
        for network in NETWORKS:
            slow = [pytest.mark.slow] if (prior, network) == ("pca", "higgins64") else []
            yield pytest.param(prior, network, marks=slow, id=f"{prior}-{network}")


@pytest.mark.parametrize("prior, network", list(pairs()))
def test_every_prior_with_every_network_takes_a_step(prior, network, images):
    args = {"n_components": 3} if prior in ("vamp", "mixture") else {}
    args |= {"learned": True} if prior in ("mixture", "spike-slab", "student-t") else {}
    config = Config(
        images(SIDES[network]), prior=prior, prior_args=args, network=network, alpha=1.0, **SMALL
    )
    built = build(config)
    assert (built.config.network, built.config.prior) == (network, prior)
    before = {name: p.detach().clone() for name, p in built.vae.named_parameters()}
    (record,) = fit(
        built.vae, built.objective, built.train, steps=1, batch_size=8, lr=1e-2,
        schedules={"beta": lambda step: 1.0},
    )  # fmt: skip
    assert all(map(math.isfinite, record.values())) and "divergence" in record
    stuck = [n for n, p in built.vae.named_parameters() if torch.equal(p, before[n])]
    assert not stuck


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood_and_scale(likelihood, images):
    scales = [None]
    if likelihood in ("normal", "laplace"):
        scales += ["0.2", "learned", "decoder"]
    for scale in scales:
        config = Config(images(), likelihood=likelihood, likelihood_scale=scale, **SMALL)
        built = build(config)
        expected = "0.1" if scale is None and len(scales) > 1 else scale
        assert built.config.likelihood_scale == expected
        assert type(built.vae.likelihood) is LIKELIHOODS[likelihood]


def test_a_check_does_not_train(images, monkeypatch):
    """Building leaves BatchNorm's statistics and the training mode as a new network has them."""
    config = Config(images(32), network="conv-bn", **SMALL)
    built = build(config)
    (norm, *_) = (m for m in built.vae.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert built.vae.training and int(norm.num_batches_tracked) == 0
    assert torch.equal(norm.running_mean, torch.zeros(32))
    pyro.clear_param_store()
    pyro.param("mine", torch.tensor(3.0))
    pyro.set_rng_seed(0)
    build(config)
    drawn = torch.rand(1)
    store = pyro.get_param_store()
    assert list(store.keys()) == ["mine"] and store["mine"].item() == 3
    store.clear()
    monkeypatch.setattr("pyro_bvae.build._check_on_batch", lambda *args: None)
    pyro.set_rng_seed(0)
    build(config)
    assert torch.equal(torch.rand(1), drawn), "the check used up random numbers"


# What the data decide


def test_defaults_by_the_data(tmp_path, images):
    points, square = tmp_path / "points.npy", images(32)
    np.save(points, RNG.normal(size=(20, 3)).astype(np.float32))
    floats = tmp_path / "floats.npz"
    np.savez(floats, x=RNG.uniform(size=(20, 8, 8)).astype(np.float32))
    for path, expected in (
        (str(points), ("mlp", "normal", "learned")),
        (images(8), ("mlp", "bernoulli", None)),
        (square, ("conv-bn", "bernoulli", None)),
        (str(floats), ("mlp", "bernoulli", None)),
    ):
        c = build(Config(path)).config
        assert (c.network, c.likelihood, c.likelihood_scale) == expected, path
        assert build(c).config == c


def test_latents_and_epochs_by_the_data(tmp_path, images):
    """Latents: no more than values in one x; epochs: at least 20, and 2,000 steps."""
    points = str(tmp_path / "points.npy")
    np.save(points, RNG.normal(size=(200, 3)).astype(np.float32))
    # 180 rows to train on: 3 batches of 64, 90 of 2, 180 of 1; ceil(2000 / 3), ceil(2000 / 90), 20.
    for size, epochs in ((None, 667), (2, 23), (1, 20)):
        c = build(Config(points, batch_size=size)).config
        assert (c.latent_dim, c.epochs, c.steps) == (3, epochs, None)
    c = build(Config(images(8), steps=7)).config
    assert (c.latent_dim, c.epochs, c.steps) == (10, None, 7)
    c = build(Config(points, epochs=3, latent_dim=5, prior="gaussian")).config
    assert (c.latent_dim, c.epochs) == (5, 3)
    # The divergence follows the latents.
    assert build(Config(points, alpha=1.0)).config.divergence == "inclusive-kl"
    assert build(Config(images(8), alpha=1.0)).config.divergence == "mmd-per-dim"


def test_small_data_on_disk_are_held(tmp_path, monkeypatch):
    path = tmp_path / "x.npy"
    x = RNG.normal(size=(50, 3)).astype(np.float32)
    np.save(path, x)
    config = Config(str(path), test_fraction=0.5, **SMALL)
    held = build(config)
    assert held.train.resident and held.test.resident
    assert type(held.train.x) is np.ndarray
    monkeypatch.setattr("pyro_bvae.build._HELD_BYTES", 25 * 3 * 4)
    assert build(config).train.resident
    monkeypatch.setattr("pyro_bvae.build._HELD_BYTES", 25 * 3 * 4 - 1)
    lazy = build(config)
    assert not lazy.train.resident and not lazy.test.resident
    for a, b in ((held.train, lazy.train), (held.test, lazy.test)):
        assert np.array_equal(a.x, b.batch(np.arange(25)))


def test_split_and_classes(images):
    built = build(Config(images(labels=True), conditional=True, test_fraction=0.25, **SMALL))
    assert (len(built.train), len(built.test), built.vae.n_classes) == (15, 5, 3)
    assert build(Config(images(labels=True), **SMALL)).vae.n_classes == 0


@pytest.mark.parametrize("network", ["mlp", "burgess"])
def test_encoder_sees_labels_where_asked(network, images):
    config = Config(
        images(SIDES[network], labels=True), network=network, conditional=True,
        encode_labels=True, **SMALL,
    )  # fmt: skip
    vae = build(config).vae.eval()
    x = torch.rand(1, 1, SIDES[network], SIDES[network])
    by_label = [vae.encode(x, torch.tensor([k])) for k in range(3)]
    assert not torch.allclose(by_label[0], by_label[1])


@pytest.mark.parametrize("suffix, held", [("npz", 0), ("npy", 0), ("npy", 1 << 30), ("h5", 0)])
@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous-bernoulli"])
def test_bernoulli_needs_data_in_0_1(suffix, held, likelihood, tmp_path, monkeypatch):
    import h5py

    monkeypatch.setattr("pyro_bvae.build._HELD_BYTES", held)
    x = RNG.uniform(size=(5000, 2)).astype(np.float32)
    x[-1, 0], x[2500, 1] = 1.5, -0.25
    path = tmp_path / f"x.{suffix}"
    if suffix == "h5":
        with h5py.File(path, "w") as file:
            file["x"] = x
    else:
        np.savez(path, x=x) if suffix == "npz" else np.save(path, x)
    sentence = rf"^--likelihood {likelihood} needs data in \[0, 1\]; got values from -0\.25 to 1\.5"
    with pytest.raises(ValueError, match=sentence):
        build(Config(str(path), likelihood=likelihood, test_fraction=0.0001))
    assert build(Config(str(path), likelihood="normal")).config.likelihood == "normal"


@pytest.mark.parametrize("suffix, held", [("npz", 0), ("npy", 0), ("npy", 1 << 30), ("h5", 0)])
@pytest.mark.parametrize("row", [0, 4990])
def test_data_must_be_finite(suffix, held, row, tmp_path, monkeypatch):
    import h5py

    monkeypatch.setattr("pyro_bvae.build._HELD_BYTES", held)
    x = RNG.normal(size=(5000, 2)).astype(np.float32)
    x[row, 0] = math.nan
    path = tmp_path / f"x.{suffix}"
    if suffix == "h5":
        with h5py.File(path, "w") as file:
            file["x"] = x
    else:
        np.savez(path, x=x) if suffix == "npz" else np.save(path, x)
    with pytest.raises(ValueError, match=r"must be finite; got .*NaN"):
        build(Config(str(path), test_fraction=0.0001))


@pytest.mark.parametrize("held", [1 << 30, 0])
def test_the_test_part_must_be_finite(held, tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_bvae.build._HELD_BYTES", held)
    path = tmp_path / "x.npy"
    x = np.arange(80, dtype=np.float32).reshape(40, 2)
    np.save(path, x)
    config = Config(str(path), test_fraction=0.25, **SMALL)
    row = int(build(config).test.batch(np.array([5]))[0, 0]) // 2
    x[row, 1] = math.inf
    np.save(path, x)
    # No row is named: it would be one of the shuffled part, not of the file.
    said = r"^--dataset: values must be finite; got NaN or infinity\. Remove or fill those rows\.$"
    with pytest.raises(ValueError, match=said):
        build(config)


@pytest.mark.parametrize("low, high", [(0.0, 1.5), (-0.25, 1.0)])
@pytest.mark.parametrize("row", range(4))  # of which one is held out
def test_floating_images_lie_in_0_1_by_default(low, high, row, tmp_path):
    x = RNG.uniform(size=(4, 8, 8)).astype(np.float32)
    x[row, 0, :2] = low, high
    path = tmp_path / "images.npz"
    np.savez(path, x=x)
    sentence = (
        rf"^--likelihood bernoulli needs data in \[0, 1\]; got values from {low:g} to {high:g}\."
    )
    with pytest.raises(ValueError, match=sentence):
        build(Config(str(path), **SMALL))
    assert build(Config(str(path), likelihood="normal", **SMALL)).config.likelihood == "normal"


def test_other_rows_take_the_form_of_the_runs_own(images, tmp_path):
    path = images()
    with np.load(path) as arrays:
        x = arrays["x"]
    config = Config(path, image_size=32, binarize="static", **SMALL)
    data = load_whole(config, path)
    assert (len(data), data.x_shape, set(np.unique(data.x))) == (len(x), (1, 32, 32), {0, 255})
    again = load_whole(config, path)
    assert np.array_equal(again.x, data.x)
    dynamic = load_whole(Config(path, binarize="dynamic", **SMALL), path)
    assert np.array_equal(dynamic.x.reshape(x.shape), x)  # drawn anew at each batch
    np.save(tmp_path / "points.npy", RNG.normal(size=(9, 2)).astype(np.float32))
    assert load_whole(Config(**SMALL), str(tmp_path / "points.npy")).resident


def test_binarize(images, tmp_path):
    static = build(Config(images(), binarize="static", **SMALL))
    assert set(np.unique(static.train.x)) == {0, 255} and static.transform is None
    dynamic = build(Config(images(), binarize="dynamic", **SMALL))
    assert dynamic.transform is torch.bernoulli and len(np.unique(dynamic.train.x)) > 2
    floats = tmp_path / "floats.npz"
    np.savez(floats, x=RNG.uniform(size=(20, 8, 8)).astype(np.float32))
    with pytest.raises(ValueError, match=r"--binarize needs images of whole grey .*; got float32"):
        build(Config(str(floats), binarize="dynamic", **SMALL))
    with pytest.raises(ValueError, match=r"binarize must be 'none' for float32 data; got 'static'"):
        build(Config(str(floats), binarize="static", **SMALL))


def test_conditional_needs_labels(images):
    with pytest.raises(ValueError, match=r"^--conditional needs labels; the data set has none\."):
        build(Config(images(), conditional=True, **SMALL))


@pytest.mark.parametrize("network", ["dcgan32", "conv-bn", "burgess", "higgins64"])
def test_image_size_the_network_cannot_take(network, images):
    with pytest.raises(ValueError, match=rf"^{network}: images must be .*; got x of shape \(1, 8"):
        build(Config(images(), network=network, **SMALL))
    side = SIDES[network]
    assert build(Config(images(), network=network, image_size=side, **SMALL))


def test_networks_for_images_refuse_points():
    with pytest.raises(ValueError, match=r"^conv-bn: images must be 32x32 or 64x64; .*\(2,\)"):
        build(Config("spirals", network="conv-bn"))


@pytest.mark.parametrize("prior", ["vamp", "pca"])
def test_priors_that_start_at_the_data_take_data_read_lazily(prior, tmp_path, monkeypatch):
    from PIL import Image

    for i in range(12):
        pixels = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    monkeypatch.setattr("pyro_bvae.build._HELD_BYTES", 0)
    built = build(Config(str(tmp_path), prior=prior, **SMALL))
    assert not built.train.resident and built.vae.p_z().event_shape == (2,)


# Prior arguments


@pytest.mark.parametrize(
    "prior, args, sentence",
    [
        ("mixture", {"df": 5}, r"--prior-arg of mixture must be one of: n_components, scale, loc"),
        ("gaussian", {"Scale": 2}, r"--prior-arg of gaussian must be one of: scale, learned; got"),
        ("pca", {"scale": 2}, r"--prior-arg of pca must be one of: learned; got 'scale'"),
        ("student-t", {"df": -1}, r"StudentT: df must be a finite number > 0; got -1"),
        ("student-t", {"df": "many"}, r"StudentT: df must be a finite number > 0; got 'many'"),
        ("mixture", {"n_components": 0}, r"Mixture: n_components must be an integer >= 1; got 0"),
        ("spike-slab", {"spike_weight": 2}, r"SpikeSlab: spike_weight must lie in \[0, 1\]; got 2"),
        (
            "spike-slab",
            {"spike_weight": "x"},
            r"SpikeSlab: spike_weight must lie in \[0, 1\]; got 'x'",
        ),
        (
            "gaussian",
            {"scale": "wide"},
            r"Gaussian: scale must be numbers in rows of equal length; got",
        ),
        (
            "gaussian",
            {"scale": [1, 2, 3]},
            r"Gaussian: scale must be one number, or 2; got shape \(3,\)",
        ),
        ("flow", {"hidden": -1}, r"Flow: hidden must be an integer >= 1; got -1"),
        ("vamp", {"x_shape": [3]}, r"--prior-arg of vamp must not be x_shape, which the data give"),
        ("gaussian", {"latent_dim": 3}, r"event_shape \(2,\); got \(\) and \(3,\)"),
    ],
)
def test_prior_args_errors(prior, args, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        build(Config(prior=prior, prior_args=args))


def test_prior_args_arrive():
    config = Config(prior="mixture", prior_args={"n_components": 3, "learned": True}).resolved()
    prior = make_prior(config, (2,))
    assert prior.n_components == 3 and prior.locs.requires_grad
    located = Config(prior="mixture", prior_args={"locs": [[1, 2], [3, 4]]}).resolved()
    assert make_prior(located, (2,)).locs.tolist() == [[1, 2], [3, 4]]


def test_priors_without_data_have_the_shapes_of_those_with():
    """load_run makes the model without the data and fills it from the checkpoint."""
    x = RNG.normal(size=(30, 3)).astype(np.float32)
    for prior in PRIORS:
        config = Config("x.npy", prior=prior, network="mlp", likelihood="normal").resolved()
        config = dataclasses.replace(config, latent_dim=2)
        withs, without = make_vae(config, (3,), x=x), make_vae(config, (3,))
        without.load_state_dict(withs.state_dict())
        z = torch.randn(5, 2)
        assert torch.equal(without.p_z().log_prob(z), withs.p_z().log_prob(z)), prior


# Parts of one's own

PARTS = """
    import pyro.distributions as dist
    import torch
    from torch import nn

    class Ring(nn.Module):
        def __init__(self, latent_dim, radius=1.0):
            super().__init__()
            self.loc = nn.Parameter(torch.full((latent_dim,), float(radius)))
        def forward(self):
            return dist.Normal(self.loc, 1.0).to_event(1)

    class Strange(torch.distributions.Normal):
        def __init__(self):
            super().__init__(0.0, 1.0)

    class Foreign(Ring):
        def forward(self):
            return Strange()

    class Unfolded(Ring):
        def forward(self):
            return dist.Normal(self.loc, 1.0)

    class Broken(Ring):
        def forward(self):
            return dist.Normal(self.loc @ torch.ones(7, 7), 1.0)

    class Greedy(Ring):
        def __init__(self, latent_dim, x_shape, **others):
            super().__init__(latent_dim)
            self.seen = (x_shape, others)

    class Inner:
        Ring = Ring

    def no_module(latent_dim):
        return "a prior"

    def net(x_shape, latent_dim, extra=0, scale=False):
        from pyro_bvae.networks import mlp
        return mlp(x_shape, latent_dim, extra, scale, hidden=7)

    def net_of_one(x_shape, latent_dim, extra=0, scale=False):
        return nn.Linear(2, 2)

    def net_of_few_arguments(x_shape):
        return nn.Linear(2, 2), nn.Linear(2, 2)

    def net_of_wrong_width(x_shape, latent_dim, extra=0, scale=False):
        from pyro_bvae.networks import mlp
        return mlp((5,), latent_dim, extra, scale)

    def net_of_other_latents(x_shape, latent_dim, extra=0, scale=False):
        from pyro_bvae.networks import mlp
        return mlp(x_shape, 3, extra, scale)

    class Full(nn.Module):
        def __init__(self, x_shape, latent_dim):
            super().__init__()
            self.loc = nn.Linear(x_shape[0], latent_dim)
        def forward(self, x):
            loc = self.loc(x)
            return dist.MultivariateNormal(loc, scale_tril=torch.eye(loc.shape[1]) * 0.5)

    def net_of_full_covariance(x_shape, latent_dim, extra=0, scale=False):
        from pyro_bvae.networks import mlp
        return Full(x_shape, latent_dim), mlp(x_shape, latent_dim, extra, scale)[1]

    constant = 3
"""


def test_prior_of_ones_own(module):
    name = module(PARTS)
    built = build(Config(prior=f"{name}:Ring", prior_args={"radius": 2.5}, alpha=1.0))
    assert built.vae.prior.loc.tolist() == [2.5, 2.5]
    assert build(Config(prior=f"{name}:Inner.Ring")).vae.prior.loc.tolist() == [1, 1]
    greedy = build(Config(prior=f"{name}:Greedy", prior_args={"a": 1})).vae.prior
    assert greedy.seen == ((2,), {"a": 1})


def test_network_of_ones_own(module):
    vae = build(Config(network=f"{module(PARTS)}:net")).vae
    assert vae.encoder.loc.in_features == 7


@pytest.mark.parametrize(
    "attr, error, sentence",
    [
        (
            "Foreign",
            TypeError,
            r"Foreign: what forward\(\) returns must be a distribution from pyro\.dist",
        ),
        ("Unfolded", ValueError, r"Unfolded: .*event_shape \(2,\); got \(2,\) and \(\)"),
        ("Broken", ValueError, r"the prior's forward\(\) fails .*--prior own_parts:Broken"),
        ("no_module", TypeError, r"VAE: prior must be a module; got 'a prior'\. Make one"),
        ("Absent", ValueError, r"--prior must name something that can be imported .*own_parts:Abs"),
        ("", ValueError, r"--prior must name something that can be imported .*'own_parts:'"),
        ("constant", TypeError, r"--prior must be a class or a function; got .*constant', a int"),
    ],
)
def test_prior_of_ones_own_refused(module, attr, error, sentence):
    name = module(PARTS)
    with pytest.raises(error, match=sentence):
        build(Config(prior=f"{name}:{attr}"))


def test_unknown_argument_of_ones_own_prior(module):
    name = module(PARTS)
    sentence = r"--prior-arg of own_parts:Ring must be one of: radius; got 'radios'"
    with pytest.raises(ValueError, match=sentence):
        build(Config(prior=f"{name}:Ring", prior_args={"radios": 2}))


@pytest.mark.parametrize("name", ["absent_module:Ring", ":Ring", ".rel:Ring", "a b:Ring", "x.:R"])
@pytest.mark.parametrize("option", ["prior", "network"])
def test_module_that_cannot_be_imported(name, option):
    sentence = rf"^--{option} must name something that can be imported .*; got '{name}' .*Check"
    with pytest.raises(ValueError, match=sentence):
        build(Config(**{option: name}))


def test_what_cannot_be_imported_is_refused_before_the_data_are_read(module, monkeypatch):
    monkeypatch.setattr("pyro_bvae.build.load", lambda config: pytest.fail("data were read"))
    name = module(PARTS)
    for wrong in (
        {"prior": "absent_module:Ring"},
        {"network": "absent_module:net"},
        {"prior": f"{name}:Ring", "prior_args": {"radios": 2}},
        {"prior": "mixture", "prior_args": {"radios": 2}},
    ):
        with pytest.raises(ValueError, match="^--(prior|network|prior-arg) "):
            build(Config(**wrong))


@pytest.mark.parametrize("text", ["def (:", "1 / 0", "raise RuntimeError('no')", "import absent_m"])
def test_module_that_fails_when_imported(module, text):
    name = module(text, "own_failing")
    sentence = r"^--prior must name something that can be imported .*own_failing:Ring' \(.+\)"
    with pytest.raises(ValueError, match=sentence):
        build(Config(prior=f"{name}:Ring"))


@pytest.mark.parametrize(
    "attr, sentence",
    [
        ("net_of_one", r"--network own_parts:net_of_one must .*\(encoder, decoder\)"),
        ("net_of_few_arguments", r"--network own_parts:net_of_few_arguments must .*takes"),
        ("net_of_wrong_width", r"cannot take .*--network own_parts:net_of_wrong_width"),
        ("net_of_other_latents", r"event_shape \(3,\); got \(\) and \(2,\)|posterior must have"),
        ("constant", r"--network must be a class or a function; got .*constant', a int"),
    ],
)
def test_network_of_ones_own_refused(module, attr, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        build(Config(network=f"{module(PARTS)}:{attr}"))


@pytest.mark.parametrize("options", [{"beta_tc": 2.0}, {"alpha": 1.0, "divergence": "mmd"}])
def test_the_objective_is_run_once(options, module):
    """Total correlation needs a product over latents; MMD does not, nor does any plain ELBO."""
    config = Config(network=f"{module(PARTS)}:net_of_full_covariance", **options)
    if "beta_tc" not in options:
        assert build(config).config.divergence == "mmd"
        return
    with pytest.raises(TypeError, match=r"total_correlation: the posterior must be a product over"):
        build(config)


def test_an_objective_without_a_closed_form_is_found_by_build():
    config = Config(prior="mixture", gamma=5.0, capacity=1.0, reduction="example")
    with pytest.raises(ValueError, match=r"reduction 'example' needs a KL in closed form"):
        build(config)
    assert list(pyro.get_param_store().keys()) == []
    assert build(dataclasses.replace(config, prior="gaussian")).objective.reduction == "example"


# Schedules and objectives


def values(schedules, name, *steps):
    return [schedules[name](step) for step in steps]


def test_beta_warms_up_over_two_thirds():
    schedules = make_schedules(Config(beta=4.0), 300)
    assert set(schedules) == {"beta"}
    assert values(schedules, "beta", 0, 50, 100, 200, 299) == [0, 1, 2, 4, 4]


def test_warmups_off():
    assert make_schedules(Config(beta=4.0, beta_warmup=0), 300) == {}
    assert make_schedules(Config(beta=0), 300) == {}
    assert make_schedules(Config(beta_warmup=0, alpha=1.0), 300) == {}


def test_alpha_warms_up():
    schedules = make_schedules(Config(beta=0, alpha=8.0, alpha_warmup=0.5), 100)
    assert set(schedules) == {"alpha"}
    assert values(schedules, "alpha", 0, 25, 50, 99) == [0, 4, 8, 8]


def test_capacity_ramps_and_beta_stays():
    config = Config(gamma=10.0, capacity=30.0)
    schedules = make_schedules(config, 300)
    assert set(schedules) == {"capacity"}
    assert values(schedules, "capacity", 0, 50, 100, 250) == [0, 15, 30, 30]
    held = make_schedules(Config(gamma=10.0, capacity=30.0, capacity_ramp=0), 300)
    assert values(held, "capacity", 0, 299) == [30, 30]
    assert build(config).vae.beta == 1


def test_total_steps():
    assert total_steps(Config(steps=7).resolved(), 400) == 7
    # 100 rows in batches of 30: 30 + 30 + 30 + 10.
    assert total_steps(Config(epochs=3, batch_size=30).resolved(), 100) == 12


def test_capacity_objective():
    config = Config(gamma=3.0, capacity=2.0, penalty="relu", reduction="example", n_particles=2)
    objective = build(config).objective
    assert type(objective) is CapacityELBO
    assert (objective.gamma, objective.capacity) == (3, 2)
    assert (objective.penalty, objective.reduction) == ("relu", "example")
    assert objective.num_particles == 2


def test_beta_tc_is_total_correlation_with_alpha_one_less():
    objective = make_objective(Config(beta_tc=6.0), 1234)
    assert type(objective) is DecompositionELBO and objective.alpha == 5
    q_z = pyro.distributions.Normal(torch.randn(8, 2), 0.3).to_event(1)
    p_z = pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1)
    z = q_z.sample()
    mss = divergences.total_correlation(q_z, p_z, z, estimator="mss", dataset_size=1234)
    batch = divergences.total_correlation(q_z, p_z, z, estimator="batch", dataset_size=1234)
    assert torch.equal(objective.divergence(q_z, p_z, z), mss) and not torch.equal(mss, batch)
    other = make_objective(Config(beta_tc=6.0, estimator="batch"), 1234)
    assert torch.equal(other.divergence(q_z, p_z, z), batch)


@pytest.mark.parametrize("name", divergences.DIVERGENCES)
def test_divergence_by_key(name):
    function = make_divergence(Config(), name, 99)
    assert isinstance(function, partial) and function.func is divergences.DIVERGENCES[name]
    sized = name in ("exclusive-kl", "total-correlation")
    assert function.keywords == ({"dataset_size": 99} if sized else {})
    assert make_divergence(Config(), None, 99) is None


@pytest.mark.parametrize(
    "network, batch_size, steps, expected",
    [
        ("mlp", 400, 9_999, False),
        ("mlp", 1, 10_000, True),
        ("conv-bn", 64, 4_687, False),
        ("conv-bn", 64, 4_688, True),  # 300,032 rows
    ],
)
def test_long_trainings_are_compiled(network, batch_size, steps, expected):
    config = Config(dataset="x.npy", network=network, batch_size=batch_size, lr=1e-3, steps=1)
    assert default_compile(config, steps) is expected
    own = dataclasses.replace(config, prior="my.module:Prior")
    assert default_compile(own, 10**6) is False


def test_whether_it_compiles_is_a_choice_and_is_written_down():
    assert build(Config(steps=1)).config.compile is False
    assert build(Config(steps=20_000)).config.compile is True
    assert build(Config(steps=1, compile=True)).config.compile is True
    assert build(Config(steps=20_000, compile=False)).config.compile is False
