"""The sections of the page, in order. A new one is a file with a function, and a line here."""

from collections.abc import Callable

from polytask.reporting.record import RunRecord
from polytask.reporting.section import Section
from polytask.reporting.sections.conflict import conflict
from polytask.reporting.sections.data import data
from polytask.reporting.sections.decision import decision
from polytask.reporting.sections.learning import learning
from polytask.reporting.sections.model import model
from polytask.reporting.sections.overview import overview
from polytask.reporting.sections.run import run
from polytask.reporting.sections.sharing import sharing
from polytask.reporting.sections.tasks import tasks

SECTIONS: tuple[Callable[[RunRecord], Section | None], ...] = (
    overview,
    learning,
    tasks,
    decision,
    conflict,
    sharing,
    data,
    model,
    run,
)
