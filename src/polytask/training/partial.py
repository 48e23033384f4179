"""Partial updates: what a step leaves alone gets no gradient and keeps its statistics."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from polytask.errors import RecipeError, listed
from polytask.models import MultiTaskModel
from polytask.training.strategies import Strategy, Turn


class Hold:
    """Fixes parts of a model while a step runs.

    Parameters get no gradient: the optimizer passes over them, and their weight decay and moments rest. Modules with
    buffers work on copies, so that running statistics stay. Normalisations that are frozen for long use their running
    statistics, as they will when the model is used.

    Args:
        parameters: What is fixed.
        buffers: Modules whose buffers stay.
        norms: Normalisations that use their running statistics.
        leaves_any: Whether any parameter is left to train.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        buffers: Iterable[nn.Module] = (),
        norms: Iterable[nn.Module] = (),
        leaves_any: bool = True,
    ):
        self.parameters, self.buffers, self.norms = list(parameters), list(buffers), list(norms)
        self.leaves_any = leaves_any
        self._kept: list[dict[str, Tensor | None]] = []

    def __enter__(self) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        for norm in self.norms:
            norm.training = False
        # The originals are put aside, not written to, as a graph of the step may hold what it saw.
        self._kept = [dict(module._buffers) for module in self.buffers]
        for module in self.buffers:
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.clone()

    def __exit__(self, *error: object) -> None:
        for module, kept in zip(self.buffers, self._kept, strict=True):
            module._buffers.update(kept)
        for norm in self.norms:
            norm.training = True
        for parameter in self.parameters:
            parameter.requires_grad_(True)


class PartialUpdates:
    """Knows which parameters and modules of a model belong to whom, and what a turn therefore holds.

    A module with buffers belongs to those whom its parameters belong to, or, without any, those of the nearest module
    around it. Where these are several, it counts as shared.

    Args:
        model: A built model.
        strategy: Says what a step touches.
        steps_per_epoch: Of the run.
        frozen: The ``id`` of parameters that are frozen in an epoch (from 0) whatever the strategy says.

    Raises:
        RecipeError: if the strategy has a step for a part of the model that trains nothing.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        strategy: Strategy,
        steps_per_epoch: int,
        frozen: Callable[[int], frozenset[int]] = lambda epoch: frozenset(),
    ):
        self.model, self.strategy, self.steps_per_epoch, self.frozen = model, strategy, steps_per_epoch, frozen
        self._owner = owners(model)
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._governed = governed(model)
        self._holds: dict[tuple[Turn, frozenset[int]], Hold] = {}
        for turn in strategy.turns:
            if not self.touched(turn):
                raise RecipeError(_nothing_to_train(turn, type(model.sharing).__name__))

    def step(self, step: int) -> tuple[Turn, Hold]:
        """What a step touches, and the context that it runs in."""
        turn = self.strategy.turn(step, self.steps_per_epoch)
        key = (turn, self.frozen(step // self.steps_per_epoch))
        if key not in self._holds:
            self._holds[key] = self._hold(*key)
        return turn, self._holds[key]

    def _hold(self, turn: Turn, frozen: frozenset[int]) -> Hold:
        fixed = [p for p in self._trained.values() if id(p) in frozen or not self._touched(turn, self._of(p))]
        buffers: list[nn.Module] = []
        norms: list[nn.Module] = []
        for module, around in self._governed.items():
            if around <= frozen and isinstance(module, _NormBase) and module.training:
                norms.append(module)
            elif around <= frozen or not self._touched(turn, self._holder(around)):
                buffers.append(module)
        return Hold(fixed, buffers, norms, len(fixed) < len(self._trained))

    def touched(self, turn: Turn) -> dict[str, nn.Parameter]:
        """Trained parameters that a turn updates, by name."""
        return {name: p for name, p in self._trained.items() if self._touched(turn, self._of(p))}

    def _of(self, parameter: nn.Parameter) -> str | None:
        return self._owner.get(id(parameter))

    def _holder(self, parameters: Collection[int]) -> str | None:
        found = {self._owner.get(number) for number in parameters}
        return found.pop() if len(found) == 1 else None

    @staticmethod
    def _touched(turn: Turn, owner: str | None) -> bool:
        if owner is None:
            return turn.part != "heads"
        return turn.part != "shared" and (turn.tasks is None or owner in turn.tasks)


def _nothing_to_train(turn: Turn, sharing: str) -> str:
    what = {"shared": "the shared part", "heads": "the heads", "all": "a task"}[turn.part]
    tasks = f" of {listed(turn.tasks)}" if turn.tasks else ""
    why = f" ({sharing} shares nothing that is trained)" if turn.part == "shared" else ", and nothing of it is trained"
    return f"training.strategy has steps for {what}{tasks}{why}. Use strategy: joint, another sharing, or freeze less."


def owners(model: MultiTaskModel) -> dict[int, str]:
    """The one task that a parameter belongs to, by the parameter's ``id``; shared ones are left out."""
    return {id(p): task for task in model.tasks for p in model.owned_parameters(task)}


def governed(model: nn.Module) -> dict[nn.Module, frozenset[int]]:
    """Modules with buffers, each with the parameters that say whom it belongs to, by their ``id``."""
    found: dict[nn.Module, frozenset[int]] = {}

    def walk(module: nn.Module, around: frozenset[int]) -> None:
        inside = frozenset(map(id, module.parameters())) or around
        if module._buffers:
            found[module] = frozenset(map(id, module.parameters(recurse=False))) or inside
        for child in module.children():
            walk(child, inside)

    walk(model, frozenset())
    return found


class Anchor:
    """The penalty on the change of what earlier phases trained, since the present phase began.

    Args:
        partial: Knows what a phase trains.
    """

    def __init__(self, partial: PartialUpdates):
        self._partial, self._weight = partial, partial.strategy.anchor
        self._phase = 0
        self._values: dict[str, Tensor] = {}

    def look(self, step: int) -> None:
        """Take the values anew if a phase begins with this step."""
        if not self._weight:
            return
        phases = self._partial.strategy.phases_until(step, self._partial.steps_per_epoch)
        if len(phases) != self._phase:
            self._phase = len(phases)
            before = {name: p for turn in phases[:-1] for name, p in self._partial.touched(turn).items()}
            self._values = {name: p.detach().clone() for name, p in before.items()}

    def penalty(self) -> Tensor | None:
        """``weight * sum (theta - theta')^2``; None where no earlier phase trained anything that trains now."""
        parameters = self._partial.model.get_parameter
        pairs = [(parameters(name), value) for name, value in self._values.items()]
        terms = [(p - value).square().sum() for p, value in pairs if p.requires_grad]
        return self._weight * torch.stack(terms).sum() if terms else None

    def state_dict(self) -> dict[str, Any]:
        """The phase and the values at its start."""
        return {"phase": self._phase, "values": dict(self._values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._phase = int(state["phase"])
        parameters = self._partial.model.get_parameter
        self._values = {name: value.to(parameters(name).device) for name, value in state["values"].items()}
