"""A run's record -> one self-contained HTML page."""

from polytask.reporting.record import (
    ColumnRecord,
    DataSummary,
    ModelPart,
    ModelSummary,
    RunRecord,
    TaskRecord,
    Timings,
)

__all__ = ["ColumnRecord", "DataSummary", "ModelPart", "ModelSummary", "RunRecord", "TaskRecord", "Timings"]
