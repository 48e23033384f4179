"""Two gloo processes under torchrun equal one process, whatever the sharing."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from polytask import catalogue
from polytask.training.state import load_state

SCRIPT = textwrap.dedent(
    """
    import os
    import sys
    from pathlib import Path
    import torch
    from safetensors.torch import save_file
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
        "esmm": {"order": ["up", "size"]},
        "aitm": {"order": ["up", "size"]},
    }

    def without_chance(sharing):
        # ltb takes the chances for weights that are drawn, and mtan norms of single rows for those of a batch.
        if sharing.__class__.__name__ == "LTB":
            sharing._draw = lambda logits: logits.softmax(-1)
        for mask in getattr(sharing, "masks", {}).values():
            for layers in mask:
                for place, layer in enumerate(layers):
                    if isinstance(layer, torch.nn.BatchNorm1d):
                        layers[place] = torch.nn.LayerNorm(layer.num_features)

    g = torch.Generator().manual_seed(0)
    # Batches that do not divide evenly: penalties that are means over rows have to weigh as their rows do.
    x = torch.randn(44, 5, generator=g)
    up, size = (x[:, 0] > 0).float(), x.norm(dim=1)
    # Labels are so uneven that the two processes never have the same number of them.
    up[::2] = float("nan")
    size[torch.rand(44, generator=g) < 0.4] = float("nan")
    settings = TrainingSettings(epochs=3, batch_size=16, optimizer="sgd", lr=0.1)
    for name in sys.argv[2:]:
        torch.manual_seed(1)
        kind = name.removesuffix(" without chance")
        funnel = "order" in options.get(kind, {})
        source = TensorSource(x, {"up": up, "size": size.where(size.isnan(), (size > 2).float()) if funnel else size})
        tasks = [pt.tasks.binary("up"), pt.tasks.binary("size") if funnel else pt.tasks.regression("size")]
        sharing = registry.build("sharings", kind, options.get(kind, {}), encoder=MLP(5, [8, 6], activation="tanh"))
        model = pt.MultiTaskModel(sharing, tasks, example=x[:2])
        if kind != name:
            without_chance(sharing)
        train(model, [source], [source], settings=settings, path=Path(sys.argv[1]) / name)
        rank = os.environ.get("RANK", "0")
        save_file(dict(model.named_parameters()), Path(sys.argv[1]) / f"{name} {rank}.safetensors")
    """
)
QUICK = ["mmoe", "cross_stitch", "dselect_k", "aitm"]
# What cannot be equal: ltb draws Gumbel noise in each process, and mtan has batch norm of each process's rows.
# Without these, they are.
DIFFERENT = ["ltb", "mtan"]
REST = sorted(set(catalogue.SHARINGS) - {*QUICK, *DIFFERENT})


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
    [QUICK, pytest.param([*REST, *(f"{kind} without chance" for kind in DIFFERENT)], marks=pytest.mark.slow)],
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


@pytest.mark.slow
def test_two_processes_keep_one_model_where_chance_or_batch_statistics_differ(tmp_path):
    run(tmp_path / "two", 2, DIFFERENT)
    for kind in DIFFERENT:
        first, second = (load_file(tmp_path / "two" / f"{kind} {rank}.safetensors") for rank in (0, 1))
        assert first.keys() == second.keys()
        assert all(torch.equal(weight, second[name]) for name, weight in first.items()), kind
        before, *_, after = load_state(tmp_path / "two" / kind / "checkpoints" / "last.safetensors")["history"]
        assert before != after
