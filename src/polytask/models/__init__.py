"""Models: a sharing with a head for each task, and encoders."""

from polytask.models.heads import Head, TaskHead
from polytask.models.model import MultiTaskModel, Part

__all__ = ["Head", "MultiTaskModel", "Part", "TaskHead"]
