"""The README tells the truth: its commands are CI's, its code runs."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    "python3 -m venv .venv && .venv/bin/pip install -e . "
    "&& .venv/bin/pyro-bvae train --prior mixture --alpha 1",
    'python3 -m venv .venv && .venv/bin/pip install -e ".[test]" && .venv/bin/python -m pytest',
]
CODE = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def code(having):
    (block,) = [block for block in CODE if having in block]
    return block


@pytest.mark.parametrize("command", COMMANDS)
def test_the_two_commands_stand_in_readme_and_ci(command):
    assert f"    {command}\n" in README.split("## ")[0]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_readme_names_only_files_that_exist():
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_readme_commands_parse():
    from pyro_bvae.cli.main import COMMANDS as known
    from pyro_bvae.cli.main import main

    lines = [line.split() for line in README.splitlines() if line.startswith("    pyro-bvae ")]
    assert len(lines) >= 8
    for words in lines:
        assert words[1] in known
        command = main.get_command(None, words[1])
        command.make_context(words[1], list(words[2:]))


def test_readme_prior_of_ones_own():
    from pyro_bvae.priors import check_prior

    scope: dict = {}
    exec(code("class Ring"), scope)
    assert check_prior(scope["Ring"](), 2).startswith("ok: integrates to")


@pytest.mark.parametrize(("having", "last"), [("import METRICS", 0.8), ("DecompositionVAE", 0.85)])
def test_readme_python_prints_scores_that_are_good(having, last, capsys):
    exec(code(having), {})
    assert last < float(capsys.readouterr().out.split()[0]) <= 1


@pytest.mark.slow
def test_readme_python_finds_the_four_clusters(tmp_path):
    script = tmp_path / "readme.py"
    script.write_text(code("DecompositionELBO(alpha"))
    metrics = runpy.run_path(str(script))["metrics"]
    assert metrics["components_used"] == 4
    assert metrics["purity"] >= 0.98
