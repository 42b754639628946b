"""Times alternatives in turn, and reads the peak memory of a call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path


def alternate(
    steps: dict[str, Callable[[], object]], repeats: int = 15, seconds: float = 0.4
) -> dict[str, float]:
    """Median seconds of each alternative, over repeats that take turns.

    Each turn runs an alternative often enough to last about ``seconds``, and once before that
    without being timed: what the one before did to caches and to the heap is not its fault.
    """
    counts = {}
    for name, step in steps.items():
        step()
        start = time.perf_counter()
        step()
        counts[name] = max(1, int(seconds / (time.perf_counter() - start + 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            step()
            start = time.perf_counter()
            for _ in range(counts[name]):
                step()
            times[name].append((time.perf_counter() - start) / counts[name])
    return {name: statistics.median(values) for name, values in times.items()}


def added_memory(call: Callable[[], object]) -> float:
    """MiB by which a call raises the process's resident memory at its peak (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"no {field} in /proc/self/status")


def table(title: str, rows: list[tuple[str, str, str]]) -> None:
    """Prints name, figure and remark."""
    print(f"\n{title}")
    for name, figure, remark in rows:
        print(f"  {name:44}{figure:>14}  {remark}")
