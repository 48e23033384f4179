"""Where a run computes."""

import sys

import torch

from polytask.training.runtime import Runtime


def test_one_process_in_float32_on_the_cpu_does_without_fabric(monkeypatch):
    # Importing it takes a second, which every worker of a comparison would pay.
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    runtime = Runtime("cpu")
    assert (runtime.device, runtime.rank, runtime.world, runtime.is_main) == (torch.device("cpu"), 0, 1, True)
    with runtime.autocast():
        assert torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == torch.float32


def test_mixed_precision_computes_in_bfloat16():
    runtime = Runtime("cpu", "bf16-mixed")
    assert runtime.device == torch.device("cpu")
    with runtime.autocast():
        assert torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == torch.bfloat16
