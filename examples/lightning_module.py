"""Balancing in a LightningModule: the mixin, manual optimization, and one call a step.

    python examples/lightning_module.py
    python examples/lightning_module.py --balancer uncertainty

It needs the package lightning (or pytorch-lightning), which polytask does not depend on.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from polytask import balancing as B
from polytask.balancing.lightning import BalancedModule


def rows(count: int, seed: int) -> TensorDataset:
    """Inputs, a yes-or-no answer, and a number whose loss is a thousand times larger."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=generator)
    return TensorDataset(x, (x[:, 0] + x[:, 1] > 0).float(), 30 * (x[:, 0] - x[:, 2]))


def module_class(base: type) -> type:
    """The module, on the LightningModule that is there."""

    class TwoTasks(BalancedModule, base):  # type: ignore[misc]
        def __init__(self, balancer: str) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.net = nn.ModuleDict(
                {
                    "trunk": nn.Sequential(nn.Linear(8, 32), nn.ReLU()),
                    "clicked": nn.Linear(32, 1),
                    "spent": nn.Linear(32, 1),
                }
            )
            kinds = {"clicked": "binary", "spent": "regression"}
            self.balancer = B.build(balancer, tasks=["clicked", "spent"], kinds=kinds)

        def losses(self, batch: list[Tensor]) -> dict[str, Tensor]:
            x, clicked, spent = batch
            z = self.net["trunk"](x)
            return {
                "clicked": F.binary_cross_entropy_with_logits(self.net["clicked"](z).squeeze(-1), clicked),
                "spent": F.mse_loss(self.net["spent"](z).squeeze(-1), spent),
            }

        def training_step(self, batch: list[Tensor], _: int) -> None:
            report = self.balanced_step(
                self.losses(batch),
                self.net["trunk"].parameters(),
                balancer=self.balancer,
                clip_norm=100.0,
                relook=(lambda: self.look_again(batch)) if self.balancer.looks_again else None,
            )
            self.log_dict({f"loss_{task}": loss for task, loss in report.losses.items()}, prog_bar=True)

        @torch.no_grad()
        def look_again(self, batch: list[Tensor]) -> dict[str, Tensor]:
            return self.losses(batch)

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            made: list[torch.optim.Optimizer] = [torch.optim.Adam(self.net.parameters(), lr=3e-3)]
            learned = list(self.balancer.parameters())
            if learned:
                made.append(torch.optim.Adam(learned, lr=0.025))
            return made

    return TwoTasks


def find_lightning() -> Any:
    """The installed package, under either of its names; None if there is none."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(str(error.name).partition(".")[0]):
                raise
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train two tasks with Lightning and a balancing method.")
    parser.add_argument("--balancer", default="nash_mtl", metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="one short epoch")
    given = parser.parse_args(arguments)
    lightning = find_lightning()
    if lightning is None:
        print("Lightning is not installed, so nothing was run. Install 'lightning', then run this again.")
        return
    torch.manual_seed(0)
    model = module_class(lightning.LightningModule)(given.balancer)
    held_out = list(rows(2000, seed=1).tensors)
    before = model.look_again(held_out)
    trainer = lightning.Trainer(
        max_epochs=1 if given.quick else 20,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(rows(2000, seed=0), batch_size=100, shuffle=True))
    for task, loss in model.look_again(held_out).items():
        print(f"{task}: held-out loss {float(before[task]):.3f} -> {float(loss):.3f}")


if __name__ == "__main__":
    main()
