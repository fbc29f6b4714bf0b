"""The wheel: what it holds, and that it runs from another directory than the source."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(*command, cwd, **env):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd, capture_output=True, text=True, env={**os.environ, **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # A copy: setuptools builds in the source folder, where an earlier build's files would linger.
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("pyro_bvae", "cli", "tests"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    out = tmp_path_factory.mktemp("wheel")
    run(
        "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
        "--wheel-dir", str(out), str(source), cwd=out,
    )  # fmt: skip
    (path,) = out.glob("*.whl")
    return path


def test_wheel_holds_the_package_and_nothing_beside_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    ours = {
        "pyro_bvae/" + path.relative_to(base).as_posix()
        for base in (ROOT / "pyro_bvae",)
        for path in (*base.rglob("*.py"), *base.rglob("*.toml"))
    } | {"pyro_bvae/cli/" + path.name for path in (ROOT / "cli").glob("*.py")}
    assert ours <= set(names)
    assert {"pyro_bvae/py.typed", "pyro_bvae/cli/main.py"} <= set(names)
    tops = {name.split("/")[0] for name in names}
    (info,) = tops - {"pyro_bvae"}
    assert info.endswith(".dist-info")
    assert not [name for name in names if "__pycache__" in name or "test" in name]


def test_installed_wheel_runs_from_another_directory(wheel, tmp_path):
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(
        "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target),
        str(wheel), cwd=elsewhere,
    )  # fmt: skip
    code = "import pyro_bvae, pyro_bvae.cli.main as m; print(pyro_bvae.__file__, m.__file__)"
    for place in run("-c", code, cwd=elsewhere, PYTHONPATH=str(target)).split():
        assert Path(place).is_relative_to(target)
    text = run("-m", "pyro_bvae.cli", "--help", cwd=elsewhere, PYTHONPATH=str(target))
    assert text.startswith("Usage: ") and "train" in text and "sample" in text
    script = (target / "bin" / "pyro-bvae").read_text()
    assert "from pyro_bvae.cli.main import main" in script
