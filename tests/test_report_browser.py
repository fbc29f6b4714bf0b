"""The report in a real browser: its decoder against torch, sliders, starts, fallbacks, no network."""

import base64
import dataclasses
import io
import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pyro_bvae.config import Config
from pyro_bvae.likelihoods import Bernoulli, ContinuousBernoulli, Laplace, Normal
from pyro_bvae.networks import NETWORKS, Decoder, mlp
from pyro_bvae.priors import Gaussian
from pyro_bvae.report import write_report
from pyro_bvae.runs import Run
from pyro_bvae.vae import VAE

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROME = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROME and DRIVER), reason="no chromium with chromedriver on the path"
)
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update"
)
EVIL = "<img src=x onerror=hacked=1></script><script>hacked=1</script>"
# name: network, shape of x, latents, classes, likelihood
MODELS = {
    "points": ("mlp", (2,), 2, 0, Normal("decoder")),
    "table": ("mlp", (7,), 3, 0, Laplace("learned")),
    "conditional": ("mlp", (1, 8, 8), 10, 10, Bernoulli()),
    "dcgan32": ("dcgan32", (1, 32, 32), 50, 0, Laplace(0.1)),
    "conv-bn": ("conv-bn", (3, 32, 32), 6, 3, Bernoulli()),
    "burgess": ("burgess", (1, 32, 32), 4, 0, Normal("decoder")),
    "higgins64": ("higgins64", (1, 64, 64), 10, 0, ContinuousBernoulli()),
}
NAMES = [*MODELS, "layers", "own-layer", "large", "logits"]


class Wave(nn.Module):
    """A layer that no page knows."""

    def forward(self, x):
        return torch.sin(x)


def make_model(name):
    """A decoder with weights large enough that every latent is seen, and statistics of its own."""
    if name == "logits":  # z themselves, and halves of them
        encoder, _ = mlp((1, 2, 2), 2)
        layer = nn.Linear(2, 4, bias=False)
        layer.weight.data = torch.tensor([[1.0, 0], [0, 1], [0.5, 0], [0, 0.5]])
        decoder = Decoder(nn.Sequential(layer), (1, 2, 2), False)
        return VAE(encoder, decoder, Gaussian(2), ContinuousBernoulli()).eval(), (1, 2, 2)
    if name == "layers":  # those that no decoder of ours has, with sides and strides that differ
        shape, latents, classes, likelihood = (3, 2, 2), 2, 0, Normal(0.3)
        body = nn.Sequential(
            *(nn.BatchNorm1d(2), nn.Linear(2, 24), nn.ELU(0.7), nn.Unflatten(1, (6, 2, 2))),
            *(nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 5, (3, 2), (2, 3), (1, 0), (1, 0))),
            *(nn.BatchNorm2d(5), nn.LeakyReLU(0.3), nn.Conv2d(5, 4, (2, 3), (1, 2), (0, 1))),
            *(nn.Tanh(), nn.ConvTranspose2d(4, 3, 2), nn.Softplus(2.0), nn.Flatten()),
            *(nn.Linear(48, 8), nn.Sigmoid(), nn.Linear(8, 12)),
        )
        parts = mlp(shape, latents)[0], Decoder(body, shape, False)
    elif name in MODELS:
        network, shape, latents, classes, likelihood = MODELS[name]
        scale = getattr(likelihood, "per_pixel", False)
        parts = NETWORKS[network](shape, latents, classes, scale)
    else:
        shape, latents, classes, likelihood = (1, 8, 8), 3, 0, Bernoulli()
        encoder, _ = mlp(shape, latents)
        hidden, last = (20, Wave()) if name == "own-layer" else (31_000, nn.Identity())
        body = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 64), last)
        parts = encoder, Decoder(body, shape, False)
    vae = VAE(*parts, Gaussian(latents), likelihood, 1.0, classes).eval()
    with torch.no_grad():
        for module in vae.decoder.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.normal_()
                module.running_var.uniform_(0.3, 3)
                module.weight.normal_(1, 0.2)
                module.bias.normal_(0, 0.3)
            elif getattr(module, "weight", None) is not None:
                fan = module.weight[0].numel()
                if isinstance(module, nn.ConvTranspose2d):
                    fan = module.weight.numel() / module.out_channels / math.prod(module.stride)
                module.weight.normal_(0, math.sqrt(2 / fan))
        if name == "burgess":
            vae.decoder.body[-1].bias[1] = -60  # a scale at its floor
        if isinstance(likelihood, ContinuousBernoulli):  # whose mean is close to 1/2 within +-1
            vae.decoder.body[-1].weight *= 10
    return vae, shape


def make_run(path, name, seed):
    vae, shape = make_model(name)
    latents = vae.p_z().event_shape[0]
    path.mkdir()
    (path / "figures").mkdir()
    metrics = {"n": 16, "log_px_z": -1.0, "kl": 2.0, "elbo": -3.0, "bound_on": "log p(x)"}
    kl = torch.rand(latents)
    metrics |= {"kl_per_latent": kl.tolist(), "latents": latents, "diagnosis": [EVIL]}
    (path / "metrics.json").write_text(json.dumps(metrics))
    arrays = {"x": torch.rand(16, *shape).numpy(), "loc": torch.randn(16, latents).numpy()}
    arrays["scale"] = np.ones_like(arrays["loc"])
    if vae.n_classes:
        arrays["labels"] = np.arange(16)[::-1] % vae.n_classes
    np.savez(path / "examples.npz", **arrays)
    config = Config(dataset=EVIL, latent_dim=latents, network="mlp", seed=seed)
    history = [{"step": step, "kl": float(step), "test_kl": 1.0} for step in range(5)]
    return Run(path, dataclasses.replace(config, lr=0.1 + seed / 100), vae, history)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("<b>runs")
    return {name: make_run(folder / name, name, i) for i, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROME
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(20)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def opened(browser, runs, tmp_path_factory):
    path = write_report(list(runs.values()), tmp_path_factory.mktemp("out") / "report.html")
    for log in ("performance", "browser"):  # of the empty first tab
        browser.get_log(log)
    browser.get(path.as_uri())
    return browser


@pytest.fixture
def page(opened):
    """The page, and a function that chooses a run by its name as a reader does."""

    def choose(name):
        opened.execute_script(
            "const s = document.querySelector('#choose-run'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('change'))",
            str(NAMES.index(name)),
        )
        settle(opened)

    return opened, choose


def settle(browser):
    """Until the run is loaded and two more frames are drawn."""
    browser.execute_async_script(
        "const done = arguments[0];"
        "pyroBvae.ready().then(() => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )


def state(browser):
    return browser.execute_script("return pyroBvae.state()")


def pixels(browser, nth=0):
    """The canvas of that number as (height, width, 4) bytes."""
    uri = browser.execute_script(
        "return document.querySelectorAll('.pair canvas')[arguments[0]].toDataURL('image/png')", nth
    )
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGBA")).astype(int)


def shown(browser):
    """The picture as (channels, height, width) in [0, 1]."""
    return pixels(browser)[..., :3].transpose(2, 0, 1) / 255


def torch_mean(vae, z, label):
    labels = None if label is None else torch.tensor([label])
    with torch.no_grad():
        return vae.p_x(torch.tensor([z], dtype=torch.float32), labels)


def set_slider(browser, latent, value):
    browser.execute_script(
        "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
        "s.dispatchEvent(new Event('input', {bubbles: true}))",
        f"z{latent}",
        value,
    )
    settle(browser)


@pytest.mark.parametrize("name", [*MODELS, "layers"])
def test_the_decoder_of_the_page_is_the_one_of_torch(page, runs, name):
    browser, choose = page
    choose(name)
    vae = runs[name].vae
    seen = []
    for i, z in enumerate(torch.randn(3, vae.p_z().event_shape[0]).tolist()):
        label = i if vae.n_classes else None
        out = browser.execute_script(
            "const {mean, sd} = pyroBvae.decode(arguments[0], arguments[1]);"
            "return [[...mean], sd && [...sd]]",
            z,
            label,
        )
        p_x = torch_mean(vae, z, label)
        expected = p_x.mean.flatten()
        size = max(1, expected.abs().max().item())
        torch.testing.assert_close(torch.tensor(out[0]), expected, atol=1e-2 * size, rtol=0)
        seen.append(expected)
        if isinstance(vae.likelihood, (Normal, Laplace)):
            sd = torch.tensor(out[1])
            torch.testing.assert_close(sd, p_x.stddev.flatten(), atol=1e-4, rtol=2e-2)
    assert torch.stack(seen).std(0).mean() > 0.05  # else any decoder would pass


def test_mean_of_the_continuous_bernoulli_at_any_logit(page):
    browser, choose = page
    choose("logits")
    z = [(0.0, 0.03), (1e-4, 0.06), (-0.04, -2.0), (9.0, -9.0), (-20.0, 200.0), (-800.0, 50.0)]
    script = "return arguments[0].map((z) => [...pyroBvae.decode(z, null).mean])"
    means = torch.tensor(browser.execute_script(script, z), dtype=torch.float64)
    z = torch.tensor(z, dtype=torch.float64)
    logits = torch.cat([z, z / 2], 1)
    far = 1 / (1 - (-logits).exp()) - 1 / logits
    expected = torch.where(logits.abs() < 0.05, 0.5 + logits / 12 - logits**3 / 720, far)
    torch.testing.assert_close(means, expected, atol=1e-6, rtol=0)


def test_sliders_move_jointly_by_keys_and_by_pointer(page, runs):
    browser, choose = page
    choose("conv-bn")
    before = state(browser)
    ids = [e.get_attribute("id") for e in browser.find_elements("css selector", ".slider input")]
    kl = runs["conv-bn"].metrics["kl_per_latent"]
    assert ids == [f"z{i}" for i in np.argsort(kl)[::-1]]
    label = browser.find_element("css selector", f"label[for={ids[0]}]").text
    assert label == f"{ids[0]} {max(kl):.1f} nats"
    first, second = int(ids[0][1:]), int(ids[1][1:])
    slider = browser.find_element("id", ids[0])
    start = float(slider.get_attribute("value"))
    slider.send_keys("\ue014" * 12)  # arrow right
    set_slider(browser, second, -1.5)
    z = state(browser)["z"]
    assert z[first] == pytest.approx(start + 12 * 0.05, abs=1e-6)
    assert z[second] == pytest.approx(-1.5, abs=0.026)
    others = [i for i in range(6) if i not in (first, second)]
    assert [z[i] for i in others] == [before["z"][i] for i in others]
    assert slider.get_attribute("aria-valuetext") == f"{z[first]:.2f}"
    expected = torch_mean(runs["conv-bn"].vae, z, before["label"]).mean[0]
    assert np.abs(shown(browser) - expected.numpy()).max() < 1e-2 + 1 / 255


def test_starts_and_classes(page, runs):
    browser, choose = page
    choose("conv-bn")
    run = runs["conv-bn"]
    browser.find_elements("css selector", ".examples button")[4].click()
    settle(browser)
    now = state(browser)
    np.testing.assert_allclose(now["z"], run.examples["loc"][4], rtol=1e-3)
    assert now["label"] == run.examples["labels"][4] and now["example"] == 4
    original = pixels(browser, 1)[..., :3].transpose(2, 0, 1) / 255
    assert np.abs(original - run.examples["x"][4]).max() < 1 / 255
    browser.execute_script(
        "const s = document.querySelector('#class'); s.value = '1';"
        "s.dispatchEvent(new Event('change'))"
    )
    settle(browser)
    assert state(browser)["label"] == 1 != now["label"]
    expected = torch_mean(run.vae, now["z"], 1).mean[0].numpy()
    assert np.abs(shown(browser) - expected).max() < 1e-2 + 1 / 255
    middle, draw = browser.find_elements("css selector", ".starts > button")
    middle.click()
    assert state(browser)["z"] == [0] * 6
    draw.click()
    drawn = json.loads(opened_json(browser, "conv-bn"))["draws"]
    assert state(browser)["z"] in drawn and len(drawn) == 32
    assert draw.get_attribute("aria-pressed") == "true" != middle.get_attribute("aria-pressed")


def opened_json(browser, name):
    found = browser.find_element("id", f"run-{NAMES.index(name)}")
    return found.get_attribute("textContent")


def test_a_point_and_its_scale_lie_where_torch_puts_them(page, runs):
    browser, choose = page
    choose("points")
    set_slider(browser, 0, 1.0)
    p_x = torch_mean(runs["points"].vae, state(browser)["z"], None)
    data = json.loads(opened_json(browser, "points"))
    (x0, y0), (x1, y1) = data["low"], data["high"]
    unit = 640 / (1.1 * max(x1 - x0, y1 - y0))
    (x, y), sd = p_x.mean[0].tolist(), (p_x.stddev[0] * unit).tolist()
    column, row = 320 + (x - (x0 + x1) / 2) * unit, 320 - (y - (y0 + y1) / 2) * unit
    image = pixels(browser)[..., :3]
    accent = np.array([0, 0x72, 0xB2])
    assert (image[round(row), round(column)] == accent).all()
    edge = (column + sd[0], row), (column, row - sd[1])
    for a, b in [(a, b) for a, b in edge if 0 <= a < 640 and 0 <= b < 640]:
        around = image[max(0, round(b) - 2) : round(b) + 3, max(0, round(a) - 2) : round(a) + 3]
        assert (np.abs(around - accent).sum(-1) < 30).any()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("own-layer", "since this page does not know the layer Wave()"),
        ("large", "2,108,064 weights"),
    ],
)
def test_a_decoder_the_page_cannot_run_is_shown_by_strips(page, runs, name, why):
    browser, choose = page
    choose(name)
    text = browser.find_element("id", "traversal").text
    assert "decoded beforehand, one latent moved at a time" in text and why in text
    vae, codes = runs[name].vae, runs[name].examples["loc"]

    def matches(z):
        expected = torch_mean(vae, z, None).mean[0].numpy()
        return np.abs(shown(browser) - expected).max() < 1e-2

    assert matches(codes[0].tolist())
    browser.find_elements("css selector", ".starts button")[1].click()
    settle(browser)
    assert matches(codes[1].tolist())
    for latent, column in ((0, 8), (2, 1)):  # the second leaves the first at its start
        set_slider(browser, latent, column)
        z = state(browser)["z"]
        assert [z[i] for i in range(3) if i != latent] == pytest.approx(
            [codes[1][i] for i in range(3) if i != latent], rel=1e-3
        )
        assert abs(z[latent] - codes[1][latent]) > 0.1 and matches(z)


def test_choosing_a_run_changes_sliders_and_pictures(page):
    browser, choose = page
    for name, sliders in (("dcgan32", 50), ("table", 3)):
        choose(name)
        assert len(browser.find_elements("css selector", ".slider")) == sliders
        boxes = browser.find_elements("css selector", "[data-pictures]")
        assert [b.is_displayed() for b in boxes] == [n == name for n in NAMES]
    canvas = pixels(browser)
    set_slider(browser, 0, 2.0)
    assert (pixels(browser) != canvas).any()


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_runs_off_the_side(page, width):
    browser, choose = page
    view = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
    try:
        for name in ("points", "table", "conv-bn", "large"):
            choose(name)
            browser.execute_script(
                "document.querySelectorAll('details').forEach(d => d.open = true)"
            )
            wide = browser.execute_script("return document.documentElement.scrollWidth")
            assert wide <= width, name
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_names_that_look_like_markup_are_text(page):
    browser, _ = page
    assert browser.execute_script("return typeof hacked") == "undefined"
    assert EVIL in browser.find_element("css selector", "body").get_property("textContent")
    assert not browser.find_elements("css selector", "main img[src=x]")


def test_no_request_and_no_complaint(page):
    """Over every run, and all that other tests did before."""
    browser, choose = page
    for name in NAMES:
        choose(name)
    events = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    asked = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    assert asked and {url.split(":")[0] for url in asked} <= {"file", "data"}
    assert sum(url.startswith("file:") for url in asked) == 1  # the page itself
    assert [e for e in browser.get_log("browser") if e["level"] in ("SEVERE", "WARNING")] == []
