"""One of several classes, one logit each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polytask.tasks import options as checks
from polytask.tasks.losses import MulticlassLoss
from polytask.tasks.metrics_classes import MULTICLASS, MULTICLASS_DEFAULT
from polytask.tasks.outputs import DecodeClasses, softmax_scores
from polytask.tasks.task import UNKNOWN_WIDTH, TargetSpec, Task, labelled


def multiclass(
    name: str,
    classes: int | Sequence[str] | None = None,
    *,
    label_smoothing: float = 0.0,
    class_weights: checks.Weights = None,
    focal_gamma: float | None = None,
    soft_labels: bool | Sequence[str] = False,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    metrics: Sequence[str] | None = None,
    class_shares: Sequence[float] | None = None,
) -> Task:
    r"""One of several classes, one logit each.

    The raw output is ``[rows, k]``; targets are class numbers ``[rows]``, negative where missing, or soft
    labels ``[rows, k]`` that add up to 1, all NaN where missing. With p the softmax and q the (smoothed)
    target, a row's loss is :math:`-\sum_c w_c q_c (1-p_c)^\gamma \log p_c`. Metrics other than the log loss
    read soft labels as their most probable class.

    Args:
        name: The task's name.
        classes: How many, or their names in order; None until the training data show them.
        label_smoothing: How much of the target is spread over all classes, 0 to below 1.
        class_weights: None, ``"balanced"`` (each class gets the same whole weight), positive weights in order, or
            a mapping from class to weight.
        focal_gamma: Exponent of the focal loss; None is plain cross-entropy.
        soft_labels: True if targets are distributions, or the table columns that hold them, one a class.
        hidden: Widths of private layers.
        dropout: Between the private layers, 0 to below 1.
        metrics: Names of metrics, the first is the primary one; None takes all but the top-k ones.
        class_shares: Share of each class in the training data; filled in by ``Task.fitted`` for ``"balanced"``.

    Returns:
        The task.

    Raises:
        RecipeError: for an option that cannot be used.

    Example:
        >>> import torch
        >>> task = multiclass("kind", ["cat", "dog"])
        >>> task.decode(torch.tensor([[0.0, 3.0]]))[""].tolist()
        ['dog']
    """
    checks.check_smoothing_and_focus(name, label_smoothing, focal_gamma)
    columns = _columns(name, soft_labels)
    classes = list(columns) if classes is None and columns else classes
    names = checks.class_names(name, "classes", classes, 2)
    if columns and names is not None and len(columns) != len(names):
        raise checks.bad_option(name, "soft_labels", list(columns), f"one column for each of the {len(names)} classes")
    fixed = checks.fixed_weights(name, "class_weights", class_weights, names)
    shares = checks.check_shares(name, "class_shares", class_shares, names)
    options = {
        "classes": checks.plain_classes(classes),
        "label_smoothing": label_smoothing,
        "class_weights": checks.plain_weights(class_weights),
        "focal_gamma": focal_gamma,
        "soft_labels": soft_labels if isinstance(soft_labels, bool) else list(columns),
        **checks.shared_options(name, hidden, dropout, metrics),
        "class_shares": None if shares is None else list(shares),
    }
    balanced = checks.balanced_weights(shares) if class_weights == "balanced" and shares else None
    chosen, primary = checks.pick_metrics(name, MULTICLASS, MULTICLASS_DEFAULT, metrics)
    return Task(
        name=name,
        kind="multiclass",
        loss=MulticlassLoss(fixed or balanced, float(label_smoothing), focal_gamma),
        head=checks.head_spec(UNKNOWN_WIDTH if names is None else len(names), hidden, dropout),
        metrics=chosen,
        score=softmax_scores,
        decode=DecodeClasses(None if isinstance(classes, int) else names),
        target=TargetSpec("distribution" if soft_labels else "class", names, columns=columns),
        primary=primary,
        options=options,
        refit=checks.Refit(name, options, _fill),
    )


def _columns(name: str, soft_labels: bool | Sequence[str]) -> tuple[str, ...]:
    if isinstance(soft_labels, bool):
        return ()
    wanted = "True, False or a list of two or more columns"
    checks.check_list(name, "soft_labels", soft_labels, wanted)
    if len(soft_labels) < 2:
        raise checks.bad_option(name, "soft_labels", soft_labels, wanted)
    return tuple(str(column) for column in soft_labels)


def _fill(name: str, options: Mapping[str, Any], targets: Tensor, weights: Tensor | None) -> Mapping[str, Any]:
    if options["soft_labels"]:
        shape_fits = targets.is_floating_point() and targets.dim() == 2
        checks.check_shape(name, targets, "distributions [rows, classes] in floating point", shape_fits)
    else:
        checks.check_shape(
            name, targets, "class numbers [rows] as integers", checks.is_integer(targets) and targets.dim() == 1
        )
    known, of_rows = checks.known_rows(name, targets, weights)
    count, found = checks.class_count(name, options["classes"], targets if options["soft_labels"] else known)
    if options["soft_labels"]:
        _check_distributions(name, targets)
        totals = (of_rows[:, None] * known.double()).sum(0)
    else:
        checks.check_values(name, targets, targets >= count, f"a class number from 0 to {count - 1}")
        totals = torch.bincount(known.long(), of_rows, count)
    if options["class_weights"] == "balanced":
        found["class_shares"] = (totals / totals.sum()).tolist()
    return found


def _check_distributions(name: str, targets: Tensor) -> None:
    known = labelled(targets)
    checks.check_values(name, targets, known[:, None] & ~(targets >= 0), "a share of at least 0")
    total = targets.double().sum(1)
    # Shares written with three decimals add up to 1 within a thousandth for each class.
    off = known & ((total - 1).abs() > 1e-3 * targets.shape[1])
    checks.check_values(name, total, off, "soft labels that add up to 1")
