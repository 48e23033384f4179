"""Encoders: from inputs to features."""

from polytask.models.encoders.bilstm import BiLSTM
from polytask.models.encoders.convnet import ConvNet
from polytask.models.encoders.fpn import FPN
from polytask.models.encoders.fusion import Fusion
from polytask.models.encoders.hub import hub
from polytask.models.encoders.mlp import MLP
from polytask.models.encoders.mobilenet import MobileNetV2
from polytask.models.encoders.resnet import ResNet, resnet18, resnet34
from polytask.models.encoders.staged import Staged, staged
from polytask.models.encoders.tabular import Tabular

__all__ = [
    "FPN",
    "MLP",
    "BiLSTM",
    "ConvNet",
    "Fusion",
    "MobileNetV2",
    "ResNet",
    "Staged",
    "Tabular",
    "hub",
    "resnet18",
    "resnet34",
    "staged",
]
