"""Task types: one function each, returning a ``Task`` with its loss, head, metrics and decoding.

Example:
    >>> from polytask import tasks
    >>> tasks.binary("income").primary
    'auroc'
"""

from polytask.tasks.binary import binary
from polytask.tasks.counts import counts
from polytask.tasks.dense_regression import dense_regression
from polytask.tasks.detection import detection
from polytask.tasks.embedding import embedding
from polytask.tasks.multiclass import multiclass
from polytask.tasks.multilabel import multilabel
from polytask.tasks.ordinal import ordinal
from polytask.tasks.regression import regression
from polytask.tasks.segmentation import segmentation
from polytask.tasks.tagging import tagging
from polytask.tasks.task import HeadSpec, Metric, TargetSpec, Task

__all__ = [
    "HeadSpec",
    "Metric",
    "TargetSpec",
    "Task",
    "binary",
    "counts",
    "dense_regression",
    "detection",
    "embedding",
    "multiclass",
    "multilabel",
    "ordinal",
    "regression",
    "segmentation",
    "tagging",
]
