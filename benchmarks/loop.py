"""What the training loop costs: ``pt.fit`` against loops that a person would write.

(a) the census model on resident tensors: ``pt.fit`` with its default callbacks over a hand-written loop.
    Bar: at most 1.05 of its time.
    Three epochs a run, so that what comes once a run does not count as if it came in every epoch.
(b) an MLP 40-256-1 at batch 1024: rows a second of ``pt.fit`` over the usual ``DataLoader(TensorDataset)``
    loop. Bar: at least 2.

All run interleaved in one process; each figure is a median of the ratios of neighbouring runs.

    python benchmarks/loop.py [--quick] [--out loop.json]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import polytask as pt
from polytask.data.schema import CategoryColumn, NumberColumn, TableSchema
from polytask.models.encoders import MLP, Tabular

ROWS = 100_000
BATCH = 1024
CENSUS_BATCH = 512
EPOCHS = 3


def census_like() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], TableSchema]:
    """Tensors with the shapes of Census-Income: 7 numbers, 32 categories, three tasks."""
    random = np.random.default_rng(0)
    sizes = [9, 52, 47, 3, 24, 15, 5, 10, 2, 3, 6, 8, 6, 6, 51, 38, 8, 10, 9, 10, 3, 4, 7, 5, 43, 43, 43, 5, 3, 3, 3, 2]
    numbers = random.standard_normal((ROWS, 7)).astype(np.float32)
    categories = np.stack([random.integers(0, size, ROWS) for size in sizes], 1)
    edges = tuple(np.quantile(numbers[:, 0], np.linspace(0, 1, 129)).tolist())
    schema = TableSchema(
        tuple(NumberColumn(f"n{i}", 0.0, 1.0, edges, False) for i in range(7)),
        tuple(
            CategoryColumn(f"c{i}", tuple(map(str, range(size - 2)))) if size > 2 else CategoryColumn(f"c{i}", ())
            for i, size in enumerate(sizes)
        ),
        {},
    )
    score = numbers[:, 0] + categories[:, 1] % 3
    targets = {
        "income": torch.from_numpy((score > 1).astype(np.float32)),
        "never_married": torch.from_numpy((numbers[:, 1] > 0).astype(np.float32)),
        "education": torch.from_numpy(random.integers(0, 17, ROWS)),
    }
    return {"numbers": torch.from_numpy(numbers), "categories": torch.from_numpy(categories)}, targets, schema


def census_model(schema: TableSchema) -> pt.MultiTaskModel:
    torch.manual_seed(0)
    encoder = Tabular(schema, hidden=[256, 128], numbers="piecewise_linear", norm="batch", dropout=0.3)
    tasks = [pt.tasks.binary("income"), pt.tasks.binary("never_married"), pt.tasks.multiclass("education", classes=17)]
    return pt.MultiTaskModel(pt.sharing.Hard(encoder), tasks)


def ours(model: pt.MultiTaskModel, data: dict, batch: int = BATCH) -> float:
    """Seconds of the epochs, as ``timings.csv`` would have them."""
    run = pt.fit(model, data, epochs=EPOCHS, batch_size=batch, optimizer="adamw", device="cpu")
    return sum(row["seconds"] for row in run.timings)


def by_hand(model: pt.MultiTaskModel, inputs: dict, targets: dict) -> float:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    bce, ce = nn.functional.binary_cross_entropy_with_logits, nn.functional.cross_entropy
    model.train()
    start = time.perf_counter()
    batches = (rows for _ in range(EPOCHS) for rows in torch.randperm(ROWS).split(CENSUS_BATCH))
    for rows in batches:
        out = model({key: value[rows] for key, value in inputs.items()})
        loss = bce(out["income"], targets["income"][rows]) + bce(out["never_married"], targets["never_married"][rows])
        loss = loss + ce(out["education"], targets["education"][rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def small_ours(x: torch.Tensor, y: torch.Tensor) -> float:
    torch.manual_seed(0)
    model = pt.MultiTaskModel(pt.sharing.Hard(MLP(40, hidden=[256])), [pt.tasks.binary("y")])
    return ours(model, {"x": x, "y": y})


def small_loader(x: torch.Tensor, y: torch.Tensor) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 256), nn.ReLU(), nn.Linear(256, 1), nn.Flatten(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
    start = time.perf_counter()
    for inputs, target in (pair for _ in range(EPOCHS) for pair in loader):
        loss = nn.functional.binary_cross_entropy_with_logits(model(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def interleaved(first: Callable[[], float], second: Callable[[], float], runs: int) -> list[float]:
    """Ratios first/second of neighbouring runs, after one warm-up of each."""
    first(), second()
    ratios = []
    for number in range(runs):
        # The order alternates, so a drift of the machine falls on both.
        pair = (first(), second()) if number % 2 == 0 else (second(), first())[::-1]
        ratios.append(pair[0] / pair[1])
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three runs instead of nine")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    runs = 3 if options.quick else 9
    inputs, targets, schema = census_like()
    x, y = torch.randn(4 * ROWS, 40), (torch.rand(4 * ROWS) > 0.5).float()
    census = interleaved(
        lambda: ours(census_model(schema), {**inputs, **targets}, CENSUS_BATCH),
        lambda: by_hand(census_model(schema), inputs, targets),
        runs,
    )
    small = interleaved(lambda: small_loader(x, y), lambda: small_ours(x, y), runs)
    rows = {
        "fit / hand-written loop, census model (bar: at most 1.05)": census,
        "rows a second, fit / DataLoader loop, MLP 40-256-1 (bar: at least 2)": small,
    }
    for name, ratios in rows.items():
        print(f"{name}: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
