import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from polytask.reporting import (
    ColumnRecord,
    DataSummary,
    ModelPart,
    ModelSummary,
    RunRecord,
    TaskRecord,
    render,
    write_report,
)
from polytask.reporting.section import Section
from polytask.reporting.sections import SECTIONS, conflict

VOID = {"meta", "br", "img", "hr", "link", "input"}


class Page(HTMLParser):
    """Tags, attributes and visible words; fails on a tag that is closed in the wrong place."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def html(record):
    return render(record)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def bare(*tasks, **parts):
    return RunRecord("t", {}, {}, 0, "", tuple(tasks), **parts)


def task(name="a", metric="auroc", higher=True, score=0.9, **parts):
    return TaskRecord(name, "binary", metric, {metric: higher}, scores={"test": {metric: score}}, **parts)


def test_every_tag_is_closed_and_every_link_leads_somewhere(page):
    assert page.open == []
    ids = [value for name, value in page.attributes if name == "id"]
    links = [value[1:] for name, value in page.attributes if name == "href" and value.startswith("#")]
    assert links
    assert set(links) <= set(ids)
    anchors = ["scores", "learning", "tasks", "task-1", "task-5", "conflict", "data", "model", "run"]
    assert set(anchors) <= set(links)


def test_the_page_needs_nothing_else(html, page):
    assert "script" not in page.tags
    assert "link" not in page.tags
    loads = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert all(value.startswith(("#", "data:")) for value in loads)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_the_page_is_small(html):
    assert len(html.encode()) < 800_000


def test_drawings_follow_the_colours_of_the_page(html):
    drawn = re.findall(r"<svg viewBox.*?</svg>", html, flags=re.DOTALL)
    # 5 tasks x 2 curves; 3 curves and a matrix for each binary task; a matrix; 2 for the regression; 4 of conflict
    assert len(drawn) == 10 + 2 * 4 + 1 + 2 + 4
    for svg in drawn:
        assert "var(--" in svg
        assert "#0101" not in svg
        assert not re.search(r"(?:fill|stroke): #(?!ffffff|000000)[0-9a-f]{6}", svg)


def test_words_of_every_part_are_there(page, record):
    expected = [
        "Census-Income", "income reaches an AUROC of", "better than boosted trees (0.9517)", "2 min 13 s", "1.2 GiB",
        "179,571", "12 rows left out", "cagrad at the features", "no improvement in 3 validations", "epoch 11",
        "Doctorate degree(PhD EdD)", "99,696", "country of birth father", "polytask fit recipes/census.yaml",
        "name: tabular", "2.13.0", "conflict in 62 %", "income and weeks_worked", "self-employed",
    ]  # fmt: skip
    assert [words for words in expected if words not in page.text] == []


def test_names_from_the_data_are_text_and_never_markup():
    evil = "<script>alert('x')</script>"
    column = ColumnRecord(evil, evil, 3, 1)
    record = RunRecord(
        evil, {evil: evil}, {evil: evil}, 0, evil,
        (replace(task(evil, evil), kind=evil, reference={evil: {evil: 0.8}}, classes=(evil, "b & c"),
                 labelled={evil: 5}, figures={"confusion": {"matrix": [[3, 1], [0, 2]]},
                                              "labels": [{"label": evil, "f1": 0.5}]}),),
        epochs=({"epoch": 1, f"loss.{evil}": 1.0}, {"epoch": 2, f"loss.{evil}": 0.5}),
        balancing=({"step": 1, f"weight.{evil}": 1.0, f"cosine.{evil}.b": -0.1},), balancer=evil, stop_reason=evil,
        data=DataSummary({evil: 3}, (column,), 1, (evil,)), model=ModelSummary((ModelPart(evil, evil, 3),), evil),
        warnings=(evil,),
    )  # fmt: skip
    found = Page(render(record))
    assert "script" not in found.tags
    assert found.open == []
    assert found.text.count(evil) > 20


def test_a_record_with_nothing_but_scores():
    text = Page(render(bare(task()))).text
    assert "a reaches an AUROC of 0.9000 on the test rows." in text
    for absent in ("Learning curves", "Balancing", "Inputs"):
        assert absent not in text


def test_a_record_without_tasks_is_a_page():
    assert "Scores" in Page(render(bare())).text


def test_an_undefined_score_is_a_dash_and_is_said():
    text = Page(render(bare(task(score=float("nan"), labelled={"test": 3})))).text
    assert "a has no AUROC on 3 test rows: it is undefined there." in text
    assert "AUROC ↑ –" in text


@pytest.mark.parametrize(
    ("higher", "ours", "words"),
    [
        (True, 0.9, "0.1000 better than b (0.8000)"),
        (True, 0.7, "0.1000 worse than b (0.8000)"),
        (False, 0.9, "0.1000 worse than b (0.8000)"),
        (False, 0.7, "0.1000 better than b (0.8000)"),
        (True, 0.8, "equal to b (0.8000)"),
    ],
)
def test_a_reference_is_compared_in_the_direction_of_the_metric(higher, ours, words):
    text = Page(render(bare(task("a", "x", higher, ours, reference={"b": {"x": 0.8}})))).text
    assert words in text
    assert "lower is better)" in text or higher


def test_the_last_split_stands_in_where_there_is_no_test():
    only = TaskRecord("a", "binary", "f1", {"f1": True}, scores={"validation": {"f1": 0.5}}, labelled={"validation": 7})
    assert "a reaches an F1 of 0.5000 on 7 validation rows." in Page(render(bare(only))).text


def test_many_classes_stay_readable_and_small():
    k = 121
    matrix = np.eye(k) * 50
    matrix[7, 90] = 20
    matrix[100] = 0  # a class without rows
    names = tuple(f"species {index}" for index in range(k))
    html = render(bare(task(classes=names, figures={"confusion": {"matrix": matrix}})))
    found = Page(html)
    assert "takes “species 7” for “species 90”: 20 rows, 28.6 % of that class" in found.text
    assert "121 classes" in found.text
    assert "data:image/png" in html
    assert html.count("<details>") == 1
    assert len(html) < 400_000


def test_right_predictions_only():
    html = render(bare(task(classes=("x", "y"), figures={"confusion": {"matrix": [[3, 0], [0, 4]]}})))
    assert "No row was given a wrong class." in html


def test_epochs_without_a_value_are_left_out():
    rows = ({"epoch": 1, "loss.a": 0.5}, {"epoch": 2, "loss.a": None, "a.auroc": None}, {"epoch": 3, "loss.a": 0.25})
    text = Page(render(bare(task(), epochs=rows))).text
    assert "training loss" in text
    assert "validation AUROC" not in text


def test_pairs_are_listed_from_the_most_opposed_on():
    rows = tuple({"step": i, "cosine.a.b.c": 0.5, "cosine.a.d": (-1) ** i * 0.1 - 0.05} for i in range(4))
    made = conflict(bare(task("a.b"), task("c"), task("a"), task("d"), balancing=rows))
    text = Page(str(made.html)).text
    # the first in the legend and in the table, and "a.b and c" although both hold a dot
    assert text.index("a and d") < text.index("a.b and c")
    assert "a and d -0.0500 50.0 % -0.1500" in text


def test_the_conflict_section_is_absent_without_rows():
    assert conflict(bare(task())) is None
    assert conflict(bare(task(), balancing=({"step": 1, "lr": 0.1, "loss.a": 1.0},))) is None


def test_weights_that_never_change_are_said_and_not_drawn():
    rows = tuple({"step": i, "weight.a": 1.0, "weight.b": 0.5} for i in range(3))
    made = str(conflict(bare(task("a"), task("b"), balancing=rows)).html)
    assert "The weights stayed the same in every step: a 1, b 0.5." in made
    assert "<svg" not in made
    changed = (*rows, {"step": 3, "weight.a": 2.0})
    assert "<svg" in str(conflict(bare(task("a"), task("b"), balancing=changed)).html)


def test_a_section_is_one_function(monkeypatch):
    from polytask.reporting import report

    monkeypatch.setattr(report, "SECTIONS", (*SECTIONS, lambda of: Section("gates", "Gates", f"{len(of.tasks)} gates")))
    html = render(bare(task()))
    assert '<a href="#gates">Gates</a>' in html
    assert "1 gates" in html


def test_the_same_record_gives_the_same_page(html, record):
    assert render(RunRecord.from_dict(record.to_dict())) == html


def test_a_page_is_written_whole(tmp_path):
    path = write_report(bare(task()), tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8").endswith("</html>")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_conflict_by_layer_is_drawn_over_the_steps(record):
    layers = [f"layer_cosine.sharing.encoder.{i}" for i in range(3)]
    rows = tuple({"step": 10 * s, **{name: 0.1 * i - 0.01 * s for i, name in enumerate(layers)}} for s in range(1, 31))
    page = render(replace(record, balancing=rows))
    assert "mean cosine by shared layer" in page
    assert all(f"encoder.{i}" in page for i in range(3))
    # Thirty looks in twelve columns: the first cell is the mean of looks 1 to 3, and it is of the first layer.
    assert ">-0.02<" in page.replace("−", "-")
    assert "mean cosine by shared layer" not in render(record)
