"""Export of a fitted program, or of plain draws, to ArviZ."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pyro import poutine

from pyro_sig._arguments import check_flag, check_integer, describe, is_flag, refusal
from pyro_sig._functions import check_callable, is_function
from pyro_sig._progress import Progress
from pyro_sig.diagnostics._arviz_labels import (
    check_labels,
    export,
    label_pointwise,
    stack_chains,
    to_numpy,
)
from pyro_sig.diagnostics._given_draws import Draws, check_tensors, split_chains
from pyro_sig.diagnostics._guide_parameters import parameters_of, refuse_foreign_parameters
from pyro_sig.diagnostics._program_draws import Runner, check_guides_differ
from pyro_sig.diagnostics._program_sites import Call, Sites, describe_sites
from pyro_sig.diagnostics._streams import random_state

__all__ = ["draws_to_inference_data", "to_inference_data"]


# What a draw of the posterior has one of.
_BY_POSTERIOR_DRAW = ("log_likelihood", "sample_stats")
_BY_CHAIN = ("posterior", "posterior_predictive", *_BY_POSTERIOR_DRAW)


def to_inference_data(
    model: Callable[..., Any],
    guide: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
    *args: Any,
    num_samples: int = 1000,
    seed: int | None = None,
    parallel: bool = False,
    posterior: Draws | None = None,
    log_likelihood: bool | None = None,
    sample_stats: bool = True,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    attrs: Mapping[str, Any] | None = None,
    progress: bool | None = None,
    **kwargs: Any,
) -> Any:
    r"""Draws from a model and its guide and labels the draws for ArviZ.

    The groups, as far as they exist, with :math:`z` the latents that the guide draws and :math:`y`
    the observed sites:

    .. math::
        \text{posterior} \sim q(z), \quad \text{posterior\_predictive} \sim q(z)\, p(y \mid z),
        \quad \text{prior} \sim p(z), \quad \text{prior\_predictive} \sim p(y), \quad
        \text{observed\_data} = y,

        \text{log\_likelihood} = \log p(y_i \mid z), \quad \text{sample\_stats} = \{
        \text{lp} = \log p(y, z),\ \text{log\_q} = \log q(z),\
        \text{log\_weight} = \text{lp} - \text{log\_q}\}.

    - Several guides are the chains. Where they were trained independently, :math:`\hat R` tells
      whether the trainings agree. The draws of one guide are independent, and :math:`\hat R` over
      them says nothing. A :class:`~pyro.nn.PyroModule` is run with its own parameters, so guides of
      one class may be trained one after the other, with :func:`pyro.clear_param_store` before each.
      Functions read the store: give their parameters different names, or wrap each of them in a
      function that enters its own ``pyro.get_param_store().scope(state)``. Parameters of the model
      are those in the store now.
    - A guide that draws nothing, such as that of a semi-implicit generative model trained by its
      marginal likelihood, leaves no posterior: its fresh samples are ``posterior_predictive``,
      because they come from the fitted program, and the two prior groups are left out. They are
      also left out where the prior cannot be drawn from.
    - Latents that the guide does not draw are drawn from the model. Their density stands on both
      sides of the weight and cancels: it is in neither ``lp`` nor ``log_q``, the mean weight is
      still the evidence, and ``lp`` is an estimate from one draw. They are no posterior draws, so
      there is no ``log_likelihood`` then: :math:`p(y \mid z)` would need a mean over them.
    - If the program runs without observations, ``posterior_predictive`` (without a guide,
      ``prior``) holds every site that is left.
    - :func:`pyro.deterministic` sites go with the latents, :func:`pyro.factor` sites nowhere (but
      into ``lp``).
    - ``log_likelihood`` is what ``az.loo`` and ``az.compare`` need (with ``var_name`` where several
      sites are observed). It counts every row once: :func:`pyro.poutine.scale` enters ``lp`` and
      the weight, and not this. Entries that a mask takes out are left out; what remains of such a
      site ``x`` lies along one dimension, ``x_unmasked``. An observed
      :class:`~pyro_sig.distributions.SemiImplicit` gives its estimate over fresh psi: in
      expectation a lower bound of the log-likelihood.
    - The weight of a draw with a :class:`~pyro_sig.distributions.SemiImplicit` site of several rows
      is biased unless it was made with ``share_draws=False``: ``log_q`` and ``log_weight`` are then
      left out, with a warning, as they are where the guide draws what the model lacks. A site
      without a density, such as an :class:`~pyro_sig.distributions.Implicit`, leaves out what would
      need it.

    Dimensions are named after plates; the event dimensions of a site ``x`` are ``x_dim_0``,
    ``x_dim_1``, ... unless ``dims`` names them. A plate that subsamples has other rows in every
    draw, so its sites are left out, with a warning, and ``sample_stats`` with them.

    :param model: a Pyro program.
    :param guide: its guide, or a list of guides, one for each chain. Without a guide and without
        ``posterior``, only the prior groups and ``observed_data`` exist.
    :param args: arguments of ``model`` and ``guide``.
    :param num_samples: draws in each chain.
    :param seed: seed of the draws. If given, the global random states are left untouched; if not,
        the draws consume them.
    :param parallel: run the program once for all draws, as :class:`~pyro.infer.Predictive` does;
        the program must then broadcast under one more plate. The draws of a
        :class:`~pyro_sig.distributions.SemiImplicit` then meet the same fresh psi,
        which makes their weights dependent.
    :param posterior: draws of the latents in place of a guide's, such as
        ``mcmc.get_samples()``: of shape ``[draws, *]`` with the site's own shape, or
        ``[chains, draws, *]``. There is no ``log_q`` then, and ``num_samples`` counts the draws
        from the prior.
    :param log_likelihood: whether to export that group; by default where it exists.
    :param sample_stats: whether to export that group where it exists.
    :param coords: coordinate values of dimensions, by dimension name.
    :param dims: names of dimensions by site: all of them, or those that no plate names.
    :param attrs: further attributes for every group, beside the versions and the seed.
    :param bool progress: show a bar; None does where someone watches: on a terminal or in a
        notebook, not under CI.
    :param kwargs: keyword arguments of ``model`` and ``guide``.
    :return: an ``arviz.InferenceData``, or from ArviZ 1.0 an ``xarray.DataTree``.
    :raises ValueError: if ``num_samples`` is less than 1, if ``model`` or ``guide`` is not
        callable, if they differ in the shape of a site, if the law of an observed site has another
        shape than its data, if rows lack a plate where ``parallel`` is true, if two of several
        guides are the same, if ``posterior`` holds unequal numbers of draws or names that ``model``
        lacks, if ``log_likelihood=True`` and there is none, if a log-density is infinite or NaN at
        a draw of the posterior, if ``dims`` names too few or too many dimensions, or if nothing is
        left to export.

    Source: the InferenceData schema, https://python.arviz.org/en/stable/schema/schema.html.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def model(data):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("row", len(data)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=data)
        >>> def guide(data):
        ...     pyro.sample("loc", dist.Normal(0.4, 0.5))
        >>> idata = to_inference_data(model, guide, torch.zeros(3), num_samples=10, seed=0)
        >>> dict(idata["posterior_predictive"]["x"].sizes)
        {'chain': 1, 'draw': 10, 'row': 3}
        >>> sorted(idata["sample_stats"])
        ['log_q', 'log_weight', 'lp']
    """
    guides = _check_arguments(model, guide, num_samples, posterior, log_likelihood)
    for name, flag in (("parallel", parallel), ("sample_stats", sample_stats)):
        check_flag(name, flag)
    coords, dims, attrs = check_labels(coords, dims, attrs)
    call = Call(args, kwargs)
    groups: dict[str, dict[str, np.ndarray]] = {}
    bar = Progress(progress, None, "draws")
    with bar, random_state(seed), torch.no_grad(), poutine.block():
        given = [] if posterior is None else split_chains(model, call, "posterior", posterior)
        with parameters_of(guides, 0):
            sites = describe_sites(
                model,
                guides[0] if guides else None,
                call,
                {name: value[0] for name, value in given[0].items()} if given else {},
                score=sample_stats or log_likelihood is not False,
            )
        if parallel:
            sites.check_parallel()
        if len(guides) > 1:
            check_guides_differ(guides, call)
        inferred = [name for name in sites.latent if name in sites.guided]
        pointwise = _pointwise_sites(sites, log_likelihood)
        with_lp, with_log_q = _joint_densities(sites, bool(guides), sample_stats)

        chains, log_q = [], []
        for index in range(max(len(guides), len(given))):
            if guides:
                runner = Runner(sites, call, num_samples, parallel, bar=bar)
                with parameters_of(guides, index):
                    draws, log_prob = runner.guide(guides[index], inferred, with_log_q)
                given.append(draws)
                log_q.append({"log_q": log_prob})
            else:
                num_draws = len(next(iter(given[index].values())))
                runner = Runner(sites, call, num_draws, parallel, bar=bar)
            chains.append(
                runner.model(
                    model,
                    given[index],
                    predict=sites.observed or sites.left,
                    score=with_lp,
                    pointwise=pointwise,
                    source="guide" if guides else "posterior",
                )
            )
        if chains:
            groups["posterior"] = stack_chains(
                [draws | chain.deterministic for draws, chain in zip(given, chains, strict=True)]
            )
            groups["posterior_predictive"] = stack_chains([chain.predicted for chain in chains])
            groups["log_likelihood"] = stack_chains([chain.log_likelihood for chain in chains])
        if with_lp:
            stats = stack_chains([{"lp": chain.log_joint} for chain in chains])
            if with_log_q:
                stats |= stack_chains(log_q)
                stats["log_weight"] = stats["lp"] - stats["log_q"]
            groups["sample_stats"] = stats
        if inferred or not chains:
            latent = sites.latent + (sites.deterministic if sites.latent else [])
            runner = Runner(sites, call, num_samples, parallel, bar=bar)
            try:
                prior = stack_chains([runner.release(model, {}, latent + sites.observed)])
            except NotImplementedError:  # an improper prior
                prior = {}
            groups["prior"] = {name: prior[name] for name in latent if name in prior}
            groups["prior_predictive"] = {n: prior[n] for n in sites.observed if n in prior}
        groups["observed_data"] = {name: to_numpy(sites.values[name]) for name in sites.observed}

    for group, values in groups.items():
        if group not in _BY_POSTERIOR_DRAW:
            groups[group] = {
                name: sites.shaped(name, array, num_lead=0 if group == "observed_data" else 2)
                for name, array in values.items()
                if name not in sites.subsampled
            }
    if sites.subsampled:
        left_out = ", ".join(f"{name} (plate {plate})" for name, plate in sites.subsampled.items())
        warnings.warn(
            f"These sites are inside a plate that subsamples, and are left out: {left_out}. "
            "Run the program on whole plates to export them, and the log-densities of the draws; "
            "an autoguide needs `create_plates` to follow.",
            stacklevel=2,
        )
    used = {
        name: np.any([to_numpy(chain.unmasked[name]) for chain in chains], axis=0)
        for name in pointwise
    }
    groups["log_likelihood"], pointwise_dims, indices = label_pointwise(
        sites, groups.get("log_likelihood", {}), used
    )
    return export(
        groups,
        coords={**coords, **indices},
        dims=sites.merge_dims(dims),
        attrs={**({} if seed is None else {"seed": seed}), **attrs},
        pointwise=pointwise_dims,
    )


def draws_to_inference_data(
    posterior: Draws | None = None,
    *,
    prior: Draws | None = None,
    posterior_predictive: Draws | None = None,
    prior_predictive: Draws | None = None,
    log_likelihood: Draws | None = None,
    sample_stats: Draws | None = None,
    observed_data: Draws | None = None,
    chains: bool = False,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """Labels draws that are already at hand for ArviZ.

    :param posterior: draws by name, each of shape ``[draws, *]``; they become one chain.
    :param prior: draws from the prior, shaped alike.
    :param posterior_predictive: draws of the observed quantities from the fitted program.
    :param prior_predictive: draws of the observed quantities from the prior.
    :param log_likelihood: the log-density of every observation at every draw of ``posterior``, by
        observed quantity.
    :param sample_stats: what else is known of every draw of ``posterior``, such as ``lp``,
        ``log_q`` and ``log_weight``, or the ``diverging`` of NUTS.
    :param observed_data: the data by name, of shape ``[*]``, without draws.
    :param chains: whether all draws but those from the prior have shape ``[chains, draws, *]``, as
        those of ``mcmc.get_samples(group_by_chain=True)``.
    :param coords: coordinate values of dimensions, by dimension name.
    :param dims: names of the dimensions after ``draws``, by variable.
    :param attrs: further attributes for every group, beside the versions.
    :return: an ``arviz.InferenceData``, or from ArviZ 1.0 an ``xarray.DataTree``.
    :raises ValueError: if there is nothing to export, if an entry is no array, if the entries
        of a group differ in their number of draws or ``log_likelihood`` and ``sample_stats`` from
        ``posterior`` in theirs, or if one of these two holds infinite values or NaN.

    Source: the InferenceData schema, https://python.arviz.org/en/stable/schema/schema.html.

    Example::

        >>> idata = draws_to_inference_data({"z": torch.zeros(10, 2)}, dims={"z": ["axis"]})
        >>> dict(idata["posterior"]["z"].sizes)
        {'chain': 1, 'draw': 10, 'axis': 2}
    """
    groups = {
        "posterior": posterior,
        "posterior_predictive": posterior_predictive,
        "log_likelihood": log_likelihood,
        "sample_stats": sample_stats,
        "prior": prior,
        "prior_predictive": prior_predictive,
        "observed_data": observed_data,
    }
    check_flag("chains", chains)
    coords, dims, attrs = check_labels(coords, dims, attrs)
    arrays: dict[str, dict[str, np.ndarray]] = {}
    counts: dict[str, tuple[int, ...]] = {}
    for group, values in groups.items():
        if values is None:
            continue
        check_tensors(group, values)
        arrays[group] = {name: to_numpy(value) for name, value in values.items()}
        if group == "observed_data" or not values:
            continue
        grouped = chains and group in _BY_CHAIN
        num_lead = 2 if grouped else 1
        leads = {name: array.shape[:num_lead] for name, array in arrays[group].items()}
        counts[group] = lead = next(iter(leads.values()))
        if len(set(leads.values())) > 1 or len(lead) < num_lead or 0 in lead:
            raise ValueError(
                f"`{group}` must hold entries of shape [{'chains, ' * grouped}draws, ...] with the "
                f"same number of draws, at least 1, but the leading shapes were {leads}"
            )
        if not grouped:
            arrays[group] = {name: array[np.newaxis] for name, array in arrays[group].items()}
    for group in _BY_POSTERIOR_DRAW:
        if group not in counts:
            continue
        if counts[group] != counts.get("posterior", counts[group]):
            raise ValueError(
                f"`{group}` must hold one entry for each draw of `posterior`, whose leading shape "
                f"is {counts['posterior']}, but its own was {counts[group]}"
            )
        for name, array in arrays[group].items():
            num_bad = int((~np.isfinite(array)).sum())
            if num_bad:
                raise ValueError(
                    f"`{group}` must be finite, but {name!r} was infinite or NaN in {num_bad} of "
                    f"{array.size} entries"
                )
    return export(arrays, coords=coords, dims=dims, attrs=attrs)


# ------------------------------------------------------------------------------------ what is asked


def _check_arguments(
    model: Callable[..., Any],
    guide: Callable[..., Any] | Sequence[Callable[..., Any]] | None,
    num_samples: int,
    posterior: Draws | None,
    log_likelihood: bool | None,
) -> list[Callable[..., Any]]:
    check_integer("num_samples", num_samples, 1)
    check_callable("model", model)
    if guide is None:
        guides = []
    elif isinstance(guide, (list, tuple)):
        guides = list(guide)
        if not guides or not all(is_function(one) for one in guides):
            of_fit = is_function(getattr(guide, "guide", None))
            remedy = f": pass the guide of the {type(guide).__name__}, its `.guide`"
            raise ValueError(
                "`guide` must hold at least one callable where it is a sequence, held "
                f"{describe(guides)}{remedy if of_fit else ''}"
            )
        if len({id(one) for one in guides}) < len(guides):
            raise ValueError(
                "`guide` must hold independently trained guides, held one of them twice"
            )
    elif not is_function(guide):
        must_be = "a function, a module or None, with the program's own arguments after it"
        raise refusal("guide", must_be, guide)
    else:
        guides = [guide]
        refuse_foreign_parameters(guide)
    if posterior is not None:
        if guides:
            raise ValueError("`posterior` must be None where a `guide` is given, was not")
        check_tensors("posterior", posterior)
        if not posterior:
            raise ValueError("`posterior` must hold draws of the latents, was empty")
    if not (log_likelihood is None or is_flag(log_likelihood)):
        raise refusal("log_likelihood", "True, False or None", log_likelihood)
    return guides


def _pointwise_sites(sites: Sites, log_likelihood: bool | None) -> list[str]:
    """Lists the observed sites whose log-likelihood can be exported."""
    if log_likelihood is False:
        return []
    missing = None
    if not sites.observed:
        missing = "`model` has no observations"
    elif not sites.guided:
        missing = "there are no draws of a posterior"
    elif sites.left:
        missing = f"the latents {sites.left} are not among the draws of the posterior"
    found = [
        name
        for name in sites.observed
        if name in sites.log_prob_shapes and name not in sites.subsampled and not missing
    ]
    if log_likelihood and len(found) < len(sites.observed):
        for name in sites.observed:
            if name in sites.unscored:
                missing = missing or f"the law of the site {name!r} has no log_prob"
            if name in sites.subsampled:
                missing = missing or f"the site {name!r} is inside a plate that subsamples"
    if log_likelihood and missing:
        raise ValueError(f"`log_likelihood` must be None or False where {missing}, was True")
    return found


def _joint_densities(sites: Sites, has_guide: bool, sample_stats: bool) -> tuple[bool, bool]:
    """Tells whether log p(x, z) and whether log q(z) of the draws can be exported."""
    with_lp = bool(sample_stats and sites.guided and not sites.unscored and not sites.subsampled)
    with_log_q = with_lp and has_guide and not sites.unscored_guide
    reason = sites.bias if with_log_q else None
    if sites.foreign and sample_stats:  # its density would count in log q(z), or a name is misspelt
        reason = f"`guide` draws {sites.foreign[0]!r}, which `model` lacks"
    if reason:
        warnings.warn(f"`sample_stats` goes without log_q and log_weight: {reason}.", stacklevel=3)
        with_log_q = False
    return with_lp, with_log_q
