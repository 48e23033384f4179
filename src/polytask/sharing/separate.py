"""No sharing: one network a task, the baseline that multi-task learning has to beat."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from polytask import registry
from polytask.errors import listed
from polytask.sharing.base import Sharing, Tap, feature_shape, identity
from polytask.sharing.layers import per_task, task_key


class Separate(Sharing):
    """One network a task: the single-task baseline.

    The first task trains the given encoder, each other task a copy of it. No parameter is shared. A
    forward for some tasks runs the networks of those tasks only.

    Args:
        encoder: Maps inputs to features.
        reset: Whether copies draw initial weights of their own: ``reset_parameters`` is called on each
            module of a copy that has it, inner modules first. A warning names modules that have
            parameters but no such method; these start from equal weights. Pretrained weights are kept in any
            case (``keep_weights``). False starts all networks from the given weights.

    Example:
        >>> import torch
        >>> sharing = Separate(nn.Linear(3, 8))
        >>> sharing.setup(["a", "b"], None)
        {'a': (8,), 'b': (8,)}
        >>> sorted(sharing(torch.zeros(5, 3), ["a", "b"]))
        ['a', 'b']
    """

    supports_features: ClassVar[bool] = False

    def __init__(self, encoder: nn.Module, *, reset: bool = True):
        super().__init__()
        self.reset = reset
        self.encoders = nn.ModuleDict({"first": encoder})
        if type(self) is Separate:
            registry.mark(self, "separate", {"reset": reset})

    @property
    def encoder(self) -> nn.Module:
        """The encoder that was given, which is the first task's."""
        return next(iter(self.encoders.values()))

    def setup(self, tasks: Sequence[str], example: Any | None) -> dict[str, tuple[int, ...]]:
        """Make a copy of the encoder for each further task; return each task's feature shape."""
        shape = feature_shape(self.encoder, example)
        networks = {tasks[0]: self.encoder}
        for task in tasks[1:]:
            networks[task] = copy.deepcopy(self.encoder)
            kept = reset_parameters(networks[task]) if self.reset else []
            if kept and task == tasks[1]:
                warnings.warn(
                    f"'separate' cannot draw new initial weights for: {listed(kept)}. All tasks start from equal "
                    "weights there. Give these modules a reset_parameters(), or say reset=False to start all "
                    "networks from the given weights.",
                    stacklevel=2,
                )
        self.encoders = per_task(networks)
        return dict.fromkeys(tasks, shape)

    def forward(self, inputs: Any, tasks: Sequence[str], tap: Tap = identity) -> dict[str, Tensor]:
        """Features of each task in ``tasks``, each from its own network."""
        tap({})  # nothing is shared
        return {task: self.encoders[task_key(task)](inputs) for task in tasks}

    def task_parameters(self, task: str) -> Iterable[nn.Parameter]:
        """Those of the task's own network."""
        return self.encoders[task_key(task)].parameters()

    def extract(self, task: str) -> nn.Module:
        """The task's own network."""
        return self.encoders[task_key(task)]


def keep_weights(module: nn.Module) -> nn.Module:
    """Note that a module's weights are pretrained, so that copies of it or of its parts start from them.

    Example:
        >>> reset_parameters(keep_weights(nn.PReLU()))
        []
    """
    for part in module.modules():
        object.__setattr__(part, _PRETRAINED, True)
    return module


_PRETRAINED = "_polytask_pretrained"


def reset_parameters(module: nn.Module) -> list[str]:
    """Draw new initial weights; return the kinds of modules that have parameters but cannot.

    A module that holds others comes after them, so that its own initialisation wins. Pretrained ones stay as they are.

    Example:
        >>> reset_parameters(nn.Sequential(nn.Linear(2, 2), nn.PReLU()))
        []
    """
    kept = []
    done: set[int] = set()
    for name, part in reversed(list(module.named_modules())):
        if hasattr(part, _PRETRAINED):
            continue
        # torch's attention and transformer modules spell it with an underscore.
        reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if callable(reset):
            reset()
            done.update(id(parameter) for parameter in part.parameters())
        elif any(True for _ in part.parameters(recurse=False)):
            kept.append((name or "the encoder itself", part))
    own = [(name, part) for name, part in kept if any(id(p) not in done for p in part.parameters(recurse=False))]
    return [f"{name} ({type(part).__name__})" for name, part in reversed(own)]
