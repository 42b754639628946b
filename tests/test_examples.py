"""Every script of ``examples/`` runs with small settings and leaves its metrics and pictures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples"

# Flags beside the common ones, for each script.
EXAMPLES: dict[str, list[str]] = {
    "bigan_digits.py": [],
    "cyclegan.py": [],
    "avb_banana.py": ["--quiet"],
    "demo.py": [],
    "dirac_gan.py": [],
    "empirical_bayes.py": [],
    "gan_si.py": [],
    "gan_zoo.py": [],
    "grid.py": ["--methods", "all", "--seeds", "1"],
    "hierarchy.py": [],
    "latent_variable_vi.py": [],
    "lbt.py": [],
    "semi_implicit_vae.py": ["--quiet"],
    "swapping.py": [],
    "toys.py": [],
    "posteriordb.py": [],
    "several_processes.py": ["--quiet"],
    "sivi_toys.py": ["--targets", "banana,multimodal", "--quiet"],
    "waveform.py": [],
    "conditioned_diffusion.py": [],
    "stacked_mnist.py": ["--size", "s", "--methods", "dcgan,dcgan-si,rpgan-r1r2", "--quiet"],
    "mnist_sig.py": ["--num-mixing", "100,2000", "--quiet"],
    "cifar10.py": ["--width", "8", "--quiet"],
}

# Examples that read files, and what has to be where PYRO_SIG_DATA is.
NEEDED = {
    "posteriordb.py": "posteriordb/INDEX.tsv",
    "waveform.py": "sivi/waveform.npz",
    "conditioned_diffusion.py": "sivi/conditioned_diffusion.npz",
    "stacked_mnist.py": "mnist/train-images-idx3-ubyte.gz",
    "mnist_sig.py": "mnist/train-images-idx3-ubyte.gz",
    "cifar10.py": "cifar10/data_batch_1.bin.xz",
    "semi_implicit_vae.py": "binarized_mnist_packed.npz",
}

# What other scripts import. Alone they print a table and write nothing.
SHARED = {"posteriordb_models.py"}

PNG = b"\x89PNG\r\n\x1a\n"


def test_every_example_is_listed():
    scripts = {p.name for p in FOLDER.glob("*.py") if not p.name.startswith("_")}
    assert scripts == set(EXAMPLES) | SHARED


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, tmp_path):
    data = Path(os.environ.get("PYRO_SIG_DATA", "nowhere")).resolve()
    if name in NEEDED and not (data / NEEDED[name]).is_file():
        pytest.skip(f"PYRO_SIG_DATA has no {NEEDED[name]}")
    out = tmp_path / "out"
    command = [sys.executable, str(FOLDER / name), *EXAMPLES[name]]
    command += ["--smoke", "--seed", "0", "--device", "cpu", "--out", str(out)]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": "Agg", "PYRO_SIG_DATA": str(data)},
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


@pytest.mark.parametrize("name", NEEDED)
def test_example_without_data(name, tmp_path):
    env = {key: value for key, value in os.environ.items() if key != "PYRO_SIG_DATA"}
    for flags, problem in [
        ([], "--data-dir or PYRO_SIG_DATA must be set"),
        (["--data-dir", "nowhere"], str(Path("nowhere", Path(NEEDED[name]).parts[0]))),
    ]:
        result = run_shared(name, *flags, cwd=tmp_path, env=env)
        assert result.returncode == 2
        assert problem in result.stderr
        assert "must hold" in result.stderr
    assert not list(tmp_path.iterdir()), "leaves an output folder"


@pytest.mark.parametrize("name", ["stacked_mnist.py", "mnist_sig.py"])
def test_images_that_are_truncated(name, tmp_path):
    for file in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        path = tmp_path / "data" / "mnist" / f"{file}-ubyte"
        path.parent.mkdir(parents=True, exist_ok=True)
        dims = 3 if "images" in file else 1
        header = bytes([0, 0, 8, dims, 0, 0, 0, 5]) + 2 * bytes([0, 0, 0, 28]) * (dims == 3)
        path.write_bytes(header + bytes(3))
    result = run_shared(name, "--data-dir", "data", cwd=tmp_path, env=os.environ)
    assert result.returncode == 2
    assert "truncated" in result.stderr
    assert "train-images-idx3-ubyte" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["stacked_mnist.py", "mnist_sig.py", "cifar10.py"])
def test_a_device_that_is_not_there(name, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = run_shared(name, "--device", "cuda", cwd=tmp_path, env=os.environ)
    assert result.returncode == 2
    assert "`device` must be" in result.stderr
    assert "Traceback" not in result.stderr


def run_shared(name, *flags, cwd, env):
    return subprocess.run(
        [sys.executable, str(FOLDER / name), *flags],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_posteriordb_models_without_data(tmp_path):
    env = {key: value for key, value in os.environ.items() if key != "PYRO_SIG_DATA"}
    name = "posteriordb_models.py"
    for flags, problem in [
        ([], "--data-dir or PYRO_SIG_DATA must be set"),
        (["--data-dir", "nowhere"], f"no {Path('nowhere', 'posteriordb')}"),
    ]:
        result = run_shared(name, *flags, cwd=tmp_path, env=env)
        assert result.returncode == 2
        assert problem in result.stderr
        assert "https://github.com/stan-dev/posteriordb" in result.stderr


def test_posteriordb_models(tmp_path):
    folder = Path(os.environ.get("PYRO_SIG_DATA", "nowhere")) / "posteriordb"
    if not folder.is_dir():
        pytest.skip("PYRO_SIG_DATA has no posteriordb")
    result = run_shared(
        "posteriordb_models.py",
        "--data-dir",
        str(folder.parent.resolve()),
        cwd=tmp_path,
        env=os.environ,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert len(result.stdout.splitlines()) == 12
    assert not list(tmp_path.iterdir())
