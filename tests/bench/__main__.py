"""Runs all benchmarks in one process and writes their figures to out/bench.json."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from tests.bench import steps, streaming, tmc


def main() -> None:
    """Measures, prints tables, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("out/bench.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, medians of {args.repeats} repeats")
    results = {
        **streaming.memory(),
        **steps.run(args.repeats),
        **tmc.run(args.repeats),
        **streaming.against_keops(args.repeats),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1))
    print(f"\nwritten to {args.out}")


if __name__ == "__main__":
    main()
