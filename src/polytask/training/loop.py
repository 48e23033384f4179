"""The training loop: steps, epochs, validations, checkpoints."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from polytask.balancing.types import Engine
from polytask.data.mixing import Mixer
from polytask.data.source import Source
from polytask.errors import TrainingError
from polytask.evaluation import CompositeIndex, Scores, evaluate
from polytask.models import MultiTaskModel
from polytask.training.augment import Augment
from polytask.training.callbacks import Callback
from polytask.training.conflicts import ConflictLog
from polytask.training.optim import Schedule, drop_gradients
from polytask.training.partial import Anchor, PartialUpdates
from polytask.training.recorder import Recorder
from polytask.training.rounds import Rounds
from polytask.training.runtime import Runtime
from polytask.training.settings import TrainingSettings
from polytask.training.state import CHECKPOINT, load_state, random_state, save_state, set_random_state
from polytask.training.step import StepBuilder
from polytask.training.watch import GradientWatch

# How often several processes ask each other whether somebody wants to stop.
ASK_EVERY = 20


class Loop:
    """Runs steps until the run is over, stopped or interrupted; callbacks see it as it goes.

    Attributes that callbacks read: ``model``, ``settings``, ``runtime``, ``mixer``, ``step`` (steps done),
    ``epoch`` (epochs done), ``total_steps``, ``steps_per_epoch``, ``path``, ``stop_reason``, ``history``.

    Args:
        model: A built model on the runtime's device.
        mixer: Draws the batches.
        validation: Sources that are evaluated after an epoch; may be empty.
        engine: Fills ``.grad``.
        optimizer: Steps the model's parameters.
        schedule: Sets the learning rates.
        runtime: Device, precision, processes.
        settings: How to train.
        partial: What each step touches and leaves alone.
        callbacks: Hooks, called in this order.
        path: Folder of the run, or None to leave nothing on disk.
        index: One number over the tasks that scores and history show, or None.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        mixer: Mixer,
        validation: Sequence[Source],
        engine: Engine,
        optimizer: Optimizer,
        schedule: Schedule,
        runtime: Runtime,
        settings: TrainingSettings,
        partial: PartialUpdates,
        callbacks: Sequence[Callback] = (),
        path: Path | None = None,
        index: CompositeIndex | None = None,
    ):
        self.model, self.mixer, self.validation, self.engine = model, mixer, tuple(validation), engine
        self.optimizer, self.schedule, self.runtime, self.settings = optimizer, schedule, runtime, settings
        self.callbacks, self.path, self.index = tuple(callbacks), path, index
        self.partial, self.anchor = partial, Anchor(partial)
        self.rounds, self.steps_per_epoch = Rounds(mixer, partial.strategy.steps_per_batch), partial.steps_per_epoch
        self.total_steps = total_steps(settings, self.steps_per_epoch)
        mixer.total_steps = -(-self.total_steps // self.rounds.length)
        self.builder = StepBuilder(
            model,
            runtime,
            settings.accumulate,
            settings.penalties,
            settings.input_noise,
            settings.seed,
            engine.balancer.halves,
            self.anchor,
        )
        if settings.augment.changes:
            # It draws from the builder's generator, whose state a checkpoint has.
            self.builder.augment = Augment(settings.augment, model.tasks, self.builder.generator)
        self.conflicts = ConflictLog(engine, settings.monitor_every, settings.log_every, settings.monitor_layers)
        self.recorder = Recorder(settings.log_every, self.conflicts.note_weights)
        self.step = 0
        self.stop_reason: str | None = None
        self.history: list[dict[str, Any]] = []
        self._interrupted = False
        self._watch = GradientWatch(model.named_parameters())

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return self.step // self.steps_per_epoch

    def call(self, hook: Callable[[Callback], None]) -> None:
        """Run one hook of every callback."""
        for callback in self.callbacks:
            hook(callback)

    def run(self) -> None:
        """Train to the end.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, when the checkpoint has been written.
            TrainingError: if a loss is no longer finite.
        """
        self.call(lambda callback: callback.on_start(self))
        # Here and after every epoch, not in every step: walking over all modules takes a percent of a small step.
        self.model.train()
        with self._interrupts():
            while self.step < self.total_steps and self.stop_reason is None:
                self._train_step()
                at_end = self.step % self.steps_per_epoch == 0 or self.step == self.total_steps
                if at_end:
                    self._end_epoch()
                every = self.settings.checkpoint_every
                if at_end or (every and self.step % every == 0):
                    self.checkpoint()
                if self._should_stop():
                    self._interrupt()
        self.call(lambda callback: callback.on_end(self))

    def _train_step(self) -> None:
        parts = self.rounds.draw(self.step)
        rate = self.schedule.set(self.step)
        drop_gradients(self.optimizer)
        self.anchor.look(self.step)
        turn, hold = self.partial.step(self.step)
        micro = self.builder.build(parts, turn.tasks) if hold.leaves_any else []
        # Before anything is held, because figures of shared gradients are due in any step.
        conflict = self.conflicts.probe(self.step + 1, micro) if micro else {}
        with hold:
            if micro:
                report = self.engine.backward(micro)
                self.runtime.sum_gradients(self.model.parameters())
                self._watch.note()
                if self.settings.clip is not None:
                    nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
                self.optimizer.step()
                self.engine.after_step(micro)
                conflict |= self.conflicts.look(self.step + 1, report)
                self.recorder.add(report, epoch=self.epoch + 1, step=self.step + 1, lr=rate, **conflict)
        self.step += 1
        if self.recorder.is_due:
            self.flush()

    def flush(self) -> None:
        """Read the waiting reports from the device and pass their rows on."""
        rows = self.recorder.flush()
        if rows:
            self.call(lambda callback: callback.on_step_end(self, rows))

    def _end_epoch(self) -> None:
        self.flush()
        means = self.recorder.epoch_means()
        number = -(-self.step // self.steps_per_epoch)
        row: dict[str, Any] = {"scope": "epoch", "epoch": number, "step": self.step}
        row |= {f"loss.{task}": loss for task, loss in means.items()}
        last = self.step == self.total_steps
        if self.validation and (number % self.settings.validate_every == 0 or last):
            scores = self.validate()
            row |= {f"{task}.{name}": value for task, of in scores.items() for name, value in of.items()}
            row |= {} if scores.index is None else {"index": scores.index}
            self.call(lambda callback: callback.on_validation_end(self, scores))
        self.engine.epoch_end(means)
        self.mixer.observe(means)
        self.history.append(row)
        self.call(lambda callback: callback.on_epoch_end(self, row))
        self.recorder.start_epoch()
        if self.step >= self.steps_per_epoch:
            self._watch.end_epoch()
        self.model.train()

    def validate(self) -> Scores:
        """Scores on the validation sources, with BatchNorm statistics averaged over processes."""
        self.runtime.average_buffers(self.model)
        sources, gather = self.runtime.share_out(self.validation)
        scores = evaluate(
            self.model,
            sources,
            batch_size=self.settings.evaluation_batch_size,
            device=self.runtime.device,
            autocast=self.runtime.autocast,
            gather=gather,
        )
        if self.index is not None:
            scores.index = self.index(scores)
        return scores

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resume needs."""
        self.runtime.average_buffers(self.model)
        return {
            "step": self.step,
            "stop_reason": self.stop_reason,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "engine": self.engine.state_dict(),
            "mixer": self.rounds.state_dict(self.step),
            "anchor": self.anchor.state_dict(),
            "recorder": self.recorder.state_dict(),
            "conflicts": self.conflicts.state_dict(),
            "history": self.history,
            "noise": self.runtime.gather(self.builder.generator.get_state()),
            "random": self.runtime.gather(random_state()),
            "callbacks": {name: callback.state_dict() for name, callback in self._named_callbacks().items()},
        }

    def _named_callbacks(self) -> dict[str, Callback]:
        """Callbacks by class name, numbered where a class comes twice."""
        names: dict[str, Callback] = {}
        for callback in self.callbacks:
            kind = type(callback).__name__
            count = sum(type(other).__name__ == kind for other in names.values())
            names[f"{kind}-{count + 1}" if count else kind] = callback
        return names

    def checkpoint(self) -> None:
        """Write the checkpoint of this moment, if the run has a folder."""
        if self.path is None:
            return
        self.flush()
        self.call(lambda callback: callback.on_checkpoint(self))
        state = self.state_dict()
        if self.runtime.is_main:
            save_state(state, self.path / CHECKPOINT)
        self.runtime.barrier()

    def restore(self, path: Path) -> None:
        """Go on from the checkpoint of the run in ``path``.

        Raises:
            TrainingError: if there is none, or it is of another number of processes.
        """
        state = load_state(path / CHECKPOINT)
        if len(state["random"]) != self.runtime.world:
            raise TrainingError(
                f"The checkpoint in '{path}' is of {len(state['random'])} processes but this run has "
                f"{self.runtime.world}. Use the same number."
            )
        self.step, self.stop_reason, self.history = state["step"], state["stop_reason"], state["history"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.engine.load_state_dict(state["engine"])
        self.rounds.load_state_dict(state["mixer"], self.step)
        self.anchor.load_state_dict(state["anchor"])
        self.recorder.load_state_dict(state["recorder"])
        self.conflicts.load_state_dict(state["conflicts"])
        self.builder.generator.set_state(state["noise"][self.runtime.rank])
        for name, callback in self._named_callbacks().items():
            # A callback that only shows things may come or go between two sittings.
            if name in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][name])
        set_random_state(state["random"][self.runtime.rank])

    def _should_stop(self) -> bool:
        if self.runtime.world == 1:
            return self._interrupted
        if self.step % ASK_EVERY:
            return False
        import torch

        return bool(self.runtime.sum(torch.tensor([float(self._interrupted)])).item())

    def _interrupt(self) -> None:
        self.checkpoint()
        self.call(lambda callback: callback.on_interrupt(self))
        raise KeyboardInterrupt

    @contextmanager
    def _interrupts(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the run after the current step; a second one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: Any) -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def total_steps(settings: TrainingSettings, steps_per_epoch: int) -> int:
    """Length of a run in optimizer steps."""
    return settings.steps if settings.steps is not None else settings.epochs * steps_per_epoch
