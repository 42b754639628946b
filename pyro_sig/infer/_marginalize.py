"""Marginalises implicit sites: one enumerated index over joint atoms for each plate context."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution, Independent, constraints

from pyro_sig._arguments import check_integer
from pyro_sig._rank_sum import own_share
from pyro_sig.distributions import Implicit, Terms, log_mixture, pairwise_terms
from pyro_sig.distributions.log_mixture import full_precision
from pyro_sig.distributions.pairwise import loses_digits

__all__ = [
    "MarginalizeImplicit",
    "NeedsIndexError",
    "PairwiseEmission",
    "check_scales",
    "explained_errors",
    "implicit_of",
    "refuse_guided_sites",
]


def implicit_of(fn: Any) -> Implicit | None:  # noqa: ANN401 - a site's fn may be anything
    """Finds the implicit distribution of a sample site, through ``Independent``."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn if isinstance(fn, Implicit) else None


def _draw_new(implicit: Implicit, size: int) -> Tensor:
    return implicit.rsample((size,))


class Atoms(TorchDistribution):
    """Stands in for an implicit site whose atoms are chosen by an enumerated index.

    Its log-density is zero: the index carries the weight 1 / M.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Atoms:  # noqa: ANN401
        return Atoms(torch.Size(batch_shape), self.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_zeros(()).expand(self.batch_shape)


class PairwiseEmission(TorchDistribution):
    """Stands in for an observed site that was expanded to [M, N]: scores it by a matrix product."""

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self,
        emission: Distribution,
        terms: Terms,
        inner_shape: torch.Size,
        batch_shape: Sequence[int],
        dtype: torch.dtype | None = None,
    ) -> None:
        self.emission = emission
        self.terms = terms
        self.inner_shape = inner_shape
        self.dtype = dtype  # of what its scores are contracted with, if with anything
        super().__init__(torch.Size(batch_shape), emission.event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """Support of the emission."""
        return self.emission.support  # type: ignore[return-value]

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> PairwiseEmission:  # noqa: ANN401
        """Returns the same scores, broadcast to another batch shape."""
        shape = self.inner_shape
        return PairwiseEmission(self.emission, self.terms, shape, batch_shape, self.dtype)

    def _validate(self, value: Tensor) -> None:
        if self.emission._validate_args:
            self.emission._validate_sample(value)

    def mixture_log_prob(
        self, value: Tensor, shared: Sequence[int] = (), mask: Any = None
    ) -> Tensor:
        """Sums over the components, of which there must be one dimension.

        :param torch.Tensor value: the data.
        :param shared: plates, as negative dimensions, along which the data share a component:
            their statistics are added before the matrix product.
        :param mask: which data count, by default all.
        :return: shape ``[*plates]``, 1 along the shared ones.
        """
        terms, plates = self._added(value, shared, mask)
        log_sum = log_mixture(terms.statistics, terms.natural, terms.log_normalizer)
        return (log_sum + terms.carrier).reshape(plates).to(self.terms.carrier.dtype)

    def pair_log_prob(self, value: Tensor, shared: Sequence[int] = (), mask: Any = None) -> Tensor:
        """Scores as :meth:`mixture_log_prob` does before its sum: shape ``[M, *plates]``."""
        (statistics, carrier, natural, log_normalizer), plates = self._added(value, shared, mask)
        with full_precision(statistics.device):
            scores = torch.addmm(-log_normalizer, statistics, natural.mT) + carrier.unsqueeze(-1)
        return scores.mT.reshape(-1, *plates).to(self.terms.carrier.dtype)

    def _added(self, value: Tensor, shared: Sequence[int], mask: Any) -> tuple[Terms, torch.Size]:
        """Terms of the data that share a component, and the plates that are left."""
        self._validate(value)
        terms, plates = self.terms, self.inner_shape[1:]
        if shared or mask is not None:
            terms = _add_statistics(terms, plates, shared, mask)
            sizes = (1 if i - len(plates) in shared else n for i, n in enumerate(plates))
            plates = torch.Size(sizes)
        return terms, plates

    def log_prob(self, value: Tensor) -> Tensor:
        """Scores every (component, datum) pair."""
        self._validate(value)
        statistics, carrier, natural, log_normalizer = self.terms
        # One column per datum: the enumerated index is on the left in the program.
        with full_precision(statistics.device):
            scores = torch.addmm((-log_normalizer).unsqueeze(-1), natural, statistics.mT) + carrier
        # Far data are scored in double precision.
        scores = scores.to(self.dtype or scores.dtype)
        return scores.reshape(self.inner_shape).expand(self.batch_shape)


def _add_statistics(terms: Terms, plates: torch.Size, shared: Sequence[int], mask: Any) -> Terms:
    """Adds the log-densities of the data along some plates, pair by pair with a component."""
    # How many data stand in a sum becomes a statistic, and the normaliser its parameter.
    counted = torch.cat([terms.statistics, torch.ones_like(terms.carrier).unsqueeze(-1)], -1)
    counted, carrier = counted.double(), terms.carrier.double()
    if mask is not None:
        kept = torch.as_tensor(mask, device=carrier.device).expand(plates).reshape(-1)
        counted = counted.masked_fill(~kept.unsqueeze(-1), 0.0)
        carrier = carrier.masked_fill(~kept, 0.0)
    if shared:
        counted = counted.reshape(*plates, -1).sum([d - 1 for d in shared])
        carrier = carrier.reshape(plates).sum(tuple(shared))
    natural = torch.cat([terms.natural, -terms.log_normalizer.unsqueeze(-1)], -1)
    added = Terms(
        counted.reshape(-1, counted.shape[-1]),
        carrier.reshape(-1),
        natural.double(),
        torch.zeros_like(terms.log_normalizer).double(),
    )
    single = Terms(*(x.to(terms.natural) for x in added))
    return added if loses_digits(single) else single


class NeedsIndexError(Exception):
    """Raised by a run without an index at the second implicit site."""


class MarginalizeImplicit(Messenger):
    """Turns every implicit site into M atoms under an enumerated index.

    Sites in the same plate context share one index: their atoms are joint draws. Observed sites
    that depend on nothing but indices are scored by a matrix product where a form exists; the
    others are left alone, and ``broadcast_sites`` says why.

    :param int num_mixing: number M of atoms.
    :param int max_plate_nesting: dimensions that belong to plates; indices lie to the left.
    :ivar float largest_draw: if set, no index is made: at most this many atoms stand at dimension
        ``-1 - max_plate_nesting``, for a caller who reduces it.
    :ivar callable draw: (implicit distribution, largest number) -> its atoms, by default as many
        new ones.
    :ivar mixing_group: processes that share the atoms out, where no index is made.
    """

    def __init__(self, num_mixing: int, max_plate_nesting: float) -> None:
        super().__init__()
        self.num_mixing = num_mixing
        self.max_plate_nesting = max_plate_nesting
        self.largest_draw: float | None = None
        self.draw: Callable[[Implicit, int], Tensor] = _draw_new
        self.mixing_group: Any = None
        self.requested: dict[str, int] = {}
        self.implicit_sites: dict[str, str] = {}
        self.broadcast_sites: dict[str, str] = {}
        self.atoms: dict[str, tuple[Tensor, int]] = {}
        self._indices: dict[tuple, tuple[int, Tensor, str]] = {}
        self._dims: dict[tuple, int] = {}
        self._device: torch.device | None = None  # of the draws, as their type
        self._dtype: torch.dtype | None = None

    def __enter__(self) -> MarginalizeImplicit:
        self.implicit_sites.clear()
        self.broadcast_sites.clear()
        self.atoms.clear()
        self._indices.clear()
        self._dims.clear()
        self._device = self._dtype = None
        return super().__enter__()

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["infer"].get("_deterministic"):
            return  # a record, which scores nothing
        if msg["is_observed"]:
            self._meet_data(msg)
            if self.max_plate_nesting < float("inf"):
                self._refuse_other_plates(msg)
                self._score_by_product(msg)
        elif implicit_of(msg["fn"]) is not None and msg["value"] is None:
            self._place_atoms(msg)
        elif msg["name"].endswith("_unobserved") and msg["value"] is None and self._dims:
            raise ValueError(
                f"`obs_mask` must be None below an implicit site: it makes a latent "
                f"{msg['name']!r} of what is missing, which no guide has. Leave that out of the "
                "score instead: pyro.sample(name, law, obs=obs.nan_to_num()) under "
                "pyro.poutine.mask(mask=obs_mask)"
            )

    # ----------------------------------------------------------------------------------- atoms

    def _place_atoms(self, msg: dict[str, Any]) -> None:
        name, fn = msg["name"], msg["fn"]
        implicit = implicit_of(fn)
        assert implicit is not None
        own = implicit.own_batch_shape
        self._refuse_chains(msg, own)
        num_mixing = msg["infer"].get("num_mixing", self.num_mixing)
        check_integer(f"num_mixing` at site `{name}", num_mixing, 1)
        self.requested[name] = num_mixing
        if self.largest_draw is not None:
            num_mixing = int(min(own_share(num_mixing, self.mixing_group), self.largest_draw))
        psi = self.draw(implicit.expand(own), num_mixing)
        dim = self._enumerated_dim(msg, psi, len(implicit.batch_shape))
        if dim is None:  # a run without enumeration, such as the search for plates
            psi = implicit.rsample()
        else:  # draws at the index's dimension, plates in their own: [M, 1, .., 1, *own, *event]
            ones = (1,) * (-dim - 1 - len(own))
            psi = psi.reshape(psi.shape[:1] + ones + psi.shape[1:])
            self.atoms[name] = psi, len(fn.event_shape)
        self._device, self._dtype = psi.device, psi.dtype
        msg["fn"] = Atoms(fn.batch_shape, fn.event_shape, validate_args=False)
        msg["value"] = psi
        msg["is_observed"] = True  # nothing is left to infer: no guide site is missed

    def _refuse_chains(self, msg: dict[str, Any], own: torch.Size) -> None:
        if self.max_plate_nesting < float("inf"):
            left = own[: max(0, len(own) - int(self.max_plate_nesting))]
            if any(size > 1 for size in left):
                raise ValueError(
                    f"implicit site '{msg['name']}' depends on another enumerated site (`inputs` "
                    f"have batch shape {tuple(own)}): a chain would take M x M draws. Draw "
                    "the chain jointly, by one Implicit whose transform returns all of it"
                )
        if msg["infer"].get("_markov_scope") is not None:
            raise ValueError(
                f"implicit site '{msg['name']}' must not stand inside pyro.markov, which needs an "
                "index of its own at every step; use a sequential pyro.plate or draw the steps "
                "jointly"
            )

    def _enumerated_dim(self, msg: dict[str, Any], psi: Tensor, num_plates: int) -> int | None:
        """Dimension of the index of this plate context; creates its site at the first call."""
        name, num_mixing = msg["name"], len(psi)
        # A sequential plate counts its iterations: each is a context of its own.
        context = tuple(sorted((f.name, f.counter) for f in msg["cond_indep_stack"]))
        if self.largest_draw is not None:
            self.implicit_sites[name] = ""
            if len(self.implicit_sites) > 1:
                raise NeedsIndexError
            self._dims[context] = -1 - int(self.max_plate_nesting)
            return self._dims[context]
        if context not in self._indices:
            label = ", ".join(f"{plate}:{step}" if step else plate for plate, step in context)
            uniform = dist.Categorical(logits=psi.new_zeros(num_mixing))
            index_name = f"mixing_index[{label}]"
            index = pyro.sample(index_name, uniform, infer={"enumerate": "parallel"})
            self._indices[context] = (num_mixing, index, index_name)
        size, index, index_name = self._indices[context]
        if size != num_mixing:
            raise ValueError(
                f"`num_mixing` at site '{name}' must be {size}, as at the other implicit sites of "
                f"its plates, which share joint draws; was {num_mixing}"
            )
        self.implicit_sites[name] = index_name
        if index.dim() <= num_plates:
            return None
        self._dims[context] = -index.dim()
        return self._dims[context]

    def rows_of_atoms(self, name: str, num_rows: int) -> Tensor:
        """Returns the atoms of a site without the dimensions of other plates and indices.

        :param str name: the implicit site.
        :param int num_rows: how many of its dimensions are plates.
        :return: psi of shape ``[M, *rows or 1, *event_shape]``.
        """
        psi, event_dim = self.atoms[name]
        return psi.reshape(len(psi), *psi.shape[psi.dim() - event_dim - num_rows :])

    # -------------------------------------------------------------------------------- emissions

    def _meet_data(self, msg: dict[str, Any]) -> None:
        """Checks that data can meet the draws; makes numbers of what is true or false."""
        value = msg["value"]
        if self._device is None or not isinstance(value, Tensor):
            return
        if value.device != self._device or value.layout != torch.strided:
            raise ValueError(
                f"`obs` of site {msg['name']!r} must be a dense tensor on {self._device}, where "
                f"the implicit draws are, was {value.layout} on {value.device}"
            )
        if value.dtype == torch.bool:
            msg["value"] = value.to(self._dtype)

    def _refuse_other_plates(self, msg: dict[str, Any]) -> None:
        """Checks that data that depend on an index have the plates of its sites."""
        batch_shape = getattr(msg["fn"], "batch_shape", ())
        own = {frame.name for frame in msg["cond_indep_stack"]}
        for context, dim in self._dims.items():
            if len(batch_shape) >= -dim and batch_shape[dim] > 1:
                missing = [plate for plate, _ in context if plate not in own]
                if missing:
                    raise ValueError(
                        f"observed site '{msg['name']}' must stand inside of the plates of the "
                        f"implicit sites that it depends on, but is outside of {missing}. {_RAGGED}"
                    )

    def _score_by_product(self, msg: dict[str, Any]) -> None:
        name, fn, value = msg["name"], msg["fn"], msg["value"]
        if not isinstance(fn, TorchDistributionMixin) or not isinstance(value, Tensor):
            return
        num_plates = int(self.max_plate_nesting)
        component_dims = len(fn.batch_shape) - num_plates
        if component_dims < 1 or math.prod(fn.batch_shape[:component_dims]) == 1:
            return  # depends on no index
        shape = fn.batch_shape[component_dims:] + fn.event_shape
        _check_shape(name, value, shape)
        rows = value.expand(shape).reshape(-1, *fn.event_shape)
        terms = pairwise_terms(fn, rows, component_dims)
        if isinstance(terms, Terms):
            shape = fn.batch_shape
            dtype = self._dtype if self.largest_draw is None else None  # by Pyro's enumeration
            msg["fn"] = PairwiseEmission(fn, terms, shape, shape, dtype)
        else:
            self.broadcast_sites[name] = terms


def _check_shape(name: str, value: Tensor, shape: torch.Size) -> None:
    lengths = zip(reversed(value.shape), reversed(shape), strict=False)
    if value.dim() > len(shape) or any(own not in (1, size) for own, size in lengths):
        raise ValueError(
            f"`obs` of site {name!r} must have the shape {tuple(shape)} of its distribution and "
            f"plates, was {tuple(value.shape)}"
        )


def refuse_guided_sites(messenger: MarginalizeImplicit, guide_trace: Trace) -> None:
    """Checks that a guide leaves the implicit sites alone.

    :param MarginalizeImplicit messenger: after a run of the model.
    :param guide_trace: the guide's trace.
    :raises ValueError: if it samples one of them.
    """
    guided = [name for name in messenger.implicit_sites if name in guide_trace]
    if guided:
        raise ValueError(
            "`guide` must not sample the implicit sites, which SIG_ELBO marginalises and which "
            f"have no density; was a guide of {guided}"
        )


_ONE_SCALE = (
    "sites that share an implicit site's index must share one scale: an implicit site above a "
    "subsampled plate, or plates subsampled at two levels, cannot be marginalised, because the "
    "scale would stand inside the logarithm. Use the full data in the inner plate, or subsample "
    "at the outermost plate only"
)


def check_scales(trace: Trace, *names: str) -> None:
    """Checks that sites have one scale: a number, or a tensor with one weight for each row.

    :param trace: the model's trace.
    :param str names: sites that are summed out together.
    :raises ValueError: if their scales differ.
    """
    first, *others = (trace.nodes[name]["scale"] for name in names)
    if not all(_equal(first, other) for other in others):
        raise ValueError(_ONE_SCALE)


def _equal(a: Tensor | float, b: Tensor | float) -> bool:
    if a is b:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        one, other = torch.as_tensor(a), torch.as_tensor(b)
        return one.shape == other.shape and bool((one == other).all())
    return a == b  # numbers: no wait for a device


_RAGGED = (
    "Draws of an implicit site are shared by the rows of its plates, so rows cannot be chosen by "
    "an index: lay groups of unequal size out as [observation, group], nested plates with a mask; "
    "pyro_sig.datasets.pad_groups does it"
)


@contextmanager
def explained_errors() -> Iterator[None]:
    """Explains errors about differently scaled plates, and about rows chosen by an index."""
    try:
        yield
    except IndexError as error:
        raise ValueError(f"`model` failed under shared draws: {error}. {_RAGGED}") from error
    except ValueError as error:
        if "common poutine.scale" in str(error):
            raise ValueError(_ONE_SCALE) from error
        if "only supports scalar poutine.scale" in str(error):
            raise ValueError(
                "`poutine.scale` must be a number where several sites are summed out; a weight for "
                "each row is possible in a program of one implicit and one observed site"
            ) from error
        raise
