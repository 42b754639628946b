"""Runs of a program, and what they touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_sig._program_run import ParamTap
from pyro_sig._release import Release
from pyro_sig.adversarial.views import psi_law
from pyro_sig.distributions import SemiImplicit

__all__ = ["Given", "ReleasedRun", "Tap"]


class Tap(ParamTap):
    """Notes the parameters that programs read, and the last message of every sample site."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: dict[str, dict[str, Any]] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        self.nodes[msg["name"]] = msg

    def psi(self, name: str, event_shape: torch.Size) -> Tensor | None:
        """Returns the psi that an evidence bound has drawn at a site, ``[M, *event_shape]``.

        :param str name: the site.
        :param event_shape: shape of one psi.
        :return: None if the rows do not share their psi.
        """
        site = self.nodes[name]
        law = psi_law(site["fn"])
        psi = law.shared_psi if isinstance(law, SemiImplicit) else site["value"]
        if psi is None or psi.numel() != len(psi) * event_shape.numel():
            return None
        return psi.reshape(len(psi), *event_shape)

    def log_density(self) -> Tensor | None:
        """Adds up the scaled and masked log-densities of all sites; None if a site is not observed.

        For a program of observed sites this is what ``Trace_ELBO`` computes, which takes twice the
        time where networks are small.
        """
        names = [n for n, site in self.nodes.items() if not site_is_subsample(site)]  # type: ignore[arg-type]
        if not all(self.nodes[name]["is_observed"] for name in names):
            return None
        return self.log_density_of(names)

    def log_density_of(self, names: Iterable[str]) -> Tensor | None:
        """Adds up the scaled and masked log-densities of some sites; None if there are none.

        :param names: the sites.
        """
        total: Tensor | None = None
        for name in names:
            site = self.nodes[name]
            log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
            log_prob = scale_and_mask(log_prob, site["scale"], site["mask"]).sum()
            total = log_prob if total is None else total + log_prob
        return total


class Given(Messenger):
    """Lets sites have the values that they had elsewhere, so that nothing is drawn for them.

    :param values: by name, of latent sites or of the rows that plates draw.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._values and not msg["is_observed"]:
            msg["value"] = self._values[msg["name"]]
            msg["done"] = True


class ReleasedRun(Tap, Release):
    """The same of a run whose observations are released: one messenger, where speed matters.

    :func:`pyro.poutine.trace` and a messenger for each task take a tenth of a small network's step
    more.
    """

    def trace(self) -> Trace:
        """Returns the run as Pyro's own record."""
        trace = Trace()
        for name, message in self.nodes.items():
            trace.add_node(name, **message)
        return trace
