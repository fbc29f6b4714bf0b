"""Sums over pairs: brute force in float64, gradcheck, blocks, accuracy in float32, recorded graphs."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_bvae import pairloop, pairwise
from pyro_bvae.divergences import DIVERGENCES, MMD_SCALES
from pyro_bvae.pairwise import mean_log_mixture, mmd
from pyro_bvae.priors import Gaussian, Mixture

its_own_warning = pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
WIDTHS = tuple(2.0 * s for s in MMD_SCALES)


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks, the last of them incomplete, in each loop over pairs."""
    monkeypatch.setattr(pairwise, "_BLOCK", 16)


@pytest.fixture
def uncompiled(monkeypatch):
    """The loop of `_compiled_pairs` in plain torch, holding all the pairs."""
    monkeypatch.setattr(pairloop, "_loops", {})
    monkeypatch.setattr(pairloop, "_compile", lambda graph, inputs: graph)


def batch(n, dim, dtype=torch.float64, seed=0, spread=1.0, sigma=0.6):
    """z near the components, loc, scale; each wants its gradient."""
    g = torch.Generator().manual_seed(seed)
    loc = spread * (2 * torch.rand(n, dim, generator=g, dtype=torch.float64) - 1)
    scale = sigma * (0.5 + torch.rand(n, dim, generator=g, dtype=torch.float64))
    z = loc + scale * torch.randn(n, dim, generator=g, dtype=torch.float64)
    return [t.to(dtype).requires_grad_() for t in (z, loc, scale)]


def direct_mixture(z, loc, scale, own=None, per_dim=False):
    """The n x B x D form; ``own`` as `mean_log_mixture`."""
    log_w = torch.full((len(z), len(loc)), 1 / len(loc), dtype=z.dtype)
    if own is not None:
        log_w.fill_((1 - own) / (len(loc) - 1)).fill_diagonal_(own)
    log_w = log_w.log()
    square = ((z[:, None] - loc) / scale) ** 2
    each = -0.5 * square - scale.log() - 0.5 * math.log(2 * math.pi)
    if per_dim:
        return torch.logsumexp(each + log_w[..., None], 1).sum(1).mean()
    return torch.logsumexp(each.sum(2) + log_w, 1).mean()


def direct_mmd(x, y, widths, per_dim=False):
    if per_dim:
        columns = zip(x.split(1, 1), y.split(1, 1), strict=True)
        return sum(direct_mmd(a, b, widths) for a, b in columns)
    n, m = len(x), len(y)

    def total(a, b):
        square = ((a[:, None] - b) ** 2).sum(2)
        return sum((c / (c + square)).sum() for c in widths)

    within_x, within_y = total(x, x) - n * len(widths), total(y, y) - m * len(widths)
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * total(x, y) / (n * m)


def value_and_gradients(function, inputs):
    value = function(*inputs)
    return [value.detach(), *torch.autograd.grad(value, inputs)]


def assert_same(function, direct, inputs, rtol=1e-9):
    got, want = value_and_gradients(function, inputs), value_and_gradients(direct, inputs)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * other.abs().max().item())


# Against brute force, and differences


@pytest.mark.parametrize("per_dim", [False, True])
@pytest.mark.parametrize(
    ("n", "own"), [(13, None), (13, 0.0), (13, 0.02), (7, 0.0), (7, 0.02), (40, None)]
)
def test_mean_log_mixture(n, own, per_dim, small_blocks):
    z, loc, scale = batch(13, 3)
    z = torch.cat([z, z - 0.2, z + 0.2, z + 0.5])[:n].detach().requires_grad_()
    assert_same(
        lambda *a: mean_log_mixture(*a, own, per_dim),
        lambda *a: direct_mixture(*a, own, per_dim),
        [z, loc, scale],
    )
    assert torch.autograd.gradcheck(lambda *a: mean_log_mixture(*a, own, per_dim), (z, loc, scale))


def test_a_mixture_of_one_component():
    z, loc, scale = batch(1, 2)
    exact = dist.Normal(loc, scale).log_prob(z).sum()
    for own in (None, 0.1):
        torch.testing.assert_close(mean_log_mixture(z, loc, scale, own), exact)


@pytest.mark.parametrize("per_dim", [False, True])
@pytest.mark.parametrize("m", [11, 17])
def test_mmd(m, per_dim, small_blocks):
    x, y = batch(17, 3)[0], batch(m, 3, seed=1)[0]
    assert_same(
        lambda *a: mmd(*a, WIDTHS, per_dim), lambda *a: direct_mmd(*a, WIDTHS, per_dim), [x, y]
    )
    few = [t.detach()[: m // 2].requires_grad_() for t in (x, y)]
    assert torch.autograd.gradcheck(lambda *a: mmd(*a, WIDTHS, per_dim), few)


FUNCTIONS = {
    "mixture": lambda z, loc, scale: mean_log_mixture(z, loc, scale, 0.01),
    "mixture per dim": lambda z, loc, scale: mean_log_mixture(z, loc, scale, 0.01, True),
    "mmd": lambda x, y, _: mmd(x, y, WIDTHS),
    "mmd per dim": lambda x, y, _: mmd(x, y, WIDTHS, True),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_only_gradients_that_are_wanted(name):
    """Each alone is what it is beside the others; without any the value is the same."""
    inputs = batch(9, 3)[: 3 if "mixture" in name else 2]
    function = FUNCTIONS[name]
    fill = [None] * (3 - len(inputs))
    value, *together = value_and_gradients(lambda *a: function(*a, *fill), inputs)
    for i in range(len(inputs)):
        some = [t if i == j else t.detach() for j, t in enumerate(inputs)]
        alone = torch.autograd.grad(function(*some, *fill), inputs[i])[0]
        torch.testing.assert_close(alone, together[i], rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        plain = function(*inputs, *fill)
    assert not plain.requires_grad
    torch.testing.assert_close(plain, value, rtol=1e-12, atol=1e-14)


def test_x_and_y_may_be_one_tensor():
    x = batch(9, 3)[0]
    for per_dim in (False, True):
        assert_same(
            lambda a, p=per_dim: mmd(a, a, WIDTHS, p),
            lambda a, p=per_dim: direct_mmd(a, a, WIDTHS, p),
            [x],
        )


# Accuracy in float32


def errors(function, inputs, exact):
    """Of the value, absolute; of each gradient, relative to its largest entry."""
    narrow = [t.detach().float().requires_grad_() for t in inputs]
    got = value_and_gradients(function, narrow)
    differences = [(g.double() - e).abs().max().item() for g, e in zip(got, exact, strict=True)]
    sizes = [1.0] + [e.abs().max().item() for e in exact[1:]]
    return [d / s for d, s in zip(differences, sizes, strict=True)]


@pytest.mark.parametrize("dim", [2, 50])
@pytest.mark.parametrize("sigma", [1e-4, 1e-3, 0.01, 0.1, 1.0])
def test_the_expanded_square_is_as_accurate_as_the_direct_form(sigma, dim):
    """Up to |z| = 10, where it cancels most: both in float32, against float64."""
    inputs = [t.detach().float() for t in batch(150, dim, spread=10.0, sigma=sigma)]
    wide = [t.double().requires_grad_() for t in inputs]
    exact = value_and_gradients(direct_mixture, wide)
    ours, direct = errors(mean_log_mixture, inputs, exact), errors(direct_mixture, inputs, exact)
    assert max(direct) > 0
    # measured: .03 to .8 of the direct form's; two roundings are what both may have by luck
    for one, other in zip(ours, direct, strict=True):
        assert one <= other + 2 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("per_dim", [False, True])
@pytest.mark.parametrize(("spread", "sigma"), [(10.0, 1e-3), (1.0, 0.5), (100.0, 1.0)])
def test_mmd_in_single_precision(spread, sigma, per_dim, uncompiled):
    x, y = (batch(150, 10, seed=i, spread=spread, sigma=sigma)[0].detach().float() for i in (0, 1))
    widths = WIDTHS if per_dim else tuple(10 * c for c in WIDTHS)
    wide = [t.double().requires_grad_() for t in (x, y)]
    exact = value_and_gradients(lambda *a: direct_mmd(*a, widths, per_dim), wide)
    loops = [lambda *a: mmd(*a, widths, per_dim)]
    if per_dim:
        loops.append(lambda *a: compiled_mmd(*a, widths))
    for loop in loops:
        value, *gradients = errors(loop, (x, y), exact)
        assert value < 1e-6 * (len(widths) * 10 if per_dim else len(widths))
        assert max(gradients) < 2e-6


# The loop that is compiled


def compiled_mmd(x, y, widths):
    def compute(*inputs, want):
        return pairwise._u_statistic(pairwise._compiled_pairs, *inputs, list(widths), want)

    return pairwise._with_gradients(compute, x, y)


@pytest.mark.parametrize("m", [11, 17])
def test_the_compiled_loop_is_the_same_function(m, uncompiled):
    x, y = batch(17, 3)[0], batch(m, 3, seed=1)[0]
    assert_same(lambda *a: compiled_mmd(*a, WIDTHS), lambda *a: mmd(*a, WIDTHS, True), [x, y])
    assert_same(
        lambda a: compiled_mmd(a, y.detach(), WIDTHS), lambda a: mmd(a, y, WIDTHS, True), [x]
    )


def test_the_quotient_of_polynomials():
    top, bottom = pairloop._quotient((0.5, 2.0))
    assert top == [2.0, 2.5] and bottom == [1.0, 2.5, 1.0]  # (2.5 u + 2)/((u + .5)(u + 2))


@pytest.mark.parametrize("far", [1e3, 1e6, 1e12, 1e19])
def test_points_far_away_count_for_nothing(far, uncompiled):
    """No overflow in float32."""
    x = torch.randn(8, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = x.detach() + far
    for function in (mmd, lambda x, y, w: mmd(x, y, w, True), compiled_mmd):
        value = function(x, y, WIDTHS)
        (gradient,) = torch.autograd.grad(value, x)
        wide = x.detach().double().requires_grad_()
        exact = direct_mmd(wide, y.double(), WIDTHS)
        assert value.item() == pytest.approx(exact.item(), abs=1e-4)
        torch.testing.assert_close(
            gradient.double(), torch.autograd.grad(exact, wide)[0], rtol=0, atol=1e-6
        )


# Memory


class Largest(TorchDispatchMode):
    """The largest number of elements that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.elements = max(self.elements, storage)
        return out


CALLS = [
    ("inclusive-kl", {}),
    ("exclusive-kl", {}),
    ("exclusive-kl", {"estimator": "leave_one_out"}),
    ("mmd", {}),
    ("mmd-per-dim", {}),
    ("total-correlation", {"dataset_size": 10_000}),
]


@pytest.mark.parametrize(("name", "options"), CALLS)
def test_memory_does_not_grow_with_pairs(name, options):
    n, dim = 3000, 2  # n x n is 9,000,000
    _, loc, scale = batch(n, dim, torch.float32)
    prior = Gaussian(dim, learned=True)
    with Largest() as largest:
        q_z = dist.Normal(loc, scale).to_event(1)
        DIVERGENCES[name](q_z, prior(), q_z.rsample(), **options).backward()
    assert n * dim <= largest.elements <= 4 * pairwise._BLOCK
    assert loc.grad.abs().sum() > 0


# Recorded graphs


@pytest.fixture
def unchecked():
    """A value that is checked cannot be recorded."""
    dist.enable_validation(False)
    yield
    dist.enable_validation(True)


OPERATORS = {
    "inclusive-kl": ["mean_log_mixture"],
    "exclusive-kl": ["mean_log_mixture"],
    "mmd": ["mmd"],
    "mmd-per-dim": ["mmd_per_dim"],
    "total-correlation": ["mean_log_mixture"] * 2,
}
PRIORS = {"normal": Gaussian, "mixture": lambda dim: Mixture(dim, 4, learned=True)}


def record(name, prior, batch_size=60, dim=3):
    """D and its gradients as a recorded graph, as plain torch, and inputs for either."""
    options = {"dataset_size": 100} if name == "total-correlation" else {}

    def step(z, loc, scale, parameters):
        p_z = torch.func.functional_call(prior, parameters, ())
        value = DIVERGENCES[name](dist.Normal(loc, scale).to_event(1), p_z, z, **options)
        wanted = [z, loc, scale, *parameters.values()]
        gradients = torch.autograd.grad(value, wanted, allow_unused=True)
        return value.detach(), *(g for g in gradients if g is not None)

    def inputs(seed):
        parameters = {n: p.detach().clone().requires_grad_() for n, p in prior.named_parameters()}
        return *batch(batch_size, dim, torch.float32, seed), parameters

    return make_fx(step)(*inputs(0)), step, inputs(1)


def assert_replays(program, step, inputs, rtol):
    torch.manual_seed(3)
    expected = step(*inputs)
    plain = [t.detach() for t in inputs[:3]]
    with torch.no_grad():
        torch.manual_seed(3)
        got = program(*plain, {n: p.detach() for n, p in inputs[3].items()})
    assert len(got) == len(expected) >= 3 - (len(inputs[3]) == 0)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_recorded_step(name, prior, unchecked, uncompiled, small_blocks):
    """One operator in place of the loops, and other inputs give what they give in plain torch."""
    program, step, inputs = record(name, PRIORS[prior](3))
    ours = [str(n.target) for n in program.graph.nodes if "pyro_bvae" in str(n.target)]
    assert ours == [f"pyro_bvae.{operator}.default" for operator in OPERATORS[name]]
    assert_replays(program, step, inputs, rtol=2e-5 if name == "mmd-per-dim" else 0)


@pytest.mark.slow
@its_own_warning
@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_recorded_step_compiled(name, unchecked):
    import torch._inductor.config

    program, step, inputs = record(name, PRIORS["mixture"](3))
    with torch._inductor.config.patch(fallback_random=True):
        compiled = torch.compile(program)
        assert_replays(compiled, step, inputs, rtol=1e-5)
        assert_replays(compiled, step, inputs, rtol=1e-5)


@pytest.mark.slow
@its_own_warning
def test_the_compiled_loop_of_several_shapes():
    for n, m in ((40, 40), (17, 17), (17, 23)):
        x, y = batch(n, 3)[0], batch(m, 3, seed=1)[0]
        assert_same(lambda *a: compiled_mmd(*a, WIDTHS), lambda *a: mmd(*a, WIDTHS, True), [x, y])
    for n in range(3, 14):  # more shapes than torch.compile takes of one function
        x = batch(n, 2)[0].detach().T.contiguous()
        (value,) = pairloop._sums(pairloop._quotient(WIDTHS), False, x, x)
        torch.testing.assert_close(pairloop.row_sums(WIDTHS, False, x, x)[0], value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("want", [[True, True], [True, False], [False, False]])
def test_operators_return_what_they_announce(want, dtype, uncompiled):
    """Shapes, dtypes and strides of each output, of inputs that are not contiguous; nothing aliased."""
    z, loc, scale = (t.detach().T.contiguous().T for t in batch(7, 3, dtype))
    tests = ("test_schema", "test_faketensor")
    ops = torch.ops.pyro_bvae
    calls = [(op, (z, loc, list(WIDTHS), want)) for op in (ops.mmd, ops.mmd_per_dim)]
    calls += [
        (ops.mean_log_mixture, (z, loc, scale, 0.0, 1 / 6, per_dim, [*want, want[1]]))
        for per_dim in (False, True)
    ]
    for op, arguments in calls:
        found = torch.library.opcheck(op.default, arguments, test_utils=tests)
        assert found == dict.fromkeys(tests, "SUCCESS")


def test_nothing_recorded_needs_no_operator():
    """An operator costs as much as a small sum."""

    class Seen(TorchDispatchMode):
        calls: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls.append(str(func))
            return func(*args, **(kwargs or {}))

    x, y = batch(5, 2)[:2]
    with Seen() as seen:
        mmd(x, y, WIDTHS, True).backward()
    assert seen.calls and not any("pyro_bvae" in call for call in seen.calls)
