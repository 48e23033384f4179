"""The pictures of what tasks share, from matrices whose meaning is known."""

import re
from dataclasses import replace

import numpy as np
import pytest

from polytask.reporting import RunRecord, SharingRecord, TaskRecord, render
from polytask.reporting.heat import matrix, short
from polytask.reporting.sections.branches import paths_of, sureness, tree_or_table
from polytask.reporting.sections.sharing import MAX_MATRICES, sharing
from polytask.reporting.trees import tree

TASKS = ("income", "married")


def entry(name, axes, values, rows=TASKS, columns=None, size=None):
    values = np.asarray(values, dtype=float)
    columns = columns or tuple(str(number + 1) for number in range(values.shape[2]))
    plain = tuple(tuple(tuple(None if np.isnan(v) else float(v) for v in r) for r in look) for look in values)
    return SharingRecord(
        name, axes, rows, columns, size or values.shape[1:], tuple(range(1, len(values) + 1)), plain
    )  # fmt: skip


def gates(epochs=5, experts=3):
    course = np.linspace(0.2, 0.6, epochs)
    first = np.stack([course, *[(1 - course) / (experts - 1)] * (experts - 1)], axis=-1)
    return entry("gates", ("task", "expert"), np.stack([first, first[:, ::-1]], axis=1))


def stitches(name="stitch 1", epochs=4):
    own = np.linspace(0.9, 0.8, epochs)
    values = np.stack([np.stack([own, 0.1 + 0 * own], -1), np.stack([1 - own, own], -1)], axis=1)
    return entry(name, ("task", "task"), values, columns=TASKS)


def record(*entries, **changes):
    tasks = tuple(TaskRecord(name, "binary", "auroc", {"auroc": True}) for name in TASKS)
    return RunRecord("Census", {}, {}, seed=0, command="x", tasks=tasks, sharing=entries, **changes)


def texts(section):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", section.html))


def test_a_run_without_matrices_has_no_such_section():
    assert sharing(record()) is None
    assert "What the tasks share" not in render(record())


def test_gates_are_a_heat_map_with_numbers_and_a_plot_for_each_task():
    section = sharing(record(gates()))
    assert section.html.count("<svg") == 3
    text = texts(section)
    assert "0.60" in text  # the last look
    assert "gates after epoch 5" in text
    assert "income: expert 1 (0.60), married: expert 3 (0.60)" in text
    assert text.count("expert 2") >= 2  # in both legends


def test_the_weights_that_were_kept_are_shown():
    text = texts(sharing(record(gates(), best_epoch=2)))
    assert "gates after epoch 2" in text
    assert "income: expert 2 (0.35)" in text  # 0.3 of the first expert, 0.35 of the two others
    assert "after epoch 2, whose weights were kept" in text


def test_stitches_show_each_tasks_own_share_apart_from_the_others():
    section = sharing(record(stitches()))
    text = texts(section)
    assert section.html.count("<svg") == 4
    assert "its own" in text
    assert "income from the others" in text
    assert "income: married (0.10), married: income (0.20)" in text


def test_many_stitches_get_one_plot_each():
    section = sharing(record(*(stitches(f"stitch {n}") for n in range(5))))
    assert section.html.count("<svg") == 10
    assert "How much of its own tower" in texts(section)


def test_more_matrices_than_can_be_read_are_counted():
    section = sharing(record(*(stitches(f"stitch {n}") for n in range(MAX_MATRICES + 2))))
    assert section.html.count("<h3>") == MAX_MATRICES
    assert "2 further matrices are in report.json only." in texts(section)


def test_what_never_changed_is_said_and_not_drawn():
    routes = entry("routes after 1", ("task", "channel"), np.ones((3, 2, 16)))
    section = sharing(record(routes))
    assert section.html.count("<svg") == 1
    assert "These numbers stayed the same from epoch 1 to 3." in texts(section)


def test_wide_matrices_show_how_far_apart_their_numbers_are():
    random = np.random.default_rng(0)
    scales = 1 + np.arange(4)[:, None, None] * random.normal(size=(2, 64))
    section = sharing(record(entry("scales after 1", ("task", "channel"), scales, size=(2, 640))))
    assert "their standard deviation over channels" in texts(section)
    assert "Shown are 64 columns of 640" in texts(section)
    assert "data:image/png" in section.html


def test_gaps_are_drawn_as_gaps():
    seen = gates()
    values = list(seen.values)
    values[2] = (values[2][0], (None, None, None))
    section = sharing(record(replace(seen, values=tuple(values))))
    assert "nan" not in section.html.lower()
    never = replace(seen, values=tuple((look[0], (None, None, None)) for look in seen.values))
    assert "married" in texts(sharing(record(never)))


def test_one_look_is_a_picture_without_a_course():
    section = sharing(record(gates(epochs=1)))
    assert section.html.count("<svg") == 1


def test_only_the_tasks_that_changed_the_most_are_drawn_and_it_is_said():
    names = tuple(f"t{n}" for n in range(9))
    change = np.arange(9)[None, :, None] * np.linspace(0, 0.1, 4)[:, None, None] * np.array([1.0, -1.0])
    section = sharing(record(entry("gates", ("task", "expert"), 0.5 + change, rows=names)))
    assert section.html.count("<svg") == 7
    assert "the 6 of 9 tasks that changed the most" in texts(section)
    assert 'aria-label="t8"' in section.html
    assert 'aria-label="t2"' not in section.html


def branches(epochs=3):
    stage = np.broadcast_to([[0.7, 0.3], [0.1, 0.9]], (epochs, 2, 2))
    leaves = np.broadcast_to([[0.2, 0.8], [0.6, 0.4]], (epochs, 2, 2))
    return (
        entry("stage 2", ("node", "node"), stage, rows=("1", "2")),
        entry("tasks", ("task", "node"), leaves),
    )


def test_paths_follow_the_likeliest_parents():
    paths, chances = paths_of(branches(), at=0)
    assert paths == {"income": [1, 1], "married": [0, 0]}
    assert chances == {"income": [0.9, 0.8], "married": [0.7, 0.6]}
    np.testing.assert_allclose(sureness(branches()), [[0.72, 0.42]] * 3, rtol=1e-12)


def test_branches_are_drawn_as_a_tree():
    section = sharing(record(*branches()))
    text = texts(section)
    assert "Tree of the tasks" in text
    for word in ("input", "stage 1", "stage 2", "income", "married", "90.0 %", "60.0 %"):
        assert word in text
    assert section.html.count("<h3>") == 1  # the chances are in the tree, not in matrices beside it


def test_a_shared_step_of_the_tree_is_drawn_once():
    paths = {"a": [0, 1], "b": [0, 1], "c": [0, 0]}
    drawn = tree(paths, {"a": [0.91, 0.5], "b": [0.91, 0.6], "c": [0.82, 0.7]}, title="t")
    assert drawn.count("91.0 %") == 1
    assert drawn.count("82.0 %") == 1


def test_too_many_tasks_for_a_tree_are_a_table_of_paths():
    paths = {f"t{n}": [n % 2, 1] for n in range(13)}
    drawn, table = tree_or_table(paths, {name: [0.5, 0.5] for name in paths})
    assert drawn is None
    assert [cell.text for cell in table.rows[1]] == ["t1", "2 → 2", "25.0 %"]
    names = tuple(paths)
    leaves = entry("tasks", ("task", "node"), np.full((2, 13, 2), 0.5), rows=names)
    section = sharing(record(leaves))
    assert "Paths of 13 tasks" in section.html


def test_names_are_escaped():
    named = replace(gates(), rows=("<b>", "x & y"))
    section = sharing(record(named))
    assert "<b>" not in section.html
    assert "x &amp; y" in section.html


def test_a_record_with_matrices_survives_a_round_trip(tmp_path):
    whole = record(gates(), stitches())
    whole.save(tmp_path / "report.json")
    assert RunRecord.load(tmp_path / "report.json") == whole


def test_numbers_above_and_below_the_centre_have_two_colours():
    svg = matrix(np.array([[1.5, 0.5, 1.0]]), ["a"], ["1", "2", "3"], title="t", axes=("task", "channel"), centre=1.0)
    fills = re.findall(r"fill: (var\(--c\d\)); opacity: ([\d.]+)", svg)
    assert [colour for colour, _ in fills] == ["var(--c0)", "var(--c1)"]
    assert fills[0][1] == fills[1][1]


def test_a_matrix_of_zeros_or_gaps_can_be_drawn():
    for values in (np.zeros((2, 2)), np.full((2, 2), np.nan)):
        assert "<svg" in matrix(values, ["a", "b"], ["1", "2"], title="t", axes=("task", "expert"))


@pytest.mark.parametrize(("value", "text"), [(0.126, "0.13"), (-0.004, "0.00"), (1.0, "1.00")])
def test_numbers_in_cells_are_short(value, text):
    assert short(value, 1.0) == text
