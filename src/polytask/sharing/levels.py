"""One level of a mixture of experts: shared experts, each task's own ones, and the gates that mix them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from polytask.errors import RecipeError
from polytask.sharing.base import NeedsExample
from polytask.sharing.experts import Experts, dense_chain
from polytask.sharing.layers import per_task, task_key
from polytask.sharing.mixed import mixed
from polytask.sharing.parts import Block, Parts, quietly

MakeGate = Callable[[int, int], nn.Module]
"""Makes a gate from the width of what it reads and the number of experts that it weighs."""


class Memo(dict[Any, Tensor]):
    """Tensors of the last forward. A copy of the model starts without them: they may hold a graph."""

    def __deepcopy__(self, memo: Any) -> Memo:
        return Memo()

    def __reduce__(self) -> tuple[type[Memo], tuple[()]]:
        return Memo, ()


class SoftmaxGate(nn.Module):
    """Weights of experts: softmax of a linear map without bias, ``[rows, width]`` to ``[rows, experts]``."""

    def __init__(self, width: int, experts: int):
        super().__init__()
        self.linear = nn.Linear(width, experts, bias=False)

    def forward(self, vector: Tensor) -> Tensor:
        """Weights that add up to 1 in every row."""
        return self.linear(vector).softmax(-1)  # type: ignore[no-any-return]


class Level(nn.Module):
    """Experts of one level and their gates.

    Args:
        block: What the experts are copies of.
        tasks: Names of the tasks.
        counts: How many shared experts there are, and how many each task has of its own.
        width: Width of what gates read.
        make_gate: Makes the tasks' gates.
        gate_input: ``"flat"`` or ``"pooled"``.
        reset: Whether experts draw initial weights of their own.
        shared_gate: Whether a gate over all experts feeds the shared experts of a level above.
    """

    def __init__(
        self,
        block: Block,
        tasks: Sequence[str],
        counts: tuple[int, int],
        width: int,
        make_gate: MakeGate,
        *,
        gate_input: str,
        reset: bool,
        shared_gate: bool,
    ):
        super().__init__()
        shared, private = counts
        self.gate_input = gate_input
        self.shared = Experts(block.module, shared, reset=reset, only=block.names)
        owners = tasks if private else ()
        own = {t: Experts(block.module, private, reset=reset, keep_first=False, only=block.names) for t in owners}
        self.private = per_task(own)
        self.gates = per_task({task: make_gate(width, shared + private) for task in tasks})
        self.shared_gate = SoftmaxGate(width, shared + private * len(tasks)) if shared_gate else None
        self.seen = Memo()

    def run_shared(self, state: Tensor) -> Tensor:
        """The shared experts' outputs ``[rows, experts, ...]``."""
        return cast(Tensor, self.shared(state))

    def run_private(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The own experts' outputs of the tasks in ``states``; nothing if tasks have none."""
        # One product a task: a joint one would hand every task's experts a gradient of zeros from the others.
        return {task: self.private[task_key(task)](z) for task, z in states.items()} if self.private else {}

    def mix(
        self, states: Mapping[str, Tensor], shared: Mapping[str, Tensor], own: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Each task's mixture of the shared experts and its own, weighed by what its gate makes of its state.

        Args:
            states: What the gates of the tasks to mix for read.
            shared: The shared experts' outputs as each task sees them, ``[rows, experts, ...]``.
            own: Those of its own experts, of tasks that have some.
        """
        outs = {task: torch.cat([shared[task], own[task]], 1) if task in own else shared[task] for task in states}
        readers: dict[int, list[str]] = {}
        for task, seen in outs.items():
            readers.setdefault(id(seen), []).append(task)
        found: dict[str, Tensor] = {}
        for tasks in readers.values():
            weights = [self._weights(task, states[task]) for task in tasks]
            found.update(zip(tasks, mixed(outs[tasks[0]], weights), strict=True))
        return {task: found[task] for task in states}

    def _weights(self, task: str, state: Tensor) -> Tensor:
        weights: Tensor = self.gates[task_key(task)](gate_vector(state, self.gate_input))
        self._note(task, weights)
        return weights

    def mix_for_shared(self, state: Tensor, shared: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        """The mixture of all experts, for the shared experts of the level above."""
        assert self.shared_gate is not None
        weights = self.shared_gate(gate_vector(state, self.gate_input))
        return mixed(torch.cat([shared, *own.values()], 1), [weights])[0]

    def _note(self, task: str, weights: Tensor) -> None:
        # A compiled or exported graph for inference must not write to the model.
        if self.training or not torch.compiler.is_compiling():
            self.seen[task] = weights.detach()


def gate_vector(state: Tensor, how: str) -> Tensor:
    """What a gate reads, ``[rows, width]``: all numbers of a row, or means over its positions."""
    if state.dim() <= 2 or how == "flat":
        return state.flatten(1)
    return state.mean(1) if state.dim() == 3 else state.flatten(2).mean(2)


def gate_widths(parts: Parts, example: Any | None, how: str) -> list[int]:
    """How wide the gates of every level are.

    Raises:
        NeedsExample: if it is unknown until an example has been seen.
        RecipeError: if gates cannot read what experts read.
    """
    if example is None:
        widths = [_declared(block.module) for block in parts.blocks]
        if None in widths:
            raise NeedsExample(
                f"What the gates read of {type(parts.encoder).__name__} has an unknown width. Pass "
                "MultiTaskModel(..., example=inputs_of_a_few_rows), or let fit build the model from its first batch."
            )
        return cast(list[int], widths)
    states = []
    state = quietly(parts.encoder, lambda: parts.begin(example))
    for block in parts.blocks:
        _check_readable(state, parts.encoder)
        states.append(state)
        state = quietly(block.module, lambda b=block, s=state: b.module(s))  # type: ignore[misc]
    return [gate_vector(state, how).shape[1] for state in states]


def _declared(module: nn.Module) -> int | None:
    layers = dense_chain(module) or []
    first = next((layer for _, layer in layers if isinstance(layer, nn.Linear)), None)
    return None if first is None else first.in_features


def _check_readable(state: Any, encoder: nn.Module) -> None:
    if not isinstance(state, Tensor) or not state.is_floating_point():
        found = f"tensors of {state.dtype}" if isinstance(state, Tensor) else type(state).__name__
        raise RecipeError(
            f"Gates read numbers, and {type(encoder).__name__} reads {found}. Use a staged encoder whose begin() turns "
            "its inputs into one floating tensor, such as embeddings."
        )
