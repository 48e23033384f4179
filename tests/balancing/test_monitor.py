from __future__ import annotations

import pytest
import torch

from polytask.balancing import ConflictMonitor, StepReport, conflict
from polytask.errors import BalancerError

ROWS = torch.tensor([[3.0, 0.0], [-1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)


def report(rows, weights=(1.0, 1.0, 0.0)):
    one = torch.tensor(1.0)
    names = ("a", "b", "c")
    return StepReport(
        dict.fromkeys(names, one),
        {name: torch.tensor(w) for name, w in zip(names, weights, strict=True)},
        rows @ rows.T,
    )


def test_figures_of_explicit_rows():
    found = conflict(ROWS @ ROWS.T, ["a", "b", "c"], torch.tensor([1.0, 2.0, 5.0]))
    cosine = torch.nn.functional.cosine_similarity(ROWS[0], ROWS[1], dim=0).item()
    assert found.cosines == {("a", "b"): pytest.approx(cosine)}
    assert found.ratios == {("a", "b"): pytest.approx(2**0.5 / 3)}
    assert found.rate == 1.0
    assert found.norms == {"a": 3.0, "b": pytest.approx(2**0.5), "c": 0.0}
    assert found.update_norm == pytest.approx((ROWS[0] + 2 * ROWS[1]).norm().item())
    assert found.weights == {"a": 1.0, "b": 2.0, "c": 5.0}


def test_a_single_task_has_no_pairs():
    assert conflict(torch.ones(1, 1), ["a"]).rate is None


def test_only_every_so_many_steps_and_only_with_a_gramian():
    monitor = ConflictMonitor(every=2)
    looked = [monitor.observe(report(ROWS)) is not None for _ in range(4)]
    assert looked == [True, False, True, False]
    assert monitor.observe(StepReport({"a": torch.tensor(1.0)})) is None
    assert len(monitor.steps) == 2


def test_warnings_name_what_stands_out():
    monitor = ConflictMonitor()
    monitor.observe(report(ROWS))
    monitor.observe(report(ROWS * torch.tensor([[1.0], [-1e-4], [1.0]])))
    monitor.observe(report(ROWS * torch.tensor([[1.0], [1e-4], [1.0]])))
    texts = monitor.warnings(ratio=0.5)
    assert texts[0] == "'a' and 'b' conflict in 67 % of the steps looked at (mean cosine -0.24)."
    assert "hardly counts in a plain sum" in texts[1]
    assert texts[2] == "'c' has a mean weight of 0, while 0.667 is typical: it is hardly trained."
    assert len(texts) == 3


def test_wrong_shapes_are_refused():
    with pytest.raises(BalancerError, match=r"shape \[2, 2\] but there are 1 tasks"):
        conflict(torch.ones(2, 2), ["a"])
    with pytest.raises(BalancerError, match="at least 1"):
        ConflictMonitor(every=0)
