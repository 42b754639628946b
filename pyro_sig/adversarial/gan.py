"""A program against a critic, with the steps of SVI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pyro_sig._arguments import refusal
from pyro_sig._functions import check_callable
from pyro_sig.adversarial._elbo_term import ElboTerm, Weight
from pyro_sig.adversarial._game import Game
from pyro_sig.adversarial._runs import Draw, Runs
from pyro_sig.adversarial._trainer import Stateful
from pyro_sig.adversarial.objectives import Objective
from pyro_sig.adversarial.penalties import Penalty
from pyro_sig.adversarial.views import Value

__all__ = ["GAN"]


class GAN(Game):
    r"""Trains a program that can only be sampled against a critic that tells its draws from data.

    .. math::
        \min_D \; \mathcal{L}_D\big(D(x), D(\tilde x)\big) + \text{penalties}, \qquad
        \min_\theta \; \mathcal{L}_G\big(D(x), D(\tilde x)\big) + \lambda H_\theta, \qquad
        \tilde x \sim p_\theta

    The draws are made by running the program with its observations released, the data are its
    observations in the same run, so that plates that subsample pair both. With an `elbo`, the
    bound :math:`H_\theta` (the negative ELBO for each unit of the data) joins the program's loss
    with the weight :math:`\lambda`; with :class:`~pyro_sig.infer.SIG_ELBO`, or a
    :class:`~pyro_sig.distributions.SemiImplicit` under ``Trace_ELBO``, this is the GAN-SI, whose
    critic sees the very psi that the bound has drawn.

    A step is `critic_steps` updates of the critic and one of the program. The critic's first
    updates see draws of their own (and, in a plate that subsamples, data of their own).

    :param model: a Pyro program with an observed site.
    :param critic: a torch module, no Pyro module, called as ``critic(value)``, or with several
        values; larger scores mean more real. Shapes: ``[units, ...]`` to ``[units]`` or
        ``[units, 1]``.
    :param optim: optimiser of the program's parameters (and the guide's), of :mod:`pyro.optim`
        or torch. Torch's takes all parameters in one go, and is faster with small networks.
    :param critic_optim: torch's optimiser of ``critic.parameters()``.
    :param objective: one of :mod:`pyro_sig.adversarial.objectives`, by default the non-saturating.
    :param penalties: one or several of :mod:`pyro_sig.adversarial.penalties`.
    :param view: what the critic sees, ``view(trace) -> (real, fake)``; see
        :class:`~pyro_sig.adversarial.View`. By default, if there is an `elbo`, the psi of an
        Implicit or SemiImplicit site that are the mean of the data that they emit, else the
        observed sites.
    :param conditional: a function of the program's arguments whose result the critic gets after the
        values: with ``lambda x, label: label`` it is called as ``critic(value, label)``. True for
        all arguments, ``critic(value, *args, **kwargs)``: not where data are among them, which
        the critic could look up. Where a plate subsamples, show the condition by `view`.
    :param int critic_steps: updates of the critic in a step.
    :param int unroll: number K of further steps of the critic, on the same batch, through which
        the program's gradient goes; 0 for none. A step of the critic is as of `critic_optim`.
    :param ema: decay of a running average of the program's parameters, used in :meth:`averaged`;
        at step t it is at most (1 + t) / (10 + t).
    :param elbo: an ELBO of the same program.
    :param elbo_weight: the :math:`\lambda`: a number (``math.inf`` leaves out the critic), a
        function of the step, or a :class:`~pyro_sig.adversarial.Balance`; ``"balance"`` is its
        default one. It scales the gradient of the guide too: with 0, a guide stays as it is. In
        a step where the function returns 0, no bound is computed and the last one reported.
    :param guide: the guide of the `elbo`, by default empty.
    :param autocast: a type such as ``torch.bfloat16`` for :func:`torch.autocast` around program
        and critic.
    :param bool compile_networks: compile the critic and the networks that the program runs, by
        :meth:`torch.nn.Module.compile`; not with `unroll` or penalties that take gradients.
    :raises ValueError: if an argument is not as described. In the first step also: if nothing is
        observed, if no plate makes exchangeable units, if model and critic share a tensor, if
        a draw has no gradient, or if the scores do not match the batch.

    **Source:** Goodfellow et al., *Generative Adversarial Networks* (2014); Yin and Zhou,
    *Semi-Implicit Generative Model* (2019), eq. 11 and 12; Metz et al., *Unrolled Generative
    Adversarial Networks* (2017).

    Example::

        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_sig.distributions import Implicit
        >>> net = torch.nn.Linear(1, 2)
        >>> noise = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        >>> def model(x):
        ...     pyro.module("net", net)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", Implicit(net, noise, event_shape=2), obs=x)
        >>> from pyro_sig.nn import MLP
        >>> critic = MLP(2, [8], 1)
        >>> gan = GAN(
        ...     model,
        ...     critic,
        ...     pyro.optim.Adam({"lr": 1e-3}),
        ...     torch.optim.Adam(critic.parameters(), lr=1e-3),
        ... )
        >>> critic_loss, generator_loss = gan.step(torch.randn(64, 2))
    """

    def __init__(
        self,
        model: Callable[..., Any],
        critic: nn.Module,
        optim: PyroOptim | torch.optim.Optimizer,
        critic_optim: torch.optim.Optimizer,
        objective: Objective | None = None,
        penalties: Penalty | Sequence[Penalty] = (),
        *,
        view: Callable[[Any], tuple[Value, Value]] | None = None,
        conditional: bool | Callable[..., Value] = False,
        critic_steps: int = 1,
        unroll: int = 0,
        ema: float | None = None,
        elbo: ELBO | None = None,
        elbo_weight: Weight | None = None,
        guide: Callable[..., Any] | None = None,
        autocast: torch.dtype | None = None,
        compile_networks: bool = False,
    ) -> None:
        for name, program in (("model", model), ("guide", guide), ("view", view)):
            check_callable(name, program, optional=name != "model")
        super().__init__(
            critic,
            optim,
            critic_optim,
            objective,
            penalties,
            conditional=conditional,
            critic_steps=critic_steps,
            unroll=unroll,
            ema=ema,
            autocast=autocast,
            compile_networks=compile_networks,
        )
        self._term: ElboTerm | None = None
        if elbo is not None:
            self._term = ElboTerm(elbo, elbo_weight, guide)
        for name, value in (("elbo_weight", elbo_weight), ("guide", guide)):
            if elbo is None and value is not None:
                raise refusal(name, "None without an `elbo`", value)
        self._runs = Runs(model, view, self._term, self._precision)

    @property
    def model(self) -> Callable[..., Any]:
        """The program."""
        return self._runs.model

    @property
    def view(self) -> Callable[[Any], tuple[Value, Value]] | None:
        """What the critic sees; None before the first step has found the default."""
        return self._runs.view

    @property
    def elbo(self) -> ELBO | None:
        """The ELBO beside the critic, if there is one."""
        return None if self._term is None else self._term.elbo

    @property
    def elbo_weight(self) -> Weight | None:
        """Its weight."""
        return None if self._term is None else self._term.weight

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of what :meth:`step` returns."""
        return ("critic", "generator") if self._term is None else ("critic", "generator", "elbo")

    # ---------------------------------------------------------------------------------- the losses

    def _draw(self, args: tuple, kwargs: dict[str, Any]) -> Draw:
        if self._term is None:
            return self._runs.draw(args, kwargs)
        weight = self._term.weigh(self.num_steps)
        draw = self._runs.draw(args, kwargs, bounded=weight is not None)
        return draw._replace(weight=weight)

    def _add_gradients(self, draw: Draw, adversarial: Tensor) -> None:
        if self._term is None or draw.bound is None or draw.weight is None:
            super()._add_gradients(draw, adversarial)
            return
        params = self._program.meet(draw.params, self._critic.owns)
        self._term.write_gradients(params, adversarial, draw.bound, draw.num_units, draw.weight)

    def _losses_beside(self, draw: Draw) -> tuple[float, ...]:
        if self._term is None:
            return ()
        if draw.bound is not None:
            bound = draw.bound
            self._term.last = bound.item() if isinstance(bound, Tensor) else bound
        assert self._term.last is not None
        return (self._term.last,)

    def _evaluate_beside(self, draw: Draw, args: tuple, kwargs: dict) -> tuple[float, ...]:
        return () if self._term is None else (self._term.evaluate(self.model, args, kwargs),)

    def _programs(self) -> list[Callable[..., Any]]:
        return [self.model] if self._term is None else [self.model, self._term.guide]

    def _parts(self) -> dict[str, Stateful]:
        return super()._parts() if self._term is None else {**super()._parts(), "elbo": self._term}

    def _options(self) -> list[str]:
        if self._term is None:
            return super()._options()
        elbo = f"elbo={type(self._term.elbo).__name__}"
        return [elbo, *super()._options(), f"elbo_weight={self.elbo_weight!r}"]
