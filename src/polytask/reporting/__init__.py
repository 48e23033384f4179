"""A run's record -> one self-contained HTML page."""

from polytask.reporting.record import (
    ColumnRecord,
    DataSummary,
    DecisionRecord,
    IndexRecord,
    ModelPart,
    ModelSummary,
    OutcomeRecord,
    RunRecord,
    SharingRecord,
    TaskRecord,
    Timings,
)
from polytask.reporting.report import render, write_report

__all__ = [
    "ColumnRecord",
    "DataSummary",
    "DecisionRecord",
    "IndexRecord",
    "ModelPart",
    "ModelSummary",
    "OutcomeRecord",
    "RunRecord",
    "SharingRecord",
    "TaskRecord",
    "Timings",
    "render",
    "write_report",
]
