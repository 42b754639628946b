"""Runs all benchmarks in one process and writes their figures to out/bench.json."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from tests.bench import adversarial, hierarchy, large_mixing, sivi, steps, streaming, tmc, trainers


def main() -> None:
    """Measures, prints tables, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=sorted({1, torch.get_num_threads()}),
        help="numbers of threads for the training steps; the rest takes the last of them",
    )
    parser.add_argument("--out", type=Path, default=Path("out/bench.json"))
    args = parser.parse_args()
    print(f"torch {torch.__version__}, medians of {args.repeats} repeats that take turns")
    results = streaming.memory()
    for threads in args.threads:
        torch.set_num_threads(threads)
        print(f"\n--- {threads} thread{'s' * (threads > 1)}")
        results |= {f"{k}_threads{threads}": v for k, v in steps.run(args.repeats).items()}
        results |= {f"{k}_threads{threads}": v for k, v in sivi.run(args.repeats).items()}
        results |= {f"{k}_threads{threads}": v for k, v in hierarchy.run(args.repeats).items()}
        results |= {f"{k}_threads{threads}": v for k, v in adversarial.run(args.repeats).items()}
    results |= large_mixing.run(args.repeats)
    results |= trainers.run(args.repeats)
    results |= tmc.run(args.repeats)
    results |= streaming.against_keops(args.repeats)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1))
    print(f"\nwritten to {args.out}")


if __name__ == "__main__":
    main()
