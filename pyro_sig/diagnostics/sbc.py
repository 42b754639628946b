"""Simulation-based calibration of a posterior approximation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_sig._arguments import (
    check_integer,
    check_number,
    check_tensor,
    describe,
    is_dense,
    refusal,
)
from pyro_sig._functions import check_callable
from pyro_sig._progress import Progress
from pyro_sig._release import Release
from pyro_sig.diagnostics._containers import as_tensor, check_mapping
from pyro_sig.diagnostics._given_draws import Given, tensors_of
from pyro_sig.diagnostics._program_sites import scored_sites
from pyro_sig.diagnostics._rank_plot import plot_ranks, short_p_value
from pyro_sig.diagnostics._streams import check_generator, random_state
from pyro_sig.diagnostics.uniformity import check_ranks, uniformity_test

__all__ = ["SBC", "log_likelihood_of", "sbc", "sbc_ranks"]

Values = dict[str, Tensor]
Quantity = Callable[[Values, Values], Any]


@dataclass(frozen=True, repr=False)
class SBC:
    r"""Ranks of simulated truths among posterior draws, with their tests and their picture.

    :func:`sbc` returns one; ranks that are at hand make one, ``SBC({"mu": ranks}, num_draws=99)``.

    :param ranks: integers from 0 to L by quantity, each of shape ``[num_simulations, *]``.
    :param num_draws: the number L of draws that every truth was ranked among.
    """

    ranks: Mapping[str, Tensor]
    num_draws: int

    def __post_init__(self) -> None:
        """Refuses ranks that do not fit.

        :raises ValueError: if there are no ranks, or they are not integers from 0 to L.
        """
        check_integer("num_draws", self.num_draws, 1)
        if not isinstance(self.ranks, Mapping) or not self.ranks:
            raise refusal("ranks", "a dict of tensors by name, not empty", self.ranks)
        for name, ranks in self.ranks.items():
            check_ranks(f"ranks[{name!r}]", ranks, self.num_draws)
        lengths = {name: len(ranks) for name, ranks in self.ranks.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"`ranks` must have one number of rows, but these were {lengths}")

    @property
    def num_simulations(self) -> int:
        """The number of simulated data sets."""
        return len(next(iter(self.ranks.values())))

    @cached_property
    def p_values(self) -> dict[str, Tensor]:
        """P-values of :func:`uniformity_test` by quantity, for each scalar entry by itself."""
        return {
            name: uniformity_test(ranks, self.num_draws).p_value
            for name, ranks in self.ranks.items()
        }

    @cached_property
    def quantity_p_values(self) -> dict[str, float]:
        """P-value of each quantity: the least of its entries', times their number (Bonferroni)."""
        return {
            name: min(1.0, p_value.numel() * float(p_value.min()))
            for name, p_value in self.p_values.items()
        }

    @cached_property
    def adjusted_p_values(self) -> dict[str, float]:
        """P-values of the quantities, adjusted for their number (Holm)."""
        ordered = sorted(self.quantity_p_values.items(), key=lambda item: item[1])
        adjusted, largest = {}, 0.0
        for place, (name, p_value) in enumerate(ordered):
            largest = max(largest, min(1.0, (len(ordered) - place) * p_value))
            adjusted[name] = largest
        return {name: adjusted[name] for name in self.ranks}

    @property
    def p_value(self) -> float:
        """The overall p-value of "every quantity is calibrated", the least adjusted one."""
        return min(self.adjusted_p_values.values())

    def __repr__(self) -> str:
        rows = [("quantity", "entries", "p", "adjusted p")]
        rows += [
            (
                name,
                str(self.p_values[name].numel()),
                short_p_value(self.quantity_p_values[name]),
                short_p_value(self.adjusted_p_values[name]),
            )
            for name in self.ranks
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        ]
        head = (
            f"SBC: {self.num_simulations} simulations, {self.num_draws} draws each, "
            f"overall p = {short_p_value(self.p_value)}"
        )
        return "\n".join([head, *lines])

    def plot(self, level: float = 0.95, columns: int | None = None) -> Any:
        r"""Draws the empirical distribution function of the ranks, less the uniform one.

        One panel for each quantity, one line for each of its entries, the entry with the least
        p-value in colour: red if it leaves its bands. Under calibration all lines of all panels
        are inside with probability ``level``, and one leaves its bands exactly if the overall
        p-value is at most ``1 - level``.

        A line that is first above zero and then below is that of an overconfident posterior; its
        mirror image is that of an underconfident one; a line on one side is that of a shifted one,
        below zero if the truths are larger than the draws.

        :param level: of the bands, between 0 and 1.
        :param columns: panels in one row; chosen by default.
        :return: a matplotlib ``Figure``.
        :raises ValueError: if ``level`` is not between 0 and 1.
        """
        level = check_number("level", level, above=0, below=1)
        if columns is not None:
            check_integer("columns", columns, 1)
        flat = {name: ranks.reshape(len(ranks), -1) for name, ranks in self.ranks.items()}
        return plot_ranks(
            flat,
            self.num_draws,
            self.quantity_p_values,
            level,
            x_label="rank of the truth among the draws, as a fraction",
            y_label="ECDF - uniform",
            title=f"overall p = {short_p_value(self.p_value)} ({self.num_simulations} simulations, "
            f"{self.num_draws} draws; {100 * level:g} % bands)",
            worst={name: int(p_value.argmin()) for name, p_value in self.p_values.items()},
            columns=columns,
        )


def sbc(
    model: Callable[..., Any],
    posterior: Callable[[Values], Mapping[str, Tensor]],
    *args: Any,
    num_simulations: int = 200,
    quantities: Mapping[str, Quantity] | None = None,
    seed: int | None = None,
    progress: bool | None = None,
    **kwargs: Any,
) -> SBC:
    r"""Tests whether a posterior approximation is calibrated, on data that its model simulates.

    .. math::
        (z^*, x^*) \sim p(z, x), \qquad z^{(1)}, \ldots, z^{(L)} \sim q(z \mid x^*), \qquad
        r = \#\{l : f(z^{(l)}, x^*) < f(z^*, x^*)\},

    where the rank r of the truth is uniform on 0, ..., L for every quantity f if q is the exact
    posterior. Ranked are all scalar entries of the latents and the ``quantities``; ties are broken
    at random.

    Ranks of the latents alone do not see everything: the prior passes for the posterior. Quantities
    that look at the data do, above all the likelihood, :func:`log_likelihood_of`. Draws have to be
    independent: thin those of a Markov chain.

    :param callable model: a Pyro program with observations. They are drawn anew, so their values
        do not matter, only their shapes; but data of None are no observation.
    :param callable posterior: is given the simulated observations, a dict of tensors by site, and
        returns draws of the latents, a dict of tensors of shape ``[L, *]`` by site, with as many
        draws each time. It may train a guide, but begins with :func:`pyro.clear_param_store` then.
        Further entries are ignored. For a posterior of some of the latents, hide the others from
        the model with ``poutine.block(model, hide=[...])``.
    :param args: arguments of the model.
    :param int num_simulations: the number of simulated data sets.
    :param dict quantities: by name, functions of the latents (a dict of tensors by site, of the
        shapes that the model gives them) and the observations, that return a scalar. Each is
        called once for every draw of every simulation.
    :param int seed: of everything that is drawn. If given, the global random states are left
        untouched; if not, the draws consume them.
    :param bool progress: show a bar; None does where someone watches: on a terminal or in a
        notebook, not under CI.
        False is for bars of ``posterior`` too.
    :param kwargs: keyword arguments of the model.
    :return: the ranks with their tests.
    :raises ValueError: if the model has no latent or no observed site, a plate that subsamples, a
        factor or sites that change; if the draws lack a latent, do not fit its shape, are not
        finite or differ in their number; or if a quantity is no scalar, is NaN or has the name of
        a latent.

    Sources: S. Talts, M. Betancourt, D. Simpson, A. Vehtari and A. Gelman (2018), "Validating
    Bayesian inference algorithms with simulation-based calibration",
    https://arxiv.org/abs/1804.06788; M. Modrák et al. (2023), "Simulation-based calibration
    checking for Bayesian computation: The choice of test quantities shapes sensitivity",
    https://doi.org/10.1214/23-BA1404.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_sig.diagnostics import draws_from
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.0))
        >>> def guide(x):
        ...     pyro.sample("z", dist.Normal(x / 2, 0.05))  # overconfident: it is 0.71
        >>> sbc(
        ...     model,
        ...     posterior=lambda obs: draws_from(guide, obs["x"], num_samples=19),
        ...     num_simulations=50,
        ...     seed=0,
        ...     progress=False,
        ... )
        SBC: 50 simulations, 19 draws each, overall p = ...
        quantity  entries        p  adjusted p
        z               1  ...
    """
    check_integer("num_simulations", num_simulations, 1)
    check_callable("model", model)
    check_callable("posterior", posterior)
    quantities = {} if quantities is None else quantities
    check_mapping("quantities", quantities, "functions")
    for name, quantity in quantities.items():
        if not callable(quantity):
            raise ValueError(
                f"`quantities` must be functions, but {name!r} was {describe(quantity)}"
            )

    rows: list[dict[str, Tensor]] = []
    shapes: dict[str, torch.Size] = {}
    num_draws = 0
    with random_state(seed), Progress(progress, num_simulations, "SBC") as bar:
        for simulation in range(num_simulations):
            truths, observations = _simulate(model, args, kwargs)
            if simulation == 0:
                shapes = {name: value.shape for name, value in truths.items()}
                for name in quantities:
                    if name in shapes:
                        raise ValueError(
                            "`quantities` must have other names than the latents, "
                            f"but {name!r} is one"
                        )
            elif shapes != {name: value.shape for name, value in truths.items()}:
                raise ValueError(
                    "`model` must draw latents of the same names and shapes at every run, drew "
                    f"{_sizes(shapes)}, then {_sizes({n: v.shape for n, v in truths.items()})}"
                )
            draws = posterior({name: value.clone() for name, value in observations.items()})
            draws = _check_draws(draws, truths, num_draws)
            num_draws = len(next(iter(draws.values())))
            row = {name: sbc_ranks(truths[name][None], draws[name][None])[0] for name in truths}
            for name, quantity in quantities.items():
                of_truth, of_draws = _evaluate(name, quantity, truths, draws, observations)
                row[name] = sbc_ranks(of_truth[None], of_draws[None])[0]
            rows.append({name: ranks.cpu() for name, ranks in row.items()})
            bar.update()
    return SBC({name: torch.stack([row[name] for row in rows]) for name in rows[0]}, num_draws)


def sbc_ranks(truths: Tensor, draws: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Ranks every truth among its draws, ties broken at random.

    .. math::
        r_n = \#\{l : z_n^{(l)} < z_n^*\} + U_n, \qquad
        U_n \text{ uniform on } 0, \ldots, \#\{l : z_n^{(l)} = z_n^*\}

    :param torch.Tensor truths: of shape ``[N, *]``.
    :param torch.Tensor draws: of shape ``[N, L, *]``.
    :param torch.Generator generator: breaks the ties; torch's global one by default.
    :return: integers from 0 to L, of shape ``[N, *]``.
    :raises ValueError: if the shapes do not fit, or an entry is NaN.

    Source: M. Modrák et al. (2023), https://doi.org/10.1214/23-BA1404, section 2.

    Example::

        >>> sbc_ranks(torch.tensor([0.5]), torch.tensor([[0.1, 0.2, 0.9]]))
        tensor([2])
    """
    for name, values in (("truths", truths), ("draws", draws)):
        if check_tensor(name, values, "a tensor of real numbers").isnan().any():
            raise ValueError(f"`{name}` must not be NaN, was in some entries")
    check_generator(generator)
    fits = truths.dim() >= 1 and draws.dim() == truths.dim() + 1 and draws.shape[1] >= 1
    if not fits or draws.shape[:1] + draws.shape[2:] != truths.shape:
        raise ValueError(
            f"`draws` must be of shape [N, L, *] for `truths` of shape [N, *], "
            f"but they were {tuple(draws.shape)} and {tuple(truths.shape)}"
        )
    truths, draws = truths.detach().unsqueeze(1), draws.detach()
    below, ties = (draws < truths).sum(1), (draws == truths).sum(1)
    device = ties.device if generator is None else generator.device
    uniform = torch.rand(ties.shape, generator=generator, device=device, dtype=torch.double)
    # Rounding up to the number of ties plus one is ruled out by the minimum.
    return below + torch.minimum((uniform.to(ties.device) * (ties + 1)).long(), ties)


def log_likelihood_of(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Quantity:
    r"""Makes the log-likelihood of a Pyro program a quantity for :func:`sbc`.

    .. math::
        f(z, x) = \log p(x \mid z)

    :param callable model: a Pyro program with observations.
    :param args: arguments of the model.
    :param kwargs: keyword arguments of the model.
    :return: a function of latents and observations, both dicts of tensors by site, that returns
        the sum of the log-densities of the observed sites. It runs the model once.
    :raises ValueError: if the model is not callable; the function, if values are missing, not
        finite or of another shape than their site.

    Source: M. Modrák et al. (2023), https://doi.org/10.1214/23-BA1404.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.0))
        >>> log_likelihood = log_likelihood_of(model)
        >>> log_likelihood({"z": torch.tensor(1.0)}, {"x": torch.tensor(1.0)})  # of N(1; 1, 1)
        tensor(-0.9189)
    """
    check_callable("model", model)

    def log_likelihood(latents: Values, observations: Values) -> Tensor:
        latents = tensors_of("latents", latents)
        observations = tensors_of("observations", observations)
        with torch.no_grad(), poutine.block():
            given = Given("observations", observations)(Given("latents", latents)(model))
            trace = poutine.trace(given).get_trace(*args, **kwargs)
            _check_conditioned(trace, observations)
            total = trace.log_prob_sum(lambda name, site: name in observations)
        return torch.as_tensor(total)

    return log_likelihood


def _check_conditioned(trace: Trace, observations: Values) -> None:
    sites: dict[str, Any] = dict(scored_sites(trace))
    unknown = [name for name in observations if name not in sites]
    if unknown or not observations:
        raise ValueError(
            "`observations` must hold values of observed sites of the model, at least one, held "
            f"{list(observations)}"
        )
    drawn = [name for name, site in sites.items() if not site["is_observed"]]
    if drawn:
        raise ValueError(
            f"`latents` must hold a value of every latent of the model, held none of {drawn}"
        )


def _simulate(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Values, Values]:
    with torch.no_grad(), poutine.block():
        trace = poutine.trace(Release()(model)).get_trace(*args, **kwargs)
    latents: Values = {}
    observations: Values = {}
    name: str
    site: Any
    for name, site in trace.nodes.items():
        if site["type"] != "sample":
            continue
        for frame in site["cond_indep_stack"]:
            if frame.full_size is not None and frame.full_size != frame.size:
                raise ValueError(
                    "`model` must not subsample, since data are simulated as a whole, but plate "
                    f"{frame.name!r} had {frame.size} of {frame.full_size} rows"
                )
        fn = site["fn"]
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        if isinstance(fn, Unit):
            raise ValueError(
                f"`model` must not have factors, which no simulation obeys, had {name!r}"
            )
        if poutine.util.site_is_subsample(site) or site["infer"].get("_deterministic"):
            continue
        values = observations if site["infer"].get("was_observed") else latents
        values[name] = site["value"].detach()
        if not bool(torch.isfinite(site["value"]).all()):
            raise ValueError(f"`model` must draw finite values, but {name!r} was not finite")
    hint = ": pass data of the right shape; their values do not matter"
    for kind, found, remedy in (("observed", observations, hint), ("latent", latents, "")):
        if not found:
            raise ValueError(f"`model` must have at least one {kind} site, had none{remedy}")
    return latents, observations


def _check_draws(draws: Any, truths: Values, num_draws: int) -> Values:
    if not isinstance(draws, Mapping):
        raise ValueError(
            f"`posterior` must return a dict of draws by site, returned {describe(draws)}"
        )
    missing = [name for name in truths if name not in draws]
    if missing:
        raise ValueError(
            f"`posterior` must return draws of all latents, but {missing} were not among "
            f"{list(draws)}"
        )
    checked = {}
    for name, truth in truths.items():
        values = as_tensor(draws[name])
        if not is_dense(values):
            raise ValueError(
                f"`posterior` must return draws that are tensors, but {name!r} was "
                f"{describe(values)}"
            )
        values = values.detach().to(truth.device)
        shape = tuple(truth.shape)
        # A plate may leave dimensions of size one that the draws lack, or the other way round.
        if values.dim() == 0 or _squeezed(values.shape[1:]) != _squeezed(shape):
            wanted = ", ".join(["L", *map(str, shape)])
            raise ValueError(
                f"`posterior` must return L draws of {name!r} at once, of shape [{wanted}], but "
                f"these were {tuple(values.shape)}. `draws_from` makes them from a guide"
            )
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"`posterior` must return finite draws, but {name!r} was not finite")
        checked[name] = values.reshape(values.shape[:1] + shape)
    lengths = {name: len(values) for name, values in checked.items()}
    expected = num_draws or next(iter(lengths.values()))
    if expected < 1 or any(length != expected for length in lengths.values()):
        before = f", after {num_draws} at the call before" if num_draws else ""
        raise ValueError(
            "`posterior` must return the same number of draws of every latent at every call, at "
            f"least 1, but these were {lengths}{before}"
        )
    return checked


def _evaluate(
    name: str, quantity: Quantity, truths: Values, draws: Values, observations: Values
) -> tuple[Tensor, Tensor]:
    num_draws = len(next(iter(draws.values())))
    results = []
    for latents in [truths] + [
        {site: values[draw] for site, values in draws.items()} for draw in range(num_draws)
    ]:
        value = as_tensor(quantity(latents, observations))
        if isinstance(value, Real):
            value = torch.as_tensor(value)
        if not is_dense(value) or value.numel() != 1:
            raise ValueError(f"`quantities` must be scalars, but {name!r} was {describe(value)}")
        if bool(value.isnan()):
            raise ValueError(f"`quantities` must be scalars, but {name!r} was NaN")
        results.append(value.detach().reshape(()))
    values = torch.stack(results)
    return values[0], values[1:]


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in shapes.items()}
