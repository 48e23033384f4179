"""The page of a search, and what it found in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from polytask.recipes.load import write_yaml
from polytask.reporting.blocks import Code, Facts, Figures, Heading, Paragraph, Sentences, section
from polytask.reporting.dots import Point, Row, interval_rows, log_axis, named_points
from polytask.reporting.page import Page
from polytask.reporting.plots import MUTED, SERIES, Line, lines, svg
from polytask.reporting.section import Section
from polytask.reporting.tables import Cell, Column, Table
from polytask.reporting.words import duration, number, percent, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from polytask.analysis.tuning import Setting, Tuning

FOLD = 30


def conclusion(of: Tuning) -> list[str]:
    """What was found, in words."""
    done = [setting for setting in of.settings if setting.state == "complete"]
    texts = []
    if len(of.objectives) == 1:
        (best,) = of.best
        stands, value = of.as_it_stands[0], best.scores[0]
        verdict = "better than" if value > stands else "no better than"
        texts.append(
            f"The best of {plural(len(of.settings), 'trial')} is trial {best.number} ({told(best.values)}), with "
            f"{of.objectives[0]} {number(value)} on the validation rows: {verdict} the recipe as it stands "
            f"({number(stands)})."
        )
        texts.append(
            "The best of many trials looks better than it is. Score it on the test rows: polytask fit best.yaml."
        )
    else:
        texts.append(
            f"{len(of.best)} of {plural(len(done), 'trial')} are on the front: no other is better in all of "
            f"{', '.join(of.objectives)}."
        )
    pruned = sum(setting.state == "pruned" for setting in of.settings)
    failed = [setting for setting in of.settings if setting.state == "fail"]
    if pruned:
        texts.append(f"{plural(pruned, 'trial')} lay behind the others and were given up early.")
    if failed:
        texts.append(f"{plural(len(failed), 'trial')} failed; the first: {failed[0].failed}")
    return texts


def told(values: Mapping[str, Any]) -> str:
    """A setting in one line."""
    return ", ".join(f"{key}={_shown(value)}" for key, value in values.items())


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def tuning_page(of: Tuning) -> Page:
    """The page: what was found, how it went, and every trial."""
    return Page(
        title=of.title,
        kind="polytask search",
        sections=(_answer(of), _course(of), _trials(of)),
        lead=f"{plural(len(of.settings), 'trial')} over {plural(len(of.space), 'key')}",
        footer=f"{' '.join(['Drawn by polytask', of.versions.get('polytask', '')]).strip()} from results.json.",
    )


def _answer(of: Tuning) -> Section:
    facts = [(str(len(of.settings)), "trials"), (duration(sum(s.seconds for s in of.settings)), "of training in all")]
    changed = [block for setting in of.best for block in _setting(of, setting)]
    return section("answer", "What it found", Sentences(conclusion(of)), Facts(facts), *changed)


def _setting(of: Tuning, setting: Setting) -> list[Heading | Code]:
    scores = ", ".join(f"{name} {number(v)}" for name, v in zip(of.objectives, setting.scores, strict=True))
    return [Heading(f"Trial {setting.number}: {scores}"), Code(write_yaml(setting.values).rstrip())]


def _course(of: Tuning) -> Section:
    drawn = [_history(of)] if len(of.objectives) == 1 else [_front(of)]
    drawn += [_slice(of, key) for key in of.space]
    if of.importance:
        rows = [Row(key, [], share) for key, share in of.importance.items()]
        drawn.insert(
            1, interval_rows(rows, title="importance of each key", x_label="share of the differences", zero=True)
        )
    caption = "Dots are trials; the dashed line is the recipe as it stands."
    if of.importance:
        caption += " Importance: the share of the variance between trials that a key explains by itself (fANOVA)."
    return section("course", "How it went", Figures(drawn, caption))


def _complete(of: Tuning) -> list[Setting]:
    return [setting for setting in of.settings if setting.state == "complete"]


def _history(of: Tuning) -> Markup:
    done = _complete(of)
    values = [setting.scores[0] for setting in done]
    best = [max(values[: at + 1]) for at in range(len(values))]
    numbers = [setting.number for setting in done]
    stands = Line([numbers[0], numbers[-1]], [of.as_it_stands[0]] * 2, "as it stands", dashed=True)
    series = [stands, Line(numbers, values, "trial", 0), Line(numbers, best, "best so far", 1)]
    return lines(series, title=of.objectives[0], x_label="trial")


def _front(of: Tuning) -> Markup:
    front = {setting.number for setting in of.best}
    points = [
        Point(f"trial {s.number}", s.scores[0], s.scores[1], marked=s.number in front)
        for s in _complete(of)
        if s.number in front or len(_complete(of)) <= FOLD
    ]
    points.append(Point("as it stands", of.as_it_stands[0], of.as_it_stands[1], quiet=True))
    return named_points(points, title="trials", x_label=of.objectives[0], y_label=of.objectives[1])


def _slice(of: Tuning, key: str) -> Markup:
    """The first objective against the values of one key."""
    done, space = _complete(of), of.space[key]
    choices = [str(value) for value in space] if isinstance(space, list) else []

    def draw(axes: Axes) -> None:
        x = [choices.index(str(s.values[key])) if choices else s.values[key] for s in done]
        axes.plot(x, [s.scores[0] for s in done], "o", color=SERIES[0], alpha=0.6, markersize=4, markeredgewidth=0)
        axes.axhline(of.as_it_stands[0], color=MUTED, linewidth=1.1, dashes=(4, 3))
        if choices:
            upright = max(map(len, choices)) > 40 / len(choices)
            axes.set_xticks(range(len(choices)), choices, rotation=90 if upright else 0)
            axes.set_xlim(-0.5, len(choices) - 0.5)
        elif space["log"]:
            log_axis(axes)
        axes.set(title=key, ylabel=of.objectives[0])

    return svg(draw, (3.6, 2.6), key)


def _trials(of: Tuning) -> Section:
    keys = list(of.space)
    columns = [Column("trial"), *(Column(key, numeric=False) for key in keys), *map(Column, of.objectives)]
    columns += [
        Column("epoch", help="the best epoch, of those that were trained"),
        Column("seconds"),
        Column("", numeric=False),
    ]
    best = {setting.number for setting in of.best}
    order = sorted(of.settings, key=lambda s: (s.state != "complete", s.state, [-v for v in s.scores], s.number))
    rows = []
    for setting in order:
        # The last value of a trial that was given up is no score of it.
        shown = setting.scores if setting.state == "complete" else [None] * len(of.objectives)
        cells = [Cell(str(setting.number)), *(Cell(_shown(setting.values[key])) for key in keys)]
        cells += [Cell(number(v), tone="good" if setting.number in best else "") for v in shown]
        cells += [Cell(f"{setting.epoch} of {setting.epochs}"), Cell(f"{setting.seconds:.1f}")]
        notes = {"pruned": "given up early", "fail": f"failed: {setting.failed}"}
        rows.append((*cells, Cell(notes.get(setting.state, ""), tone="quiet")))
    share = percent(sum(s.state == "complete" for s in of.settings) / len(of.settings))
    return section(
        "trials",
        "All trials",
        Paragraph(
            f"{share} of the trials ran to their end. Scores are of the validation rows; higher is better, with the "
            "sign turned where less is better."
        ),
        Table(tuple(columns), tuple(rows), caption=plural(len(rows), "trial"), folded=len(rows) > FOLD),
    )
