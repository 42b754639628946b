"""Every script of ``examples/`` runs with small settings and leaves its metrics and pictures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples"

# Flags beside the common ones, for each script.
EXAMPLES: dict[str, list[str]] = {
    "demo.py": [],
    "grid.py": ["--methods", "sig", "--seeds", "1"],
    "toys.py": [],
}

PNG = b"\x89PNG\r\n\x1a\n"


def test_every_example_is_listed():
    scripts = {p.name for p in FOLDER.glob("*.py") if not p.name.startswith("_")}
    assert scripts == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, str(FOLDER / name), *EXAMPLES[name]]
    command += ["--smoke", "--seed", "0", "--device", "cpu", "--out", str(out)]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]

    metrics = json.loads((out / "metrics.json").read_text())
    assert isinstance(metrics, dict)
    assert metrics

    pictures = list(out.glob("*.png"))
    assert pictures
    for picture in pictures:
        assert picture.read_bytes().startswith(PNG), picture.name
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "writes outside its output folder"
