"""One Parquet table per cohort: every scan that was judged fit, with its place, text, labels and masks.

The schema is explicit and carries its version; equal rows give equal bytes. Paths are names below a root that
the caller gives (the receipt of a preparation remembers it), never absolute.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hilum.cohort.judge import Judgement, open_record
from hilum.cohort.records import (
    SECTIONS,
    Label,
    MaskRef,
    ScanRecord,
    Sentence,
    answers_from_json,
    answers_to_json,
)
from hilum.errors import ContainerError, ReportError, WeightsError
from hilum.io.atomic import atomic_write
from hilum.io.confine import confined
from hilum.io.limits import Mode
from hilum.text.vocabulary import SLUGS
from hilum.volume import CTVolume

FORMAT = 1
"""Version of the schema; a newer one is refused."""
MANIFEST, RECEIPT = "manifest.parquet", "prepare.json"

_MASK = pa.struct(
    [("name", pa.string()), ("path", pa.string()), ("kind", pa.string()), ("index", pa.int32())]
)
_SENTENCE = pa.struct([("place", pa.string()), ("text", pa.string()), ("mask", pa.string())])

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("patient", pa.string(), nullable=False),
        pa.field("study", pa.string()),
        pa.field("series", pa.string()),
        pa.field("split_given", pa.string()),
        pa.field("split", pa.string(), nullable=False),
        pa.field("answers", pa.string()),
        pa.field("scaling", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.int32(), 3), nullable=False),
        pa.field("spacing_mm", pa.list_(pa.float64(), 3), nullable=False),
        pa.field("affine_ras", pa.list_(pa.float64(), 12), nullable=False),
        pa.field("axcodes", pa.string(), nullable=False),
        pa.field("study_uid", pa.string()),
        pa.field("series_uid", pa.string()),
        pa.field("frame_uid", pa.string()),
        pa.field("sop_uids", pa.list_(pa.string())),
        pa.field("hu_p01", pa.float32()),
        pa.field("hu_p50", pa.float32()),
        pa.field("hu_p99", pa.float32()),
        pa.field("findings", pa.list_(pa.string())),
        pa.field("notes", pa.list_(pa.string())),
        *(pa.field(f"label_{slug}", pa.int8()) for slug in SLUGS),
        pa.field("labels_other", pa.map_(pa.string(), pa.int8())),
        *(pa.field(f"text_{name}", pa.string()) for name in SECTIONS),
        pa.field("text_fault", pa.string()),
        pa.field("text_group", pa.string()),
        pa.field("masks", pa.list_(_MASK)),
        pa.field("sentences", pa.list_(_SENTENCE)),
        pa.field("print_top", pa.binary()),
        pa.field("print_base", pa.binary()),
    ]
)
"""`label_*`: 1, 0 or null for unknown, the 18 names. `labels_other`: what else the data set labels.
`text_fault`: "" or a fault of the report (rows E01, E02, E04). `text_group`: equal for equal reports,
which are never each other's negatives. `print_*`: see `hilum.cohort.fingerprint`."""


@dataclass(frozen=True)
class ScanRow:
    """One row: the record of the source, what reading gave, and what the cohort decided.

    Args:
        record: as the source told it. judged: as reading found it. split: after splitting, "" for none.
        text_fault, text_group: see `SCHEMA`.
    """

    record: ScanRecord
    judged: Judgement
    split: str = ""
    text_fault: str = ""
    text_group: str = ""


@dataclass(frozen=True, eq=False)
class Manifest:
    """A cohort's table and the root that its paths are below.

    Args:
        table: in `SCHEMA`, sorted by key. source: name of the data set's adapter. root: None when not known.
    """

    table: pa.Table
    source: str = ""
    root: Path | None = None

    @classmethod
    def of(cls, rows: Iterable[ScanRow], source: str, root: str | Path | None = None) -> Manifest:
        """From rows, in any order.

        Raises:
            ReportError: two rows share a key (`RECORD_DUPLICATE`).
        """
        ordered = sorted(rows, key=lambda row: row.record.key)
        for before, after in itertools.pairwise(ordered):
            if before.record.key == after.record.key:
                raise ReportError("RECORD_DUPLICATE", "every scan has a key of its own", got=after.record.key)
        columns = [_to_cells(row) for row in ordered]
        table = pa.Table.from_pylist(columns, schema=SCHEMA)
        return cls(table, source, None if root is None else Path(root))

    def __len__(self) -> int:
        """Number of scans."""
        return int(self.table.num_rows)

    def rows(self, split: str | None = None) -> Iterator[ScanRow]:
        """Rows by key; of one split when named."""
        for batch in self.table.to_batches(max_chunksize=256):
            for cells in batch.to_pylist():
                if split is None or cells["split"] == split:
                    yield _from_cells(cells)

    def splits(self) -> list[str]:
        """Names of the splits, sorted, without ""."""
        return sorted({s for s in self.table.column("split").to_pylist() if s})

    def only(self, split: str) -> Manifest:
        """The rows of one split.

        Raises:
            ReportError: there is none of that name (`OPTION_UNKNOWN`).
        """
        if split not in self.splits():
            raise ReportError(
                "OPTION_UNKNOWN", "a split is one of the manifest's", expected=self.splits(), got=split
            )
        mask = pa.array([s == split for s in self.table.column("split").to_pylist()])
        return replace(self, table=self.table.filter(mask))

    def open(self, row: ScanRow, *, mode: Mode = "repair") -> CTVolume:
        """The scan of a row.

        Raises:
            ReportError: no root is known (`COLUMN_MISSING`), or `PATH_ESCAPE`. Those of `open_volume`.
        """
        if self.root is None:
            raise ReportError(
                "NOT_FOUND", "a manifest knows the root of its scans", hint="Give the root of the data set."
            )
        return open_record(row.record, self.root, mode=mode)

    def mask_path(self, mask: MaskRef) -> Path:
        """The file of a mask, confined to the root.

        Raises:
            ReportError: `NOT_FOUND` without a root, `PATH_ESCAPE`.
        """
        if self.root is None:
            raise ReportError("NOT_FOUND", "a manifest knows the root of its scans", got="no root")
        return confined(self.root, mask.path)

    def write(self, path: str | Path) -> None:
        """The Parquet file, in one step; equal manifests give equal bytes.

        Raises:
            OutputError: see `atomic_write`.
        """
        known = {"hilum.format": str(FORMAT), "hilum.source": self.source}
        buffer = io.BytesIO()
        pq.write_table(self.table.replace_schema_metadata(known), buffer, compression="zstd", version="2.6")
        with atomic_write(path) as file:
            file.write(buffer.getvalue())


def read_manifest(path: str | Path, root: str | Path | None = None) -> Manifest:
    """A manifest, or the one of a prepared folder.

    Args:
        path: the Parquet file, or a folder that `hilum prepare` wrote. root: of the scans; None takes the one
            that the folder's receipt remembers.

    Raises:
        ContainerError: `NOT_FOUND`. WeightsError: `FORMAT_NEWER`.
        ReportError: it is not a manifest (`MANIFEST_DAMAGED`), or a path in it leaves the root
        (`PATH_ESCAPE`).
    """
    path = Path(path)
    file = path / MANIFEST if path.is_dir() else path
    if not file.is_file():
        raise ContainerError("NOT_FOUND", "a manifest exists", expected=MANIFEST, got="none", path=path)
    try:
        held = pq.read_table(io.BytesIO(file.read_bytes()))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(file, str(error)[:200]) from error
    known = held.schema.metadata or {}
    version = known.get(b"hilum.format", b"").decode("ascii", "replace")
    if not version.isdigit():
        raise _damaged(file, "a Parquet file without hilum.format")
    if int(version) > FORMAT:
        raise WeightsError(
            "FORMAT_NEWER", "a manifest is not newer than this version reads", expected=f"<= {FORMAT}",
            got=version, path=file, hint="Update Hilum.",
        )  # fmt: skip
    if held.schema.names != SCHEMA.names or not held.schema.remove_metadata().equals(SCHEMA):
        odd = sorted(set(held.schema.names) ^ set(SCHEMA.names))[:8]
        raise _damaged(file, f"other columns: {odd}" if odd else "other types of columns")
    where = Path(root) if root is not None else _root_of(file.parent)
    manifest = Manifest(held, known.get(b"hilum.source", b"").decode("utf-8", "replace"), where)
    _confine_all(manifest)
    return manifest


def _confine_all(manifest: Manifest) -> None:
    """Row E09 at once and not scan by scan: a manifest is data that others may have written."""
    root = manifest.root if manifest.root is not None else Path()
    for path in manifest.table.column("path").to_pylist():
        confined(root, path)
    for masks in manifest.table.column("masks").to_pylist():
        for mask in masks or []:
            confined(root, mask["path"])


def _root_of(folder: Path) -> Path | None:
    try:
        told = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
        return Path(told["root"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _damaged(path: Path, got: str) -> ReportError:
    return ReportError(
        "MANIFEST_DAMAGED", "a manifest is a whole Parquet file in Hilum's schema", got=got, path=path,
        hint="Make it again with hilum prepare.",
    )  # fmt: skip


def _to_cells(row: ScanRow) -> dict[str, Any]:
    record, judged = row.record, row.judged
    cells: dict[str, Any] = {
        name: getattr(judged, name) for name in SCHEMA.names if hasattr(judged, name) and name != "kind"
    }
    cells |= {
        name: getattr(record, name) for name in ("key", "path", "patient", "study", "series", "scaling")
    }
    cells |= {
        "kind": judged.kind,
        "split": row.split,
        "split_given": record.split,
        "answers": answers_to_json(record.answers),
        "notes": list(record.notes),
        "text_fault": row.text_fault,
        "text_group": row.text_group,
        "masks": [vars(m) for m in record.masks],
        "sentences": [vars(s) for s in record.sentences],
        "labels_other": [(k, v) for k, v in sorted(record.labels.items()) if k not in SLUGS],
    }
    cells |= {f"label_{slug}": record.labels.get(slug) for slug in SLUGS}
    return cells | {f"text_{name}": record.text.get(name) for name in SECTIONS}


def _from_cells(cells: dict[str, Any]) -> ScanRow:
    labels: dict[str, Label] = {slug: cells[f"label_{slug}"] for slug in SLUGS}
    labels |= dict(cells["labels_other"] or [])
    record = ScanRecord(
        key=cells["key"],
        path=cells["path"],
        patient=cells["patient"],
        study=cells["study"] or "",
        series=cells["series"] or "",
        split=cells["split_given"] or "",
        labels=labels,
        text={name: cells[f"text_{name}"] for name in SECTIONS if cells[f"text_{name}"] is not None},
        masks=tuple(MaskRef(**m) for m in cells["masks"] or ()),
        sentences=tuple(Sentence(**s) for s in cells["sentences"] or ()),
        answers=answers_from_json(cells["answers"] or ""),
        scaling=cells["scaling"],
        notes=tuple(cells["notes"] or ()),
    )
    judged = Judgement(
        **{name: _plain(cells[name]) for name in Judgement.__dataclass_fields__ if name in cells}
    )
    return ScanRow(record, judged, cells["split"], cells["text_fault"] or "", cells["text_group"] or "")


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
