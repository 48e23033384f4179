"""Two processes with unequal label counts give what one process with all rows gives."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

from polytask.balancing import JacobianAggregator, Losses, MicroBatch, build, engine
from polytask.fused import fused_linear

TASKS = ("a", "b", "c")
ROWS = {"a": range(10), "b": (0, 1, 2, 6), "c": (7, 8, 9)}
"""Rows 0 to 5 are the first process's: all of task c's labels lie on the other one."""


class Model(nn.Module):
    def __init__(self, run=None):
        super().__init__()
        self.run = run or (lambda features, layers: [layer(z) for z, layer in zip(features, layers, strict=True)])
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4))
        self.heads = nn.ModuleDict({task: nn.Linear(4, 1) for task in TASKS})

    def shared_parameters(self):
        return list(self.trunk.parameters())

    def task_parameters(self, task):
        return list(self.heads[task].parameters())


class Clipped(JacobianAggregator):
    """The sum of the positive parts."""

    def aggregate(self, jacobian, losses, tasks):
        return jacobian.clamp_min(0).sum(0)


def micro_batch(model, mine):
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
    y = torch.randn(10, generator=torch.Generator().manual_seed(2))

    def forward(tap):
        features = tap({"z": model.trunk(x[mine])})
        outs = model.run([features[task]["z"] for task in TASKS], [model.heads[task] for task in TASKS])
        shares = {}
        for out, (task, rows) in zip(outs, ROWS.items(), strict=True):
            here = [i for i, row in enumerate(mine) if row in rows]
            shares[task] = (out.squeeze(1)[here] - y[mine][here]).square().sum() / len(rows)
        return Losses(shares)

    return MicroBatch(TASKS, forward)


def halved(model, mine):
    """The even rows and the odd ones, as two halves."""
    made = []
    for half in (0, 1):
        rows = [row for row in mine if row % 2 == half]
        shares = {t: sum(row % 2 == half for row in labelled) / len(labelled) for t, labelled in ROWS.items()}
        made.append(MicroBatch(TASKS, micro_batch(model, rows).forward, half, shares))
    return made


def cases():
    return {
        "features": ("cagrad", {"at": "features"}),
        "features, fused heads": ("cagrad", {"at": "features"}),
        "last": ("cagrad", {"at": "last"}),
        "parameters": ("cagrad", {}),
        "parts": ("cagrad", {"memory_budget": 200}),
        "losses": ("gls", {}),
        "aggregator": (Clipped(), {}),
        "scaled losses": ("imtl", {}),
        "two halves": ("modo", {}),
        "two halves of the last layer": ("modo", {"at": "last"}),
        "a step ahead": ("auto_lambda", {"optimizer": {"name": "sgd", "lr": 10.0}}),
    }


def update(name, mine, reduce):
    model = Model(fused_linear if "fused" in name else None)
    method, options = cases()[name]
    runner = engine(build(method, tasks=TASKS), model, reduce=reduce, **options)
    micro = halved(model, mine) if runner.balancer.halves else [micro_batch(model, mine)]
    for _ in range(2):  # the first step moves what a method learns
        model.zero_grad()
        runner.backward(micro)
        runner.after_step(micro)
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])


def probed(mine, reduce):
    model = Model()
    return engine(build("equal", tasks=TASKS), model, reduce=reduce).probe([micro_batch(model, mine)])[1]


def worker(rank, port, path):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)

    def reduce(tensor):
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    mine = list(range(6)) if rank == 0 else list(range(6, 10))
    found = {name: reduce(update(name, mine, reduce)) for name in cases()}
    found["probe"] = probed(mine, reduce)
    if rank == 0:
        torch.save(found, path)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes") / "grads.pt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # This file as a script: a spawned child would have to import the tests as a package, which they are not.
    started = [subprocess.Popen([sys.executable, __file__, str(rank), str(port), str(path)]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    return torch.load(path)


def test_fused_heads_are_the_same_update():
    fused, plain = (update(name, list(range(10)), None) for name in ("features, fused heads", "features"))
    assert torch.allclose(fused, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", list(cases()))
def test_two_processes_are_one(both, name):
    expected = update(name, list(range(10)), None)
    bar = 1e-6 if name.startswith(("features", "losses")) else 1e-5
    assert float((both[name] - expected).abs().max()) <= bar * float(expected.abs().max())


def test_a_probe_sees_all_processes(both):
    torch.testing.assert_close(both["probe"], probed(list(range(10)), None), rtol=1e-6, atol=1e-9)


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
