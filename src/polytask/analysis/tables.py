"""The table of a comparison as text, Markdown and LaTeX."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from polytask.evaluation import Interval
from polytask.evaluation.scores import DASH, shown

if TYPE_CHECKING:
    from polytask.analysis.comparison import Comparison

Rows = list[list[str]]

MOST_COLUMNS = 4
"""Tasks whose scores fit on a line of a terminal."""


def with_half(interval: Interval, least: int = 3) -> str:
    """A mean with half its interval: two digits of the interval, and ``least`` of the mean if those are more.

    Example:
        >>> with_half(Interval(0.94512, 0.94479, 0.94545, 3)), with_half(Interval(12.0, float("nan"), float("nan"), 1))
        ('0.94512 ± 0.00033', '12.00')
    """
    if not interval.known or interval.half == 0:
        return shown(interval.mean)
    wanted = [1 - math.floor(math.log10(interval.half))]
    wanted += [least - 1 - math.floor(math.log10(abs(interval.mean)))] if interval.mean and least else []
    digits = min(max(*wanted, 0), 8)
    return f"{interval.mean:.{digits}f} ± {interval.half:.{digits}f}"


def percent(interval: Interval) -> str:
    """A percentage with its sign and interval.

    Example:
        >>> percent(Interval(1.234, 0.9, 1.6, 3))
        '+1.23 (+0.90 to +1.60)'
    """
    if math.isnan(interval.mean):
        return DASH
    ends = f" ({interval.low:+.2f} to {interval.high:+.2f})" if interval.known else ""
    return f"{interval.mean:+.2f}{ends}"


def cells(of: Comparison) -> Rows:
    """Heading and rows: method, every task's primary metric, delta_m and mean rank."""
    gains, ranks = of.gains(), of.mean_ranks()
    arrows = {True: "↑", False: "↓"}
    heading = ["method"]
    heading += [f"{task.name}, {task.primary} {arrows[task.directions[task.primary]]}" for task in of.tasks]
    rows = [[*heading, "delta_m %", "mean rank"]]
    for method in of.methods:
        scores = [with_half(of.interval(method.name, task.name, task.primary)) for task in of.tasks]
        gain = percent(gains[method.name].interval) if method.name in gains else "0"
        rows.append([method.name, *scores, gain, rank_text(ranks[method.name])])
    return rows


def rank_text(rank: float) -> str:
    """A mean rank, or a dash."""
    return DASH if math.isnan(rank) else f"{rank:.2f}"


def caption(of: Comparison) -> str:
    """What the table's numbers are."""
    count = len(of.seeds)
    if count == 1:
        spread = "one seed, so no interval can be given"
    else:
        spread = f"mean of {count} seeds ± half the 95 % interval (Student's t)"
    return (
        f"{of.title}: {of.part} rows, {spread}; budget {of.budget}. delta_m is relative to separate networks, positive "
        "is better."
    )


def text(of: Comparison) -> str:
    """As lines of text, with what follows from them; the scores of many tasks are left to the files."""
    rows = cells(of)
    if len(of.tasks) > MOST_COLUMNS:
        rows = [[row[0], *row[-2:]] for row in rows]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", *of.conclusion])


def markdown(of: Comparison) -> str:
    """As a Markdown table under its caption."""
    heading, *rows = [[cell.replace("|", "\\|") for cell in row] for row in cells(of)]
    lines = ["| " + " | ".join(row) + " |" for row in [heading, ["---"] * len(heading), *rows]]
    return "\n".join([caption(of), "", *lines, "", *[f"- {line}" for line in of.conclusion], ""])


_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    "–": "--",
}  # fmt: skip


def escaped(cell: str) -> str:
    """Text as LaTeX prints it.

    Example:
        >>> escaped("delta_m %"), escaped("0.9 ± 0.1")
        ('delta\\\\_m \\\\%', '0.9 $\\\\pm$ 0.1')
    """
    return "".join(_SPECIAL.get(letter, letter) for letter in cell)


def latex(of: Comparison) -> str:
    """As a LaTeX table with horizontal rules of the package booktabs."""
    heading, *rows = [[escaped(cell) for cell in row] for row in cells(of)]
    columns = "l" + "r" * (len(heading) - 1)
    body = [" & ".join(row) + r" \\" for row in rows]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(caption(of))}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(heading) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
