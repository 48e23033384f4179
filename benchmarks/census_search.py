"""The search behind recipes/census.yaml: many settings, compared on the validation tenth and nothing else.

Each setting is a list of changes to START. A run is one line of the log, written when it ends, so a search that
was stopped goes on where it was. The test rows are never scored here.

    python benchmarks/census_search.py [--out benchmarks/out/census_search.jsonl] [--threads 1] [--seeds 0 1]
    python benchmarks/census_search.py "training.lr=0.002;model.encoder.dropout=0.3"     settings of your own
    python benchmarks/census_search.py --table                                           the log as a table
"""

import argparse
import json
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from polytask.recipes.build import build
from polytask.recipes.load import load_recipe
from polytask.training.fit import seeded, train

START: dict[str, Any] = {
    "data": {"dataset": "census_income"},
    "tasks": {
        "income": {"type": "binary", "positive": "50000+."},
        "never_married": {"type": "binary", "column": "marital_status", "positive": "Never married"},
        "education": {"type": "multiclass"},
    },
    "model": {
        "encoder": {"name": "tabular", "hidden": [256, 128], "numbers": "piecewise_linear", "dropout": 0.1},
        "sharing": {"name": "hard"},
    },
    "training": {
        "epochs": 14,
        "batch_size": 1024,
        "lr": 0.001,
        "schedule": {"name": "cosine", "warmup": 0.05},
        "device": "cpu",
    },
}

# The search went in three stages: single changes, then around more bins and a larger rate, then combinations.
WIDE = "training.lr=0.004;preprocessing.bins=2048;model.encoder.dropout=0.3"
SHORT = f"{WIDE};training.epochs=8"
INCOME_3 = "balancer={name: static, weights: {income: 3, never_married: 1, education: 1}}"
BINARY_3 = "balancer={name: static, weights: {income: 3, never_married: 3, education: 1}}"
CHOSEN = (
    "training.lr=0.002;preprocessing.bins=2048;model.encoder.dropout=0.3;training.batch_size=512;"
    f"model.encoder.norm=batch;{BINARY_3}"
)
RUNNER_UP = f"{WIDE};model.encoder.norm=batch;{INCOME_3}"
SETTINGS: tuple[str, ...] = (
    "",
    "model.encoder.dropout=0.3",
    "model.encoder.embedding_dropout=0.2",
    "training.lr=0.002",
    "training.weight_decay=0.1",
    "training.lr=0.002;preprocessing.bins=512",
    "training.lr=0.004;preprocessing.bins=512;model.encoder.dropout=0.3",
    "training.lr=0.002;preprocessing.bins=2048",
    WIDE,
    SHORT,
    f"{SHORT};training.batch_size=2048",
    f"{SHORT};training.batch_size=512",
    f"{SHORT};{INCOME_3}",
    f"{SHORT};training.weight_decay=0.1",
    "training.lr=0.008;preprocessing.bins=2048;model.encoder.dropout=0.3;training.epochs=8",
    f"{SHORT};model.encoder.norm=batch",
    f"{SHORT};model.encoder.embedding_dropout=0.1",
    f"{WIDE};{INCOME_3}",
    RUNNER_UP,
    CHOSEN,
    "training.lr=0.002;preprocessing.bins=2048;model.encoder.dropout=0.3;model.encoder.norm=batch;" + BINARY_3,
    f"{WIDE};model.encoder.norm=batch;model.sharing.private=[64];{BINARY_3}",
    f"{WIDE};training.batch_size=512;model.encoder.norm=batch;{BINARY_3}",
    f"{WIDE};model.encoder.norm=batch;{BINARY_3}",
)
# The two best that differ most, once more before one was chosen.
SECOND_SEED = (CHOSEN, RUNNER_UP)

TASKS = ("income", "never_married", "education")


def run_setting(setting: str, seed: int) -> dict[str, Any]:
    """Train START with the changes of ``setting``; validation scores of the chosen epoch."""
    changes = [change for change in setting.split(";") if change]
    recipe = load_recipe(START, [*changes, f"training.seed={seed}"])
    with seeded(seed):
        built = build(recipe)
    began = time.perf_counter()
    run = train(
        built.model,
        built.sources["train"],
        built.sources["validation"],
        balancer=recipe.balancer,
        settings=recipe.training,
    )
    assert run.scores is not None, "Census-Income has validation rows"
    return {
        "setting": setting,
        "seed": seed,
        "seconds": round(time.perf_counter() - began, 1),
        "epoch": run.best_epoch,
        "scores": {task: dict(run.scores[task]) for task in TASKS},
        "curve": [[round(row["income.auroc"], 5), round(row["never_married.auroc"], 5)] for row in run.history],
    }


def read_log(path: Path) -> list[dict[str, Any]]:
    """The runs of a log; none if there is no log yet."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def table(rows: Iterable[dict[str, Any]]) -> str:
    """A Markdown table, one line a setting, best income first; means over seeds."""
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[row["setting"]].append(row)

    def mean(runs: list[dict[str, Any]], task: str, metric: str) -> float:
        return statistics.fmean(run["scores"][task][metric] for run in runs)

    lines = [
        "| changes | seeds | income AUROC | never married AUROC | education accuracy | education macro-F1 | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for setting, runs in sorted(grouped.items(), key=lambda item: -mean(item[1], "income", "auroc")):
        name = "; ".join(f"`{change}`" for change in setting.split(";")) if setting else "none: the start"
        seconds = statistics.fmean(run["seconds"] for run in runs)
        lines.append(
            f"| {name} | {len(runs)} | {mean(runs, 'income', 'auroc'):.5f} | "
            f"{mean(runs, 'never_married', 'auroc'):.5f} | {mean(runs, 'education', 'accuracy'):.4f} | "
            f"{mean(runs, 'education', 'macro_f1'):.4f} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what the log lacks, or print the log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="changes, separated by ';' (default: the whole search)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/census_search.jsonl"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the log as a table and stop")
    asked = parser.parse_args()
    if asked.table:
        print(table(read_log(asked.out)))
        return
    torch.set_num_threads(asked.threads)
    # A few columns have values that only validation rows have; the report of a run says so, a search need not.
    warnings.simplefilter("ignore", UserWarning)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["setting"], row["seed"]) for row in read_log(asked.out)}
    plan = [(setting, seed) for setting in asked.settings or SETTINGS for seed in asked.seeds]
    if not asked.settings:
        plan += [(setting, 1) for setting in SECOND_SEED if (setting, 1) not in plan]
    for setting, seed in plan:
        if (setting, seed) in done:
            continue
        row = run_setting(setting, seed)
        with asked.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        scores = row["scores"]
        print(
            f"{scores['income']['auroc']:.5f} {scores['never_married']['auroc']:.5f} "
            f"{scores['education']['accuracy']:.4f} epoch {row['epoch']:>2} {row['seconds']:.0f} s "
            f"seed {seed}  {setting or 'the start'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
