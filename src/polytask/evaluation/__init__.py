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

__all__ = [
    "Calibration",
    "CompositeIndex",
    "Confusion",
    "Criterion",
    "Curve",
    "Decision",
    "DecisionSettings",
    "Histogram",
    "IndexSettings",
    "Scores",
    "TaskOutputs",
    "calibration_curve",
    "collect",
    "confusion",
    "decision_settings",
    "delta_m",
    "error_histogram",
    "evaluate",
    "index_settings",
    "mean_rank",
    "precision_recall_curve",
    "relative_improvement",
    "roc_curve",
    "score_outputs",
]
