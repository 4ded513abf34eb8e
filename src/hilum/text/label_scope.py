"""What a sentence says about the findings it names: said, denied, doubted, left open, or of the past.

A cue has a direction and a reach. "No" reaches forward over a list ("no pleural effusion, pneumothorax or
consolidation"), "was not detected" backward to the start of its clause. A clause holds one predicate; it ends
at the joint before the next one's subject, and at words such as "but". Source: the idea of scopes with
terminators is ConText's (Harkema et al. 2009); the rules are our own.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from hilum.text.label_rules import Hit, Lexicon

Status = Literal["said", "doubted", "open", "past", "denied", "normal"]

JOINT = re.compile(r",(?!\d)|[;\"“”•]|(?<![^\W_])(?:and|or|nor|und|oder|noch|sowie|bzw)(?![^\W_])")
CHOICE = frozenset({"or", "nor", "oder", "noch", "and", "und", "sowie", "bzw"})
HARD = frozenset(';"“”•')
"""Marks that always end a clause."""
MEASURED = re.compile(r"\d\s?(?:mm|cm|ml)(?![^\W_])")
DOUBT = re.compile(r"[^\S\n]?(?:[^\W\d_]+[^\S\n]){0,2}[^\W\d_]*[^\S\n]?\?")
"""A question mark right behind a finding."""
RELATIVE = re.compile(r"(?:which|that|who|welche[rs]?)\s*$")
MASTER = {
    "pseudo": ("negate", "negate_after", "hedge", "predicate"),
    "open": ("negate", "negate_after", "hedge", "pseudo", "predicate"),
    "negate_after": ("negate", "predicate"),
}
"""A cue of the key hides cues of these names inside it."""


@dataclass(frozen=True)
class Mention:
    """One statement about one finding.

    Args:
        slug: the finding. status: what is said. start, end: the words, characters of the text.
        near: the stretch of the sentence that says where.
    """

    slug: str
    status: Status
    start: int
    end: int
    near: tuple[int, int]


@dataclass
class SentenceHits:
    """The phrases of one sentence, sorted by kind; those hidden in longer ones are gone."""

    text: str
    start: int
    end: int
    cues: dict[str, list[Hit]] = field(default_factory=dict)
    places: list[Hit] = field(default_factory=list)
    terms: list[Hit] = field(default_factory=list)
    nots: list[Hit] = field(default_factory=list)
    normals: list[Hit] = field(default_factory=list)
    unless: list[Hit] = field(default_factory=list)
    where: list[Hit] = field(default_factory=list)
    clauses: list[tuple[int, int]] = field(default_factory=list)
    joints: list[tuple[int, int, str]] = field(default_factory=list)

    def clause_of(self, position: int) -> tuple[int, int]:
        """The clause that holds a character."""
        return self.clauses[max(bisect_right(self.clauses, (position, len(self.text) + 1)) - 1, 0)]

    def segment_of(self, start: int, end: int) -> tuple[int, int]:
        """The stretch around some words between two joints of their clause."""
        low, high = self.clause_of(start)
        before = [j[1] for j in self.joints if low <= j[0] and j[1] <= start]
        after = [j[0] for j in self.joints if end <= j[0] < high]
        return (before[-1] if before else low), (after[0] if after else high)

    def places_in(self, span: tuple[int, int]) -> set[str]:
        """Names of the places between two characters."""
        return {p.meaning.name for p in self.places if span[0] <= p.start and p.end <= span[1]}


def sort_hits(text: str, start: int, end: int, hits: Iterable[Hit]) -> SentenceHits:
    """The phrases of a sentence, ready for `mentions_of`.

    Args:
        text: the whole report, lower case. start, end: the sentence. hits: those that begin in it.
    """
    told = SentenceHits(text, start, end)
    cues: list[Hit] = []
    kinds = {"cue": cues, "place": told.places, "term": told.terms, "placed": told.terms, "not": told.nots}
    kinds |= {
        "unless": told.unless,
        "denied_only": told.terms,
        "normal": told.normals,
        "side": told.where,
        "lobe": told.where,
    }
    for hit in hits:
        if hit.end <= end:
            kinds[hit.meaning.kind].append(hit)
    told.places = _longest(told.places, lambda a, b: a.end - a.start > b.end - b.start)
    told.terms = _longest(told.terms, lambda a, b: a.meaning == b.meaning)
    for hit in _longest(cues, _hides):
        told.cues.setdefault(hit.meaning.name, []).append(hit)
    told.joints = [(m.start(), m.end(), m.group()) for m in JOINT.finditer(text, start, end)]
    told.clauses = _clauses(told)
    return told


def _hides(a: Hit, b: Hit) -> bool:
    return a.meaning.name == b.meaning.name or b.meaning.name in MASTER.get(a.meaning.name, ())


def _longest(hits: Sequence[Hit], rivals: Callable[[Hit, Hit], bool]) -> list[Hit]:
    """Without hits that lie inside a longer rival."""
    kept: list[Hit] = []
    for hit in sorted(hits, key=lambda h: (h.start, -h.end)):
        if not any(k.start <= hit.start and hit.end <= k.end and rivals(k, hit) for k in kept[-6:]):
            kept.append(hit)
    return kept


def _clauses(told: SentenceHits) -> list[tuple[int, int]]:
    """Stretches with one predicate each."""
    cuts = {told.start} | {hit.start for hit in told.cues.get("stop", ())}
    cuts |= {j[0] for j in told.joints if j[2] in HARD}
    verbs = sorted(
        (h for name in ("predicate", "negate_after") for h in told.cues.get(name, ())), key=lambda h: h.start
    )
    verbs = [v for v in verbs if not RELATIVE.search(told.text, max(told.start, v.start - 9), v.start)]
    for one, two in pairwise(verbs):
        between = [j[0] for j in told.joints if one.end <= j[0] < two.start]
        if between:
            cuts.add(between[0])
    edges = [*sorted(cuts), told.end]
    return list(pairwise(edges))


def mentions_of(told: SentenceHits, lexicon: Lexicon, carried: set[str]) -> list[Mention]:
    """Every statement of a sentence about a finding.

    Args:
        told: of `sort_hits`. lexicon: whose policies hold. carried: places the sentence before was about, for
            one that goes on about them ("the largest measures 5 mm").
    """
    ahead = [(cue.end, _forward(cue, told)) for cue in told.cues.get("negate", ())]
    denied = ahead + _denied_behind(told)
    found = []
    for term in told.terms:
        slug = term.meaning.name
        if any(n.meaning.name == slug and n.start <= term.start and term.end <= n.end for n in told.nots):
            continue
        if not _in_place(term, told, lexicon, carried):
            continue
        status = _status(term, told, denied)
        if term.meaning.kind == "denied_only" and status not in ("denied", "open"):
            continue
        found.append(Mention(slug, status, term.start, term.end, _near(term, told)))
    for normal in told.normals:
        if not _covers(ahead, normal):
            found.append(
                Mention(normal.meaning.name, "normal", normal.start, normal.end, _near(normal, told))
            )
    return found


def _in_place(term: Hit, told: SentenceHits, lexicon: Lexicon, carried: set[str]) -> bool:
    """True where the word means its finding, by the places named around it."""
    policy = lexicon.policies[term.meaning.name]
    clause = told.clause_of(term.start)
    if term.meaning.kind == "placed":
        taken = any(hit.meaning.name == term.meaning.name for hit in told.unless)
        return not taken and bool(told.places_in(clause) & policy.at)
    if not policy.bars:
        return True
    around = told.places_in(told.segment_of(term.start, term.end)) or told.places_in(clause)
    around = around or told.places_in((told.start, clause[0])) or carried
    return not around or not around <= policy.bars


def _near(term: Hit, told: SentenceHits) -> tuple[int, int]:
    """Where to look for side and lobe: the clause."""
    return told.clause_of(term.start)


def _status(term: Hit, told: SentenceHits, denied: Sequence[tuple[int, int]]) -> Status:
    clause = told.clause_of(term.start)
    if any(clause[0] <= cue.start < clause[1] for cue in told.cues.get("open", ())):
        return "open"
    if _covers(denied, term) or _denies_itself(term, told):
        return "denied"
    if any(_reaches(cue, term, told, clause) for cue in told.cues.get("history", ())):
        return "past"
    if any(
        cue.start <= told.start + 3 and cue.end <= term.start < clause[1]
        for cue in told.cues.get("earlier", ())
    ):
        return "past"
    if DOUBT.match(told.text, term.end, told.end):
        return "doubted"
    if any(_reaches(cue, term, told, clause) for cue in told.cues.get("hedge", ())):
        return "doubted"
    return "said"


def _denies_itself(term: Hit, told: SentenceHits) -> bool:
    """True where the finding's words hold the denial: "the septa are not thickened"."""
    return any(term.start < cue.start and cue.end < term.end for cue in told.cues.get("negate", ()))


def _reaches(cue: Hit, term: Hit, told: SentenceHits, clause: tuple[int, int]) -> bool:
    """True where a word before a finding speaks of it: same clause, no comma between."""
    if not clause[0] <= cue.start < cue.end <= term.start:
        return False
    return not any(cue.end <= j[0] < term.start and j[2] == "," for j in told.joints)


def _covers(spans: Sequence[tuple[int, int]], hit: Hit) -> bool:
    return any(start <= hit.start < end for start, end in spans)


def _denied_behind(told: SentenceHits) -> list[tuple[int, int]]:
    """The stretches that are denied by what follows them."""
    dashed = [cue for cue in told.cues.get("negate", ()) if _dashed(cue, told)]
    spans = [(told.clause_of(cue.start)[0], cue.start) for cue in dashed]
    return spans + [(_backward(cue, told), cue.start) for cue in told.cues.get("negate_after", ())]


def _dashed(cue: Hit, told: SentenceHits) -> bool:
    """True in "pericardial effusion - no thickening was detected": both are denied."""
    return told.text[max(cue.start - 2, told.start) : cue.start].strip() in ("-", "–")


def _forward(cue: Hit, told: SentenceHits) -> int:
    """How far a word such as "no" reaches."""
    low, high = told.clause_of(cue.start)
    closing = told.text.find(")", cue.end, high)
    if closing >= 0 and told.text.rfind("(", low, cue.start) > told.text.rfind(")", low, cue.start):
        high = closing
    verbs = [
        h.start
        for n in ("predicate", "negate_after")
        for h in told.cues.get(n, ())
        if cue.end <= h.start < high
    ]
    joints = [j for j in told.joints if cue.end <= j[0] < high]
    for at, joint in enumerate(joints):
        if _fresh(told, joint[1]) or (verbs and joint[0] > verbs[0]):
            return joint[0]
        if verbs or joint[2] in CHOICE:
            continue
        later = [j for j in joints[at + 1 :] if j[2] in CHOICE]
        if not later or len(told.text[joint[1] : later[0][0]].split()) > 8:
            return joint[0]
    return high


def _fresh(told: SentenceHits, position: int, names: Sequence[str] = ("fresh", "degree")) -> bool:
    """True where a new statement begins: "a", "several", "mild"."""
    return any(position <= cue.start <= position + 1 for name in names for cue in told.cues.get(name, ()))


def _backward(cue: Hit, told: SentenceHits) -> int:
    """Where the subject of a predicate such as "was not detected" begins."""
    low = told.clause_of(cue.start)[0]
    opening = told.text.rfind("(", low, cue.start)
    if opening > told.text.rfind(")", low, cue.start):
        low = opening
    start = cue.start
    for joint in reversed([j for j in told.joints if low <= j[0] < cue.start]):
        before = [j[1] for j in told.joints if low <= j[0] < joint[0]]
        begin = before[-1] if before else low
        if joint[2] == "," and (
            MEASURED.search(told.text, begin, joint[0]) or _fresh(told, begin, ("degree",))
        ):
            return joint[1]
        start = begin
    return min(start, low)
