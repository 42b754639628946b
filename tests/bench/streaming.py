"""The streaming logsumexp over pairs: its memory at M = 1,000,000, and KeOps at M = 100,000."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pyro.distributions as dist
import torch

from pyro_sig.distributions import Implicit, SemiImplicit, mixture_log_prob
from pyro_sig.nn import MLP
from tests.bench.measure import added_memory, alternate, table

STD = 0.3


def _given_psi() -> float:
    torch.manual_seed(0)
    x = torch.randn(512, 2)
    psi = torch.randn(1_000_000, 2, requires_grad=True)
    components = dist.Normal(psi, STD).to_event(1)
    return added_memory(lambda: mixture_log_prob(components, x).sum().backward())


def _generated() -> float:
    torch.manual_seed(0)
    x = torch.randn(512, 2)
    net = MLP(2, [100, 100], 2)
    noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def call() -> None:
        p = SemiImplicit(
            Implicit(net, noise, 2),
            lambda psi: dist.Normal(psi, STD).to_event(1),
            num_mixing=1_000_000,
            chunk_size=8192,
        )
        p.log_prob(x).sum().backward()

    return added_memory(call)


def memory() -> dict[str, dict[str, float]]:
    """Peak memory of forward and backward at N = 512, M = 1,000,000, D = 2, each in a process."""
    results = {}
    for name, call in (("psi_given_mib", _given_psi), ("generated_mib", _generated)):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            results[name] = pool.submit(call).result()
    table(
        "Streaming, N = 512, M = 1,000,000, D = 2: memory added at the peak",
        [
            ("psi given", f"{results['psi_given_mib']:.0f} MiB", "wanted <= 512"),
            ("psi through the network, chunk_size=8192", f"{results['generated_mib']:.0f} MiB", ""),
        ],
    )
    return {"streaming_M1000000": results}


def against_keops(repeats: int) -> dict[str, dict[str, float]]:
    """Forward and backward of the logsumexp of Gaussian kernels."""
    try:
        from pykeops.torch import LazyTensor
    except ImportError:
        print("\nKeOps is not installed: pip install 'pyro-sig[bench]'")
        return {}
    results = {}
    for dim in (2, 64):
        torch.manual_seed(0)
        x = torch.randn(512, dim)
        psi = torch.randn(100_000, dim, requires_grad=True)

        def ours(x=x, psi=psi):
            components = dist.Normal(psi, 1.0, validate_args=False).to_event(1)
            total = mixture_log_prob(components, x).sum()
            return torch.autograd.grad(total, psi)

        def keops(x=x, psi=psi):
            squares = ((LazyTensor(x[:, None]) - LazyTensor(psi[None])) ** 2).sum(-1)
            total = (-0.5 * squares).logsumexp(1).sum()
            return torch.autograd.grad(total, psi)

        error = (ours()[0] - keops()[0]).norm() / keops()[0].norm()
        if not error < 1e-2:
            raise RuntimeError(f"the gradients differ by {error:.1e} of their norm")
        times = alternate({"ours": ours, "keops": keops}, max(3, repeats // 3))
        ratio = times["keops"] / times["ours"]
        results[f"streaming_M100000_D{dim}"] = {
            "ours_s": times["ours"],
            "keops_s": times["keops"],
            "times_faster": ratio,
        }
        table(
            f"Streaming, N = 512, M = 100,000, D = {dim}: forward and backward",
            [
                ("ours", f"{times['ours']:.3f} s", ""),
                ("KeOps", f"{times['keops']:.3f} s", f"{ratio:.2f} x ours; wanted > 1"),
            ],
        )
    return results
