"""Time the solvers of the gradient-balancing problems, beside TorchJD and cvxpy where they have the method.

Every problem is a random Gramian with mixed row scales (0.1 to 10). Times are medians in milliseconds. A solver
runs through all problems before the next one starts: a large peer in between would empty the caches.

    python benchmarks/solvers.py --quick
    python benchmarks/solvers.py --out solvers.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polytask import registry

METHODS = ("mgda", "cagrad", "nash_mtl", "fairgrad", "upgrad", "dualproj", "sdmgrad", "pcd", "conicgrad")
TARGETS = {10: 0.2, 40: 0.5, 100: 0.5}
SPECIAL = {("upgrad", 40): 1.5, ("upgrad", 100): None, ("fairgrad", 40): 0.9, ("fairgrad", 100): 0.9}

LEFT_OUT: dict[str, str] = {}


def gramian(count: int, seed: int, conflict: bool) -> torch.Tensor:
    generator = np.random.default_rng([count, seed])
    rows = generator.standard_normal((count, 2 * count + 2))
    if conflict:
        rows -= 0.95 * rows.mean(axis=0)
    rows *= 10.0 ** generator.uniform(-1.0, 1.0, (count, 1))
    return torch.from_numpy(rows @ rows.T)


def ours(method: str, count: int) -> Callable[[torch.Tensor], Any]:
    names = [str(k) for k in range(count)]
    balancer = registry.build("balancers", method)
    balancer.setup(names)
    return lambda matrix: balancer.weigh(matrix, None, names)


def torchjd(method: str) -> Callable[[torch.Tensor], Any] | None:
    from torchjd import aggregation

    makers: dict[str, Callable[[], Any]] = {
        "mgda": aggregation.MGDAWeighting,
        "upgrad": aggregation.UPGradWeighting,
        "dualproj": aggregation.DualProjWeighting,
        "cagrad": lambda: aggregation.CAGradWeighting(c=0.4),
        "fairgrad": lambda: aggregation.FairGradWeighting(alpha=2.0),
        "pcd": aggregation.PCDWeighting,
    }
    if method not in makers:
        return None
    try:
        weighting = makers[method]()
    except ImportError as error:
        LEFT_OUT[f"TorchJD {method}"] = str(error)
        return None
    return lambda matrix: weighting(matrix)


def cvxpy(method: str) -> Callable[[torch.Tensor], Any] | None:
    import cvxpy as cp

    def root(matrix: torch.Tensor) -> np.ndarray:
        values, axes = np.linalg.eigh(matrix.numpy())
        return axes * np.sqrt(np.maximum(values, 0.0))

    def solve(matrix: torch.Tensor) -> Any:
        rows = root(matrix)
        count = len(rows)
        mean = rows.mean(axis=0)
        weights = cp.Variable(count)
        simplex = [weights >= 0, cp.sum(weights) == 1]
        problems = {
            "mgda": lambda: cp.Problem(cp.Minimize(cp.sum_squares(rows.T @ weights)), simplex),
            "sdmgrad": lambda: cp.Problem(cp.Minimize(cp.sum_squares(rows.T @ weights + 0.3 * mean)), simplex),
            "dualproj": lambda: cp.Problem(cp.Minimize(cp.sum_squares(rows.T @ weights)), [weights >= 1 / count]),
            "cagrad": lambda: cp.Problem(
                cp.Minimize(rows @ mean @ weights + 0.4 * np.linalg.norm(mean) * cp.norm(rows.T @ weights)), simplex
            ),
            "nash_mtl": lambda: cp.Problem(
                cp.Minimize(0.5 * cp.sum_squares(rows.T @ weights) - cp.sum(cp.log(weights)))
            ),
        }
        return problems[method]().solve(solver=cp.CLARABEL)

    return solve if method in ("mgda", "sdmgrad", "dualproj", "cagrad", "nash_mtl") else None


def median_times(solvers: dict[str, Callable[[torch.Tensor], Any]], problems: list[torch.Tensor]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in solvers}
    for name, solver in solvers.items():
        solver(problems[0])
        for matrix in problems:
            start = time.perf_counter()
            solver(matrix)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def measure(counts: list[int], repeats: int, peers: bool) -> list[dict[str, Any]]:
    lines = []
    for method in METHODS:
        for count in counts:
            for kind in ("random", "conflict"):
                solvers: dict[str, Callable[[torch.Tensor], Any]] = {"polytask": ours(method, count)}
                if peers:
                    others = {"torchjd": torchjd(method), "cvxpy": cvxpy(method)}
                    solvers |= {name: solver for name, solver in others.items() if solver is not None}
                problems = [gramian(count, seed, kind == "conflict") for seed in range(repeats)]
                times = median_times(solvers, problems)
                target = SPECIAL.get((method, count), TARGETS.get(count))
                lines.append({"method": method, "m": count, "problems": kind, "target": target, **times})
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    def cell(value: float | None) -> str:
        return f"{'-':>10}" if value is None else f"{value:>10.3f}"

    head = f"{'method':<10}{'m':>5}  {'problems':<10}" + "".join(
        f"{name:>10}" for name in ("polytask", "target", "torchjd", "cvxpy")
    )
    body = [
        f"{line['method']:<10}{line['m']:>5}  {line['problems']:<10}"
        + "".join(cell(line.get(name)) for name in ("polytask", "target", "torchjd", "cvxpy"))
        for line in lines
    ]
    return "\n".join(["milliseconds, median", head, *body])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few problems, sizes 2, 10 and 40, no peers")
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts = [2, 10, 40] if options.quick else [2, 10, 40, 100]
    with warnings.catch_warnings():
        # Peers warn about solver accuracy and missing extras; the table is about time.
        warnings.simplefilter("ignore")
        lines = measure(counts, 5 if options.quick else 11, peers=not options.quick)
    print(table(lines))
    for name, reason in LEFT_OUT.items():
        print(f"left out: {name}: {reason}")
    if options.out:
        options.out.write_text(json.dumps(lines, indent=2) + "\n")


if __name__ == "__main__":
    main()
