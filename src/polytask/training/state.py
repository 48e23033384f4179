"""Checkpoints: nested state as one safetensors file, written atomically, and nothing pickled."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polytask.errors import TrainingError
from polytask.files import replacing

CHECKPOINT = "checkpoints/last.safetensors"
"""Where a run's latest checkpoint lies below its folder."""


def flatten(value: Any, tensors: dict[str, Tensor], path: str = "state") -> Any:
    """Plain JSON data for ``value``; its tensors go into ``tensors`` under their path.

    Mappings with keys that are not text (an optimizer's state) and tuples survive the round trip.
    """
    if isinstance(value, Tensor):
        # A clone: safetensors refuses tensors that share memory, and a checkpoint has to be a snapshot.
        tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        return {"__tensor__": path}
    if isinstance(value, Mapping):
        items = [[key, flatten(item, tensors, f"{path}.{key}")] for key, item in value.items()]
        return dict(items) if all(isinstance(key, str) for key, _ in items) else {"__items__": items}
    if isinstance(value, tuple):
        return {"__tuple__": [flatten(item, tensors, f"{path}.{i}") for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [flatten(item, tensors, f"{path}.{i}") for i, item in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"A checkpoint cannot hold {type(value).__name__} at '{path}'; use plain data and tensors.")


def unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What ``flatten`` was given."""
    if isinstance(value, list):
        return [unflatten(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "__tensor__" in value:
        return tensors[value["__tensor__"]]
    if "__tuple__" in value:
        return tuple(unflatten(item, tensors) for item in value["__tuple__"])
    if "__items__" in value:
        return {key: unflatten(item, tensors) for key, item in value["__items__"]}
    return {key: unflatten(item, tensors) for key, item in value.items()}


def save_state(state: Mapping[str, Any], path: Path, *, lasting: bool = True) -> None:
    """Write nested state to one file; a reader sees the old file or the new one, never a half.

    Args:
        state: Plain data and tensors.
        path: The file.
        lasting: Whether it has to outlast a power cut.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    plain = json.dumps(flatten(state, tensors))
    with replacing(path, lasting=lasting) as unfinished:
        save_file(tensors, unfinished, metadata={"state": plain})


def load_state(path: Path) -> dict[str, Any]:
    """Read what ``save_state`` wrote.

    Raises:
        TrainingError: if there is no such file or it is not a checkpoint of polytask.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise TrainingError(f"There is no checkpoint at '{path}'. The run may have ended before its first one.")
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            plain = (file.metadata() or {})["state"]
    except (SafetensorError, KeyError) as error:
        raise TrainingError(f"'{path}' is not a checkpoint of polytask: {error}.") from error
    state: dict[str, Any] = unflatten(json.loads(plain), tensors)
    return state


def random_state() -> dict[str, Any]:
    """The states of the global generators of torch, numpy and Python on this process."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002 - user code may use it
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what ``random_state`` returned."""
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002 - user code may use it
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
