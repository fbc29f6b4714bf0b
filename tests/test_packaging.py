"""The sdist and the wheel built from it: what they hold, and that both work far from the source."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Folders beside the source that are no part of it.
STRANGERS = ".git", ".venv", "runs", "data", "site", "dist", ".mypy_cache"
pytestmark = pytest.mark.slow


def run(*command, cwd, **env):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd, capture_output=True, text=True, env={**os.environ, **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def files():
    """What git has, or would take."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: there is no list of tracked files")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    return {name for name in listed if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def sdist(files, tmp_path_factory):
    # A copy: setuptools builds in the source folder, where an earlier build's files would linger.
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    for name in (*files, *(f"{folder}/file.py" for folder in STRANGERS)):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name if name in files else __file__, source / name)
    # As `python -m build --sdist --no-isolation` does.
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(out)!r})"
    run("-c", code, cwd=source)
    (path,) = out.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    run(
        "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
        "--wheel-dir", str(out), str(sdist), cwd=out,
    )  # fmt: skip
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder of installed packages that holds the wheel; what it needs is found where we have it."""
    target = tmp_path_factory.mktemp("site")
    run(
        "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target),
        str(wheel), cwd=target,
    )  # fmt: skip
    return target


def test_sdist_holds_what_git_has(files, unpacked):
    held = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    made = {"PKG-INFO", "setup.cfg", *(name for name in held if ".egg-info/" in name)}
    assert held - made == files - {".gitignore"}


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


def test_installed_wheel_runs_from_another_directory(site, tmp_path):
    code = "import pyro_bvae, pyro_bvae.cli.main as m; print(pyro_bvae.__file__, m.__file__)"
    for place in run("-c", code, cwd=tmp_path, PYTHONPATH=str(site)).split():
        assert Path(place).is_relative_to(site)
    text = run("-m", "pyro_bvae.cli", "--help", cwd=tmp_path, PYTHONPATH=str(site))
    assert text.startswith("Usage: ") and "train" in text and "sample" in text
    train = "train", "--steps", "3", "--device", "cpu", "--out", "run"
    run(str(site / "bin" / "pyro-bvae"), *train, cwd=tmp_path, PYTHONPATH=str(site))
    assert (tmp_path / "run" / "report.html").is_file()


def test_tests_of_the_sdist_pass_on_the_installed_wheel(unpacked, site, tmp_path):
    chosen = "layout", "schedules", "config", "typing", "contributing", "readme", "results_pages"
    tests = [str(unpacked / "tests" / f"test_{name}.py") for name in chosen]
    said = run("-m", "pytest", "-q", "-n", "0", *tests, cwd=tmp_path, PYTHONPATH=str(site))
    assert " passed" in said and "failed" not in said


def test_programs_are_checked_against_the_installed_types(unpacked, site, tmp_path):
    """By ``mypy --strict``, with no configuration of ours; the file says what has to be reported."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    program = shutil.copy(unpacked / "tests" / "test_typing.py", tmp_path)
    mypy = "-m", "mypy", "--strict", "--config-file", os.devnull
    run(*mypy, program, cwd=tmp_path, PYTHONPATH=str(site))
    with open(program, "a") as file:
        file.write('\n\nVAE(prior="x")\nreveal_type(VAE)\n')
    done = subprocess.run(
        [sys.executable, *mypy, program],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip
    *_, call, arguments, revealed, last = done.stdout.splitlines()
    assert done.returncode == 1 and last.startswith("Found 2 errors"), done.stdout
    assert "[call-arg]" in call + arguments and "[arg-type]" in call + arguments
    assert "beta: " in revealed and revealed.endswith('-> pyro_bvae.vae.VAE"')
