"""Columns of sounds: WAV files or arrays of samples, as a pretrained model's extractor gives them."""

from __future__ import annotations

import functools
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
    spectra = made.model_input_names[0] == "input_features" or hasattr(made, "num_mel_bins")
    padding = {} if hasattr(made, "num_mel_bins") else {"padding": "max_length" if spectra else True}
    found = made(sounds, sampling_rate=rate, return_tensors="np", return_attention_mask=True, **padding)
    values = np.asarray(found[made.model_input_names[0]], dtype=np.float32)
    if made.model_input_names[0] == "input_features":
        values = values.swapaxes(1, 2)  # Whisper's spectra have the bands first
    mask = found.get("attention_mask")
    if mask is None:
        return values, np.full(len(values), values.shape[1], dtype=np.int64)
    return values, np.asarray(mask).sum(1).astype(np.int64)


def _read(series: pl.Series, rate: int) -> list[tuple[Samples, int]]:
    """Samples from -1 to 1 and their rate, of every row."""
    if isinstance(series.dtype, pl.List | pl.Array):
        rows = [None if row is None else np.asarray(row, dtype=np.float32) for row in series.to_list()]
        found: list[tuple[Samples, int] | str] = ["there is no sound" if row is None else (row, rate) for row in rows]
    elif series.dtype in (pl.String, pl.Categorical, pl.Enum):
        found = [_read_file(source) for source in series.cast(pl.String)]
    elif series.dtype == pl.Binary:
        found = [_read_file(source) for source in series]
    else:
        raise DataError(
            f"Column '{series.name}' holds {series.dtype}; a column of sounds holds paths or the bytes of WAV files, "
            "or lists of samples."
        )
    good = []
    for number, one in enumerate(found, start=1):
        problem = one if isinstance(one, str) else _fault(one[0])
        if problem or isinstance(one, str):
            raise DataError(f"Record {number}, column '{series.name}': {problem}.")
        good.append(one)
    return good


def _fault(samples: Samples) -> str:
    if samples.ndim != 1 or len(samples) == 0:
        return f"a sound is a list of samples, one or more; the array has the shape {list(samples.shape)}"
    return "" if np.isfinite(samples).all() else "the sound holds NaN or infinite samples"


def _read_file(source: str | bytes | None) -> tuple[Samples, int] | str:
    """Samples and rate of a WAV file, or what is wrong with it."""
    from scipy.io import wavfile

    if source is None:
        return "there is no sound"
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
    return np.asarray(values.mean(1) if values.ndim == 2 else values, dtype=np.float32), int(rate)


def _at_rate(samples: Samples, rate: int, wanted: int) -> Samples:
    """A sound with another number of samples a second, by polyphase filtering."""
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    common = math.gcd(rate, wanted)
    return np.asarray(resample_poly(samples, wanted // common, rate // common), dtype=np.float32)
