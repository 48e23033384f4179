"""Gradient-boosted trees on Census-Income: what a strong single-task model reaches on the same rows and inputs.

One scikit-learn model a task. Numbers are numbers, categories are categories. The number of rounds is chosen on
the validation tenth, as the networks' epoch is. Two forms: education is a target (as in recipes/census.yaml), or
an input (as in recipes/census_mmoe.yaml).

    python benchmarks/census_trees.py [--test] [--seeds 0 1 2] [--threads 1] [--out trees.json]
"""

import argparse
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

INCOME = {"type": "binary", "positive": "50000+."}
NEVER_MARRIED = {"type": "binary", "column": "marital_status", "positive": "Never married"}
FORMS: dict[str, dict[str, dict[str, Any]]] = {
    "education is a target": {
        "income": INCOME,
        "never_married": NEVER_MARRIED,
        "education": {"type": "multiclass"},
    },
    "education is an input": {"income": INCOME, "never_married": NEVER_MARRIED},
}
# Small steps and many rounds for the two binary tasks; a round of education grows 17 trees, so its steps are larger.
RATES = {"binary": 0.05, "multiclass": 0.1}
ROUNDS = 600
PATIENCE = 20


def tables(tasks: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], Any]:
    """By part: inputs ``[rows, columns]`` and targets by task; and which columns are categories."""
    import numpy as np
    import torch

    from polytask.recipes.build import build
    from polytask.recipes.load import load_recipe

    built = build(load_recipe({"data": {"dataset": "census_income"}, "tasks": tasks}))
    assert not built.schema.missing, "no number of Census-Income is missing"
    parts = {}
    for part, (source,) in built.sources.items():
        rows = source.take(torch.arange(len(source)))
        inputs = rows.inputs
        # Trees see only the order of numbers, so the standardised ones are as good as the raw ones.
        both = np.concatenate([inputs["numbers"].numpy(), inputs["categories"].numpy()], 1, dtype=np.float32)
        parts[part] = (both, {name: rows.targets[name].numpy().astype(int) for name in tasks})
    numbers, categories = len(built.schema.numbers), len(built.schema.categories)
    return parts, np.arange(numbers + categories) >= numbers


def fit_one(parts: dict[str, Any], is_category: Any, name: str, kind: str, seed: int) -> Any:
    """One task's trees; validation rows say when to stop."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    trees = HistGradientBoostingClassifier(
        learning_rate=RATES[kind],
        max_iter=ROUNDS,
        categorical_features=is_category,
        early_stopping=True,
        n_iter_no_change=PATIENCE,
        random_state=seed,
    )
    inputs, targets = parts["train"]
    held_out, answers = parts["validation"]
    return trees.fit(inputs, targets[name], X_val=held_out, y_val=answers[name])


def scores_of(trees: Any, inputs: Any, answers: Any, kind: str) -> dict[str, float]:
    """AUROC and accuracy of a binary task; accuracy and macro-F1 over all classes of another."""
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    probabilities = trees.predict_proba(inputs)
    found = trees.classes_[probabilities.argmax(1)]
    scores = {"accuracy": float(accuracy_score(answers, found))}
    if kind == "binary":
        return {"auroc": float(roc_auc_score(answers, probabilities[:, 1]))} | scores
    return scores | {"macro_f1": float(f1_score(answers, found, labels=trees.classes_, average="macro"))}


def main() -> None:
    """Fit both forms and print scores by part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", action="store_true", help="score the test rows as well")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the scores as JSON")
    asked = parser.parse_args()
    # OpenMP reads this when scikit-learn is imported, which is later.
    os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    warnings.simplefilter("ignore", UserWarning)
    rows: list[dict[str, Any]] = []
    for form, tasks in FORMS.items():
        parts, is_category = tables(tasks)
        for name, options in tasks.items():
            for seed in asked.seeds:
                began = time.perf_counter()
                trees = fit_one(parts, is_category, name, options["type"], seed)
                row: dict[str, Any] = {"form": form, "task": name, "seed": seed, "rounds": trees.n_iter_}
                row["seconds"] = round(time.perf_counter() - began, 1)
                for part in ("validation", "test") if asked.test else ("validation",):
                    inputs, targets = parts[part]
                    row[part] = scores_of(trees, inputs, targets[name], options["type"])
                rows.append(row)
                print(json.dumps(row), flush=True)
    if asked.out:
        asked.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
