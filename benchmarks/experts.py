"""Time batched experts against one wide layer and against a loop over experts, forward and backward.

The variants are interleaved in one process, and each ratio is one of medians. One layer of experts is a linear map
and a ReLU; the wide layer has as many units as all experts together.

    python benchmarks/experts.py --quick
    python benchmarks/experts.py --out experts.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from polytask.sharing.experts import Experts
from polytask.sharing.mmoe import MMoE

Run = Callable[[], torch.Tensor]
# Units of an expert, and the most that the batched experts may cost: of one wide layer, of a loop.
CASES = {16: (1.3, 0.8)}


def layer(width: int, units: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, units), nn.ReLU())


def experts_alone(width: int, units: int, count: int, x: torch.Tensor) -> dict[str, Run]:
    bank, wide = Experts(layer(width, units), count), layer(width, units * count)
    loop = [layer(width, units) for _ in range(count)]
    return {
        "batched": lambda: bank(x).sum(),
        "wide": lambda: wide(x).sum(),
        "loop": lambda: torch.stack([one(x) for one in loop], 1).sum(),
    }


def whole(width: int, units: int, count: int, x: torch.Tensor) -> dict[str, Run]:
    """The whole architecture with two tasks, gates included, beside the same one written as a loop."""
    tasks = ["a", "b"]
    sharing = MMoE(layer(width, units), count)
    sharing.setup(tasks, x[:2])
    loop = [layer(width, units) for _ in range(count)]
    gates = [nn.Linear(width, count, bias=False) for _ in tasks]

    def looped() -> torch.Tensor:
        outs = [one(x) for one in loop]
        mixtures = []
        for gate in gates:
            weights = gate(x).softmax(-1)
            mixtures.append(sum(weights[:, i : i + 1] * out for i, out in enumerate(outs)))
        return torch.stack([mixture.sum() for mixture in mixtures]).sum()

    return {
        "batched": lambda: torch.stack([z.sum() for z in sharing(x, tasks).values()]).sum(),
        "loop": looped,
    }


def medians(variants: dict[str, Run], rounds: int) -> dict[str, float]:
    """Milliseconds of forward and backward."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 5):
        for name, run in variants.items():
            start = time.perf_counter()
            run().backward()
            if number >= 5:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(found) for name, found in times.items()}


def measure(rounds: int, batch: int, width: int, count: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    x = torch.randn(batch, width)
    for units, (of_wide, of_loop) in CASES.items():
        for part, make in (("experts", experts_alone), ("whole", whole)):
            found = medians(make(width, units, count, x), rounds)
            ratios = {name: found["batched"] / ms for name, ms in found.items() if name != "batched"}
            limits = {"wide": of_wide, "loop": of_loop}
            rows.append({"part": part, "units": units, "ms": found, "ratios": ratios, "at most": limits})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--width", type=int, default=100, help="of the input")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    given = parser.parse_args()
    torch.manual_seed(0)
    rows = measure(30 if given.quick else 200, given.batch, given.width, given.experts)
    for row in rows:
        print(f"{row['part']:8} {given.experts} x {row['units']:3} units:", end="")
        for name, ratio in row["ratios"].items():
            limit = row["at most"][name]
            print(f"   {ratio:.2f} of {name}" + (f" (at most {limit})" if limit else ""), end="")
        print(f"   {row['ms']['batched']:.2f} ms")
    if given.out:
        given.out.write_text(json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
