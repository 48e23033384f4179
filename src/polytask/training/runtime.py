"""Devices, precision and processes: the one file that knows Lightning Fabric."""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from polytask.data.source import Share, Source
from polytask.errors import RecipeError

# Gradients travel in pieces of this many numbers: large enough to hide latency, small enough to not double memory.
BUCKET = 8_000_000


class Runtime:
    """Where a run computes, in which precision, and how its processes add things up.

    The model is never wrapped. Every process runs its own forwards and backwards; afterwards ``.grad`` is
    summed over processes once. Several backwards a step, tasks that are absent on one process, and
    gradients taken by ``autograd.grad`` all work that way, which a wrapper that reduces inside of the
    backward does not allow.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: ``32`` or ``bf16-mixed``.
    """

    def __init__(self, device: str = "auto", precision: str = "32"):
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        kind, _, number = device.partition(":")
        if kind not in ("auto", "cpu", "cuda", "mps"):
            raise RecipeError(f"training.device is '{device}'. Use auto, cpu, cuda, cuda:NUMBER or mps.")
        if kind == "cuda" and not torch.cuda.is_available():
            raise RecipeError("training.device is 'cuda' but PyTorch sees no CUDA device. Use 'auto' or 'cpu'.")
        self._mixed = str(precision) == "bf16-mixed"
        on_cpu = kind == "cpu" or (kind == "auto" and not torch.accelerator.is_available())
        self.device, self.rank = torch.device("cpu"), 0
        if not on_cpu or self._mixed or self.world > 1:
            # Importing Fabric takes a second, and there one process in float32 has no use for it.
            self._join(kind, [int(number)] if number else None)

    def _join(self, kind: str, devices: list[int] | None) -> None:
        """Let Fabric find the device, the precision and the other processes."""
        from lightning_fabric import Fabric

        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        with warnings.catch_warnings():
            # Fabric advises on data loaders and nodes; polytask has neither here.
            warnings.simplefilter("ignore")
            self._fabric = Fabric(
                accelerator=kind,
                devices=devices or local,
                num_nodes=self.world // local,
                strategy="ddp" if self.world > 1 else "auto",
                precision="bf16-mixed" if self._mixed else "32-true",
            )
            if self.world > 1:
                if not dist.is_initialized():
                    atexit.register(_leave)
                self._fabric.launch()
        self.device, self.rank = self._fabric.device, self._fabric.global_rank

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for forwards."""
        context: AbstractContextManager[Any] = self._fabric.autocast() if self._mixed else nullcontext()
        return context

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes; the tensor itself on one process. Works for CPU tensors on any backend."""
        if self.world == 1:
            return tensor
        total = tensor.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum ``.grad`` over processes, flat and in buckets.

        A parameter without a gradient on one process but not on another counts as zero there; one without
        a gradient on any process keeps None, so that the optimizer leaves it alone.
        """
        if self.world == 1:
            return
        trainable = [p for p in parameters if p.requires_grad]
        present = torch.tensor([float(p.grad is not None) for p in trainable])
        anywhere = self.sum(present).tolist()
        used = [p for p, count in zip(trainable, anywhere, strict=True) if count]
        for bucket in _buckets(used):
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in bucket])
            dist.all_reduce(flat)
            offset = 0
            for p in bucket:
                p.grad = flat[offset : offset + p.numel()].view_as(p)
                offset += p.numel()

    def same_start(self, model: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        if self.world > 1:
            for tensor in [*model.parameters(), *model.buffers()]:
                dist.broadcast(tensor.data, src=0)

    def average_buffers(self, model: nn.Module) -> None:
        """Average floating buffers (BatchNorm statistics) over processes, before validation and checkpoints."""
        if self.world > 1:
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= self.world

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every process, in order; plain data or CPU tensors."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def share_out(self, sources: Sequence[Source]) -> tuple[Sequence[Source], Callable[[Any], list[Any]] | None]:
        """Sources for this process to evaluate, and how to join what all found; streams go to every process."""
        if self.world == 1 or not all(source.random_access for source in sources):
            return sources, None
        return [Share(source, self.rank, self.world) for source in sources], self.gather

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()


def _leave() -> None:
    """End the process group's threads while Python still runs.

    Gloo's threads let go of tensors, for which they need the interpreter. One that is late, on a busy machine,
    would find it gone, and the process would abort after all its work is done.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def _buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for p in parameters:
        if not buckets or size + p.numel() > BUCKET or p.dtype != buckets[-1][-1].dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(p)
        size += p.numel()
    return buckets
