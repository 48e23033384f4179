"""What a comparison searches for each method besides the learning rate: its own options.

The ranges lie around what papers and our defaults use. A method without an entry has nothing of its own that is
worth a trial. The default lies in every range, since the first trial is always the recipe's own setting. Options
that a person gave are not searched.
"""

from __future__ import annotations

from collections.abc import Mapping

from polytask.analysis.space import Choice, Range

RATE = (0.2, 5.0)
"""The learning rate is searched from this share to this multiple of the recipe's."""

STATIC_WEIGHT = Range(0.1, 10.0, log=True)
"""A task's static weight; only ratios matter beside the learning rate."""

BALANCERS: Mapping[str, Mapping[str, Range | Choice]] = {
    "aligned_mtl": {"scale": Choice(("min", "median", "rmse"))},
    "bayesian": {"prior_scale": Range(1.0, 100.0, log=True)},
    "cagrad": {"c": Range(0.1, 0.9)},
    "cr_mogm": {"alpha": Range(0.5, 0.99)},
    "db_mtl": {"beta": Range(0.1, 0.95)},
    "dwa": {"temperature": Range(0.5, 5.0)},
    "excess_mtl": {"eta": Range(0.1, 10.0, log=True)},
    "fairgrad": {"alpha": Range(0.5, 5.0)},
    "famo": {"gamma": Range(1e-4, 1e-2, log=True), "lr": Range(0.005, 0.1, log=True)},
    "go4align": {"step_size": Range(1e-5, 1e-2, log=True)},
    "graddrop": {"leak": Range(0.0, 0.8)},
    "gradnorm": {"alpha": Range(0.1, 3.0)},
    "gradvac": {"beta": Range(0.001, 0.1, log=True)},
    "learned": {"floor": Range(0.01, 0.3, log=True)},
    "mgda": {"normalize": Choice(("none", "l2"))},
    "moco": {"beta": Range(0.1, 0.9), "gamma": Range(0.01, 1.0, log=True)},
    "nash_mtl": {"normalize": Choice((False, True))},
    "pcd": {"tau": Range(0.005, 0.5, log=True)},
    "sdmgrad": {"lambda": Range(0.05, 5.0, log=True)},
    "stch": {"mu": Range(0.1, 10.0, log=True)},
    "uw_so": {"temperature": Range(0.2, 20.0, log=True)},
}

SHARINGS: Mapping[str, Mapping[str, Range | Choice]] = {
    "adapters": {"width": Range(4, 64, log=True)},
    "cgc": {"shared": Range(1, 4), "per_task": Range(1, 3)},
    "cross_stitch": {"same": Range(0.5, 0.99)},
    "dselect_k": {"experts": Choice((4, 8, 16)), "k": Range(1, 3)},
    "film": {"embedding": Range(4, 64, log=True)},
    "lora": {"rank": Range(1, 16, log=True)},
    "mmoe": {"experts": Choice((2, 4, 8, 16))},
    "ple": {"shared": Range(1, 4), "per_task": Range(1, 3)},
    "sluice": {"same": Range(0.5, 0.99)},
    "task_routing": {"sigma": Range(0.2, 0.8)},
}

TREES: Mapping[str, Range | Choice] = {
    "learning_rate": Range(0.02, 0.3, log=True),
    "max_leaf_nodes": Range(7, 127, log=True),
    "min_samples_leaf": Range(5, 100, log=True),
    "l2_regularization": Range(0.0, 1.0),
}
