"""Architectures: encoders and the way that tasks share them."""

from polytask.sharing.adapters import Adapters
from polytask.sharing.aitm import AITM
from polytask.sharing.attention import TaskAttention
from polytask.sharing.base import NeedsExample, Sharing, Tap, identity
from polytask.sharing.cgc import CGC
from polytask.sharing.cross_stitch import CrossStitch
from polytask.sharing.dselect_k import DSelectK
from polytask.sharing.esmm import ESMM
from polytask.sharing.film import FiLM
from polytask.sharing.hard import Hard
from polytask.sharing.hierarchical import Hierarchical
from polytask.sharing.lora import LoRA
from polytask.sharing.ltb import LTB
from polytask.sharing.mmoe import MMoE
from polytask.sharing.mtan import MTAN
from polytask.sharing.ple import PLE
from polytask.sharing.separate import Separate
from polytask.sharing.sluice import Sluice
from polytask.sharing.soft import Soft
from polytask.sharing.task_routing import TaskRouting

__all__ = [
    "AITM",
    "CGC",
    "ESMM",
    "LTB",
    "MTAN",
    "PLE",
    "Adapters",
    "CrossStitch",
    "DSelectK",
    "FiLM",
    "Hard",
    "Hierarchical",
    "LoRA",
    "MMoE",
    "NeedsExample",
    "Separate",
    "Sharing",
    "Sluice",
    "Soft",
    "Tap",
    "TaskAttention",
    "TaskRouting",
    "identity",
]
