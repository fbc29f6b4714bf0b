"""The floor plan of docs/architecture.md, read from the code: who may import whom."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # before Python 3.11, where pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE, CLI = ROOT / "pyro_bvae", ROOT / "cli"
MAX_LINES = 400

# What each module of ours may import of ours, in the order of docs/architecture.md: nothing reaches
# down the list. A folder is one entry; its own files may import each other. "" is the package itself
# (its version). An import inside a function counts; one under TYPE_CHECKING does not.
MAY_IMPORT = {
    # leaves
    "device": (),
    "schedules": ("device",),
    "kl": (),
    "pairloop": (),
    "pairwise": ("pairloop", "device"),
    "divergences": ("pairwise", "device"),
    "likelihoods": (),
    "networks": (),
    "priors": ("kl",),
    "datasets": (),
    # equations
    "registered": (),
    "parts": ("priors",),
    "vae": ("datasets", "kl", "parts", "priors", "registered", "schedules"),
    "terms": ("kl",),
    "guard": ("datasets", "terms", "vae"),
    "elbo": ("divergences", "priors", "schedules", "terms"),
    # loop
    "watching": (),
    "capture": ("watching",),
    "svi": ("capture", "watching"),
    "optim": (),
    "noise": (),
    "distributed": ("vae",),
    "tally": ("device", "terms"),
    "training": (
        "datasets", "distributed", "elbo", "guard", "noise", "optim", "schedules", "svi", "tally", "terms",
        "vae",
    ),
    # text -> objects
    "writing": (),
    "checkpoint": ("training", "writing"),
    "config": (),
    "build": (
        "config", "datasets", "device", "divergences", "elbo", "likelihoods", "networks", "priors",
        "schedules", "terms", "training", "vae",
    ),
    # reading
    "metrics": (),
    "evaluation": ("datasets", "device", "divergences", "guard", "kl", "metrics", "pairwise", "vae"),
    "plots": (),
    "traversal": ("vae",),
    "figures": (
        "datasets", "evaluation", "plots", "training", "traversal", "vae", "writing",
    ),
    # disk
    "measuring": (
        "build", "config", "datasets", "evaluation", "figures", "metrics", "training", "vae",
        "writing",
    ),
    "environment": ("", "config", "vae", "writing"),
    "faults": ("build", "checkpoint", "config"),
    "runs": (
        "build", "checkpoint", "config", "device", "distributed", "environment", "evaluation", "faults",
        "measuring", "training", "vae", "writing",
    ),
    "export": ("", "vae", "writing"),
    "tensorboard": ("tally", "training", "writing"),
    "report": ("", "writing", "config", "evaluation", "likelihoods", "networks", "plots", "traversal", "vae"),
    "sweep": ("config", "datasets", "evaluation", "report", "runs", "writing"),
    "sklearn": (
        "build", "config", "datasets", "divergences", "elbo", "likelihoods", "networks", "noise", "priors",
        "training", "vae",
    ),
    "recipes": ("config", "sweep"),
    "reproduce": (
        "build", "config", "evaluation", "figures", "measuring", "plots", "recipes", "report", "runs", "sweep",
        "vae", "writing",
    ),
    # the public names, resolved lazily
    "": (),
    # command line
    "cli": (),
    "cli.errors": (),
    "cli.options": ("config",),
    "cli.listing": ("cli.options", "config", "recipes"),
    "cli.process": (),
    "cli.doctor": ("build", "cli.options", "config", "datasets", "training"),
    "cli.table": ("evaluation",),
    "cli.sample": ("cli.errors", "cli.options", "figures", "runs", "writing"),
    "cli.traverse": ("cli.errors", "cli.options", "figures", "runs", "writing"),
    "cli.export": ("cli.errors", "cli.options", "export", "runs", "writing"),
    "cli.evaluate": (
        "cli.errors", "cli.options", "cli.process", "cli.table", "config", "measuring", "metrics", "runs",
        "writing",
    ),
    "cli.report": ("cli.errors", "cli.options", "report", "runs", "writing"),
    "cli.sweep": ("cli.errors", "cli.options", "cli.process", "cli.table", "report", "sweep"),
    "cli.train": (
        "cli.errors", "cli.options", "cli.process", "cli.sweep", "cli.table", "config", "datasets", "recipes",
        "report", "runs", "tensorboard", "writing",
    ),
    "cli.reproduce": (
        "build", "cli.errors", "cli.options", "cli.process", "cli.sweep", "datasets", "device", "recipes",
        "reproduce", "sweep",
    ),
    "cli.main": ("", "cli.errors", "cli.process", "config"),
    "cli.__main__": ("cli.main",),
    "__main__": ("cli.main",),
}  # fmt: skip
TORCH_FREE = (
    "", "config", "cli.errors", "cli.options", "cli.listing", "cli.main", "cli.process",
    "cli.__main__", "__main__",
)  # fmt: skip

# docs/architecture.md, "Names that users and tests rely on", as far as they exist.
PUBLIC = {
    "": "VAE CapacityELBO DecompositionELBO ElboTerms fit train Config Run load_run",
    "priors": "Gaussian StudentT Laplace Mixture SpikeSlab Cross VampPrior Flow check_prior PRIORS",
    "likelihoods": "Bernoulli ContinuousBernoulli Normal Laplace LIKELIHOODS",
    "divergences": "inclusive_kl exclusive_kl mmd mmd_per_dim total_correlation DIVERGENCES",
    "schedules": "constant linear cyclic",
    "datasets": "Data load_dataset spirals render_dsprites DATASETS",
    "metrics": (
        "beta_vae_score factor_vae_score mig aam dci sap modularity explicitness irs mcc udr hoyer "
        "sharpness active_units cluster_scores Score METRICS"
    ),
    "evaluation": "evaluate log_marginal",
    "svi": "CompiledSVI",
    "sweep": "Sweep read_sweep over_seeds run_sweep",
    "sklearn": "DecompositionVAE",
}


def files():
    return sorted([*PACKAGE.rglob("*.py"), *CLI.rglob("*.py")])


def dotted(path):
    """pyro_bvae/priors/check.py -> priors.check; cli/main.py -> cli.main; an __init__ its folder."""
    base, prefix = (CLI, ["cli"]) if path.is_relative_to(CLI) else (PACKAGE, [])
    parts = prefix + list(path.relative_to(base).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def entry(module):
    """The entry of the table that ``module`` belongs to: its first part, or cli's whole name."""
    if module.split(".")[0] == "cli":
        return module
    return module.split(".")[0]


def resolve(package, node):
    """Modules of ours, without the leading pyro_bvae, that an import statement of `package` names."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
        return [
            n.removeprefix("pyro_bvae").removeprefix(".") for n in names if n.split(".")[0] in OURS
        ]
    if node.level == 0:
        if (node.module or "").split(".")[0] not in OURS:
            return []
        base = node.module.removeprefix("pyro_bvae").removeprefix(".")
    else:
        up = package.split(".") if package else []
        kept = up[: len(up) - node.level + 1]
        base = ".".join([*kept, *([node.module] if node.module else [])])
    # `from package import name`: name is a module where a file is called so, else an attribute.
    names = [f"{base}.{alias.name}".removeprefix(".") for alias in node.names]
    return [name if name in MODULES else base for name in names]


OURS = ("pyro_bvae", "cli")
MODULES = {dotted(path) for path in files()}


def imports(path, lazy=True):
    """Modules of ours that `path` imports; without `lazy`, only those of its top level."""
    module = dotted(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    pending = list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= set(resolve(package, node))
        if lazy or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            pending += list(ast.iter_child_nodes(node))
    return found


def test_every_file_stands_in_the_table():
    assert {entry(module) for module in MODULES} == set(MAY_IMPORT), "list new files in MAY_IMPORT"


@pytest.mark.parametrize("path", files(), ids=dotted)
def test_imports_are_those_of_the_table(path):
    own = entry(dotted(path))
    reached = {entry(name) for name in imports(path)} - {own}
    unlisted = reached - set(MAY_IMPORT[own])
    assert not unlisted, f"{own} may not import {sorted(unlisted)}"


def test_no_module_imports_one_that_stands_above_it():
    """The table itself has no cycle: every import points to an earlier entry."""
    done = {""}
    rest = dict(MAY_IMPORT)
    while rest:
        ready = [name for name, allowed in rest.items() if set(allowed) <= done]
        assert ready, f"a cycle among {sorted(rest)}"
        done |= set(ready)
        rest = {name: allowed for name, allowed in rest.items() if name not in ready}


def test_the_reader_of_imports_sees_each_form():
    def of(package, line):
        return resolve(package, ast.parse(line).body[0])

    assert of("", "from . import plots") == ["plots"]
    assert of("", "from . import __version__") == [""]
    assert of("", "from .priors.check import check_prior") == ["priors.check"]
    assert of("priors", "from .check import check_prior") == ["priors.check"]
    assert of("priors", "from ..vae import VAE") == ["vae"]
    assert of("cli", "from pyro_bvae import config") == ["config"]
    assert of("cli", "from pyro_bvae.runs import train") == ["runs"]
    assert of("cli", "from .errors import fail") == ["cli.errors"]
    assert of("cli", "import pyro_bvae.runs") == ["runs"]
    assert of("cli", "import pyro.infer") == of("cli", "from torch import nn") == []


@pytest.mark.parametrize("name", TORCH_FREE)
def test_torch_free_modules_name_no_torch_at_their_top(name):
    (path,) = (path for path in files() if dotted(path) == name)
    tree = ast.parse(path.read_text())
    named = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            named |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            named.add(str(node.module).split(".")[0])
    assert not named & {"torch", "pyro", "numpy", "matplotlib", "sklearn", "torchvision", "h5py"}
    assert {entry(i) for i in imports(path, lazy=False)} <= set(TORCH_FREE)


@pytest.mark.parametrize("path", files(), ids=dotted)
def test_no_file_is_too_long(path):
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines: split it"


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_resolve(module):
    package = importlib.import_module("pyro_bvae")
    owner = getattr(package, module) if module else package
    missing = [name for name in PUBLIC[module].split() if not hasattr(owner, name)]
    assert not missing
    assert set(PUBLIC[module].split() if not module else [module]) <= set(dir(package))


def test_every_name_of_all_resolves_and_others_do_not():
    package = importlib.import_module("pyro_bvae")
    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError, match="module 'pyro_bvae' has no attribute 'vea'"):
        package.vea  # noqa: B018


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, pyro_bvae; assert 'VAE' in dir(pyro_bvae); before = 'torch' in sys.modules; "
        "from pyro_bvae import Config; middle = 'torch' in sys.modules; "
        "pyro_bvae.VAE; print(before, middle, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False", "True"], done.stderr


def test_packages_of_pyproject_are_the_folders():
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        "pyro_bvae" if path.parent == PACKAGE else "pyro_bvae." + dotted(path)
        for path in files()
        if path.name == "__init__.py"
    }
    assert sorted(tables["packages"]) == sorted(folders)
    assert tables["package-dir"] == {"pyro_bvae": "pyro_bvae", "pyro_bvae.cli": "cli"}
    assert (PACKAGE / "py.typed").is_file()
    assert "py.typed" in tables["package-data"]["pyro_bvae"]


def test_every_folder_of_python_files_is_a_package():
    without = {path.parent for path in files() if not (path.parent / "__init__.py").is_file()}
    assert not without


def test_no_path_of_one_machine():
    """Neither in code nor in prose: other people's machines have no such folders."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: there is no list of tracked files")
    pattern = re.compile("/wor" + "k/|/tm" + "p/[a-z]")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z",
         "*.py", "*.md", "*.toml"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    tracked = [ROOT / name for name in listed if name and (ROOT / name).is_file()]
    assert len(tracked) > 20
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found
