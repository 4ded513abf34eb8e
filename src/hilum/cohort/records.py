"""One scan of a data set as its source tells it, before anybody has looked into the file.

Labels are tri-state: 1 present, 0 absent, None unknown (row E07). Paths are names below the root of the data
set, with ``/``. A patient key starts with a name space (``ct-rate:train_1``), so that data sets that share
patients share keys and others cannot collide.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from hilum.io.limits import Answers, Placement

Label = int | None
"""1 present, 0 absent, None unknown."""

Scaling = Literal["hu", "table"]
"""``hu``: the file gives HU by its own header. ``table``: a table says slope and intercept."""

MaskKind = Literal["binary", "labels", "channel", "rtstruct", "lidc-xml", "pylidc", "seg"]

SECTIONS = ("findings", "impression", "technique", "history", "comparison", "report")
"""Parts of a report; ``report`` is the whole where a source does not part it."""


@dataclass(frozen=True)
class MaskRef:
    """One mask of a scan.

    Args:
        name: what it outlines, in the data set's words. path: file below the root.
        kind: how it is stored: a file of its own, a value of a label map, a channel of a 4-D file, contours.
        index: the label value or the channel; -1 for all.
    """

    name: str
    path: str
    kind: MaskKind = "binary"
    index: int = -1


@dataclass(frozen=True)
class Sentence:
    """One sentence that the data set ties to a place.

    Args:
        place: region or category, in the data set's words. text: the sentence. mask: name of its mask, or "".
    """

    place: str
    text: str
    mask: str = ""


@dataclass(frozen=True)
class ScanRecord:
    """One scan.

    Args:
        key: unique within the cohort; a file name may be made from it.
        path: file or folder below the root.
        patient: name space and key of the person.
        study, series: what the data set calls them; "" where it does not.
        split: as the data set gives it (``train``, ``val``, ``test``), or "".
        labels: name -> 1, 0 or None. text: section -> text.
        masks, sentences: what else the data set ties to the scan.
        answers: how the file is opened.
        scaling: how stored values become HU.
        broken: why the data set's users leave this scan out, or "".
        notes: what a user should know about this scan.
    """

    key: str
    path: str
    patient: str
    study: str = ""
    series: str = ""
    split: str = ""
    labels: Mapping[str, Label] = field(default_factory=dict)
    text: Mapping[str, str] = field(default_factory=dict)
    masks: tuple[MaskRef, ...] = ()
    sentences: tuple[Sentence, ...] = ()
    answers: Answers = Answers()  # noqa: RUF009  frozen
    scaling: Scaling = "hu"
    broken: str = ""
    notes: tuple[str, ...] = ()

    def report(self) -> str:
        """Findings and impression, or the whole report where it is not parted; "" without."""
        parts = [self.text.get(name, "").strip() for name in ("findings", "impression")]
        joined = "\n".join(part for part in parts if part)
        return joined or self.text.get("report", "").strip()


def answers_to_json(answers: Answers) -> str:
    """What differs from the defaults, as JSON with sorted keys; "" when nothing does."""
    plain = {f.name: getattr(Answers(), f.name) for f in fields(Answers)}
    told: dict[str, Any] = {k: v for k, v in asdict(answers).items() if v != plain[k]}
    return json.dumps(told, sort_keys=True) if told else ""


def answers_from_json(told: str) -> Answers:
    """The inverse of `answers_to_json`.

    Raises:
        TypeError, ValueError: it is not that.
    """
    if not told:
        return Answers()
    held = json.loads(told)
    if held.get("placement") is not None:
        said = held["placement"]
        for name in ("affine_ras", "shape"):
            said[name] = None if said[name] is None else tuple(said[name])
        held["placement"] = Placement(**said)
    if held.get("rescale") is not None:
        held["rescale"] = tuple(held["rescale"])
    return Answers(**held)


def record_to_json(record: ScanRecord) -> dict[str, Any]:
    """JSON-ready; for the journal of a preparation and for workers on other machines."""
    told = asdict(record) | {"answers": answers_to_json(record.answers)}
    told["labels"], told["text"] = dict(record.labels), dict(record.text)
    return told
