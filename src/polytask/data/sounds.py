"""Columns of sounds: WAV files or arrays of samples, as a pretrained model's extractor gives them."""

from __future__ import annotations

import functools
import inspect
import io
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.data.images import unreadable
from polytask.data.pretrained import quiet
from polytask.data.schema import SoundColumn
from polytask.errors import DataError

SUFFIX = ".wav"
"""Ending by which text is taken for paths of sounds."""
AT_ONCE = 64
"""Sounds that an extractor is given at a time: the spectra in between are larger than what is kept."""

Samples = NDArray[np.float32]


def encode_sounds(series: pl.Series, column: SoundColumn) -> dict[str, Tensor]:
    """The inputs of sounds.

    Args:
        series: Paths or the bytes of WAV files, or lists of samples.
        column: What training fixed.

    Returns:
        ``"sound"``, float32: samples ``[rows, samples]``, padded with 0, or spectra ``[rows, frames, bands]`` of one
        length; and ``"heard"`` int64 ``[rows]``: how many samples or frames are the row's own.

    Raises:
        DataError: if a sound is missing, empty or cannot be read; the message names the record.

    Warns:
        UserWarning: if sounds are longer than what is read, with their number.
    """
    made = _extractor(column.extractor)
    rate = int(made.sampling_rate)
    sounds = [_at_rate(*found, rate) for found in _read(series, column.rate or rate)]
    if column.seconds is not None:
        limit = max(1, round(column.seconds * rate))
        cut = sum(len(sound) > limit for sound in sounds)
        if cut:
            warnings.warn(
                f"Column '{column.name}': {cut:,} of {len(sounds):,} sounds are longer than {column.seconds:g} "
                "seconds; what lies beyond is not read. Set seconds: ... of the column to read more.",
                stacklevel=2,
            )
        sounds = [sound[:limit] for sound in sounds]
    parts = [_extracted(made, sounds[at : at + AT_ONCE], rate) for at in range(0, len(sounds), AT_ONCE)]
    heard = np.concatenate([heard for _, heard in parts])
    width = max(part.shape[1] for part, _ in parts)
    sound = np.zeros((len(sounds), width, *parts[0][0].shape[2:]), dtype=np.float32)
    start = 0
    for part, _ in parts:
        sound[start : start + len(part), : part.shape[1]] = part
        start += len(part)
    return {"sound": torch.from_numpy(sound), "heard": torch.from_numpy(heard)}


@functools.lru_cache(maxsize=8)
def _extractor(definition: str) -> Any:
    plain = json.loads(definition)
    name = str(plain.get("feature_extractor_type"))
    with quiet() as transformers:
        kind = getattr(transformers, name, None)
        if kind is None or not hasattr(kind, "from_dict"):
            raise DataError(f"'{name}' is no feature extractor of transformers {transformers.__version__}.")
        return kind.from_dict(plain)


def _extracted(made: Any, sounds: list[Samples], rate: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The inputs of some sounds, padded, and how far each one reaches."""
    name = made.model_input_names[0]
    # Extractors of spectra pad to the length that their model reads, unasked; those of waveforms have to be told.
    unpadded = name == "input_values" and "padding" in inspect.signature(made.__call__).parameters
    told = {"padding": True} if unpadded else {}
    found = made(sounds, sampling_rate=rate, return_tensors="np", return_attention_mask=True, **told)
    values = np.asarray(found[name], dtype=np.float32)
    if name == "input_features":
        values = values.swapaxes(1, 2)  # Whisper's spectra have the bands first
    mask = found.get("attention_mask")
    heard = np.full(len(values), values.shape[1]) if mask is None else np.asarray(mask).sum(1)
    return values, heard.astype(np.int64)


def _read(series: pl.Series, rate: int) -> list[tuple[Samples, int]]:
    """Samples from -1 to 1 and their rate, of every row."""
    kind = series.dtype
    if isinstance(kind, pl.List | pl.Array) and kind.inner.is_numeric():
        found = [_checked(row.to_numpy(), rate) if row is not None else NOTHING for row in series]
    elif kind in (pl.String, pl.Categorical, pl.Enum):
        found = [_read_file(source) for source in series.cast(pl.String)]
    elif kind == pl.Binary:
        found = [_read_file(source) for source in series]
    else:
        raise DataError(
            f"Column '{series.name}' holds {kind}; a column of sounds holds paths or the bytes of WAV files, or "
            "lists of samples."
        )
    bad = {row: what for row, what in enumerate(found) if isinstance(what, str)}
    if bad:
        raise unreadable(series, bad)
    return [one for one in found if not isinstance(one, str)]


NOTHING = "there is no sound"


def _checked(values: NDArray[Any], rate: int) -> tuple[Samples, int] | str:
    samples = np.asarray(values, dtype=np.float32)
    if len(samples) == 0:
        return "the sound is empty"
    return (samples, rate) if np.isfinite(samples).all() else "the sound holds NaN or infinite samples"


def _read_file(source: str | bytes | None) -> tuple[Samples, int] | str:
    """Samples and rate of a WAV file, or what is wrong with it."""
    from scipy.io import wavfile

    if source is None:
        return NOTHING
    if isinstance(source, str) and not Path(source).is_file():
        return f"there is no sound file '{source}'"
    name = f"'{source}'" if isinstance(source, str) else "what it holds"
    try:
        with warnings.catch_warnings():
            # It warns of parts of the file that are no sound, such as titles.
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            rate, values = wavfile.read(source if isinstance(source, str) else io.BytesIO(source))
    except (ValueError, OSError, EOFError) as error:
        return f"{name} cannot be read as a WAV file ({str(error).rstrip('.')}); other files have to be converted"
    if values.dtype == np.uint8:
        values = (values.astype(np.float32) - 128) / 128
    elif values.dtype.kind == "i":
        values = values.astype(np.float32) / -float(np.iinfo(values.dtype).min)
    # Of several channels the mean is heard.
    return _checked(values.mean(1) if values.ndim == 2 else values, int(rate))


def _at_rate(samples: Samples, rate: int, wanted: int) -> Samples:
    """A sound with another number of samples a second, by polyphase filtering."""
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    common = math.gcd(rate, wanted)
    return np.asarray(resample_poly(samples, wanted // common, rate // common), dtype=np.float32)
