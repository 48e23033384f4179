"""Balancing in a LightningModule. Lightning itself is not imported: the mixin calls what the module has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from polytask.balancing.base import Balancer, Relook
from polytask.balancing.own_loop import backward
from polytask.balancing.types import StepReport
from polytask.errors import BalancerError


class BalancedModule:
    """Mixin for a LightningModule: one call does a balanced step with its optimizers.

    It works with manual optimization: set ``self.automatic_optimization = False``. Keep the balancer as an attribute
    of the module, so that checkpoints hold its state. Its learned weights, if it has any, then show up in
    ``self.parameters()``: give them an optimizer of their own in ``configure_optimizers``, and the main optimizer
    the network's parameters only.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from polytask.balancing.making import build
        >>> class Module(BalancedModule, nn.Module):  # in real life: BalancedModule, LightningModule
        ...     automatic_optimization, trainer = False, SimpleNamespace(world_size=1, precision="32-true")
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.trunk, self.balancer = nn.Linear(3, 2), build("mgda", tasks=["a", "b"])
        ...         self.optimizer = torch.optim.SGD(self.trunk.parameters(), lr=0.1)
        ...     def optimizers(self):
        ...         return self.optimizer
        ...     def training_step(self, x):
        ...         out = self.trunk(x)
        ...         losses = {"a": out[:, 0].square().mean(), "b": out[:, 1].square().mean()}
        ...         return self.balanced_step(losses, self.trunk.parameters(), balancer=self.balancer)
        >>> sorted(Module().training_step(torch.ones(4, 3)).weights)
        ['a', 'b']
    """

    def balanced_step(
        self,
        losses: Mapping[str, Tensor],
        shared: Iterable[nn.Parameter] = (),
        *,
        balancer: Balancer,
        features: Tensor | Mapping[str, Tensor] | None = None,
        at: str | None = None,
        rescale_to: str = "none",
        clip_norm: float | None = None,
        relook: Relook | None = None,
        second: Mapping[str, Tensor] | None = None,
    ) -> StepReport:
        """Clear gradients, balance the losses, clip, and step every optimizer of the module.

        Args:
            losses: A scalar loss with a graph for every task that is present.
            shared: Shared parameters; a loss weighting needs none.
            balancer: A method that is set up (``build``).
            features: For ``at="features"``, as in ``backward``.
            at: ``features``, ``last`` or ``parameters``, as in ``backward``.
            rescale_to: ``none``, ``mean`` or ``sum``, as in ``backward``.
            clip_norm: Largest norm of an optimizer's gradients; None to leave them.
            relook: Computes the batch's losses again, for methods that look twice (FAMO).
            second: Losses of the other half of the rows, for methods that need two, as in ``backward``.

        Returns:
            Losses, weights and the Gramian of the step: ``self.log_dict(report.losses)`` logs the losses.

        Raises:
            BalancerError: with automatic optimization, several processes, float16 with a loss scaler, or without
                ``relook`` for a method that needs it; the message says what to do.
        """
        module: Any = self
        _check_module(module, balancer, relook)
        found = module.optimizers()
        optimizers = list(found) if isinstance(found, list | tuple) else [found]
        for optimizer in optimizers:
            optimizer.zero_grad()
        report = backward(
            losses, shared, balancer=balancer, features=features, at=at, rescale_to=rescale_to, second=second
        )
        for optimizer in optimizers:
            if clip_norm is not None:
                module.clip_gradients(optimizer, gradient_clip_val=clip_norm, gradient_clip_algorithm="norm")
            optimizer.step()
        if relook is not None:
            balancer.after_step(relook)
        return report


def _check_module(module: Any, balancer: Balancer, relook: Relook | None) -> None:
    name = type(balancer).__name__
    if module.automatic_optimization:
        raise BalancerError(
            "balanced_step does the backward and the optimizer's step itself, but automatic_optimization is on. Set "
            "self.automatic_optimization = False in __init__."
        )
    if module.trainer.world_size > 1:
        raise BalancerError(
            f"balanced_step works on one process; this trainer runs {module.trainer.world_size}, whose models would "
            "drift apart. Train with polytask.fit, which balances over processes, or use one device."
        )
    if str(module.trainer.precision) in ("16", "16-mixed"):
        raise BalancerError(
            f"precision '{module.trainer.precision}' scales the losses, which would scale a Gramian by the square. "
            "Use 'bf16-mixed' or '32-true'."
        )
    if balancer.looks_again and relook is None:
        raise BalancerError(
            f"'{name}' looks at the batch again after the step. Pass relook=, a function that computes the losses of "
            "the same batch without a gradient."
        )
