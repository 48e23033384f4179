"""Training strategies: all at once, the shared part and the heads in turn, or in phases.

    python examples/alternating.py
    python examples/alternating.py --epochs 40 --seeds 5

A yes-or-no question and a number, from the same rows. Every strategy gets the same number of updates; in a round of
alternating training there are two of them, and each is of one part only.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import polytask as pt

STRATEGIES: dict[str, Any] = {
    "joint": "joint",
    "alternating": "alternating",
    "phases": {
        "name": "hierarchical",
        "phases": [{"tasks": ["clicked"], "epochs": 2}, {"tasks": "all"}],
        "anchor": 0.01,
    },
}


def rows(count: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(count, width, generator=generator) for width in (10, 2))
    hidden = torch.tanh(2 * x[:, 0]) + x[:, 1] * x[:, 2]
    return {"x": x, "clicked": (hidden + 0.5 * noise[:, 0] > 0).float(), "spent": 30 * hidden + 10 * noise[:, 1]}


def scores(name: str, epochs: int, seed: int) -> tuple[int, dict[str, float]]:
    """How many updates were made, and the scores on rows that were held out."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(10, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
    tasks = [pt.tasks.binary("clicked"), pt.tasks.regression("spent")]
    model = pt.MultiTaskModel(pt.sharing.Hard(encoder, private=[16]), tasks)
    run = pt.fit(
        model,
        rows(2048, seed),
        balancer={"name": "static", "weights": {"clicked": 1.0, "spent": 0.5}},
        strategy=STRATEGIES[name],
        # A round takes one batch for two updates.
        epochs=epochs // 2 if name == "alternating" else epochs,
        batch_size=128,
        lr=3e-3,
        seed=seed,
        progress=False,
    )
    found = pt.evaluate(model, rows(4096, seed + 1000))
    return run.history[-1]["step"], {"auroc": found["clicked"]["auroc"], "rmse": found["spent"]["rmse"]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compare training strategies at an equal number of updates.")
    parser.add_argument("--epochs", type=int, default=20, help="of joint training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="4 epochs, one seed")
    given = parser.parse_args(arguments)
    epochs, seeds = (4, 1) if given.quick else (given.epochs, given.seeds)
    for name in STRATEGIES:
        runs = [scores(name, epochs, seed) for seed in range(seeds)]
        means = {key: statistics.mean(found[key] for _, found in runs) for key in runs[0][1]}
        print(f"{name:12s} {runs[0][0]} updates: clicked auroc {means['auroc']:.4f}, spent rmse {means['rmse']:.2f}")


if __name__ == "__main__":
    main()
