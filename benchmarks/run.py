"""Run all benchmarks, each in a process of its own, and print one table of what was measured beside its bar.

    python benchmarks/run.py --quick
    python benchmarks/run.py --out benchmarks/out [--only loop steps] [--device cuda]

Each one's numbers go to OUT/NAME.json, the table to OUT/summary.json. A bar that is missed is no error, because
times depend on the machine; a benchmark that does not run is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Line:
    """One figure beside its bar.

    Args:
        benchmark: Which script it is from.
        what: What was measured.
        measured: The figure.
        bar: What it is held to; None if it is only reported.
        least: Whether the bar is the least that is good, not the most.
    """

    benchmark: str
    what: str
    measured: float
    bar: float | None
    least: bool = False

    @property
    def met(self) -> bool | None:
        if self.bar is None:
            return None
        return self.measured >= self.bar if self.least else self.measured <= self.bar


def of_loop(found: dict[str, list[float]]) -> Iterator[Line]:
    for what, ratios in found.items():
        name, _, words = what.partition(" (bar: ")
        kind, _, number = words.rstrip(")").rpartition(" ")
        yield Line("loop", name, statistics.median(ratios), float(number), least=kind == "at least")


def of_steps(found: dict[str, Any]) -> Iterator[Line]:
    for row in found["rows"]:
        times, where = row["milliseconds"], f"{row['model']}, m={row['tasks']}: "
        for label, peak in row["peak_bytes"].items():
            if label == "plain":
                continue
            plain = row["against"].get(label, "plain")
            yield Line("steps", f"{where}{label} / {plain}", times[label] / times[plain], row["bars"].get(label))
            if label in row["peak_bar"]:
                yield Line("steps", f"{where}{label}, peak MB", peak / 1e6, row["peak_bar"][label] / 1e6)
        # Reads make the host wait on an accelerator only.
        bar = None if found["device"] == "cpu" else 1.0
        for label in ("features", "last", "parameters") if bar else ():
            yield Line("steps", f"{where}{label}, host syncs", row["reads"][label], bar)


def of_solvers(found: list[dict[str, Any]]) -> Iterator[Line]:
    for line in found:
        what = f"{line['method']}, m={line['m']}, {line['problems']}: milliseconds"
        yield Line("solvers", what, line["polytask"], line["target"])


def of_experts(found: dict[str, Any]) -> Iterator[Line]:
    for row in found["rows"]:
        for name, ratio in row["ratios"].items():
            yield Line("experts", f"{row['part']}, batched / {name}", ratio, row["at most"][name])


def of_table_load(found: dict[str, Any]) -> Iterator[Line]:
    for what, bar in found["most"].items():
        yield Line("table_load", what, found[what], bar)


def of_compare(found: dict[str, Any]) -> Iterator[Line]:
    yield Line("compare", "whole time without a start-up / training time of a worker", found["ratio"], found["bar"])


def of_data(found: dict[str, Any]) -> Iterator[Line]:
    measured = found["texts"]
    for what in ("tokens", "words"):
        yield Line("data", f"CoNLL-2003, batches of 32: padding of {what}", measured[what], found["most"]["padding"])
    for what in ("first", "again"):
        yield Line("data", f"CoNLL-2003, tokenising {what}: seconds", measured[f"seconds {what}"], None)
    for name, share in found["share"].items():
        yield Line("data", f"recipe {name}: drawing batches / step", share, found["most"]["share"])


READERS: dict[str, Callable[[Any], Iterator[Line]]] = {
    "loop": of_loop,
    "solvers": of_solvers,
    "steps": of_steps,
    "experts": of_experts,
    "table_load": of_table_load,
    "compare": of_compare,
    "data": of_data,
}
WITHOUT_QUICK = ("table_load",)
WITH_DEVICE = ("steps",)


def run_one(name: str, out: Path, quick: bool, device: str) -> tuple[list[Line], str | None]:
    """The lines of one benchmark, or the end of what it said when it failed."""
    target = out / f"{name}.json"
    target.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / f"{name}.py"), "--out", str(target)]
    command += ["--quick"] if quick and name not in WITHOUT_QUICK else []
    command += ["--device", device] if name in WITH_DEVICE else []
    done = subprocess.run(command, capture_output=True, text=True)
    if not target.exists():
        return [], (done.stderr.strip() or done.stdout.strip() or f"ended with {done.returncode}")[-400:]
    return list(READERS[name](json.loads(target.read_text(encoding="utf-8")))), None


def table(lines: list[Line]) -> str:
    """What was measured, its bar, and whether it was met."""
    width = max((len(line.what) for line in lines), default=4)
    text = [f"{'benchmark':<11}{'what':<{width}}{'measured':>10}{'bar':>11}  met"]
    for line in lines:
        bar = "" if line.bar is None else f"{'>=' if line.least else '<='} {line.bar:.3g}"
        met = {True: "yes", False: "NO", None: ""}[line.met]
        text.append(f"{line.benchmark:<11}{line.what:<{width}}{line.measured:>10.3g}{bar:>11}  {met}".rstrip())
    held = [line for line in lines if line.bar is not None]
    text.append(f"{sum(line.met is True for line in held)} of {len(held)} bars met")
    return "\n".join(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "out", help="folder for the numbers")
    parser.add_argument("--quick", action="store_true", help="few rounds and small sizes")
    parser.add_argument("--only", nargs="+", choices=list(READERS), default=list(READERS))
    parser.add_argument("--device", default="cpu", help="of the benchmarks that can choose: cpu or cuda")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    failed: dict[str, str] = {}
    for name in given.only:
        start = time.perf_counter()
        found, error = run_one(name, given.out, given.quick, given.device)
        lines += found
        if error is not None:
            failed[name] = error
        print(f"{name}: {'failed' if error else 'done'} in {time.perf_counter() - start:.0f} s", flush=True)
    print(f"\n{table(lines)}")
    for name, error in failed.items():
        print(f"\n{name} did not run:\n{error}")
    summary = {"lines": [asdict(line) | {"met": line.met} for line in lines], "failed": failed}
    (given.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
