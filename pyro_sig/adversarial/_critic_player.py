"""The player of a game that is a critic: a module, its optimiser, its loss and its penalties."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_sig._arguments import check_instance, refusal
from pyro_sig.adversarial._row_wise import is_row_wise
from pyro_sig.adversarial.objectives import Objective
from pyro_sig.adversarial.objectives.objective import check_objective
from pyro_sig.adversarial.penalties import (
    Penalty,
    controls_lipschitz,
    gradient_points,
    mixes_rows,
    penalize,
)
from pyro_sig.adversarial.unrolling import unrolled
from pyro_sig.adversarial.views import Value, as_parts

__all__ = ["CriticPlayer", "Scorer", "check_critic"]

# A critic as a function of what it sees, with one score for each unit.
Scorer = Callable[..., Tensor]


class CriticPlayer:
    """Holds a critic with its optimiser, objective and penalties.

    :param critic: a module that is no Pyro module.
    :param optim: torch's optimiser of its parameters.
    :param objective: the objective.
    :param penalties: penalties on the critic.
    :param bool conditional: whether the critic gets more than the values.
    :raises ValueError: if one of them does not suit.
    """

    def __init__(
        self,
        critic: nn.Module,
        optim: torch.optim.Optimizer,
        objective: Objective,
        penalties: Sequence[Penalty],
        conditional: bool,
    ) -> None:
        check_critic(critic)
        check_objective(objective)
        if isinstance(penalties, Penalty):
            penalties = (penalties,)
        if not isinstance(penalties, Iterable) or isinstance(penalties, (Tensor, str)):
            raise refusal("penalties", "a sequence such as [penalties.R1(1.0)]", penalties)
        self.critic = critic
        self.optim = optim
        self.objective = objective
        self.penalties = tuple(penalties)
        self._points = gradient_points(self.penalties)
        self._check_optim()
        self._row_wise = not conditional and is_row_wise(critic)
        self._trained = [p for p in critic.parameters() if p.requires_grad]
        # Critics, by name, that have taken what they are shown, of these types.
        self._fitting: set[tuple[Any, ...]] = set()
        self._storages = {_storage(p) for p in critic.parameters()}
        self._warn()

    def _check_optim(self) -> None:
        must_be = "a torch optimiser of critic.parameters()"
        check_instance("critic_optim", self.optim, torch.optim.Optimizer, must_be)
        held = {id(p) for group in self.optim.param_groups for p in group["params"]}
        named = dict(self.critic.named_parameters())
        lacking = [n for n, p in named.items() if p.requires_grad and id(p) not in held]
        foreign = len(held - {id(p) for p in named.values()})
        if lacking or foreign:
            raise ValueError(
                "`critic_optim` must hold the parameters of the critic and no others, lacked "
                f"{lacking} and held {foreign} others; make it of critic.parameters()"
            )

    def _warn(self) -> None:
        if self.objective.needs_lipschitz and not controls_lipschitz(self.critic, self.penalties):
            warnings.warn(
                f"{self.objective!r} needs a critic with a bounded slope, or its loss has no "
                "bound: add penalties.GradientPenalty() or penalties.WeightClipping(), or build "
                "the critic with penalties.spectral_norm",
                stacklevel=4,
            )
        by_row = [p for p in self.penalties if p.where is not None]
        if (by_row or self.objective.paired) and mixes_rows(self.critic):
            warnings.warn(
                f"`critic` has batch normalisation, so that the score of a row depends on its "
                f"batch, which {by_row[0] if by_row else self.objective!r} does not go with: use "
                "a layer norm or none",
                stacklevel=4,
            )
        if _ends_in_sigmoid(self.critic) and not _is_probability(self.objective):
            warnings.warn(
                "the last layer of `critic` seems to be an nn.Sigmoid, but a score is a raw output "
                f"of the critic, to which {self.objective!r} applies its own functions: leave the "
                "sigmoid out",
                stacklevel=4,
            )

    def owns(self, tensor: Tensor) -> bool:
        """Tells whether a tensor shares memory with a parameter of the critic."""
        return _storage(tensor) in self._storages

    # -------------------------------------------------------------------------------------- scores

    def scorer(
        self,
        critic: Callable[..., Any],
        args: tuple,
        kwargs: Mapping[str, Any],
        name: str = "critic",
    ) -> Scorer:
        """Makes a function of what the critic sees, with checked scores of shape ``[units]``.

        :param critic: the critic, or a function like it.
        :param args: arguments that follow the values.
        :param kwargs: keyword arguments.
        :param str name: what messages call it.
        """

        def score(*parts: Tensor) -> Tensor:
            scores = self._call(name, critic, parts, args, kwargs)
            n = len(parts[0])
            if not isinstance(scores, Tensor) or scores.shape not in ((n,), (n, 1)):
                was = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
                raise ValueError(
                    f"`{name}` must return scores of shape ({n},) or ({n}, 1) for values of shape "
                    f"{', '.join(str(tuple(part.shape)) for part in parts)}, returned {was}"
                    + ("" if n > 1 else "; without a plate the whole data are one unit")
                )
            return scores.reshape(n)

        return score

    def _call(
        self,
        name: str,
        critic: Any,  # noqa: ANN401
        parts: tuple,
        args: tuple,
        kwargs: Mapping[str, Any],
    ) -> Any:  # noqa: ANN401
        kind = (name, *(getattr(part, "dtype", None) for part in parts))
        if kind in self._fitting:
            return critic(*parts, *args, **kwargs)
        try:
            scores = critic(*parts, *args, **kwargs)
        except (RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            shapes = ", ".join(
                str(tuple(p.shape)) if isinstance(p, Tensor) else repr(p) for p in (*parts, *args)
            )
            raise ValueError(
                f"`{name}` must take {len(parts) + len(args)} values of shape {shapes}, but "
                f"raised: {error}"
            ) from error
        self._fitting.add(kind)
        return scores

    def loss(self, score: Scorer, real: Value, fake: Value) -> Tensor:
        """Computes what the critic minimises: its loss and the penalties.

        :param score: the critic.
        :param real: data.
        :param fake: draws, which have no gradient unless the critic is unrolled.
        :return: a scalar.
        """
        self._check_pairs(real, fake)
        where = self._points
        if not where:
            return self.objective.critic_loss(*self.both_scores(score, real, fake))
        if "real" in where:
            real = _with_gradient(real)
        if "fake" in where:
            fake = _with_gradient(fake)
        real_scores, fake_scores = score(*as_parts(real)), score(*as_parts(fake))
        shared = {
            "real_scores": real_scores if "real" in where else None,
            "fake_scores": fake_scores if "fake" in where else None,
        }
        loss = self.objective.critic_loss(real_scores, fake_scores)
        return loss + penalize(score, self.penalties, real, fake, **shared)

    def both_scores(self, score: Scorer, real: Value, fake: Value) -> tuple[Tensor, Tensor]:
        """Scores data and draws, in one pass where rows do not meet: it is faster if small."""
        reals, fakes = as_parts(real), as_parts(fake)
        shapes = [[part.shape[1:] for part in parts] for parts in (reals, fakes)]
        if not self._row_wise or shapes[0] != shapes[1]:
            return score(*reals), score(*fakes)
        try:
            scores = score(*(torch.cat(pair) for pair in zip(reals, fakes, strict=True)))
        except (RuntimeError, ValueError):  # to be told in terms of one batch
            return score(*reals), score(*fakes)
        return scores[: len(reals[0])], scores[len(reals[0]) :]

    def pairs_rows(self) -> Objective | Penalty | None:
        """Returns what needs as many draws as data, if anything does."""
        pairing = [p for p in self.penalties if p.where == "interpolated"]
        return self.objective if self.objective.paired else next(iter(pairing), None)

    def _check_pairs(self, real: Value, fake: Value) -> None:
        sizes = [len(as_parts(value)[0]) for value in (real, fake)]
        who = self.pairs_rows()
        if sizes[0] != sizes[1] and who is not None:
            raise ValueError(
                f"`view` must show as many draws as data where {who!r} pairs them, but showed "
                f"{sizes[1]} and {sizes[0]}; if the draws are psi of the `elbo`, raise num_mixing"
            )

    # ------------------------------------------------------------------------------------ training

    def step(self, loss: Tensor) -> None:
        """Takes a step down a loss.

        :param torch.Tensor loss: a scalar.
        """
        for param in self._trained:
            param.grad = None
        # Where penalties make leaves of the values, these want no gradient.
        loss.backward(inputs=self._trained if self._points else None)
        self.optim.step()
        for penalty in self.penalties:
            penalty.constrain(self.critic)

    def ahead(
        self, num_steps: int, loss: Callable[[Callable[..., Tensor]], Tensor]
    ) -> Callable[..., Tensor]:
        """Returns the critic as it will be after some steps, as a function of their inputs.

        :param int num_steps: number of steps.
        :param loss: maps a critic to its loss.
        """
        return unrolled(self.critic, loss, self.optim, num_steps)

    def state_dict(self) -> dict[str, Any]:
        """Returns a copy of the states of critic and optimiser."""
        state = {"critic": self.critic.state_dict(), "optim": self.optim.state_dict()}
        return copy.deepcopy(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        :param state: the state.
        """
        self.critic.load_state_dict(state["critic"])
        self.optim.load_state_dict(copy.deepcopy(state["optim"]))  # torch would share it


def _with_gradient(value: Value) -> Value:
    """Makes leaves of the graph; what is not floating point is refused by the penalty."""
    leaves = tuple(
        part.detach().requires_grad_()
        if part.is_floating_point() and not part.requires_grad
        else part
        for part in as_parts(value)
    )
    return leaves if isinstance(value, tuple) else leaves[0]


def _ends_in_sigmoid(critic: nn.Module) -> bool:
    """Tells by the order in which layers were made, which is all that a module shows of itself."""
    critics = critic.children() if type(critic) is nn.ModuleList else [critic]  # of a CycleGAN
    return any(isinstance(list(each.modules())[-1], nn.Sigmoid) for each in critics)


def _is_probability(objective: Objective) -> bool:
    """Tells an objective whose best score is a probability, as that of least squares."""
    try:
        best = objective.optimal_score(torch.tensor([-10.0, 0.0, 10.0]))
        return bool(((best >= 0) & (best <= 1)).all())
    except Exception:  # training asks nothing of a user's `optimal_score`, so a warning must not
        return False


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def check_critic(critic: nn.Module, name: str = "critic") -> None:
    """Checks that a critic is a plain module with something to train.

    :raises ValueError: if it is not.
    """
    check_instance(name, critic, nn.Module)
    if any(isinstance(module, PyroModule) for module in critic.modules()):
        raise ValueError(
            f"`{name}` must be a plain torch module, was or held a PyroModule: Pyro keeps its "
            "parameters by name, where the model's may stand"
        )
    if not any(p.requires_grad for p in critic.parameters()):
        raise ValueError(f"`{name}` must have parameters that require a gradient, had none")
