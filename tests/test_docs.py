"""The documentation names every public object and example, and the code it shows runs."""

import importlib
import re
from pathlib import Path

import pytest

from tests.test_examples import EXAMPLES
from tests.test_public_api import OBJECTS

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if "_build" not in path.parts and "jupyter_execute" not in path.parts
)

# Blocks of one page share their names, as a reader who types them one after the other has them.
CODE = re.compile(r"^```(?:python|\{code-cell\}[^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def code_blocks(path):
    """Return the Python blocks of a page without the options of executed cells."""
    blocks = CODE.findall(path.read_text())
    return [re.sub(r"^:[a-z-]+:.*\n", "", block, flags=re.MULTILINE) for block in blocks]


def test_every_public_name_is_on_an_api_page():
    pages = "\n".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    documented = set()
    for name in re.findall(r"\.\. automodule:: (\S+)", pages):
        module = importlib.import_module(name)
        documented |= {id(getattr(module, attribute)) for attribute in module.__all__}
    for name in re.findall(r"\.\. auto(?:class|function):: (\S+)", pages):
        module, _, attribute = name.rpartition(".")
        documented.add(id(getattr(importlib.import_module(module), attribute)))
    # What a user imports: `pyro_sig.part.name`. Deeper modules are where it is written.
    missing = [
        name for name, value in OBJECTS if name.count(".") == 2 and id(value) not in documented
    ]
    assert not missing


@pytest.mark.parametrize("page", ["README.md", "docs/examples.md", "examples/README.md"])
@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_named(page, example):
    assert example in (ROOT / page).read_text()


WITH_CODE = [path for path in PAGES if code_blocks(path)]


@pytest.mark.parametrize("path", WITH_CODE, ids=[str(p.relative_to(ROOT)) for p in WITH_CODE])
def test_code_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, block in enumerate(code_blocks(path)):
        exec(compile(block, f"{path.name}, block {number}", "exec"), names)
