"""What the narrator hands over: sentences, each with the truth it claims, and the report they make."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from hilum.phantom.narrator_words import load_book

Status = Literal["present", "absent", "uncertain", "prior", "none"]
Section = Literal["technique", "findings", "impression"]


@dataclass(frozen=True)
class Sentence:
    """One sentence and what it claims.

    Args:
        text: as written. section: where it stands.
        slug: finding it speaks of, or None. also: further findings that share its status.
        status: ``present``, ``absent``, ``uncertain`` (hedged), ``prior`` (the earlier study), ``none``.
        side, lobes, size_mm: only what the sentence says; size in mm as said.
        series, image: of this study, a slice through the lesion. images: first and last of a range.
        z_mm: height of that slice's section of the lesion, RAS+.
        prior_series, prior_image: of the earlier study; no slice of this one.
    """

    text: str
    section: Section = "findings"
    slug: str | None = None
    status: Status = "none"
    also: tuple[str, ...] = ()
    side: str = ""
    lobes: tuple[str, ...] = ()
    size_mm: float | None = None
    series: int | None = None
    image: int | None = None
    images: tuple[int, int] | None = None
    z_mm: float | None = None
    prior_series: int | None = None
    prior_image: int | None = None

    @property
    def negated(self) -> bool:
        """True when the finding is denied."""
        return self.status == "absent"

    @property
    def hedged(self) -> bool:
        """True when the finding is stated with doubt."""
        return self.status == "uncertain"

    @property
    def lobe(self) -> str:
        """The lobe said, when it is one."""
        return self.lobes[0] if len(self.lobes) == 1 else ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Narrative:
    """A report: heading, technique and findings, impression, and the sentences with their truth."""

    language: str
    heading: str
    findings: str
    impression: str
    sentences: tuple[Sentence, ...]

    @property
    def text(self) -> str:
        """The whole report as written to a file."""
        book = load_book(self.language)
        first, second = book["findings_heading"], book["impression_heading"]
        return f"{self.heading}\n\n{first}\n{self.findings}\n\n{second}\n{self.impression}\n"
