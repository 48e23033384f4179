"""Architectures: encoders and the way that tasks share them."""

from polytask.sharing.base import NeedsExample, Sharing, Tap, identity
from polytask.sharing.hard import Hard
from polytask.sharing.separate import Separate

__all__ = ["Hard", "NeedsExample", "Separate", "Sharing", "Tap", "identity"]
