"""The aggregate posterior: the split of the rate against loops and closed forms, D over all the rows."""

import functools
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyro_bvae import divergences
from pyro_bvae.divergences import exclusive_kl, inclusive_kl, mmd_per_dim, total_correlation
from pyro_bvae.evaluation import Codes, aggregate, aggregate_divergence, information
from pyro_bvae.evaluation.aggregate import outside
from pyro_bvae.priors import Flow, Gaussian, Laplace, Mixture, SpikeSlab

SPLIT = ("mutual_information", "aggregate_kl", "total_correlation", "dimension_wise_kl")


class Model:
    """All that is asked of a model here is its prior."""

    def __init__(self, prior):
        self.p_z = prior


def codes_of(loc, scale, diagonal=True):
    """Codes of posteriors placed by hand, with one sample each and their KL to N(0, I)."""
    z = loc + scale * torch.randn_like(loc)
    kl = (0.5 * (loc**2 + scale**2 - 1) - scale.log()).sum(1)
    return Codes(loc, scale, z, torch.zeros(len(loc)), kl, None, True, diagonal)


def in_floats(part):
    return part.float() if isinstance(part, torch.Tensor) else part


def scattered(n=60, dim=3):
    generator = torch.Generator().manual_seed(1)
    loc = 1.5 * torch.randn(n, dim, dtype=torch.float64, generator=generator)
    scale = 0.2 + torch.rand(n, dim, dtype=torch.float64, generator=generator)
    return codes_of(loc, scale)


# ---- the parts of the rate ---------------------------------------------------------------------


def normal(z, loc, scale):
    return math.exp(-0.5 * ((z - loc) / scale) ** 2) / (scale * math.sqrt(2 * math.pi))


def by_loops(codes, rows, log_p):
    """log q(z|x), log q(z), sum_d log q(z_d), log p(z) and H[p(m|z)], one number at a time."""
    loc, scale, z = (part.tolist() for part in codes[:3])
    n, dims = len(loc), range(len(loc[0]))
    terms = []
    for i in rows:
        each = [[normal(z[i][d], loc[m][d], scale[m][d]) for d in dims] for m in range(n)]
        joint = [math.prod(one) for one in each]
        share = [p / sum(joint) for p in joint]
        terms.append(
            (
                math.log(joint[i]),
                math.log(sum(joint) / n),
                sum(math.log(sum(one[d] for one in each) / n) for d in dims),
                log_p(torch.tensor(z[i], dtype=torch.float64)).item(),
                -sum(p * math.log(p) for p in share if p > 0),
            )
        )
    return np.array(terms).T


@pytest.mark.parametrize("prior", [Gaussian(3, scale=0.8), Laplace(3)])
@pytest.mark.parametrize("max_rows", [2000, 25])
@pytest.mark.parametrize("block", [1 << 19, 130, 1])
def test_every_number_against_loops(prior, max_rows, block, monkeypatch):
    monkeypatch.setattr(aggregate, "_BLOCK", block)
    codes, n = scattered(), min(60, max_rows)
    torch.manual_seed(2)
    rows = torch.randperm(60)[:max_rows].tolist()
    own, joint, product, log_p, entropy = by_loops(codes, rows, prior().log_prob)
    torch.manual_seed(2)
    out = information(Model(prior), codes, max_rows)
    terms = (own - joint, joint - log_p, joint - product, product - log_p)
    for name, values in zip(SPLIT, terms, strict=True):
        assert out.pop(name) == pytest.approx(values.mean(), rel=1e-10), name
        assert out.pop(f"{name}_se") == pytest.approx(values.std(ddof=1) / math.sqrt(n), rel=1e-10)
    assert out == {
        "overlap": pytest.approx(math.exp(entropy.mean()), rel=1e-10),
        "aggregate_components": 60,
        "aggregate_samples": n,
        "log_components": math.log(60),
        "information_bounded": bool((own - joint).mean() > math.log(60) - 1),
    }


def test_the_parts_add_up_to_the_rate_at_the_same_z():
    codes, prior = scattered(), Gaussian(3)
    out = information(Model(prior), codes)
    q_z = dist.Normal(codes.loc, codes.scale).to_event(1)
    rate = (q_z.log_prob(codes.z) - prior().log_prob(codes.z)).mean().item()
    i, kl, tc, dimension_wise = (out[name] for name in SPLIT)
    assert i + kl == pytest.approx(rate, rel=1e-12)
    assert tc + dimension_wise == pytest.approx(kl, rel=1e-12)


def gaussian_codes(covariance, s, n=4000):
    """Means N(0, S - s^2 I), so that q(z) is N(0, S) but for the sampling of the means."""
    d = len(covariance)
    root = torch.linalg.cholesky(covariance - s**2 * torch.eye(d) + 1e-9 * torch.eye(d))
    return codes_of(torch.randn(n, d) @ root.T, torch.full((n, d), s))


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.84])
def test_a_gaussian_aggregate_in_closed_form(correlation):
    s, variance = 0.4, 1.2
    off = correlation * variance
    out = information(
        Model(Gaussian(2)),
        gaussian_codes(torch.tensor([[variance, off], [off, variance]]), s),
        max_rows=4000,
    )
    log_det = 2 * math.log(variance) + math.log(1 - correlation**2)
    expected = {
        "mutual_information": 0.5 * log_det - 2 * math.log(s),
        "aggregate_kl": 0.5 * (2 * variance - 2 - log_det),
        "total_correlation": -0.5 * math.log(1 - correlation**2),
        "dimension_wise_kl": variance - 1 - math.log(variance),
    }
    for name, value in expected.items():
        # The means are a sample as much as the z are; the bias is below .01.
        noise = 4 * math.sqrt(2) * out[f"{name}_se"]
        assert out[name] == pytest.approx(value, abs=noise + 0.01), name
        assert noise < 0.13
    assert not out["information_bounded"]
    # M exp(-I), as far as one z a row says both.
    error = 4 * math.sqrt(2) * out["mutual_information_se"]
    assert math.log(out["overlap"] / 4000) == pytest.approx(-out["mutual_information"], abs=error)


def test_posteriors_far_apart_are_a_look_up_table():
    loc = 10.0 * torch.arange(50.0)[:, None].expand(50, 2)
    out = information(Model(Gaussian(2)), codes_of(loc, torch.full((50, 2), 0.1)))
    assert out["mutual_information"] == pytest.approx(math.log(50), rel=1e-5)
    assert out["overlap"] == pytest.approx(1.0, rel=1e-5)
    assert out["information_bounded"]
    # Either latent says the row: knowing one is knowing the other.
    assert out["total_correlation"] == pytest.approx(math.log(50), rel=1e-4)


def test_equal_posteriors_carry_nothing():
    codes = codes_of(torch.zeros(50, 2), torch.ones(50, 2))
    out = information(Model(Gaussian(2)), codes)
    for name in SPLIT:
        assert out[name] == pytest.approx(0.0, abs=1e-5)
    assert out["overlap"] == pytest.approx(50, rel=1e-5)
    assert not out["information_bounded"]


@pytest.mark.parametrize("far, bounded", [(35, True), (8, False)])
def test_information_within_1_nat_of_log_m_is_a_bound(far, bounded):
    """50 rows, of which ``far`` stand apart and the others share one posterior."""
    loc = torch.zeros(50, 1)
    loc[:far, 0] = 10.0 * torch.arange(1, far + 1)
    out = information(Model(Gaussian(1)), codes_of(loc, torch.full((50, 1), 0.1)))
    shared = (50 - far) / 50
    expected = math.log(50) - shared * math.log(50 - far)
    assert out["mutual_information"] == pytest.approx(expected, abs=1e-4)
    assert out["information_bounded"] == bounded == (expected > math.log(50) - 1)


@pytest.mark.parametrize(
    "prior, factorises", [(Mixture(3), False), (Flow(3), False), (SpikeSlab(3), True)]
)
def test_a_prior_that_does_not_factorise_has_no_dimension_wise_kl(prior, factorises):
    codes = scattered()
    floats = Codes(*map(in_floats, codes))
    with torch.no_grad():
        out = information(Model(prior), floats)
    assert (out["dimension_wise_kl"] is not None) == factorises
    assert (out["dimension_wise_kl_se"] is not None) == factorises
    assert math.isfinite(out["aggregate_kl"]) and math.isfinite(out["total_correlation"])


def test_posteriors_that_loc_and_scale_do_not_describe_are_not_split():
    codes = scattered()._replace(diagonal=False)
    out = information(Model(Gaussian(3)), codes)
    known = {"aggregate_components": 60, "aggregate_samples": 60, "log_components": math.log(60)}
    names = {*SPLIT, *(f"{name}_se" for name in SPLIT), "overlap", "information_bounded"}
    assert out == known | dict.fromkeys(names)


# ---- divergences over all the data -------------------------------------------------------------


@pytest.mark.parametrize("max_rows, n", [(2_000, 40), (40, 40), (7, 7)])
def test_a_divergence_sees_every_posterior_and_samples_of_the_first_rows(max_rows, n):
    codes, seen = scattered(40), []

    def spy(q_z, p_z, z):
        seen.append((q_z, p_z, z))
        return torch.tensor(1.5)

    torch.manual_seed(4)
    out = aggregate_divergence(Model(Gaussian(3)), codes, functools.partial(spy), max_rows)
    rate = codes.kl.mean().item()
    assert out == {
        "divergence": 1.5,
        "divergence_at_half": 1.5,
        "divergence_components": 40,
        "rate_minus_log_components": pytest.approx(rate - math.log(40), rel=1e-6),
    }
    (q_z, p_z, z), (half, _, z_half) = seen
    assert torch.equal(half.mean, q_z.mean[:20]) and torch.equal(z_half, z[:20][: len(z_half)])
    assert q_z.batch_shape == (40,) and p_z.batch_shape == () and z.shape == (n, 3)
    # Every row once, in an order of its own, and z_i of the i-th.
    rows = torch.cdist(q_z.mean, codes.loc).argmin(1)
    assert sorted(rows.tolist()) == list(range(40)) != rows.tolist()
    assert torch.equal(q_z.mean, codes.loc[rows]) and torch.equal(q_z.stddev, codes.scale[rows])
    assert torch.equal(z, codes.z[rows[:n]])


@pytest.mark.parametrize("divergence", [inclusive_kl, mmd_per_dim])
def test_divergence_over_all_rows_equals_the_direct_one(divergence):
    codes, model = scattered(40), Model(Gaussian(3))
    torch.manual_seed(4)
    order = torch.randperm(40)
    q_z = dist.Normal(codes.loc[order], codes.scale[order]).to_event(1)
    direct = divergence(q_z, model.p_z(), codes.z[order], n_samples=1000).item()
    by_name = functools.partial(divergence, n_samples=1000)
    torch.manual_seed(4)
    out = aggregate_divergence(model, codes, by_name)
    assert out["divergence"] == pytest.approx(direct, rel=1e-6)
    torch.manual_seed(4)
    several = aggregate.divergences(model, codes, {"mine": by_name})
    assert several == {
        "divergences": {"mine": pytest.approx(direct, rel=1e-6)},
        "divergences_components": 40,
    }


def test_without_diagonal_posteriors_there_is_no_kl():
    whole, model = Codes(*map(in_floats, scattered(40))), Model(Gaussian(3))
    codes = whole._replace(diagonal=False)
    by_name = {name: divergences.DIVERGENCES[name] for name in ("mmd", "mmd-per-dim")}
    by_name["partial"] = functools.partial(mmd_per_dim, n_samples=50)
    by_name |= {name: divergences.DIVERGENCES[name] for name in ("inclusive-kl", "exclusive-kl")}
    torch.manual_seed(4)
    out = aggregate.divergences(model, codes, by_name)["divergences"]
    assert out["inclusive-kl"] is None and out["exclusive-kl"] is None
    torch.manual_seed(4)  # samples are all that the others look at
    same = aggregate.divergences(model, whole, by_name)["divergences"]
    for name in ("mmd", "mmd-per-dim", "partial"):
        assert out[name] == same[name] and math.isfinite(out[name])
    out = aggregate_divergence(model, codes, inclusive_kl)
    assert out["divergence"] is None and out["divergence_at_half"] is None
    assert out["divergence_components"] == 40


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize(
    "divergence, estimator",
    [
        (functools.partial(inclusive_kl, n_samples=4_000), None),
        (exclusive_kl, "batch"),
        (exclusive_kl, "mss"),
        (total_correlation, "batch"),
        (total_correlation, "mss"),
        (mmd_per_dim, None),
    ],
)
def test_divergence_of_an_aggregate_that_is_the_prior_is_near_zero(divergence, estimator, dim):
    """loc ~ N(0, 1 - s^2), scale s = .6: q(z) is N(0, I), sampled by n posteriors that overlap."""
    n, model = 6_000, Model(Gaussian(dim))
    codes = gaussian_codes(torch.eye(dim), 0.6, n)
    if estimator is not None:
        size = {"dataset_size": n} if estimator == "mss" else {}
        divergence = functools.partial(divergence, estimator=estimator, **size)
    value = aggregate_divergence(model, codes, divergence)["divergence"]
    # The bias, about E[q(z|x)^2 / q(z)^2] / 2n, is below .002 here; the rest is the noise of n rows.
    assert abs(value) < (0.02 if divergence is mmd_per_dim else 0.005)
    # And not because it is always so.
    far = codes._replace(loc=codes.loc + 1.0, z=codes.z + 1.0)  # KL(N(1, I) || N(0, I)) = D / 2
    value = aggregate_divergence(model, far, divergence)["divergence"]
    if "total" in getattr(divergence, "func", divergence).__name__:
        assert abs(value) < 0.02  # the prior is no part of it
    else:
        assert value > 0.4 * dim


@pytest.mark.parametrize("divergence", [exclusive_kl, total_correlation])
def test_half_the_rows_are_weighed_as_a_data_set_of_their_own(divergence):
    """The name of the run's estimator is bound with the size of its data, which half of it has not."""
    model, mss = Model(Gaussian(2)), functools.partial(divergence, estimator="mss")
    codes = gaussian_codes(torch.eye(2), 0.6, 2_000)  # q(z) is N(0, I): D is 0
    out = aggregate_divergence(model, codes, functools.partial(mss, dataset_size=2_000))
    # As above, E[q(z|x)^2 / q(z)^2] / 2n of bias, below .006 at half, and the noise of its rows.
    assert abs(out["divergence"]) < 0.02 and abs(out["divergence_at_half"]) < 0.02
    few = gaussian_codes(torch.eye(2), 0.05, 400)  # posteriors that hardly overlap: D is biased
    torch.manual_seed(4)
    out = aggregate_divergence(model, few, functools.partial(mss, dataset_size=400))
    torch.manual_seed(4)
    half = torch.randperm(400)[:200]
    q_z = dist.Normal(few.loc[half], few.scale[half]).to_event(1)
    direct = mss(q_z, model.p_z(), few.z[half], dataset_size=200).item()
    assert out["divergence_at_half"] == pytest.approx(direct, rel=1e-5)
    # Fewer components, more bias; told of 400 rows, a half would be biased no more than the whole.
    assert out["divergence_at_half"] > 1.2 * out["divergence"] > 0


def test_inclusive_kl_draws_many_prior_samples_unless_told():
    drawn = []

    def counting():
        p_z = Gaussian(3)()
        rsample = p_z.rsample
        p_z.rsample = lambda shape: drawn.append(shape[0]) or rsample(shape)
        return p_z

    codes = scattered(40)
    aggregate_divergence(Model(counting), codes, inclusive_kl)
    aggregate_divergence(Model(counting), codes, functools.partial(inclusive_kl, n_samples=7))
    assert drawn == [20_000, 20_000, 7, 7]


@pytest.mark.parametrize(("spread", "biased"), [(0.34, True), (1.0, False)])
def test_narrow_posteriors_leave_the_prior_outside(spread, biased):
    """4,000 codes N(0, spread^2) with posteriors of scale .05, whose aggregate is N(0, spread^2 + .05^2).

    At spread .34 KL(p || q) is 5.3 nats and the estimate ten times that, on half the rows too; rate - log n
    is far below 1. At spread 1 it is 0, and nearly so is the estimate.
    """
    generator = torch.Generator().manual_seed(0)
    loc = spread * torch.randn(4000, 2, generator=generator)
    scale = torch.full_like(loc, 0.05)
    variance = spread**2 + 0.05**2
    exact = 1 / variance - 1 + math.log(variance)
    q_z, p_z = dist.Normal(loc, scale).to_event(1), dist.Normal(torch.zeros(2), 1.0).to_event(1)
    z = torch.randn(1000, 2, generator=generator)
    estimate = inclusive_kl(q_z, p_z, loc, n_samples=1000).item()
    found = outside(loc, scale, z)
    far = (torch.cdist(z, loc).amin(1) / 0.05).square() > -2 * math.log(
        0.001
    )  # of chi-squared with 2
    assert found == pytest.approx(far.float().mean().item(), abs=0.01)
    assert (estimate > 5 * exact + 1) == biased == (found > 0.05)
