"""A killed run that is resumed ends as if nothing had happened, to the last bit."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from polytask.training.state import load_state

SCRIPT = textwrap.dedent(
    """
    import sys, time, torch
    from pathlib import Path
    import polytask as pt
    from polytask.data.source import TensorSource
    from polytask.training.fit import train
    from polytask.training.settings import TrainingSettings

    torch.set_num_threads(1)
    path, resume, pause = Path(sys.argv[1]), sys.argv[2] == "resume", float(sys.argv[3])
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=g)
    sources = [
        TensorSource(x[:150], {"up": (x[:150, 0] > 0).float(), "size": x[:150].norm(dim=1)}),
        TensorSource(x[100:], {"kind": (x[100:, 2] > 0).long()}),
    ]
    torch.manual_seed(1)
    layers = [torch.nn.Linear(5, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Dropout(0.2)]
    encoder = torch.nn.Sequential(*layers)
    tasks = [pt.tasks.binary("up"), pt.tasks.regression("size"), pt.tasks.multiclass("kind", classes=2)]
    model = pt.MultiTaskModel(pt.sharing.Hard(encoder), tasks, example=x[:2])

    class Slow(pt.Callback):
        def on_step_end(self, loop, rows):
            time.sleep(pause)

    settings = TrainingSettings(
        epochs=6, batch_size=16, optimizer="adamw", schedule="cosine", sampler="loss_driven", input_noise=0.1,
        checkpoint_every=7, seed=3,
    )
    hooks = {"callbacks": [Slow()], "path": path, "resume": resume}
    train(model, sources, sources, balancer=sys.argv[4], settings=settings, **hooks)
    """
)


def start(folder: Path, mode: str, balancer: str, pause: float = 0.0) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder), mode, str(pause), balancer],
        env=environment,
        stderr=subprocess.DEVNULL if pause else subprocess.PIPE,
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()


def tensors_equal(first, second) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(tensors_equal(first[k], second[k]) for k in first)
    return bool((first == second).all()) if hasattr(first, "shape") else first == second


@pytest.mark.parametrize("balancer", ["uncertainty", "nash_mtl"])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, balancer):
    finish(start(tmp_path / "straight", "new", balancer))
    killed = tmp_path / "killed"
    process = start(killed, "new", balancer, pause=0.3)
    checkpoint = killed / "checkpoints" / "last.safetensors"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(random.Random(0).uniform(0.2, 1.0))
    assert process.poll() is None, "the run was over before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert load_state(checkpoint)["step"] < 102
    finish(start(killed, "resume", balancer))
    for name in ("last", "best"):
        first, second = (load_state(d / "checkpoints" / f"{name}.safetensors") for d in (tmp_path / "straight", killed))
        assert tensors_equal(first["model"], second["model"])
    assert (tmp_path / "straight" / "history.csv").read_bytes() == (killed / "history.csv").read_bytes()


def test_an_interrupt_saves_and_goes_on(tmp_path):
    process = start(tmp_path / "run", "new", "equal", pause=0.3)
    history = tmp_path / "run" / "history.csv"
    deadline = time.monotonic() + 60
    while not history.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    assert process.returncode != 0
    step = load_state(tmp_path / "run" / "checkpoints" / "last.safetensors")["step"]
    assert 0 < step < 102
    finish(start(tmp_path / "run", "resume", "equal"))
    assert load_state(tmp_path / "run" / "checkpoints" / "last.safetensors")["step"] == 102
