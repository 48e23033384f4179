"""The Gramian on the host: checks and repairs between its transfer and the solver.

In NumPy, which takes a fifth of PyTorch's time for matrices as small as these: every step waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf
from torch import Tensor

from polytask.balancing.functional.gramian import all_finite
from polytask.errors import BalancerError

_LOW, _HIGH = 1e-28, 1e30
"""Squared norms outside of this range may have lost digits to float32; they are formed again in float64."""


def on_host(gramian: Tensor, losses: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Gramian ``[p, p]`` and losses ``[p]`` as float64 on the CPU, in one transfer."""
    if losses is None:
        return gramian.detach().to("cpu", torch.float64), None
    if gramian.is_cpu and losses.is_cpu:
        return gramian.detach().double(), losses.detach().double()
    both = torch.cat([gramian.detach().double(), losses.detach().to(gramian.device).double()[:, None]], 1).cpu()
    return both[:, :-1].contiguous(), both[:, -1].contiguous()


def lost_digits(gramian: Tensor) -> bool:
    """Whether a float32 Gramian on the CPU has norms that float32 squares cannot hold."""
    return not all(_LOW <= square < _HIGH for square in gramian.numpy().diagonal().tolist())


def check_finite(gramian: Tensor, tasks: Sequence[str], culprit: Callable[[int], str] | None = None) -> None:
    """Raise for a Gramian with NaN or infinity.

    Args:
        gramian: On the CPU, ``[p, p]``.
        tasks: Names of the rows.
        culprit: Names the parameter of a row that is not finite.

    Raises:
        BalancerError: naming the tasks and, where known, a parameter.
    """
    values = gramian.numpy()
    if all_finite(values):
        return
    broken = [k for k in range(len(tasks)) if not math.isfinite(values[k, k])] or list(range(len(tasks)))
    where = f", first in {culprit(broken[0])}" if culprit is not None else ""
    raise BalancerError(
        f"The gradient of task {', '.join(repr(tasks[k]) for k in broken)} is not finite{where}. Lower the learning "
        "rate, clip the gradients, or look for extreme targets and inputs."
    )


def symmetrised(gramian: Tensor) -> Tensor:
    """The symmetric part: rounding may differ between the two triangles."""
    return torch.from_numpy(_symmetrised(gramian.numpy()))


def semi_definite(gramian: Tensor) -> Tensor:
    """The Gramian without the slightly negative eigenvalues that float32 rounding gives to dependent gradients.

    Where there is something to correct, rows are normalised first, so that the correction to a short gradient is as
    small as that gradient.

    Args:
        gramian: Symmetric, float64 on the CPU, ``[p, p]``.
    """
    values = gramian.numpy()
    if dpotrf(values)[1] == 0:
        return gramian
    lengths = np.sqrt(np.maximum(values.diagonal(), 0.0))
    divisor = np.where(lengths > 0.0, lengths, 1.0)
    eigenvalues, vectors = np.linalg.eigh(values / divisor / divisor[:, None])
    fixed = (vectors * np.maximum(eigenvalues, 0.0)) @ vectors.T * divisor * divisor[:, None]
    return torch.from_numpy(_symmetrised(fixed))


def _symmetrised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    half: NDArray[np.float64] = 0.5 * (values + values.T)
    return half


def update_norm(gramian: Tensor, weights: Tensor) -> float:
    """Norm of the weighted sum of the gradients, from their Gramian; both float64 on the CPU."""
    factors = weights.numpy()
    return math.sqrt(max(float(factors @ gramian.numpy() @ factors), 0.0))
