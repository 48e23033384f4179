"""Pretrained sound models of tiny random weights, saved to a folder as people have them."""

import json
import wave
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import polytask as pt
from polytask import registry
from polytask.data.preprocess import InputSpec, TablePreprocessor
from polytask.data.source import TensorSource
from polytask.errors import DataError, RecipeError
from polytask.models import MultiTaskModel
from polytask.models.encoders import hub
from polytask.recipes.build import build
from polytask.recipes.load import load_recipe
from polytask.tasks import binary

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
WAVES = SMALL | {
    "conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "conv_bias": False, "layerdrop": 0.0,
}  # fmt: skip
STABLE = WAVES | {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
WHISPER = {
    "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_layers": 1,
    "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "num_mel_bins": 8, "max_source_positions": 50,
    "vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
AST = SMALL | {"max_length": 40, "num_mel_bins": 16, "patch_size": 8, "frequency_stride": 4, "time_stride": 4}
MADE = {
    "wav2vec2": ("wav2vec2", STABLE), "wav2vec2-base": ("wav2vec2", WAVES), "hubert": ("hubert", STABLE),
    "whisper": ("whisper", WHISPER), "ast": ("audio-spectrogram-transformer", AST),
}  # fmt: skip
KINDS = tuple(MADE)
RATE = 16_000


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    import transformers

    extractors = {
        "whisper": lambda: transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1),
        "ast": lambda: transformers.ASTFeatureExtractor(num_mel_bins=16, max_length=40),
    }
    found = {}
    for name, (kind, options) in MADE.items():
        found[name] = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **options))
        model.save_pretrained(found[name])
        norm = extractors.get(name, lambda: transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True))
        norm().save_pretrained(found[name])
    return found


def sounds(*lengths):
    generator = np.random.default_rng(0)
    return [(0.1 * generator.standard_normal(length)).astype(np.float32) for length in lengths]


def read(folder, values, **options):
    frame = pl.DataFrame({"s": [value.tolist() for value in values]})
    made = TablePreprocessor.fit(frame, {"s": InputSpec("audio", extractor=str(folder), **options)})
    return made.schema, made.transform(frame)["s"]


def whole(folder, values, padding):
    """What the package itself makes of sounds: its extractor, then its model."""
    import transformers

    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    more = {"padding": True, "return_attention_mask": True} if padding else {}
    found = extractor(values, sampling_rate=RATE, return_tensors="pt", **more)
    if getattr(model.config, "feat_extract_norm", "") == "group":
        # Such models were trained without a mask: zeros behind a sound count.
        found.pop("attention_mask")
    with torch.no_grad():
        model = getattr(model, "encoder", model) if hasattr(model, "decoder") else model
        return model(**found)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_model_after_its_extractor(kind, folders):
    values = sounds(2000, 1400)
    schema, inputs = read(folders[kind], values)
    encoder = hub(schema, str(folders[kind])).eval()
    with torch.no_grad():
        found = encoder(inputs)
    assert found.shape[::2] == (2, 16)
    expected = whole(folders[kind], values, padding=kind not in ("whisper", "ast"))
    state = expected.last_hidden_state
    if kind == "ast":
        torch.testing.assert_close(found[:, 0], expected.pooler_output, rtol=1e-3, atol=1e-4)
        frames = state[:, 2:].reshape(2, 3, -1, 16).mean(1)
        torch.testing.assert_close(found[:, 1:], frames, rtol=1e-3, atol=1e-4)
        return
    steps = [((length - 10) // 5 + 1 - 3) // 2 + 1 for length in (2000, 1400)]
    if kind == "whisper":
        steps = [-(-length // 160) // 2 + (-(-length // 160) % 2) for length in (2000, 1400)]
    for row, count in enumerate(steps):
        torch.testing.assert_close(found[row, 1 : 1 + count], state[row, :count], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found[row, 0], state[row, :count].mean(0), rtol=1e-3, atol=1e-4)
        assert (found[row, 1 + count :] == 0).all()


def test_padding_changes_nothing_and_batches_are_as_wide_as_their_longest(folders):
    schema, inputs = read(folders["wav2vec2"], sounds(3000, 900, 400, 5))
    encoder = hub(schema, str(folders["wav2vec2"])).eval()
    source = TensorSource(inputs, {"t": torch.zeros(4)})
    assert source.lengths.tolist() == [10, 3, 2, 1]
    with torch.no_grad():
        together = encoder(inputs)
        for row in range(4):
            batch = source.take(torch.tensor([row])).inputs
            assert batch["sound"].shape[1] == inputs["heard"][row]
            torch.testing.assert_close(encoder(batch)[0, 0], together[row, 0], rtol=1e-4, atol=1e-5)
    spectra = TensorSource(read(folders["whisper"], sounds(3000, 900))[1], {"t": torch.zeros(2)})
    assert spectra.take(torch.tensor([1])).inputs["sound"].shape == (1, 100, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter_and_a_mark_makes_it_again(kind, folders):
    schema, inputs = read(folders[kind], sounds(2000, 1400))
    encoder = hub(schema, str(folders[kind]))
    encoder(inputs).square().sum().backward()
    lacking = [name for name, p in encoder.named_parameters() if p.grad is None and p.requires_grad]
    assert lacking == []
    mark = json.loads(json.dumps(registry.mark_of(encoder)))
    again = registry.build("encoders", mark["name"], mark["options"], schema=schema)
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again.eval()(inputs), encoder.eval()(inputs))


SHARINGS = {
    "hard": {}, "separate": {}, "mmoe": {}, "cgc": {}, "ple": {}, "dselect_k": {}, "cross_stitch": {}, "sluice": {},
    "film": {}, "adapters": {}, "lora": {"rank": 2}, "task_routing": {}, "soft": {}, "mtan": {}, "ltb": {},
    "attention": {}, "hierarchical": {"feeds": {"good": ["loud"]}, "layers": [6]},
}  # fmt: skip


@pytest.mark.parametrize("name", SHARINGS)
@pytest.mark.parametrize("kind", ["wav2vec2", "ast"])
def test_every_sharing_works(kind, name, folders):
    schema, inputs = read(folders[kind], sounds(2000, 1400))
    made = registry.build("sharings", name, SHARINGS[name], encoder=hub(schema, str(folders[kind])))
    model = MultiTaskModel(made, [binary("loud"), binary("good")], example=inputs)
    found = model(inputs)
    assert found["good"].shape == (2,)
    sum(output.sum() for output in found.values()).backward()


def write(path, values, rate=RATE, width=2, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        scaled = values * (2 ** (8 * width - 1) - 1)
        file.writeframes((scaled + 128).astype(np.uint8).tobytes() if width == 1 else scaled.astype("<i2").tobytes())
    return str(path)


def test_files_are_read_as_the_samples_that_they_hold(folders, tmp_path):
    tone = (0.5 * np.sin(np.arange(1600) * 2 * np.pi * 200 / RATE)).astype(np.float32)
    slow = (0.5 * np.sin(np.arange(800) * 2 * np.pi * 200 / (RATE / 2))).astype(np.float32)
    both = np.stack([tone, tone], 1).reshape(-1)
    paths = [
        write(tmp_path / "tone.wav", tone), write(tmp_path / "slow.wav", slow, rate=RATE // 2),
        write(tmp_path / "both.wav", both, channels=2), write(tmp_path / "byte.wav", tone, width=1),
    ]  # fmt: skip
    made = TablePreprocessor.fit(
        pl.DataFrame({"s": paths}), {"s": InputSpec("audio", extractor=str(folders["hubert"]))}
    )
    _, samples = read(folders["hubert"], [tone])
    for column in (paths, [Path(path).read_bytes() for path in paths]):
        found = made.transform(pl.DataFrame({"s": column}))["s"]
        assert found["heard"].tolist() == [1600] * 4
        torch.testing.assert_close(found["sound"][0], samples["sound"][0], rtol=0, atol=1e-3)
        # Resampling bends the ends.
        torch.testing.assert_close(found["sound"][1, 50:-50], samples["sound"][0, 50:-50], rtol=0, atol=0.02)
        torch.testing.assert_close(found["sound"][2], samples["sound"][0], rtol=0, atol=1e-3)
        torch.testing.assert_close(found["sound"][3], samples["sound"][0], rtol=0, atol=0.02)
    _, halved = read(folders["hubert"], [slow], rate=RATE // 2)
    torch.testing.assert_close(halved["sound"][0], found["sound"][1], rtol=0, atol=2e-3)


def test_long_sounds_are_cut_and_that_is_said(folders):
    with pytest.warns(UserWarning, match=r"'s': 1 of 2 sounds are longer than 0.1 seconds"):
        _, inputs = read(folders["hubert"], sounds(2000, 1500), seconds=0.1)
    assert inputs["heard"].tolist() == [1600, 1500]


def test_bad_sounds_are_named(folders, tmp_path):
    def fit(column, **options):
        spec = InputSpec("audio", **({"extractor": str(folders["hubert"])} | options))
        frame = pl.DataFrame({"s": column})
        return TablePreprocessor.fit(frame, {"s": spec}).transform(frame)

    good = write(tmp_path / "good.wav", sounds(800)[0])
    (tmp_path / "bad.wav").write_bytes(b"ID3 this is no wave")
    for column, text in (
        ([good, str(tmp_path / "no.wav")], r"Record 2, column 's': there is no sound file '.*no\.wav'"),
        ([good, str(tmp_path / "bad.wav")], r"Record 2, column 's': '.*bad\.wav' cannot be read as a WAV file"),
        ([[0.1, 0.2], None], r"Record 2, column 's': there is no sound"),
        ([[0.1], [], []], r"Record 2, column 's': the sound is empty. 1 more records"),
        ([[0.1, float("nan")]], r"Record 1, column 's': the sound holds NaN"),
        ([["a"]], r"Column 's' holds List.String.; a column of sounds holds paths"),
        ([1.0], r"Column 's' holds Float64; a column of sounds holds paths"),
    ):
        with pytest.raises(DataError, match=text):
            fit(column)
    with pytest.raises(RecipeError, match=r"Column 's' holds sounds, .* Use the encoder hub"):
        fit([good], extractor=None)
    with pytest.raises(RecipeError, match="seconds is 0; it has to be above 0"):
        InputSpec("audio", seconds=0)
    with pytest.raises(DataError, match=r"needs config.json, model.safetensors and preprocessor_config.json"):
        fit([good], extractor=str(tmp_path))


def test_bad_sounds_are_skipped_where_the_recipe_allows_it(folders, tmp_path):
    rows = [{"clip": f"{number}.wav", "high": number % 2} for number in range(20)]
    for row in rows[2:]:
        write(tmp_path / row["clip"], sounds(400)[0])
    pl.DataFrame(rows).write_csv(tmp_path / "clips.csv")
    recipe = {
        "data": {"table": str(tmp_path / "clips.csv"), "split": {"validation": 0.0, "test": 0.0}, "on_bad": "skip"},
        "tasks": {"high": {"type": "binary"}},
        "model": {"encoder": {"name": "hub", "model": str(folders["hubert"])}},
    }
    with pytest.warns(UserWarning, match=r"Skipped 2 of 20 rows .* Record 1, column 'clip': there is no sound file"):
        built = build(load_recipe(recipe))
    (source,) = built.sources["train"]
    assert len(source) == 18
    assert source.rows.targets["high"].tolist() == [0.0, 1.0] * 9


def test_wrong_options_and_models_are_named(folders, tmp_path):
    import transformers

    schema, _ = read(folders["wav2vec2"], sounds(2000))
    with pytest.raises(RecipeError, match=r"pool is 'first'. Use one of: mean, max"):
        hub(schema, str(folders["wav2vec2"]), pool="first")
    with pytest.raises(RecipeError, match=r"layers is 3; .* has 2"):
        hub(schema, str(folders["wav2vec2"]), layers=3)
    encoder = hub(schema, str(folders["wav2vec2"]))
    with pytest.raises(DataError, match=r"one column of sounds .sound, heard.; found 0"):
        encoder({"numbers": torch.zeros(2, 3)})
    transformers.WavLMModel(transformers.WavLMConfig(**STABLE)).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=r"For sounds, hub runs models .* Whisper .* of the type 'wavlm'"):
        hub(schema, str(tmp_path))


def test_a_recipe_trains_on_files_and_its_bundle_needs_no_model(folders, tmp_path):
    generator = np.random.default_rng(0)
    rows = []
    for number in range(96):
        loud, high = generator.integers(0, 2, 2).tolist()
        times = np.arange(int(generator.integers(800, 2400))) / RATE
        tone = np.sin(2 * np.pi * (1500 if high else 300) * times) + 0.05 * generator.standard_normal(len(times))
        # Sounds are brought to one loudness, so what tells the second bit is how they fade.
        fade = np.linspace(1, 0.1, len(times)) if loud else np.ones(len(times))
        rows.append({"clip": write(tmp_path / f"{number}.wav", 0.5 * tone * fade / 1.3), "high": high, "fades": loud})
        rows[-1]["clip"] = f"{number}.wav"
    table = tmp_path / "clips.csv"
    pl.DataFrame(rows).write_csv(table)
    recipe = {
        "data": {"table": str(table)},
        "tasks": {"high": {"type": "binary"}, "fades": {"type": "binary"}},
        "model": {"encoder": {"name": "hub", "model": str(folders["hubert"])}},
        "training": {"epochs": 8, "batch_size": 16, "lr": 0.005, "device": "cpu"},
    }
    run = pt.run(recipe, out=tmp_path / "run", progress=False)
    assert run.scores["high"]["auroc"] > 0.95
    predictor = pt.load(tmp_path / "run" / "bundle")
    found = predictor.predict(table)
    assert (found["high"] == pl.read_csv(table)["high"]).mean() > 0.9
