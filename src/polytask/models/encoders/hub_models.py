"""What pretrained encoders of every kind have in common: loading a model, its layers, and refusing other builds."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.data.pretrained import from_hub, quiet
from polytask.errors import RecipeError
from polytask.models.encoders.texts import Margins
from polytask.sharing.separate import keep_weights

LAYERS = ("encoder.layer", "transformer.layer", "layers", "encoder.layers")
"""Where models keep their layers."""


class HubLayer(nn.Module):
    """One layer or stage of a pretrained model, from tensor to tensor.

    Args:
        layer: The layer.
        masks: Has the attention mask of the forward at hand under ``"mask"``, if there is one; None if never.
    """

    def __init__(self, layer: nn.Module, masks: Margins | None = None):
        super().__init__()
        self.layer = layer
        self._masks = masks

    def forward(self, state: Tensor) -> Tensor:
        """What the layer makes of its state."""
        found = self.layer(state) if self._masks is None else self.layer(state, attention_mask=self._masks.get("mask"))
        after: Tensor = found[0] if isinstance(found, tuple) else found
        return after


def load_model(model: str | None, config: Mapping[str, Any] | None, file: str, attention: str | None = None) -> Any:
    """A pretrained model, or one of random weights by its configuration.

    Args:
        model: Its name or folder; None to use the configuration.
        config: The configuration, as ``plain_config`` gave it.
        file: What else has to be there, for errors.
        attention: Which attention the model is to use; None leaves it.

    Raises:
        DataError: if the model cannot be read.
        RecipeError: if neither model nor configuration is given, or both are.
        MissingExtraError: without the extra ``hub``.
    """
    if (model is None) == (config is None):
        raise RecipeError("hub needs model: its name in a hub or its folder, such as google-bert/bert-base-cased.")
    options = {} if attention is None else {"attn_implementation": attention}
    with quiet() as transformers:
        if model is None:
            known = transformers.AutoConfig.for_model(**dict(config or {}))
            return transformers.AutoModel.from_config(known, **options).float().eval()
        read = functools.partial(transformers.AutoModel.from_pretrained, dtype=torch.float32, **options)
        return keep_weights(from_hub(model, read, file)).eval()


def plain_config(loaded: Any) -> dict[str, Any]:
    """A model's configuration as plain data, from which it is built again."""
    plain: dict[str, Any] = json.loads(loaded.config.to_json_string(use_diff=False))
    # Where the model came from says nothing on another machine.
    plain.pop("_name_or_path", None)
    return plain


def layers_at(loaded: nn.Module, paths: Sequence[str], needs: Sequence[str]) -> list[nn.Module] | None:
    """A model's layers at the first of some paths that has any; None if there are none, or it lacks what it needs."""
    if not all(hasattr(loaded, name) for name in needs):
        return None
    for path in paths:
        try:
            found = loaded.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(found, nn.ModuleList):
            return list(found)
    return None


def kept(stages: nn.ModuleList, layers: int | None, model: str | None) -> nn.ModuleList:
    """The first ``layers`` stages, or all.

    Raises:
        RecipeError: for a number that the model does not have.
    """
    if layers is not None and not 1 <= layers <= len(stages):
        raise RecipeError(f"hub: layers is {layers}; '{model}' has {len(stages)}.")
    return stages[:layers]


def other_build(loaded: Any, reads: str, known: str) -> RecipeError:
    """The error for a model that is built in another way.

    Args:
        loaded: The model.
        reads: What it was to read.
        known: The builds that can.
    """
    return RecipeError(
        f"For {reads}, hub runs models that are built like {known}; this one is of the type "
        f"'{loaded.config.model_type}'. Use one of those, or give your own encoder by its import path."
    )


def takes(call: nn.Module, option: str) -> bool:
    """Whether a module's forward has an option."""
    return option in inspect.signature(call.forward).parameters


def same(found: Tensor, whole: Tensor) -> bool:
    """Whether what the parts compute is what the model computes."""
    return found.shape == whole.shape and torch.allclose(found, whole, rtol=1e-3, atol=1e-4)
