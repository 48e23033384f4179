"""Two gloo processes under torchrun equal one process with the same global batch."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from polytask.training.state import load_state

SCRIPT = textwrap.dedent(
    """
    import atexit
    import os
    import sys
    from pathlib import Path
    import torch

    def note():
        Path(sys.argv[1], f"grouped at exit {os.environ['RANK']}").write_text(str(torch.distributed.is_initialized()))

    if "RANK" in os.environ:
        atexit.register(note)  # the first to register is the last to run
    import polytask as pt
    from polytask.data.source import TensorSource
    from polytask.training.fit import train
    from polytask.training.settings import TrainingSettings

    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(70, 5, generator=g)
    up, kind = (x[:, 0] > 0).float(), (x[:, 2] > 0).long()
    # Labels are so uneven that the two processes never have the same number of them.
    up[::2] = float("nan")
    kind[torch.rand(70, generator=g) < 0.6] = -1
    source = TensorSource(x, {"up": up, "kind": kind, "size": x.norm(dim=1)}, {"up": torch.rand(70, generator=g)})
    torch.manual_seed(1)
    encoder = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8), torch.nn.Tanh())
    tasks = [pt.tasks.binary("up"), pt.tasks.regression("size"), pt.tasks.multiclass("kind", classes=2)]
    model = pt.MultiTaskModel(pt.sharing.Hard(encoder), tasks, example=x[:2])
    balancer = eval(sys.argv[2])
    settings = TrainingSettings(
        epochs=3, batch_size=16, optimizer="sgd", lr=0.1, clip=5.0, accumulate=int(sys.argv[3]), strategy=sys.argv[4]
    )
    train(model, [source], [source], balancer=balancer, settings=settings, path=Path(sys.argv[1]))
    """
)


def run(folder: Path, processes: int, balancer: object, accumulate: int = 1, strategy: str = "joint") -> dict:
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-W", "ignore"]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, str(script), str(folder), repr(balancer), str(accumulate), strategy],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # A process that still has the group's threads when Python ends may abort after all its work is done.
    grouped = [path.read_text() for path in folder.glob("grouped at exit *")]
    assert grouped == ([] if processes == 1 else ["False"] * processes)
    return load_state(folder / "checkpoints" / "last.safetensors")


@pytest.mark.parametrize(
    ("balancer", "accumulate", "strategy", "tolerance"),
    [
        ("equal", 2, "joint", 1e-6),
        ({"name": "mgda", "at": "features"}, 1, "joint", 1e-5),
        ({"name": "cagrad"}, 1, "joint", 1e-5),
        ({"name": "cagrad"}, 1, "alternating", 1e-5),
    ],
    ids=["equal", "features", "parameters", "alternating"],
)
def test_two_processes_equal_one(tmp_path, balancer, accumulate, strategy, tolerance):
    one = run(tmp_path / "one", 1, balancer, accumulate, strategy)
    two = run(tmp_path / "two", 2, balancer, accumulate, strategy)
    for name, weight in one["model"].items():
        assert torch.allclose(weight, two["model"][name], rtol=0, atol=tolerance), name
    for first, second in zip(one["history"], two["history"], strict=True):
        assert first.keys() == second.keys()
        for key, value in first.items():
            if isinstance(value, float):
                assert value == pytest.approx(second[key], abs=10 * tolerance, nan_ok=True), key
    assert one["mixer"]["taken"] == two["mixer"]["taken"]


def test_the_command_line_under_torchrun(tmp_path):
    rows = [f"{i},{i % 2},{i / 10}" for i in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["a,up,size", *rows]))
    recipe = "data: {table: t.csv}\ntasks: {up: {type: binary}, size: {type: regression}}\ntraining: {epochs: 1}\n"
    (tmp_path / "r.yaml").write_text(recipe)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "polytask.cli", "fit", "r.yaml", "--out", "run"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Scores on the test rows") == 1
    assert (tmp_path / "run" / "report.html").exists()
