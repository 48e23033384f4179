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
from polytask.evaluation.decision import Decision, DecisionSettings, decision_settings
from polytask.evaluation.delta import delta_m, mean_rank
from polytask.evaluation.improvement import relative_improvement
from polytask.evaluation.index import CompositeIndex, IndexSettings, index_settings
from polytask.evaluation.predict import TaskOutputs, collect, evaluate, score_outputs
from polytask.evaluation.scores import Scores
from polytask.evaluation.statistics import Difference, Interval, corrected, holm, mean_interval, paired_difference

__all__ = [
    "Calibration",
    "CompositeIndex",
    "Confusion",
    "Criterion",
    "Curve",
    "Decision",
    "DecisionSettings",
    "Difference",
    "Histogram",
    "IndexSettings",
    "Interval",
    "Scores",
    "TaskOutputs",
    "calibration_curve",
    "collect",
    "confusion",
    "corrected",
    "decision_settings",
    "delta_m",
    "error_histogram",
    "evaluate",
    "holm",
    "index_settings",
    "mean_interval",
    "mean_rank",
    "paired_difference",
    "precision_recall_curve",
    "relative_improvement",
    "roc_curve",
    "score_outputs",
]
