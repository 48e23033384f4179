"""Looking at a batch twice: same dropout masks, buffers such as BatchNorm statistics moved once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

RandomState = tuple[Tensor, dict[int, Tensor]]


def random_state(devices: Iterable[torch.device]) -> RandomState:
    """States of the global generators that module-level dropout draws from."""
    return torch.get_rng_state(), {index: torch.cuda.get_rng_state(index) for index in _cuda(devices)}


def set_random_state(state: RandomState) -> None:
    """Put back what ``random_state`` returned."""
    torch.set_rng_state(state[0])
    for index, value in state[1].items():
        torch.cuda.set_rng_state(value, index)


def _cuda(devices: Iterable[torch.device]) -> list[int]:
    found = {torch.cuda.current_device() if d.index is None else d.index for d in devices if d.type == "cuda"}
    return sorted(found)


class Replay:
    """Runs a forward that must leave no trace.

    Args:
        module: Whose buffers are kept, or None if the modules are unknown.
        devices: Devices whose random state counts.
    """

    def __init__(self, module: nn.Module | None, devices: Iterable[torch.device]):
        self.module = module
        self.devices = tuple(set(devices))

    def state(self) -> RandomState:
        """The random state of now, to look again with the same masks."""
        return random_state(self.devices)

    @contextmanager
    def peek(self, start: RandomState | None = None) -> Iterator[None]:
        """Run forwards whose random draws and updates of buffers are undone at the end.

        Args:
            start: Random state to begin with; the present one if None.
        """
        before = self.state()
        if start is not None:
            set_random_state(start)
        kept = self._set_aside()
        try:
            yield
        finally:
            for module, buffers in kept:
                module._buffers.update(buffers)
            set_random_state(before)

    def _set_aside(self) -> list[tuple[nn.Module, dict[str, Tensor | None]]]:
        """Give every module in training copies of its buffers (BatchNorm, spectral norm); return the originals.

        The originals are not written to, because a graph that waits for its backward may hold them.
        """
        kept: list[tuple[nn.Module, dict[str, Tensor | None]]] = []
        for module in self.module.modules() if self.module is not None else ():
            if module.training and module._buffers:
                originals = dict(module._buffers)
                kept.append((module, originals))
                module._buffers.update({k: None if b is None else b.clone() for k, b in originals.items()})
        return kept
