"""Bundles: a trained model that explains itself to a machine without the data."""

from polytask.serving.bundle import ref, write_bundle
from polytask.serving.predictor import Predictor, load

__all__ = ["Predictor", "load", "ref", "write_bundle"]
