"""What the semi-implicit objectives share: traces, the target's score, inner networks."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta, MaskedDistribution
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.infer import ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, TransformedDistribution, constraints

from pyro_sig._arguments import check_number
from pyro_sig._show_settings import show_settings
from pyro_sig.distributions import Implicit, ParticleMixing, SemiImplicit
from pyro_sig.distributions.components import component_log_prob
from pyro_sig.distributions.lineage import Origin
from pyro_sig.distributions.mixing_noise import noise_law
from pyro_sig.infer._check_elbo import check_elbo
from pyro_sig.infer._paired_traces import paired_traces, runs_model

__all__ = [
    "Draw",
    "InnerNetworks",
    "Joint",
    "SemiImplicitObjective",
    "batch_law",
    "one_law",
    "real_noise",
]


# How many parameters an error message lists.
_MAX_LISTED = 8


class Draw(NamedTuple):
    """Holds one semi-implicit site of a guide's trace.

    :param str name: of the site.
    :param torch.Tensor value: the draw, before any transform at the site.
    :param distribution: its law.
    :param origin: the psi and the noise behind the value.
    :param log_volume: of the transform at the site, or None.
    :param list masks: those of the site's distribution, innermost first, each with the number of
        its dimensions.
    :param dict site: the site of the trace.
    """

    name: str
    value: Tensor
    distribution: SemiImplicit
    origin: Origin
    log_volume: Tensor | None
    masks: list[tuple[Tensor | bool | None, int]]
    site: dict[str, Any]

    @property
    def conditional_score(self) -> Tensor:
        """Gradient of log q(value | psi_0) in the value, with a graph to psi_0."""
        # Another tensor: a cached transform in the conditional would not look at the draw itself.
        value = self.value.view_as(self.value)
        log_prob = component_log_prob(self.origin.conditional, value)
        (score,) = torch.autograd.grad(log_prob.sum(), value, create_graph=True)
        return score

    def weigh(self, x: Tensor) -> Tensor:
        """Sums terms of shape ``[*rows]`` with the site's scale and all masks."""
        for mask, dims in [*self.masks, (self.site["mask"], len(self.site["fn"].batch_shape))]:
            x = scale_and_mask(sum_rightmost(x, x.dim() - dims), mask=mask)
        return scale_and_mask(x, self.site["scale"]).sum()


class Joint(NamedTuple):
    r"""Holds one run of guide and model.

    :param torch.Tensor log_target: log p(x, z) minus the log-densities of the guide's explicit
        sites, summed over particles, with a graph to the draws.
    :param list draws: the semi-implicit sites.
    :param list explicit: names of the other random sites.
    :param int num_particles: particles in this run.
    """

    log_target: Tensor
    draws: list[Draw]
    explicit: list[str]
    num_particles: int


def _innermost(fn: Any) -> Any:  # noqa: ANN401
    while isinstance(fn, (Independent, MaskedDistribution)):
        fn = fn.base_dist
    return fn


def _find_draw(name: str, site: dict[str, Any]) -> Draw | None:
    fn, value, log_volume = site["fn"], site["value"], None
    masks: list[tuple[Tensor | bool | None, int]] = []
    while True:
        if isinstance(fn, (Independent, MaskedDistribution)):
            if isinstance(fn, MaskedDistribution):
                masks.insert(0, (fn._mask, len(fn.batch_shape)))
            fn = fn.base_dist
        elif isinstance(fn, TransformedDistribution):
            for transform in reversed(fn.transforms):
                before = transform.inv(value)
                volume = transform.log_abs_det_jacobian(before, value)
                volume = sum_rightmost(volume, volume.dim() - len(fn.batch_shape))
                log_volume = volume if log_volume is None else log_volume + volume
                value = before
            fn = fn.base_dist
        else:
            break
    if not isinstance(fn, SemiImplicit):
        return None
    try:
        origin = fn.origin(value)
    except ValueError:
        raise ValueError(
            f"site {name!r} must keep the tensor that its SemiImplicit drew, but has a copy; give "
            "a transform at the site a cache (`transform.with_cache()`)"
        ) from None
    return Draw(name, value, fn, origin, log_volume, masks, site)


class InnerNetworks:
    """Networks of an objective with their optimisers, made when a first draw tells the sizes.

    :param callable make: key and further arguments -> module.
    :param float learning_rate: of Adam.
    """

    def __init__(self, make: Callable[..., nn.Module], learning_rate: float) -> None:
        self.make = make
        self.learning_rate = check_number("learning_rate", learning_rate, least=0)
        self.networks: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self._waiting: dict[str, Any] = {}

    def get(self, key: str, *args: Any) -> nn.Module:  # noqa: ANN401
        """Returns the network of a key; makes it at the first call."""
        if key not in self.networks:
            network = self.make(*args)
            self.networks[key] = network
            self.optimizers[key] = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
            if key in self._waiting:
                self._load(key, self._waiting.pop(key))
        return self.networks[key]

    def minimize(self, key: str, loss: Tensor) -> None:
        """Takes one step of the network's own optimiser."""
        network, optimizer = self.networks[key], self.optimizers[key]
        params = [p for p in network.parameters() if p.requires_grad]
        for param, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
            param.grad = grad
        nn.utils.clip_grad_norm_(params, 10.0)
        optimizer.step()
        optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of networks and optimisers by key."""
        states = {
            key: {"network": net.state_dict(), "optimizer": self.optimizers[key].state_dict()}
            for key, net in self.networks.items()
        }
        return {**self._waiting, **states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores them; what does not exist yet is restored when it is made."""
        for key, value in state.items():
            if key in self.networks:
                self._load(key, value)
            else:
                self._waiting[key] = value

    def _load(self, key: str, value: Mapping[str, Any]) -> None:
        self.networks[key].load_state_dict(value["network"])
        self.optimizers[key].load_state_dict(value["optimizer"])


class SemiImplicitObjective(ELBO):
    """Base of the objectives for guides with semi-implicit sites; goes where an ELBO goes.

    A subclass defines :meth:`_surrogate`, and sets ``fits_model = False`` where the gradient is
    right for the guide alone: a step then warns of a model with parameters to train.

    :param int num_particles: draws in each step.
    :param bool vectorize_particles: draw them at once, in a plate around model and guide.
    :param int max_plate_nesting: of model and guide, guessed if not given.
    """

    __repr__ = show_settings

    fits_model = True  # whether the gradient in the model's parameters is that of a likelihood

    def __init__(
        self,
        num_particles: int = 32,
        vectorize_particles: bool = True,
        max_plate_nesting: float = float("inf"),
    ) -> None:
        check_elbo(num_particles, max_plate_nesting, vectorize_particles)
        super().__init__(
            num_particles=num_particles,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
        )
        self.inner: dict[str, InnerNetworks] = {}
        self._warned = False

    # --------------------------------------------------------------------------------------- traces

    def _get_trace(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> tuple[Trace, Trace]:
        model_trace, guide_trace = paired_traces(model, guide, args, kwargs)
        if is_validation_enabled():
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
        guide_trace = prune_subsample_sites(guide_trace)
        model_trace = prune_subsample_sites(model_trace)
        model_trace.compute_log_prob()
        if is_validation_enabled():
            for trace in (model_trace, guide_trace):
                for site in trace.nodes.values():
                    if site["type"] == "sample" and "log_prob" in site:
                        check_site_shape(site, self.max_plate_nesting)
        return model_trace, guide_trace

    def _joints(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict, train: bool = False
    ) -> Iterator[Joint]:
        # A Messenger runs guide and model as one program, whose parameters are not told apart.
        checks = train and not (self.fits_model or self._warned)
        checks = checks and not runs_model(guide)
        together = self.vectorize_particles and self.num_particles > 1
        if together:
            traces: Any = self._get_traces(model, guide, args, kwargs)
        else:
            traces = (
                self._get_trace(model, guide, args, kwargs) for _ in range(self.num_particles)
            )
        for model_trace, guide_trace in traces:
            if checks:
                self._warn_of_parameters(model_trace, guide_trace)
            yield self._joint(model_trace, guide_trace, self.num_particles if together else 1)

    def _warn_of_parameters(self, model_trace: Trace, guide_trace: Trace) -> None:
        """Warns once if a step trains more than the guide."""
        sites: Any = model_trace.nodes
        given = set(model_trace.param_nodes) - set(guide_trace.param_nodes)
        names = [name for name in sites if name in given and sites[name]["value"].requires_grad]
        if names and not self._warned:
            self._warned = True
            listed = ", ".join(map(repr, names[:_MAX_LISTED]))
            more = ", ..." if len(names) > _MAX_LISTED else ""
            warnings.warn(
                f"`model` has parameters that train, {listed}{more}, but {type(self).__name__} "
                "fits a guide to a posterior that is given: its loss is no likelihood of the data, "
                "and takes the model away from them. Use PathGradient_ELBO, UIVI or Trace_ELBO, or "
                "hold the model fixed by `requires_grad_(False)` of its networks and of "
                f"`pyro.param({names[0]!r}).unconstrained()`",
                stacklevel=2,
            )

    def _joint(self, model_trace: Trace, guide_trace: Trace, num_particles: int) -> Joint:
        log_target = torch.as_tensor(model_trace.log_prob_sum())
        draws: list[Draw] = []
        explicit: list[str] = []
        sites: dict[str, Any] = dict(guide_trace.nodes)
        for name, site in sites.items():
            if site["type"] != "sample" or site["is_observed"]:
                continue
            draw = _find_draw(name, site)
            if draw is None:
                if not getattr(site["fn"], "has_rsample", False):
                    raise ValueError(
                        f"{type(self).__name__} must have a reparameterised guide, but site "
                        f"{name!r} has {type(site['fn']).__name__} without rsample: use Trace_ELBO"
                    )
                log_prob = site["fn"].log_prob(site["value"])
                log_prob = scale_and_mask(log_prob, site["scale"], site["mask"])
                log_target = log_target - log_prob.sum()
                if not isinstance(_innermost(site["fn"]), Delta):
                    explicit.append(name)
                continue
            if not draw.distribution.has_rsample:
                raise ValueError(
                    f"{type(self).__name__} must have a reparameterised guide, but mixing or "
                    f"conditional at site {name!r} lacks rsample: use Trace_ELBO"
                )
            if draw.log_volume is not None:
                log_target = log_target + draw.weigh(draw.log_volume)
            draws.append(draw)
        if not draws:
            raise ValueError(
                f"{type(self).__name__} needs a guide with a SemiImplicit site, but there is none "
                "among the guide's sites: use AutoSemiImplicit(model) or a SemiImplicit in the "
                "guide, or train this guide with Trace_ELBO"
            )
        return Joint(log_target, draws, explicit, num_particles)

    def _flat(self, joint: Joint, parts: list[Tensor]) -> Tensor:
        """Puts one part per draw side by side: ``[num_particles, D]``."""
        return torch.cat([x.reshape(joint.num_particles, -1) for x in parts], -1)

    def _flat_scores(
        self, joints: list[Joint], create_graph: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All draws, the target's score and the conditional's, each of shape ``[B, D]``."""
        columns: list[tuple[Tensor, Tensor, Tensor]] = []
        for joint in joints:
            for name in joint.explicit:
                raise ValueError(
                    f"{type(self).__name__} compares semi-implicit draws only and would not train "
                    f"site {name!r}: use Trace_ELBO or PathGradient_ELBO"
                )
            for draw in joint.draws:
                scale, masked = draw.site["scale"], draw.masks or draw.site["mask"] is not None
                if masked or torch.any(torch.as_tensor(scale) != 1.0):
                    raise ValueError(
                        f"{type(self).__name__} compares joint draws and needs all of them, but "
                        f"site {draw.name!r} is subsampled, scaled or masked: use Trace_ELBO or "
                        "PathGradient_ELBO"
                    )
            values = [draw.value for draw in joint.draws]
            scores = torch.autograd.grad(joint.log_target, values, create_graph=create_graph)
            conditional = [draw.conditional_score for draw in joint.draws]
            columns.append(
                (
                    self._flat(joint, values),
                    self._flat(joint, list(scores)),
                    self._flat(joint, conditional),
                )
            )
        z, target, conditional_scores = (torch.cat(parts) for parts in zip(*columns, strict=True))
        return z, target, conditional_scores

    # --------------------------------------------------------------------------------------- losses

    @abstractmethod
    def _surrogate(self, joints: list[Joint], train: bool) -> tuple[float, Tensor]:
        """The loss to report, and the surrogate whose gradient is the objective's.

        Inner networks take their steps here if ``train``.
        """

    def differentiable_loss(
        self,
        model: Callable,
        guide: Callable,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Tensor:
        """Computes a tensor whose gradient is that of the objective.

        :param callable model: the program.
        :param callable guide: its guide.
        :param args: arguments of both.
        :param kwargs: keyword arguments of both.
        """
        with torch.enable_grad():
            joints = list(self._joints(model, guide, args, kwargs, train=True))
            loss, surrogate = self._surrogate(joints, train=True)
        return surrogate + (loss - surrogate.detach())

    def loss_and_grads(
        self,
        model: Callable,
        guide: Callable,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> float:
        """Returns the loss and adds the gradient to the parameters'.

        :param callable model: the program.
        :param callable guide: its guide.
        :param args: arguments of both.
        :param kwargs: keyword arguments of both.
        """
        joints = list(self._joints(model, guide, args, kwargs, train=True))
        loss, surrogate = self._surrogate(joints, train=True)
        surrogate.backward()
        self._after_backward(joints)
        return loss

    def _after_backward(self, joints: list[Joint]) -> None:
        """For updates that a subclass makes itself."""

    def loss(
        self,
        model: Callable,
        guide: Callable,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> float:
        """Returns the loss.

        :param callable model: the program.
        :param callable guide: its guide.
        :param args: arguments of both.
        :param kwargs: keyword arguments of both.
        """
        with torch.enable_grad():
            joints = list(self._joints(model, guide, args, kwargs))
            return self._surrogate(joints, train=False)[0]

    # ---------------------------------------------------------------------------------------- state

    def inner_optimizers(self) -> Iterator[torch.optim.Optimizer]:
        """Yields the optimisers of the inner networks."""
        for inner in self.inner.values():
            yield from inner.optimizers.values()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the inner networks and their optimisers."""
        return {name: inner.state_dict() for name, inner in self.inner.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned, also before the first step.

        :param state_dict: the state.
        :raises ValueError: if it is of another objective.
        """
        if set(state_dict) != set(self.inner):
            raise ValueError(
                f"`state_dict` must hold {sorted(self.inner)}, held {sorted(state_dict)}"
            )
        for name, state in state_dict.items():
            self.inner[name].load_state_dict(state)


def batch_law(draw: Draw) -> Distribution:
    """Returns the mixing of a draw, expanded to its rows."""
    rows = draw.value.shape[: draw.value.dim() - len(draw.distribution.event_shape)]
    return draw.distribution.mixing.expand(rows)


def real_noise(draw: Draw, user: str) -> Tensor:
    """Returns the noise behind a draw.

    :raises ValueError: if its law is not a density over all reals.
    """
    mixing = draw.distribution.mixing
    support: Any = noise_law(mixing).support
    while isinstance(support, type(constraints.real_vector)):
        support = support.base_constraint
    if support is not constraints.real or isinstance(mixing, ParticleMixing):
        raise ValueError(
            f"{user} must have mixing noise with a density over all reals, but at site "
            f"{draw.name!r} was {noise_law(mixing)}: use Trace_ELBO or PathGradient_ELBO"
        )
    assert draw.origin.noise is not None
    return draw.origin.noise.detach()


def one_law(draw: Draw, user: str) -> None:
    """Checks that all rows of a draw have one law.

    :raises ValueError: if they differ, as those of an amortised guide do.
    """
    mixing = draw.distribution.mixing
    own = mixing.own_batch_shape if isinstance(mixing, Implicit) else mixing.batch_shape
    if own.numel() > 1:
        raise ValueError(
            f"{user} fits one network per site and must have rows of one law, but those of site "
            f"{draw.name!r} differ (an amortised guide): use Trace_ELBO, PathGradient_ELBO or UIVI"
        )
