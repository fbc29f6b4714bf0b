"""``pyro-bvae export``: onnxruntime gives the numbers that the model gives."""

import sys

import numpy as np
import onnxruntime
import pyro.distributions as dist
import pytest
import torch
from click.testing import CliRunner
from pyro_bvae.cli.export import command

from pyro_bvae import runs
from pyro_bvae.config import Config
from pyro_bvae.export import export_onnx
from pyro_bvae.likelihoods import Bernoulli, ContinuousBernoulli, Laplace, Normal
from pyro_bvae.networks import NETWORKS
from pyro_bvae.priors import Gaussian, VampPrior
from pyro_bvae.vae import VAE

# Rounding errors add up at random: 9 layers, each a sum over at most 2048 products.
TOLERANCE = 9 * 2048**0.5 * np.finfo(np.float32).eps  # 5e-5 of the largest value


def model(network, x_shape, likelihood, n_classes=0, encode_labels=False, prior=None):
    """Of random weights; batch normalisation has statistics unlike those of any batch."""
    scale = getattr(likelihood, "per_pixel", False)
    seen = (x_shape[0] + n_classes * encode_labels, *x_shape[1:])
    encoder, _ = NETWORKS[network](seen, 4)
    _, decoder = NETWORKS[network](x_shape, 4, n_classes, scale)
    for module in (*encoder.modules(), *decoder.modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return VAE(encoder, decoder, prior or Gaussian(4), likelihood, 1.0, n_classes, encode_labels)


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def compare(vae, paths, x_shape):
    """The files' outputs at two batch sizes with the model's."""
    vae.eval()
    encoder, decoder = map(session, paths)
    latent_dim = vae.p_z().event_shape[-1]
    for n in (1, 5):
        x, z = torch.rand(n, *x_shape), torch.randn(n, latent_dim)
        labels = torch.arange(n) % vae.n_classes if vae.n_classes else None
        with torch.no_grad():
            q_z, p_x = vae.q_z(x, labels), vae.p_x(z, labels)
        expected = {"loc": q_z.mean, "scale": q_z.base_dist.scale}
        same(run(encoder, {"x": x, "labels": labels if vae.encode_labels else None}), expected)
        expected = {"mean": p_x.mean}
        if hasattr(p_x.base_dist, "scale"):
            expected["scale"] = p_x.base_dist.scale
        same(run(decoder, {"z": z, "labels": labels}), expected)


def run(session, given):
    inputs = {name: value.numpy() for name, value in given.items() if value is not None}
    assert [i.name for i in session.get_inputs()] == list(inputs)
    values = (*session.get_inputs(), *session.get_outputs())
    assert {value.shape[0] for value in values} == {"batch"}
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def same(got, expected):
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert got[name].shape == value.shape and got[name].dtype == np.float32
        largest = max(1.0, value.abs().max().item())
        np.testing.assert_allclose(got[name], value.numpy(), rtol=0, atol=TOLERANCE * largest)


# The numbers


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("network", "x_shape", "likelihood", "n_classes"),
    [
        ("mlp", (1, 5, 5), Laplace("decoder"), 0),
        pytest.param("conv-bn", (1, 32, 32), Laplace("decoder"), 0, marks=slow),
        pytest.param("dcgan32", (1, 32, 32), Laplace(0.1), 0, marks=slow),
        pytest.param("burgess", (3, 64, 64), Bernoulli(), 3, marks=slow),
        pytest.param("higgins64", (1, 64, 64), Normal("learned"), 0, marks=slow),
    ],
)
def test_networks_and_likelihoods(network, x_shape, likelihood, n_classes, tmp_path):
    vae = model(network, x_shape, likelihood, n_classes)
    compare(vae, export_onnx(vae, tmp_path), x_shape)


def test_the_model_is_left_as_it_was_and_no_more_of_it_written(tmp_path):
    vae = model("mlp", (1, 8, 8), ContinuousBernoulli(), prior=VampPrior(4, 100, (1, 8, 8)))
    with torch.no_grad():  # means from .005 to .995
        vae.decoder.body[-1].weight.mul_(1e-3)
        vae.decoder.body[-1].bias.copy_(torch.linspace(-200, 200, 65)[:64])
    random, validated = torch.get_rng_state(), dist.Normal(0.0, 1.0)._validate_args
    paths = export_onnx(vae, tmp_path / "new" / "folder")
    assert vae.training and torch.equal(random, torch.get_rng_state())
    assert dist.Normal(0.0, 1.0)._validate_args == validated
    compare(vae, paths, (1, 8, 8))
    for path, part in zip(paths, (vae.encoder, vae.decoder), strict=True):
        weights = 4 * sum(p.numel() for p in part.parameters())
        assert weights < path.stat().st_size < weights + 10_000  # no weights of the prior
        assert b".py" not in path.read_bytes()  # nor where this machine keeps its code


# The command


def call(*arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def spirals(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_bvae.measuring.write_figures", lambda *args: [])
        path = tmp_path_factory.mktemp("runs") / "spirals"
        return runs.train(Config(prior="mixture", steps=2), path).path


def test_a_run_of_points(spirals):
    folder = spirals / "onnx"
    folder.mkdir()
    (folder / "encoder.onnx").write_text("an older one")
    result = call(spirals)
    assert (result.exit_code, result.stderr) == (0, "")
    paths = [folder / "encoder.onnx", folder / "decoder.onnx"]
    assert result.stdout.splitlines() == [f"Wrote {path}" for path in paths]
    assert sorted(folder.iterdir()) == sorted(paths)
    compare(runs.load_run(spirals).vae, paths, (2,))
    said = [session(path).get_modelmeta() for path in paths]
    assert said[0].description == "Encoder of a variational autoencoder."
    assert set(said[0].custom_metadata_map) == {"pyro_bvae", "prior", "x", "loc", "scale"}
    assert said[1].custom_metadata_map["prior"] == "mixture"
    assert said[1].custom_metadata_map["scale"].startswith("Standard deviation of p(x|z)")


def test_a_conditional_run_of_images(tmp_path, without_figures):
    config = Config(dataset="digits", steps=2, conditional=True, encode_labels=True)
    trained = runs.train(config, tmp_path / "run")
    result = call(trained.path, "--out", tmp_path / "files")
    assert (result.exit_code, result.stderr) == (0, "")
    paths = [tmp_path / "files" / f"{name}.onnx" for name in ("encoder", "decoder")]
    compare(trained.vae.cpu(), paths, (1, 8, 8))
    said = session(paths[1]).get_modelmeta().custom_metadata_map
    assert said["labels"] == "Class to decode each row of z as, from 0 to 9."


# What is refused


def test_without_onnxscript_no_run_is_read(spirals, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr(runs, "load_run", None)
    result = call(spirals, "--out", tmp_path / "files")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "Error: export: onnxscript must be installed; it is not. Install it: pip install "
        '"pyro-bvae[export]".\n'
    )
    assert not list(tmp_path.iterdir())


class LaplaceEncoder(torch.nn.Linear):
    def forward(self, x):
        return dist.Laplace(super().forward(x), 1.0).to_event(1)


class OneSize(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x).reshape(len(x), 2).split(1, dim=1)


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        (
            LaplaceEncoder,
            "q(z|x) must be a diagonal Normal, since the file gives its loc and scale; got Lap",
        ),
        (OneSize, "the encoder must be torch operations on batches of any size; got: Constraints"),
    ],
    ids=["laplace", "one-size"],
)
def test_an_encoder_that_no_file_can_hold_is_refused(encoder, said, spirals, tmp_path, monkeypatch):
    _, decoder = NETWORKS["mlp"]((2,), 1)
    vae = VAE(encoder(2, 2), decoder, Gaussian(1), Normal())
    monkeypatch.setattr(runs, "load_run", lambda *a, **k: runs.Run(spirals, Config(), vae, []))
    result = call(spirals, "--out", tmp_path)
    assert (result.exit_code, result.stdout) == (2, "") and not list(tmp_path.iterdir())
    assert result.stderr.startswith("Error: export: " + said) and result.stderr.count("\n") == 1


def test_places_that_cannot_be_written_are_refused(spirals, tmp_path):
    (tmp_path / "file").write_text("")
    result = call(spirals, "--out", tmp_path / "file")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: --out must lie where one can write; got")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / "onnx").symlink_to(tmp_path)
    result = call(run)
    assert result.exit_code == 2 and "it is a link that leads elsewhere" in result.stderr
