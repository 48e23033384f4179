"""Peak memory and waits of the host in one run of a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes of tensors that ``run`` holds at once, beyond those that were there before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    results = profile.profiler.kineto_results
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        peak = max(peak, held)
    return peak


class Reads(TorchDispatchMode):
    """Counts reads of numbers by the host.

    On an accelerator each one makes the host wait. On a CPU no read waits; there the count includes the small
    tensors that a solver works on, so it has no bar.
    """

    def __init__(self, device: torch.device):
        super().__init__()
        self.kind = device.type
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self.count += args[0].device.type == self.kind
        elif name in ("_to_copy", "copy_") and self.kind != "cpu":
            source = args[1] if name == "copy_" else args[0]
            self.count += source.device.type == self.kind and found.device.type == "cpu"
        return found


def reads(run: Callable[[], object], device: torch.device) -> int:
    """How often the host reads numbers in ``run``."""
    with Reads(device) as mode:
        run()
    return mode.count
