"""Several yes-or-no labels, one logit each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from polytask.tasks import options as checks
from polytask.tasks.losses import MultilabelLoss
from polytask.tasks.metrics_values import MULTILABEL, MULTILABEL_DEFAULT
from polytask.tasks.outputs import DecodeLabels, logistic_scores
from polytask.tasks.task import UNKNOWN_WIDTH, TargetSpec, Task


def multilabel(
    name: str,
    classes: int | Sequence[str] | None = None,
    *,
    columns: Sequence[str] = (),
    positive_weights: checks.Weights = None,
    focal_gamma: float | None = None,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    metrics: Sequence[str] | None = None,
    positive_shares: Sequence[float] | None = None,
) -> Task:
    """Several yes-or-no labels, one logit each.

    The raw output is ``[rows, k]``; targets are 0, 1 or probabilities ``[rows, k]`` with NaN for every missing
    entry. A row's loss is the mean over its labelled entries; metrics leave missing entries out as well.

    Args:
        name: The task's name.
        classes: How many labels, or their names in order; None until the training data show them.
        columns: Table columns, one a label; empty if one column lists a row's labels.
        positive_weights: Weights of the positive entries: None, ``"balanced"`` (as much weight on a label's
            positive entries as on its negative ones), weights in order, or a mapping from label to weight.
        focal_gamma: Exponent of the focal loss; None is plain cross-entropy.
        hidden: Widths of private layers.
        dropout: Between the private layers, 0 to below 1.
        metrics: Names of metrics, the first is the primary one; None takes all of them, macro F1 first.
        positive_shares: Share of positives of each label in the training data; filled in by ``Task.fitted``
            for ``"balanced"``.

    Returns:
        The task.

    Raises:
        RecipeError: for an option that cannot be used.

    Example:
        >>> import torch
        >>> task = multilabel("tags", ["new", "red"])
        >>> task.decode(torch.tensor([[2.0, 1.0], [-1.0, -2.0]]))[""].tolist()
        ['new|red', '']
    """
    if focal_gamma is not None:
        checks.check_number(name, "focal_gamma", focal_gamma, "None or a number of at least 0", lambda v: v >= 0)
    checks.check_list(name, "columns", columns, "a list of columns, one a label")
    classes = list(columns) if classes is None and columns else classes
    names = checks.class_names(name, "classes", classes, 1)
    if columns and names is not None and len(columns) != len(names):
        raise checks.bad_option(name, "columns", list(columns), f"one column for each of the {len(names)} labels")
    fixed = checks.fixed_weights(name, "positive_weights", positive_weights, names)
    shares = checks.check_shares(name, "positive_shares", positive_shares, names)
    options = {
        "classes": checks.plain_classes(classes),
        "columns": list(columns),
        "positive_weights": checks.plain_weights(positive_weights),
        "focal_gamma": focal_gamma,
        **checks.shared_options(name, hidden, dropout, metrics),
        "positive_shares": None if shares is None else list(shares),
    }
    balanced = _balanced(shares) if positive_weights == "balanced" and shares else None
    chosen, primary = checks.pick_metrics(name, MULTILABEL, MULTILABEL_DEFAULT, metrics)
    return Task(
        name=name,
        kind="multilabel",
        loss=MultilabelLoss(fixed or balanced, focal_gamma),
        head=checks.head_spec(UNKNOWN_WIDTH if names is None else len(names), hidden, dropout),
        metrics=chosen,
        score=logistic_scores,
        decode=DecodeLabels(names or ()),
        target=TargetSpec("labels", names, columns=tuple(columns)),
        primary=primary,
        options=options,
        refit=checks.Refit(name, options, _fill),
    )


def _balanced(shares: tuple[float, ...]) -> tuple[float, ...]:
    # A label that is always on, or never, has nothing to balance.
    return tuple((1 - share) / share if 0 < share < 1 else 1.0 for share in shares)


def _fill(name: str, options: Mapping[str, Any], targets: Tensor, weights: Tensor | None) -> Mapping[str, Any]:
    shape_fits = targets.is_floating_point() and targets.dim() == 2
    checks.check_shape(name, targets, "yes-or-no labels [rows, labels] in floating point", shape_fits)
    known, of_rows = checks.known_rows(name, targets, weights)
    _, found = checks.class_count(name, options["classes"], targets, least=1)
    checks.check_values(name, targets, (targets < 0) | (targets > 1), "0, 1 or a probability")
    if options["positive_weights"] == "balanced":
        entries = of_rows[:, None] * ~known.isnan()
        total = entries.sum(0)
        positive = (entries * known.double().nan_to_num(0.0)).sum(0)
        found["positive_shares"] = (positive / total).nan_to_num(0.0).clamp(0.0, 1.0).tolist()
    return found
