"""Versions of what decides a result."""

from __future__ import annotations

import importlib.metadata
import platform

PACKAGES = ("polytask", "torch", "numpy", "polars", "scikit-learn", "lightning-fabric")


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
