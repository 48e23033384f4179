"""Products of linear layers where nothing is trained."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import profile

from polytask import tasks
from polytask.data.source import TensorSource
from polytask.evaluation import collect, products
from polytask.evaluation.products import fast_products
from polytask.models import MultiTaskModel
from polytask.sharing import Hard

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


@pytest.fixture
def faster(monkeypatch):
    """As on a machine on which oneDNN is the faster one."""
    monkeypatch.setattr(products, "_is_faster", lambda: True)


def used(compute):
    """What ``compute`` gives, and whether oneDNN did it."""
    with profile() as watched:
        found = compute()
    return found, any("mkldnn_linear" in event.key for event in watched.key_averages())


@pytest.mark.parametrize("shape", [(300, 128), (20, 30, 128)])
def test_a_wide_layer_is_the_same_product_by_onednn(faster, shape):
    layer, inputs = nn.Linear(128, 70), torch.randn(shape)
    with torch.inference_mode(), fast_products():
        found, by_onednn = used(lambda: layer(inputs))
    assert by_onednn
    exact = inputs.double().numpy() @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
    np.testing.assert_allclose(found.numpy(), exact, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Linear(128, 3), torch.ones(300, 128)),
        (nn.Linear(128, 70), torch.ones(30, 128)),
        (nn.Linear(128, 70), torch.ones(128)),
        (nn.Linear(128, 70).double(), torch.ones(300, 128, dtype=torch.float64)),
    ],
    ids=["narrow", "few rows", "one row", "other numbers"],
)
def test_what_would_not_gain_stays_as_it_is(faster, layer, inputs):
    with torch.inference_mode():
        plain = layer(inputs)
        with fast_products():
            found, by_onednn = used(lambda: layer(inputs))
    assert not by_onednn
    assert torch.equal(found, plain)


def test_gradients_autocast_and_the_switch_of_pytorch_keep_their_meaning(faster, monkeypatch):
    layer, inputs = nn.Linear(128, 70), torch.ones(300, 128)
    with fast_products():
        found, by_onednn = used(lambda: layer(inputs))
        assert not by_onednn
        found.sum().backward()
        assert layer.weight.grad is not None
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            assert layer(inputs).dtype == torch.bfloat16
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    with torch.inference_mode(), fast_products():
        assert not used(lambda: layer(inputs))[1]


def test_evaluation_uses_them_and_compiled_models_work(faster):
    source = TensorSource(torch.randn(600, 64), {"a": torch.randn(600)})
    encoder = nn.Linear(64, 64)
    model = MultiTaskModel(Hard(encoder), [tasks.regression("a")])
    found, by_onednn = used(lambda: collect(model, [source]))
    assert by_onednn
    model.sharing.encoder = torch.compile(encoder, backend="eager")
    again = collect(model, [source])
    torch.testing.assert_close(found["a"].raw, again["a"].raw)


@pytest.mark.parametrize("change", ["narrower", "not AMD", "no MKL"])
def test_other_machines_keep_the_usual_ones(monkeypatch, tmp_path, change):
    info = tmp_path / "cpuinfo"
    info.write_text(f"vendor_id\t: {'GenuineIntel' if change == 'not AMD' else 'AuthenticAMD'}\n")
    monkeypatch.setattr(products, "Path", lambda path: info)
    width = "AVX2" if change == "narrower" else "AVX512"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: width)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: change != "no MKL")
    products._is_faster.cache_clear()
    assert not products._is_faster()
    info.write_text("vendor_id\t: AuthenticAMD\n")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    products._is_faster.cache_clear()
    assert products._is_faster()
    products._is_faster.cache_clear()
