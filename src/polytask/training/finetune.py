"""Fine-tuning: parts that stay frozen, stages that thaw one by one, and learning rates by stage."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from polytask import registry
from polytask.errors import RecipeError, ShapeError, unknown
from polytask.models import MultiTaskModel
from polytask.sharing.parts import in_stages, is_staged
from polytask.training.settings import RateSettings


def matching(model: MultiTaskModel, patterns: Sequence[str]) -> dict[str, nn.Parameter]:
    """Parameters that patterns name, by their paths.

    A pattern is the path of a part or parameter, as in ``named_modules``, with or without ``sharing.`` in front; in
    it, ``*`` stands for anything.

    Raises:
        RecipeError: for a pattern that names nothing.

    Example:
        >>> import polytask as pt
        >>> from polytask.models.encoders import MLP
        >>> model = pt.MultiTaskModel(pt.sharing.Hard(MLP(3, hidden=[8, 4])), [pt.tasks.binary("up")])
        >>> list(matching(model, ["encoder.stages.0", "heads.*.bias"]))
        ['sharing.encoder.stages.0.0.weight', 'sharing.encoder.stages.0.0.bias', 'heads.up.output.bias']
    """
    found: dict[str, nn.Parameter] = {}
    for pattern in patterns:
        mine = {name: p for name, p in model.named_parameters(remove_duplicate=False) if _names(pattern, name)}
        if not mine:
            parts = [name.removeprefix("sharing.") for name, part in model.named_modules() if list(part.parameters())]
            known = [name for name in parts if name not in ("", "sharing")]
            raise RecipeError(f"training.freeze: {unknown('part', str(pattern), known)}")
        found |= mine
    return found


def _names(pattern: str, path: str) -> bool:
    short = path.removeprefix("sharing.")
    return any(fnmatch.fnmatchcase(name, end) for name in (path, short) for end in (pattern, f"{pattern}.*"))


@contextmanager
def freezing(model: MultiTaskModel, patterns: str | Sequence[str]) -> Iterator[frozenset[int]]:
    """Freeze what patterns name while a run lasts; gives the parameters' ``id``.

    Raises:
        RecipeError: for a pattern that names nothing.
    """
    named = matching(model, [patterns] if isinstance(patterns, str) else patterns).values()
    parameters = [p for p in named if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield frozenset(map(id, named))
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def encoder_stages(model: MultiTaskModel, asked: str) -> list[list[nn.Parameter]]:
    """The encoder's parameters stage by stage, the last stage first.

    Stages without parameters do not count. What the encoder has outside of its stages, such as embeddings, comes
    last, as if it were a stage below the first.

    Args:
        model: A built model.
        asked: The option that needs them, for the error.

    Raises:
        RecipeError: if the sharing has no single encoder, or it does not run in stages.
    """
    encoder = single_encoder(model, asked)
    try:
        stages = [list(stage.parameters()) for stage in reversed(list(in_stages(encoder).stages))]
    except ShapeError as error:
        raise RecipeError(f"{asked} needs the encoder's stages: {error}") from None
    inside = {id(p) for stage in stages for p in stage}
    return [part for part in (*stages, [p for p in encoder.parameters() if id(p) not in inside]) if part]


def single_encoder(model: MultiTaskModel, asked: str) -> nn.Module:
    """The encoder that all tasks run.

    Raises:
        RecipeError: if the sharing copies it.
    """
    encoder = dict(model.sharing.named_children()).get("encoder")
    if encoder is None or not _has_weights(encoder):
        name = registry.mark_of(model.sharing)
        known = name["name"] if name else type(model.sharing).__name__
        raise RecipeError(f"{asked} needs one encoder for all tasks, but the sharing '{known}' works on copies of it.")
    return encoder


def _has_weights(encoder: nn.Module) -> bool:
    """Whether its stages do, where it has stages: sharings that copy these keep a hollow encoder."""
    parts = in_stages(encoder).stages if is_staged(encoder) else [encoder]
    return any(True for part in parts for _ in part.parameters())


class Unfreezing:
    """Which of the encoder's parameters are still frozen in an epoch.

    Args:
        model: A built model.
        every: After so many epochs one more stage trains, from the last to the first; None freezes nothing.
        always: Parameters that stay frozen, by their ``id``.

    Raises:
        RecipeError: if the encoder has no stages.

    Example:
        >>> import polytask as pt
        >>> from polytask.models.encoders import MLP
        >>> model = pt.MultiTaskModel(pt.sharing.Hard(MLP(3, hidden=[8, 4])), [pt.tasks.binary("up")])
        >>> frozen = Unfreezing(model, every=2)
        >>> [len(frozen(epoch)) for epoch in (0, 1, 2, 4)]
        [4, 4, 2, 0]

    Reference:
        Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification" (ACL 2018), where it is
        called gradual unfreezing.
    """

    def __init__(self, model: MultiTaskModel, every: int | None, always: frozenset[int] = frozenset()):
        stages = [] if every is None else encoder_stages(model, "training.unfreeze_every")
        self._every = every or 1
        ids = [frozenset(map(id, stage)) for stage in stages]
        self._after = [always.union(*ids[count:]) for count in range(len(ids) + 1)]

    def __call__(self, epoch: int) -> frozenset[int]:
        """The ``id`` of what is frozen in epoch ``epoch`` (from 0)."""
        return self._after[min(epoch // self._every, len(self._after) - 1)]


def rate_factors(model: MultiTaskModel, settings: RateSettings) -> dict[int, float]:
    """What the learning rate of a parameter is multiplied by, for its ``id``; 1 where there is none.

    Raises:
        RecipeError: if the sharing has no single encoder, or ``layer_decay`` is asked of one without stages.

    Example:
        >>> import polytask as pt
        >>> from polytask.models.encoders import MLP
        >>> model = pt.MultiTaskModel(pt.sharing.Hard(MLP(3, hidden=[8, 4])), [pt.tasks.binary("up")])
        >>> sorted(set(rate_factors(model, RateSettings(encoder=0.5, heads=2.0, layer_decay=0.5)).values()))
        [0.25, 0.5, 2.0]
    """
    factors: dict[int, float] = {}
    if settings.layer_decay != 1:
        for depth, stage in enumerate(encoder_stages(model, "training.rates.layer_decay")):
            factors |= {id(p): settings.encoder * settings.layer_decay**depth for p in stage}
    elif settings.encoder != 1:
        encoder = single_encoder(model, "training.rates.encoder")
        factors = {id(p): settings.encoder for p in encoder.parameters()}
    if settings.heads != 1:
        factors |= {id(p): settings.heads for p in model.heads.parameters()}
    return factors
