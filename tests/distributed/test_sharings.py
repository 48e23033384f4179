"""Two gloo processes under torchrun equal one process, whatever the sharing."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from polytask import registry
from polytask.training.state import load_state

SCRIPT = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    import torch
    import polytask as pt
    from polytask import registry
    from polytask.data.source import TensorSource
    from polytask.models.encoders import MLP
    from polytask.training.fit import train
    from polytask.training.settings import TrainingSettings

    torch.set_num_threads(1)
    options = {
        "hierarchical": {"feeds": {"size": ["up"]}, "layers": [4]},
        "attention": {"width": 4, "heads": 2, "tokens": 2},
        "lora": {"rank": 2, "freeze": False},
        "dselect_k": {"experts": 3},
    }
    g = torch.Generator().manual_seed(0)
    # Batches that do not divide evenly: penalties that are means over rows have to weigh as their rows do.
    x = torch.randn(44, 5, generator=g)
    up, size = (x[:, 0] > 0).float(), x.norm(dim=1)
    # Labels are so uneven that the two processes never have the same number of them.
    up[::2] = float("nan")
    size[torch.rand(44, generator=g) < 0.4] = float("nan")
    source = TensorSource(x, {"up": up, "size": size})
    settings = TrainingSettings(epochs=3, batch_size=16, optimizer="sgd", lr=0.1)
    for kind in sys.argv[2:]:
        torch.manual_seed(1)
        sharing = registry.build("sharings", kind, options.get(kind, {}), encoder=MLP(5, [8, 6], activation="tanh"))
        model = pt.MultiTaskModel(sharing, [pt.tasks.binary("up"), pt.tasks.regression("size")], example=x[:2])
        train(model, [source], [source], settings=settings, path=Path(sys.argv[1]) / kind)
    """
)
QUICK = ["mmoe", "cross_stitch", "dselect_k"]
# What cannot be equal: ltb draws Gumbel noise in each process, and mtan has batch norm of each process's rows.
DIFFERENT = {"ltb", "mtan"}


def run(folder: Path, processes: int, kinds: list[str]) -> dict[str, dict]:
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-W", "ignore"]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, str(script), str(folder), *kinds],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {kind: load_state(folder / kind / "checkpoints" / "last.safetensors") for kind in kinds}


@pytest.mark.parametrize(
    "kinds",
    [QUICK, pytest.param(sorted(set(registry.SHARINGS) - {*QUICK, *DIFFERENT}), marks=pytest.mark.slow)],
    ids=["quick", "rest"],
)
def test_two_processes_equal_one(tmp_path, kinds):
    one = run(tmp_path / "one", 1, kinds)
    two = run(tmp_path / "two", 2, kinds)
    for kind in kinds:
        first, *_, last = one[kind]["history"]
        assert first != last
        assert one[kind]["model"].keys() == two[kind]["model"].keys()
        for name, weight in one[kind]["model"].items():
            assert torch.allclose(weight, two[kind]["model"][name], rtol=0, atol=1e-5), f"{kind}: {name}"
