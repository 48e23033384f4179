"""The Python door takes what people have, and gives back what a bundle needs."""

import math
import sys
import textwrap

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import polytask as pt
from polytask.errors import DataError, MissingExtraError, RecipeError


def columns(rows=80, seed=0):
    g = np.random.default_rng(seed)
    x = g.standard_normal((rows, 3)).astype(np.float32)
    up = (x[:, 0] > 0).astype(np.float32)
    up[::5] = np.nan
    return {"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "up": up, "size": (x[:, 1] * 3 + 10).astype(np.float32)}


def arrays(rows=80, seed=0):
    found = columns(rows, seed)
    return {"x": np.stack([found[k] for k in "abc"], 1), "up": found["up"], "size": found["size"]}


def tasks():
    return [pt.tasks.binary("up"), pt.tasks.regression("size")]


def model(encoder=None):
    torch.manual_seed(0)
    return pt.MultiTaskModel(pt.sharing.Hard(encoder or nn.Sequential(nn.Linear(3, 8), nn.ReLU())), tasks())


def fit(m, data, **options):
    return pt.fit(m, data, **{"epochs": 2, "batch_size": 16, "progress": False, "seed": 1, **options})


class Rows(Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data["x"])

    def __getitem__(self, index):
        return self.data["x"][index], {name: self.data[name][index] for name in ("up", "size")}


def weights(m):
    return torch.cat([p.detach().flatten() for p in m.parameters()])


def test_arrays_tensors_and_data_sets_give_the_same_model():
    data = arrays()
    by_arrays = fit(model(), data).model
    by_tensors = fit(model(), {k: torch.from_numpy(v) for k, v in data.items()}).model
    assert torch.equal(weights(by_arrays), weights(by_tensors))
    # A data set is read row by row, so its tasks stay as they were declared: give them what training data would fix.
    fitted = dict(by_arrays.tasks)
    own = pt.MultiTaskModel(pt.sharing.Hard(nn.Sequential(nn.Linear(3, 8), nn.ReLU())), list(fitted.values()))
    torch.manual_seed(0)
    own.sharing.encoder[0].reset_parameters()
    run = fit(own, Rows(data))
    assert run.history[-1]["loss.up"] < run.history[0]["loss.up"] + 0.1


def test_a_loader_keeps_its_own_batches():
    loader = DataLoader(Rows(arrays()), batch_size=20)
    run = fit(model(), loader)
    assert run.history[-1]["step"] == 8


@pytest.mark.parametrize("frame", [pl.DataFrame, pd.DataFrame])
def test_frames_with_number_columns_reach_the_encoder_as_one_tensor(frame):
    m = model()
    run = fit(m, frame(columns()), validation=frame(columns(seed=1)))
    assert m.input_schema.single
    scores = pt.evaluate(m, frame(columns(seed=1)))
    assert scores["size"]["rmse"] == pytest.approx(run.scores["size"]["rmse"])


def test_a_frame_for_a_model_of_arrays_is_refused():
    m = model()
    fit(m, arrays())
    with pytest.raises(DataError, match="was not trained on a frame"):
        pt.evaluate(m, pl.DataFrame(columns()))


def test_rows_of_their_own_for_every_task():
    data = {
        "up": {"x": arrays(60)["x"], "up": arrays(60)["up"]},
        "size": {"x": arrays(30, 1)["x"], "size": arrays(30, 1)["size"]},
    }
    run = fit(model(), data, sampler="together", batch_sizes={"size": 8})
    assert {"loss.up", "loss.size"} <= run.history[-1].keys()


def test_heads_are_built_from_the_first_rows():
    m = model()
    with pytest.raises(Exception, match="not built yet"):
        m.state_dict()
    fit(m, arrays(), epochs=1)
    assert m.is_built


def test_own_encoder_by_reference_goes_into_the_bundle(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        textwrap.dedent(
            """
            from torch import nn
            class Encoder(nn.Module):
                def __init__(self, width):
                    super().__init__()
                    self.layer = nn.Linear(3, width)
                def forward(self, x):
                    return self.layer(x).relu()
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    m = model(pt.ref("mine:Encoder", width=5))
    fit(m, arrays(), validation=arrays(seed=1), out=tmp_path / "run")
    x = torch.from_numpy(arrays(seed=2)["x"])
    predictor = pt.load(tmp_path / "run" / "bundle")
    with torch.no_grad():
        expected = m.eval()(x)
    for task, raw in predictor.raw(x).items():
        assert torch.equal(raw, expected[task])
    assert predictor.predict(x)["size"].to_list() == pytest.approx(expected["size"].tolist())
    with pytest.raises(RecipeError, match=r"Unknown option 'widht'.*Did you mean 'width'"):
        pt.ref("mine:Encoder", widht=5)
    with pytest.raises(RecipeError, match="plain data"):
        pt.ref("mine:Encoder", width=object())
    sys.modules.pop("mine")


def test_an_unknown_encoder_has_to_be_given_and_the_error_says_so(tmp_path):
    m = model()
    fit(m, arrays(), out=tmp_path / "run")
    with pytest.raises(RecipeError, match=r"Pass polytask.load\(path, encoder=...\)"):
        pt.load(tmp_path / "run" / "bundle")
    predictor = pt.load(tmp_path / "run" / "bundle", encoder=nn.Sequential(nn.Linear(3, 8), nn.ReLU()))
    x = torch.zeros(2, 3)
    with torch.no_grad():
        assert torch.equal(predictor.raw(x)["up"], m.eval()(x)["up"])


def test_nothing_in_a_run_is_pickled(tmp_path):
    fit(model(pt.ref("torch.nn:Linear", in_features=3, out_features=4)), arrays(), out=tmp_path / "run")
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            start = path.read_bytes()[:4]
            assert not start.startswith((b"\x80", b"PK")), f"{path} looks like a pickle or a zip"


def test_a_bundle_that_is_not_there_is_named(tmp_path):
    fit(model(), arrays(), out=tmp_path / "run", epochs=1)
    with pytest.raises(RecipeError, match=r"Did you mean '.*bundle'\?"):
        pt.load(tmp_path / "run")
    with pytest.raises(RecipeError, match=r"There is no bundle at .* Did you mean 'bundle'"):
        pt.load(tmp_path / "run" / "bundel")


def test_resume_from_python(tmp_path):
    straight = fit(model(), arrays(), out=tmp_path / "a", epochs=4)

    class Stop(pt.Callback):
        def on_epoch_end(self, loop, row):
            if row["epoch"] == 2:
                loop.stop_reason = None
                raise RuntimeError("the lights went out")

    with pytest.raises(RuntimeError, match="lights"):
        fit(model(), arrays(), out=tmp_path / "b", epochs=4, callbacks=[Stop()])
    resumed = fit(model(), arrays(), resume=tmp_path / "b", epochs=4)
    assert torch.equal(weights(straight.model), weights(resumed.model))
    assert (tmp_path / "a" / "history.csv").read_bytes() == (tmp_path / "b" / "history.csv").read_bytes()
    with pytest.raises(RecipeError, match="not both"):
        fit(model(), arrays(), out=tmp_path / "c", resume=tmp_path / "b")


def test_tensorboard_by_one_word(tmp_path):
    pytest.importorskip("tensorboard")
    fit(model(), arrays(), out=tmp_path / "run", loggers=["tensorboard"])
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    with pytest.raises(RecipeError, match="loggers need a folder"):
        fit(model(), arrays(), loggers=["tensorboard"])


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    from polytask.training.tensorboard import TensorBoard

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'polytask\[tensorboard\]'"):
        TensorBoard(tmp_path)


def test_public_names_are_listed_and_mistyped_ones_are_guessed():
    assert set(pt.__all__) == {*pt._PLACES, *pt._PACKAGES, "__version__"}
    for name in pt.__all__:
        assert getattr(pt, name) is not None
    with pytest.raises(AttributeError, match="Did you mean 'evaluate'"):
        _ = pt.evalute


def test_undefined_scores_are_nan_and_say_so():
    m = model()
    fit(m, arrays())
    only = arrays(10)
    only["up"][:] = 1.0
    scores = pt.evaluate(m, only)
    assert math.isnan(scores["up"]["auroc"])
    assert "–" in scores.table() or "-" in scores.table()
