import json
import math
from dataclasses import replace

import numpy as np
import pytest

from polytask.errors import DataError
from polytask.reporting import RunRecord, TaskRecord


def small(**changes):
    task = TaskRecord("a", "binary", "auroc", {"auroc": True}, scores={"test": {"auroc": 0.9}})
    return replace(RunRecord("t", {"training": {"lr": 0.1}}, {}, 0, "polytask fit t.yaml", (task,)), **changes)


def test_a_file_gives_the_same_record_and_the_same_page(record, tmp_path):
    record.save(tmp_path / "deep" / "report.json")
    again = RunRecord.load(tmp_path / "deep" / "report.json")
    assert again.to_dict() == record.to_dict()
    assert [task.name for task in again.tasks] == [task.name for task in record.tasks]
    assert isinstance(again.tasks[0], TaskRecord)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["report.json"]


def test_undefined_numbers_are_null_and_arrays_are_lists():
    task = TaskRecord("a", "binary", "auroc", {}, scores={"test": {"auroc": math.nan, "loss": math.inf}})
    figures = {"confusion": {"matrix": np.eye(2, dtype=np.int64)}, "x": np.float32(0.5)}
    plain = small(tasks=(replace(task, figures=figures),)).to_dict()["tasks"][0]
    assert plain["scores"] == {"test": {"auroc": None, "loss": None}}
    assert plain["figures"] == {"confusion": {"matrix": [[1, 0], [0, 1]]}, "x": 0.5}
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_errors_name_every_part_that_is_wrong():
    data = small().to_dict()
    data["epochz"] = []
    data["tasks"][0]["kid"] = 1
    del data["command"]
    with pytest.raises(DataError) as error:
        RunRecord.from_dict(data)
    for part in ("epochz", "tasks.0.kid", "command", "RunRecord.save"):
        assert part in str(error.value)


@pytest.mark.parametrize(("text", "found"), [("[1]", "holds a list"), ("{", "is not JSON")])
def test_a_file_that_is_no_record(tmp_path, text, found):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(DataError, match=found):
        RunRecord.load(tmp_path / "report.json")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "report.json"
    small().save(path)
    before = path.read_text()
    unwritable = small(title="\ud800")  # a lone surrogate has no UTF-8 form
    with pytest.raises(UnicodeEncodeError):
        unwritable.save(path)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
