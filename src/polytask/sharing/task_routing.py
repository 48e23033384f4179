"""Task routing: each task has its own fixed path through the channels of a common trunk."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask import registry
from polytask.errors import RecipeError
from polytask.sharing.conditioned import Change, Conditioned, channels_of, stage_paths
from polytask.sharing.towers import along


class TaskRouting(Conditioned):
    r"""One trunk in which each task uses some channels: those that all share, and some of its own.

    After a named stage with output h, task k goes on with :math:`M_k \odot h`, where :math:`M_k` is 0 or 1 for
    every channel. A share ``sigma`` of the channels is common to all tasks. The others are dealt out to the
    tasks at random, as evenly as possible, when the model is built; the routes are saved with it. No weight
    tensor belongs to one task alone. Features of m tasks cost m forwards of the trunk.

    Args:
        encoder: The trunk, any module.
        stages: Paths of the modules whose outputs are routed; the stages of a staged encoder if None.
        sigma: Share of common channels, from 0 (every task has its own) to 1 (plain sharing).
        seed: Of the dealing.

    Raises:
        ShapeError: for an unknown stage, or one with too few channels for all tasks.
        RecipeError: for no stage, or ``sigma`` out of range.

    Example:
        >>> sharing = TaskRouting(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), stages=["1"], sigma=0.5)
        >>> sharing.setup(["a", "b"], torch.zeros(2, 3))
        {'a': (4,), 'b': (4,)}
        >>> sharing.inspect()["routes after 1"].sum(1)
        tensor([3., 3.])

    Reference:
        Strezoski, van Noord and Worring, "Many Task Learning With Task Routing" (ICCV 2019), section 3, with
        the channels that are not common dealt out disjointly.
    """

    def __init__(self, encoder: nn.Module, stages: Sequence[str] | None = None, *, sigma: float = 0.5, seed: int = 0):
        super().__init__(encoder)
        self.stages = stage_paths(encoder, stages)
        if not 0 <= sigma <= 1:
            raise RecipeError(f"sigma is {sigma}; it is the share of common channels, from 0 to 1.")
        self.sigma, self.seed = sigma, seed
        if type(self) is TaskRouting:
            options = {"sigma": sigma, "seed": seed}
            registry.mark(self, "task_routing", {"stages": None if stages is None else list(stages), **options})

    def places(self) -> list[str]:
        """Paths of the modules whose outputs are routed."""
        return self.stages

    def make_change(self, path: str, tasks: Sequence[str], output: Tensor | None) -> Change:
        """The routes after one stage."""
        channels, dim = channels_of(path, output, self.encoder.get_submodule(path))
        common = round(self.sigma * channels)
        if common == 0 and channels < len(tasks):
            raise RecipeError(
                f"Stage '{path}' has {channels} channels for {len(tasks)} tasks, so a task would have none. Raise "
                "sigma, or leave the stage out."
            )
        generator = torch.Generator().manual_seed(self.seed + self.stages.index(path))
        order = torch.randperm(channels, generator=generator)
        routes = torch.zeros(len(tasks), channels)
        routes[:, order[:common]] = 1
        for position, channel in enumerate(order[common:].tolist()):
            routes[position % len(tasks), channel] = 1
        return Routes(tasks, routes, dim)

    def inspect(self) -> dict[str, Tensor]:
        """Which channels each task uses, ``[tasks, channels]`` of 0 and 1."""
        changes = zip(self.stages, self.changes, strict=False)
        return {f"routes after {path}": change.routes for path, change in changes}  # type: ignore[misc]


class Routes(Change):
    """Lets the channels of a task's route pass."""

    routes: Tensor

    def __init__(self, tasks: Sequence[str], routes: Tensor, dim: int):
        super().__init__()
        self.tasks, self.dim = tuple(tasks), dim
        self.register_buffer("routes", routes)

    def forward(self, task: str, inputs: Tensor, output: Tensor) -> Tensor:
        """The output with the channels of other tasks at zero."""
        route = self.routes[self.tasks.index(task)].to(output.dtype)
        return output * along(route, output, self.dim)
