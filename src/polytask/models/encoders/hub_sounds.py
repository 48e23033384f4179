"""Pretrained sound encoders: transformers over waveforms, and over spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask import registry
from polytask.data.pretrained import PROCESSOR
from polytask.data.ragged import is_sound
from polytask.errors import DataError, RecipeError
from polytask.models.encoders.hub_models import (
    LAYERS,
    HubLayer,
    kept,
    layers_at,
    load_model,
    other_build,
    plain_config,
    same,
)
from polytask.models.encoders.staged import Staged
from polytask.models.encoders.texts import Margins, check_pool, pooled
from polytask.sharing.layers import ANY

KNOWN = "Wav2Vec2, HuBERT, Whisper or AST"


def hub_sounds(model: str | None, layers: int | None, pool: str | None, config: Mapping[str, Any] | None) -> HubSounds:
    """A pretrained sound encoder; see ``hub`` for the arguments.

    Raises:
        DataError: if the model cannot be read.
        RecipeError: for a model of another build, or a wrong option.
    """
    loaded = load_model(model, config, PROCESSOR)
    # Of a model with a decoder the encoder is used.
    whole = loaded.encoder if hasattr(loaded, "decoder") else loaded
    for build in (Waves, Bands, SpectrumPatches):
        parts = build.parts(whole)
        if parts is not None:
            made = build(whole, parts, model, layers, pool)
            options = {"config": plain_config(loaded), "layers": layers, "pool": made.pool}
            return registry.mark(made, "hub", options)
    raise _other_build(loaded)


def _other_build(loaded: Any) -> RecipeError:
    return other_build(loaded, "sounds", KNOWN)


class HubSounds(Staged):
    """What pretrained sound encoders have in common.

    The features are ``[rows, 1 + frames, d]``: of the sound as a whole, then of its frames; zeros where a sound has
    ended.

    Args:
        loaded: The model.
        layers: Its layers.
        model: Its name, for errors.
        keep: Layers that are kept.
        pool: ``"mean"`` or ``"max"`` over frames, or ``"first"`` for the tokens that stand for the whole.
    """

    pools: tuple[str, ...] = ("mean", "max")

    def __init__(self, loaded: Any, layers: Sequence[nn.Module], model: str | None, keep: int | None, pool: str | None):
        super().__init__()
        self.pool = self.pools[0] if pool is None else pool
        check_pool(self.pool, self.pools)
        self._margins = Margins()
        self.take(loaded)
        self.stages = nn.ModuleList(HubLayer(layer, self._margins) for layer in layers)
        self._check_same(loaded)
        self.stages = kept(self.stages, keep, model)
        self.channel_dims = (-1,) * len(self.stages)
        self.out_features = (ANY, int(loaded.config.hidden_size))

    @staticmethod
    def parts(loaded: Any) -> list[nn.Module] | None:
        """The model's layers, or None if it is built in another way."""
        raise NotImplementedError

    def take(self, loaded: Any) -> None:
        """Take over what runs before and after the layers."""
        raise NotImplementedError

    def example(self) -> Tensor:
        """Samples or spectra of one row, for the check."""
        raise NotImplementedError

    def embedded(self, sound: Tensor, heard: Tensor) -> Tensor:
        """What the first layer reads; also sets the margins: which frames are ``present``, and ``mask``."""
        raise NotImplementedError

    def last(self, state: Tensor) -> Tensor:
        """What the model calls its last hidden state."""
        raise NotImplementedError

    def frames(self, last: Tensor) -> Tensor:
        """The frames ``[rows, frames, d]`` in it."""
        return last

    def begin(self, inputs: Any) -> Tensor:
        """What the first layer reads."""
        if not is_sound(inputs):
            found = [value for value in inputs.values() if is_sound(value)] if isinstance(inputs, Mapping) else []
            if len(found) != 1:
                raise DataError(f"'hub' reads the tensors of one column of sounds (sound, heard); found {len(found)}.")
            inputs = found[0]
        return self.embedded(inputs["sound"], inputs["heard"])

    def end(self, state: Tensor) -> Tensor:
        """The sound's features, then those of its frames."""
        last, present = self.last(state), self._margins["present"]
        frames = self.frames(last)
        whole = self.whole(last) if self.pool == "first" else pooled(frames, present, self.pool)
        return torch.cat([whole.unsqueeze(1), frames.masked_fill(~present.unsqueeze(2), 0.0)], 1)

    def whole(self, last: Tensor) -> Tensor:
        """The tokens that stand for the whole."""
        raise NotImplementedError

    def _check_same(self, loaded: Any) -> None:
        """Check on two sounds, one of them shorter, that the parts make up the model.

        Raises:
            RecipeError: if they do not.
        """
        sound = self.example().expand(2, *self.example().shape[1:])
        heard = torch.tensor([sound.shape[1], sound.shape[1] // 2])
        self.eval()
        with torch.no_grad():
            try:
                state = self.embedded(sound, heard)
                for stage in self.stages:
                    state = stage(state)
                whole = self.as_model(loaded, sound, heard)
                real = torch.ones(whole.shape[:2], dtype=torch.bool)
                real[:, -self._margins["present"].shape[1] :] = self._margins["present"]
                agree = same(self.last(state)[real], whole[real])
            except Exception:
                # Layers that want more than a state and a mask raise whatever their code raises.
                agree = False
        self.train()
        if not agree:
            raise _other_build(loaded)

    def as_model(self, loaded: Any, sound: Tensor, heard: Tensor) -> Tensor:
        """The last hidden state that the model itself gives."""
        return loaded(sound).last_hidden_state  # type: ignore[no-any-return]


class Waves(HubSounds):
    """Transformers over waveforms, whose convolutions make a frame of every few samples: Wav2Vec2, HuBERT.

    Models that norm by groups (such as wav2vec2-base) were trained without a mask, so zeros behind a shorter sound
    count there, as they do in the model itself.
    """

    @staticmethod
    def parts(loaded: Any) -> list[nn.Module] | None:
        """The layers of the encoder."""
        return layers_at(loaded, ["encoder.layers"], ["feature_extractor", "feature_projection", "encoder"])

    def take(self, loaded: Any) -> None:
        """Convolutions, projection and positions."""
        config = loaded.config
        self.convolutions: nn.Module = loaded.feature_extractor
        self.projection: nn.Module = loaded.feature_projection
        self.positions: nn.Module = loaded.encoder.pos_conv_embed
        self.norm: nn.Module = loaded.encoder.layer_norm
        self.dropout: nn.Module = loaded.encoder.dropout
        self.norm_first = not getattr(config, "do_stable_layer_norm", False)
        self.masked = config.feat_extract_norm == "layer"
        self.windows = tuple(zip(config.conv_kernel, config.conv_stride, strict=True))
        self.shortest = 1
        for kernel, stride in reversed(self.windows):
            self.shortest = (self.shortest - 1) * stride + kernel

    def example(self) -> Tensor:
        """Samples of a few frames."""
        return torch.linspace(0.0, 40.0, 8 * self.shortest).sin().unsqueeze(0)

    def as_model(self, loaded: Any, sound: Tensor, heard: Tensor) -> Tensor:
        """With a mask where it was trained with one."""
        if not self.masked:
            return super().as_model(loaded, sound, heard)
        mask = (torch.arange(sound.shape[1]) < heard.unsqueeze(1)).long()
        return loaded(sound, attention_mask=mask).last_hidden_state  # type: ignore[no-any-return]

    def embedded(self, sound: Tensor, heard: Tensor) -> Tensor:
        """Frames with their positions."""
        padded = functional.pad(sound, (0, max(0, self.shortest - sound.shape[1])))
        projected = self.projection(self.convolutions(padded).transpose(1, 2))
        state: Tensor = projected[0] if isinstance(projected, tuple) else projected
        count = heard
        for kernel, stride in self.windows:
            count = (count - kernel).div(stride, rounding_mode="floor") + 1
        present = torch.arange(state.shape[1], device=state.device) < count.clamp_min(1).unsqueeze(1)
        self._margins.hold(present=present, **({"mask": present[:, None, None, :]} if self.masked else {}))
        if self.masked:
            state = state.masked_fill(~present.unsqueeze(2), 0.0)
        state = state + self.positions(state)
        dropped: Tensor = self.dropout(self.norm(state) if self.norm_first else state)
        return dropped

    def last(self, state: Tensor) -> Tensor:
        """The frames, normed here if not before."""
        return state if self.norm_first else self.norm(state)


class Bands(HubSounds):
    """The encoder of Whisper: convolutions along spectra of fixed length, then layers that see all of it."""

    @staticmethod
    def parts(loaded: Any) -> list[nn.Module] | None:
        """The layers."""
        return layers_at(loaded, LAYERS, ["conv1", "conv2", "embed_positions", "layer_norm"])

    def take(self, loaded: Any) -> None:
        """Convolutions, positions and the last norm."""
        self.conv1, self.conv2 = loaded.conv1, loaded.conv2
        self.positions: nn.Embedding = loaded.embed_positions
        self.norm: nn.Module = loaded.layer_norm
        self.dropout = nn.Dropout(float(loaded.config.dropout))

    def example(self) -> Tensor:
        """A spectrum of the length that the model reads."""
        length = self.positions.num_embeddings * self.conv1.stride[0] * self.conv2.stride[0]
        return torch.linspace(0.0, 40.0, length * self.conv1.in_channels).sin().view(1, length, -1)

    def as_model(self, loaded: Any, sound: Tensor, heard: Tensor) -> Tensor:
        """What it makes of the bands first."""
        return loaded(sound.transpose(1, 2)).last_hidden_state  # type: ignore[no-any-return]

    def embedded(self, sound: Tensor, heard: Tensor) -> Tensor:
        """Frames with their positions."""
        state = functional.gelu(self.conv2(functional.gelu(self.conv1(sound.transpose(1, 2))))).transpose(1, 2)
        step = self.conv1.stride[0] * self.conv2.stride[0]
        count = (heard + step - 1).div(step, rounding_mode="floor").clamp_min(1)
        present = torch.arange(state.shape[1], device=state.device) < count.unsqueeze(1)
        self._margins.hold(present=present)
        return self.dropout(state + self.positions.weight)  # type: ignore[no-any-return]

    def last(self, state: Tensor) -> Tensor:
        """The normed frames."""
        return self.norm(state)  # type: ignore[no-any-return]


class SpectrumPatches(HubSounds):
    """The audio spectrogram transformer: two tokens for the whole, then patches of a spectrum of fixed length.

    A frame is the mean over the patches of one time.
    """

    pools = ("first", "mean", "max")

    @staticmethod
    def parts(loaded: Any) -> list[nn.Module] | None:
        """The layers."""
        needs = ["embeddings", "layernorm"]
        return layers_at(loaded, LAYERS, needs) if hasattr(loaded.config, "time_stride") else None

    def take(self, loaded: Any) -> None:
        """Embeddings and the last norm."""
        config = loaded.config
        self.embeddings: nn.Module = loaded.embeddings
        self.norm: nn.Module = loaded.layernorm
        self.length, self.bands = int(config.max_length), int(config.num_mel_bins)
        self.rows = (self.bands - int(config.patch_size)) // int(config.frequency_stride) + 1

    def example(self) -> Tensor:
        """A spectrum of the length that the model reads."""
        return torch.linspace(0.0, 40.0, self.length * self.bands).sin().view(1, self.length, self.bands)

    def embedded(self, sound: Tensor, heard: Tensor) -> Tensor:
        """Tokens with their positions."""
        state: Tensor = self.embeddings(sound)
        count = (state.shape[1] - 2) // self.rows
        self._margins.hold(present=torch.ones(len(state), count, dtype=torch.bool, device=state.device))
        return state

    def last(self, state: Tensor) -> Tensor:
        """The normed tokens."""
        return self.norm(state)  # type: ignore[no-any-return]

    def whole(self, last: Tensor) -> Tensor:
        """The mean of the two tokens, as the model's own pooling is."""
        return last[:, :2].mean(1)

    def frames(self, last: Tensor) -> Tensor:
        """The mean over bands."""
        return last[:, 2:].reshape(len(last), self.rows, -1, last.shape[2]).mean(1)
