"""Running gradients and running numbers: one entry a task, kept between steps and in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.balancing.base import Balancer
from polytask.balancing.loss.common import present, store
from polytask.errors import BalancerError


class TaskRows(nn.Module):
    """A row for every task, of the width of the shared parameters, which the first step tells.

    Until then the rows are empty. They are zeros for a task that has not been seen.

    Args:
        count: Number of tasks.

    Attributes:
        rows: Shape ``[m, n]``, float32 or the gradients' own wider type.
        steps: In how many steps each task was present, int64 ``[m]``.
    """

    rows: Tensor
    steps: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(count, 0))
        self.register_buffer("steps", torch.zeros(count, dtype=torch.int64))

    def read(self, jacobian: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The present tasks' gradients, and what is kept of them; counts this step.

        Args:
            jacobian: Shape ``[p, n]``.
            places: Positions of the present tasks, int64 ``[p]``.

        Returns:
            The gradients in the rows' precision ``[p, n]``, a copy of the kept rows ``[p, n]``, and the
            number of steps with each task, this one included, in the rows' precision ``[p]``.

        Raises:
            BalancerError: if the number of columns is not that of earlier steps.
        """
        precise = jacobian.detach().to(torch.promote_types(jacobian.dtype, torch.float32))
        width = precise.shape[1]
        if not self.rows.shape[1] and not bool(self.steps.any()):
            self.rows = precise.new_zeros(len(self.rows), width)
            self.steps = self.steps.to(precise.device)
        if self.rows.shape[1] != width:
            raise BalancerError(
                f"This method keeps averages of gradients with {self.rows.shape[1]} entries, but was given gradients "
                f"with {width}. It needs the same shared parameters in every step: use at: parameters, and a new "
                "balancer where parameters were frozen or added."
            )
        if self.rows.device != precise.device or self.rows.dtype != precise.dtype:
            self.rows, self.steps = self.rows.to(precise), self.steps.to(precise.device)
        places = places.to(precise.device)
        self.steps[places] += 1
        return precise, self.rows[places], self.steps[places].to(precise.dtype)

    def write(self, places: Tensor, rows: Tensor) -> None:
        """Keep new rows ``[p, n]`` of the present tasks."""
        self.rows[places.to(self.rows.device)] = rows

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        saved = state_dict.get(f"{prefix}rows")
        # A resume loads before the first step has told the width. Other counts of tasks stay an error.
        if isinstance(saved, Tensor) and saved.ndim == 2 and len(saved) == len(self.rows):
            self.rows = torch.zeros_like(saved, device=self.rows.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class TaskAverage(nn.Module):
    """A running average of one number a task, which starts at the first number.

    Args:
        count: Number of tasks.
        keep: Share of the old average, in [0, 1].

    Attributes:
        values: Shape ``[m]``, float32.
        seen: Which tasks have an average, bool ``[m]``.
    """

    values: Tensor
    seen: Tensor

    def __init__(self, count: int, keep: float) -> None:
        super().__init__()
        self.keep = keep
        self.register_buffer("values", torch.zeros(count))
        self.register_buffer("seen", torch.zeros(count, dtype=torch.bool))

    def update(self, owner: Balancer, tasks: Sequence[str], values: Tensor) -> Tensor:
        """Averages of the present tasks ``[p]`` with their new ``values`` ``[p]``; the others stay."""
        seen = present(owner, self.seen, tasks, torch.empty(0, dtype=torch.bool, device=values.device))
        old = present(owner, self.values, tasks, values)
        averages = torch.where(seen, self.keep * old + (1.0 - self.keep) * values, values)
        store(owner, self.values, tasks, averages)
        store(owner, self.seen, tasks, torch.ones_like(seen))
        return averages


def falling(start: float, steps: Tensor, power: float) -> Tensor:
    """The rate ``start / steps ** power``."""
    return start * steps.pow(-power)
