"""What follows from scores, on scores that are made up."""

import json
import math
import re

import numpy as np
import pytest
from scipy import stats

from polytask.analysis.comparison import Comparison
from polytask.analysis.method_result import MethodResult, TaskFacts
from polytask.analysis.report import comparison_page
from polytask.analysis.tables import latex, markdown
from polytask.errors import DataError
from polytask.evaluation import holm
from polytask.reporting.page import render_page

TASKS = (
    TaskFacts("a", "binary", "auroc", {"auroc": True, "f1": True}),
    TaskFacts("b", "regression", "rmse", {"rmse": False}),
)
NAN = math.nan


def method(name, a, b, **facts):
    """A method with an AUROC of a and an RMSE of b, one a seed."""
    scores = {
        seed: {"a": {"auroc": x, "f1": x / 2}, "b": {"rmse": y}} for seed, (x, y) in enumerate(zip(a, b, strict=True))
    }
    sharing, _, balancer = name.partition(" + ")
    kind = "trees" if name == "trees" else "network"
    given = {"parameters": 300 if name == "separate" else 100, "seconds": (1.0,) * len(a)}
    return MethodResult(
        name, kind, {"name": sharing}, {"name": balancer or "equal"}, scores, scores, **{**given, **facts}
    )


def comparison(*methods, seeds=3, part="test"):
    return Comparison("Made up", TASKS, methods, tuple(range(seeds)), "trials=1", part, {part: 100})


SEPARATE = method("separate", [0.80, 0.82, 0.81], [2.0, 2.2, 2.1])
BETTER = method("hard + pcgrad", [0.90, 0.925, 0.91], [1.0, 1.11, 1.04])
WORSE = method("hard + mgda", [0.70, 0.715, 0.711], [3.0, 3.32, 3.14])
EQUAL = method("hard + equal", [0.80, 0.81, 0.82], [2.1, 2.0, 2.2])
LEVEL = method("hard + dwa", [0.81, 0.80, 0.82], [2.0, 2.1, 2.2])


def test_intervals_differences_and_gains_are_those_of_scipy():
    found = comparison(SEPARATE, EQUAL, BETTER)
    ours = found.interval("hard + equal", "a", "auroc")
    values = np.array([0.80, 0.81, 0.82])
    assert (ours.low, ours.high) == pytest.approx(stats.t.interval(0.95, 2, values.mean(), stats.sem(values)))
    differences = found.differences()
    assert len(differences) == 4
    p = {}
    for name, of in (("hard + equal", EQUAL), ("hard + pcgrad", BETTER)):
        for task, metric in (("a", "auroc"), ("b", "rmse")):
            pair = [[m.scores[seed][task][metric] for seed in range(3)] for m in (of, SEPARATE)]
            p[name, task] = stats.ttest_rel(*pair).pvalue
    assert {key: d.p for key, d in differences.items()} == pytest.approx(p)
    assert [d.adjusted for d in differences.values()] == pytest.approx(holm([d.p for d in differences.values()]))
    # delta_m of seed 0 by hand: AUROC from 0.80 to 0.90, RMSE from 2 to 1.
    deltas = found.delta_m()["hard + pcgrad"]
    assert deltas[0] == pytest.approx((12.5 + 50) / 2)
    gain = found.gains()["hard + pcgrad"]
    assert gain.p == pytest.approx(stats.ttest_1samp(deltas, 0).pvalue)
    assert found.delta_m(metrics={"a": ["auroc", "f1"]}, convention="flat")["hard + pcgrad"][0] == pytest.approx(-12.5)
    assert found.delta_m()["separate"] == [0.0, 0.0, 0.0]


def test_ranks_and_front():
    trees = method("trees", [0.95] * 3, [NAN] * 3, fixed=True)
    found = comparison(SEPARATE, trees, EQUAL, BETTER, WORSE)
    ranks = found.mean_ranks()
    assert (ranks["hard + pcgrad"], ranks["hard + mgda"]) == (1.0, 4.0)
    assert math.isnan(ranks["trees"])  # it cannot do one task
    assert found.pareto_front() == ["hard + pcgrad"]
    assert not found.interval("trees", "a", "auroc").known  # one training stands for all seeds
    assert any("Trees cannot do: b" in line for line in found.conclusion)


@pytest.mark.parametrize(
    ("methods", "first", "others"),
    [
        ([WORSE], "Train them separately. The one shared network is worse than separate ones beyond noise", []),
        ([EQUAL], "No shared network beat separate ones beyond noise. Not told apart from them, hard + equal", []),
        ([EQUAL, BETTER], "hard + pcgrad beat separate networks by a delta_m of +31.", ["beat equal weighting by"]),
        ([EQUAL, LEVEL], "No shared network", ["No method beat equal weighting"]),
        ([EQUAL, WORSE], "No shared network", ["Worse than equal weighting beyond noise: hard + mgda."]),
    ],
)  # fmt: skip
def test_conclusions(methods, first, others):
    lines = comparison(SEPARATE, *methods).conclusion
    assert lines[0].startswith(first)
    for other in others:
        assert any(other in line for line in lines[1:]), lines
    assert "3 seeds give wide intervals" in lines[-1]


def test_trees_that_are_better_are_told():
    trees = method("trees", [0.99] * 3, [0.1] * 3, fixed=True)
    lines = comparison(SEPARATE, trees, EQUAL, BETTER).conclusion
    assert "Gradient-boosted trees are better than every network, beyond noise, in: a, b." in lines


def test_noise_is_not_taken_for_a_gain():
    # Methods that draw from one distribution: "beat" may be said in at most 5 % of comparisons.
    random = np.random.default_rng(0)
    said = 0
    for _ in range(150):
        drawn = [
            method(name, random.normal(0.8, 0.02, 5), random.normal(2, 0.1, 5))
            for name in ("separate", "hard + equal", "hard + dwa", "hard + mgda", "hard + pcgrad")
        ]
        said += " beat separate" in comparison(*drawn, seeds=5).conclusion[0].replace(
            "No shared network beat separate", ""
        )
    assert said <= 15  # 7.5 are expected at most; this is 2.8 deviations above


def test_single_seed_validation_rows_and_failures():
    one = [method(m.name, [m.scores[0]["a"]["auroc"]], [m.scores[0]["b"]["rmse"]]) for m in (SEPARATE, BETTER)]
    found = comparison(*one, seeds=1, part="validation")
    assert found.conclusion[0].startswith("With one seed no interval can be given")
    assert any("There are no test rows" in line for line in found.conclusion)
    assert not any("beat" in line for line in found.conclusion)
    broken = method("hard + famo", [0.9], [1.0], failed={1: "the loss is not finite", 2: "the loss is not finite"})
    lines = comparison(SEPARATE, broken).conclusion
    assert any("hard + famo failed with 2 of 3 seeds (the loss is not finite)" in line for line in lines)


def test_a_baseline_of_zero_is_told_and_not_divided_by():
    zero = method("separate", [0.0, 0.1, 0.2], [1.0, 1.1, 1.2])
    found = comparison(zero, EQUAL)
    with pytest.raises(DataError, match="baseline's auroc of task 'a' is 0"):
        found.delta_m()
    assert "baseline's auroc of task 'a' is 0" in found.conclusion[0]
    assert "baseline&#39;s auroc" in render_page(comparison_page(found))
    assert math.isnan(found.gains()["hard + equal"].interval.mean)


def test_metrics_that_differ_between_runs():
    other = MethodResult("hard + old", "network", {}, {}, {0: {"a": {"auroc": 1.0}, "b": {"rmse": 1.0}}}, {})
    with pytest.raises(DataError, match=r"task 'a' of 'hard \+ old', seed 0, has auroc; expected auroc, f1"):
        comparison(SEPARATE, other)
    with pytest.raises(DataError, match=r"Unknown method 'hard \+ pcgard'.*Did you mean 'hard \+ pcgrad'"):
        comparison(SEPARATE, BETTER)["hard + pcgard"]
    with pytest.raises(DataError, match="metrics of 'a': Unknown metric 'aurco'"):
        comparison(SEPARATE, BETTER).delta_m(metrics={"a": ["aurco"]})


def test_plain_data_and_back():
    trial = {"settings": {"training.lr": 0.1}, "value": NAN}
    trees = method("trees", [0.95] * 3, [NAN] * 3, fixed=True)
    plain = {
        s: {t: {k: None if math.isnan(v) else v for k, v in m.items()} for t, m in of.items()}
        for s, of in trees.scores.items()
    }
    trees = MethodResult("trees", "trees", {}, {}, plain, plain, fixed=True, trials=(trial,))
    found = comparison(SEPARATE, trees, BETTER)
    text = json.dumps(found.to_dict(), allow_nan=False)
    again = Comparison.from_dict(json.loads(text))
    assert json.dumps(again.to_dict()) == text
    assert json.loads(text)["figures"]["pareto_front"] == ["hard + pcgrad"]


def test_tables_name_every_method_once_and_escape():
    found = comparison(SEPARATE, BETTER, method("hard + nash_mtl", [0.8, 0.81, 0.8], [2.0, 2.1, 2.0]))
    lines = [line for line in markdown(found).splitlines() if line.startswith("| hard + nash_mtl ")]
    assert len(lines) == 1
    text = latex(found)
    assert r"hard + nash\_mtl & 0.803 $\pm$ 0.014 & 2.03" in text
    assert text.count(r"\\") == 4
    assert r"delta\_m \%" in text
    assert "0.912 ± 0.031" in repr(found)


def test_every_cell_stands_below_its_heading():
    page = render_page(comparison_page(comparison(SEPARATE, EQUAL, BETTER)))
    tables = re.findall(r"<table>(.*?)</table>", page, flags=re.DOTALL)
    plain = [
        [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", t, flags=re.DOTALL)]
        for t in tables
    ]
    assert all(len({len(row) for row in rows}) == 1 for rows in plain)
    first = dict(zip(plain[0][0], plain[0][3], strict=True))
    assert first["method"].replace("\N{NO-BREAK SPACE}", " ") == "hard + pcgrad"
    assert first["a, AUROC ↑"] == "0.912 ± 0.031"
    assert first["b, RMSE ↓"] == "1.05 ± 0.14"
    assert first["mean rank"] == "1.00"
    assert first["on the front"] == "yes"
    assert first["delta_m %"].startswith("+31.")
    assert first["p"] == "&lt; 0.001"


def test_the_page_needs_nothing_from_elsewhere():
    trees = method("trees", [0.95] * 3, [1.0] * 3, fixed=True)
    page = render_page(comparison_page(comparison(SEPARATE, trees, EQUAL, BETTER, WORSE)))
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert 'class="num good"' in page
    assert 'class="num bad"' in page
