"""From a CSV file to ready tensors: seconds, and growth of resident memory over the size of the file.

Run ``python benchmarks/table_load.py`` (Census-Income, fetched at the first run), or give ``--root`` a folder
with its files. The measurement runs in a process of its own, which has imported everything beforehand.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

MOST_SECONDS = 3.0
MOST_GROWTH = 4.0


def measure(path: Path) -> dict[str, float]:
    import psutil

    from polytask.data.datasets.census_income import COLUMNS, RECIPE
    from polytask.data.preprocess import InputSpec, TablePreprocessor
    from polytask.data.table import read_table

    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    peak = [before]

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    frame = read_table(path, header=False, columns=COLUMNS, na=("?",))
    read = time.perf_counter() - start
    table = TablePreprocessor.fit(frame, {name: InputSpec(kind) for name, kind in RECIPE["inputs"].items()})
    tensors = table.transform(frame)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    size = path.stat().st_size
    return {
        "rows": len(tensors["numbers"]),
        "file MB": size / 1e6,
        "tensors MB": sum(tensor.nbytes for tensor in tensors.values()) / 1e6,
        "seconds to read": read,
        "seconds": seconds,
        "peak growth / file": (peak[0] - before) / size,
        "growth / file": (process.memory_info().rss - before) / size,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", help="folder with census_income_1994_1995_{train,test}.csv")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure)))
        return 0
    from polytask.data.datasets.census_income import ARCHIVE
    from polytask.data.fetch import fetch

    path = fetch("census_income", ARCHIVE, given.root)["census_income_1994_1995_train.csv"]
    command = [sys.executable, __file__, "--measure", str(path)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for name, value in found.items():
        print(f"{name:20} {value:12,.2f}")
    if given.out:
        given.out.write_text(json.dumps(found | {"most": {"seconds": MOST_SECONDS, "peak growth / file": MOST_GROWTH}}))
    good = found["seconds"] <= MOST_SECONDS and found["peak growth / file"] <= MOST_GROWTH
    print(f"at most {MOST_SECONDS:g} s and {MOST_GROWTH:g} x the file: {'yes' if good else 'NO'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
