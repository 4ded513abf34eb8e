"""The store half of `hilum prepare`: scans of a manifest into a store, and looking whether it is whole."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hilum.errors import ContainerError, UsageError

if TYPE_CHECKING:
    from hilum.cohort.manifest import Manifest
    from hilum.cohort.mask_sources import MaskSource
    from hilum.cohort.records import ScanRecord
    from hilum.cohort.store_write import StoreJob, StoreSummary
    from hilum.io.limits import Mode

Convention = Literal["hilum", "paper"]
Where = Literal["processes", "ray"]
REFUSED = 3


def store_folder(out: Path, prep: str, convention: Convention) -> Path:
    """Where the store of a preset stands: `out/store-NAME`, so that one cohort may have several."""
    return out / (f"store-{prep}" if convention == "hilum" else f"store-{prep}-paper")


def masks_folder(store: Path, told: str) -> Path:
    """Where masks for a store stand: organs in `store-NAME-masks`, outlined findings in
    `store-NAME-findings`."""
    return store.with_name(f"{store.name}-{'findings' if told == 'findings' else 'masks'}")


def fill_store(
    manifest: Manifest, folder: Path, prep: str, convention: Convention, mode: Mode, workers: int,
    where: Where, wait_s: float,
) -> dict[str, Any]:  # fmt: skip
    """Prepares every scan of a manifest.

    Args:
        manifest: with its root. folder: of the store. prep, convention: see `prep_presets.pipeline`.
        mode: as the manifest was judged. workers, where, wait_s: see `prepare_store`.

    Returns:
        What came of it, for `--json`.

    Raises:
        UsageError: `PRESET_UNKNOWN`, `RESUME_CHANGED`. OutputError: `OUTPUT_LOCKED`, `OUTPUT_UNWRITABLE`.
    """
    from hilum.cohort.prep_presets import pipeline
    from hilum.cohort.store_write import prepare_store

    jobs = [job for job, _ in _jobs(manifest, mode)]
    chosen = pipeline(prep, convention=convention)
    return _told(prepare_store(jobs, folder, chosen, workers=workers, where=where, wait_s=wait_s))


def fill_masks(
    manifest: Manifest, folder: Path, prep: str, convention: Convention, masks: MaskSource, mode: Mode,
    workers: int, where: Where, wait_s: float,
) -> dict[str, Any]:  # fmt: skip
    """The masks of every scan of a manifest that has any, on the grid of a preset, into a store of their own.

    Args:
        folder: of that store. masks: as `mask_source` gives it; the others are those of `fill_store`.

    Returns:
        What came of it, and how many scans are ``without`` masks.

    Raises:
        As of `fill_store`.
    """
    from hilum.cohort.mask_sources import MaskPreparation, mask_jobs
    from hilum.cohort.prep_presets import pipeline
    from hilum.cohort.store_write import prepare_store

    rows = _jobs(manifest, mode)
    jobs = mask_jobs(rows, masks, manifest.root or Path())
    chosen = MaskPreparation(
        pipeline(prep, convention=convention), masks, "any" if convention == "paper" else "nearest"
    )
    done = prepare_store(jobs, folder, chosen, workers=workers, where=where, wait_s=wait_s)
    return _told(done) | {"without": len(rows) - len(jobs)}


def mask_source(told: str) -> MaskSource:
    """`own`, `findings`, `totalsegmentator[:FOLDER]` or `model[:NAME]`.

    Raises:
        UsageError: `OPTION_UNKNOWN`, `MODEL_UNKNOWN`; `NOT_FOUND` for a folder that is none.
    """
    kind, _, more = told.partition(":")
    if kind in ("own", "findings") and not more:
        from hilum.cohort.mask_sources import OwnFindings, OwnRegions

        return OwnRegions() if kind == "own" else OwnFindings()
    if kind in ("totalsegmentator", "model"):
        from hilum.read.mask_sources import ModelMasks, TotalSegmentatorMasks

        if kind == "model":
            source = ModelMasks(more or "phantom-small")
            # a wrong name is said before any scan is read
            source.facts()
            return source
        if more and not Path(more).is_dir():
            raise UsageError("NOT_FOUND", "masks lie in a folder", got="none", path=more)
        return TotalSegmentatorMasks(str(Path(more).resolve()) if more else None)
    raise UsageError(
        "OPTION_UNKNOWN", "masks come from a source that is known",
        expected="own | findings | totalsegmentator[:FOLDER] | model[:NAME]", got=told,
    )  # fmt: skip


def _jobs(manifest: Manifest, mode: Mode) -> list[tuple[StoreJob, ScanRecord]]:
    from hilum.cohort.store_write import StoreJob
    from hilum.io.confine import confined

    root = manifest.root or Path()
    found = []
    for row in manifest.rows():
        record, path = row.record, str(confined(root, row.record.path).resolve())
        found.append((StoreJob(record.key, path, record.answers, mode, row.judged.sha256), record))
    return found


def _told(done: StoreSummary) -> dict[str, Any]:
    refused = [{"key": o.key, **(o.error or {})} for o in done.refused]
    return {"root": str(done.root), "made": done.made, "kept": done.kept, "refused": refused}


def verify(root: Path) -> dict[str, Any]:
    """Whether the manifest and every store of a prepared folder are what was written.

    Args:
        root: a folder that `hilum prepare` wrote, or a store.

    Returns:
        ``checked`` (names) and ``faults`` (key, file, chunk, what), for `--json`.

    Raises:
        ContainerError: there is neither (`NOT_FOUND`).
    """
    from hilum.cohort.manifest import MANIFEST, read_manifest
    from hilum.cohort.store import verify_store
    from hilum.errors import HilumError

    checked: list[str] = []
    faults: list[dict[str, Any]] = []
    if (root / MANIFEST).is_file():
        checked.append(MANIFEST)
        try:
            read_manifest(root)
        except HilumError as error:
            faults.append({"key": "", "file": MANIFEST, "chunk": None, "what": error.message})
    stores = sorted(p for p in root.glob("store-*") if p.is_dir()) or ([] if checked else [root])
    for store in stores:
        name = store.name if store != root else "."
        checked.append(name)
        try:
            faults += [asdict(fault) | {"file": f"{name}/{fault.file}"} for fault in verify_store(store)]
        except HilumError as error:
            if not faults and not checked[:-1] and error.code == "NOT_FOUND":
                raise ContainerError(
                    "NOT_FOUND", "a prepared folder or a store is there", got="neither", path=root
                ) from error
            faults.append({"key": "", "file": name, "chunk": None, "what": error.message})
    return {"checked": checked, "faults": faults}
