"""One model for all tasks of a text recipe, against one model a task: test scores over seeds.

The settings are those of the recipe for every form, with what ``--set`` changes; nothing is chosen here. A run is one
line of the log, written when it ends, so a comparison that was stopped goes on where it was.

    python benchmarks/text_tasks.py recipes/atis.yaml [--seeds 0 1 2] [--out benchmarks/out/text_tasks.jsonl]
        [--set training.epochs=4]
    python benchmarks/text_tasks.py recipes/atis.yaml --table
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

import polytask as pt
from polytask.analysis.subsets import subset_recipe
from polytask.recipes.frames import dataset_facts

OUT = Path("benchmarks/out/text_tasks.jsonl")


def forms(recipe: Path) -> dict[str, list[str]]:
    """The tasks of each model: all of them, and each alone."""
    tasks = list(yaml.safe_load(recipe.read_text(encoding="utf-8"))["tasks"])
    return {"together": tasks, **{f"{task} alone": [task] for task in tasks}}


def read(log: Path, recipe: Path, changes: list[str]) -> list[dict[str, Any]]:
    """The lines of the log that are of the recipe with these changes."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [row for row in map(json.loads, lines) if (row["recipe"], row.get("set", [])) == (recipe.name, changes)]


def measure(recipe: Path, changes: list[str], form: str, tasks: list[str], seed: int) -> dict[str, Any]:
    """Train one model and score its test rows."""
    plain = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    if "inputs" not in plain:
        plain["inputs"] = dataset_facts(plain["data"]["dataset"])["inputs"]
    plain = subset_recipe(plain, tasks)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        overrides = [*changes, f"training.seed={seed}"]
        run = pt.run(plain, overrides=overrides, out=Path(folder) / "run", progress=False)
        seconds = time.process_time() - started
        assert run.path is not None
        scores = json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))
    found = {"recipe": recipe.name, "set": changes, "form": form, "seed": seed}
    return {**found, "cpu_seconds": round(seconds), **scores}


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and spread over seeds of each task's scores on the test rows, as Markdown."""
    lines = ["| task | metric | model | seeds | test, mean | lowest | highest |", "|---|---|---|---|---|---|---|"]
    for task in dict.fromkeys(task for row in rows for task in row["test"]):
        for metric in next(list(row["test"][task]) for row in rows if task in row["test"])[:1]:
            for form in dict.fromkeys(row["form"] for row in rows if task in row["test"]):
                values = [row["test"][task][metric] for row in rows if row["form"] == form]
                spread = f"{statistics.fmean(values):.4f} | {min(values):.4f} | {max(values):.4f}"
                lines.append(f"| {task} | {metric} | {form} | {len(values)} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    """Run what the log lacks, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true", help="print the log and run nothing")
    asked = parser.parse_args()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["form"], row["seed"]) for row in read(asked.out, asked.recipe, asked.set)}
    for seed in () if asked.table else asked.seeds:
        for form, tasks in forms(asked.recipe).items():
            if (form, seed) not in done:
                row = measure(asked.recipe, asked.set, form, tasks, seed)
                with asked.out.open("a", encoding="utf-8") as log:
                    log.write(json.dumps(row) + "\n")
    print(table(read(asked.out, asked.recipe, asked.set)))


if __name__ == "__main__":
    main()
