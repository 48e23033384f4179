"""A run's record with every part filled in, made of seeded random numbers."""

import numpy as np
import pytest

from polytask.evaluation import calibration_curve, error_histogram, precision_recall_curve, roc_curve
from polytask.evaluation.confusion import Confusion
from polytask.reporting import ColumnRecord, DataSummary, ModelPart, ModelSummary, RunRecord, TaskRecord, Timings

EDUCATION = (
    "Children", "Less than 1st grade", "1st 2nd 3rd or 4th grade", "5th or 6th grade", "7th and 8th grade", "9th grade",
    "10th grade", "11th grade", "12th grade no diploma", "High school graduate", "Some college but no degree",
    "Associates degree-occup /vocational", "Associates degree-academic program", "Bachelors degree(BA AB BS)",
    "Masters degree(MA MS MEng MEd MSW MBA)", "Prof school degree (MD DDS DVM LLB JD)", "Doctorate degree(PhD EdD)",
)  # fmt: skip
SIZES = {"train": 179_571, "validation": 19_952, "test": 99_762}
LABELLED = {"train": 179_571, "validation": 19_952, "test": 99_762}


def binary_task(random, name, shift, classes, reference):
    target = (random.random(6000) < 0.12).astype(float)
    logit = random.normal(size=6000) + shift * target - 2.2
    score = 1 / (1 + np.exp(-logit))
    curves = {"roc": roc_curve(score, target), "precision_recall": precision_recall_curve(score, target)}
    figures = {key: vars(curve) for key, curve in curves.items()} | {
        "calibration": vars(calibration_curve(score, target))
    }
    pairs = np.bincount((target * 2 + (score > 0.5)).astype(int), minlength=4).reshape(2, 2)
    own = {"auroc": curves["roc"].area, "average_precision": curves["precision_recall"].area}
    own |= {"accuracy": pairs.trace() / pairs.sum(), "log_loss": 0.213, "brier": 0.061, "calibration_error": 0.021}
    return TaskRecord(
        name, "binary", "auroc", {key: key in ("auroc", "average_precision", "accuracy") for key in own}, classes,
        {"test": own, "validation": {key: value - 0.003 for key, value in own.items()}},
        reference, LABELLED, figures | {"confusion": {"matrix": pairs}},
    )  # fmt: skip


def class_task(random, name, kind, classes, rows=20_000, labelled=LABELLED):
    k = len(classes)
    size = random.dirichlet(np.full(k, 0.6))
    nearby = np.exp(-np.abs(np.arange(k)[:, None] - np.arange(k)) / 0.7) * (0.2 + size) + 2.0 * np.eye(k)
    matrix = np.stack([random.multinomial(int(rows * size[i]), nearby[i] / nearby[i].sum()) for i in range(k)])
    averages = Confusion(matrix.astype(float), classes).average("macro")
    own = {
        "accuracy": matrix.trace() / matrix.sum(),
        "macro_f1": averages["f1"],
        "log_loss": 1.21,
        "top_5_accuracy": None,
    }
    higher = {key: key != "log_loss" for key in own}
    scores = {"test": own, "validation": {"accuracy": 0.5601, "macro_f1": 0.41, "log_loss": 1.2}}
    reference = {"plain shared MLP": {"accuracy": 0.569}}
    return TaskRecord(
        name, kind, "accuracy", higher, classes, scores, reference, labelled, {"confusion": {"matrix": matrix}}
    )


def number_task(random):
    true = random.gamma(3.0, 12.0, 3000)
    predicted = true * 0.85 + random.normal(size=3000) * 6 + 5
    own = {"rmse": float(np.sqrt(np.mean((predicted - true) ** 2))), "mae": 5.61, "r2": 0.912}
    histogram = error_histogram(predicted, true)
    figures = {"errors": {"edges": histogram.edges, "counts": histogram.counts}}
    figures["predicted_true"] = {"true": true[:400], "predicted": predicted[:400]}
    directions = {"rmse": False, "mae": False, "r2": True}
    return TaskRecord("weeks_worked", "regression", "rmse", directions, (), {"test": own}, {}, {"test": 3000}, figures)


def label_task():
    labels = [
        {"label": name, "support": support, "precision": p, "recall": r, "f1": f, "auroc": a}
        for name, support, p, r, f, a in (
            ("dividends", 1203, 0.81, 0.64, 0.715, 0.93),
            ("capital gains", 411, 0.52, 0.21, 0.299, 0.86),
            ("self-employed", 0, None, None, None, None),
        )
    ]
    scores = {"test": {"macro_f1": 0.507, "hamming": 0.04}}
    directions = {"macro_f1": True, "hamming": False}
    return TaskRecord(
        "sources_of_income", "multilabel", "macro_f1", directions, scores=scores,
        labelled={"train": 60_000, "test": 3000}, figures={"labels": labels},
    )  # fmt: skip


def history(tasks, random, epochs=14):
    rows = []
    for epoch in range(1, epochs + 1):
        row = {"scope": "epoch", "epoch": epoch, "step": 176 * epoch, "lr": 1e-3}
        for index, task in enumerate(tasks):
            sign = 1 if task.directions[task.primary] else -1
            row[f"loss.{task.name}"] = (0.3 + 0.3 * index) * (1 + 1.4 * np.exp(-epoch / 3)) + 0.004 * random.normal()
            end = task.scores["test"][task.primary]
            row[f"{task.name}.{task.primary}"] = (
                end * (1 - sign * 0.12 * np.exp(-epoch / 2.5)) + 0.002 * random.normal()
            )
        rows.append(row)
    return tuple(rows)


def balancing(tasks, random, steps=900):
    names = [task.name for task in tasks]
    rows = []
    for step in range(1, steps + 1):
        row = {"step": step, "lr": 1e-3, "loss.x": 1.0}
        row |= {f"weight.{name}": 1 / len(names) + 0.05 * i + 0.04 * random.normal() for i, name in enumerate(names)}
        row |= {
            f"cosine.{a}.{b}": 0.35 - 0.4 * (b == names[-1]) + 0.2 * random.normal()
            for a in names
            for b in names
            if a < b
        }
        rows.append(row | {"conflict_rate": random.random() * 0.5, "update_norm": 2 / step**0.3})
    return tuple(rows)


def make_record():
    """Two binary tasks, seventeen classes, a regression and three labels."""
    random = np.random.default_rng(0)
    tasks = (
        binary_task(random, "income", 2.4, ("- 50000.", "50000+."),
                    {"boosted trees": {"auroc": 0.9517}, "shared MLP": {"auroc": 0.93}}),
        binary_task(random, "never_married", 3.9, ("no", "yes"), {"boosted trees": {"auroc": 0.9947}}),
        class_task(random, "education", "multiclass", EDUCATION),
        number_task(random),
        label_task(),
    )  # fmt: skip
    columns = tuple(
        ColumnRecord(name, kind, distinct, missing)
        for name, kind, distinct, missing in (
            ("age", "number", 91, 0), ("class of worker", "category", 9, 0), ("industry code", "category", 52, 0),
            ("wage per hour", "number", 1240, 0), ("state of previous residence", "category", 50, 708),
            ("migration code-change in msa", "category", 9, 99_696), ("country of birth father", "category", 42, 6713),
        )
    )  # fmt: skip
    return RunRecord(
        title="Census-Income",
        recipe={
            "data": {"dataset": "census_income", "validation": 0.1},
            "model": {"sharing": "hard", "encoder": {"name": "tabular", "hidden": [256, 128], "dropout": 0.3}},
            "balancer": {"name": "cagrad", "c": 0.4, "at": "features"},
            "training": {"epochs": 14, "batch_size": 1024, "lr": 0.002, "seed": 1},
        },
        versions={"python": "3.11.14", "polytask": "0.1.0", "torch": "2.13.0", "numpy": "2.3.1"},
        seed=1,
        command="polytask fit recipes/census.yaml",
        tasks=tasks,
        epochs=history(tasks, random),
        balancing=balancing(tasks[:4], random),
        balancer="cagrad at the features, in every step",
        best_epoch=11,
        stop_reason="no improvement in 3 validations",
        data=DataSummary(SIZES, columns, 12, ("‘age’ is read as a number: 91 distinct values.",)),
        model=ModelSummary(
            (
                ModelPart("encoder", "shared", 121_344),
                *(ModelPart("head", task.name, 2_064 + 100 * i) for i, task in enumerate(tasks)),
            ),
            "Tabular encoder with hard sharing",
        ),
        timings=Timings(133.4, 18_900.0, 1_340_000_000, "cpu"),
        warnings=("'income' and 'education' conflict in 62 % of the steps looked at (mean cosine -0.11).",),
    )


@pytest.fixture(scope="session")
def record():
    return make_record()
