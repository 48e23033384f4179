"""Every sharing of the registry trains on a table, with every way of balancing that it allows."""

import pytest
import torch

import polytask as pt
from polytask import catalogue, registry
from polytask.data.schema import CategoryColumn, TableSchema
from polytask.data.source import TensorSource
from polytask.models.encoders import Tabular
from polytask.training.fit import train
from polytask.training.settings import PenaltySettings, TrainingSettings
from polytask.training.state import load_state

OPTIONS = {
    "hierarchical": {"feeds": {"b": ["a"]}, "layers": [4]},
    "attention": {"width": 4, "heads": 2, "tokens": 2},
    "lora": {"rank": 2, "freeze": False},
    "dselect_k": {"experts": 3},
    "esmm": {"order": ["a", "b"]},
    "aitm": {"order": ["a", "b"]},
}
FUNNELS = {"esmm", "aitm"}
SHARES_NOTHING = {"separate", "soft"}
BALANCERS = {"losses": "equal", "parameters": "mgda", "features": {"name": "mgda", "at": "features"}}


def rows(kind):
    g = torch.Generator().manual_seed(0)
    categories = torch.stack([torch.randint(1, 4, (24,), generator=g), torch.randint(1, 5, (24,), generator=g)], 1)
    up = torch.randint(0, 2, (24,), generator=g).float()
    size = torch.randn(24, generator=g)
    if kind in FUNNELS:
        size = up * (size > 0)
    up[:5], size[8:12] = float("nan"), float("nan")
    return TensorSource({"categories": categories}, {"a": up, "b": size})


def fresh(kind, norm=None):
    torch.manual_seed(0)
    schema = TableSchema(categories=(CategoryColumn("sex", ("f", "m")), CategoryColumn("job", ("x", "y", "z"))))
    sharing = registry.build("sharings", kind, OPTIONS.get(kind, {}), encoder=Tabular(schema, hidden=[8, 6], norm=norm))
    second = pt.tasks.binary if kind in FUNNELS else pt.tasks.regression
    return pt.MultiTaskModel(sharing, [pt.tasks.binary("a"), second("b")])


@pytest.mark.parametrize("place", BALANCERS)
@pytest.mark.parametrize("kind", catalogue.SHARINGS)
def test_training(kind, place):
    model = fresh(kind)
    if (place == "features" and not model.supports_features) or (place != "losses" and kind in SHARES_NOTHING):
        pytest.skip("not allowed here, and refused elsewhere in these tests")
    settings = TrainingSettings(epochs=1, batch_size=12, accumulate=2, lr=0.01, select="last")
    run = train(model, [rows(kind)], settings=settings, balancer=BALANCERS[place])
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in run.model.sharing.parameters())


@pytest.mark.parametrize("kind", catalogue.SHARINGS)
def test_tasks_train_one_after_the_other_and_then_in_parts(kind):
    """What a forward for one task leaves behind must not reach into the next one's, under penalties as well."""
    balancer = "equal" if kind in SHARES_NOTHING else "mgda"
    for strategy in ("hierarchical", "alternating")[: 1 if kind in SHARES_NOTHING else 2]:
        settings = TrainingSettings(
            epochs=1, batch_size=12, lr=0.01, select="last", strategy=strategy, penalties=PenaltySettings(l2=0.1)
        )
        run = train(fresh(kind), [rows(kind)], settings=settings, balancer=balancer)
        assert all(torch.isfinite(p).all() for p in run.model.parameters())


@pytest.mark.parametrize("kind", catalogue.SHARINGS)
def test_the_best_weights_come_back_from_their_file_with_batch_norm(kind, tmp_path):
    settings = TrainingSettings(epochs=2, batch_size=12, lr=0.01)
    run = train(fresh(kind, norm="batch"), [rows(kind)], [rows(kind)], settings=settings, path=tmp_path)
    kept = load_state(tmp_path / "checkpoints" / "best.safetensors")["model"]
    assert {name: t.tolist() for name, t in run.model.state_dict().items()} == {n: t.tolist() for n, t in kept.items()}
