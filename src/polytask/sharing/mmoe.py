"""Multi-gate mixture of experts."""

from __future__ import annotations

from torch import nn

from polytask import registry
from polytask.sharing.mixture import Mixture, at_least


class MMoE(Mixture):
    r"""Multi-gate mixture of experts: shared experts, and one gate a task that mixes them.

    Task k gets

    .. math:: f^k(x) = \sum_{i=1}^{n} g^k(x)_i f_i(x), \qquad g^k(x) = \mathrm{softmax}(W^k x),

    with n experts :math:`f_i` and gate weights :math:`W^k` ``[n, width of x]``, without a bias. The
    experts are copies of the encoder. Of a staged encoder they are copies of its stages and end; its
    beginning (embeddings, a stem) is shared by all, and x is what it returns.

    Args:
        encoder: What experts are copies of.
        experts: How many.
        gate_input: What gates read of maps and sequences: ``"flat"`` (all numbers) or ``"pooled"`` (means
            over positions). Vectors are read as they are.
        reset: Whether experts draw initial weights of their own. The first keeps the encoder's.

    Raises:
        RecipeError: for a number of experts below 1 or an unknown word.

    Example:
        >>> import torch
        >>> sharing = MMoE(nn.Linear(8, 4), experts=3)
        >>> sharing.setup(["a", "b"], None)
        {'a': (4,), 'b': (4,)}
        >>> sharing(torch.zeros(5, 8), ["b"])["b"].shape
        torch.Size([5, 4])

    Reference:
        Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts"
        (KDD 2018), equations 5 to 7.
    """

    def __init__(self, encoder: nn.Module, experts: int = 8, *, gate_input: str = "flat", reset: bool = True):
        super().__init__(encoder, at_least(1, "experts", experts), 0, gate_input, reset)
        if type(self) is MMoE:
            registry.mark(self, "mmoe", {"experts": experts, "gate_input": gate_input, "reset": reset})
