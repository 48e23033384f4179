"""One tag for every word of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from polytask.errors import RecipeError, ShapeError, listed
from polytask.tasks import options as checks
from polytask.tasks.crf import EXTRA, best_path, log_partition, split_raw
from polytask.tasks.losses import upcast
from polytask.tasks.metrics_tags import tag_metrics
from polytask.tasks.outputs import Columns, value_scores
from polytask.tasks.spans import SCHEMES, TagSet
from polytask.tasks.task import UNKNOWN_WIDTH, TargetSpec, Task


@dataclass(frozen=True)
class TagLoss:
    """The sum over a row's tagged words of the cross-entropy of their tags.

    Example:
        >>> raw = torch.zeros(1, 3, 4).masked_fill(torch.tensor([[[False], [False], [True]]]), float("nan"))
        >>> TagLoss()(raw, torch.tensor([[2, 0, -1]]))
        tensor([2.7726])
    """

    def __call__(self, raw: Tensor, target: Tensor) -> Tensor:
        """Losses ``[rows]`` of logits ``[rows, width, k]`` and tags ``[rows, width]``, -1 where there is none."""
        raw = upcast(raw)
        target = _as_wide(target, raw.shape[1])
        # Filled before the loss: the outputs of places that a row does not have are NaN. To select the others would
        # make the host wait for the device.
        filled = raw.masked_fill((target < 0).unsqueeze(2), 0.0).flatten(0, 1)
        losses = functional.cross_entropy(filled, target.flatten(), ignore_index=-1, reduction="none")
        return losses.view_as(target).sum(1)


@dataclass(frozen=True)
class ChainLoss:
    r"""Negative log-likelihood of a row's tags in a linear chain: :math:`\log Z - \log Z_{tags}`.

    :math:`\log Z_{tags}` sums over the paths through the given tags; words without a tag are summed over, so a row
    may lack some.

    Reference:
        Lafferty, McCallum and Pereira, Conditional random fields (2001), section 3.
    """

    def __call__(self, raw: Tensor, target: Tensor) -> Tensor:
        """Losses ``[rows]`` of raw outputs ``[rows, k + 2 + width, k]`` and tags ``[rows, width]``."""
        scores, transitions = split_raw(upcast(raw))
        target = _as_wide(target, scores.shape[1])
        present = ~scores.isnan().any(2)
        scores = scores.masked_fill(~present.unsqueeze(2), 0.0)
        others = (target >= 0).unsqueeze(2) & (target.unsqueeze(2) != torch.arange(scores.shape[2], device=raw.device))
        given = scores.masked_fill(others, float("-inf"))
        return log_partition(scores, transitions, present) - log_partition(given, transitions, present)


def count_tags(target: Tensor) -> Tensor:
    """Words with a tag, ``[rows]``.

    Example:
        >>> count_tags(torch.tensor([[3, -1, 0], [-1, -1, -1]]))
        tensor([2, 0])
    """
    return (target >= 0).sum(1)


@dataclass(frozen=True)
class BestTags:
    """The predicted tag of every word.

    Args:
        tags: Their names.
        chain: Whether raw outputs have transitions, so that the best path counts.
        constrained: Whether only paths that the scheme allows count.
    """

    tags: TagSet
    chain: bool
    constrained: bool

    def __call__(self, raw: Tensor) -> Tensor:
        """Numbers of tags ``[rows, width]`` in floating point, NaN where a row has no word."""
        raw = upcast(raw)
        scores, transitions = split_raw(raw) if self.chain else (raw, _none(raw))
        present = ~scores.isnan().any(2)
        if not self.chain and not self.constrained:
            found = scores.nan_to_num().argmax(2)
        else:
            filled = scores.log_softmax(2) if not self.chain else scores
            filled = filled.masked_fill(~present.unsqueeze(2), 0.0)
            if self.constrained:
                transitions = transitions.masked_fill(~self._allowed(raw.device), float("-inf"))
            found = best_path(filled, transitions, present)
        return found.to(scores.dtype).masked_fill(~present, float("nan"))

    def _allowed(self, device: torch.device) -> Tensor:
        follows = self.tags.follows
        rows = np.concatenate([follows[:-1, :-1], follows[-1:, :-1], follows[:-1, -1:].T])
        return torch.from_numpy(rows).to(device)


@dataclass(frozen=True)
class DecodeTags:
    """The tags of a row's words, with a space between them as in a table's column.

    Args:
        names: Of the tags.
    """

    names: tuple[str, ...]

    def __call__(self, kept: Tensor) -> Columns:
        """Columns of what ``BestTags`` kept."""
        rows = [[self.names[int(tag)] for tag in row[~np.isnan(row)]] for row in value_scores(kept)]
        return {"": np.array([" ".join(row) for row in rows], dtype=object)}


def tagging(
    name: str,
    classes: int | Sequence[str] | None = None,
    *,
    scheme: str = "bio",
    crf: bool = False,
    constrained: bool = False,
    repair: bool = False,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    metrics: Sequence[str] | None = None,
) -> Task:
    """One tag for every word of a text: names and slots, phrases, parts of speech.

    The raw output is ``[rows, width, k]``, with transition scores before it for ``crf``; targets are tag numbers
    ``[rows, width]``, -1 where a word has none. The loss is the mean over all tagged words of a step, so long
    texts count more. It is the cross-entropy of each word, or with ``crf`` the negative log-likelihood of the row's
    tags divided by their number.

    With a scheme, precision, recall and F1 are those of entities, which are right only if bounds and type are. They
    count as the script of CoNLL-2003 (and seqeval's default) does: an I without a B begins an entity too.
    ``strict_f1`` takes only entities that the scheme allows. Types count that occur in the truth or the prediction,
    with 0 for what is undefined.

    Args:
        name: The task's name.
        classes: Names of the tags in order; None until the training data show them.
        scheme: ``"bio"``, ``"bioes"``, or ``"none"`` for tags that make no entities.
        crf: Whether to learn which tag follows which (a linear-chain conditional random field).
        constrained: Whether predictions keep to the scheme.
        repair: Whether tags that break the scheme are written anew; else they are an error.
        hidden: Widths of private layers.
        dropout: Between the private layers, or on the features where there are none; 0 to below 1.
        metrics: Names of metrics, the first is the primary one; None takes all.

    Returns:
        The task.

    Raises:
        RecipeError: for an option that cannot be used, or tags that the scheme does not have.

    Example:
        >>> task = tagging("names", ["B-LOC", "I-LOC", "O"])
        >>> raw = torch.tensor([[[3.0, 0.0, 1.0], [0.0, 2.0, 1.0], [0.0, 1.0, 9.0]]])
        >>> task.decode(task.kept(raw))[""].tolist()
        ['B-LOC I-LOC O']
    """
    checks.check_choice(name, "scheme", scheme, SCHEMES)
    names = checks.class_names(name, "classes", classes, 2)
    for option, on in (("constrained", constrained), ("repair", repair)):
        if on and scheme == "none":
            raise checks.bad_option(name, option, on, "it with a scheme; scheme: none allows every order of tags")
    tags = TagSet(names or (), scheme)
    if tags.bad_names():
        raise RecipeError(
            f"Task '{name}': the scheme '{scheme}' has no tags such as: {listed(tags.bad_names(), 8)}. They are O, or "
            "a prefix and a type such as B-LOC. Use scheme: none for tags that make no entities."
        )
    options = {
        "classes": checks.plain_classes(classes),
        "scheme": scheme,
        "crf": crf,
        "constrained": constrained,
        "repair": repair,
        **checks.shared_options(name, hidden, dropout, metrics),
    }
    known = tag_metrics(tags)
    chosen, primary = checks.pick_metrics(name, known, tuple(known), metrics)
    head = checks.head_spec(UNKNOWN_WIDTH if names is None else len(names), hidden, dropout)
    return Task(
        name=name,
        kind="tagging",
        loss=ChainLoss() if crf else TagLoss(),
        head=replace(head, form="chain" if crf else "tokens"),
        metrics=chosen,
        score=value_scores,
        decode=DecodeTags(names or ()),
        target=TargetSpec("tags", names, scheme=scheme, repair=repair),
        primary=primary,
        options=options,
        refit=checks.Refit(name, options, _fill),
        units=count_tags,
        keep=BestTags(tags, crf, constrained),
    )


def _none(raw: Tensor) -> Tensor:
    count = raw.shape[-1]
    return raw.new_zeros(len(raw), count + EXTRA, count)


def _as_wide(target: Tensor, width: int) -> Tensor:
    """Targets of another width, which a batch of rows that all lack their last tags has."""
    if target.shape[1] > width:
        raise ShapeError(f"There are tags for {target.shape[1]} words, but the text has {width}. Give one tag a word.")
    return functional.pad(target, (0, width - target.shape[1]), value=-1)


def _fill(name: str, options: Mapping[str, Any], targets: Tensor, weights: Tensor | None) -> Mapping[str, Any]:
    shape_fits = checks.is_integer(targets) and targets.dim() == 2
    checks.check_shape(name, targets, "tag numbers [rows, words] of an integer type", shape_fits)
    known, _ = checks.known_rows(name, targets, weights)
    seen = int(known.max()) + 1
    if options["classes"] is None:
        return {"classes": seen}
    count = options["classes"] if isinstance(options["classes"], int) else len(options["classes"])
    checks.check_values(name, targets, targets >= count, f"a tag number below {count}")
    return {}
