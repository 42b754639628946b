"""Location and scale of a density before any training: L-BFGS, then Gaussian score matching."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_sig._arguments import check_floating, check_integer, check_number, refusal
from pyro_sig._functions import check_callable, first_call
from pyro_sig._progress import Progress

__all__ = ["ScaleReport", "find_scale"]

# Draws behind each evidence bound: its standard error is about 0.1 sqrt(D) where a Gaussian fits.
_BOUND_DRAWS = 64
# The log-density is that of float32 at worst: a bound is no better for a smaller gain than this.
_LEAST_GAIN = 1e-2
# A path ends where a Newton step would gain less than this.
_LEAST_STEP = 1e-4
# Up to this many coordinates the dense matrices are worth their cost.
_MAX_DENSE = 1000


class ScaleReport(NamedTuple):
    r"""Says what :func:`find_scale` did.

    :param str method: where the answer is from: ``"initial point"``, ``"L-BFGS path"``,
        ``"score matching"`` or ``"several modes"``; or why a guide did not search, with bounds
        that are NaN and counts of 0.
    :param float elbo: estimated evidence lower bound of the Gaussian found, or of the mixture of
        those of several modes, in nats.
    :param float initial_elbo: the same at the initial location with unit scale; may be minus
        infinity.
    :param int num_modes: separate Gaussians that were pooled.
    :param int path_length: iterations of L-BFGS.
    :param int num_updates: accepted updates of score matching.
    :param int num_evaluations: evaluations of the log-density and its gradient.

    Example::

        >>> loc, tril, report = find_scale(lambda z: -0.5 * z.square().sum(-1), torch.ones(2))
        >>> report.method in ("L-BFGS path", "score matching")
        True
    """

    method: str
    elbo: float
    initial_elbo: float
    num_modes: int
    path_length: int
    num_updates: int
    num_evaluations: int


# Gaussians of which the worse is within this many nats and this many standard deviations away are
# modes of their own.
_MODE_GAP = 5.0
_MODE_SEPARATION = 2.5
_MAX_MODES = 8


class NoStartError(ValueError):
    """The log-density or its gradient is finite at no start."""


class _Target:
    """A batched log-density with its gradient; counts evaluations."""

    def __init__(self, log_density: Callable[[Tensor], Tensor]) -> None:
        self.log_density = log_density
        self.num_evaluations = 0
        self._met = False

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.num_evaluations += len(z)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            log_p = self._evaluate(z)
            if not isinstance(log_p, Tensor) or log_p.shape != z.shape[:1]:
                was = tuple(log_p.shape) if isinstance(log_p, Tensor) else type(log_p).__name__
                raise ValueError(
                    f"`log_density` must map [B, D] to [B], was {tuple(z.shape)} to {was}"
                )
            grad = None
            if log_p.requires_grad:
                (grad,) = torch.autograd.grad(log_p.sum(), z, allow_unused=True)
            if grad is None:
                raise ValueError(
                    "`log_density` must be differentiable, returned a tensor without a "
                    "gradient to its argument"
                )
        bad = ~(log_p.isfinite() & grad.isfinite().all(-1))
        return log_p.detach().masked_fill(bad, -math.inf), grad.masked_fill(bad.unsqueeze(-1), 0.0)

    def _evaluate(self, z: Tensor) -> Any:  # noqa: ANN401 - whatever a caller's function returns
        if self._met:
            return self.log_density(z)
        self._met = True
        return first_call("log_density", self.log_density, z)

    def elbo(self, loc: Tensor, tril: Tensor, noise: Tensor) -> float:
        """Evidence bound of a Gaussian, the noise given so that bounds can be compared."""
        self.num_evaluations += len(noise)
        with torch.no_grad():
            log_p = self.log_density(loc + noise @ tril.mT)
        entropy = tril.diagonal().abs().log().sum() + 0.5 * len(loc) * math.log(
            2 * math.pi * math.e
        )
        elbo = float(log_p.mean() + entropy)
        return elbo if math.isfinite(elbo) else -math.inf


class _Best(NamedTuple):
    loc: Tensor
    tril: Tensor
    elbo: float
    method: str


def find_scale(
    log_density: Callable[[Tensor], Tensor],
    init_loc: Tensor,
    *,
    init_scale: float = 0.1,
    num_iterations: int = 100,
    num_updates: int = 100,
    num_draws: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> tuple[Tensor, Tensor, ScaleReport]:
    r"""Finds a Gaussian near a density: location, scale and what was done.

    First the point of an L-BFGS path whose Gaussian

    .. math::
        \mathcal{N}(z_l + H_l \nabla \log p(z_l), H_l)

    has the best evidence bound, with :math:`H_l` the inverse Hessian that the path estimates.
    The mode itself is not safe: where a density has a spike at the edge of a funnel, the path
    runs into it and the best bound lies on the way. Then Gaussian score matching: each update
    minimises, in closed form, the squared difference of the scores at draws of the Gaussian, with
    a penalty for leaving it. It is kept only if the bound gains. Where the paths from several
    starts end in separate modes with evidence of one order, the answer has the moments of their
    mixture. The function is pure: it changes no global random state and no parameter.

    :param callable log_density: batched log-density, up to a constant: ``[B, D]`` to ``[B]``,
        differentiable. It should be deterministic.
    :param torch.Tensor init_loc: starting point, of shape ``[D]``, or several, ``[S, D]``.
    :param float init_scale: standard deviation that the inverse Hessian starts from.
    :param int num_iterations: iterations of L-BFGS at most.
    :param int num_updates: updates of score matching at most; 0 leaves the stage out.
    :param int num_draws: draws in each update, by default between 32 and 2 D.
    :param int seed: of the draws.
    :param bool progress: show a bar; None does where someone watches: on a terminal or in a
        notebook, not under CI.
    :return: ``loc`` of shape ``[D]``, lower triangular ``scale_tril`` of shape ``[D, D]``
        (diagonal for D > 1000) and a :class:`ScaleReport`.
    :raises ValueError: if an argument has another shape or is not positive, or the log-density
        or its gradient is not finite at the starting point.

    References: L. Zhang, B. Carpenter, A. Gelman and A. Vehtari (2022), "Pathfinder: Parallel
    quasi-Newton variational inference", algorithm 1; D. Cai, C. Modi, L. Pillaud-Vivien,
    C. Margossian, R. Gower, D. Blei and L. Saul (2024), "Batch and match: black-box variational
    inference with a score-based divergence", algorithm 1.

    Example::

        >>> scale = torch.tensor([1e-3, 1e3])
        >>> target = torch.distributions.Normal(torch.tensor([5.0, -2e3]), scale)
        >>> loc, tril, report = find_scale(lambda z: target.log_prob(z).sum(-1), torch.zeros(2))
        >>> ((loc - target.mean) / scale).abs().max() < 0.2
        tensor(True)
        >>> (tril.diagonal() / scale).log().abs().max() < 0.2
        tensor(True)
    """
    check_callable("log_density", log_density)
    check_floating("init_loc", init_loc)
    if init_loc.dim() not in (1, 2) or not init_loc.numel():
        raise refusal("init_loc", "of shape [D] or [S, D]", init_loc)
    init_scale = check_number("init_scale", init_scale, above=0)
    check_integer("num_iterations", num_iterations)
    check_integer("num_updates", num_updates)
    if num_draws is not None:
        check_integer("num_draws", num_draws, least=2)
    check_integer("seed", seed, least=-math.inf)
    generator = torch.Generator(device=init_loc.device).manual_seed(seed)
    target = _Target(log_density)
    starts = init_loc.detach().reshape(-1, init_loc.shape[-1])
    with Progress(progress, len(starts), "scale: paths") as bar:
        found, initial, length = _best_on_paths(
            target, starts, init_scale, num_iterations, generator, bar
        )
    accepted = 0
    dim = starts.shape[-1]
    modes = _distinct(found) if dim <= _MAX_DENSE else found[:1]
    if dim <= _MAX_DENSE and num_updates:
        num_draws = num_draws or min(max(32, 2 * dim), 200)
        refined = []
        with Progress(progress, len(modes) * num_updates, "scale: updates") as bar:
            for mode in modes:
                mode, updates = _match_scores(target, mode, num_updates, num_draws, generator, bar)
                refined.append(mode)
                accepted += updates
        modes = _distinct(refined)
    best = modes[0] if len(modes) == 1 else _pool(modes)
    report = ScaleReport(
        best.method,
        best.elbo,
        initial,
        len(modes),
        length,
        accepted,
        target.num_evaluations,
    )
    return best.loc, best.tril, report


# ------------------------------------------------------------------------------------------- modes


def _distinct(found: list[_Best]) -> list[_Best]:
    """The best Gaussian, and others that are far from it and hardly worse."""
    found = sorted(found, key=lambda each: -each.elbo)
    kept = found[:1]
    for other in found[1:]:
        if len(kept) == _MAX_MODES or not other.elbo > kept[0].elbo - _MODE_GAP:
            break
        if all(_separation(other, each) > _MODE_SEPARATION for each in kept):
            kept.append(other)
    return kept


def _separation(one: _Best, other: _Best) -> float:
    """Distance of two locations in standard deviations of their difference."""
    tril_1, tril_2 = one.tril.double(), other.tril.double()
    cov = tril_1 @ tril_1.mT + tril_2 @ tril_2.mT
    tril, failed = torch.linalg.cholesky_ex(cov)
    if failed:
        return 0.0
    shift = (one.loc.double() - other.loc.double()).unsqueeze(-1)
    return float(torch.linalg.solve_triangular(tril, shift, upper=False).norm())


def _pool(modes: list[_Best]) -> _Best:
    """The Gaussian with the moments of the mixture over modes, weighted by their evidence."""
    weights = torch.tensor([mode.elbo for mode in modes], dtype=torch.float64).softmax(0)
    locs = torch.stack([mode.loc.double() for mode in modes]).to(weights.dtype)
    weights = weights.to(locs.device)
    loc = weights @ locs
    cov = (weights.unsqueeze(-1) * (locs - loc)).mT @ (locs - loc)
    for weight, mode in zip(weights, modes, strict=True):
        cov = cov + weight * mode.tril.double() @ mode.tril.double().mT
    tril = torch.linalg.cholesky(cov)
    # With no overlap the mixture's bound is the log of the summed evidences.
    elbo = float(torch.tensor([mode.elbo for mode in modes]).logsumexp(0))
    return _Best(loc.to(modes[0].loc), tril.to(modes[0].tril), elbo, "several modes")


# ------------------------------------------------------------------------------------------ L-BFGS


def _best_on_paths(
    target: _Target,
    starts: Tensor,
    init_scale: float,
    num_iterations: int,
    generator: torch.Generator,
    bar: Progress,
) -> tuple[list[_Best], float, int]:
    dim = starts.shape[-1]
    noise = torch.randn(
        _BOUND_DRAWS // 2, dim, generator=generator, device=starts.device, dtype=starts.dtype
    )
    noise = torch.cat([noise, -noise])
    eye = torch.eye(dim, device=starts.device, dtype=starts.dtype)
    found: list[_Best] = []
    length = 0
    for start in starts:
        bar.update()
        log_p, _ = target(start.unsqueeze(0))
        if not log_p.isfinite().all():
            continue
        elbo = target.elbo(start, init_scale * eye, noise)
        best = _Best(start, init_scale * eye, elbo, "initial point")
        for candidate in _path(target, start, init_scale, num_iterations):
            length += 1
            if candidate is None:
                continue
            elbo = target.elbo(*candidate, noise)
            if elbo > best.elbo:
                best = _Best(*candidate, elbo, "L-BFGS path")
        found.append(best)
    if not found:
        raise NoStartError(
            "`log_density` and its gradient must be finite at `init_loc`, were not; start elsewhere"
        )
    found.sort(key=lambda each: -each.elbo)
    return found, target.elbo(starts[0], init_scale * eye, noise), length


def _path(
    target: _Target, start: Tensor, init_scale: float, num_iterations: int
) -> Iterator[tuple[Tensor, Tensor] | None]:
    """Yields the Gaussian of each point of a path, or None where there is none."""
    point = start.clone().requires_grad_()

    def closure() -> Tensor:
        value, slope = target(point.detach().unsqueeze(0))
        point.grad = -slope[0]
        # A line search must see a wall as finite.
        return -value[0].clamp_min(-torch.finfo(value.dtype).max / 1e8)

    inverse = _InverseHessian(len(start), init_scale, start)
    before, slope_before = start, target(start.unsqueeze(0))[1][0]
    optimizer, stalls = None, 0
    for _ in range(num_iterations):
        if optimizer is None:
            optimizer = torch.optim.LBFGS(
                [point],
                max_iter=1,
                max_eval=25,  # room for the line search, which some versions of torch count here
                history_size=20,
                tolerance_grad=0.0,
                tolerance_change=0.0,
                line_search_fn="strong_wolfe",
            )
        optimizer.step(closure)
        here = point.detach().clone()
        if not here.isfinite().all():
            return
        if (here - before).abs().max() <= 1e-7 * (1 + here.abs().max()):
            # Rounding, or a memory that no longer fits: begin it again, once.
            stalls += 1
            if stalls > 1:
                return
            optimizer = None
            continue
        value, slope = target(here.unsqueeze(0))
        if not value.isfinite().all():
            return
        inverse.update(here - before, slope_before - slope[0])
        yield inverse.gaussian(here, slope[0])
        if 0 <= inverse.gain(slope[0]) < _LEAST_STEP:
            return  # at the mode, as far as the curvature tells
        before, slope_before = here, slope[0]


class _InverseHessian:
    """BFGS updates of the inverse Hessian along a path: dense, or its diagonal alone."""

    def __init__(self, dim: int, scale: float, like: Tensor) -> None:
        self.dense = dim <= _MAX_DENSE
        self.diagonal = like.new_full((dim,), scale**2, dtype=torch.float64)
        self.matrix = torch.diag(self.diagonal) if self.dense else self.diagonal
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def update(self, step: Tensor, change: Tensor) -> None:
        """Takes in a step and the change of the negative log-density's gradient."""
        step, change = step.double(), change.double()
        curvature = step @ change
        if not curvature > 1e-10 * change.norm() * step.norm():
            return  # not convex here
        # The diagonal from which the updates start follows the path as well.
        a = change @ (self.diagonal * change)
        b = step @ (step / self.diagonal)
        c = change.square()
        self.diagonal = 1.0 / (
            a / (curvature * self.diagonal)
            + c / curvature
            - a * step.square() / (curvature * b * self.diagonal.square())
        ).clamp_min(1e-20)
        self.pairs.append((step, change))
        if not self.dense:
            self.matrix = self.diagonal
            return
        self.pairs = self.pairs[-max(20, 2 * len(step)) :]
        matrix = torch.diag(self.diagonal)
        for s, y in self.pairs[-max(10, min(len(step) + 5, 60)) :]:
            rho = 1.0 / (s @ y)
            hy = matrix @ y
            matrix = (
                matrix
                - rho * (torch.outer(s, hy) + torch.outer(hy, s))
                + (rho * rho * (y @ hy) + rho) * torch.outer(s, s)
            )
        self.matrix = matrix

    def gain(self, slope: Tensor) -> float:
        """Returns what a Newton step would add to the log-density."""
        step = self.matrix @ slope.double() if self.dense else self.matrix * slope.double()
        return float(0.5 * slope.double() @ step)

    def gaussian(self, point: Tensor, slope: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns the Gaussian that the quadratic model at a point has."""
        if self.dense:
            tril, info = torch.linalg.cholesky_ex(self.matrix)
            if info:
                return None
            loc = point + (self.matrix @ slope.double()).to(point)
        else:
            tril = torch.diag(self.matrix.sqrt())
            loc = point + (self.matrix * slope.double()).to(point)
        tril = tril.to(point)
        if not (loc.isfinite().all() and tril.isfinite().all() and (tril.diagonal() > 0).all()):
            return None
        return loc, tril


# ---------------------------------------------------------------------------------- score matching


def _match_scores(
    target: _Target,
    best: _Best,
    num_updates: int,
    num_draws: int,
    generator: torch.Generator,
    bar: Progress,
) -> tuple[_Best, int]:
    dim = len(best.loc)
    options: dict[str, Any] = {
        "generator": generator,
        "device": best.loc.device,
        "dtype": best.loc.dtype,
    }
    check = torch.randn(_BOUND_DRAWS, dim, **options)
    check = torch.cat([check, -check])
    best = best._replace(elbo=target.elbo(best.loc, best.tril, check))
    loc, tril = best.loc, best.tril
    accepted = 0
    for step in range(num_updates):
        bar.update()
        noise = torch.randn(num_draws // 2, dim, **options)
        noise = torch.cat([noise, -noise])
        z = loc + noise @ tril.mT
        log_p, score = target(z)
        if not log_p.isfinite().all():
            keep = log_p.isfinite()
            if keep.sum() < 2:
                break
            z, score = z[keep], score[keep]
        updated = _score_update(loc, tril, z, score, weight=num_draws * dim / (step + 1.0))
        if updated is None:
            break
        loc, tril = updated
        accepted += 1
        if (step + 1) % 10 == 0 or step + 1 == num_updates:
            elbo = target.elbo(loc, tril, check)
            if elbo > best.elbo:
                gain = elbo - best.elbo
                best = _Best(loc, tril, elbo, "score matching")
                if gain < _LEAST_GAIN and step >= num_updates // 2:
                    break
            elif not math.isfinite(elbo):
                break
    return best, accepted


def _score_update(
    loc: Tensor, tril: Tensor, z: Tensor, score: Tensor, weight: float
) -> tuple[Tensor, Tensor] | None:
    """One closed-form update, in the coordinates of the present Gaussian and double precision."""
    loc_0, tril_0 = loc.double(), tril.double()
    z = torch.linalg.solve_triangular(tril_0, (z.double() - loc_0).mT, upper=False).mT
    score = score.double() @ tril_0
    mean_z, mean_score = z.mean(0), score.mean(0)
    cov_z = (z - mean_z).mT @ (z - mean_z) / len(z)
    cov_score = (score - mean_score).mT @ (score - mean_score) / len(z)
    pull = weight / (1 + weight)
    eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    u = weight * cov_score + pull * torch.outer(mean_score, mean_score)
    v = eye + weight * cov_z + pull * torch.outer(mean_z, mean_z)
    half, info = torch.linalg.cholesky_ex(v)
    if info or not u.isfinite().all():
        return None
    # Sigma U Sigma + Sigma = V is solved by 2 L (I + (I + 4 L' U L)^(1/2))^-1 L' with V = L L'.
    values, vectors = torch.linalg.eigh(half.mT @ u @ half)
    root = (1 + 4 * values.clamp_min(0)).sqrt()
    factor = half @ vectors * (2 / (1 + root)).sqrt()
    cov = factor @ factor.mT
    shift = pull * (cov @ mean_score + mean_z)
    new, info = torch.linalg.cholesky_ex(0.5 * (cov + cov.mT))
    if info or not shift.isfinite().all():
        return None
    return (loc_0 + tril_0 @ shift).to(loc), (tril_0 @ new).to(tril)
