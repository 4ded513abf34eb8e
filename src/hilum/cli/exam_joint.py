"""`hilum exam MODEL... --suite joint --features FOLDER`: runs it, shows progress."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from hilum.cli.exam_frozen import progress_bars


def run_joint_exam(
    models: Sequence[str], features: Sequence[Path], split: str, *, quiet: bool
) -> dict[str, Any]:
    """The suite's result, with `text` for a terminal.

    Args:
        models: folders of encoders of kind 3d-joint. features: of kept windows, one for all or one each.
    """
    from hilum.exam.joint_suite import Examined, examine_joint
    from hilum.exam.joint_table import as_text
    from hilum.read.encoder import load

    if len(features) not in (1, len(models)):
        raise click.UsageError(f"--features is given once, or for each of {len(models)} models")
    folders = list(features) * (len(models) if len(features) == 1 else 1)
    asked = [Examined(_name(m, models), load(m), folder) for m, folder in zip(models, folders, strict=True)]
    with progress_bars(quiet) as steps:
        result = examine_joint(asked, split=split, steps=steps)
    return {"suite": "joint", **result.as_dict(), "text": as_text(result)}


def _name(model: str, models: Sequence[str]) -> str:
    """The folder above one that is called `encoder`, as a training leaves it."""
    path = Path(model)
    short = path.parent.name if path.name == "encoder" and path.parent.name else path.name
    names = [Path(m).parent.name if Path(m).name == "encoder" else Path(m).name for m in models]
    return short if names.count(short) == 1 else model
