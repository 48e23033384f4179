"""Hard parameter sharing: one encoder for all tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from polytask import registry
from polytask.sharing.base import Sharing, Tap, feature_shape, identity
from polytask.sharing.layers import dense_stages, per_task, private_from, task_key


class Hard(Sharing):
    r"""One trunk for all tasks, optionally with private layers.

    Task k gets :math:`z = f(x)` itself (full sharing), or :math:`h_k(z)` with private layers
    :math:`h_k` (partial sharing). Feature maps are averaged over their positions before private layers; texts keep
    theirs.

    Args:
        encoder: Maps inputs to features ``[rows, d]`` or feature maps ``[rows, c, h, w]``.
        private: Widths of each task's private layers; none by default.
        norm: Of private layers: ``"batch"``, ``"layer"`` or None.
        dropout: Of private layers.
        activation: Of private layers.

    Raises:
        RecipeError: for an unknown name, or a width or probability out of range.

    Example:
        >>> import torch
        >>> sharing = Hard(nn.Linear(3, 8), private=[4])
        >>> sharing.setup(["a", "b"], None)
        {'a': (4,), 'b': (4,)}
        >>> sharing(torch.zeros(5, 3), ["b"])["b"].shape
        torch.Size([5, 4])

    Reference:
        Caruana, "Multitask Learning" (Machine Learning 28, 1997), figure 2.
    """

    supports_features: ClassVar[bool] = True

    def __init__(
        self,
        encoder: nn.Module,
        private: Sequence[int] = (),
        *,
        norm: str | None = None,
        dropout: float = 0.0,
        activation: str = "relu",
    ):
        super().__init__()
        self.encoder = encoder
        self.widths = tuple(private)
        self._options: dict[str, Any] = {"act": activation, "norm": norm, "dropout": dropout}
        # A wrong option is found here and not with the first batch.
        dense_stages(1, self.widths or (1,), act=activation, norm=norm, dropout=dropout)
        self.private = nn.ModuleDict()
        if type(self) is Hard:
            options = {"private": list(self.widths), "norm": norm, "dropout": dropout, "activation": activation}
            registry.mark(self, "hard", options)

    def setup(self, tasks: Sequence[str], example: Any | None) -> dict[str, tuple[int, ...]]:
        """Build the private layers; return each task's feature shape."""
        shape = feature_shape(self.encoder, example)
        if not self.widths:
            return dict.fromkeys(tasks, shape)
        pooled, width, positions = private_from(shape, self._options["norm"])
        layers = {task: [*pooled, *dense_stages(width, self.widths, **self._options)] for task in tasks}
        self.private = per_task({task: nn.Sequential(*parts) for task, parts in layers.items()})
        return dict.fromkeys(tasks, (*positions, self.widths[-1]))

    def forward(self, inputs: Any, tasks: Sequence[str], tap: Tap = identity) -> dict[str, Tensor]:
        """Features of each task in ``tasks``."""
        shared = tap({"features": self.encoder(inputs)})
        if not self.widths:
            return {task: shared[task]["features"] for task in tasks}
        return {task: self.private[task_key(task)](shared[task]["features"]) for task in tasks}

    def task_parameters(self, task: str) -> Iterable[nn.Parameter]:
        """Those of the task's private layers."""
        return self.private[task_key(task)].parameters() if self.widths else ()

    def extract(self, task: str) -> nn.Module:
        """The encoder and the task's private layers."""
        return nn.Sequential(self.encoder, self.private[task_key(task)]) if self.widths else self.encoder
