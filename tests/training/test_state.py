"""Checkpoint files hold any nested state exactly."""

import random

import numpy as np
import pytest
import torch

from polytask.errors import TrainingError
from polytask.training.state import load_state, random_state, save_state, set_random_state


def test_nested_state_survives_exactly(tmp_path):
    state = {
        "tensor": torch.randn(3, 2),
        "half": torch.randn(4).bfloat16(),
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0)}, 1: {}},
            "groups": [{"params": [0, 1], "betas": (0.9, 0.99)}],
        },
        "number": 1.0000000000000002,
        "none": None,
        "text": "ü",
        "flag": True,
    }
    save_state(state, tmp_path / "a.safetensors")
    loaded = load_state(tmp_path / "a.safetensors")
    assert torch.equal(loaded["tensor"], state["tensor"])
    assert loaded["half"].dtype == torch.bfloat16
    assert loaded["optimizer"]["groups"] == state["optimizer"]["groups"]
    assert list(loaded["optimizer"]["state"]) == [0, 1]
    assert loaded["number"] == state["number"]
    assert loaded["flag"] is True
    assert [loaded["none"], loaded["text"]] == [None, "ü"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_random_generators_go_on_where_they_were(tmp_path):
    save_state(random_state(), tmp_path / "r.safetensors")
    expected = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())  # noqa: NPY002
    set_random_state(load_state(tmp_path / "r.safetensors"))
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == expected  # noqa: NPY002


def test_what_a_checkpoint_cannot_hold_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"cannot hold object at 'state.a.0'"):
        save_state({"a": [object()]}, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(TrainingError, match="There is no checkpoint at"):
        load_state(tmp_path / "none.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"hello, this is no checkpoint")
    with pytest.raises(TrainingError, match="is not a checkpoint of polytask"):
        load_state(tmp_path / "x.safetensors")
