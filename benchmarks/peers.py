"""Steps of other libraries on the same model, where they are installed: MGDA of TorchJD and of LibMTL."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from polytask import balancing as B

Step = Callable[[], object]


def steps(trunk: nn.Module, micro: B.MicroBatch) -> dict[str, Step]:
    """One step of every library that can be imported and gets through a first one."""
    makers: dict[str, Callable[[], Step]] = {
        "TorchJD parameters": lambda: torchjd_step(trunk, micro),
        "LibMTL parameters": lambda: libmtl_step(trunk, micro, at_features=False),
        "LibMTL features": lambda: libmtl_step(trunk, micro, at_features=True),
    }
    made = {}
    for name, make in makers.items():
        try:
            step = make()
            step()
        except ImportError as error:
            print(f"{name}: left out, because it cannot be imported ({error})", file=sys.stderr)
        except Exception as error:
            # Theirs, such as a solver that gives up: the other rows are still worth having.
            print(f"{name}: left out, because its step failed ({error})", file=sys.stderr)
        else:
            made[name] = step
    return made


def torchjd_step(trunk: nn.Module, micro: B.MicroBatch) -> Step:
    from torchjd.aggregation import MGDA
    from torchjd.autojac import jac_to_grad, mtl_backward

    aggregator = MGDA()

    def step() -> None:
        kept: list[Tensor] = []

        def tap(features: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
            kept.append(features["z"])
            return dict.fromkeys(micro.tasks, features)

        losses = list(micro.forward(tap).tasks.values())
        mtl_backward(losses, features=kept, parallel_chunk_size=1)
        jac_to_grad(trunk.parameters(), aggregator)

    return step


def libmtl_step(trunk: nn.Module, micro: B.MicroBatch, at_features: bool) -> Step:
    """Its MGDA, called as its trainer calls it; the losses stay apart, which is to its advantage."""
    from LibMTL.weighting import MGDA

    method: Any = MGDA()
    method.task_num, method.task_name = len(micro.tasks), list(micro.tasks)
    method.device, method.rep_grad = next(trunk.parameters()).device, at_features
    method.get_share_params = trunk.parameters
    method.zero_grad_share_params = lambda: trunk.zero_grad(set_to_none=False)

    def tap(features: dict[str, Tensor]) -> Mapping[str, Mapping[str, Tensor]]:
        if not at_features:
            return dict.fromkeys(micro.tasks, features)
        method.rep = features["z"]
        method.rep_tasks = {task: features["z"].detach().clone().requires_grad_() for task in micro.tasks}
        return {task: {"z": z} for task, z in method.rep_tasks.items()}

    def step() -> None:
        method.backward(list(micro.forward(tap).tasks.values()), mgda_gn="none")

    return step
