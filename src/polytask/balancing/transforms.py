"""Transforms of a balancer's input or output, and ``chain``, which puts them before a method."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from polytask.balancing.base import Balancer
from polytask.balancing.chained import before, inner_method
from polytask.balancing.gradient.averaged import log_rates, refuse_negative
from polytask.balancing.gradient.checks import check_share
from polytask.balancing.gradient.memory import TaskAverage, TaskRows
from polytask.balancing.gramian.solver import check_choice
from polytask.balancing.loss.common import per_task, present
from polytask.errors import BalancerError

# An update of less than this share of its terms' squared size is rounding: rescaling it would blow up noise.
_ROUNDING = 1e-14


class Transform(nn.Module, ABC):
    """One link of a chain: what a method is given, or what becomes of its answer.

    A link overrides some of the hooks below; each does nothing by default.

    Attributes:
        fits: Kinds of method that the link can stand before: ``losses``, ``gramian``, ``jacobian``.
        jacobian_only: Whether a Gramian method behind it has to be given whole gradients.
        needs_losses: Whether it reads loss values.
        stateful: Whether it keeps something between steps.
    """

    fits: ClassVar[frozenset[str]] = frozenset({"losses", "gramian", "jacobian"})
    jacobian_only: ClassVar[bool] = False
    stateful: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.needs_losses = False

    def build(self, owner: Balancer) -> None:
        """Create the state for ``owner.tasks``."""

    def losses(self, losses: Tensor, owner: Balancer, tasks: Sequence[str]) -> Tensor:
        """The losses ``[p]`` that the method sees."""
        return losses

    def factors(
        self, squares: Tensor | None, losses: Tensor | None, owner: Balancer, tasks: Sequence[str]
    ) -> Tensor | None:
        """What every gradient is multiplied by, ``[p]``, from their squared norms and losses; None for ones."""
        return None

    def gradients(self, jacobian: Tensor, owner: Balancer, tasks: Sequence[str]) -> Tensor:
        """The gradients ``[p, n]`` that the method sees."""
        return jacobian

    def weights(self, weights: Tensor, owner: Balancer, tasks: Sequence[str]) -> Tensor:
        """What becomes of the method's weights ``[p]``."""
        return weights

    def length(self, found: Tensor, size: Tensor, plain: Tensor, count: int) -> Tensor | None:
        """What the update is multiplied by; None for one.

        Args:
            found: Squared norm of the update.
            size: Squared size of its terms: how much rounding there may be.
            plain: Squared norm of the sum of the gradients.
            count: Number of present tasks.
        """
        return None

    def epoch_end(self, losses: Mapping[str, float]) -> None:
        """Called with the epoch's average losses."""


class LogLosses(Transform):
    r"""Balance the logarithms of the losses: gradients :math:`g_i / L_i`.

    The scales of the losses cancel. A loss that is not positive has no logarithm: within a step its gradient
    counts as zero, and a negative average over an epoch is an error.

    Args:
        eps: Added to the losses first, in their units.

    Raises:
        BalancerError: for a negative ``eps``.
    """

    def __init__(self, eps: float = 0.0) -> None:
        super().__init__()
        self.needs_losses = True
        if not eps >= 0.0:
            raise BalancerError(f"log_losses: eps must be a number of at least 0; got {eps!r}.")
        self.eps = eps

    def losses(self, losses: Tensor, owner: Balancer, tasks: Sequence[str]) -> Tensor:
        """Logarithms; that of the least normal number where there is none."""
        return (losses + self.eps).clamp(min=torch.finfo(losses.dtype).tiny).log()

    def factors(
        self, squares: Tensor | None, losses: Tensor | None, owner: Balancer, tasks: Sequence[str]
    ) -> Tensor | None:
        """One over the losses."""
        if losses is None:
            raise BalancerError("log_losses needs the losses. Pass them along.")
        return log_rates(losses, self.eps)

    def epoch_end(self, losses: Mapping[str, float]) -> None:
        """Refuse negative averages."""
        refuse_negative("log_losses", losses, self.eps)


class NormalizeRows(Transform):
    """Gradients of norm one, or of the norm of their loss; zero gradients stay zero.

    Args:
        to: ``"one"`` or ``"loss"``.

    Raises:
        BalancerError: for another word.
    """

    fits: ClassVar[frozenset[str]] = frozenset({"gramian", "jacobian"})

    def __init__(self, to: Literal["one", "loss"] = "one") -> None:
        super().__init__()
        check_choice("normalize_rows", "to", to, ("one", "loss"))
        self.to_what = to
        self.needs_losses = to == "loss"

    def factors(
        self, squares: Tensor | None, losses: Tensor | None, owner: Balancer, tasks: Sequence[str]
    ) -> Tensor | None:
        """One, or the losses, over the norms."""
        assert squares is not None  # a chain over a loss weighting is refused when it is made
        alive = squares > 0
        inverse = torch.where(alive, torch.where(alive, squares, 1.0).rsqrt(), 0.0)
        if self.to_what == "one":
            return inverse
        if losses is None:
            raise BalancerError('normalize_rows("loss") needs the losses. Pass them along.')
        return inverse * losses.to(inverse)


class Preference(Transform):
    """Multiply every task's loss, and with it its gradient, by a number.

    Args:
        vector: A number for every task, by name or in the order of the tasks; none negative.
    """

    vector: Tensor

    def __init__(self, vector: Mapping[str, float] | Sequence[float]) -> None:
        super().__init__()
        self.given = vector

    def build(self, owner: Balancer) -> None:
        """Read the vector.

        Raises:
            BalancerError: if it does not fit the tasks or has a negative number.
        """
        vector = per_task("preference", self.given, owner.tasks)
        if bool((vector < 0).any()):
            raise BalancerError(f"preference: no number may be negative; got {vector.tolist()}.")
        self.register_buffer("vector", vector, persistent=False)

    def losses(self, losses: Tensor, owner: Balancer, tasks: Sequence[str]) -> Tensor:
        """Losses times the vector."""
        return losses * present(owner, self.vector, tasks, losses)

    def factors(
        self, squares: Tensor | None, losses: Tensor | None, owner: Balancer, tasks: Sequence[str]
    ) -> Tensor | None:
        """The vector."""
        like = squares if squares is not None else losses
        assert like is not None  # a loss weighting has losses, a gradient method norms
        return present(owner, self.vector, tasks, like)


class EmaGradients(Transform):
    r"""Running averages of the gradients: :math:`\bar g_i \leftarrow \beta \bar g_i + (1 - \beta) g_i`.

    They start at a task's first gradient. Absent tasks keep theirs.

    Args:
        beta: Share of the old average, in [0, 1].

    Raises:
        BalancerError: for a number outside [0, 1].
    """

    fits: ClassVar[frozenset[str]] = frozenset({"gramian", "jacobian"})
    jacobian_only: ClassVar[bool] = True
    stateful: ClassVar[bool] = True

    def __init__(self, beta: float = 0.9) -> None:
        super().__init__()
        self.beta = check_share("ema_gradients", "beta", beta)

    def build(self, owner: Balancer) -> None:
        """No averages yet."""
        self.averages = TaskRows(len(owner.tasks))

    def gradients(self, jacobian: Tensor, owner: Balancer, tasks: Sequence[str]) -> Tensor:
        """The averages, with this step's gradients in them."""
        places = owner.index(tasks)
        rows, kept, steps = self.averages.read(jacobian, places)
        rate = torch.where(steps > 1, 1.0 - self.beta, 1.0).to(rows)
        averages = kept.lerp_(rows, rate[:, None])
        self.averages.write(places, averages)
        return averages


class EmaWeights(Transform):
    r"""Running averages of the weights: :math:`\bar w_i \leftarrow \beta \bar w_i + (1 - \beta) w_i`.

    They start at a task's first weight. Absent tasks keep theirs.

    Args:
        beta: Share of the old average, in [0, 1].

    Raises:
        BalancerError: for a number outside [0, 1].
    """

    fits: ClassVar[frozenset[str]] = frozenset({"losses", "gramian"})
    stateful: ClassVar[bool] = True

    def __init__(self, beta: float = 0.9) -> None:
        super().__init__()
        self.beta = check_share("ema_weights", "beta", beta)

    def build(self, owner: Balancer) -> None:
        """No averages yet."""
        self.average = TaskAverage(len(owner.tasks), self.beta)

    def weights(self, weights: Tensor, owner: Balancer, tasks: Sequence[str]) -> Tensor:
        """The averages, with this step's weights in them."""
        return self.average.update(owner, tasks, weights)


class RescaleTo(Transform):
    """Give the update the norm of the gradients' mean or sum, so that methods take one learning rate.

    An update of zero stays zero.

    Args:
        what: ``"mean"`` or ``"sum"``.

    Raises:
        BalancerError: for another word.
    """

    fits: ClassVar[frozenset[str]] = frozenset({"gramian", "jacobian"})

    def __init__(self, what: Literal["mean", "sum"] = "mean") -> None:
        super().__init__()
        check_choice("rescale_to", "what", what, ("mean", "sum"))
        self.what = what

    def length(self, found: Tensor, size: Tensor, plain: Tensor, count: int) -> Tensor | None:
        """The wanted norm over the update's."""
        real = found > _ROUNDING * size
        ratio = (plain.clamp(min=0.0) / torch.where(real, found, 1.0)).sqrt()
        return torch.where(real, ratio / count if self.what == "mean" else ratio, 1.0)


def chain(*links: Transform | Balancer | str | Mapping[str, Any]) -> Balancer:
    """A method with transforms before it; the first transform acts first on what comes in.

    The result is a balancer of one of the three kinds. It stays what the method is, except that
    ``ema_gradients`` before a Gramian weighting gives a Jacobian aggregator. What comes out (weights, update)
    passes the transforms in reverse. A chain promises no traits beyond ``stateful`` and ``random``.

    Args:
        links: Transforms, then one method: a balancer, a registry key, or a mapping with a ``name``.

    Returns:
        The balancer, not yet set up.

    Raises:
        BalancerError: for links in another order, or a transform that the method cannot follow.
        RecipeError: for an unknown key or option.

    Example:
        >>> from polytask.balancing.gramian.cagrad import CAGrad
        >>> method = chain(log_losses(), CAGrad(c=0.0))
        >>> method.setup(["a", "b"])
        >>> losses = torch.tensor([0.5, 2.0], dtype=torch.float64)
        >>> method.weigh(torch.eye(2, dtype=torch.float64), losses, ["a", "b"])
        tensor([1.0000, 0.2500], dtype=torch.float64)
    """
    if not links or isinstance(links[-1], Transform):
        raise BalancerError("A chain ends with a method, such as chain(log_losses(), 'cagrad').")
    made = inner_method("chain", links[-1])
    for link in reversed(links[:-1]):
        if not isinstance(link, Transform):
            raise BalancerError(f"Before its last link a chain has transforms only; got {type(link).__name__}.")
        made = before(link, made)
    return made


log_losses, normalize_rows, preference = LogLosses, NormalizeRows, Preference
ema_gradients, ema_weights, rescale_to = EmaGradients, EmaWeights, RescaleTo
