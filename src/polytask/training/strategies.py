"""Training strategies: which parameters and which tasks each step touches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polytask import registry
from polytask.data.mixing import Mixer
from polytask.errors import RecipeError, unknown

PARTS = ("all", "shared", "heads")
BATCHES = ("same", "next")


@dataclass(frozen=True)
class Turn:
    """What one step touches.

    Args:
        part: ``all``; ``shared``: what belongs to no single task; ``heads``: what belongs to one task alone, its
            private layers included.
        tasks: Tasks whose losses are taken; what belongs to another task alone is fixed. All if None.
    """

    part: str = "all"
    tasks: tuple[str, ...] | None = None


class Strategy(ABC):
    """Says for every step what it touches: a value that is handed to the loop, and a function of the step alone.

    A strategy of your own derives from this class; its import path is its name. Its constructor may take ``tasks``,
    the names of the model's tasks.

    Attributes:
        steps_per_batch: How many steps are made with one batch; an epoch has so many times more steps.
        anchor: Weight of the penalty on what earlier phases trained; 0 is none.
    """

    steps_per_batch: int = 1
    anchor: float = 0.0

    @abstractmethod
    def turn(self, step: int, steps_per_epoch: int) -> Turn:
        """What step ``step`` (from 0) touches."""

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns that a run can have; each has to have something to train."""
        return ()

    def phases_until(self, step: int, steps_per_epoch: int) -> tuple[Turn, ...]:
        """The phases that began up to ``step``, the present one last; needed where ``anchor`` is not 0."""
        return (self.turn(step, steps_per_epoch),)

    def check(self, mixer: Mixer, epochs: int) -> None:  # noqa: B027 - most have nothing to refuse
        """Refuse sources or a length of the run that the strategy cannot work with.

        Args:
            mixer: Draws the batches.
            epochs: How many epochs are begun.

        Raises:
            RecipeError: says what to change.
        """

    def describe(self) -> str:
        """One line for the log; nothing to say if empty."""
        return ""


class Joint(Strategy):
    """Every step updates everything.

    Example:
        >>> Joint().turn(7, 10)
        Turn(part='all', tasks=None)
    """

    def turn(self, step: int, steps_per_epoch: int) -> Turn:
        """Everything."""
        return _EVERYTHING


_EVERYTHING = Turn()


class Alternating(Strategy):
    r"""The shared part with the heads fixed, then the heads with the shared part fixed.

    With the shared parameters s, task k's own parameters :math:`h_k`, and the balanced total L, a round is

    .. math:: s \leftarrow \mathrm{update}(s, \nabla_s L(s, h)), \qquad
              h \leftarrow \mathrm{update}(h, \nabla_h L(s, h)),

    where the second gradient is taken at the new s: exactly two partial updates, each a step of the run. Fixed
    parameters have no gradient, so their optimizer state and weight decay rest as well. They compute as in every
    training step (batch statistics, dropout), but their running statistics stay.

    Args:
        batch: ``same``: both steps of a round take the same batch, so that an epoch has twice as many steps as
            batches. ``next``: every step takes the next batch.

    Raises:
        RecipeError: for another word; at ``check`` for sources that would always meet the same part.

    Example:
        >>> [Alternating().turn(step, 10).part for step in range(4)]
        ['shared', 'heads', 'shared', 'heads']
    """

    turns = (Turn("shared"), Turn("heads"))

    def __init__(self, batch: str = "same"):
        if batch not in BATCHES:
            raise RecipeError(f"training.strategy.batch: {unknown('word', str(batch), BATCHES)}")
        self.batch = batch
        self.steps_per_batch = 2 if batch == "same" else 1

    def turn(self, step: int, steps_per_epoch: int) -> Turn:
        """The shared part in even steps, the heads in odd ones."""
        return self.turns[step % 2]

    def check(self, mixer: Mixer, epochs: int) -> None:
        """Refuse to show each source to one part only."""
        count = len(mixer.sources)
        if self.batch == "next" and mixer.sampler.in_turn and count % 2 == 0:
            raise RecipeError(
                f"training.strategy.batch is 'next', and {count} tables take turns (round_robin): the shared part "
                "would always meet the same tables. Use batch: same, or another sampler."
            )

    def describe(self) -> str:
        """In words."""
        return f"Strategy: alternating, the shared part and then the heads, on the {self.batch} batch."


class Hierarchical(Strategy):
    r"""Some tasks first, then those that build on them: level after level on every batch, or phase after phase.

    With ``levels``, every batch trains the levels in order, one step each: the losses of that level's tasks update
    the shared part and what these tasks own. A later level computes with what the earlier ones have just become.

    With ``phases``, each phase trains its tasks for some epochs. Rows of other tasks' tables are passed over. What
    belongs to a task outside of the phase is fixed. With ``anchor`` :math:`\delta`, the total of a later phase has
    the further term

    .. math:: \delta \, \lVert \theta - \theta' \rVert^2,

    over the parameters :math:`\theta` that an earlier phase has trained, with :math:`\theta'` their values when the
    phase began: a new task may change what older ones use, but not by much.

    Args:
        tasks: Names of all tasks.
        levels: Names of tasks, or lists of names, in the order in which they train; each task in the order of the
            recipe if neither levels nor phases are given.
        phases: Mappings with ``tasks`` (names, or ``all``), ``epochs`` (may be left out in the last phase, which
            then goes on to the end) and ``train`` (``all``, ``shared`` or ``heads``).
        anchor: The penalty's weight; needs phases.

    Raises:
        RecipeError: for an unknown task or key, a task in two levels or in none, or both levels and phases.

    Example:
        >>> strategy = Hierarchical(["tags", "parse"])
        >>> [strategy.turn(step, 10).tasks for step in range(3)]
        [('tags',), ('parse',), ('tags',)]
        >>> phases = [{"tasks": ["tags"], "epochs": 2}, {"tasks": "all"}]
        >>> strategy = Hierarchical(["tags", "parse"], phases=phases)
        >>> strategy.turn(19, 10).tasks, strategy.turn(20, 10).tasks
        (('tags',), None)

    Reference:
        Hashimoto et al., "A Joint Many-Task Model: Growing a Neural Network for Multiple NLP Tasks" (EMNLP 2017),
        where tasks of one level train after those below, with a penalty that they call successive regularization.
        There the order starts again in every epoch; here a phase comes once.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        levels: Sequence[str | Sequence[str]] | None = None,
        phases: Sequence[Mapping[str, Any]] | None = None,
        anchor: float = 0.0,
    ):
        if levels is not None and phases is not None:
            raise RecipeError("training.strategy has both levels and phases. Give one of them.")
        if anchor < 0 or (anchor and phases is None):
            raise RecipeError(
                f"training.strategy.anchor is {anchor}; it is a weight from 0, of the change since a phase began, and "
                "needs phases."
            )
        self.anchor = float(anchor)
        self._levels = () if phases is not None else _levels(tasks if levels is None else levels, tasks)
        self._phases = () if phases is None else _phases(phases, tasks)
        self.steps_per_batch = max(1, len(self._levels))

    def turn(self, step: int, steps_per_epoch: int) -> Turn:
        """That of the level or the phase."""
        if self._levels:
            return self._levels[step % len(self._levels)]
        return self._phases[self._phase(step, steps_per_epoch)][0]

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Those of the levels or the phases."""
        return self._levels or tuple(turn for turn, _ in self._phases)

    def phases_until(self, step: int, steps_per_epoch: int) -> tuple[Turn, ...]:
        """The phases that began up to ``step``."""
        return tuple(turn for turn, _ in self._phases[: self._phase(step, steps_per_epoch) + 1])

    def _phase(self, step: int, steps_per_epoch: int) -> int:
        epoch, end = step // steps_per_epoch, 0
        for number, (_, epochs) in enumerate(self._phases):
            end += epochs or 0
            if epoch < end:
                return number
        return len(self._phases) - 1

    def check(self, mixer: Mixer, epochs: int) -> None:
        """Refuse batches that do not hold every level, and phases that never begin."""
        if len(self._levels) > 1 and len(mixer.sources) > 1 and not mixer.sampler.every:
            raise RecipeError(
                "training.strategy has levels, which share a batch, but the tasks' tables take turns. Use "
                "sampler: together, or phases."
            )
        if not self._phases:
            return
        before, last = sum(length or 0 for _, length in self._phases[:-1]), self._phases[-1][1]
        if epochs <= before or (last is not None and epochs != before + last):
            asked = f"{before} epochs before the last" if last is None else f"{before + last} epochs"
            raise RecipeError(
                f"training.strategy.phases take {asked}, but the run has {epochs}. Change training.epochs or the "
                "phases; the last one goes on to the end if it has no epochs."
            )

    def describe(self) -> str:
        """In words."""
        if self._levels:
            words = " then ".join("+".join(turn.tasks or ("all",)) for turn in self._levels)
            return f"Strategy: hierarchical, on every batch {words}."
        words = ", ".join(_in_words(turn, epochs) for turn, epochs in self._phases)
        return f"Strategy: hierarchical, in phases: {words}."


def _in_words(turn: Turn, epochs: int | None) -> str:
    what = "+".join(turn.tasks) if turn.tasks else "all tasks"
    part = "" if turn.part == "all" else f" ({turn.part})"
    return f"{what}{part} {'to the end' if epochs is None else f'for {epochs} epochs'}"


def _levels(given: Sequence[str | Sequence[str]], tasks: Sequence[str]) -> tuple[Turn, ...]:
    levels = [(level,) if isinstance(level, str) else tuple(level) for level in given]
    named = [task for level in levels for task in level]
    for task in named:
        if task not in tasks:
            raise RecipeError(f"training.strategy.levels: {unknown('task', str(task), tasks)}")
        if named.count(task) > 1:
            raise RecipeError(f"training.strategy.levels names '{task}' {named.count(task)} times. Name it once.")
    missing = [task for task in tasks if task not in named]
    if missing or not all(levels):
        what = f"leaves out '{missing[0]}'" if missing else "has an empty level"
        raise RecipeError(f"training.strategy.levels {what}. Every task is in one level.")
    return tuple(Turn("all", level) for level in levels)


def _phases(given: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> tuple[tuple[Turn, int | None], ...]:
    if not given:
        raise RecipeError("training.strategy.phases is empty. Give at least one phase, such as {tasks: all}.")
    found = []
    for number, options in enumerate(given, start=1):
        where = f"training.strategy.phases, phase {number}"
        registry.check_options(where, _phase, options, {"where": None, "known": None})
        turn, epochs = _phase(where, tasks, **options)
        if epochs is None and number < len(given):
            raise RecipeError(f"{where} has no epochs. Only the last phase may go on to the end.")
        found.append((turn, epochs))
    return tuple(found)


def _phase(
    where: str, known: Sequence[str], tasks: str | Sequence[str], epochs: int | None = None, train: str = "all"
) -> tuple[Turn, int | None]:
    names = None if tasks == "all" else (tasks,) if isinstance(tasks, str) else tuple(tasks)
    for task in names or ():
        if task not in known:
            raise RecipeError(f"{where}: {unknown('task', str(task), [*known, 'all'])}")
    if names == ():
        raise RecipeError(f"{where} has no task. Name some, or say tasks: all.")
    if train not in PARTS:
        raise RecipeError(f"{where}: {unknown('part to train', str(train), PARTS)}")
    if epochs is not None and (isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1):
        raise RecipeError(f"{where}: epochs is {epochs!r}; it is a whole number from 1.")
    return Turn(train, names), epochs
