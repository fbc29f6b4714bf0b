"""Examples with packages that only an extra brings: they run, and what they leave is what `fit` returned."""

import json
import runpy
import struct
import sys
from importlib.util import find_spec
from pathlib import Path

import pyro
import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from pyro_bvae import VAE, DecompositionELBO, fit
from pyro_bvae.datasets import spirals
from pyro_bvae.divergences import inclusive_kl
from pyro_bvae.likelihoods import Normal
from pyro_bvae.networks import mlp
from pyro_bvae.priors import Mixture
from pyro_bvae.schedules import linear

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.slow  # their imports alone take seconds


def needs(package):
    reason = f'needs an extra: pip install -e ".[{package}]"'
    return pytest.mark.skipif(find_spec(package) is None, reason=reason)


def run(name, *arguments, monkeypatch, run_name="__main__"):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    return runpy.run_path(str(EXAMPLES / name), run_name=run_name)


def parts():
    pyro.set_rng_seed(1)
    vae = VAE(*mlp((2,), 2, scale=True), Mixture(2, learned=True), Normal("decoder"))
    return vae, DecompositionELBO(2.0, inclusive_kl)


@pytest.mark.filterwarnings("ignore:::lightning")  # of its own parts, and advice
@needs("lightning")
def test_lightning_takes_the_steps_of_fit(monkeypatch):
    """Given the rows in the same order; and it leaves Pyro's parameter store as it was."""
    example = run("lightning_trainer.py", monkeypatch=monkeypatch, run_name="example")
    data, beta = spirals(seed=0), linear(0.0, 1.0, 20)
    ours, objective = parts()
    fit(ours, objective, data, steps=30, batch_size=100, lr=5e-3, schedules={"beta": beta})

    theirs, objective = parts()
    rows = TensorDataset(torch.from_numpy(data.x))
    order = RandomSampler(rows, generator=torch.Generator().manual_seed(0))
    # Batches that are all full: asked for more, the sampler would draw a second order and throw it away.
    # Without a generator the loader would draw from the one that z is drawn from.
    batches = DataLoader(rows, 100, sampler=order, generator=torch.Generator())
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = example["L"].Trainer(max_steps=30, accelerator="cpu", **quiet)
    trainer.fit(example["Decomposition"](theirs, objective, beta, lr=5e-3), batches)

    start, _ = parts()
    pairs = zip(theirs.parameters(), start.parameters(), strict=True)
    for (name, weight), (same, before) in zip(ours.named_parameters(), pairs, strict=True):
        assert torch.equal(weight, same), name
        assert not torch.equal(weight, before), name
    assert not pyro.get_param_store()


@pytest.mark.filterwarnings("ignore:::lightning")
@needs("lightning")
def test_lightning_finds_the_clusters(monkeypatch, capsys):
    run("lightning_trainer.py", monkeypatch=monkeypatch)
    found = capsys.readouterr().out.splitlines()[-1]
    assert found.startswith("4 components used, purity 0.99")


@pytest.fixture
def returned(monkeypatch):
    """What `fit` returned to an example."""
    history = []

    def keeping(*args, **kwargs):
        history.extend(fit(*args, **kwargs))
        return history

    monkeypatch.setattr("pyro_bvae.fit", keeping)
    return history


def by_step(history):
    return {
        record["step"]: {name: value for name, value in record.items() if name != "step"}
        for record in history
    }


@pytest.mark.filterwarnings("ignore:::wandb")
@needs("wandb")
def test_wandb_has_every_number_on_disk(returned, tmp_path, monkeypatch, capfd):
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    run("wandb_logger.py", "--epochs", 3, "--out", tmp_path / "new", monkeypatch=monkeypatch)
    import wandb

    wandb.teardown()  # another process writes the file, and may still be at it when a run is finished
    said = capfd.readouterr().out.splitlines()
    (folder,) = (tmp_path / "new" / "wandb").glob("offline-run-*")
    kl = returned[-1]["kl"]
    assert said[-2:] == [f"C = 10.0 nats, KL {kl:.1f}", f"Wrote 3 records to {folder}"]
    assert abs(kl - 10) < 1
    (file,) = folder.glob("*.wandb")
    assert by_step(logged(file)) == by_step(returned)


def logged(file):
    """The history in a run's file: LevelDB's log format after a head of 7 bytes, records in protobuf."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, block, whole, last = file.read_bytes(), 32768, 1, 4
    place, part, history = 7, b"", []
    while place + 7 <= len(raw):
        if block - place % block < 7:  # no room for a head: padding
            place += block - place % block
            continue
        _, length, kind = struct.unpack("<IHB", raw[place : place + 7])
        part += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (whole, last):
            record, part = Record.FromString(part), b""
            if record.history.item:
                items = {
                    item.nested_key[0]: json.loads(item.value_json) for item in record.history.item
                }
                own = {name: value for name, value in items.items() if name[0] != "_"}
                history.append({"step": items["_step"], **own})
    return history


# MLflow's tables use what SQLAlchemy 2.1 deprecates
@pytest.mark.filterwarnings("ignore:.*noload:DeprecationWarning")
@needs("mlflow")
def test_mlflow_gives_every_number_back(returned, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    run("mlflow_logger.py", "--epochs", 3, "--out", tmp_path / "new", monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'pyro-bvae'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id in said and found.info.status == "FINISHED"
    assert found.data.params == {"epochs": "3", "batch_size": "64", "lr": "0.002"}
    kept = by_step(returned)
    assert found.data.metrics == kept[max(kept)]
    for name in found.data.metrics:
        points = client.get_metric_history(found.info.run_id, name)
        assert {p.step: p.value for p in points} == {step: kept[step][name] for step in kept}, name
