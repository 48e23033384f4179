"""The table of the benchmarks: bars, reading of results, and benchmarks that do not run."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_run"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bench_run"]


def test_every_reader_has_a_script(bench):
    for name in bench.READERS:
        assert (FOLDER / f"{name}.py").exists()
        assert "--out" in (FOLDER / f"{name}.py").read_text()


def test_bars_of_both_kinds(bench):
    assert bench.Line("x", "cost", 1.0, 1.1).met is True
    assert bench.Line("x", "cost", 1.2, 1.1).met is False
    assert bench.Line("x", "speed", 1.9, 2.0, least=True).met is False
    assert bench.Line("x", "speed", 1.9, None).met is None
    text = bench.table([bench.Line("x", "cost", 1.2, 1.1), bench.Line("x", "speed", 2.5, 2.0, least=True)])
    assert "<= 1.1  NO" in text
    assert ">= 2  yes" in text
    assert text.endswith("1 of 2 bars met")


def test_the_loops_bars_are_read_from_their_names(bench):
    found = {"a / b (bar: at most 1.05)": [1.0, 1.1, 3.0], "rows (bar: at least 2)": [2.5]}
    one, two = bench.of_loop(found)
    assert (one.what, one.measured, one.bar, one.least) == ("a / b", 1.1, 1.05, False)
    assert (two.what, two.measured, two.bar, two.least) == ("rows", 2.5, 2.0, True)


def test_data_have_bars_for_padding_and_drawing(bench):
    texts = {"words": 0.16, "tokens": 0.09, "seconds first": 1.0, "seconds again": 0.1}
    found = {"most": {"padding": 0.15, "share": 0.05}, "share": {"atis": 0.01}, "texts": texts}
    lines = {line.what: line for line in bench.of_data(found)}
    assert lines["CoNLL-2003, batches of 32: padding of words"].met is False
    assert lines["CoNLL-2003, batches of 32: padding of tokens"].met is True
    assert lines["recipe atis: drawing batches / step"].met is True
    assert lines["CoNLL-2003, tokenising again: seconds"].met is None


def test_steps_have_host_syncs_on_a_device_only(bench):
    row = {
        "model": "mlp",
        "tasks": 2,
        "milliseconds": {"plain": 2, "features": 3, "last": 4, "parameters": 5, "fused": 2.2, "plain fused": 2},
        "against": {"fused": "plain fused"},
        "bars": {"features": 1.15, "fused": 1.15},
        "peak_bytes": {"plain": 10, "features": 2_000_000, "last": 1, "parameters": 1, "fused": 1},
        "peak_bar": {"features": 3_000_000.0},
        "reads": {"features": 2, "last": 1, "parameters": 1},
    }
    lines = {line.what: line for line in bench.of_steps({"device": "cpu", "rows": [row]})}
    assert lines["mlp, m=2: features / plain"].met is False
    assert lines["mlp, m=2: fused / plain fused"].met is True
    assert lines["mlp, m=2: features, peak MB"].met is True
    assert not any("syncs" in what for what in lines)
    lines = {line.what: line for line in bench.of_steps({"device": "cuda", "rows": [row]})}
    assert lines["mlp, m=2: features, host syncs"].met is False


def test_a_benchmark_that_does_not_run_is_said(bench, tmp_path, monkeypatch, capsys):
    (tmp_path / "loop.py").write_text("raise SystemExit('no such machine')")
    (tmp_path / "experts.py").write_text(
        "import json, sys; from pathlib import Path\n"
        "rows = [{'part': 'whole', 'ratios': {'loop': 0.5}, 'at most': {'loop': 0.8}}]\n"
        "Path(sys.argv[2]).write_text(json.dumps({'rows': rows}))"
    )
    monkeypatch.setattr(bench, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(tmp_path / "out"), "--only", "loop", "experts"])
    assert bench.main() == 1
    said = capsys.readouterr().out
    assert "loop did not run:\nno such machine" in said
    assert "1 of 1 bars met" in said
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["failed"] == {"loop": "no such machine"}
    assert summary["lines"][0]["met"] is True


def test_costs_count_memory_and_reads(monkeypatch):
    import torch

    monkeypatch.syspath_prepend(str(FOLDER))
    costs = importlib.import_module("costs")
    cpu = torch.device("cpu")
    assert costs.reads(lambda: [torch.ones(()).item(), bool(torch.ones(()) > 0), torch.ones(3) + 1], cpu) == 2
    megabyte = 250_000
    held = costs.peak_bytes(lambda: [torch.empty(megabyte), torch.empty(2 * megabyte)], cpu)
    freed = costs.peak_bytes(lambda: [torch.empty(megabyte).sum(), torch.empty(2 * megabyte).sum()], cpu)
    assert held == pytest.approx(3e6, rel=0.01)
    assert freed == pytest.approx(2e6, rel=0.01)
