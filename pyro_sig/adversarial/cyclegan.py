"""Translation between two domains without pairs, by two critics and cycles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro.nn import PyroModule
from pyro.optim import PyroOptim
from pyro.params import param_with_module_name
from torch import Tensor, nn

from pyro_sig._arguments import check_floating, check_integer, check_number
from pyro_sig._functions import check_callable, check_takes, first_call
from pyro_sig._program_player import ProgramPlayer
from pyro_sig._program_run import modules_run
from pyro_sig._random_state import preserved_random_state
from pyro_sig.adversarial._critic_player import CriticPlayer, Scorer, check_critic
from pyro_sig.adversarial._critic_trainer import CriticTrainer
from pyro_sig.adversarial._tap import Tap
from pyro_sig.adversarial._trainer import Stateful
from pyro_sig.adversarial.image_pool import ImagePool
from pyro_sig.adversarial.objectives import LeastSquares, Objective
from pyro_sig.adversarial.penalties import Penalty

__all__ = ["CycleGAN"]

Translator = Callable[[Tensor], Tensor]


class _Fakes(NamedTuple):
    """Translations of a batch, and the parameters that were read for them."""

    x: Tensor
    y: Tensor
    params: dict[str, Tensor]


class CycleGAN(CriticTrainer):
    r"""Trains translators between two domains of which no pairs are known.

    .. math::
        \min_{F, B} \; \mathcal{L}_G\big(D_Y(F(x))\big) + \mathcal{L}_G\big(D_X(B(y))\big)
        + \lambda \, \big(d(B(F(x)), x) + d(F(B(y)), y)\big)
        + \lambda \iota \, \big(d(F(y), y) + d(B(x), x)\big),
    .. math::
        \min_{D_X, D_Y} \; \tfrac12 \Big(\mathcal{L}_D\big(D_X(x), D_X(\tilde x)\big)
        + \mathcal{L}_D\big(D_Y(y), D_Y(\tilde y)\big)\Big)

    with :math:`F` for `forward`, :math:`B` for `backward`, and :math:`\tilde x, \tilde y` from
    pools of translations, see :class:`~pyro_sig.adversarial.ImagePool`. Penalties are part of
    :math:`\mathcal{L}_D`. The critics ask that the translations have the law of the domain, the
    cycles that the translators invert each other.

    A step is `critic_steps` updates of both critics and one of both translators. Its last update
    of the critics and that of the translators are by the same translations.

    :param forward: translates x to y: a Pyro program or a module that maps a tensor of shape
        ``[B, *x]`` to one of shape ``[B, *y]``. A program returns it, may draw it by a law with
        reparameterised samples, and registers its networks by :func:`pyro.module`.
    :param backward: translates y to x, the same.
    :param critic_x: critic of the domain of x, which sees x and ``backward(y)``: a torch module,
        shape ``[B, *x]`` to ``[B]`` or ``[B, 1]``; larger scores mean more real.
    :param critic_y: critic of the domain of y; it shares no tensor with the other one.
    :param optim: optimiser of the parameters of both translators, of :mod:`pyro.optim` or torch.
        Pyro's needs names: a plain module is registered as ``"forward"`` or ``"backward"``.
    :param critic_optim: torch's optimiser of the parameters of both critics.
    :param objective: one of :mod:`pyro_sig.adversarial.objectives`, by default least squares.
    :param penalties: one or several of :mod:`pyro_sig.adversarial.penalties`, on both critics.
    :param float cycle_weight: the :math:`\lambda`.
    :param float identity_weight: the :math:`\iota`, where both domains have one shape; the paper
        has 0.5 where colours are to stay.
    :param cycle_distance: the :math:`d`: a function of two tensors that returns a scalar or a
        value for each row, by default the mean absolute error.
    :param int pool_size: number of translations in each pool; 0 for none.
    :param int critic_steps: updates of the critics in a step.
    :param ema: decay of a running average of the translators' parameters, used in
        :meth:`averaged`; at step t it is at most (1 + t) / (10 + t).
    :param autocast: a type such as ``torch.bfloat16`` for :func:`torch.autocast` around
        translators and critics.
    :raises ValueError: if an argument is not as described. In a step also: if a batch is no
        floating point tensor with rows, if a translation is not one row of the other domain for
        each row, if it has no gradient, if no parameter of a translator is found, if critics and
        translators share a tensor, or if batches differ in size where they are paired by row.

    **Source:** Zhu et al., *Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial
    Networks* (2017), eq. 1 to 3, sections 3 and 4, and the identity loss of section 5.2.

    Example::

        >>> from pyro_sig.nn import MLP
        >>> forward, backward = MLP(2, [8], 3), MLP(3, [8], 2)
        >>> critics = MLP(2, [8], 1), MLP(3, [8], 1)
        >>> gan = CycleGAN(
        ...     forward,
        ...     backward,
        ...     *critics,
        ...     torch.optim.Adam([*forward.parameters(), *backward.parameters()], lr=2e-4),
        ...     torch.optim.Adam([p for c in critics for p in c.parameters()], lr=2e-4),
        ... )
        >>> critic_loss, generator_loss, cycle = gan.step(torch.randn(16, 2), torch.randn(20, 3))
    """

    def __init__(
        self,
        forward: Translator,
        backward: Translator,
        critic_x: nn.Module,
        critic_y: nn.Module,
        optim: PyroOptim | torch.optim.Optimizer,
        critic_optim: torch.optim.Optimizer,
        objective: Objective | None = None,
        penalties: Penalty | Sequence[Penalty] = (),
        *,
        cycle_weight: float = 10.0,
        identity_weight: float = 0.0,
        cycle_distance: Callable[[Tensor, Tensor], Tensor] | None = None,
        pool_size: int = 50,
        critic_steps: int = 1,
        ema: float | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        check_callable("forward", forward)
        check_callable("backward", backward)
        check_callable("cycle_distance", cycle_distance, optional=True)
        if cycle_distance is not None:
            check_takes("cycle_distance", cycle_distance, None, None)
        check_critic(critic_x, "critic_x")
        check_critic(critic_y, "critic_y")
        _refuse_shared("critic_y", critic_y, "critic_x", critic_x)
        super().__init__(autocast)
        objective = LeastSquares() if objective is None else objective
        self.forward = forward
        self.backward = backward
        self.critic_x = critic_x
        self.critic_y = critic_y
        self.cycle_weight = check_number("cycle_weight", cycle_weight, least=0)
        self.identity_weight = check_number("identity_weight", identity_weight, least=0)
        self.cycle_distance = cycle_distance
        self.critic_steps = check_integer("critic_steps", critic_steps, 1, int)
        self._program = ProgramPlayer(optim, ema)
        critics = nn.ModuleList([critic_x, critic_y])
        self._critic = CriticPlayer(critics, critic_optim, objective, penalties, False)  # type: ignore[arg-type]
        self._pools = _Pools(check_integer("pool_size", pool_size, 0, int))

    @property
    def pool_size(self) -> int:
        """Number of translations in each pool."""
        return self._pools.x.size

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of what :meth:`step` returns."""
        names = ("critic", "generator", "cycle")
        return (*names, "identity") if self.identity_weight else names

    # -------------------------------------------------------------------------------------- a step

    def step(self, x: Tensor, y: Tensor) -> tuple[float, ...]:
        """Updates both critics, then both translators.

        :param torch.Tensor x: a batch of the one domain, with shape ``[B, *x]``.
        :param torch.Tensor y: a batch of the other one, with shape ``[C, *y]``.
        :return: the loss of the critics, the loss of the translators with all its terms, the sum
            of both cycle distances without a weight, and, with `identity_weight`, that of both
            identity distances.
        :raises ValueError: see :class:`CycleGAN`.
        """
        self._check_batches(x, y)
        self.prepare(x, y)
        self._program.zero_grad()  # what other losses have left
        for _ in range(self.critic_steps - 1):
            with torch.no_grad():
                fakes = self._translate_both(x, y)
            self._update_critics(x, y, fakes)
        fakes = self._translate_both(x, y)
        critic_loss = self._update_critics(x, y, fakes)
        loss, distances, params = self._translators_loss(x, y, fakes)
        loss.backward(inputs=self._program.meet(params, self._critic.owns))
        self._program.step()
        self.num_steps += 1
        return critic_loss.item(), loss.item(), *(d.item() for d in distances)

    @torch.no_grad()
    def evaluate_loss(self, x: Tensor, y: Tensor) -> tuple[float, ...]:
        """Computes the losses of :meth:`step` without pools and penalties; changes no tensor.

        :param torch.Tensor x: a batch of the one domain, with shape ``[B, *x]``.
        :param torch.Tensor y: a batch of the other one, with shape ``[C, *y]``.
        :return: losses as :meth:`step` returns them.
        """
        self._check_batches(x, y)
        self.prepare(x, y)
        with modules_run():  # batch statistics stay as they are
            fakes = self._translate_both(x, y)
            with self._precision():
                score_x, score_y = self._scorers()
                critic_loss = 0.5 * (
                    self.objective.critic_loss(score_x(x), score_x(fakes.x))
                    + self.objective.critic_loss(score_y(y), score_y(fakes.y))
                )
            loss, distances, _ = self._translators_loss(x, y, fakes)
        return critic_loss.item(), loss.item(), *(d.item() for d in distances)

    # ---------------------------------------------------------------------------------- the losses

    def _update_critics(self, x: Tensor, y: Tensor, fakes: _Fakes) -> Tensor:
        old_x, old_y = self._pools.x(fakes.x), self._pools.y(fakes.y)
        with self._precision():
            score_x, score_y = self._scorers()
            loss = 0.5 * (
                self._critic.loss(score_x, x, old_x) + self._critic.loss(score_y, y, old_y)
            )
        self._critic.step(loss)
        return loss

    def _translators_loss(
        self, x: Tensor, y: Tensor, fakes: _Fakes
    ) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        """Computes what the translators minimise, its distances, and what was read for it."""
        with Tap() as tap, self._precision():
            score_x, score_y = self._scorers()
            loss = self._adversarial_loss(score_x, x, fakes.x)
            loss = loss + self._adversarial_loss(score_y, y, fakes.y)
            again_x = self._translate("backward", self.backward, fakes.y, x)
            again_y = self._translate("forward", self.forward, fakes.x, y)
            distances = [self._distance(again_x, x) + self._distance(again_y, y)]
            loss = loss + self.cycle_weight * distances[0]
            if self.identity_weight:
                same_y = self._translate("forward", self.forward, y, y)
                same_x = self._translate("backward", self.backward, x, x)
                distances.append(self._distance(same_y, y) + self._distance(same_x, x))
                loss = loss + self.cycle_weight * self.identity_weight * distances[1]
        return loss, distances, {**fakes.params, **tap.params}

    def _adversarial_loss(self, score: Scorer, real: Tensor, fake: Tensor) -> Tensor:
        scores = None
        if self.objective.uses_real:
            with torch.no_grad():
                scores = score(real)
        return self.objective.generator_loss(scores, score(fake))

    def _distance(self, again: Tensor, original: Tensor) -> Tensor:
        if self.cycle_distance is None:
            return (again - original).abs().mean()
        value = self.cycle_distance(again, original)
        if not isinstance(value, Tensor) or value.shape not in ((), (len(original),)):
            was = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"`cycle_distance` must return a scalar or a tensor of shape ({len(original)},) "
                f"for values of shape {tuple(original.shape)}, returned {was}"
            )
        return value.mean()

    def _scorers(self) -> tuple[Scorer, Scorer]:
        scorer = self._critic.scorer
        return (
            scorer(self.critic_x, (), {}, name="critic_x"),
            scorer(self.critic_y, (), {}, name="critic_y"),
        )

    # ------------------------------------------------------------------------------ the translators

    def _translate_both(self, x: Tensor, y: Tensor) -> _Fakes:
        with Tap() as tap, self._precision():
            fake_y = self._translate("forward", self.forward, x, y)
            fake_x = self._translate("backward", self.backward, y, x)
        return _Fakes(fake_x, fake_y, tap.params)

    def _translate(self, name: str, program: Translator, rows: Tensor, like: Tensor) -> Tensor:
        """Runs a translator; `like` has rows of the domain that it translates to."""
        fake = program(rows) if self._prepared else first_call(name, program, rows)
        if not isinstance(fake, Tensor) or not fake.is_floating_point():
            was = fake.dtype if isinstance(fake, Tensor) else type(fake).__name__
            raise ValueError(f"`{name}` must return a floating point tensor, returned {was}")
        shape = (len(rows), *like.shape[1:])
        if fake.shape != shape:
            raise ValueError(
                f"`{name}` must return a tensor of shape {shape}, a row of the other domain for "
                f"each of {len(rows)} rows, returned {tuple(fake.shape)}"
            )
        if torch.is_grad_enabled() and not fake.requires_grad:
            raise ValueError(
                f"`{name}` must return a tensor with a gradient to its parameters, but it had none:"
                " a site must have rsample, and nothing may be detached"
            )
        return fake

    def _check_batches(self, x: Tensor, y: Tensor) -> None:
        for name, batch in (("x", x), ("y", y)):
            check_floating(name, batch)
            if not batch.dim() or not len(batch):
                raise ValueError(f"`{name}` must have rows, was of shape {tuple(batch.shape)}")
        if self.identity_weight and x.shape[1:] != y.shape[1:]:
            raise ValueError(
                "`identity_weight` must be 0 where the domains have different shapes, was "
                f"{self.identity_weight} for {tuple(x.shape[1:])} and {tuple(y.shape[1:])}"
            )
        who = self._critic.pairs_rows()
        if who is not None and len(x) != len(y):
            raise ValueError(
                f"`y` must have as many rows as `x` where {who!r} pairs them, had {len(y)} and "
                f"{len(x)}"
            )

    # ------------------------------------------------------------------------------ the first step

    def _meet(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Runs both translators once to find their parameters and networks."""
        x, y = args
        params: dict[str, Tensor] = {}
        with preserved_random_state(), torch.no_grad(), modules_run() as modules:
            for name, program, rows, like in (
                ("forward", self.forward, x, y),
                ("backward", self.backward, y, x),
            ):
                with Tap() as tap, self._precision():
                    self._translate(name, program, rows, like)
                found = {**tap.params, **self._own_parameters(name, program, tap.params)}
                if not any(p.requires_grad for p in found.values()):
                    raise ValueError(
                        f"`{name}` must have parameters that train, but none were found: a program "
                        "must register its networks by pyro.module; a module can be given as it is"
                    )
                params |= found
        for module in modules:
            _refuse_shared("critic_x", self.critic_x, "the translators", module)
            _refuse_shared("critic_y", self.critic_y, "the translators", module)
        self._program.meet(params, self._critic.owns)
        self._program.modules = modules

    def _own_parameters(
        self, name: str, program: Translator, known: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Finds the parameters of a plain module, and names them for Pyro's optimisers."""
        if not isinstance(program, nn.Module) or isinstance(program, PyroModule):
            return {}
        read = {id(param) for param in known.values()}
        own = {n: p for n, p in program.named_parameters() if p.requires_grad and id(p) not in read}
        if isinstance(self.optim, PyroOptim):
            with Tap() as tap:
                for n, param in own.items():
                    pyro.param(param_with_module_name(name, n), param)
            if {id(p) for p in tap.params.values()} - {id(p) for p in own.values()}:
                raise ValueError(
                    f"`{name}` must be alone under this name in the param store, which holds "
                    "another network: call pyro.clear_param_store(), use a torch optimiser, or "
                    "write a program with a pyro.module of another name"
                )
            return tap.params
        return {f"{name}.{n}": p for n, p in own.items()}

    def _parts(self) -> dict[str, Stateful]:
        return {**super()._parts(), "pools": self._pools}

    def __repr__(self) -> str:
        parts = [repr(self.objective), *map(repr, self.penalties)]
        usual = {"cycle_weight": 10.0, "identity_weight": 0.0, "pool_size": 50, "critic_steps": 1}
        for name, default in usual.items():
            if getattr(self, name) != default:
                parts.append(f"{name}={getattr(self, name)!r}")
        return f"{type(self).__name__}({', '.join(parts)})"


class _Pools:
    """The pools of both domains."""

    def __init__(self, size: int) -> None:
        self.x = ImagePool(size)
        self.y = ImagePool(size)

    def state_dict(self) -> dict[str, Any]:
        """Returns a copy of what is stored."""
        return {"x": self.x.state_dict(), "y": self.y.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        :param state: the state.
        """
        self.x.load_state_dict(state["x"])
        self.y.load_state_dict(state["y"])


def _refuse_shared(name: str, critic: nn.Module, who: str, module: nn.Module) -> None:
    own = {p.untyped_storage().data_ptr() for p in critic.parameters()}
    for shared, param in module.named_parameters():
        if param.untyped_storage().data_ptr() in own:
            raise ValueError(f"`{name}` must share no tensor with {who}, but shared {shared!r}")
