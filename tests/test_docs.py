"""The documentation: its Python runs, its commands parse, its tables are the code's, its notebooks were run."""

import inspect
import json
import re
import shlex
from pathlib import Path

import pytest

from pyro_bvae.priors import PRIORS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if page.parent.name not in ("results", "api")]
CODE = {
    page: re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.S | re.M)
    for page in PAGES
}
LONG = ("start.md",)  # it trains with files, figures and a report
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def named(path):
    return path.relative_to(DOCS).as_posix()


def commands(page):
    """Lines of a page that a reader would type, `pyro-bvae ...`."""
    shells = re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.S | re.M)
    lines = [line for shell in shells for line in shell.splitlines()]
    return [line[line.index("pyro-bvae ") :] for line in lines if "pyro-bvae " in line]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page.name in LONG else [])
        for page, blocks in CODE.items()
        if blocks
    ],
    ids=named,
)
def test_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": "page"}
    for block in CODE[page]:
        exec(compile(block, named(page), "exec"), scope)


def test_most_pages_have_python_and_no_fence_goes_unread():
    assert len([page for page in PAGES if CODE[page]]) > 12
    checked = [page for page in PAGES if re.search("^ *assert ", "".join(CODE[page]), re.M)]
    assert checked == [page for page in PAGES if CODE[page]]  # what a page claims, it asserts
    for page in PAGES:
        kinds = set(re.findall(r"^```(\w+)", page.read_text("utf-8"), re.M))
        assert kinds <= {"python", "sh", "text"}, page


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=named)
def test_commands_of_a_page_parse(page):
    from pyro_bvae.cli.main import COMMANDS, main

    for line in commands(page):
        words = shlex.split(line.split("#")[0])
        assert words[1] in COMMANDS, line
        main.get_command(None, words[1]).make_context(words[1], words[2:])


def test_the_table_of_priors_has_every_prior_and_argument():
    text = (DOCS / "priors.md").read_text("utf-8")
    table = {
        row[0].strip("`"): row[3]
        for row in re.findall(r"^\| (\S+) \| (.*?) \| (.*?) \| (.*?) \|", text, re.M)
    }
    assert set(PRIORS) <= set(table)
    filled_in = {"latent_dim", "x", "x_shape"}  # by the command, from the data
    for name, prior in PRIORS.items():
        arguments = set(inspect.signature(prior).parameters) - filled_in
        assert arguments == set(re.findall(r"[a-z]\w+", re.sub(r"true|false", "", table[name]))), (
            name
        )


def test_the_reference_has_every_public_name():
    """Those of architecture: what `pyro_bvae`, its priors, metrics, divergences, ... offer to users."""
    import pyro_bvae
    from pyro_bvae import (
        datasets,
        divergences,
        evaluation,
        likelihoods,
        metrics,
        networks,
        plots,
        priors,
    )

    text = "".join(page.read_text("utf-8") for page in (DOCS / "api").glob("*.md"))
    wanted = [f"pyro_bvae.{name}" for name in pyro_bvae._HOME]
    wanted += [f"pyro_bvae.plots.{name}" for name in plots.__all__ if name != "PALETTE"]
    wanted += [f"pyro_bvae.metrics.{name}" for name in metrics.__all__ if name.islower()]
    wanted += [f"pyro_bvae.priors.{name}" for name in priors.__all__ if name != "PRIORS"]
    for module, table in (
        (divergences, divergences.DIVERGENCES),
        (likelihoods, likelihoods.LIKELIHOODS),
        (networks, networks.NETWORKS),
    ):
        wanted += [f"{module.__name__}.{entry.__name__}" for entry in table.values()]
    wanted += [
        "pyro_bvae.datasets.load_dataset",
        "pyro_bvae.datasets.Data",
        "pyro_bvae.evaluation.evaluate",
    ]
    assert datasets and evaluation
    assert [name for name in wanted if f"::: {name}\n" not in text] == []


def test_readme_and_site_name_the_same_results():
    nav = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = [f"results/{page.name}" for page in (DOCS / "results").glob("*.md")]
    assert [page for page in pages if page not in nav] == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=named)
def test_a_notebook_was_executed_and_shows_pictures(notebook):
    cells = [
        c for c in json.loads(notebook.read_text("utf-8"))["cells"] if c["cell_type"] == "code"
    ]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] in ("error",)]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert notebook.stat().st_size < 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=named)
def test_a_notebook_runs_and_prints_what_it_holds(notebook, tmp_path, monkeypatch, capsys):
    """Its printed numbers, but for the last digits, which hang on the processor."""
    monkeypatch.chdir(tmp_path)
    cells = [
        c for c in json.loads(notebook.read_text("utf-8"))["cells"] if c["cell_type"] == "code"
    ]
    scope: dict = {}
    for cell in cells:
        python = "".join(line for line in cell["source"] if not line.startswith("%"))
        exec(compile(python, notebook.name, "exec"), scope)
        said = capsys.readouterr().out
        held = "".join("".join(o["text"]) for o in cell["outputs"] if o["output_type"] == "stream")
        assert re.sub(r"[\d.]+", "#", said).split() == re.sub(r"[\d.]+", "#", held).split()
