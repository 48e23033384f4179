"""From what a user names to a balancer that is set up for the tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polytask import registry
from polytask.balancing.base import RESERVED, Balancer
from polytask.errors import BalancerError, suggestion


def split(
    balancer: Any,
    tasks: Sequence[str],
    kinds: Mapping[str, str] | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[Balancer, dict[str, Any]]:
    """A balancer, and the options of the engine that came along with it.

    Args:
        balancer: A registry key, a mapping with ``name`` and options, or an instance.
        tasks: All task names.
        kinds: Task kinds by name.
        seed: Of the balancer's generator.
        options: Further options of the method or the engine.

    Returns:
        The balancer, set up, and a dict of reserved options (``at``, ``every``, ...) for ``engine``.

    Raises:
        RecipeError: for an unknown name or option.
        BalancerError: for an instance that does not fit.

    Example:
        >>> method, rest = split({"name": "sum", "at": "features"}, tasks=["a", "b"])
        >>> type(method).__name__, method.tasks, rest
        ('Sum', ('a', 'b'), {'at': 'features'})
    """
    if isinstance(balancer, str):
        balancer = {"name": balancer}
    if isinstance(balancer, Mapping):
        if "name" not in balancer:
            raise BalancerError(f"A balancer needs a 'name'; got {dict(balancer)}.{suggestion('name', balancer)}")
        settings = {**balancer, **options}
        name = settings.pop("name")
        reserved = {key: settings.pop(key) for key in RESERVED if key in settings}
        made = registry.build("balancers", name, settings)
    else:
        reserved = {key: options.pop(key) for key in RESERVED if key in options}
        if options:
            raise BalancerError(
                f"The balancer is an instance, so its options are fixed; got {sorted(options)}. Set them where it "
                "is made, or pass its name."
            )
        made = _instance(balancer)
    return _set_up(made, tasks, kinds, seed), reserved


def build(
    balancer: Any,
    tasks: Sequence[str],
    kinds: Mapping[str, str] | None = None,
    seed: int = 0,
    **options: Any,
) -> Balancer:
    """A balancer that is set up for its tasks.

    Args:
        balancer: A registry key, a mapping with ``name`` and options, or an instance.
        tasks: All task names.
        kinds: Task kinds by name (``"regression"``, ``"classification"`` or a task type's key).
        seed: Of the balancer's generator.
        options: Options of the method.

    Returns:
        The balancer.

    Raises:
        RecipeError: for an unknown name or option.
        BalancerError: for options that belong to ``engine``, or an instance that does not fit.

    Example:
        >>> build("sum", tasks=["a", "b"]).tasks
        ('a', 'b')
    """
    made, reserved = split(balancer, tasks, kinds, seed, **options)
    if reserved:
        raise BalancerError(
            f"The options {sorted(reserved)} say how a method is run, not what it is. Pass them to 'engine' or "
            "'backward', or use 'split', which returns them."
        )
    return made


def _instance(thing: Any) -> Balancer:
    if isinstance(thing, Balancer):
        return thing
    if type(thing).__module__.partition(".")[0] == "torchjd":
        from polytask.balancing.interop import from_torchjd

        return from_torchjd(thing)
    raise BalancerError(
        f"A balancer is a name, a mapping with a 'name', a polytask balancer or a TorchJD object; got "
        f"{type(thing).__name__}."
    )


def _set_up(made: Any, tasks: Sequence[str], kinds: Mapping[str, str] | None, seed: int) -> Balancer:
    if not isinstance(made, Balancer):
        made = _instance(made)
    if not made.tasks:
        made.setup(tasks, kinds, seed)
    elif made.tasks != tuple(tasks):
        raise BalancerError(
            f"The balancer was set up for tasks {list(made.tasks)}, but these are {list(tasks)}. Make a new one."
        )
    checked: Balancer = made
    return checked
