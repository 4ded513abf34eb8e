"""Answers about one scan: `hilum.read("scan.nii.gz")` gives a `Reading`; `hilum.read.reader.read` is the
same function.

The room has the verb's own name, so the module itself can be called; nothing heavy loads before that.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(self, source: Any, **options: Any) -> Any:
        """Read one chest CT: a `Reading`, see `hilum.read.reader.read`."""
        from hilum.read.reader import read

        return read(source, **options)


sys.modules[__name__].__class__ = _Room
