"""A game of one program, or a pair of them, against one critic: its step and its evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pyro_sig._arguments import check_flag, check_integer, refusal
from pyro_sig._functions import is_function
from pyro_sig._program_player import ProgramPlayer
from pyro_sig._program_run import modules_run
from pyro_sig.adversarial._critic_player import CriticPlayer, Scorer
from pyro_sig.adversarial._critic_trainer import CriticTrainer
from pyro_sig.adversarial.objectives import NonSaturating, Objective
from pyro_sig.adversarial.penalties import Penalty, gradient_points
from pyro_sig.adversarial.views import Value, as_parts

__all__ = ["Game"]


class Game(CriticTrainer):
    """What trainers with one critic share.

    A subclass sets ``_runs``, which has the methods of :class:`~pyro_sig.adversarial._runs.Runs`
    and gives draws with values ``real`` and ``fake`` and the parameters ``params`` that were read.
    It may override the loss of the programs, and say what else they minimise.

    :param critic: see :class:`~pyro_sig.adversarial.GAN`, as all others.
    """

    loss_names: Any = ("critic", "generator")
    _runs: Any
    # Whether the programs make the real side too, so that it moves as the draws do.
    _both_sides_play = False

    def __init__(
        self,
        critic: nn.Module,
        optim: PyroOptim | torch.optim.Optimizer,
        critic_optim: torch.optim.Optimizer,
        objective: Objective | None,
        penalties: Penalty | Sequence[Penalty],
        *,
        conditional: bool | Callable[..., Value],
        critic_steps: int,
        unroll: int,
        ema: float | None,
        autocast: torch.dtype | None,
        compile_networks: bool,
    ) -> None:
        super().__init__(autocast)
        _check_conditional(conditional)
        objective = NonSaturating() if objective is None else objective
        self._program = ProgramPlayer(optim, ema)
        self._critic = CriticPlayer(critic, critic_optim, objective, penalties, bool(conditional))  # type: ignore[arg-type]
        self.conditional = conditional
        self.critic_steps = check_integer("critic_steps", critic_steps, 1, int)
        self.unroll = check_integer("unroll", unroll, 0, int)
        self.compile_networks = check_flag("compile_networks", compile_networks)
        self._check_compilation()

    @property
    def critic(self) -> nn.Module:
        """The critic."""
        return self._critic.critic

    # -------------------------------------------------------------------------------------- a step

    def step(self, *args: Any, **kwargs: Any) -> tuple[float, ...]:  # noqa: ANN401
        """Updates the critic, then the programs.

        :param args: arguments of the programs.
        :param kwargs: their keyword arguments.
        :return: the loss of the critic with its penalties, the adversarial loss of the programs,
            and what else `loss_names` names.
        :raises ValueError: see the class.
        """
        self.prepare(*args, **kwargs)
        self._program.zero_grad()  # what other losses have left
        losses = self._play(args, kwargs)
        self._program.step()
        self.num_steps += 1
        return losses

    def _play(self, args: tuple, kwargs: dict[str, Any]) -> tuple[float, ...]:
        """Updates the critic and writes the gradients of the programs; returns the losses."""
        for _ in range(self.critic_steps - 1):
            with torch.no_grad():
                draw = self._runs.released(args, kwargs)
            self._update_critic(draw, args, kwargs)
        draw = self._draw(args, kwargs)
        if self.unroll:  # from where the critic stands, through what it would learn
            adversarial = self._unrolled_loss(draw, args, kwargs)
            self._add_gradients(draw, adversarial)
            critic_loss = self._update_critic(draw, args, kwargs)
        else:
            critic_loss = self._update_critic(draw, args, kwargs)
            adversarial = self._program_loss(self.critic, draw, args, kwargs)
            self._add_gradients(draw, adversarial)
        return critic_loss.item(), adversarial.item(), *self._losses_beside(draw)

    @torch.no_grad()
    def evaluate_loss(self, *args: Any, **kwargs: Any) -> tuple[float, ...]:  # noqa: ANN401
        """Computes the losses of :meth:`step` without penalties; changes no tensor.

        :param args: arguments of the programs.
        :param kwargs: their keyword arguments.
        :return: losses as :meth:`step` returns them.
        """
        self.prepare(*args, **kwargs)
        with modules_run():  # batch statistics stay as they are
            draw = self._runs.released(args, kwargs)
            with self._precision():
                score = self._scorer(self.critic, args, kwargs)
                scores = score(*as_parts(draw.real)), score(*as_parts(draw.fake))
                critic_loss = self.objective.critic_loss(*scores)
                adversarial = self._loss_of_scores(*scores)
            beside = self._evaluate_beside(draw, args, kwargs)
        return critic_loss.item(), adversarial.item(), *beside

    @torch.no_grad()
    def scores(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """Scores data and draws, as an objective's ``estimate`` takes them.

        :param args: arguments of the programs.
        :param kwargs: their keyword arguments.
        :return: scores of the data and of the draws, each of shape ``[units]``.
        """
        real, fake = self.values(*args, **kwargs)
        with modules_run(), self._precision():
            score = self._scorer(self.critic, args, kwargs)
            return score(*as_parts(real)), score(*as_parts(fake))

    @torch.no_grad()
    def values(self, *args: Any, **kwargs: Any) -> tuple[Value, Value]:  # noqa: ANN401
        """Runs the programs and returns what the critic sees.

        :param args: arguments of the programs.
        :param kwargs: their keyword arguments.
        :return: real and fake values, each of shape ``[units, ...]`` or a tuple of such.
        """
        self.prepare(*args, **kwargs)
        with modules_run():  # batch statistics stay as they are
            draw = self._runs.released(args, kwargs)
        return draw.real, draw.fake

    # ---------------------------------------------------------------------------------- the losses

    def _draw(self, args: tuple, kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Runs the programs with gradients."""
        return self._runs.draw(args, kwargs)

    def _scorer(self, critic: Callable[..., Any], args: tuple, kwargs: Mapping) -> Scorer:
        if callable(self.conditional):
            args, kwargs = as_parts(self.conditional(*args, **kwargs)), {}
        elif not self.conditional:
            args, kwargs = (), {}
        return self._critic.scorer(critic, args, kwargs)

    def _update_critic(self, draw: Any, args: tuple, kwargs: Mapping) -> Tensor:  # noqa: ANN401
        with self._precision():
            score = self._scorer(self.critic, args, kwargs)
            loss = self._critic.loss(score, _detach(draw.real), _detach(draw.fake))
        self._critic.step(loss)
        return loss

    def _program_loss(
        self,
        critic: Callable[..., Any],
        draw: Any,  # noqa: ANN401
        args: tuple,
        kwargs: Mapping,
    ) -> Tensor:
        """Computes what the programs minimise by the critic's scores."""
        with self._precision():
            score = self._scorer(critic, args, kwargs)
            if self._both_sides_play:
                scores = self._critic.both_scores(score, draw.real, draw.fake)
                return self._loss_of_scores(*scores)
            real = None
            if self.objective.uses_real:
                # Only a critic that is unrolled has learnt from the draws of this step.
                with torch.set_grad_enabled(self.unroll > 0):
                    real = score(*as_parts(draw.real))
            return self._loss_of_scores(real, score(*as_parts(draw.fake)))

    def _loss_of_scores(self, real: Any, fake: Tensor) -> Tensor:  # noqa: ANN401
        if self._both_sides_play:
            return self.objective.joint_loss(real, fake)
        return self.objective.generator_loss(real, fake)

    def _unrolled_loss(self, draw: Any, args: tuple, kwargs: Mapping) -> Tensor:  # noqa: ANN401
        def loss(critic: Callable[..., Tensor]) -> Tensor:
            score = self._scorer(critic, args, kwargs)
            return self._critic.loss(score, draw.real, draw.fake)

        with self._precision():
            ahead = self._critic.ahead(self.unroll, loss)
        return self._program_loss(ahead, draw, args, kwargs)

    def _add_gradients(self, draw: Any, adversarial: Tensor) -> None:  # noqa: ANN401
        """Writes the gradient of the programs' loss."""
        adversarial.backward(inputs=self._program.meet(draw.params, self._critic.owns))

    def _losses_beside(self, draw: Any) -> tuple[float, ...]:  # noqa: ANN401
        """Returns what a step reports beside the two losses."""
        return ()

    def _evaluate_beside(self, draw: Any, args: tuple, kwargs: dict) -> tuple[float, ...]:  # noqa: ANN401
        """Computes the same without a gradient, of a draw without one."""
        return ()

    # ------------------------------------------------------------------------------ the first step

    def _check_compilation(self) -> None:
        doubled = self.unroll or gradient_points(self.penalties)
        if self.compile_networks and doubled:
            raise ValueError(
                "`compile_networks` must be False with `unroll` or with penalties that take a "
                "gradient: compiled networks cannot be differentiated twice"
            )

    def _meet(self, args: tuple, kwargs: dict[str, Any]) -> None:
        params, modules = self._runs.prepare(args, kwargs)
        self._program.meet(params, self._critic.owns)
        self._program.modules = modules
        self._refuse_shared(modules)
        if self.compile_networks:
            for module in (self.critic, *modules):
                module.compile()

    def _refuse_shared(self, modules: Sequence[nn.Module]) -> None:
        own = [m for m in self._programs() if isinstance(m, nn.Module)]
        for module in (*modules, *own):
            for name, param in module.named_parameters():
                if self._critic.owns(param):
                    raise ValueError(
                        f"`critic` must share no tensor with the model, but shared {name!r} of a "
                        f"{type(module).__name__}"
                    )

    def _programs(self) -> list[Callable[..., Any]]:
        raise NotImplementedError

    def _options(self) -> list[str]:
        """Returns what ``repr`` shows after objective and penalties."""
        counts = (("critic_steps", 1), ("unroll", 0))
        return [f"{n}={getattr(self, n)}" for n, usual in counts if getattr(self, n) != usual]

    def __repr__(self) -> str:
        parts = [repr(self.objective), *map(repr, self.penalties), *self._options()]
        return f"{type(self).__name__}({', '.join(parts)})"


def _check_conditional(conditional: Any) -> None:  # noqa: ANN401
    if not isinstance(conditional, bool) and not is_function(conditional):
        must_be = "True, False or a function of the program's arguments"
        raise refusal("conditional", must_be, conditional)


def _detach(value: Value) -> Value:
    if isinstance(value, tuple):
        return tuple(part.detach() for part in value)
    return value.detach()
