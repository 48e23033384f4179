"""Tasks made by hand, so that these tests need no task kind."""

from __future__ import annotations

import pytest
import torch

from polytask.tasks.task import HeadSpec, TargetSpec, Task


def _unused(*_):
    raise AssertionError("The data side must not call this.")


@pytest.fixture
def make_task():
    def make(name, form, classes=None, positive=None, columns=()):
        return Task(
            name=name,
            kind=form,
            loss=_unused,
            head=HeadSpec(),
            metrics={},
            score=_unused,
            decode=_unused,
            target=TargetSpec(form, classes, positive, columns),
            primary="",
            options={"columns": columns},
            refit=_unused,
        )

    return make


@pytest.fixture
def same():
    def check(found, wanted):
        wanted = torch.as_tensor(wanted, dtype=found.dtype)
        assert found.shape == wanted.shape
        assert torch.equal(found.isnan(), wanted.isnan())
        torch.testing.assert_close(found.nan_to_num(), wanted.nan_to_num(), rtol=1e-6, atol=0)

    return check
