"""Funnels: binary tasks in steps, of which a later one can only happen after the former ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import Tensor, nn

from polytask.errors import RecipeError, listed, unknown
from polytask.sharing.base import Sharing, feature_shape
from polytask.sharing.experts import Experts, warn_of_equal_starts
from polytask.sharing.layers import per_task, task_key
from polytask.sharing.parts import begun, take_apart

if TYPE_CHECKING:
    from polytask.tasks.task import Task


class Funnel(Sharing):
    """One tower a task on a common beginning, and the order of the steps: what ``esmm`` and ``aitm`` share.

    Towers are copies of a staged encoder's stages and end, or of any other encoder as a whole. Tasks that are
    no step of the funnel have a tower of their own and nothing to do with the steps.

    Args:
        encoder: What towers are copies of.
        order: Names of the steps, the first one first.
        reset: Whether all towers but the first draw initial weights of their own.
        label: The architecture's name, for errors.

    Raises:
        RecipeError: for fewer than two steps, or a step that is named twice.
    """

    supports_features: ClassVar[bool] = False

    def __init__(self, encoder: nn.Module, order: Sequence[str], reset: bool, label: str):
        super().__init__()
        names = [order] if isinstance(order, str) else list(order)
        if len(names) < 2 or len(set(names)) < len(names):
            raise RecipeError(
                f"'{label}' needs an order of at least two different tasks, such as order: [click, conversion]; found "
                f"{names}."
            )
        self.encoder, self.order, self.reset, self._label = encoder, tuple(names), reset, label
        self.towers = nn.ModuleDict()

    def check_tasks(self, tasks: Mapping[str, Task]) -> None:
        """Raise a RecipeError for a step that is no task, or no binary one."""
        for step in self.order:
            if step not in tasks:
                raise RecipeError(f"order: {unknown('task', step, tasks)}")
        wrong = [f"{step} ({tasks[step].kind})" for step in self.order if tasks[step].kind != "binary"]
        if wrong:
            raise RecipeError(
                f"The steps of '{self._label}' are binary tasks; found: {listed(wrong)}. Take them out of the order: "
                "other tasks may stand beside the funnel."
            )

    def setup(self, tasks: Sequence[str], example: Any | None) -> dict[str, tuple[int, ...]]:
        """Make the towers; return each task's feature shape."""
        shape = feature_shape(self.encoder, example)
        parts = take_apart(self.encoder, example)
        (block,) = parts.blocks
        if self.reset:
            warn_of_equal_starts(block.module, f"'{self._label}'")
        made = {
            task: Experts(block.module, 1, reset=self.reset, keep_first=task == tasks[0], only=block.names)
            for task in tasks
        }
        self.towers = per_task(made).train(self.training)
        self.encoder = parts.encoder.train(self.training)
        return dict.fromkeys(tasks, shape)

    def before(self, task: str) -> tuple[str, ...]:
        """The steps before a task; none if it is no step."""
        return self.order[: self.order.index(task)] if task in self.order else ()

    def begin(self, inputs: Any) -> Any:
        """What the towers read."""
        return begun(self.encoder, inputs)

    def climb(self, task: str, state: Any) -> Tensor:
        """What a task's tower makes of it."""
        return cast(Tensor, self.towers[task_key(task)](state)).squeeze(1)

    def task_parameters(self, task: str) -> Iterable[nn.Parameter]:
        """Those of the task's tower, unless a later step depends on them."""
        return () if task in self.order[:-1] or not self.towers else self.towers[task_key(task)].parameters()
