"""Numbers and findings as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from polytask.reporting.record import TaskRecord

DASH = "–"
_SPELLED = {
    "auroc": "AUROC", "auprc": "AUPRC", "auc": "AUC", "f1": "F1", "mae": "MAE", "rmse": "RMSE", "mse": "MSE",
    "r2": "R²", "nll": "NLL", "ece": "ECE", "map": "mAP", "mcc": "MCC", "lr": "learning rate",
    "iou": "IoU", "miou": "mIoU", "ap": "AP",
}  # fmt: skip


def number(value: float | None) -> str:
    """A number with the digits that matter; a dash where it is undefined.

    Example:
        >>> number(0.94451), number(1234.56), number(30), number(2e-7), number(float("nan"))
        ('0.9445', '1,234.6', '30', '2e-07', '–')
    """
    if value is None or not math.isfinite(value):
        return DASH
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e7):
        return f"{value:.3g}"
    return f"{value:.4f}" if size < 10 else f"{value:.2f}" if size < 1000 else f"{value:,.1f}"


def percent(share: float | None) -> str:
    """A share as a percentage.

    Example:
        >>> percent(0.0512), percent(1.0), percent(0.00004), percent(None)
        ('5.1 %', '100 %', '< 0.1 %', '–')
    """
    if share is None or not math.isfinite(share):
        return DASH
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.0f} %" if share in (0, 1) else f"{100 * share:.1f} %"


def duration(seconds: float | None) -> str:
    """A length of time.

    Example:
        >>> duration(3.21), duration(133), duration(7380), duration(None)
        ('3.2 s', '2 min 13 s', '2 h 3 min', '–')
    """
    if seconds is None or not math.isfinite(seconds):
        return DASH
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def memory(size: float | None) -> str:
    """An amount of memory.

    Example:
        >>> memory(1536), memory(2.5 * 2**30), memory(None)
        ('1.5 KiB', '2.5 GiB', '–')
    """
    if size is None or not math.isfinite(size):
        return DASH
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def metric_label(name: str) -> str:
    """A metric's name as people write it.

    Example:
        >>> metric_label("auroc"), metric_label("f1_macro"), metric_label("accuracy")
        ('AUROC', 'F1 macro', 'accuracy')
    """
    return " ".join(_SPELLED.get(part, part) for part in name.split("_"))


def plural(count: int, noun: str) -> str:
    """A number of things.

    Example:
        >>> plural(1, "task"), plural(2000, "row")
        ('1 task', '2,000 rows')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def shown_split(task: TaskRecord) -> str:
    """The split whose scores stand for the task: test if there is one, else the last."""
    return "test" if "test" in task.scores or not task.scores else list(task.scores)[-1]


def primary_score(task: TaskRecord) -> float | None:
    """The task's primary metric on the shown split, None where it is undefined."""
    return defined(task.scores.get(shown_split(task), {}), task.primary)


def defined(values: Mapping[str, float | None], name: str) -> float | None:
    """A value, or None if it is absent or undefined."""
    value = values.get(name)
    return value if value is not None and math.isfinite(value) else None


def gain(task: TaskRecord, source: str) -> float | None:
    """How much better than a reference the task is; negative is worse, None is unknown."""
    ours, theirs = primary_score(task), defined(task.reference.get(source, {}), task.primary)
    if ours is None or theirs is None:
        return None
    better = ours - theirs if task.directions.get(task.primary, True) else theirs - ours
    size = max(abs(ours), abs(theirs))
    # To the digits that are shown: what looks equal is not called better.
    return better if size < 1e-3 else round(better, 4 if size < 10 else 2)


def summary(task: TaskRecord) -> str:
    """What came out for a task, in one sentence.

    Example:
        >>> task = TaskRecord("income", "binary", "auroc", {"auroc": True}, scores={"test": {"auroc": 0.9445}},
        ...     reference={"the paper": {"auroc": 0.941}}, labelled={"test": 29926})
        >>> summary(task)
        'income reaches an AUROC of 0.9445 on 29,926 test rows: 0.0035 better than the paper (0.9410).'
    """
    split, score, label = shown_split(task), primary_score(task), metric_label(task.primary)
    rows = task.labelled.get(split)
    where = f"{plural(rows, f'{split} row')}" if rows is not None else f"the {split} rows"
    if score is None:
        return f"{task.name} has no {label} on {where}: it is undefined there."
    article = "an" if label[0] in "AEFILMNORSaeio" and not label.startswith(("RO", "mean", "LO")) else "a"
    better = "" if task.directions.get(task.primary, True) else " (lower is better)"
    text = f"{task.name} reaches {article} {label}{better} of {number(score)} on {where}"
    compared = [part for source in task.reference if (part := _compared(task, source))]
    return f"{text}: {', '.join(compared)}." if compared else f"{text}."


def _compared(task: TaskRecord, source: str) -> str:
    better, theirs = gain(task, source), defined(task.reference[source], task.primary)
    if better is None:
        return ""
    if number(abs(better)) == number(0.0) or better == 0:
        return f"equal to {source} ({number(theirs)})"
    return f"{number(abs(better))} {'better' if better > 0 else 'worse'} than {source} ({number(theirs)})"
