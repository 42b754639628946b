"""One step eager, compiled, and in bfloat16, against the matrix products that it cannot avoid.

    python -m tests.bench.precision --device cuda

The floor is the time of the products of the networks (forward and twice backward) and of the
scores of all pairs, in the precision of the row, and nothing else. Beyond 10,000 psi the gradient
goes through those that explain a datum. Compiling needs a C++ compiler, and on a GPU Triton.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from torch import Tensor, nn

from pyro_sig.adversarial import GAN, PsiView
from pyro_sig.distributions import Implicit
from pyro_sig.infer import SIG_ELBO, no_guide
from pyro_sig.nn import MLP
from tests.bench.measure import alternate

NOISE_DIM, NUM_PIXELS, BATCH_SIZE = 64, 784, 256
LAYERS = (NOISE_DIM, 256, 256, NUM_PIXELS)
CRITIC = (NUM_PIXELS, 256, 256, 1)
NUM_PSI = 1024
_numbers = itertools.count()
VARIANTS = ("eager", "compiled", "bfloat16", "compiled bfloat16")


def _network(sizes: tuple[int, ...], device: str) -> MLP:
    return MLP(sizes[0], sizes[1:-1], sizes[-1], device=device)


def _model(net: nn.Module, device: str) -> Callable[[Tensor], None]:
    name = f"net{next(_numbers)}"  # of its own in the parameter store
    noise = dist.Normal(torch.zeros(NOISE_DIM, device=device), 1.0).to_event(1)

    def model(x: Tensor) -> None:
        pyro.module(name, net)
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(net, noise, event_shape=NUM_PIXELS))
            pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x)

    return model


def sig_step(num_mixing: int, variant: str, device: str) -> Callable[[], object]:
    """Makes a step of SIG."""
    net = _network(LAYERS, device)
    if "compiled" in variant:
        net.compile()
    large = num_mixing > 10_000
    elbo = SIG_ELBO(
        num_mixing, backward="responsibility" if large else "exact", max_plate_nesting=1
    )
    svi = SVI(_model(net, device), no_guide, pyro.optim.Adam({"lr": 1e-4}), elbo)
    x = torch.randn(BATCH_SIZE, NUM_PIXELS, device=device)

    def step() -> None:
        with _precision(variant, device):
            svi.step(x)
        _wait(device)

    return step


def gan_step(weight: float | None, variant: str, device: str) -> Callable[[], object]:
    """Makes a step of a GAN, with the bound of SIG beside it or without."""
    net, critic = _network(LAYERS, device), _network(CRITIC, device)
    bound = {}
    if weight is not None:
        bound = {"elbo": SIG_ELBO(BATCH_SIZE, max_plate_nesting=1), "elbo_weight": weight}
    gan = GAN(
        _model(net, device),
        critic,
        torch.optim.Adam(net.parameters(), lr=1e-4),
        torch.optim.Adam(critic.parameters(), lr=1e-4),
        view=PsiView("psi"),
        autocast=torch.bfloat16 if "bfloat16" in variant else None,
        compile_networks="compiled" in variant,
        **bound,
    )
    x = torch.randn(BATCH_SIZE, NUM_PIXELS, device=device)

    def step() -> None:
        gan.step(x)
        _wait(device)

    return step


def _products(sizes: tuple[int, ...], rows: int, passes: int) -> Iterator[tuple[int, int, int]]:
    for a, b in zip(sizes[:-1], sizes[1:], strict=True):
        yield from [(rows, a, b)] * passes


def floor_step(
    products: list[tuple[int, int, int]], dtype: torch.dtype, device: str
) -> Callable[[], object]:
    """Makes the matrix products alone, for rows that fit in the cache or all at once."""
    chunk = 2**16 if device != "cpu" else 2**13
    factors = {
        shape: (
            torch.randn(min(shape[0], chunk), shape[1], device=device, dtype=dtype),
            torch.randn(shape[1], shape[2], device=device, dtype=dtype),
        )
        for shape in set(products)
    }

    def step() -> None:
        for shape in products:
            a, b = factors[shape]
            for start in range(0, shape[0], chunk):
                torch.mm(a[: min(chunk, shape[0] - start)], b)
        _wait(device)

    return step


def _sig_products(num_mixing: int) -> list[tuple[int, int, int]]:
    if num_mixing <= 10_000:
        scores = [(num_mixing, NUM_PIXELS, BATCH_SIZE)] * 2
        return [*_products(LAYERS, num_mixing, 3), *scores]
    first = [*_products(LAYERS, num_mixing, 1), (num_mixing, NUM_PIXELS, BATCH_SIZE)]
    return [*first, *_products(LAYERS, NUM_PSI, 3), *[(NUM_PSI, NUM_PIXELS, BATCH_SIZE)] * 2]


def _gan_products(bounded: bool) -> list[tuple[int, int, int]]:
    # The critic: both sides forward and twice backward, then draws forward and once backward.
    critic = [*_products(CRITIC, 2 * BATCH_SIZE, 3), *_products(CRITIC, BATCH_SIZE, 2)]
    scores = [(BATCH_SIZE, NUM_PIXELS, BATCH_SIZE)] * (2 * bounded)
    return [*_products(LAYERS, BATCH_SIZE, 3), *critic, *scores]


def _precision(variant: str, device: str):
    if "bfloat16" not in variant:
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def run(
    device: str, sizes: list[int], variants: list[str], repeats: int
) -> dict[str, dict[str, float]]:
    """Prints a table: a line for each case, milliseconds of each variant, and of the floor."""
    results: dict[str, dict[str, float]] = {}
    cases: dict[str, tuple[Callable[..., Callable[[], object]], list]] = {
        f"SIG, M = {m:,}": (partial(sig_step, m, device=device), _sig_products(m)) for m in sizes
    }
    cases["GAN"] = (partial(gan_step, None, device=device), _gan_products(False))
    cases["GAN-SI"] = (partial(gan_step, 0.1, device=device), _gan_products(True))
    columns = [*variants, "floor", *(["floor bf16"] if any("bf" in v for v in variants) else [])]
    print(f"\nMilliseconds of a step on {device}, {BATCH_SIZE} images of {NUM_PIXELS} pixels")
    print(f"{'':18}" + "".join(f"{column:>19}" for column in columns))
    for name, (make, products) in cases.items():
        steps = {variant: make(variant) for variant in variants}
        steps["floor"] = floor_step(products, torch.float32, device)
        if "floor bf16" in columns:
            steps["floor bf16"] = floor_step(products, torch.bfloat16, device)
        times = alternate(steps, repeats)
        results[name] = {column: 1000 * times[column] for column in columns}
        print(f"{name:18}" + "".join(f"{results[name][column]:19.2f}" for column in columns))
    return results


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num-mixing", default="1000,10000,100000,1000000")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    sizes = [int(m) for m in args.num_mixing.split(",")]
    run(args.device, sizes, args.variants.split(","), args.repeats)


if __name__ == "__main__":
    main()
