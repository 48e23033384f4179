"""Experts: several copies of one network, whose dense layers run at once."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from polytask.errors import listed
from polytask.sharing.separate import reset_parameters

_POINTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Tanh, nn.LeakyReLU, nn.Sigmoid, nn.Softplus, nn.Identity)
_DENSE = (nn.Linear, nn.LayerNorm, nn.BatchNorm1d, nn.Dropout, *_POINTWISE)
Chain = list[tuple[str, nn.Module]]


class Experts(nn.Module):
    """Copies of one template, whose weights are held as stacks ``[count, ...]``.

    Dense chains run as batched matrix products, and their first layer as one product where all experts
    read the same rows. Any other template (convolutions, attention, code of its own) runs one expert after
    the other on slices of the stacks: grouped convolutions, as ``torch.vmap`` makes them, took 1.4 times as
    long on a CPU.

    Args:
        template: The network, from one tensor to one tensor.
        count: How many experts.
        reset: Whether experts draw initial weights of their own.
        keep_first: Whether the first expert keeps the template's weights in any case.
        only: Names of the parameters and buffers that are the expert's; all if None.

    Example:
        >>> bank = Experts(nn.Linear(3, 4), count=2)
        >>> bank(torch.zeros(5, 3)).shape
        torch.Size([5, 2, 4])
    """

    def __init__(
        self,
        template: nn.Module,
        count: int,
        *,
        reset: bool = True,
        keep_first: bool = True,
        only: Collection[str] | None = None,
    ):
        super().__init__()
        self.count = count
        copies = [copy.deepcopy(template) for _ in range(count)]
        for number, one in enumerate(copies):
            if reset and not (keep_first and number == 0):
                reset_parameters(one)
        parameters = [dict(one.named_parameters()) for one in copies]
        buffers = [dict(one.named_buffers()) for one in copies]
        self._names = [name for name in (*parameters[0], *buffers[0]) if only is None or name in only]
        for name in self._names:
            if name in parameters[0]:
                stack = torch.stack([mine[name].detach() for mine in parameters])
                self.register_parameter(_flat(name), nn.Parameter(stack, parameters[0][name].requires_grad))
            else:
                self.register_buffer(_flat(name), torch.stack([mine[name] for mine in buffers]))
        # Only the template's code is used: on the meta device it holds no memory, and in a tuple it is not
        # registered, so that nothing is counted or saved twice.
        self._template = (copy.deepcopy(template).to("meta"),)
        self.chain = dense_chain(self.template)

    @property
    def template(self) -> nn.Module:
        """The code of one expert; its own weights are empty."""
        return self._template[0]

    def train(self, mode: bool = True) -> Experts:
        """Training or evaluation, for the template's code as well."""
        self.template.train(mode)
        return super().train(mode)

    def state(self) -> dict[str, Tensor]:
        """The stacks by the template's own names, each ``[count, ...]``."""
        return {name: getattr(self, _flat(name)) for name in self._names}

    def forward(self, inputs: Tensor) -> Tensor:
        """What every expert makes of the same rows: ``[rows, ...]`` to ``[rows, count, ...]``."""
        if self.chain is not None:
            return _run_chain(self.chain, self.state(), inputs, self.count)
        return _one_by_one(self, inputs)


def warn_of_equal_starts(template: nn.Module, label: str) -> None:
    """Warn of modules that cannot draw initial weights anew, so that all experts start alike there."""
    kept = reset_parameters(copy.deepcopy(template))
    if kept:
        warnings.warn(
            f"{label} cannot draw new initial weights for: {listed(kept)}. All experts start from equal weights "
            "there. Give these modules a reset_parameters(), or say reset=False to start all from the given weights.",
            stacklevel=4,
        )


def dense_chain(template: nn.Module) -> Chain | None:
    """The layers of a plain chain of dense layers in order, by path; None for any other module.

    Example:
        >>> [name for name, _ in dense_chain(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU())))]
        ['0', '1.0']
    """
    if type(template) in _DENSE:
        wide = isinstance(template, nn.LayerNorm) and len(template.normalized_shape) > 1
        odd = isinstance(template, nn.BatchNorm1d) and template.momentum is None
        return None if wide or odd else [("", template)]
    if type(template) is not nn.Sequential:
        return None
    found: Chain = []
    for name, child in template.named_children():
        inner = dense_chain(child)
        if inner is None:
            return None
        found += [(f"{name}.{path}" if path else name, layer) for path, layer in inner]
    return found


def _flat(name: str) -> str:
    # Registered names have no dots; the dash keeps them from clashing with attributes.
    return "-" + name.replace(".", "-")


def _one_by_one(bank: Experts, inputs: Tensor) -> Tensor:
    """The experts one after the other, on slices of the stacks."""
    state = bank.state()
    slices = ({name: stack[number] for name, stack in state.items()} for number in range(bank.count))
    return torch.stack([functional_call(bank.template, one, (inputs,)) for one in slices], 1)


def _run_chain(chain: Chain, state: dict[str, Tensor], z: Tensor, count: int) -> Tensor:
    """The chain on ``[rows, ..., d]`` that all experts read, to ``[rows, count, ..., d]``."""
    apart = False
    layers = [layer for _, layer in chain]
    for (path, layer), before, after in zip(chain, [None, *layers], [*layers[1:], None], strict=False):
        if isinstance(before, nn.Linear) and isinstance(layer, nn.ReLU):
            continue  # done with the product
        prefix = f"{path}." if path else ""
        weight, bias = state.get(f"{prefix}weight"), state.get(f"{prefix}bias")
        if isinstance(layer, nn.Linear):
            assert weight is not None
            z = _linear(z, weight, bias, apart, isinstance(after, nn.ReLU))
            apart = True
            continue
        if not apart and not isinstance(layer, _POINTWISE):
            z, apart = z.unsqueeze(1).expand(-1, count, *z.shape[1:]), True
        if isinstance(layer, nn.LayerNorm):
            z = functional.layer_norm(z, layer.normalized_shape, None, None, layer.eps)
            z = z if weight is None else z * _spread(weight, z) + (0 if bias is None else _spread(bias, z))
        elif isinstance(layer, nn.BatchNorm1d):
            z = _batch_norm(z, layer, state, prefix)
        else:
            z = layer(z)
    return z if apart else z.unsqueeze(1).expand(-1, count, *z.shape[1:])


def _linear(z: Tensor, weight: Tensor, bias: Tensor | None, apart: bool, rectify: bool) -> Tensor:
    """Weights ``[count, out, in]`` on ``[rows, ..., in]``, or on ``[rows, count, ..., in]`` if ``apart``.

    With ``rectify`` a ReLU follows, in place: nobody else reads the product, and memory of its size is dear.
    """
    count, out = weight.shape[:2]
    if not apart:
        # All experts read the same rows: one product as wide as all of them.
        wide = functional.linear(z, weight.flatten(0, 1), None if bias is None else bias.flatten())
        wide = wide.relu_() if rectify else wide
        return wide.view(*wide.shape[:-1], count, out).movedim(-2, 1)
    if count == 1:
        # A single expert is a plain layer; a batched product would lay its gradient out across the weights.
        only = functional.linear(z, weight[0], None if bias is None else bias[0])
        return only.relu_() if rectify else only
    rows = z.transpose(0, 1).flatten(1, -2)
    turned = weight.transpose(1, 2)
    found = torch.bmm(rows, turned) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, turned)
    found = found.relu_() if rectify else found
    return found.view(count, z.shape[0], *z.shape[2:-1], out).transpose(0, 1)


def _spread(vector: Tensor, z: Tensor) -> Tensor:
    """``[count, d]`` against ``[rows, count, ..., d]``."""
    return vector.view(len(vector), *[1] * (z.dim() - 3), -1)


def _batch_norm(z: Tensor, layer: nn.BatchNorm1d, state: dict[str, Tensor], prefix: str) -> Tensor:
    """All experts' norms as one, whose features are those of all experts."""
    # Views, so that the running statistics of the stacks are the ones that move.
    parts = {name: state[f"{prefix}{name}"].view(-1) for name in _NORM if f"{prefix}{name}" in state}
    tracked = layer.track_running_stats
    if tracked and layer.training:
        state[f"{prefix}num_batches_tracked"].add_(1)
    normed = functional.batch_norm(
        z.flatten(1),
        parts.get("running_mean"),
        parts.get("running_var"),
        parts.get("weight"),
        parts.get("bias"),
        training=layer.training or not tracked,
        momentum=layer.momentum or 0.0,
        eps=layer.eps,
    )
    return normed.view(z.shape)


_NORM = ("running_mean", "running_var", "weight", "bias")
