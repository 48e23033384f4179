"""Joint training first, then fine-tuning of single tasks: phases under one word."""

from __future__ import annotations

from collections.abc import Sequence

from polytask.data.mixing import Mixer
from polytask.errors import RecipeError, unknown
from polytask.training.strategies import Hierarchical


class Finetune(Hierarchical):
    """All tasks together, then each head by itself, or the whole network for one task.

    For the first ``joint`` epochs every step updates everything. After that the shared part is fixed and only what
    belongs to single tasks trains: no task can harm another one any more. With ``task`` the whole network trains for
    that task alone instead, and what belongs to the others rests; they are no longer good for anything then.

    Args:
        tasks: Names of all tasks.
        joint: Epochs of joint training, from 1; the rest of the run is fine-tuning.
        task: The one task to go on with; None for the heads of all.
        anchor: Weight of the squared distance to the jointly trained weights while fine-tuning; see ``Hierarchical``.

    Raises:
        RecipeError: for an unknown task, a number out of range, or at ``check`` a run without an epoch of fine-tuning.

    Example:
        >>> strategy = Finetune(["tags", "parse"], joint=2)
        >>> strategy.turn(19, 10), strategy.turn(20, 10)
        (Turn(part='all', tasks=None), Turn(part='heads', tasks=None))
    """

    def __init__(self, tasks: Sequence[str], joint: int, task: str | None = None, anchor: float = 0.0):
        if isinstance(joint, bool) or not isinstance(joint, int) or joint < 1:
            raise RecipeError(f"training.strategy.joint is {joint!r}; it is a whole number of epochs from 1.")
        if task is not None and task not in tasks:
            raise RecipeError(f"training.strategy.task: {unknown('task', str(task), tasks)}")
        self.joint = joint
        after = {"tasks": "all", "train": "heads"} if task is None else {"tasks": [task]}
        super().__init__(tasks, phases=[{"tasks": "all", "epochs": joint}, after], anchor=anchor)
        self._after = "the heads" if task is None else task

    def check(self, mixer: Mixer, epochs: int) -> None:
        """Refuse a run that ends before fine-tuning begins."""
        if epochs <= self.joint:
            raise RecipeError(
                f"training.strategy.joint is {self.joint}, but the run has {epochs} epochs, so there is no "
                "fine-tuning. Raise training.epochs: it counts both."
            )

    def describe(self) -> str:
        """In words."""
        return f"Strategy: finetune, all tasks for {self.joint} epochs, then {self._after} to the end."
