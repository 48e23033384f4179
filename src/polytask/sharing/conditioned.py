"""One trunk that hooks change for the task at hand; ``film``, ``adapters``, ``lora`` and ``task_routing`` do so."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from polytask.errors import RecipeError, ShapeError, unknown
from polytask.sharing.base import NeedsExample, Sharing, Tap, feature_shape, identity
from polytask.sharing.parts import in_stages, is_staged, quietly

# Which task the trunk runs for. A server may run several threads at once, each for a task of its own.
_running = threading.local()


class Change(nn.Module):
    """What happens to one module's output: a subclass says how, task by task.

    ``watch`` makes it a hook. The hook is a bound method, so that a copy of the trunk has hooks of its own.
    """

    @abstractmethod
    def forward(self, task: str, inputs: Tensor, output: Tensor) -> Tensor:
        """The output for ``task``."""

    def own(self, task: str) -> Iterable[nn.Parameter]:
        """Parameters of one task alone."""
        return ()

    def hook(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Called by the trunk; outside of a sharing's forward the output stays as it is."""
        task = getattr(_running, "task", None)
        return output if task is None else self(task, inputs[0], output)


class Conditioned(Sharing):
    """One trunk, run once for each task, with its stages changed for that task.

    Features of m tasks cost m forwards of the trunk. Before ``setup`` the trunk is untouched.
    """

    supports_features: ClassVar[bool] = False

    def __init__(self, encoder: nn.Module, freeze: bool = False):
        super().__init__()
        self.encoder = encoder
        self.freeze = freeze
        self.changes = nn.ModuleList()
        if freeze:
            encoder.requires_grad_(False)

    @abstractmethod
    def places(self) -> list[str]:
        """Paths of the modules whose outputs change."""

    @abstractmethod
    def make_change(self, path: str, tasks: Sequence[str], output: Tensor | None) -> Change:
        """The change of the module at ``path``, from its output for the example, if there is one."""

    def setup(self, tasks: Sequence[str], example: Any | None) -> dict[str, tuple[int, ...]]:
        """Build the changes and watch the trunk; return each task's feature shape."""
        shape = feature_shape(self.encoder, example)
        paths = self.places()
        outputs = {} if example is None else stage_outputs(self.encoder, paths, example)
        self.changes = nn.ModuleList(self.make_change(path, tasks, outputs.get(path)) for path in paths)
        for path, change in zip(paths, self.changes, strict=True):
            self.encoder.get_submodule(path).register_forward_hook(cast(Change, change).hook)
        return dict.fromkeys(tasks, shape)

    def forward(self, inputs: Any, tasks: Sequence[str], tap: Tap = identity) -> dict[str, Tensor]:
        """Features of each task in ``tasks``, each from a run of its own."""
        tap({})  # no common features
        return {task: self._run(inputs, task) for task in tasks}

    def _run(self, inputs: Any, task: str) -> Tensor:
        before = getattr(_running, "task", None)
        _running.task = task
        try:
            return cast(Tensor, self.encoder(inputs))
        finally:
            _running.task = before

    def task_parameters(self, task: str) -> Iterable[nn.Parameter]:
        """Those of the task's changes."""
        for change in self.changes:
            yield from cast(Change, change).own(task)


def stage_paths(encoder: nn.Module, stages: Sequence[str] | None) -> list[str]:
    """Paths of the named modules; those of the stages of a staged encoder or ``nn.Sequential`` for None.

    Raises:
        ShapeError: for an unknown path, or None where the encoder has no stages.
        RecipeError: if the list is empty, or names a module twice.
    """
    known = dict(encoder.named_modules())
    if stages is None:
        if not is_staged(encoder) and type(encoder) is not nn.Sequential:
            raise ShapeError(
                f"{type(encoder).__name__} does not say which of its modules are stages. Name them: "
                "stages=['layer1', ...], as paths of submodules."
            )
        names = {id(part): name for name, part in known.items()}
        return [names[id(stage)] for stage in in_stages(encoder).stages]
    for path in stages:
        if path not in known or not path:
            raise ShapeError(unknown(f"stage of {type(encoder).__name__}:", str(path), [n for n in known if n]))
    if not stages or len(set(stages)) < len(stages):
        raise RecipeError(f"stages is {list(stages)}; name at least one stage, each once.")
    return list(stages)


def channels_of(path: str, output: Tensor | None, module: nn.Module) -> tuple[int, int]:
    """How many channels a stage's output has, and along which dimension.

    Raises:
        NeedsExample: if there is no example to see it from.
    """
    if output is not None:
        dim = 1 if output.dim() > 3 else -1
        return output.shape[dim], dim
    if isinstance(module, nn.Linear):
        return module.out_features, -1
    raise NeedsExample(
        f"How many channels stage '{path}' has is unknown until it runs. Pass MultiTaskModel(..., "
        "example=inputs_of_a_few_rows), or let fit build the model from its first batch."
    )


def stage_outputs(encoder: nn.Module, paths: Sequence[str], example: Any) -> dict[str, Tensor]:
    """What the modules at ``paths`` return for an example, in the order in which they are called.

    Raises:
        ShapeError: if a module is not called once, or does not return one tensor.
    """
    calls: list[tuple[str, Any]] = []
    handles = [
        encoder.get_submodule(path).register_forward_hook(lambda m, i, out, p=path: calls.append((p, out)))
        for path in paths
    ]
    try:
        quietly(encoder, lambda: encoder(example))
    finally:
        for handle in handles:
            handle.remove()
    for path in paths:
        outs = [out for called, out in calls if called == path]
        if len(outs) != 1 or not isinstance(outs[0], Tensor):
            what = f"is called {len(outs)} times" if len(outs) != 1 else f"returns {type(outs[0]).__name__}"
            raise ShapeError(
                f"Stage '{path}' {what} in a forward of {type(encoder).__name__}; a stage is called once and "
                "returns one tensor. Name another module."
            )
    return dict(calls)
