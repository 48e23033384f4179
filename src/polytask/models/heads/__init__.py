"""Heads: from a task's features to its raw outputs, one class a kind."""

from collections.abc import Mapping

from polytask.errors import RecipeError, unknown
from polytask.models.heads.base import TaskHead, TaskNetwork, run_head, run_heads, same_layers
from polytask.models.heads.maps import MapHead
from polytask.models.heads.tokens import ChainHead, TokenHead
from polytask.models.heads.vector import Head
from polytask.tasks.task import HeadSpec

FORMS: Mapping[str, type[TaskHead]] = {"vector": Head, "map": MapHead, "tokens": TokenHead, "chain": ChainHead}
"""Kinds of heads, by ``HeadSpec.form``."""


def make_head(spec: HeadSpec, shape: tuple[int, ...]) -> TaskHead:
    """The head that a spec describes.

    Args:
        spec: How it is built.
        shape: The features' shape without the rows.

    Raises:
        RecipeError: for an unknown form.
        ShapeError: if such a head cannot read such features.
    """
    if spec.form not in FORMS:
        raise RecipeError(unknown("form of head", spec.form, FORMS))
    return FORMS[spec.form](spec, shape)  # type: ignore[call-arg]


__all__ = [
    "FORMS",
    "ChainHead",
    "Head",
    "MapHead",
    "TaskHead",
    "TaskNetwork",
    "TokenHead",
    "make_head",
    "run_head",
    "run_heads",
    "same_layers",
]
