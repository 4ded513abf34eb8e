"""The store half of `hilum prepare`: scans of a manifest into a store, and looking whether it is whole."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hilum.errors import ContainerError

if TYPE_CHECKING:
    from hilum.cohort.manifest import Manifest
    from hilum.io.limits import Mode

Convention = Literal["hilum", "paper"]
Where = Literal["processes", "ray"]
REFUSED = 3


def store_folder(out: Path, prep: str, convention: Convention) -> Path:
    """Where the store of a preset stands: `out/store-NAME`, so that one cohort may have several."""
    return out / (f"store-{prep}" if convention == "hilum" else f"store-{prep}-paper")


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
    from hilum.cohort.store_write import StoreJob, prepare_store
    from hilum.io.confine import confined

    chosen = pipeline(prep, convention=convention)
    root = manifest.root or Path()
    jobs = [
        StoreJob(
            row.record.key,
            str(confined(root, row.record.path).resolve()),
            row.record.answers,
            mode,
            row.judged.sha256,
        )
        for row in manifest.rows()
    ]
    done = prepare_store(jobs, folder, chosen, workers=workers, where=where, wait_s=wait_s)
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
