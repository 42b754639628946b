"""What a critic sees of a run of the program: the observed sites, or the psi behind them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from pyro_sig._arguments import check_instance, describe
from pyro_sig.adversarial._units import (
    Run,
    find_unit_plates,
    finish_rows,
    observed_sites,
    unit_mask,
    unit_rows,
    whole_units,
)
from pyro_sig.distributions import Implicit, SemiImplicit

__all__ = ["ObservedView", "PsiView", "Value", "View"]

# One tensor, or several that a critic takes as several arguments.
Value = Tensor | tuple[Tensor, ...]


class View:
    """Maps a run of the program to what the critic sees, ``view(trace) -> (real, fake)``.

    The trace is that of the program with its observations released: the ``"value"`` of an
    observed site is the fake, its ``["infer"]["obs"]`` the data. Any function will do; this class
    is for those that the library knows.

    Example::

        >>> def standardized(trace):
        ...     site = trace.nodes["x"]
        ...     return site["infer"]["obs"] / 100, site["value"] / 100
    """

    # The plates whose rows are the units, as of the last run.
    plates: frozenset[str] | None = None

    def __call__(self, trace: Run) -> tuple[Value, Value]:
        """Returns what the critic sees of the data and of the program's draws.

        :param trace: a run of the program with its observations released.
        :return: real and fake, each a tensor of shape ``[units, ...]`` or a tuple of such.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class ObservedView(View):
    r"""Shows the observed sites, one row for each exchangeable unit.

    .. math::
        \{x_i\} \text{ against } \{\tilde x_i\}, \qquad \tilde x_i \sim p_\theta

    The unit is a row of the plates that hold every random site of the program: with groups of
    rows that share a latent it is the whole group, of shape ``[rows, *event]``. Entries that
    :func:`pyro.poutine.mask` switches off are zero on both sides, units without any are left out.
    Units that are single numbers have shape ``[units, 1]``.
    Several observed sites become several arguments of the critic, in the order of the program.

    :raises ValueError: if no site is observed, if data do not have the shape of their site, or
        if no plate makes units.

    Example::

        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro_sig.adversarial import GAN, objectives
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.zeros(2))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)
        >>> critic = torch.nn.Linear(2, 1)
        >>> critic_optim = torch.optim.SGD(critic.parameters(), lr=0.1)
        >>> optim = pyro.optim.SGD({"lr": 0.1})
        >>> gan = GAN(model, critic, optim, critic_optim, view=ObservedView())
        >>> [tuple(part.shape) for part in gan.values(torch.ones(5, 2))]
        [(5, 2), (5, 2)]
    """

    def __init__(self) -> None:
        self._structure: tuple[str, ...] | None = None
        self._names: list[str] = []

    def __call__(self, trace: Run) -> tuple[Value, Value]:
        """Returns the data and the draws; see :class:`View`."""
        structure = tuple(trace.nodes)
        if structure != self._structure:  # which plates make units is found once
            self._names, self.plates = list(observed_sites(trace)), find_unit_plates(trace)
            self._structure = structure
        plates = self.plates or frozenset()
        reals, fakes = [], []
        for name in self._names:
            site: Any = trace.nodes[name]
            real = real_rows(name, site, plates)
            fake = unit_rows(site, site["value"], len(site["fn"].event_shape), plates)
            real, fake = finish_rows((real, fake), unit_mask(site, plates))
            reals.append(real)
            fakes.append(fake)
        return as_value(reals), as_value(fakes)


class PsiView(View):
    r"""Shows the psi of a semi-implicit site in place of the data that it emits.

    .. math::
        \{x_i\} \text{ against } \{\psi_i\}, \qquad \psi_i = T_\phi(\epsilon_i), \quad
        \tilde x_i \sim p(x \mid \psi_i)

    :param str site: the site of an :class:`~pyro_sig.distributions.Implicit`, or an observed
        :class:`~pyro_sig.distributions.SemiImplicit`.
    :raises ValueError: if `site` is no name; when called, if the site is not one of these, or not
        exactly one site is observed.

    **Source:** Yin and Zhou, *Semi-Implicit Generative Model* (2019), eq. 11 and 12: the critic of
    a GAN-SI sees the psi.

    Example::

        >>> PsiView("x")
        PsiView('x')
    """

    def __init__(self, site: str) -> None:
        check_instance("site", site, str, "the name of a site")
        self.site = site

    def __repr__(self) -> str:
        return f"PsiView({self.site!r})"

    def __call__(self, trace: Run) -> tuple[Value, Value]:
        """Returns the data and the psi; see :class:`View`."""
        self.plates = plates = find_unit_plates(trace)
        observed = observed_sites(trace)
        if len(observed) != 1:
            raise ValueError(
                f"`view` must be a function of the trace for several observed sites "
                f"{list(observed)}, was {self!r}"
            )
        ((name, data),) = observed.items()
        real = real_rows(name, data, plates)
        site: Any = trace.nodes.get(self.site)
        law = None if site is None else psi_law(site["fn"])
        if isinstance(law, SemiImplicit):
            psi = unit_rows(site, law.psi(site["value"]), len(law.mixing.event_shape), plates)
        elif isinstance(law, Implicit):
            psi = unit_rows(site, site["value"], len(site["fn"].event_shape), plates)
        else:
            was = "not in the program" if site is None else type(site["fn"]).__name__
            raise ValueError(
                "`view` must name the site of an Implicit or of an observed SemiImplicit, but "
                f"{self.site!r} was {was}"
            )
        mask = unit_mask(data, plates)
        return finish_rows([real], mask)[0], finish_rows([psi], whole_units(mask))[0]


def psi_law(fn: Any) -> Implicit | SemiImplicit | None:  # noqa: ANN401 - any site's fn
    """Finds the law that draws psi at a site, through ``Independent``."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn if isinstance(fn, (Implicit, SemiImplicit)) else None


def find_psi_site(trace: Run) -> str | None:
    """Finds the site whose psi can stand beside the data: the mean of what each of them emits.

    :param trace: of a program whose observations were released.
    :return: its name, or None if there is none.
    :raises ValueError: if there are several.
    """
    observed = observed_sites(trace)
    if len(observed) != 1:
        return None
    found = []
    for name, site in trace.nodes.items():
        law = psi_law(site["fn"]) if site["type"] == "sample" else None
        if isinstance(law, SemiImplicit) and name in observed:
            origin = law.origin(site["value"])
            if _is_mean(origin.psi, origin.conditional):
                found.append(name)
        elif isinstance(law, Implicit) and name not in observed:
            ((_, data),) = observed.items()
            if _is_mean(site["value"], data["fn"]):
                found.append(name)
    if len(found) > 1:
        raise ValueError(
            "`view` must say which psi the critic sees, PsiView(site), where several sites give "
            f"the mean of the data: {found}"
        )
    return found[0] if found else None


def _is_mean(psi: Tensor, conditional: Distribution) -> bool:
    try:
        mean = conditional.mean
    except NotImplementedError:
        return False
    return psi.shape == mean.shape and torch.allclose(psi, mean)


def real_rows(name: str, site: dict[str, Any], plates: frozenset[str]) -> Tensor:
    """Lays out the data of a released site, in the shape that its distribution has.

    :raises ValueError: if the data do not have it.
    """
    fn: Distribution = site["fn"]
    data = as_data(name, site["infer"]["obs"], fn.batch_shape + fn.event_shape, site["value"])
    return unit_rows(site, data, len(fn.event_shape), plates)


def as_data(name: str, obs: Any, shape: torch.Size, like: Tensor) -> Tensor:  # noqa: ANN401
    """Makes a tensor of what is observed at a site, and compares it with what it stands beside.

    :param str name: of the site.
    :param obs: what was observed.
    :param shape: that of its distribution and plates.
    :param torch.Tensor like: a draw.
    :raises ValueError: if it is none, of another shape, or elsewhere.
    """
    try:
        data = obs if isinstance(obs, Tensor) else torch.as_tensor(obs, device=like.device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"`obs` of site {name!r} must be a tensor or numbers, was {describe(obs)}"
        ) from error
    if data.device != like.device or data.layout != torch.strided:
        raise ValueError(
            f"`obs` of site {name!r} must be a dense tensor on {like.device}, as the draws are, "
            f"was {data.layout} on {data.device}"
        )
    if data.shape != shape:
        try:
            data = data.expand(shape)
        except RuntimeError:
            raise ValueError(
                f"`obs` of site {name!r} must have the shape {tuple(shape)} of its distribution "
                f"and plates, was {tuple(data.shape)}"
            ) from None
    return data


def as_value(parts: list[Tensor]) -> Value:
    """Returns a lone tensor as it is, several as a tuple."""
    return parts[0] if len(parts) == 1 else tuple(parts)


def as_parts(value: Value) -> tuple[Tensor, ...]:
    """Returns what the critic takes as arguments."""
    return value if isinstance(value, tuple) else (value,)
