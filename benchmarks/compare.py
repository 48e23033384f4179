"""What a comparison costs beside the training itself: 4 balancers, 3 seeds, Census-Income, 1 epoch, two workers.

The figure is (whole time - one start-up) / (seconds of training inside of the workers / number of workers). One
start-up is what has to be there before anything can be trained: workers that have started, and data that the parent
has read and encoded. Both go on side by side on the same cores, and so they are measured. ``ratio_apart`` counts a
start-up as the longer of the two where each has the machine to itself, which is less.

    python benchmarks/compare.py [--quick] [--out compare.json]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BALANCERS = "equal,uncertainty,pcgrad,nash_mtl"
BAR = 1.15
WORKERS = 2


def clock(work: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def start_up(recipe: Path) -> dict[str, float]:
    """Seconds until a worker could train: workers and data side by side, and the longer of the two alone."""
    from polytask.analysis.pool import Job, Pool
    from polytask.recipes.build import build
    from polytask.recipes.load import load_recipe

    def data() -> None:
        build(load_recipe(recipe))

    def workers(meanwhile: Callable[[], None] = lambda: None) -> None:
        with Pool(WORKERS) as pool:
            meanwhile()
            pool.run([Job(str(i), "builtins:abs", {}) for i in range(WORKERS)])

    data()  # a first time, since the comparison has the file in memory and the modules loaded as well
    alone = [clock(work)[0] for work in (data, workers)]
    return {"side by side": clock(lambda: workers(data))[0], "apart": max(alone)}


def measure(seeds: int) -> dict[str, Any]:
    import polytask as pt

    recipe = Path(__file__).parents[1] / "recipes" / "census.yaml"
    ready = start_up(recipe)
    with tempfile.TemporaryDirectory() as folder:
        whole, found = clock(
            lambda: pt.compare(
                recipe,
                balancers=BALANCERS,
                seeds=seeds,
                jobs=WORKERS,
                overrides=["training.epochs=1"],
                out=Path(folder) / "compare",
                say=print,
            )
        )
    share = found.worker_seconds / WORKERS
    return {
        "seconds": whole,
        "start_up": ready["side by side"],
        "start_up_apart": ready["apart"],
        "worker_seconds": found.worker_seconds,
        "workers": WORKERS,
        "trained": found.trained,
        "ratio": (whole - ready["side by side"]) / share,
        "ratio_apart": (whole - ready["apart"]) / share,
        "bar": BAR,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed instead of three")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    given = parser.parse_args()
    found = measure(1 if given.quick else 3)
    print(json.dumps(found, indent=1))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
