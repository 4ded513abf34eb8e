"""`hilum exam FOLDER... --suite frozen --cohort PREPARED`: runs it, shows progress, writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hilum.cli.common import counted_bars, write_files


def run_frozen(
    folders: Sequence[str],
    cohort: Path,
    *,
    fractions: Sequence[float],
    patch: int | None,
    device: str,
    bf16: bool,
    out: Path | None,
    quiet: bool,
) -> dict[str, Any]:
    """The suite's result, with `text` for a terminal.

    Args:
        folders: of encoders, or of models of EXACT. cohort: prepared. fractions: of the training patients.
        patch: voxels, None for each encoder's own. device: where networks run.
        bf16: matrix products in bfloat16.
        out: folder for frozen.json and frozen.md; None writes nothing. quiet: no progress.
    """
    from hilum.exam.exact_probes import examine_dense, is_dense
    from hilum.exam.frozen import examine_frozen
    from hilum.exam.frozen_models import Looking
    from hilum.exam.frozen_table import as_markdown, as_text
    from hilum.io.fetch import cache_folder

    looking = Looking(patch=patch, device=device, bf16=bf16, cache=cache_folder() / "features")
    paths = [Path(folder) for folder in folders]
    with progress_bars(quiet) as steps:
        if all(map(is_dense, paths)):
            result = examine_dense(paths, cohort, fractions=fractions, device=device, steps=steps)
        else:
            result = examine_frozen(paths, cohort, looking=looking, fractions=fractions, steps=steps)
    facts = result.as_dict()
    if out is not None:
        told = json.dumps(facts, indent=1, allow_nan=False) + "\n"
        write_files(out, {"frozen.json": told, "frozen.md": as_markdown(result)})
    return {**facts, "text": as_text(result)}


@contextmanager
def progress_bars(quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A bar per kind of work on stderr, with the time that is left; `quiet` shows nothing."""
    tasks: dict[str, Any] = {}
    with counted_bars(transient=True, disable=quiet) as bar:

        def steps(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.advance(tasks[what], done)

        yield steps
