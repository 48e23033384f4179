"""Writing and reading a bundle: safetensors weights, and JSON that says how to build the model again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import polytask
from polytask import registry
from polytask.data.batch import map_tensors
from polytask.data.schema import TableSchema
from polytask.errors import RecipeError, suggestion
from polytask.evaluation import DecisionSettings, IndexSettings
from polytask.files import replacing
from polytask.models import MultiTaskModel

FORMAT = 1
SPEC = "bundle.json"
WEIGHTS = "weights.safetensors"


def ref(path: str, **options: Any) -> nn.Module:
    """Build your own encoder so that a bundle knows how to build it again.

    Args:
        path: Import path such as ``"mypackage.models:Encoder"``.
        options: What its constructor takes: numbers, text, lists and mappings only.

    Raises:
        RecipeError: if the path cannot be imported, or an option is unknown or not plain data.

    Example:
        >>> encoder = ref("torch.nn:Linear", in_features=3, out_features=2)
        >>> encoder(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """
    factory = registry.resolve(path)
    registry.check_options(f"'{path}'", factory, options, {})
    try:
        json.dumps(options)
    except TypeError as error:
        raise RecipeError(f"ref('{path}'): options have to be plain data (numbers, text, lists): {error}.") from None
    module: nn.Module = factory(**options)
    return registry.mark(module, path, options)


def write_bundle(
    model: MultiTaskModel,
    folder: Path,
    *,
    example: Any,
    schema: TableSchema | None = None,
    recipe: Mapping[str, Any] | None = None,
    index: IndexSettings | None = None,
    decision: DecisionSettings | None = None,
) -> None:
    """Write a bundle; a reader sees the old one or the new one, never a half.

    Args:
        model: A built model.
        folder: Where the bundle goes; an old one there is replaced.
        example: Inputs of a row or two; only their shapes and types are kept.
        schema: How a table's columns become inputs, if they came from a table.
        recipe: The resolved recipe, for the record.
        index: The composite index, or None.
        decision: The decision rule, or None.
    """
    from safetensors.torch import save_file

    spec = {
        "format": FORMAT,
        "polytask": polytask.__version__,
        "tasks": [
            {"name": task.name, "kind": task.kind, "options": dict(task.options)} for task in model.tasks.values()
        ],
        "encoder": registry.mark_of(model.sharing.encoder),
        "sharing": registry.mark_of(model.sharing),
        "inputs": _shapes(example),
        "schema": schema.to_dict() if schema else None,
        "recipe": recipe,
        "index": asdict(index) if index else None,
        "decision": asdict(decision) if decision else None,
    }
    weights = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in model.state_dict().items()}
    with replacing(folder) as unfinished:
        unfinished.mkdir()
        save_file(weights, unfinished / WEIGHTS)
        (unfinished / SPEC).write_text(json.dumps(spec, indent=1, ensure_ascii=False), encoding="utf-8")


def _shapes(example: Any) -> Any:
    return map_tensors(example, lambda t: {"shape": list(t.shape[1:]), "dtype": str(t.dtype).removeprefix("torch.")})  # type: ignore[arg-type,return-value]


def _zeros(shapes: Any) -> Any:
    if isinstance(shapes, Mapping) and set(shapes) == {"shape", "dtype"}:
        return torch.zeros([2, *shapes["shape"]], dtype=getattr(torch, shapes["dtype"]))
    if isinstance(shapes, Mapping):
        return {key: _zeros(value) for key, value in shapes.items()}
    return [_zeros(value) for value in shapes]


def read_spec(folder: Path) -> dict[str, Any]:
    """The JSON part of a bundle.

    Raises:
        RecipeError: if there is no bundle, or it is of a newer format.
    """
    if not (folder / SPEC).exists():
        inner = folder / "bundle"
        hint = f" Did you mean '{inner}'?" if (inner / SPEC).exists() else ""
        siblings = [] if hint or not folder.parent.exists() else [p.name for p in folder.parent.iterdir()]
        raise RecipeError(f"There is no bundle at '{folder}'.{hint or suggestion(folder.name, siblings)}")
    spec: dict[str, Any] = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    if spec["format"] > FORMAT:
        raise RecipeError(f"The bundle '{folder}' has format {spec['format']}; this polytask reads up to {FORMAT}.")
    return spec


def read_model(folder: Path, spec: Mapping[str, Any], encoder: nn.Module | None = None) -> MultiTaskModel:
    """Build the model of a bundle and load its weights.

    Raises:
        RecipeError: if the bundle does not know how to build the encoder and none is given.
    """
    from safetensors.torch import load_file

    if encoder is None:
        if spec["encoder"] is None:
            raise RecipeError(
                f"The bundle '{folder}' does not know how to build its encoder, which was made outside of polytask. "
                "Pass polytask.load(path, encoder=...), or train with polytask.ref('package.module:Class', ...)."
            )
        encoder = build_encoder(spec["encoder"], spec["schema"])
    sharing = registry.build("sharings", spec["sharing"]["name"], spec["sharing"]["options"], encoder=encoder)
    tasks = [registry.build("tasks", t["kind"], t["options"], name=t["name"]) for t in spec["tasks"]]
    model = MultiTaskModel(sharing, tasks, example=_zeros(spec["inputs"]))
    weights: dict[str, Tensor] = load_file(folder / WEIGHTS)
    model.load_state_dict(weights)
    return model.eval()


def build_encoder(mark: Mapping[str, Any], schema: Mapping[str, Any] | None) -> nn.Module:
    """The encoder that a bundle names; one over a table gets the table's schema."""
    given = {} if schema is None else {"schema": TableSchema.from_dict(schema)}
    module: nn.Module = registry.build("encoders", mark["name"], mark["options"], **given)
    return registry.mark(module, mark["name"], mark["options"])
