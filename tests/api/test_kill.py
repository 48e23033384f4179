"""The command line under a kill and under Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time

import polars as pl

from polytask.recipes.load import write_yaml

# Enough steps that a signal lands while it trains.
TRAINING = {"epochs": 20, "batch_size": 16, "lr": 0.01, "seed": 4, "checkpoint_every": 5}


def command(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    line = [sys.executable, "-m", "polytask.cli", *map(str, arguments)]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(process):
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def wait_for(path):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def test_kill_and_interrupt_leave_the_same_run(recipe, tmp_path):
    path = tmp_path / "people.yaml"
    path.write_text(write_yaml({**recipe, "training": TRAINING}))
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    first = command("fit", path, "--out", straight, "--quiet")
    second = command("fit", path, "--out", broken, "--quiet")
    wait_for(broken / "checkpoints" / "last.safetensors")
    time.sleep(0.3)
    second.send_signal(signal.SIGKILL)
    second.communicate()
    finished(first)
    assert not (broken / "metrics.json").exists()

    third = command("fit", "--resume", broken, "--quiet")
    before = (broken / "history.csv").stat().st_size
    deadline = time.monotonic() + 120
    while (broken / "history.csv").stat().st_size <= before and time.monotonic() < deadline and third.poll() is None:
        time.sleep(0.02)
    third.send_signal(signal.SIGINT)
    output, _ = third.communicate(timeout=200)
    if third.returncode:
        # The interrupt came before the last step: it saves and says how to go on.
        assert third.returncode == 130, output
        assert f"polytask fit --resume {broken}" in output
    finished(command("fit", "--resume", broken, "--quiet"))
    for name in ("metrics.json", "history.csv"):
        assert (straight / name).read_bytes() == (broken / name).read_bytes(), name
    assert set(json.loads((broken / "metrics.json").read_text())) == {"test", "validation"}
    assert not [p for p in broken.rglob(".*") if p.is_file()]
    assert pl.read_csv(broken / "timings.csv").height == 20
