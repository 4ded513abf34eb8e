"""What was already judged: one small file per scan, written in one step, so that a killed run goes on.

An entry counts only for the same record and the same bytes on disk (size and time of every file).
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from hilum.cohort.judge import Judgement, Refusal, judgement_from_json, judgement_to_json
from hilum.cohort.records import ScanRecord, answers_to_json
from hilum.errors import HilumError
from hilum.io.atomic import atomic_write
from hilum.io.confine import confined

FOLDER = "judged"
VERSION = 1
"""Raised when checks or fingerprints change, so that older entries do not count."""


class Journal:
    """The judgements of one output folder.

    Args:
        out: the output folder. root: of the data set. settings: what else a judgement depends on.
    """

    def __init__(self, out: Path, root: Path, settings: str = "") -> None:
        self.folder, self.root, self.settings = out / FOLDER, root, settings

    def find(self, record: ScanRecord) -> Judgement | Refusal | None:
        """The judgement of a record whose file has not changed, or None."""
        try:
            held = json.loads(self._file(record).read_text(encoding="utf-8"))
            if held["stamp"] != self._stamp(record):
                return None
            if held["refusal"] is not None:
                return Refusal(**held["refusal"])
            return judgement_from_json(held["judgement"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, record: ScanRecord, judged: Judgement | Refusal) -> None:
        """Remembers a judgement.

        Raises:
            OutputError: it cannot be written.
        """
        refused = isinstance(judged, Refusal)
        held = {
            "stamp": self._stamp(record),
            "refusal": judged.as_dict() if isinstance(judged, Refusal) else None,
            "judgement": None if refused else judgement_to_json(judged),  # type: ignore[arg-type]
        }
        file = self._file(record)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as stream:
            stream.write(json.dumps(held, sort_keys=True).encode("utf-8"))

    def _file(self, record: ScanRecord) -> Path:
        name = hashlib.sha256(record.key.encode("utf-8")).hexdigest()
        return self.folder / name[:2] / f"{name[2:34]}.json"

    def _stamp(self, record: ScanRecord) -> str:
        facts = [str(VERSION), self.settings, record.key, record.path, record.broken]
        facts.append(answers_to_json(record.answers))
        try:
            facts.append(_state(confined(self.root, record.path)))
        except (HilumError, OSError):
            facts.append("unreadable")
        return hashlib.sha256("\0".join(facts).encode("utf-8")).hexdigest()


def _state(path: Path) -> str:
    """Names, sizes and times of a file, or of every file of a folder."""
    if not path.is_dir():
        found = path.stat()
        return f"{found.st_size} {found.st_mtime_ns}"
    digest = hashlib.sha256()
    for here, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            found = (Path(here) / name).lstat()
            digest.update(f"{here}/{name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()
