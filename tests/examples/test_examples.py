"""Every file in examples/ runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
OTHERS = ("lightning_module.py", "huggingface_trainer.py")


def run(name, folder, *arguments):
    """What an example prints, run on one thread in an empty folder."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MPLCONFIGDIR": str(folder),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs(name, tmp_path):
    told = run(name, tmp_path, "--quick")
    # Where another framework is not installed, the example says so.
    assert told.strip() if name not in OTHERS else "held-out loss" in told or "is not installed" in told
    if name == "toy_landscape.py":
        assert (tmp_path / "toy_landscape.png").read_bytes().startswith(b"\x89PNG")


def test_balancing_in_ones_own_loop_helps_the_task_with_the_small_loss(tmp_path):
    # The yes-or-no task is drowned by a loss a thousand times larger; Nash-MTL is free of the losses' scales.
    told = run("own_loop.py", tmp_path, "--steps", "150", "--balancer", "nash_mtl")
    lost = {line.split()[0]: float(re.search(r"clicked ([\d.]+)", line)[1]) for line in told.splitlines()}
    assert lost["nash_mtl"] < 0.8 * lost["equal"]
