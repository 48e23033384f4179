"""Notices parameters that no gradient reaches."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import nn


class GradientWatch:
    """Warns of parameters that were trained for an epoch and never had a gradient.

    A parameter that was fixed in all of the epoch's steps is waited for.

    Args:
        parameters: Names and parameters of the model.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]]):
        self._waiting = {name: p for name, p in parameters if p.requires_grad}
        self._tried: set[str] = set()

    def note(self) -> None:
        """Look after a step's backward, while what the step fixes is still fixed."""
        if self._waiting:
            self._waiting = {name: p for name, p in self._waiting.items() if p.grad is None}
            self._tried |= {name for name, p in self._waiting.items() if p.requires_grad}

    def end_epoch(self) -> None:
        """Warn once of what was tried in vain."""
        names = [name for name in self._waiting if name in self._tried]
        self._tried = set()
        if not names:
            return
        self._waiting = {name: p for name, p in self._waiting.items() if name not in names}
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        warnings.warn(
            f"No gradient reached {', '.join(names[:5])}{more} in a whole epoch: no task's loss depends on "
            "them, or their tasks had no label. Freeze them, or look for a detached or unused part.",
            stacklevel=3,
        )
