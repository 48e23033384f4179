"""A pretrained sound model for two tasks: how high a tone is, and whether it fades.

    python examples/pretrained_sounds.py
    python examples/pretrained_sounds.py --model facebook/wav2vec2-base --epochs 3

The sounds are written as WAV files, as people have them. ``--model`` is a name in a hub or a folder; without it a tiny
Wav2Vec2 of random weights is built, so that the example runs without a network.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from scipy.io import wavfile

import polytask as pt

RATE = 16_000


def write_sounds(folder: Path, count: int) -> Path:
    """Tones of a tenth to a quarter of a second, and a table that names them."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(count):
        high, fades = draw.integers(0, 2, 2).tolist()
        seconds = np.arange(int(RATE * draw.uniform(0.1, 0.25))) / RATE
        tone = np.sin(2 * np.pi * (1500 if high else 300) * seconds) + 0.05 * draw.standard_normal(len(seconds))
        loudness = np.linspace(1, 0.1, len(seconds)) if fades else 1.0
        wavfile.write(folder / f"{number}.wav", RATE, (12_000 * tone * loudness).astype(np.int16))
        rows.append({"clip": f"{number}.wav", "high": high, "fades": fades})
    pl.DataFrame(rows).write_csv(folder / "clips.csv")
    return folder / "clips.csv"


def tiny_model(folder: Path) -> str:
    """A small model of random weights, saved as people find them."""
    import transformers

    config = transformers.Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=[16, 16],
        conv_kernel=[10, 3],
        conv_stride=[5, 2],
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )
    transformers.Wav2Vec2Model(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="fewer sounds and epochs")
    asked = parser.parse_args()
    try:
        import transformers  # noqa: F401
    except ImportError:
        print("transformers is not installed: pip install 'polytask[hub]'")
        return
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        table = write_sounds(folder, 60 if asked.quick else 400)
        recipe = {
            "data": {"table": str(table)},
            "inputs": {"clip": {"kind": "audio", "seconds": 0.2}},
            "tasks": {"high": {"type": "binary"}, "fades": {"type": "binary"}},
            "model": {"encoder": {"name": "hub", "model": asked.model or tiny_model(folder / "model")}},
            "training": {
                "epochs": 2 if asked.quick else asked.epochs,
                "batch_size": 16,
                "lr": 0.002,
                "rates": {"layer_decay": 0.9},
            },
        }
        run = pt.run(recipe, out=folder / "run", progress=False)
        for task, found in run.scores.items():
            print(f"{task}: auroc {found['auroc']:.3f}")
        print(pt.load(folder / "run" / "bundle").predict(table).head(3))


if __name__ == "__main__":
    main()
