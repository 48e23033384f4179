"""Batches that several steps share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polytask.data.mixing import Mixer, Part


class Rounds:
    """Draws a batch in the first step of a round and gives it to the others.

    Args:
        mixer: Draws the batches.
        length: Steps of a round.
    """

    def __init__(self, mixer: Mixer, length: int):
        self.mixer, self.length = mixer, length
        self._before: Mapping[str, Any] = {}
        self._parts: list[Part] = []

    def draw(self, step: int) -> list[Part]:
        """The batches of step ``step``; call it once for every step, in order."""
        if self.length == 1:
            return self.mixer.draw(step)
        if step % self.length == 0:
            self._before = self.mixer.state_dict()
            self._parts = self.mixer.draw(step // self.length)
        return self._parts

    def state_dict(self, step: int) -> Mapping[str, Any]:
        """The mixer's state before ``step``; within a round, that before its batch was drawn."""
        return self._before if step % self.length else self.mixer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Restore what ``state_dict`` returned; within a round, draw its batch again."""
        self.mixer.load_state_dict(state)
        if step % self.length:
            self.draw(step - step % self.length)
