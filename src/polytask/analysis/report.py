"""The page of a comparison."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import TYPE_CHECKING

from markupsafe import Markup

from polytask.analysis.methods import BASELINES, SEPARATE, TREES
from polytask.analysis.tables import percent, rank_text, with_half
from polytask.evaluation import Difference
from polytask.recipes.load import write_yaml
from polytask.reporting.blocks import Code, Facts, Figures, Heading, Paragraph, Sentences, section
from polytask.reporting.dots import Point, Row, interval_rows, named_points
from polytask.reporting.page import Page
from polytask.reporting.section import Section
from polytask.reporting.tables import Cell, Column, Table
from polytask.reporting.words import duration, memory, metric_label, number, plural

if TYPE_CHECKING:
    from polytask.analysis.comparison import Comparison
    from polytask.analysis.method_result import MethodResult, TaskFacts

MOST_PAIRS = 6
"""Drawings of pairs of tasks; with more tasks only gain against cost is drawn."""


def comparison_page(of: Comparison) -> Page:
    """The page of a comparison: what it says, then what it says it from."""
    return Page(
        title=of.title,
        kind="polytask comparison",
        sections=tuple(make(of) for make in SECTIONS),
        lead=f"{plural(len(of.methods), 'method')} on {plural(len(of.tasks), 'task')}, {plural(len(of.seeds), 'seed')}",
        footer=f"{' '.join(['Drawn by polytask', of.versions.get('polytask', '')]).strip()} from results.json.",
    )


def answer(of: Comparison) -> Section:
    """The conclusion, and the table that it follows from."""
    rows = f"{of.sizes[of.part]:,} {of.part} rows" if of.part in of.sizes else f"the {of.part} rows"
    facts = [(str(len(of.seeds)), "seeds" if len(of.seeds) > 1 else "seed"), (of.budget, "budget of every method")]
    facts.append((duration(sum(sum(m.seconds) + m.search_seconds for m in of.methods)), "of training in all"))
    return section(
        "answer",
        "What it says",
        Sentences(of.conclusion),
        Facts(facts),
        _scores(of),
        Paragraph(
            f"Primary metrics on {rows}, ↑ higher is better, ↓ lower is better"
            + (", ± half the 95 % interval over seeds (Student's t)" if len(of.seeds) > 1 else "")
            + ". delta_m: mean relative gain over the tasks against separate networks with the same seed, in percent, "
            "positive is better; p is of a paired t test, corrected by Holm's method over the methods.",
            hint=True,
        ),
    )


def _scores(of: Comparison) -> Table:
    gains, ranks, front = of.gains(), of.mean_ranks(), of.pareto_front()
    columns = [Column("method", numeric=False), Column("delta_m %"), Column("p", help="Holm-corrected")]
    columns += [
        Column("mean rank"),
        Column("on the front", help="no method is as good everywhere and better in one task"),
    ]
    columns += [_task_column(task) for task in of.tasks]
    rows = []
    for method in of.methods:
        cells = [Cell(_whole(method.name)), *_gain_cells(gains.get(method.name))]
        cells += [Cell(rank_text(ranks[method.name])), Cell("yes" if method.name in front else "", tone="quiet")]
        cells += [Cell(with_half(of.interval(method.name, task.name, task.primary))) for task in of.tasks]
        rows.append(tuple(cells))
    return Table(tuple(columns), tuple(rows))


def _whole(name: str) -> str:
    """A name that is not broken between lines."""
    return name.replace(" ", "\N{NO-BREAK SPACE}")


def _task_column(task: TaskFacts) -> Column:
    arrow = "↑" if task.directions[task.primary] else "↓"
    return Column(f"{task.name}, {metric_label(task.primary)} {arrow}")


def _gain_cells(gain: Difference | None) -> list[Cell]:
    if gain is None:
        return [Cell("0", tone="quiet"), Cell("")]
    p = Cell("–" if math.isnan(gain.adjusted) else "< 0.001" if gain.adjusted < 0.001 else f"{gain.adjusted:.3f}")
    return [Cell(percent(gain.interval), tone=_tone(gain, 1)), p]


def _tone(difference: Difference, sign: int) -> str:
    """Colour only what is beyond noise."""
    if not difference.beyond_noise():
        return ""
    return "good" if sign * difference.interval.mean > 0 else "bad"


def gains(of: Comparison) -> Section:
    """delta_m with intervals, and every seed's scores."""
    found = of.gains()
    by_seed = {} if of.why_no_delta else of.delta_m()
    rows = [
        Row(name, by_seed.get(name, ()), g.interval.mean, g.interval.low, g.interval.high, quiet=name in BASELINES)
        for name, g in found.items()
    ]
    drawn = [interval_rows(rows, title="delta_m against separate networks", x_label="percent", zero=True, width=7.4)]
    return section(
        "gains",
        "Gains and seeds",
        Paragraph(of.why_no_delta) if of.why_no_delta else Figures(drawn, wide=True),
        Heading("Every seed"),
        Figures([_seeds(of, task) for task in of.tasks]),
        Paragraph("A dot is a seed, a mark the mean, a line the 95 % interval. Baselines are grey.", hint=True),
    )


def _seeds(of: Comparison, task: TaskFacts) -> Markup:
    rows = []
    for method in of.methods:
        between = of.interval(method.name, task.name, task.primary)
        values = [v for v in method.values(task.name, task.primary, of.seeds) if not math.isnan(v)]
        ends = (between.mean, between.low, between.high)
        rows.append(Row(method.name, values, *ends, quiet=method.name in BASELINES))
    return interval_rows(rows, title=task.name, x_label=_task_column(task).label.removeprefix(f"{task.name}, "))


def front(of: Comparison) -> Section:
    """Tasks against each other, and gain against cost."""
    on_front = of.pareto_front()
    pairs = list(combinations(of.tasks, 2))
    drawn = []
    for first, second in pairs if len(pairs) <= MOST_PAIRS else ():
        points = [
            Point(
                m.name,
                of.means[m.name][first.name][first.primary],
                of.means[m.name][second.name][second.primary],
                m.name in on_front,
                m.name in BASELINES,
            )
            for m in of.methods
        ]
        labels = [f"{t.name}, {_task_column(t).label.removeprefix(f'{t.name}, ')}" for t in (first, second)]
        title = f"{first.name} and {second.name}"
        drawn.append(named_points(points, title=title, x_label=labels[0], y_label=labels[1]))
    drawn += [_cost(of, "parameters", lambda m: m.parameters), _cost(of, "seconds of training", _seconds)]
    return section(
        "front",
        "Pareto front and cost",
        Figures(drawn),
        Paragraph(
            "Tasks: a filled point is on the Pareto front over all tasks, since no method is at least as good in every "
            "task's mean and better in one. Cost: a filled point is on the line of the best gain for the cost. Noise "
            "counts in both as any difference does.",
            hint=True,
        ),
    )


def _seconds(method: MethodResult) -> float | None:
    return sum(method.seconds) / len(method.seconds) if method.seconds else None


def _cost(of: Comparison, label: str, cost: Callable[[MethodResult], float | None]) -> Markup:
    found = of.gains()
    places = {}
    for method in of.methods:
        x = cost(method)
        y = 0.0 if method.name == SEPARATE else found[method.name].interval.mean
        if x is not None and not math.isnan(y):
            places[method.name] = (x, y)
    points = [
        Point(
            name, x, y, not any(a <= x and b >= y and (a, b) != (x, y) for a, b in places.values()), name in BASELINES
        )
        for name, (x, y) in places.items()
    ]
    return named_points(points, title=f"Gain and {label}", x_label=label, y_label="delta_m %", log_x=True, joined=True)


def differences(of: Comparison) -> Section:
    """Each task's difference to the baselines."""
    blocks: list[Heading | Table] = []
    for against in (SEPARATE, TREES):
        if against in of.names():
            blocks += [Heading(f"Against {against}"), _differences(of, against)]
    return section(
        "differences",
        "Task by task",
        *blocks,
        Paragraph(
            "Mean difference of a method to the baseline with the same seed, with its 95 % interval. Green is better "
            "and red is worse beyond noise: a paired t test, corrected by Holm's method over all cells of the table, "
            "at 5 %.",
            hint=True,
        ),
    )


def _differences(of: Comparison, against: str) -> Table:
    found = of.differences(against)
    columns = (Column("method", numeric=False), *(_task_column(task) for task in of.tasks))
    rows = []
    for method in of.methods:
        if method.name == against:
            continue
        cells = [Cell(_whole(method.name))]
        for task in of.tasks:
            gap = found[method.name, task.name]
            cells.append(Cell(_signed(gap), tone=_tone(gap, 1 if task.directions[task.primary] else -1)))
        rows.append(tuple(cells))
    return Table(columns, tuple(rows))


def _signed(gap: Difference) -> str:
    between = gap.interval
    if math.isnan(between.mean):
        return "–"
    text = with_half(between, least=0)
    return text if text.startswith("-") else f"+{text}"


def all_metrics(of: Comparison) -> Section:
    """Every metric of every task."""
    blocks: list[Heading | Table] = []
    for task in of.tasks:
        names = list(task.directions)
        columns = (Column("method", numeric=False), *(Column(metric_label(name)) for name in names))
        rows = tuple(
            (Cell(_whole(m.name)), *(Cell(with_half(of.interval(m.name, task.name, name))) for name in names))
            for m in of.methods
        )
        blocks.append(Table(columns, rows, caption=f"{task.name} ({task.kind})", folded=len(of.tasks) > 3))
    return section("metrics", "All metrics", *blocks)


def costs(of: Comparison) -> Section:
    """Time, memory, parameters, and what the searches chose."""
    columns = [Column("method", numeric=False), Column("training a seed"), Column("search"), Column("peak memory")]
    columns += [Column("parameters"), Column("chosen settings", numeric=False)]
    rows = []
    for method in of.methods:
        settings = ", ".join(f"{key}={_value(value)}" for key, value in method.settings.items())
        rows.append(
            (
                Cell(_whole(method.name)),
                Cell(duration(_seconds(method))),
                Cell(duration(method.search_seconds) if method.trials else ""),
                Cell(memory(method.peak_memory_bytes)),
                Cell(number(method.parameters)),
                Cell(settings if method.trials else "the recipe's", tone="quiet"),
            )
        )
    return section(
        "costs",
        "Cost and settings",
        Table(tuple(columns), tuple(rows)),
        Paragraph(
            "Peak memory is that of a worker process while it trained, rows included, which workers share. Times are "
            "of workers side by side, so compare them loosely.",
            hint=True,
        ),
    )


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _openings(of: Comparison) -> str:
    if len(of.openings) == 1:
        return "The test rows were opened once, when everything had been trained."
    told = "; then for ".join(map(", ".join, of.openings))
    return (
        f"The test rows were opened {len(of.openings)} times, for {told}. What came later may have been chosen by "
        "people who knew the scores before."
    )


def made(of: Comparison) -> Section:
    """Rows, recipe and versions."""
    facts = [(f"{count:,}", f"{part} rows") for part, count in of.sizes.items()]
    failed = [f"{m.name}, seed {seed}: {why}" for m in of.methods for seed, why in m.failed.items()]
    return section(
        "made",
        "How it was made",
        Facts(facts),
        Sentences(failed, notice="Trainings that failed") if failed else None,
        Paragraph(f"Seeds: {', '.join(map(str, of.seeds))}. Settings were chosen on the validation rows alone."),
        Paragraph(_openings(of)) if of.openings else None,
        Heading("Recipe, with every default filled in; each method changes its sharing, balancer and settings"),
        Code(write_yaml(of.recipe)),
        Paragraph(", ".join(f"{name} {version}" for name, version in of.versions.items()), hint=True),
    )


SECTIONS: tuple[Callable[[Comparison], Section], ...] = (
    answer,
    gains,
    front,
    differences,
    all_metrics,
    costs,
    made,
)
