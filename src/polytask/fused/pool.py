"""How a linear layer reads features: as they are, averaged over positions, or at the first one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn import functional


class Pool(ABC):
    """A linear map from features to vectors, the same for all tasks."""

    width_at = -1
    """The dimension that the layer reads."""
    dims = 3
    """Fewest dimensions of features."""

    @abstractmethod
    def read(self, features: Tensor) -> Tensor:
        """Vectors ``[rows, d]``."""

    @abstractmethod
    def spread(self, gradient: Tensor, shape: Sequence[int]) -> Tensor:
        """The gradient of features of ``shape`` from that of the vectors."""

    def share(self, shape: Sequence[int]) -> float:
        """The product of two gradients of features over that of the vectors' gradients."""
        return 1.0


class _Whole(Pool):
    dims = 1

    def read(self, features: Tensor) -> Tensor:
        return features.reshape(-1, features.shape[-1])

    def spread(self, gradient: Tensor, shape: Sequence[int]) -> Tensor:
        return gradient.reshape(shape)


class _Mean(Pool):
    width_at = 1

    def read(self, features: Tensor) -> Tensor:
        return features.flatten(2).mean(2)

    def spread(self, gradient: Tensor, shape: Sequence[int]) -> Tensor:
        ones = [1] * (len(shape) - 2)
        return (gradient * self.share(shape)).reshape(*shape[:2], *ones).expand(shape)

    def share(self, shape: Sequence[int]) -> float:
        return 1.0 / max(1, math.prod(shape[2:]))


class _First(Pool):
    def read(self, features: Tensor) -> Tensor:
        return features[:, 0]

    def spread(self, gradient: Tensor, shape: Sequence[int]) -> Tensor:
        return functional.pad(gradient.unsqueeze(1), (0, 0, 0, shape[1] - 1))


POOLS: Mapping[str, Pool] = {"none": _Whole(), "mean": _Mean(), "first": _First()}
"""By name: ``none`` reads ``[..., d]``, ``mean`` maps ``[rows, d, ...]``, ``first`` texts ``[rows, positions, d]``."""
