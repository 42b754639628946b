"""Large mixing: memory at M = 1,000,000, time against M, and the noise of the chosen gradient."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_sig.distributions import Implicit, Responsibility, SemiImplicit, TopK
from pyro_sig.infer import gradient_noise
from pyro_sig.nn import MLP
from tests.bench.measure import added_memory, alternate, table

NUM_DATA = 64
NOISE_MIXING = 10_000
MODES = ("exact", "responsibility", "top")
# The exact mode has no chunk of its own. From 2048 to 16384 its time is the same; below 32 MiB
# of psi in a chunk, what glibc's heap cannot give back adds up to 1.5 GiB at M = 1,000,000.
EXACT_CHUNK = 16384


def _normal(scale: float, psi: Tensor) -> dist.Independent:
    return dist.Normal(psi, scale).to_event(1)


class Generator:
    """MLP(10, [100], D) with a Normal conditional; the data are draws of another such network."""

    def __init__(self, dim: int, scale: float) -> None:
        torch.manual_seed(0)
        noise = dist.Normal(torch.zeros(10), 1.0).to_event(1)
        self.scale = scale
        self.net = MLP(10, [100], dim)
        self.mixing = Implicit(self.net, noise, dim)
        with torch.no_grad():
            other = MLP(10, [100], dim)
            self.x = other(torch.randn(NUM_DATA, 10)) + scale * torch.randn(NUM_DATA, dim)

    def loss(self, backward: str | Responsibility | TopK, num_mixing: int) -> Tensor:
        p = SemiImplicit(
            self.mixing,
            lambda psi: dist.Normal(psi, self.scale).to_event(1),
            num_mixing,
            chunk_size=EXACT_CHUNK if backward == "exact" else None,
            backward=backward,
        )
        return -p.log_prob(self.x).sum()

    def step(self, backward: str | Responsibility | TopK, num_mixing: int) -> None:
        self.net.zero_grad()
        self.loss(backward, num_mixing).backward()


def _memory_of(backward: str) -> float:
    generator = Generator(784, 0.5)
    generator.step(backward, 10_000)  # what any step takes is there before
    return added_memory(partial(generator.step, backward, 1_000_000))


def memory() -> dict[str, dict[str, float]]:
    """Peak memory of forward and backward at N = 64, M = 1,000,000, D = 784, each in a process."""
    results = {}
    for backward in MODES:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            results[f"{backward}_mib"] = pool.submit(_memory_of, backward).result()
    table(
        "Large mixing, N = 64, M = 1,000,000, D = 784: memory added at the peak",
        [(k, f"{results[f'{k}_mib']:.0f} MiB", "wanted <= 1536") for k in MODES],
    )
    return {"large_mixing_M1000000": results}


def _seconds(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def against_num_mixing() -> dict[str, dict[str, float]]:
    """Time of a step for M = 1,000 .. 1,000,000 and the slope of its logarithm."""
    generator = Generator(784, 0.5)
    sizes = {1_000: 15, 10_000: 5, 100_000: 3, 1_000_000: 1}
    results, rows = {}, []
    for backward in MODES:
        generator.step(backward, 1_000)
        times = [_seconds(partial(generator.step, backward, m), r) for m, r in sizes.items()]
        logs = torch.tensor(
            [[math.log10(m), math.log10(t)] for m, t in zip(sizes, times, strict=True)]
        )
        x, y = (logs - logs.mean(0)).T
        slope = (x @ y / (x @ x)).item()
        results[backward] = {f"M{m}_s": t for m, t in zip(sizes, times, strict=True)} | {
            "slope": slope
        }
        for m, t in zip(sizes, times, strict=True):
            rows.append((f"{backward}, M = {m:,}", f"{t:.3f} s", f"{1e6 * t / m:.1f} us each psi"))
        last = math.log10(times[-1] / times[-2])
        rows.append((f"{backward}, slope", f"{slope:.2f}", f"last decade {last:.2f}; wanted ~ 1"))
        results[backward]["last_slope"] = last
    table("Large mixing, N = 64, D = 784: time of a step against M", rows)
    return {f"large_mixing_time_{k}": v for k, v in results.items()}


def against_exact(repeats: int) -> dict[str, dict[str, float]]:
    """Time of a step at M = 100,000, the modes taking turns."""
    generator = Generator(784, 0.5)
    steps = {k: partial(generator.step, k, 100_000) for k in MODES}
    times = alternate(steps, max(3, repeats // 3))
    rows = [("exact", f"{times['exact']:.3f} s", f"chunk_size={EXACT_CHUNK}")]
    for k in MODES[1:]:
        ratio = times["exact"] / times[k]
        rows.append((k, f"{times[k]:.3f} s", f"{ratio:.2f} x faster; wanted >= 2.5"))
    table("Large mixing, N = 64, M = 100,000, D = 784: a step", rows)
    found = {f"{k}_s": t for k, t in times.items()}
    found |= {f"{k}_times_faster": times["exact"] / times[k] for k in MODES[1:]}
    return {"large_mixing_M100000": found}


def noise() -> dict[str, dict[str, float]]:
    """Noise of the chosen gradient with given psi, against that of the psi themselves."""
    results = {}
    num_mixing = NOISE_MIXING
    for dim, scale in ((2, 0.1), (784, 0.5)):
        generator = Generator(dim, scale)
        weights = list(generator.net.parameters())

        def of_given_psi(
            backward: str | Responsibility | TopK, generator: Generator = generator
        ) -> Tensor:
            torch.manual_seed(1)
            return generator.loss(backward, NOISE_MIXING)

        every = Responsibility(num_mixing)
        fresh = gradient_noise(partial(generator.loss, every, num_mixing), weights, 20)
        # The same chunks as the modes: all psi are chosen.
        exact = torch.autograd.grad(of_given_psi(every), weights)
        found: dict[str, float] = {"fresh_psi_ratio": fresh.ratio}
        rows = [("exact, new psi each time", f"{fresh.ratio:.2e}", "variance / squared mean")]
        for size in (64, 256, 1024):
            chooser = Responsibility(size, torch.Generator().manual_seed(0))
            one = gradient_noise(partial(of_given_psi, chooser), weights, 50, exact)
            assert one.relative_bias is not None and one.bias_error is not None
            share = one.variance / fresh.variance
            found |= {f"S{size}_ratio": one.ratio, f"S{size}_of_fresh": share}
            found |= {f"S{size}_bias": one.relative_bias, f"S{size}_bias_error": one.bias_error}
            rows.append(
                (
                    f"{size} psi by responsibility, same psi",
                    f"{one.ratio:.2e}",
                    f"{share:.3f} of the noise of new psi; bias {one.relative_bias:.3f}, by noise "
                    f"alone {one.bias_error:.3f}",
                )
            )
        for k in (1, 8, 64):
            one = gradient_noise(partial(of_given_psi, TopK(k)), weights, 2, exact)
            assert one.relative_bias is not None
            found[f"top{k}_bias"] = one.relative_bias
            rows.append((f"top {k}, same psi", "0", f"bias {one.relative_bias:.3f}"))
        p = SemiImplicit(
            generator.mixing,
            partial(_normal, scale),
            num_mixing,
            backward="top",
        )
        p.log_prob(generator.x)
        assert p.backward_report is not None  # a backward mode was given
        effective = p.backward_report.effective_num_psi.item()
        found["effective_num_psi"] = effective
        rows.append(("effective number of psi", f"{effective:.0f}", "for all data together"))
        table(f"Large mixing, N = 64, M = {num_mixing:,}, D = {dim}: noise of the gradient", rows)
        results[f"large_mixing_noise_D{dim}"] = found
    return results


def run(repeats: int) -> dict[str, dict[str, float]]:
    """Measures all of it."""
    return memory() | against_num_mixing() | against_exact(repeats) | noise()


if __name__ == "__main__":
    run(9)
