"""The page of a grouping, and what came of it in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from polytask.analysis.affinity_report import SCALE, TITLES
from polytask.analysis.tables import with_half
from polytask.evaluation import Difference, Interval, mean_interval
from polytask.reporting.blocks import Facts, Figures, Paragraph, Sentences, section
from polytask.reporting.dots import Row, interval_rows
from polytask.reporting.page import Page
from polytask.reporting.section import Section
from polytask.reporting.tables import Cell, Column, Table, value_cell
from polytask.reporting.words import duration, metric_label, number, plural

if TYPE_CHECKING:
    from polytask.analysis.splits import Grouping

UNITS = {"tag": " % of the loss a step", "cosine": "", "transfer": " %", "backward": " %"}
WAYS = ("groups", "together", "separate")


def conclusion(of: Grouping) -> list[str]:
    """What the split promises, and what it gave.

    A difference counts if the paired test over seeds rejects that there is none, at 5 %.
    """
    option = of.options[-1]
    texts = [f"{len(of.groups)} models: {'; '.join(', '.join(members) for members in of.groups)}."]
    if of.limit:
        texts.append(f"{of.limit[0].upper()}{of.limit[1:]}.")
    texts.append(
        f"Predicted by {TITLES[of.by]}: tasks get {_shown(option.interval, SCALE.get(of.by, 1.0))}{UNITS[of.by]} "
        "from the others of their group on average. The best of many splits is chosen, so this promises too much."
    )
    if not of.trained:
        return [*texts, "It was not trained, so nobody knows whether it holds."]
    for way, baseline in (("groups", "together"), ("groups", "separate"), ("together", "separate")):
        texts.append(_compared(of, way, baseline))
    return texts


def _compared(of: Grouping, way: str, baseline: str) -> str:
    found = of.difference(way, baseline)
    names = {"groups": "The groups", "together": "One model of all tasks", "separate": "separate models"}
    against = {"together": "one model of all tasks", "separate": "separate models"}[baseline]
    mean = found.interval.mean
    if math.isnan(mean):
        return f"{names[way]} against {against}: nothing can be compared."
    size = f"{number(abs(mean))} % {'better' if mean > 0 else 'worse'} than {against}"
    text = f"{names[way]} {'are' if way == 'groups' else 'is'} {size} on the {of.part} rows"
    if not found.interval.known:
        return f"{text}, in one seed: no interval can be given."
    return f"{text} ({number(found.interval.low)} to {number(found.interval.high)}): {_verdict(found)}."


def _verdict(found: Difference) -> str:
    return (
        f"beyond the noise of seeds (p {number(found.p)})"
        if found.p < 0.05
        else f"no more than noise (p {number(found.p)})"
    )


def _shown(interval: Interval, scale: float) -> str:
    text = number(scale * interval.mean)
    return f"{text} ({number(scale * interval.low)} to {number(scale * interval.high)})" if interval.known else text


def group_page(of: Grouping) -> Page:
    """The page: what came of it, the splits, and the scores of all ways of training."""
    return Page(
        title=of.title,
        kind="polytask groups",
        sections=(_answer(of), *([_check(of)] if of.trained else []), _splits(of)),
        lead=f"{plural(len(of.tasks), 'task')} in {plural(len(of.groups), 'model')}",
        footer=f"{' '.join(['Drawn by polytask', of.versions.get('polytask', '')]).strip()} from results.json.",
    )


def _answer(of: Grouping) -> Section:
    facts = [(str(len(of.groups)), "models"), (str(len(of.seeds)), "seed" if len(of.seeds) == 1 else "seeds")]
    rows = [(Cell(f"group {at}"), Cell(", ".join(members)), Cell(f"group-{at}.yaml"))
            for at, members in enumerate(of.groups, start=1)]  # fmt: skip
    columns = (Column("model", numeric=False), Column("tasks", numeric=False), Column("recipe", numeric=False))
    return section("answer", "What it says", Sentences(of.conclusion), Facts(facts), Table(columns, tuple(rows)))


def _check(of: Grouping) -> Section:
    columns = [Column("task", numeric=False), *(Column(way) for way in WAYS), Column("groups − together, %")]
    rows = []
    for task in of.tasks:
        metric, higher = of.metrics[task]
        cells = [Cell(task, note=f"{metric_label(metric)} {'↑' if higher else '↓'}", tone="quiet")]
        cells += [Cell(with_half(mean_interval(of.values(way, task)))) for way in WAYS]
        gain = mean_interval(of.task_gains("groups", "together", task))
        tone = "good" if gain.known and gain.low > 0 else "bad" if gain.known and gain.high < 0 else ""
        rows.append((*cells, Cell(with_half(gain), tone=tone)))
    costs = [("parameters", [Cell(f"{of.trained[way].parameters:,}") for way in WAYS])]
    costs.append(("seconds", [Cell(duration(mean_interval(of.trained[way].seconds).mean)) for way in WAYS]))
    rows += [(Cell(name), *cells, Cell("")) for name, cells in costs]
    bars = [_bar(of, way, "separate") for way in WAYS[:2]] + [_bar(of, "groups", "together")]
    drawn = interval_rows(bars, title="delta_m", x_label="percent, higher is better", zero=True)
    return section(
        "check",
        "Trained and compared",
        Figures([drawn], "Mean relative gain over the tasks, with its 95 % interval over seeds; dots are seeds."),
        Table(tuple(columns), tuple(rows)),
        Paragraph(
            f"Primary metrics on the {of.part} rows: mean over seeds, ± half the 95 % interval (Student's t). All "
            "models were trained with the recipe's settings, as long each, so that groups and separate models took "
            "more training in all. The rows were opened once, when everything had been trained.",
            hint=True,
        ),
    )


def _bar(of: Grouping, way: str, baseline: str) -> Row:
    interval = of.difference(way, baseline).interval
    return Row(f"{way} against {baseline}", of.gains(way, baseline), interval.mean, interval.low, interval.high)


def _splits(of: Grouping) -> Section:
    scale = SCALE.get(of.by, 1.0)
    rows = []
    for option in of.options:
        interval = option.interval
        shown = "; ".join(", ".join(members) for members in option.groups)
        cells = [value_cell(scale * value) for value in (interval.mean, interval.low, interval.high)]
        rows.append((Cell(str(len(option.groups))), Cell(shown), *cells))
    columns = (
        Column("models"),
        Column("best split", numeric=False),
        Column(f"predicted gain{UNITS[of.by]}"),
        Column("low", help="lower end of the 95 % interval over seeds"),
        Column("high", help="upper end"),
    )
    return section(
        "splits",
        "Best splits by number of models",
        Paragraph(
            f"The gain is the mean over tasks of what the others of their group do for them on average, by "
            f"{TITLES[of.by]}; a task that is alone gets 0. The matrix is in affinity/report.html."
        ),
        Table(columns, tuple(rows)),
    )
