"""Work that ranks share: done by the first one or by each, and an error of one is an error of all.

Without this a rank that fails alone leaves the others waiting in the next collective.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from hilum.errors import HilumError
from hilum.objective.gather import rank, world

T = TypeVar("T")


def first_does(what: Callable[[], T]) -> T:
    """What the first rank finds or does, on every rank; so is the error when it fails."""
    if world() == 1:
        return what()
    said = [_tried(what) if rank() == 0 else None]
    dist.broadcast_object_list(said)
    return _told(said[0])


def each_does(what: Callable[[], T]) -> list[T]:
    """What every rank finds or does, in their order; the first error is raised on every rank."""
    if world() == 1:
        return [what()]
    said: list[T | _Failed | None] = [None] * world()
    dist.all_gather_object(said, _tried(what))
    return [_told(part) for part in said]


class _Failed:
    def __init__(self, error: Exception) -> None:
        self.error = error


def _tried(what: Callable[[], T]) -> T | _Failed:
    try:
        return what()
    except (HilumError, OSError) as error:
        return _Failed(error)


def _told(said: T | _Failed | None) -> T:
    if isinstance(said, _Failed):
        raise said.error
    return said  # type: ignore[return-value]
