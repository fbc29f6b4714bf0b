"""What a training leaves behind: modes, pickles, other threads, layouts of weights."""

import copy
import io
import pickle
import threading

import joblib
import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from sklearn.model_selection import cross_val_score
from torch import nn

from pyro_bvae import VAE, DecompositionELBO, fit
from pyro_bvae.datasets import Data
from pyro_bvae.evaluation import evaluate
from pyro_bvae.likelihoods import Normal
from pyro_bvae.networks import mlp
from pyro_bvae.priors import Gaussian, VampPrior
from pyro_bvae.sklearn import DecompositionVAE


def rows(n=40):
    return np.random.default_rng(0).standard_normal((n, 3)).astype(np.float32)


class Normed(nn.Module):
    """An encoder with BatchNorm: in training mode a code depends on its batch."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.loc, self.raw = nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x):
        h = self.body(x)
        return self.loc(h), nn.functional.softplus(self.raw(h)) + 1e-3


def a_vae(encoder=None):
    torch.manual_seed(0)
    return VAE(encoder or mlp((3,), 2)[0], mlp((3,), 2)[1], Gaussian(2), Normal(0.5))


def stops(error):
    def stop(*args):
        raise error

    return stop


@pytest.mark.parametrize("how", ["callback", "on_step", "Ctrl-C", "not finite", "data", "end"])
def test_a_model_is_in_evaluation_mode_after_any_end_of_a_training(how):
    vae, data, options = a_vae(Normed()), Data(rows()), {}
    error = KeyboardInterrupt() if how == "Ctrl-C" else LookupError("stop")
    if how == "callback":
        options = {"callbacks": [stops(error)]}
    elif how in ("on_step", "Ctrl-C"):
        options = {"on_step": stops(error)}
    elif how == "not finite":
        calls, error = [], FloatingPointError()
        options = {
            "transform": lambda x: (calls.append(1), x * (torch.nan if len(calls) > 3 else 1))[1]
        }
    elif how == "data":

        class Gone:
            shape, dtype, reads = (40, 3), np.dtype(np.float32), 0

            def __len__(self):
                return 40

            def __getitem__(self, index):
                self.reads += 1
                if self.reads > 2:
                    raise LookupError("the disk is gone")
                return rows()[index]

        data = Data(Gone())
    if how == "end":
        fit(vae, DecompositionELBO(), data, epochs=2, batch_size=10)
    else:
        with pytest.raises(type(error)):
            fit(vae, DecompositionELBO(), data, epochs=30, batch_size=10, **options)
    assert not any(module.training for module in vae.modules())
    if how == "not finite":  # the statistics of BatchNorm saw it too
        return
    x = torch.from_numpy(rows(5))
    with torch.no_grad():
        torch.testing.assert_close(vae.encode(x)[:1], vae.encode(x[:1]))


def test_gradients_of_other_work_are_no_part_of_a_training():
    found = []
    for stale in (False, True):
        vae = a_vae()
        if stale:
            (1e3 * vae.encode(torch.from_numpy(rows())).square().sum()).backward()
        torch.manual_seed(1)
        fit(vae, DecompositionELBO(), rows(), steps=3)
        assert all(p.grad is None for p in vae.parameters())
        found.append(vae.encode(rows()))
    assert torch.equal(*found)


# ---- pickles -----------------------------------------------------------------------------------


DONE = {
    "nothing": lambda vae, x: None,
    "an SVI step": lambda vae, x: SVI(
        vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()
    ).step(x),
    "loss": lambda vae, x: DecompositionELBO().loss(vae.model, vae.guide, x),
    "terms": lambda vae, x: DecompositionELBO().terms(vae.model, vae.guide, x),
    "fit": lambda vae, x: fit(vae, DecompositionELBO(), x, steps=2),
    "evaluate": lambda vae, x: evaluate(vae, x),
    "check": lambda vae, x: vae.check(x),
}


@pytest.mark.parametrize("done", list(DONE))
def test_a_model_is_pickled_after_anything_was_done_with_it(done, tmp_path):
    vae, x = a_vae(), torch.from_numpy(rows())
    DONE[done](vae, x)
    torch.save(vae, buffer := io.BytesIO())
    joblib.dump(vae, tmp_path / "vae.joblib")
    copies = [
        pickle.loads(pickle.dumps(vae)),
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=False),
        joblib.load(tmp_path / "vae.joblib"),
        copy.deepcopy(vae),
    ]
    for found in copies:
        assert torch.equal(found.encode(x), vae.encode(x))
        fit(found, DecompositionELBO(), x, steps=1)
    if done != "nothing":  # and the model itself goes on
        DONE[done](vae, x)


# ---- threads -----------------------------------------------------------------------------------


def test_threads_score_as_one_after_another_do():
    x = rows(60)
    model = DecompositionVAE(2, epochs=3, random_state=0)
    alone = cross_val_score(model, x, cv=3)
    with joblib.parallel_config("threading", n_jobs=3):
        together = cross_val_score(model, x, cv=3)
    assert np.array_equal(alone, together) and np.isfinite(alone).all()


def in_threads(function, n=3):
    found, threads = {}, []
    for i in range(n):
        threads.append(threading.Thread(target=lambda i=i: found.__setitem__(i, function(i))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[i] for i in range(n)]


def test_trainings_in_threads_take_turns():
    def train(i):
        encoder, decoder = parts[i]
        vae = VAE(encoder, decoder, Gaussian(2), Normal(0.5))
        fit(vae, DecompositionELBO(), rows(), steps=20)
        return all(torch.isfinite(p).all() for p in vae.parameters())

    torch.manual_seed(0)
    parts = [mlp((3,), 2) for _ in range(3)]
    assert in_threads(train) == [True] * 3


def test_samples_in_threads_are_those_of_their_seeds():
    model = DecompositionVAE(2, epochs=2, random_state=0).fit(rows())
    alone = [model.sample(50, random_state=i) for i in range(3)]
    assert all(
        np.array_equal(a, b)
        for a, b in zip(alone, in_threads(lambda i: model.sample(50, i)), strict=True)
    )


def test_a_callback_may_measure_and_train_another_model():
    inner = a_vae()

    def callback(record, state):
        record["elbo_now"] = evaluate(state.vae, rows())["elbo"]
        fit(inner, DecompositionELBO(), rows(), steps=1)

    history = fit(a_vae(), DecompositionELBO(), rows(), epochs=2, callbacks=[callback])
    assert all(np.isfinite(record["elbo_now"]) for record in history)


# ---- dimensions --------------------------------------------------------------------------------


def test_volumes_and_weights_of_five_dimensions_train():
    class Volumes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(1, 4, 2, stride=2)
            self.loc, self.raw = nn.Linear(32, 2), nn.Linear(32, 2)

        def forward(self, x):
            h = self.conv(x).flatten(1)
            return self.loc(h), nn.functional.softplus(self.raw(h))

    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 64), nn.Unflatten(1, (1, 4, 4, 4)))
    vae = VAE(Volumes(), decoder, Gaussian(2), Normal(0.5))
    x = np.random.default_rng(0).random((12, 1, 4, 4, 4), dtype=np.float32)
    before = vae.encoder.conv.weight.detach().clone()
    fit(vae, DecompositionELBO(), x, steps=3)
    assert not torch.equal(before, vae.encoder.conv.weight)
    assert np.isfinite(evaluate(vae, x)["elbo"])


def test_a_vamp_prior_over_volumes_trains():
    torch.manual_seed(0)
    shape = (1, 4, 4, 4)
    encoder = mlp(shape, 2)[0]
    vae = VAE(encoder, mlp(shape, 2)[1], VampPrior(2, 3, shape), Normal(0.5))
    x = np.random.default_rng(0).random((12, *shape), dtype=np.float32)
    before = [p.detach().clone() for p in vae.prior.parameters()]
    fit(vae, DecompositionELBO(), x, steps=3)
    assert all(not torch.equal(a, b) for a, b in zip(before, vae.prior.parameters(), strict=True))


def test_parameters_and_sequences_of_other_ranks_train():
    """One-dimensional convolutions, and a 6-dimensional parameter, keep their layout and move."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.heads = nn.Conv1d(1, 4, 3), nn.Linear(4, 4)
            self.gate = nn.Parameter(torch.ones(1, 1, 1, 1, 1, 4))

        def forward(self, x):
            h = self.heads(self.conv(x[:, None]).flatten(1)) * self.gate.reshape(4)
            return h[:, :2], h[:, 2:].exp()

    vae = a_vae(Odd())
    before = vae.encoder.gate.detach().clone()
    fit(vae, DecompositionELBO(), rows(), steps=2)
    assert not torch.equal(before, vae.encoder.gate)
