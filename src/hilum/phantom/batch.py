"""Many phantoms into one folder, and the table of them. A killed run goes on where it stopped."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hilum.errors import OutputError, UsageError
from hilum.io.atomic import atomic_write
from hilum.phantom.draw import draw_plan
from hilum.phantom.make import make_phantom
from hilum.phantom.write import WriteOptions, read_truth, write_phantom
from hilum.text.vocabulary import SLUGS

TABLE = "cohort.csv"


@dataclass(frozen=True)
class BatchRequest:
    """What is asked for. Phantom i has seed `seed + i`.

    Args:
        seed: of the first. spacing_mm: of the written volumes, z alone or x, y, z.
        degrees: see `draw.draw_plan`.
        findings: exactly these in every phantom; None draws them. work_mm: voxel edge of the working grid.
        write: format and languages. device: torch device; it is no part of what is asked for.
    """

    seed: int = 0
    spacing_mm: float | tuple[float, float, float] | None = None
    degrees: str = "default"
    findings: tuple[str, ...] | None = None
    work_mm: float | None = None
    write: WriteOptions = field(default_factory=WriteOptions)
    device: str = "cpu"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, without the device; equal requests make equal phantoms."""
        told = {k: v for k, v in asdict(self).items() if k not in ("device", "seed")}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in told.items()} | {
            "write": {"dicom": self.write.dicom, "languages": list(self.write.languages)}
        }


@dataclass(frozen=True)
class BatchResult:
    """Keys of the phantoms made now and of those that were there, and the table of all."""

    made: tuple[str, ...]
    kept: tuple[str, ...]
    table: Path


def make_batch(
    count: int,
    out: str | Path,
    request: BatchRequest,
    *,
    overwrite: bool = False,
    progress: Callable[[str, bool], None] = lambda key, made: None,
) -> BatchResult:
    """Make `count` phantoms in `out`, keep those that are complete, write `cohort.csv`.

    Args:
        count: how many. out: folder, made if it is not there. request: what they are like.
        overwrite: make every one anew. progress: called after each with its key and whether it was made.

    Raises:
        UsageError: `count` below one (`OPTION_UNKNOWN`), or see `draw_plan`.
        OutputError: a folder of that name holds something else (`OUTPUT_EXISTS`) or `out` is unwritable.
    """
    if count < 1:
        raise UsageError("OPTION_UNKNOWN", "the number of phantoms is positive", expected=">= 1", got=count)
    folder = _folder(out)
    plans = [
        draw_plan(s, degrees=request.degrees, findings=request.findings, spacing_mm=request.spacing_mm)
        for s in range(request.seed, request.seed + count)
    ]
    kept = [] if overwrite else [p.key for p in plans if _complete(folder / p.key, request)]
    made: list[str] = []
    for plan in plans:
        if plan.key not in kept:
            phantom = make_phantom(plan, work_mm=request.work_mm, device=request.device)
            write_phantom(
                phantom, folder / plan.key, request.write, request=request.as_dict(), overwrite=overwrite
            )
            made.append(plan.key)
        progress(plan.key, plan.key not in kept)
    return BatchResult(tuple(made), tuple(kept), write_table(folder))


def write_table(folder: Path) -> Path:
    """`cohort.csv`: one row per complete phantom in `folder`, by key."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["key", "synthetic", "path", *SLUGS, "report", "sha256"])
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        truth = read_truth(path)
        if truth is None:
            continue
        report = ";".join(f"{path.name}/{r['path']}" for r in truth["reports"].values())
        labels = [truth["labels"][slug] for slug in SLUGS]
        image = truth["image"]
        rows.writerow(
            [truth["key"], "SYNTHETIC", f"{path.name}/{image['path']}", *labels, report, image["sha256"]]
        )
    with atomic_write(folder / TABLE) as file:
        file.write(text.getvalue().encode("utf-8"))
    return folder / TABLE


def _folder(out: str | Path) -> Path:
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            "OUTPUT_UNWRITABLE",
            "the output is a folder that can be written",
            got=error.strerror,
            path=folder,
            hint="Choose another output folder.",
        ) from error
    return folder


def _complete(folder: Path, request: BatchRequest) -> bool:
    """True when the phantom stands there as asked for; anything else under its name is refused."""
    if not folder.exists():
        return False
    truth = read_truth(folder)
    if truth is not None and truth["request"] == request.as_dict():
        return True
    raise OutputError(
        "OUTPUT_EXISTS",
        "a folder with this name was made by another request",
        expected=request.as_dict(),
        got=truth["request"] if truth else "no phantom",
        path=folder,
        hint="Choose another output folder, or allow overwriting (--overwrite).",
    )
