"""Convolutional architectures on Multi-Fashion and MultiMNIST at one budget of parameters, three seeds each.

A part of the data, so that all runs take a few minutes of one core: 6,000 training rows, 1,000 validation rows,
5 epochs, and all test rows (10,000 and 2,000). Each architecture gets channels that bring its number of trained
parameters within 3 % of plain sharing's. Nothing else was tried.

    python benchmarks/fashion_sharing.py [--seeds 0 1 2] [--minutes 14] [--only hard mtan]
    python benchmarks/fashion_sharing.py --table
"""

from pathlib import Path

from study import Case, main

SHARINGS = {
    "hard": ("hard", [8, 16, 32, 64, 64]),
    "separate": ("separate", [6, 11, 23, 45, 45]),
    "cross_stitch": ("cross_stitch", [6, 11, 23, 45, 45]),
    "mmoe": ("{name: mmoe, experts: 4}", [4, 7, 15, 29, 29]),
    "mtan": ("{name: mtan, reduction: 2}", [5, 10, 20, 40, 40]),
}
FORMS = {"two garments": "recipes/multi_fashion.yaml", "two digits": "recipes/multi_mnist.yaml"}
ACCURACIES = {"left accuracy": ("left", "accuracy", 4), "right accuracy": ("right", "accuracy", 4)}
COLUMNS = dict.fromkeys(FORMS, ACCURACIES)
CASES = [
    Case(
        form,
        name,
        recipe,
        (f"model.sharing={sharing}", f"model.encoder.channels={channels}", "training.epochs=5"),
        {"train": 6_000, "validation": 1_000},
    )
    for form, recipe in FORMS.items()
    for name, (sharing, channels) in SHARINGS.items()
]

if __name__ == "__main__":
    main(__doc__, CASES, COLUMNS, Path("benchmarks/out/fashion_sharing.jsonl"))
