"""Balancing in a Hugging Face Trainer: the loss is computed on aliases of the features.

    python examples/huggingface_trainer.py
    python examples/huggingface_trainer.py --balancer upgrad

The Trainer's own backward runs through the balance node, so that its accumulation and clipping stay as they are.
This works for methods that read no losses and keep no state, on one process. It needs the packages transformers
and accelerate, which polytask does not depend on.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask import balancing as B

TASKS = ("clicked", "spent")


def rows(count: int, seed: int) -> list[dict[str, Tensor]]:
    """Inputs, a yes-or-no answer, and a number whose loss is a thousand times larger."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=generator)
    clicked, spent = (x[:, 0] + x[:, 1] > 0).float(), 30 * (x[:, 0] - x[:, 2])
    return [{"x": row, "clicked": c, "spent": s} for row, c, s in zip(x, clicked, spent, strict=True)]


class TwoTasks(nn.Module):
    """A trunk and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
        self.heads = nn.ModuleDict({task: nn.Linear(32, 1) for task in TASKS})

    def losses(self, inputs: dict[str, Tensor], balancer: B.Balancer | None = None) -> dict[str, Tensor]:
        """The loss of every task; with a balancer, any backward through them is balanced."""
        z = self.trunk(inputs["x"])
        zs = [z] * len(TASKS) if balancer is None else B.balance(z, len(TASKS), balancer)
        out = {task: self.heads[task](z).squeeze(-1) for task, z in zip(TASKS, zs, strict=True)}
        return {
            "clicked": F.binary_cross_entropy_with_logits(out["clicked"], inputs["clicked"]),
            "spent": F.mse_loss(out["spent"], inputs["spent"]),
        }


def trainer_class(base: type) -> type:
    """The Trainer, with a balancer."""

    class BalancedTrainer(base):  # type: ignore[misc]
        def __init__(self, *args: Any, balancer: B.Balancer, **options: Any) -> None:
            super().__init__(*args, **options)
            if self.args.world_size > 1:
                raise ValueError("Balancing here works on one process. Use polytask.fit for several.")
            if "stateful" in balancer.traits:
                raise ValueError(f"The Trainer would not save the state of {type(balancer).__name__}.")
            self.balancer = balancer

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            training = torch.is_grad_enabled()
            losses = model.losses(inputs, self.balancer if training else None)
            total = torch.stack(list(losses.values())).sum()
            return (total, losses) if return_outputs else total

    return BalancedTrainer


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train two tasks with a Hugging Face Trainer and a balancing method.")
    parser.add_argument("--balancer", default="nash_mtl", metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="one short epoch")
    given = parser.parse_args(arguments)
    try:
        transformers = importlib.import_module("transformers")
        importlib.import_module("accelerate")
    except ModuleNotFoundError as error:
        if error.name not in ("transformers", "accelerate"):
            raise
        print(
            f"{error.name} is not installed, so nothing was run. Install transformers and accelerate, then run again."
        )
        return
    torch.manual_seed(0)
    model = TwoTasks()
    held_out = torch.utils.data.default_collate(rows(2000, seed=1))
    with torch.no_grad():
        before = model.losses(held_out)
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=1 if given.quick else 20,
            per_device_train_batch_size=100,
            learning_rate=3e-3,
            max_grad_norm=100.0,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        balancer = B.build(given.balancer, tasks=TASKS)
        trainer_class(transformers.Trainer)(
            model=model, args=settings, train_dataset=rows(2000, seed=0), balancer=balancer
        ).train()
    with torch.no_grad():
        for task, loss in model.losses(held_out).items():
            print(f"{task}: held-out loss {float(before[task]):.3f} -> {float(loss):.3f}")


if __name__ == "__main__":
    main()
