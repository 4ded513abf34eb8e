"""The output folder of a reading, all or nothing.

    reading.json  report.txt  receipt.json  index.html  organs.nii.gz  maps/<slug>.nii.gz

Maps and organs lie on the input's own grid and affine. File names come from our own vocabulary, never from
the input.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hilum.errors import UsageError
from hilum.io.atomic import atomic_folder, atomic_write
from hilum.io.hashing import sha256_of
from hilum.io.nifti import write_nifti
from hilum.read.maps import on_source
from hilum.read.reading import FindingReading, Material, Reading
from hilum.show.aamaps import FOLDER, write_aamaps
from hilum.show.album import Album
from hilum.show.page import render
from hilum.show.scaled_nifti import write_probability
from hilum.text.vocabulary import ORGAN_CHANNELS

PRIORITY = ("pleura", "mediastinum", "lung", "airways", "oesophagus", "heart")
"""Where organs overlap in `organs.nii.gz`, the later one of this list wins."""
Progress = Callable[[str], None]


def save(
    reading: Reading,
    out: str | Path,
    *,
    overwrite: bool = False,
    all_maps: bool = False,
    aamaps: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write everything a reading says into a new folder.

    Args:
        out: folder to make; its parent must exist. overwrite: replace an existing folder.
        all_maps: maps of all 18 findings, not only of those present.
        aamaps: the model's maps on its own grid too (`show.aamaps`).
        progress: called with the name of each step as it starts.

    Raises:
        OutputError: `out` exists (`OUTPUT_EXISTS`) or cannot be written.
        UsageError: the reading has no maps, because it was loaded from JSON (`NO_MATERIAL`).
        RunError: a map is not finite (`OUTPUT_NONFINITE`); nothing is left behind.
    """
    material = reading.material
    if material is None:
        raise UsageError(
            "NO_MATERIAL",
            "only a fresh reading can be saved",
            expected="a reading made by `hilum.read`",
            got="a reading loaded from JSON",
            hint="Read the scan again.",
        )
    tell = progress or (lambda step: None)
    start = time.perf_counter()
    with atomic_folder(out, overwrite=overwrite) as folder:
        tell("write organs")
        _write_organs(folder, material)
        tell("write maps")
        album, files = _write_maps(folder, reading, material, all_maps)
        if aamaps:
            (folder / FOLDER).mkdir()
            write_aamaps(folder / FOLDER, reading)
        reading = _with_files(reading, files)
        _write_text(folder / "report.txt", reading.report.text)
        reading = _with_hashes(reading, folder)
        _write_text(folder / "reading.json", reading.to_json())
        tell("write page")
        _write_text(folder / "index.html", render(reading, album))
        seconds = {**material.timings_s, "save": round(time.perf_counter() - start, 3)}
        _write_text(folder / "receipt.json", _receipt(reading, folder, seconds))
    return Path(out)


def _write_organs(folder: Path, material: Material) -> None:
    labels = np.zeros(material.volume.shape, dtype=np.uint8)
    for name in PRIORITY:
        labels[material.organ_of(name) > 0.5] = ORGAN_CHANNELS.index(name) + 1
    source = material.volume.source
    write_nifti(folder / "organs.nii.gz", on_source(labels, material.volume), source, "hilum organ labels")


def _write_maps(
    folder: Path, reading: Reading, material: Material, all_maps: bool
) -> tuple[Album, dict[str, str]]:
    """Maps one at a time: invert, write, take the page's pictures, forget."""
    volume = material.volume
    album = Album.of(volume, [f.where.peak_mm_ras for f in reading.findings if f.where is not None])
    files = {}
    (folder / "maps").mkdir()
    for finding in reading.findings:
        if not (finding.present or all_maps):
            continue
        heat = material.map_of(finding.slug)
        files[finding.slug] = f"maps/{finding.slug}.nii.gz"
        write_probability(
            folder / files[finding.slug], on_source(heat, volume), volume.source, f"hilum map {finding.slug}"
        )
        album.add_finding(finding, heat)
    return album, files


def _with_files(reading: Reading, files: dict[str, str]) -> Reading:
    """The reading that knows the files of its maps, in findings and evidence."""

    def known(finding: FindingReading) -> FindingReading:
        return finding.model_copy(update={"map": files.get(finding.slug)})

    sentences = [
        s.model_copy(
            update={"evidence": [e.model_copy(update={"map": files.get(e.finding)}) for e in s.evidence]}
        )
        if s.evidence
        else s
        for s in reading.report.sentences
    ]
    report = reading.report.model_copy(update={"sentences": sentences})
    return reading.model_copy(update={"findings": [known(f) for f in reading.findings], "report": report})


def _with_hashes(reading: Reading, folder: Path) -> Reading:
    receipt = reading.receipt.model_copy(update={"outputs": _hashes(folder)})
    return reading.model_copy(update={"receipt": receipt})


def _hashes(folder: Path) -> dict[str, str]:
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): sha256_of(p) for p in found}


def _receipt(reading: Reading, folder: Path, seconds: dict[str, float]) -> str:
    """`receipt.json`: the receipt, every output's hash, the checks, and what only this run knows: seconds."""
    body = reading.receipt.model_dump(mode="json")
    body["outputs"] = _hashes(folder)
    body["checks"] = [check.model_dump(mode="json") for check in reading.scan.checks]
    body["timings_s"] = seconds
    return json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))
