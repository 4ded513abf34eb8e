"""Hilum reads a 3D chest CT and says what is abnormal, how sure it is and where. Research use only, not a
medical device."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

__all__ = ["__version__", "load", "read"]


def __getattr__(name: str) -> Any:
    # `import hilum` stays light: a room loads when it is first named. `hilum.read` is a room that can be
    # called; `hilum.load` is a function and needs torch.
    if name == "read":
        return importlib.import_module("hilum.read")
    if name == "load":
        return importlib.import_module("hilum.read.encoder").load
    raise AttributeError(f"module 'hilum' has no attribute {name!r}")
