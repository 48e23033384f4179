"""Architectures on Census-Income at one budget of parameters, three seeds each, in both forms.

The settings are those of the shipped recipes, which were chosen for plain sharing. Each architecture gets widths of
its two layers, ``[2 w, w]``, that bring its number of trained parameters within 1.2 % of plain sharing's. Nothing
else was tried.

    python benchmarks/census_sharing.py [--seeds 0 1 2] [--minutes 14] [--only hard mmoe]
    python benchmarks/census_sharing.py --table
"""

from pathlib import Path

from study import Case, main

SHARINGS = {
    "hard": "hard",
    "separate": "separate",
    "cross_stitch": "cross_stitch",
    "mmoe": "{name: mmoe, experts: 4}",
    "cgc": "{name: cgc, shared: 2, per_task: 1}",
    "ple": "{name: ple, shared: 1, per_task: 1}",
}
# The recipe of each form, and w for each architecture.
FORMS = {
    "three tasks": (
        "recipes/census.yaml",
        {"hard": 128, "separate": 46, "cross_stitch": 45, "mmoe": 44, "cgc": 36, "ple": 43},
    ),
    "two tasks": (
        "recipes/census_mmoe.yaml",
        {"hard": 128, "separate": 70, "cross_stitch": 69, "mmoe": 43, "cgc": 43, "ple": 54},
    ),
}
AUROC = {
    "income AUROC": ("income", "auroc", 5),
    "never married AUROC": ("never_married", "auroc", 5),
}
COLUMNS = {
    "three tasks": AUROC
    | {"education accuracy": ("education", "accuracy", 4), "education macro-F1": ("education", "macro_f1", 4)},
    "two tasks": AUROC,
}
CASES = [
    Case(form, name, recipe, (f"model.sharing={SHARINGS[name]}", f"model.encoder.hidden=[{2 * width}, {width}]"))
    for form, (recipe, widths) in FORMS.items()
    for name, width in widths.items()
]

if __name__ == "__main__":
    main(__doc__, CASES, COLUMNS, Path("benchmarks/out/census_sharing.jsonl"))
