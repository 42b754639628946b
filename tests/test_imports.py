"""Imports inside the package run one way, and importing it is light and changes no global."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyro_sig

PACKAGE = Path(pyro_sig.__file__).parent

# What each part of the package may import from beside itself. The root module holds the version
# only, so every part may import that.
ARROWS: dict[str, set[str]] = {
    "__init__": {"_cite"},
    "_arguments": set(),
    "_cite": set(),
    "_functions": {"_arguments"},
    "nn": {"_arguments"},
    "datasets": {"_arguments", "_show_settings"},
    "checkpoint": {"_arguments", "_elbo_state", "_program_player", "_program_run", "_random_state"},
    "_elbo_state": set(),
    "_program_player": {"_arguments"},
    "_program_run": set(),
    "_random_state": set(),
    "_release": set(),
    "_optimizers": set(),
    "_progress": set(),
    "_rank_sum": {"_arguments", "_random_state"},
    "_show_settings": set(),
    "distributions": {
        "_arguments",
        "_functions",
        "_program_run",
        "_random_state",
        "_rank_sum",
        "_show_settings",
    },
    "infer": {
        "distributions",
        "diagnostics",
        "nn",
        "checkpoint",
        "_arguments",
        "_functions",
        "_optimizers",
        "_program_run",
        "_progress",
        "_random_state",
        "_rank_sum",
        "_show_settings",
    },
    "distributed": {
        "adversarial",
        "_arguments",
        "_optimizers",
        "_program_run",
        "_random_state",
        "_rank_sum",
    },
    "adversarial": {
        "distributions",
        "nn",
        "checkpoint",
        "_arguments",
        "_elbo_state",
        "_functions",
        "_program_player",
        "_program_run",
        "_random_state",
        "_release",
        "_show_settings",
    },
    "diagnostics": {
        "distributions",
        "nn",
        "_arguments",
        "_functions",
        "_progress",
        "_random_state",
        "_release",
    },
}

# What a module may import when it is loaded. Anything else loads in the function that uses it.
AT_IMPORT = {"numpy", "opt_einsum", "pyro", "torch", "tqdm"} | set(sys.stdlib_module_names)

# What the package may import anywhere: its dependencies, what they bring, and what an error message
# tells the user to install.
ANYWHERE = AT_IMPORT | {"arviz", "filelock", "matplotlib", "pandas", "scipy", "sklearn", "xarray"}


def module_name(path: Path, package: Path = PACKAGE) -> str:
    """Return the dotted name of the module in ``path``; a package keeps its ``__init__``."""
    return ".".join(path.relative_to(package.parent).with_suffix("").parts)


def part(name: str) -> str:
    """Return the part of the package that a dotted module name belongs to."""
    names = name.split(".")
    return names[1] if len(names) > 1 else "__init__"


def imported(tree: ast.AST, name: str) -> Iterator[tuple[ast.stmt, str]]:
    """Yield each import statement of module ``name`` with each dotted name it imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*name.split(".")[: -node.level], *filter(None, [base])])
            if base == "pyro_sig":
                for alias in node.names:
                    yield node, f"pyro_sig.{alias.name}"
            else:
                yield node, base


def is_part(name: str, parts: set[str]) -> bool:
    """Tell a part of the package from a name that the root module defines."""
    return part(name) in parts and part(name) != "__init__"


def forbidden(source: str, name: str, parts: set[str]) -> list[str]:
    """Return the arrows from module ``name`` that :data:`ARROWS` does not allow."""
    own = part(name)
    found = []
    for node, target in imported(ast.parse(source), name):
        top = target.split(".")[0]
        line = f"{name}:{node.lineno} imports {target}"
        if top == "pyro_sig":
            if is_part(target, parts) and part(target) not in ARROWS[own] | {own}:
                found.append(line)
        elif top not in ANYWHERE:
            found.append(line)
    return found


def at_import(tree: ast.Module) -> ast.Module:
    """Return the tree without function bodies and ``if TYPE_CHECKING:`` blocks."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node):  # noqa: N802
            return None

        visit_AsyncFunctionDef = visit_FunctionDef

        def visit_If(self, node):  # noqa: N802
            if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                return None
            return self.generic_visit(node)

    return Strip().visit(tree)


MODULES = sorted(PACKAGE.rglob("*.py"))
PARTS = {part(module_name(path)) for path in MODULES}
BY_NAME = pytest.mark.parametrize("path", MODULES, ids=module_name)


def test_every_part_has_its_arrows_stated():
    assert PARTS <= set(ARROWS), "state in ARROWS what the new part may import"


@BY_NAME
def test_arrows(path):
    assert not forbidden(path.read_text(), module_name(path), PARTS)


@BY_NAME
def test_optional_packages_load_late(path):
    tree = at_import(ast.parse(path.read_text()))
    tops = {target.split(".")[0] for _, target in imported(tree, module_name(path))}
    assert tops <= AT_IMPORT | {"pyro_sig"}


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("pyro_sig.nn", "from pyro_sig import datasets"),
        ("pyro_sig.distributions.implicit", "from pyro_sig.infer import train"),
        ("pyro_sig.distributions.implicit", "from ..infer import train"),
        ("pyro_sig.distributions.__init__", "from .. import nn"),
        ("pyro_sig.diagnostics.coverage", "import pyro_sig.infer.training"),
        ("pyro_sig.infer.training", "def f():\n    import examples.demo"),
        ("pyro_sig.infer.training", "import pandas_profiling"),
    ],
)
def test_planted_arrow_is_found(name, source):
    assert forbidden(source, name, set(ARROWS))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("pyro_sig.infer.training", "from ..distributions import Implicit"),
        ("pyro_sig.infer.training", "from .progress import bar"),
        ("pyro_sig.infer.__init__", "from .training import train"),
        ("pyro_sig.nn", "from pyro_sig import __version__"),
    ],
)
def test_allowed_arrow_passes(name, source):
    assert not forbidden(source, name, set(ARROWS))


LIGHT = """
import importlib, random, sys, warnings
import numpy, pyro, torch

def state():
    return {
        "dtype": torch.get_default_dtype(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "validation": (torch.distributions.Distribution._validate_args, pyro.settings.get()),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "rng": (
            torch.get_rng_state().tolist(),
            str(numpy.random.get_state()),
            random.getstate(),
        ),
        "printing": str(numpy.get_printoptions()),
        "warnings": list(warnings.filters),
        "params": sorted(pyro.get_param_store().keys()),
    }

before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
after = state()
changed = [key for key in before if before[key] != after[key]]
assert not changed, f"importing changed: {changed}"
heavy = {"arviz", "matplotlib", "sklearn"} & set(sys.modules)
assert not heavy, f"importing loaded: {sorted(heavy)}"
"""


def test_import_is_light_and_changes_no_global():
    names = ["pyro_sig"] + [f"pyro_sig.{name}" for name in sorted(PARTS - {"__init__"})]
    result = subprocess.run(
        [sys.executable, "-c", LIGHT, *names], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
