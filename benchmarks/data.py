"""What data cost: padding of batches of texts, tokenising twice, and the share of a step in which its batch is made.

(a) padding: share of the tokens and words of CoNLL-2003's training sentences in batches of 32. Bar: at most 0.15.
(b) tokens: seconds for the same sentences, and again with the tokens on disk.
(c) recipes: CPU time to draw a step's batches over that of the whole step. Bar: at most 0.05.

    python benchmarks/data.py [--quick] [--out data.json]
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import torch

from polytask.data.datasets import conll2003
from polytask.data.mixing import Mixer
from polytask.data.preprocess import InputSpec, TablePreprocessor
from polytask.data.source import TensorSource
from polytask.recipes.build import build
from polytask.recipes.load import load_recipe
from polytask.training.fit import seeded, train

MOST_PADDING, MOST_SHARE = 0.15, 0.05
RECIPES = ("census", "yeast", "multi_fashion", "shapes_detection", "atis", "conll", "people_daily")
WARM_UP = 3


def padding(inputs: dict[str, torch.Tensor], rows: int) -> float:
    """The share of padding in the batches of one pass."""
    source = TensorSource(inputs, {"none": torch.zeros(rows)})
    held = real = 0
    for index in range(source.batches(32)):
        tokens = source.batch(index, 32, (0,)).inputs["tokens"]
        held, real = held + tokens.numel(), real + int((tokens >= 0).sum())
    return 1 - real / held


def texts(frame: pl.DataFrame) -> dict[str, float]:
    """Padding, and seconds with an empty cache of tokens and with a full one."""
    words = TablePreprocessor.fit(frame, {"sentence": InputSpec("text")})
    pieces = TablePreprocessor.fit(frame, {"sentence": InputSpec("text", tokenizer="all-minilm-l6-v2", longest=192)})
    found = {"words": padding(words.transform(frame)["sentence"], frame.height)}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["POLYTASK_CACHE"] = folder
        for what in ("first", "again"):
            start = time.perf_counter()
            tokens = pieces.transform(frame)["sentence"]
            found[f"seconds {what}"] = time.perf_counter() - start
    return {**found, "tokens": padding(tokens, frame.height)}


def share(name: str, steps: int) -> float:
    """The share of a recipe's steps in which batches are drawn."""
    recipe = load_recipe(f"recipes/{name}.yaml", [f"training.steps={steps + WARM_UP + 1}", "training.precision=32"])
    with seeded(0):
        built = build(recipe)
    draw, starts, seconds = Mixer.draw, [], []

    def timed(self: Mixer, step: int) -> Any:
        starts.append(time.process_time())
        parts = draw(self, step)
        seconds.append(time.process_time() - starts[-1])
        return parts

    Mixer.draw = timed
    try:
        train(built.model, built.sources["train"], settings=recipe.training, balancer=recipe.balancer)
    finally:
        Mixer.draw = draw
    return sum(seconds[WARM_UP:-1]) / (starts[-1] - starts[WARM_UP])


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    shares = {}
    for name in given.recipes:
        shares[name] = share(name, 6 if given.quick else 30)
        print(f"{name}: batches take {shares[name]:.2%} of a step", flush=True)
    found = {"most": {"padding": MOST_PADDING, "share": MOST_SHARE}, "share": shares}
    found["texts"] = texts(conll2003.load()["train"])
    print(json.dumps(found["texts"], indent=1))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
