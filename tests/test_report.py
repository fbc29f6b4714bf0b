"""The report without a browser: exported decoders, aggregation, sizes, escaping, errors."""

import base64
import dataclasses
import hashlib
import html
import json
import math
import re
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pyro_bvae.report as report
from pyro_bvae.config import Config
from pyro_bvae.likelihoods import Bernoulli, Normal
from pyro_bvae.networks import NETWORKS, Decoder, mlp
from pyro_bvae.priors import Gaussian, Mixture, SpikeSlab, StudentT
from pyro_bvae.report import charts, page, tables, walk, write_report
from pyro_bvae.report.decoder import Unsupported, check, export, live, pack
from pyro_bvae.report.pictures import pictures
from pyro_bvae.runs import Run
from pyro_bvae.vae import VAE

TERMS = {"log_px_z": -1.0, "log_px_z_se": 0.1, "kl": 2.0, "kl_se": 0.2, "elbo": -3.0, "n": 40}
CONFIG = Config().resolved()


def make_vae(decoder, latents=2, likelihood=None, n_classes=0):
    encoder, _ = mlp((2,), latents)
    vae = VAE(encoder, decoder, Gaussian(latents), likelihood or Bernoulli(), 1.0, n_classes)
    return vae.eval()


def of_layers(*layers, x_shape=(1, 2, 2), likelihood=None):
    """A model whose decoder is these layers."""
    return make_vae(Decoder(nn.Sequential(*layers), x_shape, False), likelihood=likelihood)


def make_run(path, vae=None, config=CONFIG, history=(), n=16, **metrics):
    """A run directory that holds what a report reads."""
    path.mkdir(parents=True)
    vae = vae or make_vae(mlp((2,), 2)[1])
    (path / "metrics.json").write_text(json.dumps({**TERMS, "diagnosis": [], **metrics}))
    latents = vae.p_z().event_shape[0]
    labels = torch.zeros(1, dtype=torch.int64) if vae.n_classes else None
    x_shape = vae.p_x(torch.zeros(1, latents), labels).event_shape
    if n:
        arrays = {"x": torch.rand(n, *x_shape).numpy(), "loc": torch.randn(n, latents).numpy()}
        np.savez(path / "examples.npz", scale=np.ones((n, latents)), **arrays)
    return Run(path, config, vae, list(history))


def data_of(path, run=0):
    """The JSON of a run as the browser parses it."""
    (found,) = re.findall(
        rf'<script type="application/json" id="run-{run}">(.*?)</script>', read(path)
    )
    return json.loads(found)


def read(path):
    return path.read_text(encoding="utf-8")


# The exported decoder, interpreted by loops in numpy


def convolve(op, x, weight, bias):
    """y[o, p] = sum over x[i, q] w[o, i, k] where q = p stride - padding + k; transposed, p and q
    change places."""
    spread = op["op"] == "conv_transpose"
    out = np.zeros(op["out"]) + bias[:, None, None]
    coarse, fine = (op["in"], op["out"]) if spread else (op["out"], op["in"])
    for row in range(coarse[1]):
        for column in range(coarse[2]):
            for a in range(op["kernel_size"][0]):
                for b in range(op["kernel_size"][1]):
                    y = row * op["stride"][0] - op["padding"][0] + a
                    z = column * op["stride"][1] - op["padding"][1] + b
                    if not (0 <= y < fine[1] and 0 <= z < fine[2]):
                        continue
                    if spread:
                        out[:, y, z] += weight[:, :, a, b].T @ x[:, row, column]
                    else:
                        out[:, row, column] += weight[:, :, a, b] @ x[:, y, z]
    return out


def interpret(exported, z):
    """The body's output for one z, in float64, by the documented meaning of the operations."""
    weights, start = exported.weights.astype(float), 0

    def take(*shape):
        nonlocal start
        start += math.prod(shape)
        return weights[start - math.prod(shape) : start].reshape(shape)

    x = np.asarray(z, float)
    for op in exported.ops:
        kind = op["op"]
        if "in" in op:
            x = x.reshape(op["in"])
            n, m = op["in"][0], op["out"][0]
        if kind == "linear":
            x = take(m, n) @ x + take(m)
        elif kind == "affine":
            x = (x.reshape(n, -1) * take(n, 1) + take(n, 1)).reshape(op["in"])
        elif kind == "conv":
            x = convolve(op, x, take(m, n, *op["kernel_size"]), take(m))
        elif kind == "conv_transpose":
            x = convolve(op, x, take(n, m, *op["kernel_size"]), take(m))
        elif kind == "leaky_relu":
            x = np.where(x > 0, x, op["slope"] * x)
        elif kind == "elu":
            x = np.where(x > 0, x, op["alpha"] * (np.exp(np.minimum(x, 0)) - 1))
        elif kind == "softplus":
            x = np.log(1 + np.exp(op["beta"] * x)) / op["beta"]
        else:
            x = {"sigmoid": lambda v: 1 / (1 + np.exp(-v)), "tanh": np.tanh}[kind](x)
    assert start == len(weights)
    return x.ravel()


def randomised(module):
    """Statistics of its own for every normalisation, and weights that keep the signal's size."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                part.running_mean.normal_()
                part.running_var.uniform_(0.3, 3)
                if part.affine:
                    part.weight.normal_(1, 0.3)
                    part.bias.normal_()
            elif hasattr(part, "weight"):
                fan = part.weight[0].numel()
                if isinstance(part, nn.ConvTranspose2d):
                    fan = part.weight.numel() / part.out_channels / math.prod(part.stride)
                part.weight.normal_(0, math.sqrt(2 / fan))
    return module


EVERY_LAYER = (
    nn.BatchNorm1d(2),  # nothing before it: a scaling of its own
    nn.Linear(2, 24),
    nn.BatchNorm1d(24),
    nn.ELU(0.7),
    nn.Dropout(0.5),
    nn.Sequential(nn.Unflatten(1, (6, 2, 2)), nn.BatchNorm2d(6, affine=False), nn.Identity()),
    nn.ConvTranspose2d(6, 5, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 0)),
    nn.BatchNorm2d(5),
    nn.LeakyReLU(0.3),
    nn.Conv2d(5, 4, (2, 3), stride=(1, 2), padding=(0, 1), bias=False),
    nn.BatchNorm2d(4),
    nn.Tanh(),
    nn.ConvTranspose2d(4, 3, 2, bias=False),
    nn.Softplus(beta=2.0),
    nn.Flatten(),
    nn.Linear(48, 8),
    nn.Sigmoid(),
    nn.Linear(8, 12),
)


@pytest.mark.parametrize("name", ["every layer", *NETWORKS])
def test_exported_operations_are_the_decoder(name):
    if name == "every layer":
        vae = of_layers(*EVERY_LAYER, x_shape=(3, 2, 2), likelihood=Normal(0.1))
    else:
        shape = (1, 64, 64) if name == "higgins64" else (1, 32, 32)
        vae = make_vae(NETWORKS[name](shape, 2, 3, True)[1], 2, Normal("decoder"), 3)
    randomised(vae.decoder)
    exported, given = export(vae), torch.eye(3)[1:2] if vae.n_classes else torch.zeros(1, 0)
    z = torch.tensor([[3.0, -2], [-1, 4], [2, 0]])
    z = torch.cat([z, given.expand(3, -1)], 1)
    with torch.no_grad():
        expected = vae.decoder.body(z).reshape(3, -1).numpy()
    got = np.stack([interpret(exported, row) for row in z.numpy()])
    # 16 bits are a relative 2^-11 a weight; through eight layers, a small multiple of it
    tolerance = 5e-3 * expected.std()
    assert expected.std(0).mean() > 5 * tolerance  # else z would not matter
    np.testing.assert_allclose(got, expected, atol=tolerance)
    labels = torch.full((3,), 1) if vae.n_classes else None
    check(vae, exported, z[:, :2], labels)


def test_normalisation_is_folded_where_it_can_be():
    kinds = [op["op"] for op in export(of_layers(*EVERY_LAYER, x_shape=(3, 2, 2))).ops]
    assert kinds.count("affine") == 2  # before the first layer, and after a change of shape


def test_packed_weights_unpack_by_planes():
    values = np.array([0.0, -1.5, 65504, 6e-8, 0.1], "<f2")
    planes = np.frombuffer(zlib.decompress(base64.b64decode(pack(values))), np.uint8)
    high, low = planes[:5].astype(np.uint16), planes[5:].astype(np.uint16)
    assert ((high << 8 | low).astype("<u2").view("<f2") == values).all()


def test_standard_deviation_of_each_likelihood():
    _, decoder = mlp((2,), 2)
    assert export(make_vae(decoder, likelihood=Bernoulli())).head["sd"] is None
    assert export(make_vae(decoder, likelihood=Normal(0.25))).head["sd"] == 0.25
    vae = make_vae(mlp((2,), 2, 0, True)[1], likelihood=Normal("decoder"))
    assert export(vae).head == {
        "mean": "identity", "size": 2, "sd": "decoder", "floor": 1e-3, "factor": 1.0
    }  # fmt: skip


class Own(nn.Module):
    def forward(self, z):
        return z.repeat(1, 2)


def hooked():
    vae = of_layers(nn.Linear(2, 4))
    vae.decoder.body[0].register_forward_hook(lambda module, given, out: out * 2)
    return vae


def overflowing():
    vae = of_layers(nn.Linear(2, 4))
    vae.decoder.body[0].weight.data.fill_(7e4)
    return vae


UP = nn.Unflatten(1, (2, 1, 1))
REFUSED = {
    "know the layer Own": lambda: of_layers(Own()),
    "not know the decoder Own": lambda: make_vae(Own()),
    "not know the likelihood Own": lambda: of_layers(nn.Linear(2, 4), likelihood=Own()),
    "know the layer Conv2d": lambda: of_layers(UP, nn.Conv2d(2, 4, 1, groups=2)),
    "know the layer ConvTr": lambda: of_layers(UP, nn.ConvTranspose2d(2, 1, 2, dilation=2)),
    "layer Conv2d.*same": lambda: of_layers(UP, nn.Conv2d(2, 4, 1, padding="same")),
    "layer BatchNorm1d": lambda: of_layers(
        nn.Linear(2, 4), nn.BatchNorm1d(4, track_running_stats=False)
    ),
    "has hooks": hooked,
    "too large for 16 bits": overflowing,
    "2,800,004 weights": lambda: of_layers(nn.Linear(2, 400_000), nn.Linear(400_000, 4)),
    "million multiplications": lambda: of_layers(
        nn.Unflatten(1, (2, 1, 1)),
        nn.ConvTranspose2d(2, 128, 64),
        nn.Conv2d(128, 128, 3, padding=1),
        x_shape=(128, 64, 64),
    ),
    "gives values of shape": lambda: of_layers(nn.Linear(2, 5)),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_the_page_cannot_run_is_refused(why):
    vae = REFUSED[why]()
    with pytest.raises(Unsupported, match=why):
        export(vae)
    assert not live(vae)


def test_a_plain_sequential_is_exported_too():
    vae = make_vae(nn.Sequential(nn.Linear(2, 4), nn.Unflatten(1, (1, 2, 2))))
    assert live(vae) and export(vae).head["size"] == 4


def test_weights_too_coarse_for_16_bits_are_refused():
    vae = of_layers(nn.Linear(2, 2), nn.Linear(2, 4), likelihood=Normal(1.0))
    with torch.no_grad():  # 2049.4 z - 2048.6 z, where 16-bit numbers are 2 apart
        vae.decoder.body[0].weight.copy_(torch.tensor([[2049.4, 0], [2048.6, 0]]))
        vae.decoder.body[1].weight.copy_(torch.tensor([[1.0, -1]] * 4))
    z = torch.ones(1, 2)
    with pytest.raises(Unsupported, match="16-bit weights are too coarse"):
        check(vae, export(vae), z, None)
    vae.decoder.body[0].weight.data[0, 0] = 2050
    vae.decoder.body[0].weight.data[1, 0] = 2048
    check(vae, export(vae), z, None)


# The walk through the latent space


def fake(vae, metrics=None, examples=None):
    return SimpleNamespace(vae=vae, metrics=metrics or {}, examples=examples, path=Path("none"))


@torch.no_grad()
def test_sliders_are_ordered_and_wide_enough():
    vae = make_vae(mlp((1, 4, 4), 3)[1], 3)
    examples = {"x": np.zeros((2, 1, 4, 4)), "loc": np.array([[0, 0, 7.03], [0, 0, 0.0]])}
    found = walk.explore(fake(vae, {"kl_per_latent": [0.5, 0.0, 12.34]}, examples))
    latents = found["latents"]
    assert [(row["index"], row["note"]) for row in latents] == [
        (2, "12.3 nats"), (0, "0.5 nats"), (1, "0.00 nats"),
    ]  # fmt: skip
    assert latents[0]["high"] == 7.1 == -latents[0]["low"]
    assert all(3 <= row["high"] <= 4.5 for row in latents[1:])
    assert found["centre"] == [0, 0, 0] and len(found["draws"]) == 32
    signal = walk.explore(fake(vae, {"signal_per_latent": [1.0, 300.0, 2.0]}))
    assert [row["note"] for row in signal["latents"]] == ["signal 300", "signal 2", "signal 1"]
    assert signal["examples"] == [] and "sprite" not in signal


@pytest.mark.parametrize(
    ("prior", "widest"),
    [(Gaussian(2), 4.5), (Mixture(2), 3.5), (SpikeSlab(2), 4.5), (StudentT(2, df=2), 40)],
)
@torch.no_grad()
def test_ranges_hold_the_draws_of_any_prior(prior, widest):
    vae = make_vae(mlp((1, 4, 4), 2)[1])
    vae.prior = prior
    found = walk.explore(fake(vae))
    draws = np.array(found["draws"])
    for row in found["latents"]:
        column = draws[:, row["index"]]
        slack = 0.01 * row["high"]
        assert row["low"] - slack <= column.min() and column.max() <= row["high"] + slack
        assert 1 < row["high"] < widest


@torch.no_grad()
def test_strips_decode_each_latent_alone():
    vae = make_vae(mlp((5,), 20)[1], 20, Normal(1.0))
    loc = np.random.default_rng(0).normal(size=(4, 20)).round(2)
    found = walk.explore(fake(vae, {}, {"x": np.zeros((4, 5)), "loc": loc}))
    assert found["kind"] == "vector"
    strips = walk.strips(vae, found)
    assert np.shape(strips["pictures"]) == (3, 17, 9, 5)  # 16 of 20 latents, and the start
    z = torch.tensor(loc[1], dtype=torch.float32)
    np.testing.assert_allclose(strips["pictures"][1][16][0], vae.p_x(z).mean, rtol=1e-3, atol=1e-3)
    z[3] = strips["values"][3][7]
    np.testing.assert_allclose(strips["pictures"][1][3][7], vae.p_x(z).mean, rtol=1e-3, atol=1e-3)


# Runs side by side


def test_mean_and_standard_error_over_seeds():
    assert tables.summarise([1, 2, 6], 9.0) == (3, pytest.approx(math.sqrt(7 / 3)), 3)
    assert tables.summarise([1], 0.5) == (1, 0.5, 1)
    # one left over of several: neither an error over runs, nor that of another run
    assert tables.summarise([math.nan, 3, math.nan], 0.5) == (3, None, 1)
    mean, se, n = tables.summarise([math.inf], None)
    assert math.isnan(mean) and (se, n) == (None, 0)


@pytest.mark.parametrize(
    ("value", "se", "text"),
    [
        (3.0, 1.5275, "3.0 ± 1.5"), (-147.3567, 0.3854, "-147.36 ± 0.39"), (5.0, 0.0, "5"),
        (1188.26, 16.2, "1188 ± 16"), (123456.0, None, "123,456"), (math.nan, None, "–"),
        (0.979793, 9e-6, "0.9798 ± <0.0001"), (0.000123, 2.4e-5, "0.000123 ± 0.000024"),
    ],
)  # fmt: skip
def test_numbers(value, se, text):
    assert tables.number(value, se) == text


def test_groups_differ_in_more_than_the_seed(tmp_path):
    mixture = dataclasses.replace(CONFIG, prior="mixture", alpha=1.0)
    configs = [
        CONFIG,
        mixture,
        dataclasses.replace(CONFIG, seed=1, device="cpu", data_dir="elsewhere"),
        dataclasses.replace(mixture, seed=3),
        dataclasses.replace(mixture, prior_args={"n_components": 8}),
    ]
    kl = [1.0, 10.0, 3.0, 20.0, 5.0]
    runs = [make_run(tmp_path / str(i), config=c, kl=kl[i]) for i, c in enumerate(configs)]
    groups = tables.group(runs)
    assert [g.label for g in groups] == [
        "prior gaussian, alpha 0",
        "prior mixture, alpha 1",
        "prior mixture, n_components=8, alpha 1",
    ]
    assert [[r.path.name for r in g.runs] for g in groups] == [["0", "2"], ["1", "3"], ["4"]]
    columns, rows = tables.table(groups)
    row = next(row for row in rows if "rate" in row.label)
    # means 2 and 15 with standard errors |a - b| / 2; a single run has its own
    assert [cell.text for cell in row.cells] == ["2.0 ± 1.0", "15.0 ± 5.0", "5.00 ± 0.20"]
    assert row.unit == "nats"
    differ, alike, default = tables.options(groups)
    assert [option.flag for option in differ] == ["--prior", "--prior-arg", "--alpha"]
    assert differ[2].values == ["0", "1", "1"] and differ[1].values[2] == "n_components=8"
    assert [option.flag for option in alike] == ["--dataset"]
    assert "--lr" in {option.flag for option in default}
    text = read(write_report(runs, tmp_path / "r.html"))
    assert "15.0 ± 5.0" in text and "over runs where a column has several" in text
    assert "Distortion over rate" in text and "more than once" not in text


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ([{}, {"alpha": 1.0, "divergence": "mmd"}], ["alpha 0", "alpha 1, divergence mmd"]),
        ([{}, {"n_particles": 3}], ["n_particles 1", "n_particles 3"]),
        (
            [{}, {"gamma": 9.0, "capacity": 5.0}],
            ["gamma none, capacity none", "gamma 9, capacity 5"],
        ),
        ([{}, {"prior_args": {"scale": 2}}], ["prior_args none", "scale=2"]),
        ([{}], ["this run"]),
        ([{}, {"seed": 4}], ["2 runs"]),
    ],
)
def test_groups_are_named_by_what_differs(tmp_path, options, labels):
    runs = [SimpleNamespace(config=dataclasses.replace(CONFIG, **o)) for o in options]
    assert [g.label for g in tables.group(runs)] == labels


def test_long_lists_of_options_give_way_to_names(tmp_path):
    other = dataclasses.replace(CONFIG, dataset="x" * 50, alpha=1.0)
    config = {"a": CONFIG, "b": other, "c": dataclasses.replace(other, seed=3)}
    runs = [make_run(tmp_path / name, config=c) for name, c in config.items()]
    assert [g.label for g in tables.group(runs)] == ["a", "b and 1 more"]


def test_measures_that_only_some_runs_have_and_notes(tmp_path):
    runs = [
        make_run(tmp_path / "a", purity=0.5, active_units=1, latents=2, kl_per_latent=[1, 0]),
        make_run(
            tmp_path / "b",
            **{"active_units": 2, "latents": 2, "kl_per_latent": [1, 1]},
            **{"log_marginal": -2.5, "log_marginal_se": 0.1},
        ),
    ]
    _, rows = tables.table(tables.group(runs))
    cells = {row.label: row.cells[0].text for row in rows}
    assert cells["cluster purity"] == "0.5 (1 of 2 runs)"
    assert cells["log p(x), importance-weighted"] == "-2.5 (1 of 2 runs)"  # no error over rows
    assert cells["active latents, KL > .01 nats"] == "1.50 ± 0.50 of 2"
    text = read(write_report(runs, tmp_path / "r.html"))
    assert "Seeds that occur more than once, so that ± is too small: 0" in text


def test_d_of_another_kind_is_a_row_of_its_own(tmp_path):
    d = {"divergence": 1.0, "divergence_components": 40}
    runs = [
        make_run(tmp_path / "a", **d, divergence_name="mmd"),
        make_run(
            tmp_path / "b",
            config=dataclasses.replace(CONFIG, beta=2.0),
            **d,
            divergence_name="inclusive-kl",
        ),
    ]
    rows = {row.label: row for row in tables.table(tables.group(runs))[1]}
    mmd, kl = (rows[f"D(q(z), p(z)) {name}"] for name in ("mmd", "inclusive-kl"))
    assert ([c.text for c in mmd.cells], mmd.unit) == (["1", "–"], "")
    assert ([c.text for c in kl.cells], kl.unit) == (["–", "1"], "nats")


def add(run, name, baseline=None, on="test", **metrics):
    about = {"format": 1, "on": on} | ({"baseline": baseline} if baseline else {})
    (run.path / f"metrics-{name}.json").write_text(json.dumps(about | metrics))


def test_baselines_and_other_rows_are_columns(tmp_path):
    run = make_run(tmp_path / "a")
    add(run, "baseline-pca", "pca", kl=7.5)
    add(run, "baseline-pca-on-train", "pca", "train", kl=8.5)
    add(run, "on-train", on="train", kl=9.5, kl_se=0.5)
    columns, rows = tables.table(tables.group([run]))
    assert [(c.label, c.baseline, c.other_rows) for c in columns] == [
        ("this model", False, False),
        ("on train", False, True),
        ("baseline pca", True, False),
        ("baseline pca on train", True, True),
    ]
    rate = next(row for row in rows if "rate" in row.label)
    assert [cell.text for cell in rate.cells] == ["2.00 ± 0.20", "9.50 ± 0.50", "7.5", "8.5"]
    text = read(write_report([run], tmp_path / "r.html"))
    assert text.count('<th scope="col" class="baseline">') == 2
    assert "not been trained on, but where a column names others." in text


def test_columns_are_the_same_rows_whatever_the_file_is_called(tmp_path):
    mixture = dataclasses.replace(CONFIG, prior="mixture")
    runs = [make_run(tmp_path / str(i)) for i in range(3)]
    runs.append(make_run(tmp_path / "3", config=mixture))
    add(runs[0], "on-few", on="/data/few.npz", kl=1.0)
    add(runs[1], "on-many", on="/data/few.npz", kl=3.0)
    add(runs[2], "on-few", on="/other/few.npz", kl=5.0)
    add(runs[3], "on-few", on="/data/few.npz", kl=7.0)
    add(runs[3], "pca", "pca", kl=8.0)  # as it was called before; the new name goes first
    add(runs[3], "baseline-pca", "pca", kl=9.0)
    columns, rows = tables.table(tables.group(runs))
    rate = next(row for row in rows if "rate" in row.label)
    found = {c.label: (c.group, cell.text) for c, cell in zip(columns, rate.cells, strict=True)}
    assert found == {
        "prior gaussian": (0, "2"),  # alike in all three: an error of 0
        "on /data/few.npz (prior gaussian)": (0, "2.0 ± 1.0"),
        "on /other/few.npz (prior gaussian)": (0, "5"),
        "prior mixture": (1, "2.00 ± 0.20"),
        "baseline pca (prior mixture)": (1, "9"),
        "on few.npz (prior mixture)": (1, "7"),
    }
    text = read(write_report(runs, tmp_path / "r.html"))
    assert '<th scope="col"><span class="dot c1"></span>on few.npz (prior mixture)</th>' in text


def test_files_of_another_origin_are_left_alone(tmp_path):
    run = make_run(tmp_path / "a")
    for name, value in (("mine", {"kl": 1}), ("list", [1]), ("text", {"format": "2"})):
        (run.path / f"metrics-{name}.json").write_text(json.dumps(value))
    assert len(tables.table(tables.group([run]))[0]) == 1


@pytest.mark.parametrize("content", ["{", '{"format": 1}', '{"format": 1, "on": "x", "kl": []}'])
def test_files_that_cannot_be_read_are_named(content, tmp_path):
    run = make_run(tmp_path / "a")
    (run.path / "metrics-on-x.json").write_text(content)
    with pytest.raises(ValueError, match="metrics-on-x.json must be JSON that evaluate wrote"):
        write_report([run], tmp_path / "r.html")


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({"n": None}, "no number 'n'"),
        ({"log_px_z": "much"}, "no number 'log_px_z'"),
        ({"elbo": []}, "TypeError: "),
        ({"scores": {"mig": {}}}, "KeyError: 'value'"),
    ],
)
def test_a_run_that_is_not_measured_is_one_sentence_and_no_folder(metrics, reason, tmp_path):
    run = make_run(tmp_path / "a")
    (run.path / "metrics.json").write_text(json.dumps(TERMS | metrics))
    with pytest.raises(ValueError, match=r"a.metrics\.json must hold the measures") as error:
        write_report([run], tmp_path / "new" / "r.html")
    assert reason in str(error.value)
    assert str(error.value).endswith(f"Measure it again: pyro-bvae evaluate {run.path}")
    assert not (tmp_path / "new").exists()


def test_notes_say_what_differs_beside_the_number_and_what_is_shared_once(tmp_path):
    def row(*metrics):
        """The row of D over columns of runs with these notes."""
        per_run = [
            [{KEY: tables.Measure(*KEY, 1.0, None, note)} for note in notes] for notes in metrics
        ]
        columns = [tables.Column(str(i), i, False, False, p) for i, p in enumerate(per_run)]
        found = tables._row(KEY, columns)
        return found.note, [cell.note for cell in found.cells]

    KEY = ("divergence", "D")
    half = "all 400 rows as components; {} at half of them".format
    assert row([half(0.134)]) == (half(0.134), [""])
    assert row([half(1)], [half(2)]) == (
        "all 400 rows as components", ["1 at half of them", "2 at half of them"],
    )  # fmt: skip
    assert row([half(1), half(2)]) == ("all 400 rows as components", [""])
    assert row(["40 rows", "50 rows"], ["40 rows"]) == ("", ["by run", "40 rows"])
    assert row([""], ["40 rows"]) == ("", ["", "40 rows"])  # it does not hold of the first


def test_nats_of_other_data_are_not_compared(tmp_path):
    other = dataclasses.replace(CONFIG, likelihood="laplace")
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", config=other)]
    text = read(write_report(runs, tmp_path / "r.html"))
    assert "cannot be held against each other" in text and "Distortion over rate" not in text


def test_names_are_as_long_as_they_must_be(tmp_path):
    def names(*paths):
        return page.display_names([SimpleNamespace(path=tmp_path / path) for path in paths])

    assert names("a/x", "b/y") == ["x", "y"]
    assert names("a/x", "b/x") == ["a/x", "b/x"]
    assert names("a/0", "a/1") == ["a/0", "a/1"] and names("a/0") == ["0"]


# Curves


def test_curves_are_drawn_to_scale():
    line = charts.Line(np.array([0.0, 50, 100]), np.array([0.0, 5, 10]), 0, "<a>")
    figure = ET.fromstring(charts.curves("KL < 1", [line], "step", "nats"))
    (drawn,) = figure.iter("polyline")
    points = np.array([p.split(",") for p in drawn.get("points").split()], float)
    ticks = {t.text: t.attrib for t in figure.iter("text")}
    assert points[2, 0] == pytest.approx(float(ticks["100"]["x"]), abs=0.6)
    assert points[2, 1] == pytest.approx(float(ticks["10"]["y"]) - 4, abs=0.11)
    assert points[1] == pytest.approx(points[[0, 2]].mean(0), abs=0.6)
    assert drawn.find("title").text == "<a>"


def test_a_wild_start_does_not_flatten_the_rest():
    y = np.r_[-1e6, np.linspace(0, 1, 99)]
    line = charts.Line(np.arange(100.0), y, 0, "a")
    figure = ET.fromstring(charts.curves("ELBO", [line], "step", "nats"))
    assert {"0", "0.2", "1"} <= {t.text for t in figure.iter("text")}


def test_long_histories_are_thinned_by_means():
    x = np.arange(1000.0)
    kept, y = charts.thin(x, 2 * x, 50)
    assert len(kept) <= 50 and (kept[0], kept[-1]) == (0, 999)
    np.testing.assert_allclose(y, 2 * kept)
    assert charts.thin(x, x, 1000)[0] is x


@pytest.mark.parametrize("history", [[], [{"step": 1, "kl": math.nan}], [{"step": 3, "kl": 2.0}]])
def test_short_histories(tmp_path, history):
    text = read(write_report([make_run(tmp_path / "a", history=history)], tmp_path / "r.html"))
    finite = history and math.isfinite(history[0]["kl"])
    assert ("<circle" in text) == bool(finite) and ("No history" in text) != bool(finite)


# Pictures and size


def add_pictures(run, size, *names):
    (run.path / "figures").mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    for name in names:
        Image.fromarray(noise).save(run.path / "figures" / f"{name}.png")


def test_pictures_have_captions_and_an_order(tmp_path):
    run = make_run(tmp_path / "a")
    add_pictures(run, 8, "zebra", "samples", "data", "samples-3", "training")
    (run.path / "figures" / "broken.png").write_bytes(b"\x89PNG nothing")
    found = pictures(run.path / "figures", 0, ("training",))
    assert [p.title for p in found] == ["Data", "Samples", "Samples: samples-3", "zebra"]
    assert base64.b64decode(found[0].uri.partition(",")[2])[:4] == b"\x89PNG"
    assert pictures(tmp_path / "nowhere", 0) == []


def test_pictures_shrink_before_they_are_left_out(tmp_path, monkeypatch):
    run = make_run(tmp_path / "a")
    add_pictures(run, 200, "data", "samples")  # 160 kB each in base64
    sizes, texts = [], []
    for limit in (500_000, 250_000, 100_000, 60_000):
        monkeypatch.setattr(report, "LIMIT", limit)
        texts.append(read(write_report([run], tmp_path / "r.html")))
        sizes.append(len(texts[-1].encode()))
        assert sizes[-1] <= limit
    assert "in 256 colours" not in texts[0]
    assert "shown in 256 colours to" in texts[1]
    assert "half their size" in texts[2]
    assert texts[2].count("<img") == 2 and texts[3].count("<img") == 0
    assert "Its pictures would make this page larger" in texts[3]
    assert "decoder" in data_of(tmp_path / "r.html")


def test_decoders_are_left_to_the_first_run_of_every_column(tmp_path, monkeypatch):
    def big(name, seed, beta):
        vae = make_vae(mlp((1, 16, 16), 2, hidden=400)[1])  # about 230 kB
        return make_run(tmp_path / name, vae, dataclasses.replace(CONFIG, seed=seed, beta=beta))

    runs = [big("a", 0, 1.0), big("b", 1, 1.0), big("c", 0, 2.0), big("d", 1, 2.0)]
    monkeypatch.setattr(report, "LIMIT", 700_000)
    out = write_report(runs, tmp_path / "r.html")
    assert out.stat().st_size <= 700_000
    found = [data_of(out, i) for i in range(4)]
    assert ["decoder" in f for f in found] == [True, False, True, False]
    assert "one more decoder would make this page too large" in found[1]["how"]
    assert "strips" in found[1]
    monkeypatch.setattr(report, "LIMIT", 330_000)
    found = [data_of(write_report(runs, out), i) for i in range(4)]
    assert out.stat().st_size <= 330_000
    assert "decoder" in found[0] and found[3].keys() == {"how"}
    assert f"pyro-bvae report {runs[3].path}" in found[3]["how"]
    monkeypatch.setattr(report, "LIMIT", 20_000)
    with pytest.raises(ValueError, match="4 runs must fit 0.02 MB; .* Pass fewer runs"):
        write_report(runs, out)


def test_a_decoder_of_two_million_weights_fits(tmp_path):
    vae = make_vae(mlp((1, 32, 32), 2, hidden=1945)[1])
    count = sum(p.numel() for p in vae.decoder.parameters())
    assert 1_990_000 < count <= 2_000_000
    run = make_run(tmp_path / "a", vae)
    add_pictures(run, 150, "data", "samples")
    out = write_report([run], tmp_path / "r.html")
    assert 4_000_000 < out.stat().st_size <= report.LIMIT == 5_000_000
    assert "decoder" in data_of(out)


# The page


EVIL = "</script><script>hacked=1</script><b>"


def test_everything_is_escaped_and_sealed(tmp_path):
    config = dataclasses.replace(CONFIG, dataset=EVIL, prior_args={EVIL: EVIL})
    run = make_run(tmp_path / "<script>", config=config, diagnosis=[EVIL], bound_on=EVIL)
    (run.path / "environment.json").write_text(json.dumps({"command": [EVIL], "device": EVIL}))
    add_pictures(run, 4, "<b>data")
    other = make_run(tmp_path / "<i>", config=CONFIG)
    text = read(write_report([run, other], tmp_path / "r.html"))
    assert EVIL not in text and "<b>data" not in text and "<i>" not in text
    assert html.escape(EVIL) in text
    assert text.count("<script>") == 1 == text.count('<script>"use strict"')
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)[1]
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in html.unescape(
        policy
    )
    assert not re.search(r"https?://|src=\"(?!data:)|@import|url\(", text)
    assert "<noscript>" in text


def test_json_cannot_end_its_element():
    text = report._json({EVIL: "&<!--"})
    assert not set("<>&") & set(text) and json.loads(text) == {EVIL: "&<!--"}


def test_the_report_leaves_everything_else_as_it_was(tmp_path):
    run = make_run(tmp_path / "a")
    run.vae.train()
    before = torch.get_rng_state()
    assert write_report(
        [run, run], tmp_path / "new" / "r.html"
    ).is_file()  # given twice, shown once
    assert run.vae.training and torch.equal(torch.get_rng_state(), before)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["r.html"]
    assert "<select" not in read(tmp_path / "new" / "r.html")
    first = read(tmp_path / "new" / "r.html")
    assert read(write_report([run], tmp_path / "again.html")) == first


def test_errors(tmp_path):
    run = make_run(tmp_path / "a")
    with pytest.raises(ValueError, match="runs must hold at least one; got none"):
        write_report([], tmp_path / "r.html")
    with pytest.raises(ValueError, match="--out must end in .html; got 'r.pdf'"):
        write_report([run], tmp_path / "r.pdf")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="must lie where one can write; got .*r.html"):
        write_report([run], tmp_path / "file" / "r.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(OSError, match="it is a directory"):
        write_report([run], tmp_path / "folder.html")
    (run.path / "metrics.json").unlink()
    with pytest.raises(FileNotFoundError, match="must hold metrics.json"):
        write_report([run], tmp_path / "r.html")
