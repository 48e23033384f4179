"""Two losses over two numbers, and the ways that balancing methods take through them.

The landscape is the usual one of the field: two deep narrow valleys above y = 0, two quadratic bowls below it,
and the Pareto set on a line near y = -8.4. The first loss is scaled down by ten, so the plain sum listens to
the second one.

    python examples/toy_landscape.py --out landscape.png

References: Liu et al. 2021 (CAGrad), the toy problem of its appendix; Navon et al. 2022 (Nash-MTL), the scaled first
loss and the five starts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytask import balancing as B

STARTS = torch.tensor([[-8.5, 7.5], [0.0, 0.0], [9.0, 9.0], [-7.5, -0.5], [9.0, -1.0]], dtype=torch.float64)
METHODS = ("sum", "mgda", "pcgrad", "cagrad", "imtl_g", "upgrad", "nash_mtl", "fairgrad")


def losses(points: Tensor, scale: float = 0.1) -> Tensor:
    """Both losses at points ``[..., 2]``; shape ``[2, ...]``."""
    x, y = points.unbind(-1)
    above, below = torch.tanh(y / 2).clamp_min(0), torch.tanh(-y / 2).clamp_min(0)
    valleys = [
        torch.log(((sign - x) / 2 + torch.tanh(y) + shift).abs().clamp_min(5e-6)) + 6
        for sign, shift in ((-7.0, 0.0), (3.0, 2.0))
    ]
    bowls = [((x - sign) ** 2 + (y + 8) ** 2 / 10) / 10 - 20 for sign in (7.0, -7.0)]
    first, second = (above * valley + below * bowl for valley, bowl in zip(valleys, bowls, strict=True))
    return torch.stack([scale * first, second])


def jacobians(points: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients ``[starts, 2, 2]`` (a row a loss) and losses ``[starts, 2]`` at points ``[starts, 2]``."""
    at = points.detach().requires_grad_()
    values = losses(at)
    rows = [torch.autograd.grad(value.sum(), at, retain_graph=True)[0] for value in values]
    return torch.stack(rows, 1), values.detach().T


def walk(method: str, steps: int, lr: float = 0.02, starts: Tensor = STARTS, **options: Any) -> Tensor:
    """The way of Adam with a method's updates from every start, ``[steps + 1, starts, 2]``.

    The learning rate falls to zero over the last third, so that the end is a point and not an orbit.
    """
    points = starts.clone()
    # Methods may keep a state, so every start has one of its own.
    balancers = [B.build(method, tasks=["first", "second"], seed=seed, **options) for seed in range(len(starts))]
    optimizer = torch.optim.Adam([points], lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 3 * (1 - step / steps)))
    path = [points.clone()]
    for _ in range(steps):
        rows, values = jacobians(points)
        updates = [B.aggregate(j, b, losses=v) for j, b, v in zip(rows, balancers, values, strict=True)]
        points.grad = torch.stack(updates)
        optimizer.step()
        schedule.step()
        path.append(points.clone())
    return torch.stack(path)


def pareto_set(count: int = 200) -> Tensor:
    """Points of the Pareto set, ``[count, 2]``: the gradients are opposite, so their determinant is zero."""
    x = torch.linspace(-7, 7, count + 2, dtype=torch.float64)[1:-1]
    low, high = torch.full_like(x, -12.0), torch.full_like(x, -8.0)

    def determinant(y: Tensor) -> Tensor:
        rows, _ = jacobians(torch.stack([x, y], 1))
        return rows[:, 0, 0] * rows[:, 1, 1] - rows[:, 0, 1] * rows[:, 1, 0]

    side = determinant(low).sign()
    for _ in range(60):
        middle = (low + high) / 2
        same = determinant(middle).sign() == side
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    return torch.stack([x, low], 1)


def draw(paths: dict[str, Tensor], out: Path) -> None:
    """One panel a method: contours of the mean loss, the ways, and the Pareto set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    x, y = torch.meshgrid(torch.linspace(-11, 11, 220), torch.linspace(-11, 11, 220), indexing="xy")
    height = losses(torch.stack([x, y], -1), scale=1.0).mean(0)
    front = pareto_set()
    columns = min(4, len(paths))
    rows = -(-len(paths) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.4 * columns, 3.4 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(paths) :]:
        axis.set_visible(False)
    for axis, (method, path) in zip(axes.flat, paths.items(), strict=False):
        axis.contour(x, y, height, levels=24, cmap="Greys", linewidths=0.5, alpha=0.7)
        axis.plot(front[:, 0], front[:, 1], color="black", linewidth=4, alpha=0.35, solid_capstyle="butt")
        for number, way in enumerate(path.unbind(1)):
            axis.plot(way[:, 0], way[:, 1], color=f"C{number}", linewidth=1.2)
            axis.plot(*way[0], "o", color=f"C{number}", markersize=5)
            axis.plot(*way[-1], "*", color=f"C{number}", markersize=11, markeredgecolor="black")
        axis.set(title=method, xlim=(-11, 11), ylim=(-11, 11), xticks=[], yticks=[])
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the ways of balancing methods through a toy landscape.")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--out", type=Path, default=Path("toy_landscape.png"))
    parser.add_argument("--quick", action="store_true", help="60 steps of three methods: seconds, not minutes")
    given = parser.parse_args(arguments)
    methods, steps = (("sum", "mgda", "nash_mtl"), 60) if given.quick else (given.methods, given.steps)
    paths = {}
    for method in methods:
        paths[method] = walk(method, steps)
        ends = "  ".join(f"({x:.2f}, {y:.2f})" for x, y in paths[method][-1].tolist())
        print(f"{method:12s} ends at {ends}")
    draw(paths, given.out)
    print(f"Wrote {given.out}")


if __name__ == "__main__":
    main()
