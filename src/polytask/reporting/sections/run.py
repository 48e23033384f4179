"""How to repeat the run: command, recipe, versions, time."""

from __future__ import annotations

from polytask.reporting.record import RunRecord
from polytask.reporting.section import Section, fill


def run(record: RunRecord) -> Section:
    """Everything needed to do it again."""
    import yaml

    recipe = yaml.safe_dump(record.to_dict()["recipe"], sort_keys=False, allow_unicode=True, width=100)
    return Section("run", "Run", fill("run.html.j2", record=record, recipe=recipe))
