"""Every wrong formula is noticed: no test of the package passes whatever the code does."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.counts import COUNTS
from tests.faults.mutants import MUTANTS

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
PARTS = ("pyro_sig", "tests", "examples", "pyproject.toml", "conftest.py")


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the package and its tests, to break."""
    folder = tmp_path_factory.mktemp("house")
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    return folder


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.module}-{m.right[:24].strip()}")
def test_a_wrong_formula_is_noticed(house, mutant):
    path = house / "pyro_sig" / mutant.module
    text = path.read_text()
    assert text.count(mutant.right) == 1, "the line is no longer there, or twice"
    path.write_text(text.replace(mutant.right, mutant.wrong))
    try:
        output = run_tests(house, *(f"tests/{place}" for place in mutant.tests.split()))
    finally:
        path.write_text(text)
    failed = re.findall(r"^FAILED (.+?)(?: - .*)?$", output, re.MULTILINE)
    tried, killed = map(int, COUNTS.get("mutants", "0 tried, 0 killed").split()[::2])
    COUNTS["mutants"] = f"{tried + 1} tried, {killed + bool(failed)} killed"
    assert failed, output[-2000:]
    # It is the wrong formula that fails there, and nothing else.
    again = run_tests(house, failed[0])
    assert " passed" in again and " failed" not in again, again[-2000:]


def run_tests(house, *places):
    """Runs tests up to the first failure; returns what pytest writes."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            *("-m", "not slow and not cuda and not bench and not faults"),
            *places,
        ],
        cwd=house,
        env={**os.environ, "PYTHONPATH": str(house)},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    return done.stdout
