"""What every balancer must keep to: run ``check_balancer`` on your own class.

Each check takes ``make``, which returns a new balancer that is not yet set up, for given task names (most
methods ignore the names). What a method promises beyond the rules for all is read from its ``traits``.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from polytask.balancing.base import RESERVED, Balancer, GramianWeighting, JacobianAggregator, LossWeighting
from polytask.balancing.warn import BalancerWarning

Make = Callable[[Sequence[str]], Balancer]
SCALES = (1e-12, 1e-6, 1.0, 1e6, 1e12)
TRAITS = frozenset(
    {
        "non_conflicting",
        "permutation_equivariant",
        "scale_equivariant",
        "scale_invariant",
        "pareto_fixed_points",
        "identity_for_one_task",
        "stateful",
        "random",
    }
)
RTOL = 1e-5
"""State is float32 unless a method says otherwise; its rounding passes through a few steps."""


def task_names(count: int) -> list[str]:
    """Names for ``count`` tasks.

    Example:
        >>> task_names(2)
        ['task0', 'task1']
    """
    return [f"task{number}" for number in range(count)]


def jacobians(count: int = 4, size: int = 7, seed: int = 0) -> dict[str, Tensor]:
    """Float64 Jacobians ``[count, size]`` by what is special about them; ``count`` is at least 3.

    Example:
        >>> sorted(jacobians())
        ['duplicate', 'generic', 'rank_deficient', 'scales', 'stationary', 'zero', 'zero_row']
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, size, generator=generator, dtype=torch.float64)
    mix = torch.rand(count - 1, generator=generator, dtype=torch.float64) + 0.2
    low = torch.randn(count, 2, generator=generator, dtype=torch.float64) @ rows[:2]
    first = torch.arange(count, dtype=torch.float64)[:, None]
    return {
        "generic": rows,
        "scales": rows * 10.0 ** (2.0 * first - count),
        "duplicate": torch.cat([rows[:1], rows[:-1]]),
        "zero_row": torch.where(first == 1.0, torch.zeros_like(rows), rows),
        "rank_deficient": low,
        "stationary": torch.cat([rows[:-1], -(mix @ rows[:-1])[None]]),
        "zero": torch.zeros_like(rows),
    }


def some_losses(count: int) -> Tensor:
    """Positive losses of different sizes, float64 ``[count]``.

    Example:
        >>> some_losses(2)
        tensor([0.3000, 0.6000], dtype=torch.float64)
    """
    return 0.3 * 2.0 ** torch.arange(count, dtype=torch.float64)


def ready(make: Make, tasks: Sequence[str], seed: int = 0) -> Balancer:
    """A balancer from ``make``, set up for ``tasks``."""
    balancer = make(tasks)
    balancer.setup(tasks, dict.fromkeys(tasks, "regression"), seed=seed)
    return balancer


def update(balancer: Balancer, jacobian: Tensor, losses: Tensor, tasks: Sequence[str]) -> Tensor:
    """The direction ``[n]`` that a step would put into ``.grad``; shapes are checked on the way.

    Raises:
        AssertionError: if what the balancer returns has another shape.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BalancerWarning)
        if isinstance(balancer, JacobianAggregator):
            direction = balancer.aggregate(jacobian, losses, tasks)
            _require(direction.shape == jacobian.shape[1:], f"a direction of shape {tuple(direction.shape)}", balancer)
            return direction.detach()
        if isinstance(balancer, GramianWeighting):
            scales = balancer.loss_scales(tasks)
            jacobian = jacobian if scales is None else scales.to(jacobian)[:, None] * jacobian
            further = {"cross": _gramian(jacobian)} if balancer.halves else {}
            weights = balancer.weigh(_gramian(jacobian), losses, tasks, **further)
        else:
            _require(isinstance(balancer, LossWeighting), "a class of none of the three kinds", balancer)
            weights = balancer.weigh(losses, tasks)  # type: ignore[operator]
    _require(tuple(weights.shape) == (len(tasks),), f"weights of shape {tuple(weights.shape)}", balancer)
    _require(not weights.requires_grad, "weights that are not detached", balancer)
    return weights.to(jacobian) @ jacobian


def run(
    balancer: Balancer, jacobian: Tensor, losses: Tensor, tasks: Sequence[str], steps: int = 3, lr: float = 0.01
) -> Tensor:
    """Drive a balancer as a training loop does, and return its updates, ``[steps, n]``.

    Every step takes the update, one step of plain gradient descent of the method's own Parameters, and the
    second look; losses fall at different rates, and an epoch ends after each step.
    """
    rates = torch.linspace(0.7, 0.95, len(tasks), dtype=losses.dtype)
    updates = []
    for _ in range(steps):
        updates.append(update(balancer, jacobian, losses, tasks))
        _step_parameters(balancer, jacobian, losses, tasks, lr)
        losses = losses * rates
        later = dict(zip(tasks, losses, strict=True))
        balancer.after_step(lambda later=later: later)  # type: ignore[misc]
        balancer.epoch_end({task: float(value) for task, value in later.items()})
    return torch.stack(updates)


def check_scales(make: Make) -> None:
    """Finite at scales of the losses and gradients from 1e-12 to 1e12; equal up to scale where promised."""
    tasks = task_names(4)
    for kind in ("generic", "scales"):
        jacobian = jacobians()[kind]
        reference = run(ready(make, tasks), jacobian, some_losses(4), tasks)
        for scale in SCALES:
            balancer = ready(make, tasks)
            found = run(balancer, scale * jacobian, scale * some_losses(4), tasks)
            _require_finite(found, f"at scale {scale:g}", balancer)
            if "scale_equivariant" in balancer.traits:
                _require_close(found / scale, reference, f"'scale_equivariant' fails at scale {scale:g}", balancer)
            if "scale_invariant" in balancer.traits:
                _require_close(found, reference, f"'scale_invariant' fails at scale {scale:g}", balancer)


def check_permutation(make: Make) -> None:
    """The same update whatever the order of the tasks, where promised."""
    tasks, order = task_names(4), [2, 0, 3, 1]
    shuffled = [tasks[place] for place in order]
    for kind in ("generic", "scales", "zero_row"):
        jacobian, losses = jacobians()[kind], some_losses(4)
        balancer = ready(make, tasks)
        if "permutation_equivariant" not in balancer.traits:
            return
        # Losses fall at rates by place in ``run``: one step keeps the two runs alike.
        reference = run(balancer, jacobian, losses, tasks, steps=1)
        found = run(ready(make, shuffled), jacobian[order], losses[order], shuffled, steps=1)
        _require_close(found, reference, f"'permutation_equivariant' fails on '{kind}' rows", balancer)
        found = update(ready(make, tasks), jacobian[order], losses[order], shuffled)
        _require_close(found, reference[0], f"the order of the tasks in a step matters on '{kind}' rows", balancer)


def check_one_task(make: Make) -> None:
    """Finite for a single task, and its plain gradient where promised."""
    tasks = task_names(1)
    for row in (jacobians()["generic"][:1], jacobians()["zero"][:1]):
        balancer = ready(make, tasks)
        found = run(balancer, row, some_losses(1), tasks)
        _require_finite(found, "for one task", balancer)
        if "identity_for_one_task" in balancer.traits:
            _require_close(found, row.expand_as(found), "'identity_for_one_task' fails", balancer)


def check_degenerate(make: Make) -> None:
    """Finite for duplicate rows, zero rows, low rank, Pareto stationary points and zero losses."""
    tasks = task_names(4)
    for kind, jacobian in jacobians().items():
        for losses in (some_losses(4), some_losses(4) * torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.zeros(4).double()):
            balancer = ready(make, tasks)
            _require_finite(run(balancer, jacobian, losses, tasks), f"on '{kind}' rows, losses {losses}", balancer)


def check_promises(make: Make) -> None:
    """No conflict, no update at Pareto stationary points, no look at the losses, where promised."""
    tasks = task_names(4)
    rows, losses = jacobians()["generic"], some_losses(4)
    balancer, other = ready(make, tasks), ready(make, tasks)
    if not balancer.needs_losses:
        same = torch.equal(update(balancer, rows, losses, tasks), update(other, rows, losses.flip(0), tasks))
        _require(bool(same), "'needs_losses' is false but the losses matter", balancer)
    for seed in range(5):
        for kind, jacobian in jacobians(seed=seed).items():
            balancer = ready(make, tasks, seed)
            found = update(balancer, jacobian, some_losses(4), tasks)
            norms = jacobian.norm(dim=1)
            if "non_conflicting" in balancer.traits:
                slack = (jacobian @ found) + 1e-6 * norms * norms.max().clamp_min(found.norm())
                _require(bool((slack >= 0).all()), f"an update that conflicts with a task on '{kind}' rows", balancer)
            if "pareto_fixed_points" in balancer.traits and kind in ("stationary", "zero"):
                small = bool(found.norm() <= 1e-6 * norms.max())
                _require(small, f"an update of norm {float(found.norm()):.2g} at a Pareto stationary point", balancer)


def check_precision(make: Make) -> None:
    """Float32 input gives what float64 input gives, up to float32's rounding."""
    tasks = task_names(4)
    jacobian, losses = jacobians()["generic"].float(), some_losses(4).float()
    balancer = ready(make, tasks)
    found = run(balancer, jacobian, losses, tasks)
    expected = run(ready(make, tasks), jacobian.double(), losses.double(), tasks)
    _require(found.dtype == torch.float32, f"an update of type {found.dtype} from float32 gradients", balancer)
    _require_close(found.double(), expected, "float32 and float64 disagree", balancer, rtol=1e-3)


def check_absent(make: Make) -> None:
    """A step without some of the tasks: finite, of the right shape, before and after a full step."""
    tasks = task_names(4)
    jacobian, losses = jacobians()["generic"], some_losses(4)
    balancer = ready(make, tasks)
    for chosen in ([1, 3], [0, 1, 2, 3], [2], [3, 0, 1]):
        some = [tasks[place] for place in chosen]
        found = run(balancer, jacobian[chosen], losses[chosen], some, steps=2)
        _require_finite(found, f"with only {some} present", balancer)


def check_state(make: Make) -> None:
    """A state dict carries everything: a resumed balancer goes on bit for bit, and refuses other tasks."""
    tasks = task_names(4)
    jacobian, losses = jacobians()["generic"], some_losses(4)
    first, second = ready(make, tasks, seed=1), ready(make, tasks, seed=2)
    run(first, jacobian, losses, tasks)
    second.load_state_dict(first.state_dict())
    expected = run(first, jacobian, losses / 2.0, tasks)
    found = run(second, jacobian, losses / 2.0, tasks)
    _require(bool(torch.equal(found, expected)), "a resumed balancer that goes on differently", first)


def check_randomness(make: Make) -> None:
    """The seed decides everything; no generator but the balancer's own is touched."""
    tasks = task_names(4)
    jacobian, losses = jacobians()["generic"], some_losses(4)
    before = torch.random.get_rng_state()
    runs = [run(ready(make, tasks, seed), jacobian, losses, tasks) for seed in (3, 3, 4)]
    balancer = make(tasks)
    same = bool(torch.equal(torch.random.get_rng_state(), before))
    _require(same, "a draw from torch's global generator", balancer)
    _require(bool(torch.equal(runs[0], runs[1])), "two runs of one seed that differ", balancer)
    if "random" not in balancer.traits:
        _require(bool(torch.equal(runs[0], runs[2])), "a seed that matters without the trait 'random'", balancer)


def check_declarations(make: Make) -> None:
    """Known traits, no option named like a key of the engine, a docstring with a sentence and an example."""
    balancer = make(task_names(4))
    _require(balancer.traits <= TRAITS, f"unknown traits {sorted(balancer.traits - TRAITS)}", balancer)
    options = inspect.signature(type(balancer)).parameters
    taken = [name for name in options if name.rstrip("_") in RESERVED]
    _require(not taken, f"options {taken} that are names of the engine's", balancer)
    text = inspect.cleandoc(type(balancer).__dict__.get("__doc__") or "")
    _require(bool(text), "no docstring", balancer)
    _require(text.splitlines()[0].endswith("."), "a first docstring line that is no sentence", balancer)
    _require("Example:" in text, "no 'Example:' in its docstring", balancer)


def check_reference(make: Make) -> None:
    """The docstring says where the method comes from."""
    balancer = make(task_names(4))
    _require(
        "Reference:" in (type(balancer).__dict__.get("__doc__") or ""), "no 'Reference:' in its docstring", balancer
    )


CHECKS: dict[str, Callable[[Make], None]] = {
    "scales": check_scales,
    "permutation": check_permutation,
    "one_task": check_one_task,
    "degenerate": check_degenerate,
    "promises": check_promises,
    "precision": check_precision,
    "absent": check_absent,
    "state": check_state,
    "randomness": check_randomness,
    "declarations": check_declarations,
    "reference": check_reference,
}


def check_balancer(make: Make) -> None:
    """Run every check on one balancer.

    Args:
        make: Returns a new balancer for given task names, not yet set up.

    Raises:
        AssertionError: that names the class and what it does not keep to.

    Example:
        >>> from polytask.balancing.loss.fixed import Equal
        >>> check_balancer(lambda tasks: Equal())
    """
    for check in CHECKS.values():
        check(make)


def _gramian(jacobian: Tensor) -> Tensor:
    rows = jacobian.double()
    return rows @ rows.T


def _step_parameters(balancer: Balancer, jacobian: Tensor, losses: Tensor, tasks: Sequence[str], lr: float) -> None:
    owned = [parameter for parameter in balancer.parameters() if parameter.requires_grad]
    objective: Any = getattr(balancer, "objective", None)
    # A weighting with halves trains them in ``look_ahead``, which needs a model.
    if not owned or objective is None or (isinstance(balancer, LossWeighting) and balancer.halves):
        return
    given = (_gramian(jacobian), losses) if isinstance(balancer, GramianWeighting) else (losses,)
    total = objective(*given, tasks)
    _require(total is not None, "Parameters but no objective to train them", balancer)
    for parameter, gradient in zip(owned, torch.autograd.grad(total, owned, allow_unused=True), strict=True):
        if gradient is not None:
            with torch.no_grad():
                parameter.sub_(lr * gradient)


def _require(fine: bool, found: str, balancer: Balancer) -> None:
    if not fine:
        raise AssertionError(f"{type(balancer).__name__}: {found}.")


def _require_finite(values: Tensor, where: str, balancer: Balancer) -> None:
    _require(bool(values.isfinite().all()), f"an update that is not finite {where}: {values}", balancer)


def _require_close(found: Tensor, expected: Tensor, what: str, balancer: Balancer, rtol: float = RTOL) -> None:
    gap, size = float((found - expected).norm()), float(expected.norm())
    _require(gap <= rtol * size, f"{what}: {gap:.3g} away, of {size:.3g}", balancer)
