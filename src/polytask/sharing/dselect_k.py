"""DSelect-k: a mixture of experts whose gates select k experts, smoothly."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from polytask import registry
from polytask.errors import RecipeError
from polytask.sharing.base import Tap, identity
from polytask.sharing.levels import Level, Memo
from polytask.sharing.mixture import Mixture, at_least


class DSelectK(Mixture):
    r"""Mixture of experts with sparse gates that are smooth: each of k selectors settles on one expert.

    Expert i of n has a code of :math:`\lceil \log_2 n \rceil` bits, that of the number i - 1. A selector with
    logits z gives it the weight

    .. math:: r(z)_i = \prod_{j: b_{ij} = 1} S(z_j) \prod_{j: b_{ij} = 0} (1 - S(z_j)),

    with the smooth step S: 0 up to :math:`-\gamma/2`, 1 from :math:`\gamma/2`, and
    :math:`-2 t^3 / \gamma^3 + 3 t / (2 \gamma) + 1/2` between. A task's gate is
    :math:`q = \sum_{i=1}^{k} \mathrm{softmax}(\alpha)_i \, r(z^{(i)})`. Per example, :math:`\alpha` and z are
    affine in the input; else they are parameters.

    Penalties, of the tasks of a forward in training, as sums over tasks and selectors and means over rows:
    ``entropy`` :math:`-\sum_i r_i \log r_i`, which drives selectors to one expert; and, where n is no power of
    two, ``unassigned`` :math:`1 / \sum_i r_i`, which drives weight away from codes without an expert.

    Args:
        encoder: What experts are copies of; of a staged one its beginning is shared.
        experts: How many, n.
        k: How many selectors a task has: the largest number of experts that it uses in the end.
        gamma: Width of the smooth step; a larger one goes on training selections for longer.
        per_example: Whether gates depend on the input.
        gate_input: What gates read of maps and sequences: ``"flat"`` (all numbers) or ``"pooled"`` (means
            over positions).
        reset: Whether experts draw initial weights of their own. The first keeps the encoder's.

    Raises:
        RecipeError: for numbers out of range, more selected experts than experts, or an unknown word.

    Example:
        >>> sharing = DSelectK(nn.Linear(8, 4), experts=4, k=2)
        >>> sharing.setup(["a", "b"], None)
        {'a': (4,), 'b': (4,)}
        >>> sharing(torch.zeros(5, 8), ["b"])["b"].shape
        torch.Size([5, 4])
        >>> sorted(sharing.penalties())
        ['entropy']

    Reference:
        Hazimeh et al., "DSelect-k: Differentiable Selection in the Mixture of Experts with Applications to
        Multi-Task Learning" (NeurIPS 2021), equations 3, 4 and 6, and section 3 on the penalties.
    """

    def __init__(
        self,
        encoder: nn.Module,
        experts: int = 8,
        k: int = 2,
        *,
        gamma: float = 1.0,
        per_example: bool = True,
        gate_input: str = "flat",
        reset: bool = True,
    ):
        super().__init__(encoder, at_least(2, "experts", experts), 0, gate_input, reset)
        if at_least(1, "k", k) > experts:
            raise RecipeError(f"k is {k}, but there are {experts} experts to select from. Lower k or add experts.")
        if not 0 < gamma < math.inf:
            raise RecipeError(f"gamma is {gamma}; the smooth step needs a width above 0.")
        self.k, self.gamma, self.per_example = k, gamma, per_example
        if type(self) is DSelectK:
            options = {"experts": experts, "k": k, "gamma": gamma, "per_example": per_example}
            registry.mark(self, "dselect_k", {**options, "gate_input": gate_input, "reset": reset})

    def make_gate(self, width: int, experts: int) -> nn.Module:
        """A task's gate."""
        return SelectorGate(width, experts, self.k, self.gamma, self.per_example)

    def forward(self, inputs: Any, tasks: Sequence[str], tap: Tap = identity) -> dict[str, Tensor]:
        """Features of each task in ``tasks``; gates of other tasks have no penalty then."""
        for gate in self._gates():
            gate.kept.clear()
        return super().forward(inputs, tasks, tap)

    def _gates(self) -> list[SelectorGate]:
        levels = [cast(Level, level) for level in self.levels]
        return [cast(SelectorGate, gate) for level in levels for gate in level.gates.values()]

    def penalties(self) -> dict[str, Tensor]:
        """``entropy`` and, where the number of experts is no power of two, ``unassigned``."""
        asked = [gate.kept for gate in self._gates() if gate.kept]
        return {name: torch.stack([kept[name] for kept in asked]).sum() for name in (asked[0] if asked else ())}


class SelectorGate(nn.Module):
    """Weights of experts from k selectors, ``[rows, width]`` to ``[rows, experts]``.

    Args:
        width: Of what the gate reads.
        experts: How many.
        k: How many selectors.
        gamma: Width of the smooth step.
        per_example: Whether the weights depend on the input.
    """

    codes: Tensor

    def __init__(self, width: int, experts: int, k: int, gamma: float, per_example: bool):
        super().__init__()
        bits = math.ceil(math.log2(experts))
        self.k, self.gamma, self.full = k, gamma, experts == 2**bits
        numbers = torch.arange(experts).unsqueeze(1) >> torch.arange(bits)
        self.register_buffer("codes", (numbers & 1).bool(), persistent=False)
        self.selectors: nn.Linear | None = None
        if per_example:
            self.selectors, self.outputs = nn.Linear(width, k * bits), nn.Linear(width, k)
        else:
            self.logits, self.shares = nn.Parameter(torch.empty(k, bits)), nn.Parameter(torch.empty(k))
        self.kept = Memo()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw logits well inside of the smooth step's slope, so that every selection can still change."""
        drawn = [self.logits, self.shares] if self.selectors is None else [self.selectors.weight, self.outputs.weight]
        for parameter in drawn:
            nn.init.uniform_(parameter, -self.gamma / 100, self.gamma / 100)
        for affine in () if self.selectors is None else (self.selectors, self.outputs):
            nn.init.zeros_(affine.bias)

    def forward(self, vector: Tensor) -> Tensor:
        """Weights of every expert; they add up to 1 where the number of experts is a power of two."""
        if self.selectors is None:
            z, shares = self.logits.expand(len(vector), -1, -1), self.shares.expand(len(vector), -1)
        else:
            z, shares = self.selectors(vector).unflatten(-1, (self.k, -1)), self.outputs(vector)
        step = smooth_step(z.float() if z.dtype in (torch.float16, torch.bfloat16) else z, self.gamma).unsqueeze(-2)
        # A product over the few bits; torch's own makes the host look for zeros in its backward.
        chosen = functools.reduce(torch.mul, torch.where(self.codes, step, 1 - step).unbind(-1))  # [rows, k, experts]
        self._keep(chosen)
        return torch.einsum("rk,rke->re", shares.softmax(-1).to(chosen), chosen)

    def _keep(self, chosen: Tensor) -> None:
        self.kept.clear()
        if not self.training:
            return
        # xlogy is 0 at 0, and so is its slope towards a selection that is settled.
        safe = torch.where(chosen > 0, chosen, torch.ones_like(chosen))
        self.kept["entropy"] = -(chosen * safe.log()).sum((-1, -2)).mean()
        if not self.full:
            self.kept["unassigned"] = (1 / chosen.sum(-1)).sum(-1).mean()


def smooth_step(t: Tensor, gamma: float) -> Tensor:
    r"""The smooth step: 0 up to :math:`-\gamma/2`, 1 from :math:`\gamma/2`, a cubic between.

    Args:
        t: Logits, any shape.
        gamma: Width of the slope.

    Example:
        >>> smooth_step(torch.tensor([-1.0, 0.0, 0.25, 0.5]), gamma=1.0)
        tensor([0.0000, 0.5000, 0.8438, 1.0000])

    Reference:
        Hazimeh et al., equation 3.
    """
    inside = t.clamp(-gamma / 2, gamma / 2) / gamma
    return 0.5 + inside * (1.5 - 2 * inside**2)
