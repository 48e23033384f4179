"""The page: all sections that have something to say, in one file."""

from __future__ import annotations

from pathlib import Path

from polytask.reporting.page import Page, render_page, write_page
from polytask.reporting.record import RunRecord
from polytask.reporting.sections import SECTIONS


def render(record: RunRecord) -> str:
    """The report of a run as one self-contained HTML page.

    The page loads nothing: style and drawings are inside it. It has no script.

    Args:
        record: What the run left.

    Example:
        >>> from polytask.reporting import TaskRecord
        >>> task = TaskRecord("income", "binary", "auroc", {"auroc": True}, scores={"test": {"auroc": 0.94}})
        >>> page = render(RunRecord("Census", {}, {}, seed=0, command="polytask fit x.yaml", tasks=(task,)))
        >>> "income reaches an AUROC of 0.9400" in page
        True
    """
    return render_page(page_of(record))


def page_of(record: RunRecord) -> Page:
    """The page of a run: the sections that have something to say."""
    lead = [record.model.description, record.balancer]
    return Page(
        title=record.title,
        kind="polytask report",
        sections=tuple(section for make in SECTIONS if (section := make(record)) is not None),
        lead=" · ".join(text for text in lead if text),
        footer=f"{' '.join(['Drawn by polytask', record.versions.get('polytask', '')]).strip()} from report.json.",
    )


def write_report(record: RunRecord, path: Path | str) -> Path:
    """Write the report of a run, whole or not at all.

    Args:
        record: What the run left.
        path: Where the HTML file goes; folders are made.

    Returns:
        The path.
    """
    return write_page(page_of(record), path)
