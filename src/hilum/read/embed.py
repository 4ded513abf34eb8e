"""Scans and texts as rows of an index, by any model that has both in one space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hilum.cohort.judge import Refusal
from hilum.cohort.manifest import Manifest, ScanRow
from hilum.errors import InputRefused
from hilum.io.confine import confined
from hilum.io.inverted_lists import ListFacts
from hilum.io.vector_index import IndexModel, IndexWriter, VectorIndex, open_index, writing
from hilum.model.encoder import without_text
from hilum.read.approximate import LEAST_ROWS, build_lists
from hilum.read.encoder import LoadedEncoder, Scan, opened
from hilum.read.joint import ScanInSpace, in_space, put_in_space
from hilum.read.reader_windows import ReaderWindows
from hilum.read.regions import Region, region_alone, require_region
from hilum.read.windows import windows_of
from hilum.types import EmbeddingVector

REPORT, DISEASE = "report", "disease"
"""Spaces: what is compared with whole reports, and of a joint model what is compared with prompts."""
PART_ROWS = 64
"""Scans that are written together: what a killed run loses."""
REPORTS = 200
"""Reports of an index that are asked when its lists are made: texts lie elsewhere in the space than scans."""

Progress = Callable[[str], None]
"""Called with the key of every scan that is done."""


def index_model(model: LoadedEncoder, region: str = "") -> IndexModel:
    """What an index keeps of a model, and of which part of the chest it is.

    Raises:
        UsageError: `MODEL_INPUT` for a model without reports.
    """
    if model.config.embedding is None:
        raise without_text("an index")
    names = (REPORT, DISEASE) if model.encoder.joint is not None else (REPORT,)
    spaces = dict.fromkeys(names, int(model.config.embedding))
    return IndexModel(str(model.card["name"]), str(model.card["sha256"]), spaces, region)


def embed_scan(model: LoadedEncoder, scan: Scan, region: Region | None = None) -> dict[str, EmbeddingVector]:
    """Space -> the scan in it, or one part of the chest alone.

    Raises:
        As of `LoadedEncoder.encode_scan`, `joint.put_in_space` and `regions.region_in`.
    """
    if region is not None and model.reader is None:
        return embed_scan(model, region_alone(opened(scan), region))
    if model.encoder.joint is not None:
        found = put_in_space(model, scan) if region is None else _region_in_space(model, scan, region)
        return {REPORT: found.report, DISEASE: found.disease}
    features = model.encode_scan(scan)
    if features.embedding is None:
        raise without_text("an index")
    return {REPORT: features.embedding}


def _region_in_space(model: LoadedEncoder, scan: Scan, region: Region) -> ScanInSpace:
    windows = windows_of(model)
    assert isinstance(windows, ReaderWindows), "the model names a reader"
    return in_space(model, windows.read_region(opened(scan), region))


@dataclass(frozen=True)
class Indexed:
    """What a run added, found there already, and could not read."""

    added: tuple[str, ...]
    there: tuple[str, ...]
    refused: tuple[Refusal, ...]
    rows: int


def index_cohort(
    model: LoadedEncoder, cohort: Manifest, folder: str | Path, *, split: str | None = None,
    wait_s: float = 0.0, progress: Progress = lambda key: None, region: str = "",
    organs: Path | None = None,
) -> Indexed:  # fmt: skip
    """Every scan of a cohort that the index does not have yet. A scan that is refused is listed and left out.

    Args:
        folder: of the index, made if it is not there. split: of the cohort alone. wait_s: for another writer.
        region: part of the chest to look at alone; "" for whole scans. organs: folder with masks of every
            scan, ``KEY.nii.gz`` or a folder ``KEY``; None takes a model's.

    Raises:
        OutputError, WeightsError: see `vector_index.writing`. UsageError: `OPTION_UNKNOWN` for no region.
    """
    if region or organs is not None:
        require_region(region, organs is not None)
    added: list[str] = []
    there: list[str] = []
    refused: list[Refusal] = []
    with writing(folder, index_model(model, region), wait_s) as writer:
        waiting: list[tuple[ScanRow, Mapping[str, EmbeddingVector]]] = []
        for row in cohort.rows(split):
            key = row.record.key
            if writer.known(key):
                there.append(key)
            else:
                try:
                    part = Region(region, _masks_of(key, organs)) if region else None
                    waiting.append((row, embed_scan(model, cohort.open(row), part)))
                    added.append(key)
                except InputRefused as error:
                    refused.append(Refusal.of(row.record, error))
            if len(waiting) == PART_ROWS:
                _write(writer, waiting)
                waiting = []
            progress(key)
        _write(writer, waiting)
        return Indexed(tuple(added), tuple(there), tuple(refused), len(writer.index))


def index_lists(
    model: LoadedEncoder, folder: str | Path, *, seed: int = 0, wait_s: float = 0.0
) -> ListFacts | None:
    """Makes an index ready for approximate search (`approximate.build_lists`), whose recall is counted on its
    own scans and on some of its reports as questions. None for an index that is too small for that.

    Args:
        folder: of an index of this model. seed: of all that is drawn. wait_s: for another writer.

    Raises:
        As of `build_lists` and `require_searchable`.
    """
    index = open_index(folder)
    require_searchable(index, model)
    if len(index) < LEAST_ROWS:
        return None
    drawn = np.random.default_rng(seed).choice(len(index), REPORTS, replace=False)
    reports = [row.get("report") for row in index.picked(sorted(drawn.tolist()))]
    asked = model.encode_text([text for text in reports if text])
    # a text without a token has no direction
    asked = asked[np.linalg.norm(asked, axis=1) > 0.5]
    return build_lists(folder, REPORT, {"reports": asked}, seed=seed, wait_s=wait_s)


def _masks_of(key: str, organs: Path | None) -> Path | None:
    """Masks of one scan; a file where there is one, else a folder."""
    if organs is None:
        return None
    files = [confined(organs, key + suffix) for suffix in (".nii.gz", ".nii", "")]
    return next((path for path in files if path.exists()), files[0])


def _write(writer: IndexWriter, waiting: Sequence[tuple[ScanRow, Mapping[str, EmbeddingVector]]]) -> None:
    if not waiting:
        return
    records = [row.record for row, _ in waiting]
    vectors = {s: np.stack([found[s] for _, found in waiting]) for s in writer.index.model.spaces}
    columns = {
        "patient": [r.patient for r in records],
        "study": [r.study for r in records],
        "split": [row.split for row, _ in waiting],
        "path": [r.path for r in records],
        "report": [r.report() for r in records],
        "findings": [" ".join(sorted(n for n, v in r.labels.items() if v == 1)) for r in records],
    }
    writer.add([r.key for r in records], vectors, columns)


def require_searchable(index: VectorIndex, model: LoadedEncoder) -> None:
    """The index is this model's.

    Raises:
        WeightsError: `CACHE_STALE`. UsageError: `MODEL_INPUT` for a model without reports.
    """
    own = index_model(model)
    index.require_model(own.name, own.sha256)
