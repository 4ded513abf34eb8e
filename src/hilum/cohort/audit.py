"""Do two cohorts share anything? By patient, study, series, image, file, voxels and report (row E03).

    audit(train, test).refuse()

Voxels are compared by fingerprint (`hilum.cohort.fingerprint`), which finds re-exports, other formats, other
spacings, lost headers and cut borders; reports by shingles that few people share. A reading across a leak is
refused with its rows.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hilum.cohort.audit_text import Text, near_duplicates
from hilum.cohort.audit_voxels import hits
from hilum.cohort.manifest import Manifest
from hilum.errors import LeakError

Kind = Literal["patient", "study", "series", "image", "file", "voxels", "report"]
KINDS: tuple[Kind, ...] = ("patient", "study", "series", "image", "file", "voxels", "report")


@dataclass(frozen=True)
class Leak:
    """One pair of scans that must not be apart.

    Args:
        kind: what they share. left, right: keys of the scans. what: the shared value, or how near they are.
    """

    kind: Kind
    left: str
    right: str
    what: str

    def as_dict(self) -> dict[str, str]:
        """For `--json`."""
        return {"kind": self.kind, "left": self.left, "right": self.right, "what": self.what}


@dataclass(frozen=True)
class Audit:
    """What two cohorts share.

    Args:
        left, right: their names. leaks: by kind, then keys.
    """

    left: str
    right: str
    leaks: tuple[Leak, ...]

    @property
    def clean(self) -> bool:
        """True when they share nothing."""
        return not self.leaks

    def counts(self) -> dict[str, int]:
        """Kind -> number of pairs, of those kinds that leak."""
        seen = Counter(leak.kind for leak in self.leaks)
        return {kind: seen[kind] for kind in KINDS if seen[kind]}

    def refuse(self) -> None:
        """Stops when anything is shared.

        Raises:
            LeakError: `PATIENT_LEAK`, with every leak in `rows`.
        """
        if self.clean:
            return
        first = self.leaks[0]
        told = ", ".join(f"{count} by {kind}" for kind, count in self.counts().items())
        raise LeakError(
            "PATIENT_LEAK",
            f"{self.left} and {self.right} share no patient and no scan",
            expected="nothing in common",
            got=f"{told}; first: {first.left} and {first.right}, {first.kind} {first.what}",
            hint="Take these scans out of one of the two, or split by patient with hilum prepare --split.",
            rows=[leak.as_dict() for leak in self.leaks],
        )

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        rows = [leak.as_dict() for leak in self.leaks]
        return {"left": self.left, "right": self.right, "counts": self.counts(), "leaks": rows}


def audit(
    left: Manifest,
    right: Manifest,
    names: tuple[str, str] = ("training", "test"),
    kinds: Sequence[Kind] = KINDS,
) -> Audit:
    """Everything that two cohorts share.

    Args:
        left, right: manifests, or splits of one (`Manifest.only`). names: for messages. kinds: what to
        look at.
    """
    a, b = _columns(left), _columns(right)
    leaks: list[Leak] = []
    for kind in kinds:
        leaks += sorted(FINDERS[kind](a, b), key=lambda leak: (leak.left, leak.right))
    return Audit(names[0], names[1], tuple(leaks))


def audit_splits(manifest: Manifest, kinds: Sequence[Kind] = KINDS) -> list[Audit]:
    """Every two splits of one manifest.

    Args:
        manifest: scans without a split are in none. kinds: what to look at.
    """
    pairs = itertools.combinations(manifest.splits(), 2)
    return [audit(manifest.only(a), manifest.only(b), (a, b), kinds) for a, b in pairs]


def require_clean(train: Manifest, test: Manifest, names: tuple[str, str] = ("training", "test")) -> None:
    """The guard of everything that trains on one cohort and looks at another.

    Raises:
        LeakError: `PATIENT_LEAK`.
    """
    audit(train, test, names).refuse()


def require_apart(left: Iterable[str], right: Iterable[str], names: tuple[str, str]) -> None:
    """The same guard where only patients are known, as for phantoms that are made on the way.

    Args:
        left, right: keys of patients (`phantom_patients` for seeds). names: for messages.

    Raises:
        LeakError: `PATIENT_LEAK`.
    """
    shared = sorted(set(left) & set(right))
    Audit(names[0], names[1], tuple(Leak("patient", key, key, key) for key in shared)).refuse()


def phantom_patients(first_seed: int, count: int) -> list[str]:
    """Keys of phantoms by seed, as the phantom source names them."""
    return [f"phantom:{seed}" for seed in range(first_seed, first_seed + count)]


Columns = dict[str, list[Any]]


def _columns(manifest: Manifest) -> Columns:
    table = manifest.table
    names = (
        "key", "patient", "study", "study_uid", "series_uid", "sop_uids", "sha256", "print_top", "print_base",
        "text_findings", "text_impression", "text_report",
    )  # fmt: skip
    return {name: table.column(name).to_pylist() for name in names}


def _shared(
    kind: Kind, a: Columns, b: Columns, values: Callable[[Columns], Iterable[Iterable[str]]]
) -> Iterator[Leak]:
    """Pairs whose values meet; the first value they share is told."""
    holders: dict[str, list[int]] = defaultdict(list)
    for j, held in enumerate(values(b)):
        for value in set(held):
            holders[value].append(j)
    for i, held in enumerate(values(a)):
        met: dict[int, str] = {}
        for value in sorted(set(held)):
            for j in holders.get(value, ()):
                met.setdefault(j, value)
        for j, value in met.items():
            yield Leak(kind, a["key"][i], b["key"][j], value)


def _patient(c: Columns) -> Iterator[list[str]]:
    return ([p] for p in c["patient"])


def _study(c: Columns) -> Iterator[list[str]]:
    """Study UIDs, and studies by the data set's own name within its name space."""
    for uid, study, patient in zip(c["study_uid"], c["study"], c["patient"], strict=True):
        space = patient.split(":", 1)[0]
        yield [value for value in (uid, f"{space}:{study}" if study and study != uid else "") if value]


def _series(c: Columns) -> Iterator[list[str]]:
    return ([uid] if uid else [] for uid in c["series_uid"])


def _image(c: Columns) -> Iterator[list[str]]:
    return (uids or [] for uids in c["sop_uids"])


def _file(c: Columns) -> Iterator[list[str]]:
    return ([digest] for digest in c["sha256"])


def _voxels(a: Columns, b: Columns) -> Iterator[Leak]:
    prints = [list(zip(c["print_top"], c["print_base"], strict=True)) for c in (a, b)]
    for i, j, distance in hits(prints[0], prints[1]):
        yield Leak("voxels", a["key"][i], b["key"][j], f"{distance:.1f} HU apart")


def _report(a: Columns, b: Columns) -> Iterator[Leak]:
    texts = [list(_texts(c)) for c in (a, b)]
    for i, j, alike in near_duplicates(texts[0], texts[1]):
        yield Leak("report", texts[0][i].key, texts[1][j].key, f"{100 * alike:.0f} % alike")


def _texts(c: Columns) -> Iterator[Text]:
    parts = zip(c["text_findings"], c["text_impression"], c["text_report"], strict=True)
    for key, patient, (findings, impression, report) in zip(c["key"], c["patient"], parts, strict=True):
        joined = "\n".join(t for t in (findings, impression) if t) or report or ""
        if joined:
            yield Text(key, patient, joined)


FINDERS: Mapping[Kind, Callable[[Columns, Columns], Iterable[Leak]]] = {
    "patient": lambda a, b: _shared("patient", a, b, _patient),
    "study": lambda a, b: _shared("study", a, b, _study),
    "series": lambda a, b: _shared("series", a, b, _series),
    "image": lambda a, b: _shared("image", a, b, _image),
    "file": lambda a, b: _shared("file", a, b, _file),
    "voxels": _voxels,
    "report": _report,
}
"""How each kind of leak is found."""
