"""What a comparison says, in plain words.

The rules, at the level of 5 %, all tests corrected by Holm's method over the methods:

1. With one seed there is no measure of noise, and nothing is concluded from differences.
2. A method beats another if its delta_m against it is above zero beyond noise, and is worse if it is below.
3. If every multi-task network is worse than separate ones: train them separately.
4. If none differs from separate ones beyond noise: neither is better; fewer parameters speak for one network.
5. Whether a method beat equal weighting (with the same sharing) is told apart from that.
6. Trees are told for every task where they are beyond noise better than the best network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from polytask.analysis.methods import SEPARATE, TREES
from polytask.errors import listed
from polytask.evaluation import Difference, corrected, paired_difference
from polytask.reporting.words import percent

if TYPE_CHECKING:
    from polytask.analysis.comparison import Comparison

ENOUGH_SEEDS = 5


def conclusion(of: Comparison) -> list[str]:
    """Sentences, the most important first."""
    shared = [m.name for m in of.methods if m.kind == "network" and m.name != SEPARATE]
    found = []
    if len(of.seeds) == 1:
        found.append(
            "With one seed no interval can be given, and no difference can be told from noise. Use 3 seeds or more."
        )
    elif of.why_no_delta:
        found.append(of.why_no_delta)
    elif shared:
        found += [_against_separate(of, shared), *_against_equal(of, shared)]
    if len(of.seeds) > 1 and TREES in of.names():
        found += _against_trees(of)
    found += _failures(of)
    if 1 < len(of.seeds) < ENOUGH_SEEDS:
        found.append(
            f"{len(of.seeds)} seeds give wide intervals: a difference that is not beyond noise may still be there."
        )
    if of.part == "validation":
        found.append(
            "There are no test rows: all scores are of the rows on which settings were chosen, so they flatter."
        )
    return found


def _against_separate(of: Comparison, shared: list[str]) -> str:
    gains = {name: gain for name, gain in of.gains().items() if name in shared}
    better = _beyond(gains, 1)
    worse = _beyond(gains, -1)
    if better:
        first = better[0]
        rest = f" So did {listed(better[1:])}." if len(better) > 1 else ""
        beside = f" Worse than separate networks: {listed(worse)}." if worse else ""
        return f"{first} beat separate networks by {_percent(gains[first])}.{rest}{beside}"
    if len(worse) == len(shared):
        least = max(worse, key=lambda name: gains[name].interval.mean)
        what = "The one shared network" if len(shared) == 1 else f"All {len(shared)} shared networks"
        verb = "is" if len(shared) == 1 else "are"
        return (
            f"Train them separately. {what} {verb} worse than separate ones beyond noise; the least so is {least}, "
            f"with {_percent(gains[least])}."
        )
    smaller = _smaller(of, {name: gain for name, gain in gains.items() if name not in worse})
    beside = f" Worse beyond noise: {listed(worse)}." if worse else ""
    return f"No shared network beat separate ones beyond noise.{beside}{smaller}"


def _smaller(of: Comparison, level: Mapping[str, Difference]) -> str:
    """What speaks for one network where scores do not: its size; of equal ones the one with the largest gain."""
    single = of[SEPARATE].parameters
    sizes = {name: size for name in level if (size := of[name].parameters) is not None}
    if not sizes or not single:
        return ""
    least = min(sizes, key=lambda name: (sizes[name], -level[name].interval.mean))
    if sizes[least] >= single:
        return ""
    return f" Not told apart from them, {least} has {percent(sizes[least] / single)} of their parameters."


def _against_equal(of: Comparison, shared: list[str]) -> list[str]:
    """How the balancers of each sharing compare with equal weighting under the same sharing."""
    pairs = {}
    for name in shared:
        equal = next(
            (m.name for m in of.methods if m.sharing == of[name].sharing and m.balancer == {"name": "equal"}), None
        )
        if equal is not None and equal != name:
            pairs[name] = equal
    if not pairs:
        return []
    zeros = [0.0] * len(of.seeds)
    deltas = {other: of.delta_m(other) for other in set(pairs.values())}
    gains = corrected({name: paired_difference(deltas[other][name], zeros) for name, other in pairs.items()})
    better, worse = _beyond(gains, 1), _beyond(gains, -1)
    found = []
    if not better:
        found.append("No method beat equal weighting beyond noise.")
    found += [f"{name} beat equal weighting by {_percent(gains[name])}." for name in better]
    if worse:
        found.append(f"Worse than equal weighting beyond noise: {listed(worse)}.")
    return found


def _against_trees(of: Comparison) -> list[str]:
    """Tasks in which trees and the best network differ beyond noise."""
    networks = [m.name for m in of.methods if m.kind == "network"]
    against = of.differences(TREES)
    lost, undone = [], []
    for task in of.tasks:
        if math.isnan(of.means[TREES][task.name][task.primary]):
            undone.append(task.name)
            continue
        sign = 1 if task.directions[task.primary] else -1
        gaps = [against[name, task.name] for name in networks]
        if all(gap.beyond_noise() and sign * gap.interval.mean < 0 for gap in gaps):
            lost.append(task.name)
    found = []
    if lost:
        found.append(f"Gradient-boosted trees are better than every network, beyond noise, in: {listed(lost)}.")
    elif len(undone) < len(of.tasks):
        found.append("In no task are gradient-boosted trees better than every network beyond noise.")
    if undone:
        found.append(f"Trees cannot do: {listed(undone)}.")
    return found


def _failures(of: Comparison) -> Iterable[str]:
    for method in of.methods:
        if method.failed:
            why = next(iter(method.failed.values()))
            yield (
                f"{method.name} failed with {len(method.failed)} of {len(of.seeds)} seeds ({why}) and its means are "
                "over the others only."
            )


def _beyond(gains: dict[str, Difference], sign: int) -> list[str]:
    """Methods whose difference has this sign beyond noise, the largest first."""
    found = [name for name, gain in gains.items() if gain.beyond_noise() and sign * gain.interval.mean > 0]
    return sorted(found, key=lambda name: -abs(gains[name].interval.mean))


def _percent(gain: Difference) -> str:
    of = gain.interval
    return f"a delta_m of {of.mean:+.2f} % ({of.low:+.2f} to {of.high:+.2f})"
