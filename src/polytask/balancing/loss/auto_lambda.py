"""Auto-Lambda: weights trained on the loss that a step with them would leave."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.balancing.base import LossWeighting, Trial
from polytask.balancing.gramian.solver import check_number
from polytask.balancing.loss.common import present, working
from polytask.errors import BalancerError, unknown


class AutoLambda(LossWeighting):
    r"""Auto-Lambda: weights trained on what a step with them does to the losses of other rows.

    Each step's rows are cut into two halves. On the first, a virtual step
    :math:`\theta' = \theta - \alpha \nabla \sum_k \lambda_k L_k(\theta)` is tried. Its worth is the sum of the
    primary tasks' losses of the second half at :math:`\theta'`, with gradient v there. The weights descend along

    .. math::
        \frac{\partial}{\partial \lambda_k} \sum_j L_j^{second}(\theta')
        = - \alpha \langle \nabla L_k(\theta), v \rangle
        \approx - \alpha \frac{L_k(\theta + \epsilon v) - L_k(\theta - \epsilon v)}{2 \epsilon}, \quad
        \epsilon = \frac{0.01}{\|v\|},

    by an Adam of their own (rate 1e-4 unless ``optimizer`` says otherwise), before they weigh the step's losses of
    all rows. The authors draw the second batch apart and step the model on the first alone; and their virtual step
    takes the momentum and decay of SGD along, which is left out here, as are penalties.

    A step costs a backward of each half and two forwards of the first half more. Only derivatives of losses count,
    so that zero and negative losses are taken as they are. Nothing keeps a weight above zero. A task that is absent
    from the first half keeps its weight; without a primary task in the second half, all do.

    Args:
        virtual_lr: :math:`\alpha`, the learning rate that the virtual step imagines: that of the run.
        init: Weights at the start.
        primary: Names of the tasks that count in the worth; all if it is left out.

    Raises:
        BalancerError: for numbers that are not positive, or (in ``setup``) a primary task that does not exist.

    Example:
        >>> method = AutoLambda(init=0.5)
        >>> method.setup(["a", "b"])
        >>> method.weigh(torch.tensor([1.0, 3.0]), ["a", "b"])
        tensor([0.5000, 0.5000])

    Reference:
        Liu, James, Davison and Johns 2022, "Auto-Lambda: disentangling dynamic task relationships", TMLR, the
        finite-difference meta-gradient as in the authors' published program.
    """

    traits: frozenset[str] = frozenset({"permutation_equivariant", "scale_equivariant", "stateful"})
    needs_losses: bool = False
    halves: bool = True
    own_rate: float = 1e-4

    def __init__(self, virtual_lr: float = 0.01, init: float = 0.1, primary: Sequence[str] | None = None) -> None:
        super().__init__()
        self.virtual_lr = check_number("auto_lambda", "virtual_lr", virtual_lr, 0.0, strict=True)
        self.init = check_number("auto_lambda", "init", init, 0.0, strict=True)
        self.primary = None if primary is None else tuple(primary)

    def build_state(self, count: int) -> None:
        """All weights start alike.

        Raises:
            BalancerError: if a primary task does not exist, or none is named.
        """
        for task in self.primary or ():
            if task not in self.tasks:
                raise BalancerError(f"auto_lambda: {unknown('task', task, self.tasks)}")
        if self.primary == ():
            raise BalancerError("auto_lambda: primary names no task. Name one, or leave it out for all.")
        self.lambdas = nn.Parameter(torch.full((count,), self.init))

    def weigh(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """The weights, shape ``[p]``."""
        return present(self, self.lambdas.detach(), tasks, working(losses)).clone()

    def look_ahead(self, trial: Trial, tasks: Sequence[str]) -> Tensor | None:
        """Try the step; the result has the gradient above with respect to the weights.

        Args:
            trial: Losses and gradients of the two halves.
            tasks: Names of the present tasks.

        Returns:
            A scalar, or None where no step can be tried.
        """
        trained, judged = trial.present(0), trial.present(1)
        worth = torch.tensor([float(self.primary is None or task in self.primary) for task in judged])
        if not trained or not bool(worth.any()):
            return None
        lambdas = present(self, self.lambdas.detach(), trained, self.lambdas.detach())
        step = [-self.virtual_lr * g for g in trial.gradient(0, lambdas)]
        along = trial.gradient(1, worth.to(lambdas), step)
        norm = torch.stack([torch.linalg.vector_norm(v) for v in along]).norm()
        reach = 0.01 / torch.where(norm > 0, norm, torch.ones_like(norm))
        ahead = trial.losses(0, [reach * v for v in along])
        behind = trial.losses(0, [-reach * v for v in along])
        slopes = -self.virtual_lr * (ahead - behind) / (2.0 * reach)
        return (present(self, self.lambdas, trained, slopes) * slopes).sum()
