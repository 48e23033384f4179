"""Evaluation: scores of a model, what they say about it, and how runs compare."""

from polytask.evaluation.confusion import Confusion, confusion
from polytask.evaluation.criterion import Criterion
from polytask.evaluation.curves import (
    Calibration,
    Curve,
    Histogram,
    calibration_curve,
    error_histogram,
    precision_recall_curve,
    roc_curve,
)
from polytask.evaluation.delta import delta_m, mean_rank
from polytask.evaluation.predict import TaskOutputs, collect, evaluate, score_outputs
from polytask.evaluation.scores import Scores
from polytask.evaluation.statistics import Difference, Interval, corrected, holm, mean_interval, paired_difference

__all__ = [
    "Calibration",
    "Confusion",
    "Criterion",
    "Curve",
    "Difference",
    "Histogram",
    "Interval",
    "Scores",
    "TaskOutputs",
    "calibration_curve",
    "collect",
    "confusion",
    "corrected",
    "delta_m",
    "error_histogram",
    "evaluate",
    "holm",
    "mean_interval",
    "mean_rank",
    "paired_difference",
    "precision_recall_curve",
    "roc_curve",
    "score_outputs",
]
