"""Joint, alternating and separate training of recipes/shapes_detection.yaml at one budget, over several seeds.

A budget is a number of forward and backward passes of the encoder: `joint` and `alternating` take so many steps (an
alternating round is two of them), `separate` trains one network a task for a third of the steps each. The last
weights count, and the test rows are scored once. A run is one line of the log, written when it ends, so that a study
that was stopped goes on where it was.

    python benchmarks/shapes_schemes.py [--out benchmarks/out/shapes_schemes.jsonl] [--steps 750] [--seeds 0 1 2]
    python benchmarks/shapes_schemes.py --table
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from polytask.evaluation import evaluate
from polytask.recipes.build import build
from polytask.recipes.load import load_recipe
from polytask.training.fit import seeded, train

RECIPE = Path(__file__).parents[1] / "recipes" / "shapes_detection.yaml"
TASKS = 3
SCHEMES: dict[str, list[str]] = {
    "joint": [],
    "alternating": ["training.strategy=alternating"],
    "separate": ["model.sharing=separate"],
}
SHOWN = (("boxes", "map"), ("boxes", "map_50"), ("parts", "miou"), ("shown", "macro_f1"), ("shown", "macro_auroc"))


def run(scheme: str, seed: int, steps: int) -> dict[str, Any]:
    """One run's test scores and cost."""
    length = steps // TASKS if scheme == "separate" else steps
    changes = [f"training.steps={length}", f"training.seed={seed}", "training.select=last", "training.device=cpu"]
    # Only the end counts, so nothing is validated in between.
    recipe = load_recipe(RECIPE, [*SCHEMES[scheme], *changes, "training.validate_every=100000"])
    with seeded(seed):
        built = build(recipe)
    start, wall = time.process_time(), time.perf_counter()
    done = train(built.model, built.sources["train"], balancer=recipe.balancer, settings=recipe.training)
    cost = {"cpu_seconds": time.process_time() - start, "seconds": time.perf_counter() - wall}
    scores = evaluate(done.model, built.sources["test"], batch_size=recipe.training.evaluation_batch_size)
    values = {f"{task}.{metric}": scores[task][metric] for task, metric in SHOWN}
    return {"scheme": scheme, "seed": seed, "steps": length, **values, **cost}


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and deviation over the seeds of every scheme."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["scheme"]].append(row)
    names = [f"{task}.{metric}" for task, metric in SHOWN]
    lines = [f"| scheme | seeds | {' | '.join(names)} | CPU seconds |", "|---" * (len(names) + 3) + "|"]
    for scheme, found in groups.items():
        cells = []
        for name in names:
            values = [row[name] for row in found]
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4f}{spread}")
        seconds = statistics.mean(row["cpu_seconds"] for row in found)
        lines.append(f"| {scheme} | {len(found)} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/shapes_schemes.jsonl"))
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=list(SCHEMES))
    parser.add_argument("--table", action="store_true", help="only print the log")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    for seed in given.seeds if not given.table else ():
        for scheme in given.schemes:
            if any(row["scheme"] == scheme and row["seed"] == seed for row in rows):
                continue
            rows.append(run(scheme, seed, given.steps))
            given.out.parent.mkdir(parents=True, exist_ok=True)
            with given.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(rows[-1], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
