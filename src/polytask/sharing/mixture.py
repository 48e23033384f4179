"""Mixtures of experts: what ``mmoe``, ``cgc``, ``ple`` and ``dselect_k`` have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from polytask.errors import RecipeError, unknown
from polytask.sharing.base import Sharing, Tap, feature_shape, identity
from polytask.sharing.experts import warn_of_equal_starts
from polytask.sharing.layers import task_key
from polytask.sharing.levels import Level, SoftmaxGate, gate_widths
from polytask.sharing.parts import begun, take_apart

GATE_INPUTS = ("flat", "pooled")


class Mixture(Sharing):
    """Levels of experts: shared ones, each task's own ones, and gates that mix them.

    The beginning of a staged encoder, such as embeddings, runs once for all experts. The tap is called on
    what the losses reach shared weights by: the last shared experts' outputs (``experts``), and what tasks
    read besides these, if shared weights made it (``state``, ``before``). A task's row there holds its
    partial derivatives with respect to these tensors.
    """

    supports_features: ClassVar[bool] = True

    def __init__(self, encoder: nn.Module, shared: int, private: int, gate_input: str, reset: bool):
        super().__init__()
        if gate_input not in GATE_INPUTS:
            raise RecipeError(unknown("gate_input", gate_input, GATE_INPUTS))
        self.encoder = encoder
        self.counts = (shared, private)
        self.gate_input, self.reset = gate_input, reset
        self.levels = nn.ModuleList()
        self._tasks: tuple[str, ...] = ()

    def cuts(self) -> tuple[int, ...]:
        """Numbers of the stages before which a new level starts."""
        return ()

    def make_gate(self, width: int, experts: int) -> nn.Module:
        """A task's gate."""
        return SoftmaxGate(width, experts)

    def setup(self, tasks: Sequence[str], example: Any | None) -> dict[str, tuple[int, ...]]:
        """Build experts and gates; return each task's feature shape."""
        shape = feature_shape(self.encoder, example)
        parts = take_apart(self.encoder, example, self.cuts())
        widths = gate_widths(parts, example, self.gate_input)
        for block in parts.blocks if self.reset else ():
            warn_of_equal_starts(block.module, type(self).__name__)
        self.levels = nn.ModuleList(
            Level(
                block,
                tasks,
                self.counts,
                width,
                self.make_gate,
                gate_input=self.gate_input,
                reset=self.reset,
                shared_gate=number < len(widths),
            )
            for number, (block, width) in enumerate(zip(parts.blocks, widths, strict=True), start=1)
        ).train(self.training)
        self.encoder = parts.encoder.train(self.training)
        self._tasks = tuple(tasks)
        return dict.fromkeys(tasks, shape)

    def forward(self, inputs: Any, tasks: Sequence[str], tap: Tap = identity) -> dict[str, Tensor]:
        """Features of each task in ``tasks``."""
        state = begun(self.encoder, inputs)
        *lower, last = (cast(Level, level) for level in self.levels)
        # What gates and own experts read is an end of shared computation only if shared weights made it.
        ends = {"state": state} if any(True for _ in self.encoder.parameters()) else {}
        if not lower:
            return self._one_level(last, state, tasks, ends, tap)
        # Below the last level everything feeds the shared experts, so the tasks that are not asked run too.
        entered = dict.fromkeys(self._tasks, state)
        common = state
        for level in lower:
            shared, own = level.run_shared(common), level.run_private(entered)
            common = level.mix_for_shared(common, shared, own)
            if level is not lower[-1]:
                entered = level.mix(entered, dict.fromkeys(self._tasks, shared), own)
                ends = {_of("state", task): entered[task] for task in tasks}
        ends |= {"experts": last.run_shared(common), "before": shared}
        ends |= {_of("before", task): own[task] for task in tasks if own}
        found = tap(ends)
        came = {t: found[t][_of("state", t)] if len(lower) > 1 else found[t].get("state", state) for t in tasks}
        before = {task: found[task][_of("before", task)] for task in tasks if own}
        states = lower[-1].mix(came, {task: found[task]["before"] for task in tasks}, before)
        return last.mix(states, {task: found[task]["experts"] for task in tasks}, last.run_private(states))

    def _one_level(
        self, level: Level, state: Tensor, tasks: Sequence[str], ends: dict[str, Tensor], tap: Tap
    ) -> dict[str, Tensor]:
        found = tap({"experts": level.run_shared(state), **ends})
        states = {task: found[task].get("state", state) for task in tasks}
        return level.mix(states, {task: found[task]["experts"] for task in tasks}, level.run_private(states))

    def task_parameters(self, task: str) -> Iterable[nn.Parameter]:
        """Those of the task's gates and experts that no other task's features depend on.

        Below the last level, own experts feed the shared gate, and below the last but one own gates do
        so too: these serve all tasks.
        """
        key = task_key(task)
        for level in self.levels[-2:]:
            yield from cast(Level, level).gates[key].parameters()
        last = cast(Level, self.levels[-1]) if self.levels else None
        if last is not None and last.private:
            yield from last.private[key].parameters()

    def inspect(self) -> dict[str, Tensor]:
        """The mean weights of the last forward: ``[tasks, experts]`` a level, shared experts first; NaN if unseen."""
        found = {}
        for number, level in enumerate(self.levels, start=1):
            # Averaged here and not in the forward, where it would cost two more passes over the gates.
            seen = {task: weights.float().mean(0) for task, weights in cast(Level, level).seen.items()}
            if seen:
                unseen = torch.full_like(next(iter(seen.values())), float("nan"))
                name = "gates" if len(self.levels) == 1 else f"gates of level {number}"
                found[name] = torch.stack([seen.get(task, unseen) for task in self._tasks])
        return found


def _of(name: str, task: str) -> str:
    return f"{name} of {task}"


def at_least(least: int, what: str, count: int) -> int:
    """The count itself.

    Raises:
        RecipeError: if it is not a whole number from ``least``.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < least:
        raise RecipeError(f"{what} is {count!r}; it is a whole number from {least}.")
    return count
