"""Step times of balancing, as ratios to the plain sum of losses of the same model in the same run.

Every round times each variant once, one after the other, so that a busy machine slows all of them; the
medians over rounds are compared. A step of the same variant goes before the timed one, as in training: otherwise
each would be timed with what its neighbour left in the caches. Peak memory and reads by the host are those of
one more step each.

    python benchmarks/steps.py --quick
    python benchmarks/steps.py --out steps.json --device cuda
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import torch
from costs import peak_bytes, reads
from torch import Tensor, nn

from polytask import balancing as B
from polytask.fused import fused_linear


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def mlp() -> tuple[nn.Module, Tensor, int]:
    layers = [nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()]
    return nn.Sequential(*layers), torch.randn(256, 256), 512


def resnet() -> tuple[nn.Module, Tensor, int]:
    blocks = [Residual(3, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.randn(32, 3, 32, 32), 64


def transformer() -> tuple[nn.Module, Tensor, int]:
    layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(32, 32, 128), 128


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor, int]]] = {
    "mlp": mlp,
    "resnet": resnet,
    "transformer": transformer,
}


class Toy(nn.Module):
    """A trunk with one linear head a task, as engines want a model."""

    def __init__(self, trunk: nn.Module, width: int, tasks: list[str]):
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict({task: nn.Linear(width, 1) for task in tasks})

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.trunk.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        return list(self.heads[task].parameters())


FUSED = ", fused heads"
AGAINST = {"features" + FUSED: "plain" + FUSED}
"""The plain step of the same model, where it is not ``plain``."""


def apart(features: list[Tensor], layers: list[nn.Linear]) -> list[Tensor]:
    return [layer(z) for z, layer in zip(features, layers, strict=True)]


def micro_batch(model: Toy, x: Tensor, y: Tensor, run: Callable[..., list[Tensor]] = apart) -> B.MicroBatch:
    tasks, layers = tuple(model.heads), list(model.heads.values())

    def forward(tap: Any) -> B.Losses:
        features = tap({"z": model.trunk(x)})
        losses = {}
        outs = run([features[task]["z"] for task in tasks], layers)
        for k, (task, out) in enumerate(zip(tasks, outs, strict=True)):
            out = out.squeeze(-1)
            losses[task] = (out.flatten(1).mean(1) if out.dim() > 1 else out).sub(y[:, k]).square().mean()
        return B.Losses(losses)

    return B.MicroBatch(tasks, forward)


def variants(model: Toy, x: Tensor, y: Tensor, with_peers: bool) -> dict[str, Callable[[], object]]:
    tasks = list(model.heads)
    micro, fused = [micro_batch(model, x, y)], [micro_batch(model, x, y, fused_linear)]
    settings: dict[str, tuple[str, dict[str, Any]]] = {
        "uncertainty": ("uncertainty", {}),
        "famo": ("famo", {}),
        "features": ("mgda", {"at": "features"}),
        "last": ("mgda", {"at": "last"}),
        "parameters": ("mgda", {}),
        "parameters, every 10": ("mgda", {"every": 10}),
    }

    def plain(batch: B.MicroBatch) -> None:
        losses = batch.forward(lambda f: dict.fromkeys(tasks, f)).tasks
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]

    def stepping(runner: Any, micro: list[B.MicroBatch] = micro) -> Callable[[], object]:
        def step() -> None:
            runner.backward(micro)
            runner.after_step(micro)

        return step

    made: dict[str, Callable[[], object]] = {"plain": lambda: plain(micro[0])}
    for label, (name, options) in settings.items():
        made[label] = stepping(B.engine(B.build(name, tasks=tasks), model, **options))
    made["plain" + FUSED] = lambda: plain(fused[0])
    made["features" + FUSED] = stepping(B.engine(B.build("mgda", tasks=tasks), model, at="features"), fused)
    return made | (peers.steps(model.trunk, micro[0]) if with_peers else {})


def parts(model: Toy, x: Tensor, micro: B.MicroBatch) -> dict[str, Callable[[], object]]:
    """A forward and one trunk backward by themselves, for the bar of ``parameters``."""
    shared = model.shared_parameters()
    z = model.trunk(x)
    ones = torch.ones_like(z)
    return {
        "forward": lambda: micro.forward(lambda f: dict.fromkeys(micro.tasks, f)),
        "trunk backward": lambda: torch.autograd.grad(z, shared, ones, retain_graph=True),
    }


def bars(name: str, count: int, times: dict[str, float]) -> dict[str, float]:
    """The most that each variant may cost, as a ratio to the plain step of the same model."""
    at_features = {"resnet": {2: 1.05, 8: 1.05, 40: 1.05}, "transformer": {2: 1.08, 8: 1.08, 40: 1.30}}
    at_features["mlp"] = {2: 1.15, 8: 1.22, 40: 1.8}
    found = {"uncertainty": 1.02, "famo": 1.40, "features": at_features[name][count]}
    found["parameters"] = 1.05 * (times["forward"] + count * times["trunk backward"]) / times["plain"]
    if count >= 8:
        found["features" + FUSED] = min(1.5, found["features"])
    return found | ({"last": 1.5} if count == 8 else {})


def measure(made: dict[str, Callable[[], object]], model: nn.Module, rounds: int, seconds: float) -> dict[str, float]:
    times: dict[str, list[float]] = {label: [] for label in made}
    for step in made.values():  # warm up
        model.zero_grad()
        step()
    start = time.perf_counter()
    wait = torch.cuda.synchronize if next(model.parameters()).is_cuda else lambda: None
    for number in range(rounds):
        for label, step in made.items():
            model.zero_grad()
            step()
            model.zero_grad()
            wait()
            before = time.perf_counter()
            step()
            wait()
            times[label].append(time.perf_counter() - before)
        if number >= 2 and time.perf_counter() - start > seconds:
            break
    return {label: 1e3 * statistics.median(of) for label, of in times.items()}


def costs(made: dict[str, Callable[[], object]], model: nn.Module) -> tuple[dict[str, int], dict[str, int]]:
    """Peak bytes and reads by the host of every variant."""
    device = next(model.parameters()).device
    memory, waits = {}, {}
    for label, step in made.items():
        model.zero_grad()
        memory[label] = peak_bytes(step, device)
        model.zero_grad()
        waits[label] = reads(step, device)
    return memory, waits


def case(name: str, count: int, given: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model with ``count`` tasks."""
    torch.manual_seed(0)
    trunk, x, width = MODELS[name]()
    model, x = Toy(trunk, width, [f"t{k}" for k in range(count)]).to(given.device), x.to(given.device)
    y = torch.randn(len(x), count).to(given.device)
    made = variants(model, x, y, not given.no_peers)
    timed = made | parts(model, x, micro_batch(model, x, y))
    times = measure(timed, model, 7 if given.quick else 30, 5 if given.quick else 60)
    memory, waits = costs(made, model)
    with torch.no_grad():
        rows = 4 * count * model.trunk(x).numel()
    row = {"model": name, "tasks": count, "milliseconds": times, "against": AGAINST, "bars": bars(name, count, times)}
    return row | {"peak_bytes": memory, "peak_bar": {"features": 1.1 * memory["plain"] + rows}, "reads": waits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few rounds, m = 2 and 8")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--no-peers", action="store_true", help="leave TorchJD and LibMTL out")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    rows = []
    for name in options.models:
        for count in (2, 8) if options.quick else (2, 8, 40):
            row = case(name, count, options)
            rows.append(row)
            found = row["milliseconds"]
            print(f"\n{name}, {count} tasks: plain step {found['plain']:.1f} ms   (ratio, bar, peak MB, reads)")
            for label in row["peak_bytes"]:
                bar = f"{row['bars'][label]:6.2f}" if label in row["bars"] else "     -"
                mega = row["peak_bytes"][label] / 1e6
                ratio = found[label] / found[AGAINST.get(label, "plain")]
                print(f"  {label:23s} {ratio:6.2f} {bar} {mega:9.1f} {row['reads'][label]:5d}")
    if options.out:
        options.out.write_text(
            json.dumps({"threads": torch.get_num_threads(), "device": options.device, "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
