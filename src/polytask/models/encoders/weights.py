"""Published weights from files on this machine, and images as the networks want them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polytask.errors import RecipeError, listed, suggestion
from polytask.sharing.separate import keep_weights
from polytask.tasks.losses import constant

MEAN = (0.485, 0.456, 0.406)
"""Mean of the channels of ImageNet's training images, from 0 to 1, as published weights expect them."""
DEVIATION = (0.229, 0.224, 0.225)
"""Deviation of the channels of ImageNet's training images."""


def pixels(images: Tensor) -> Tensor:
    """Images of bytes as floats from 0 to 1; floats as they are.

    Example:
        >>> pixels(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([0., 1.])
    """
    return images.float() / 255 if images.dtype == torch.uint8 else images


class Normalise(nn.Module):
    """Channels minus ImageNet's means, over its deviations. It has no parameters and leaves no names in weights."""

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[rows, 3, h, w]`` from 0 to 1, standardised."""
        mean, deviation = (constant(values, images).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
        return (images - mean) / deviation


def load_weights(module: nn.Module, path: str | Path, skip: Sequence[str] = ()) -> None:
    """Load a file of weights into a module; every name and shape has to fit. Copies of the module start from them.

    Args:
        module: What gets the weights.
        path: A ``.safetensors`` file, or a ``.pth`` or ``.pt`` file with tensors by name. Nothing else in it is
            unpickled.
        skip: Beginnings of names that are left out, such as ``"fc."`` of a last layer.

    Raises:
        RecipeError: if there is no such file, it holds something else, or names or shapes do not fit.
    """
    path = Path(path)
    given = {name: t for name, t in _read(path).items() if not name.startswith(tuple(skip))}
    own = module.state_dict()
    # A count of batches came later than some published weights, and nothing reads it.
    missing = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
    strange = [name for name in given if name not in own]
    if missing or strange:
        parts = [f"it lacks {listed(missing, 5)}"] if missing else []
        parts += [f"it has {listed(strange, 5)}, which the network has not"] if strange else []
        raise RecipeError(f"The weights '{path}' are not those of this network: {' and '.join(parts)}.")
    for name, tensor in given.items():
        if tensor.shape != own[name].shape:
            raise RecipeError(
                f"The weights '{path}' do not fit: {name} is {list(tensor.shape)} there and {list(own[name].shape)} in "
                "the network. Use the options that the weights were made with (in_channels, small_images)."
            )
    module.load_state_dict(given, strict=False)
    keep_weights(module)


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise RecipeError(f"There are no weights at '{path}'.{suggestion(path.name, near)}")
    wanted = "a .safetensors file, or a .pth file with tensors by name"
    found: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise RecipeError(f"The weights '{path}' cannot be read: {first} Use {wanted}.") from None
    except Exception as error:
        # safetensors has an error class of its own, which is no ValueError.
        raise RecipeError(f"The weights '{path}' cannot be read: {error}. Use {wanted}.") from None
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise RecipeError(f"The weights '{path}' hold {type(found).__name__}, not tensors by name. Use {wanted}.")
    return found
