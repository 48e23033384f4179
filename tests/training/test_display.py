import io
import math
import re

import pytest
from rich.console import Console

from polytask.errors import TrainingError
from polytask.training.display import Display

METRICS = {"income": ("auroc", True), "age": ("rmse", False)}


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def shown_on(terminal, **start):
    clock, text = Clock(), io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100, _environ={"TERM": "xterm-256color"})
    display = Display(console, clock=clock)
    display.start(1000, ["income", "age"], "hard sharing", **({"metrics": METRICS} | start))
    return display, clock, text


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())


def test_a_file_gets_a_line_every_ten_seconds():
    display, clock, text = shown_on(False)
    for step in range(1, 31):
        clock.now += 1
        display.step(step, {"income": 0.25, "age": 12.5}, rows=200)
    lines = text.getvalue().splitlines()
    assert lines[0] == "hard sharing"
    assert lines[1] == "step 10/1,000, 200 rows/s, 16:30 min left, loss: income 0.2500, age 12.5"
    assert [line.split(",")[0] for line in lines[1:]] == ["step 10/1", "step 20/1", "step 30/1"]
    assert "\x1b" not in text.getvalue()


@pytest.mark.parametrize(("terminal", "seconds"), [(True, 0.25), (False, 10.0)])
def test_losses_are_read_only_when_they_are_shown(terminal, seconds):
    display, clock, _ = shown_on(terminal)
    read = []
    for step in range(1, 401):
        clock.now += seconds / 100
        display.step(step, lambda: read.append(1) or {"income": 0.5})
    display.stop()
    assert 3 <= len(read) <= 4


def test_the_last_step_is_always_shown():
    display, clock, text = shown_on(False)
    clock.now += 1
    display.step(1000, {"income": 0.5})
    assert "step 1,000/1,000, took 1 s, loss: income 0.5000" in text.getvalue()


def test_time_left_counts_the_steps_of_this_process():
    display, clock, text = shown_on(False, done=900)
    clock.now += 20
    display.step(950, {})
    assert "step 950/1,000, 20 s left" in text.getvalue()


def test_lines_mark_the_best_in_the_direction_of_the_metric():
    display, _, text = shown_on(False)
    for epoch, (auroc, rmse) in enumerate([(0.8, 5.0), (0.9, 6.0), (0.85, 4.0), (math.nan, math.nan)], 1):
        display.validation(epoch, {"income": {"auroc": auroc, "f1": 0.1}, "age": {"rmse": rmse}})
    assert text.getvalue().splitlines()[1:] == [
        "epoch 1: income auroc 0.8000 *, age rmse 5.0000 *",
        "epoch 2: income auroc 0.9000 *, age rmse 6.0000",
        "epoch 3: income auroc 0.8500, age rmse 4.0000 *",
        "epoch 4: income auroc -, age rmse -",
    ]


def test_a_task_without_a_named_metric_shows_its_first_and_no_best():
    display, _, text = shown_on(False, metrics={})
    display.validation(1, {"income": {"f1": 0.5, "auroc": 0.9}})
    assert text.getvalue().splitlines()[-1] == "epoch 1: income f1 0.5000"


def test_the_live_view_shows_progress_losses_and_scores():
    display, clock, text = shown_on(True)
    for epoch in range(1, 31):
        clock.now += 1
        display.step(epoch * 10, lambda: {"income": 0.123, "age": 7.0}, rows=100)
        display.validation(epoch, {"income": {"auroc": 0.9 if epoch == 3 else 0.5}, "age": {"rmse": 50.0 - epoch}})
    display.stop()
    last = plain(text).split("epoch")[-1]
    assert "300/1,000" in last
    assert "100 rows/s" in last
    assert "1:10 min left" in last
    assert re.search(r"income 0\.1230 +age 7\.0000", last)
    rows = re.findall(r"^ +(\d+) +(\*? ?[\d.]+) +(\*? ?[\d.]+)", last, flags=re.MULTILINE)
    assert [int(row[0]) for row in rows] == [3, *range(21, 31)]
    assert [row[0] for row in rows if "*" in row[1]] == ["3"]
    assert [row[0] for row in rows if "*" in row[2]] == ["30"]


def test_tasks_that_do_not_fit_are_counted():
    text = io.StringIO()
    display = Display(Console(file=text, width=60), live=True)
    tasks = [f"task_{i:02d}" for i in range(12)]
    display.start(10, tasks)
    display.validation(1, {task: {"accuracy": 0.5} for task in tasks})
    display.stop()
    last = plain(text).split("epoch")[-1]
    assert last.count("0.5000") == 5
    assert "and 7 more tasks" in last
    assert max(map(len, last.splitlines())) <= 60


def test_names_and_messages_are_not_markup():
    clock, text = Clock(), io.StringIO()
    display = Display(Console(file=text, width=100), live=True, clock=clock)
    display.start(10, ["[bold]x[/]"], "[red]sum[/red]")
    clock.now += 1
    display.step(1, {"[bold]x[/]": 0.5})
    display.validation(1, {"[bold]x[/]": {"f1": 0.5}})
    display.message("[/]")
    display.stop()
    for words in ("[red]sum[/red]", "[bold]x[/] 0.5000", "[/]"):
        assert words in text.getvalue()


def test_order_of_calls():
    display = Display(Console(file=io.StringIO()), live=False)
    display.stop()
    for call in (lambda: display.step(1, {}), lambda: display.validation(1, {})):
        with pytest.raises(TrainingError, match=r"Call start\(\) first"):
            call()
    display.start(10, [])
    with pytest.raises(TrainingError, match=r"Call stop\(\) before start"):
        display.start(10, [])
    display.stop()
    display.stop()
    display.start(10, [])
    display.step(10, {})
