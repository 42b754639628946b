"""The example under torchrun, with two processes; `tests/test_examples.py` runs it as one."""

import json
import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "several_processes.py"


def test_two_processes(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    flags = ["--smoke", "--quiet", "--methods", "data,mixing", "--out", str(tmp_path / "out")]
    result = subprocess.run(
        [*launch, str(EXAMPLE), *flags],
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["processes"] == 2
    assert set(metrics["methods"]) == {"data", "mixing"}
    assert (tmp_path / "out" / "several_processes.png").is_file()
    assert result.stdout.count("ms a step") == 1  # the first process only
