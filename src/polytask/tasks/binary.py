"""Two classes, one logit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from polytask.errors import RecipeError
from polytask.tasks import options as checks
from polytask.tasks.losses import BinaryLoss
from polytask.tasks.metrics_classes import BINARY, BINARY_DEFAULT
from polytask.tasks.outputs import DecodeBinary, logistic_scores
from polytask.tasks.task import TargetSpec, Task, labelled


def binary(
    name: str,
    *,
    positive: str | int | bool | None = None,
    negative: str | int | bool | None = None,
    label_smoothing: float = 0.0,
    class_weights: checks.Weights = None,
    focal_gamma: float | None = None,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    metrics: Sequence[str] | None = None,
    positive_share: float | None = None,
) -> Task:
    r"""Two classes, one logit.

    The raw output is a logit ``[rows]``; targets are 0, 1 or a probability, and NaN where missing. With
    weights the loss of a row with target t is :math:`-w_1 t \log p - w_0 (1-t) \log(1-p)`.

    Args:
        name: The task's name.
        positive: The raw value that means 1; None takes 1, true or yes.
        negative: What predictions call the other class; only for decoding.
        label_smoothing: How much of the target is replaced by one half, 0 to below 1.
        class_weights: None, ``"balanced"`` (each class gets half of the whole weight), or two positive weights: of
            the negative and the positive class.
        focal_gamma: Exponent of the focal loss; None is plain cross-entropy.
        hidden: Widths of private layers.
        dropout: Between the private layers, 0 to below 1.
        metrics: Names of metrics, the first is the primary one; None takes all of them, AUROC first.
        positive_share: Share of positives in the training data; filled in by ``Task.fitted`` for ``"balanced"``.

    Returns:
        The task.

    Raises:
        RecipeError: for an option that cannot be used.

    Example:
        >>> import torch
        >>> task = binary("income", positive="50000+.", negative="-50000")
        >>> task.decode(torch.tensor([2.0, -1.0]))[""].tolist()
        ['50000+.', '-50000']
    """
    checks.check_smoothing_and_focus(name, label_smoothing, focal_gamma)
    if isinstance(class_weights, Mapping):
        raise checks.bad_option(name, "class_weights", class_weights, "None, 'balanced' or [of negative, of positive]")
    fixed = checks.fixed_weights(name, "class_weights", class_weights, ("negative", "positive"))
    if positive_share is not None:
        checks.check_number(name, "positive_share", positive_share, "a share from 0 to 1", lambda v: 0 <= v <= 1)
    yes, no = _text(positive), _text(negative)
    if no is not None and (yes is None or yes == no):
        raise RecipeError(f"Task '{name}': negative is '{no}' but positive is {yes!r}. Name both, and differently.")
    options = {
        "positive": yes,
        "negative": no,
        "label_smoothing": label_smoothing,
        "class_weights": checks.plain_weights(class_weights),
        "focal_gamma": focal_gamma,
        **checks.shared_options(name, hidden, dropout, metrics),
        "positive_share": positive_share,
    }
    weights = (1.0, 1.0)
    if fixed is not None:
        weights = (fixed[0], fixed[1])
    elif class_weights == "balanced" and positive_share is not None:
        weights = _balanced(positive_share)
    chosen, primary = checks.pick_metrics(name, BINARY, BINARY_DEFAULT, metrics)
    names = None if yes is None else (no if no is not None else f"not {yes}", yes)
    return Task(
        name=name,
        kind="binary",
        loss=BinaryLoss(weights, float(label_smoothing), focal_gamma),
        head=checks.head_spec(None, hidden, dropout),
        metrics=chosen,
        score=logistic_scores,
        decode=DecodeBinary(names),
        target=TargetSpec("binary", names, yes),
        primary=primary,
        options=options,
        refit=checks.Refit(name, options, _fill),
    )


def _text(value: str | int | bool | None) -> str | None:
    # A YAML true and a table's true are the same value.
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _balanced(share: float) -> tuple[float, float]:
    # A class that training never shows has no loss to weigh.
    return (1.0, 1.0) if share in (0.0, 1.0) else (0.5 / (1 - share), 0.5 / share)


def _fill(name: str, options: Mapping[str, Any], targets: Tensor, weights: Tensor | None) -> Mapping[str, Any]:
    checks.check_shape(name, targets, "one number a row", targets.dim() == 1)
    known, of_rows = checks.known_rows(name, targets, weights)
    checks.check_values(
        name,
        targets,
        (targets > 1) | (targets.isinf()) | ((targets < 0) & labelled(targets)),
        "0, 1 or a probability",
    )
    if options["class_weights"] != "balanced":
        return {}
    return {"positive_share": float((of_rows * known.double()).sum() / of_rows.sum())}
