"""MultiTaskModel: a sharing with a head for each task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from polytask.data.batch import map_tensors
from polytask.data.schema import TableSchema
from polytask.errors import RecipeError, listed, unknown
from polytask.models.heads import TaskHead, TaskNetwork, make_head, run_heads, same_layers
from polytask.sharing.base import NeedsExample, Sharing, Tap, identity
from polytask.sharing.layers import per_task, task_key
from polytask.tasks.task import Task


@dataclass(frozen=True)
class Part:
    """Trained parameters with one owner.

    Args:
        name: Such as ``"encoder"`` or ``"head"``.
        owner: ``"shared"``, or the name of the one task that they belong to.
        parameters: How many numbers are trained.
    """

    name: str
    owner: str
    parameters: int


class MultiTaskModel(nn.Module):
    """One model that predicts several tasks.

    It is built at once where the feature shapes are known (the encoder has ``out_features``, or an
    example is given). Otherwise ``build`` is called later; ``fit`` does so with its first batch.

    Args:
        sharing: The architecture.
        tasks: What to predict.
        example: Inputs of a few rows, with rows first.

    Raises:
        RecipeError: if there is no task, or two have one name.
        ShapeError: if heads cannot read the features.

    Attributes:
        input_schema: How frames become inputs, once the model was trained on a frame.

    Example:
        >>> import torch
        >>> from polytask.sharing import Hard
        >>> from polytask.tasks import binary, regression
        >>> model = MultiTaskModel(Hard(nn.Linear(3, 8)), [binary("up"), regression("size")])
        >>> {name: tuple(raw.shape) for name, raw in model(torch.zeros(5, 3)).items()}
        {'up': (5,), 'size': (5,)}
    """

    def __init__(self, sharing: Sharing, tasks: Sequence[Task], *, example: Any | None = None):
        super().__init__()
        if not isinstance(sharing, Sharing):
            raise RecipeError(
                f"The first argument of MultiTaskModel is a sharing, found {type(sharing).__name__}. "
                "Say MultiTaskModel(sharing.Hard(encoder), tasks)."
            )
        self.sharing = sharing
        self._tasks = _by_name(tasks)
        sharing.check_tasks(self._tasks)
        self.heads = nn.ModuleDict()
        self.input_schema: TableSchema | None = None
        self._built = False
        if not all(task.is_known for task in self._tasks.values()):
            # Their classes come from the training data, and so do their heads.
            return
        try:
            self.build(example)
        except NeedsExample:
            if example is not None:
                raise

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks by name."""
        return MappingProxyType(self._tasks)

    @property
    def is_built(self) -> bool:
        """Whether the heads exist."""
        return self._built

    @property
    def supports_features(self) -> bool:
        """Whether balancing can happen at common features."""
        return self.sharing.supports_features

    def build(self, example: Any | None = None) -> MultiTaskModel:
        """Build what depends on feature shapes; a model that is built stays as it is.

        Args:
            example: Inputs of a few rows.

        Returns:
            The model itself.

        Raises:
            NeedsExample: if a shape is unknown and there is no example.
            RecipeError: if the classes of a task are not known yet.
        """
        if self._built:
            return self
        for task in self._tasks.values():
            task.require_known()
        first = next(self.sharing.parameters(), None)
        dtypes = {parameter.dtype for parameter in self.sharing.parameters()}
        if first is not None:
            example = map_tensors(example, lambda tensor: tensor.to(first.device))
        shapes = self.sharing.setup(tuple(self._tasks), example)
        self.heads = per_task({name: make_head(task.head, shapes[name]) for name, task in self._tasks.items()})
        if first is not None:
            # The model may have been moved before it was built, and what is new follows it.
            self.to(first.device, dtypes.pop() if len(dtypes) == 1 else None)
        self._shapes = shapes
        self._built = True
        return self

    def replace_tasks(self, tasks: Sequence[Task]) -> None:
        """Put fitted tasks in the place of those with the same names.

        A built head keeps its weights and takes the new shift and scale. A head whose layers change, as
        when the classes become known, is made anew.

        Raises:
            RecipeError: if the names are not those of the model's tasks.
        """
        new = _by_name(tasks)
        if set(new) != set(self._tasks):
            raise RecipeError(f"The model's tasks are {listed(self._tasks)}; found {listed(new)}.")
        self._tasks = {name: new[name] for name in self._tasks}
        self.sharing.check_tasks(self._tasks)
        for name, task in self._tasks.items() if self._built else ():
            head = self._head(name)
            if same_layers(head.spec, task.head):
                head.standardise(task.head)
            else:
                old = next(head.parameters())
                made = make_head(task.head, self._shapes[name]).to(old.device, old.dtype)
                self.heads[task_key(name)] = made.train(head.training)

    def forward(self, inputs: Any, tasks: Sequence[str] | None = None, *, tap: Tap = identity) -> dict[str, Tensor]:
        """Raw outputs by task.

        Args:
            inputs: What the encoder reads, with rows first.
            tasks: Names of the tasks to compute; all if None.
            tap: Called once on the tensors where shared computation ends.

        Returns:
            For each task its raw outputs, rows first.

        Raises:
            RecipeError: for an unknown task.
            NeedsExample: if the model is not built.
        """
        self._require_built("forward")
        names = tuple(self._tasks) if tasks is None else tuple(tasks)
        for name in names:
            self._require_task(name)
        return _outputs(self.sharing, self.heads, inputs, names, tap)

    def _head(self, name: str) -> TaskHead:
        return self.heads[task_key(name)]  # type: ignore[return-value]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Trained parameters that belong to no single task."""
        owned = {id(parameter) for name in self._tasks for parameter in self.task_parameters(name)}
        return [p for p in self.parameters() if id(p) not in owned and p.requires_grad]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Trained parameters of one task alone, its head included."""
        return [p for p in self.owned_parameters(task) if p.requires_grad]

    def owned_parameters(self, task: str) -> list[nn.Parameter]:
        """Parameters of one task alone, its head included, trained or not."""
        self._require_built("task_parameters")
        self._require_task(task)
        head = () if self._is_read(task) else self._head(task).parameters()
        return [*self.sharing.task_parameters(task), *head]

    def _is_read(self, task: str) -> bool:
        """Whether another task's output is made of this one's head, too."""
        return any(task in self.sharing.reads(other) for other in self._tasks)

    def extract(self, task: str) -> nn.Module:
        """One task's network as a plain module: inputs to raw outputs.

        It computes what the task needs and holds the model's own parameters, not copies.

        Raises:
            RecipeError: for an unknown task.
        """
        self._require_built("extract")
        self._require_task(task)
        if self.sharing.reads(task):
            return _OneOutput(self.sharing, self.heads, task).train(self.training)
        return TaskNetwork(self.sharing.extract(task), self._head(task)).train(self.training)

    def summary(self) -> list[Part]:
        """How many parameters each part trains, and whether it is shared; for the report."""
        self._require_built("summary")
        owners = {id(p): name for name in self._tasks for p in self.sharing.task_parameters(name)}
        counts: dict[tuple[str, str], int] = {}
        for path, parameter in self.named_parameters():
            if not parameter.requires_grad or path.startswith("heads."):
                continue
            key = (path.split(".")[1], owners.get(id(parameter), "shared"))
            counts[key] = counts.get(key, 0) + parameter.numel()
        parts = [Part(name, owner, count) for (name, owner), count in counts.items()]
        for task in self._tasks:
            trained = [p.numel() for p in self.heads[task_key(task)].parameters() if p.requires_grad]
            parts.append(Part("head", "shared" if self._is_read(task) else task, sum(trained)))
        return parts

    def named_parameters(self, *args: Any, **options: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """As in ``nn.Module``; an error before the model is built, because heads would be left out."""
        self._require_built("parameters")
        return super().named_parameters(*args, **options)

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """As in ``nn.Module``; an error before the model is built."""
        self._require_built("state_dict")
        return super().state_dict(*args, **options)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """As in ``nn.Module``; an error before the model is built."""
        self._require_built("load_state_dict")
        return super().load_state_dict(*args, **options)

    def _require_built(self, asked: str) -> None:
        if not self._built:
            raise NeedsExample(
                f"{asked}() needs the heads, and they are not built yet: the encoder has no 'out_features' and no "
                "example was given. Pass MultiTaskModel(..., example=inputs_of_a_few_rows), call "
                "model.build(inputs_of_a_few_rows), or let fit build them from its first batch."
            )

    def _require_task(self, name: str) -> None:
        if name not in self._tasks:
            raise RecipeError(unknown("task", name, self._tasks))


class _OneOutput(nn.Module):
    """One task's output where it is made of several heads: these, and the sharing."""

    def __init__(self, sharing: Sharing, heads: nn.ModuleDict, task: str):
        super().__init__()
        self.sharing, self.task = sharing, task
        self.heads = nn.ModuleDict({key: heads[key] for key in map(task_key, (*sharing.reads(task), task))})

    def forward(self, inputs: Any) -> Tensor:
        """The task's raw output."""
        return _outputs(self.sharing, self.heads, inputs, (self.task,))[self.task]


def _outputs(
    sharing: Sharing, heads: nn.ModuleDict, inputs: Any, names: Sequence[str], tap: Tap = identity
) -> dict[str, Tensor]:
    """Raw outputs of ``names``, by all heads that these are made of."""
    needed = tuple(dict.fromkeys((*names, *(other for name in names for other in sharing.reads(name)))))
    features = sharing(inputs, needed, tap)
    raw = run_heads({name: heads[task_key(name)] for name in needed}, features, inputs)
    return sharing.outputs(raw, names)


def _by_name(tasks: Sequence[Task]) -> dict[str, Task]:
    if not tasks:
        raise RecipeError("A model needs at least one task, such as polytask.tasks.binary('income').")
    found: dict[str, Task] = {}
    for task in tasks:
        if task.name in found:
            raise RecipeError(f"Two tasks are named '{task.name}'. Give each task a name of its own.")
        found[task.name] = task
    return found
