"""Balancing in a training loop of one's own: two lines change.

    python examples/own_loop.py
    python examples/own_loop.py --balancer upgrad
    python examples/own_loop.py --balancer famo

Two tasks on the same rows: one yes-or-no question, and one number whose loss is a thousand times larger.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask import balancing as B


def rows(count: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(count, width, generator=generator) for width in (8, 2))
    clicked = (x[:, 0] + torch.tanh(2 * x[:, 1]) + 0.5 * noise[:, 0] > 0).float()
    spent = 30 * (x[:, 0] - x[:, 2] + 0.3 * noise[:, 1])
    return x, {"clicked": clicked, "spent": spent}


class Model(nn.Module):
    """A trunk and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.heads = nn.ModuleDict({"clicked": nn.Linear(32, 1), "spent": nn.Linear(32, 1)})

    def losses(self, x: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of every task."""
        z = self.trunk(x)
        out = {task: head(z).squeeze(-1) for task, head in self.heads.items()}
        return {
            "clicked": F.binary_cross_entropy_with_logits(out["clicked"], y["clicked"]),
            "spent": F.mse_loss(out["spent"], y["spent"]),
        }


def train(name: str, steps: int) -> dict[str, float]:
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    balancer = B.build(name, tasks=["clicked", "spent"], kinds={"clicked": "binary", "spent": "regression"})  # one
    # Only methods that learn weights (uncertainty, gradnorm, ...) have parameters.
    learned = list(balancer.parameters())
    own = torch.optim.Adam(learned, lr=0.025) if learned else None

    for step in range(steps):
        x, y = rows(256, seed=step)
        optimizer.zero_grad()
        losses = model.losses(x, y)
        # Before: sum(losses.values()).backward()
        B.backward(losses, model.trunk.parameters(), balancer=balancer)  # two
        optimizer.step()
        if own is not None:
            own.step()
        if balancer.looks_again:  # famo
            with torch.no_grad():
                after = model.losses(x, y)
            balancer.after_step(lambda after=after: after)  # type: ignore[misc]

    with torch.no_grad():
        return {task: float(loss) for task, loss in model.losses(*rows(4096, seed=-1)).items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compare a balancing method with the plain sum of losses.")
    parser.add_argument("--balancer", default="nash_mtl", metavar="NAME")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--quick", action="store_true", help="60 steps")
    given = parser.parse_args(arguments)
    for name in ("equal", given.balancer):
        found = train(name, 60 if given.quick else given.steps)
        print(f"{name:12s} held-out losses: " + ", ".join(f"{task} {loss:.3f}" for task, loss in found.items()))


if __name__ == "__main__":
    main()
