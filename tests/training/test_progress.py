import io

import pytest
import torch
from rich.console import Console

from polytask.data.source import TensorSource
from polytask.errors import TrainingError
from polytask.models import MultiTaskModel
from polytask.sharing import Hard
from polytask.tasks import binary, regression
from polytask.training.display import Display
from polytask.training.fit import train
from polytask.training.progress import Progress
from polytask.training.settings import TrainingSettings


class Clock:
    """Every look at it takes a second."""

    now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def run(x, live=False, **settings):
    size = x.norm(dim=1).nan_to_num(posinf=1.0)
    source = TensorSource(x, {"up": (x[:, 0] > 0).float(), "size": size})
    model = MultiTaskModel(Hard(torch.nn.Linear(5, 8)), [binary("up"), regression("size")], example=x[:2])
    text = io.StringIO()
    progress = Progress(Display(Console(file=text, width=120), live=live, clock=Clock()))
    try:
        train(model, [source], [source], settings=TrainingSettings(batch_size=32, **settings), callbacks=[progress])
    finally:
        progress.close()
    return text.getvalue(), progress


@pytest.fixture
def x():
    return torch.randn(96, 5, generator=torch.Generator().manual_seed(0))


def test_a_run_is_shown_from_start_to_end(x):
    lines = run(x, epochs=3)[0].splitlines()
    assert lines[0] == "Balancing: Equal, weights from the losses."
    assert [line.split(":")[0] for line in lines if line.startswith("epoch")] == ["epoch 1", "epoch 2", "epoch 3"]
    assert lines[-1].startswith("epoch 3: up auroc 0.")
    assert "size rmse" in lines[-1]
    (last,) = [line for line in lines if line.startswith("step 9/9")]
    assert "rows/s" in last
    assert "loss: up 0." in last


def test_the_live_view_of_a_run(x):
    text, _ = run(x, live=True, epochs=2)
    assert "step 6/6" in text
    assert "auroc" in text


def test_it_is_closed_after_an_error(x):
    _, progress = run(x, epochs=1)
    progress.close()  # a second time
    x[3] = float("inf")
    with pytest.raises(TrainingError, match="became nan"):
        run(x, live=True, epochs=1)
