"""Attention over shared features: each task asks with a query of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polytask import registry
from polytask.errors import RecipeError, ShapeError
from polytask.sharing.base import Sharing, Tap, feature_shape, identity
from polytask.sharing.layers import task_key
from polytask.sharing.levels import Memo
from polytask.sharing.mixture import at_least


class TaskAttention(Sharing):
    r"""One trunk, over whose features each task attends with a query of its own.

    The features become n tokens: the positions of a map ``[rows, c, h, w]`` or a sequence ``[rows, n, d]``,
    or ``tokens`` equal pieces of a vector, each piece with a learned place added. Shared maps make a key and
    a value of every token. Task k gets, for each of the heads,

    .. math:: z_k = \sum_t a_{kt} v_t, \qquad a_k = \mathrm{softmax}_t (q_k^\top \kappa_t / \sqrt{d}),

    side by side. Queries belong to one task each. The tap is called on keys and values.

    Args:
        encoder: The trunk.
        width: Width of a task's features: of all heads together.
        heads: How many heads.
        tokens: Into how many tokens a vector is cut; it has no effect on maps and sequences.

    Raises:
        RecipeError: for numbers below 1, or a width that the heads do not divide.
        ShapeError: at ``setup``, for a vector that ``tokens`` do not divide.

    Example:
        >>> sharing = TaskAttention(nn.Linear(3, 8), width=4, heads=2, tokens=4)
        >>> sharing.setup(["a", "b"], None)
        {'a': (4,), 'b': (4,)}
        >>> sharing(torch.zeros(5, 3), ["b"])["b"].shape
        torch.Size([5, 4])

    Reference:
        Vaswani et al., "Attention Is All You Need" (NeurIPS 2017), equation 1, with one learned query a task.
    """

    supports_features: ClassVar[bool] = True

    def __init__(self, encoder: nn.Module, width: int = 64, *, heads: int = 4, tokens: int = 8):
        super().__init__()
        self.encoder = encoder
        self.width, self.heads = at_least(1, "width", width), at_least(1, "heads", heads)
        self.tokens = at_least(1, "tokens", tokens)
        if width % heads:
            raise RecipeError(f"width is {width} and heads is {heads}; the heads have to divide the width.")
        self.keys: nn.Module = nn.Identity()
        self.values: nn.Module = nn.Identity()
        self.places: nn.Parameter | None = None
        self.queries = nn.ParameterDict()
        self._seen = Memo()
        if type(self) is TaskAttention:
            registry.mark(self, "attention", {"width": width, "heads": heads, "tokens": tokens})

    def setup(self, tasks: Sequence[str], example: Any | None) -> dict[str, tuple[int, ...]]:
        """Make the maps and queries; return each task's feature shape."""
        shape = feature_shape(self.encoder, example)
        depth = shape[0] if len(shape) != 2 else shape[1]
        if len(shape) == 1:
            if depth % self.tokens:
                raise ShapeError(
                    f"{type(self.encoder).__name__} has vectors of {depth} features, which {self.tokens} tokens do not "
                    "divide. Choose tokens so that they do, or let the encoder keep its maps (pool=False)."
                )
            depth //= self.tokens
            self.places = nn.Parameter(0.02 * torch.randn(self.tokens, depth))
        self.keys, self.values = nn.Linear(depth, self.width), nn.Linear(depth, self.width)
        # As large as keys are at the start, so that attention starts soft.
        self.queries = nn.ParameterDict({task_key(t): nn.Parameter(torch.randn(self.width)) for t in tasks})
        return dict.fromkeys(tasks, (self.width,))

    def forward(self, inputs: Any, tasks: Sequence[str], tap: Tap = identity) -> dict[str, Tensor]:
        """Features of each task in ``tasks``."""
        tokens = self._tokens(self.encoder(inputs))
        found = tap({"keys": self.keys(tokens), "values": self.values(tokens)})
        return {task: self._attend(task, found[task]["keys"], found[task]["values"]) for task in tasks}

    def _tokens(self, features: Tensor) -> Tensor:
        """Features as ``[rows, tokens, depth]``."""
        if features.dim() > 3:
            return features.flatten(2).transpose(1, 2)
        if features.dim() == 3:
            return features
        assert self.places is not None
        return features.view(len(features), self.tokens, -1) + self.places

    def _attend(self, task: str, keys: Tensor, values: Tensor) -> Tensor:
        rows, count, _ = keys.shape
        query = self.queries[task_key(task)].view(self.heads, -1)
        by_head = keys.view(rows, count, self.heads, -1)
        scores = torch.einsum("rthd,hd->rht", by_head, query) / query.shape[1] ** 0.5
        weights = scores.softmax(-1)
        if self.training or not torch.compiler.is_compiling():
            self._seen[task] = weights.detach().float().mean((0, 1))
        return torch.einsum("rht,rthd->rhd", weights.to(values), values.view(rows, count, self.heads, -1)).flatten(1)

    def task_parameters(self, task: str) -> Iterable[nn.Parameter]:
        """The task's query."""
        key = task_key(task)
        return [self.queries[key]] if key in self.queries else []

    def inspect(self) -> dict[str, Tensor]:
        """``attention of k``: the mean weights of the last forward, ``[tokens]``."""
        return {f"attention of {task}": weights for task, weights in self._seen.items()}
