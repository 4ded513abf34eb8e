"""Which references belong to an earlier study: cues of time in a sentence, and how far each reaches.

A note about the earlier study behind a reference leaves that reference alone ("nodule (Se 4/38), unchanged to
the prior CT"); a reference said to lie in the earlier study belongs to it. Works on sentences in which every
reference is masked by `MASK` signs, so that its numbers are no cues. Source: our own rules (row E12).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from hilum.text.snippet_words import DATE

MASK = "\ue000"
"""Stands for each character of a reference."""

CueKind = Literal["prior", "compare", "current"]

MONTH = r"(?:jan|feb|mar|mär|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez)[a-zä]{0,7}\.?"
WHEN = (
    rf"(?:{DATE}|(?:[0-3]?[0-9]\.?\s)?{MONTH}\s(?:19|20)[0-9]{{2}}(?![0-9])"
    r"|[01]?[0-9]/(?:19|20)[0-9]{2}(?![0-9])|(?:19|20)[0-9]{2}(?![0-9./:]))"
)
STUDY = (
    r"(?:cts?|mri|mrt|pet(?:[-/]ct)?|stud(?:y|ies)|exam(?:ination)?s?|scans?|imaging|images?|reports?|series|"
    r"untersuchung(?:en)?|studien?|aufnahmen?|bildgebung|serien?|bild(?:er|ern)?|befund(?:e|es|en)?)\b"
)
OLD = (
    r"(?:prior|previous|earlier|preceding|old|older|last|outside|external|baseline|comparison|former|initial)"
)
ALT = (
    r"(?:letzt|vorherig|vorangegangen|vorangehend|vorhergehend|früher|vorig|alt|extern|auswärtig|damalig)"
    r"e[nrsm]?"
)
SEEN = (
    r"(?:described|seen|noted|known|reported|demonstrated|identified|visuali[sz]ed|mentioned|biopsied|treated|"
    r"resected|characteri[sz]ed|suspected|beschrieben|bekannt|gesehen|genannt|erwähnt|behandelt)"
)
FILL = r"(?:\s(?!(?:on|in|at|from|of|to|the|auf|im|vom|der|and|und)\b)[a-zäöüß/-]{1,20}){0,2}?\s"
"""Up to two words between an adjective and its noun."""
OF = r"(?:vom|von|of|from|dated|on|am|aus|in)"

TODAY = (
    rf"(?:current|present|today's|this|aktuelle[nrsm]?|heutige[nrsm]?|jetzige[nrsm]?|"
    rf"vorliegende[nrsm]?){FILL}{STUDY}(?:\s(?:{OF}\s)?{WHEN})?\b|"
    r"(?:now|currently|today|at present|aktuell|jetzt|heute|nunmehr|nun|gegenwärtig)\b|"
    r"(?:current|aktuell|heute)\s?:|(?:new|newly|(?:neu\saufgetreten|neu)(?:e[nrsm]?)?)\b"
)
THEN = (
    rf"(?:previously|formerly|initially|zuvor|vorher|vormals|ehemals|damals|früher|zuletzt|anfangs)\b"
    rf"(?!\s{SEEN}(?!\s(?:on|in|at|auf)\b))|at that time\b|im vorjahr\b|"
    r"(?:[0-9]{1,2}|a|one|two|three|six)\s(?:months?|years?|weeks?)\s(?:ago|earlier|before)\b|"
    r"vor\s(?:[0-9]{1,2}|einem|einer|zwei|drei|sechs)\s(?:monat|jahr|woche)[a-z]{0,2}\b|"
    r"(?<=,\s)(?:was|were|had been|war|waren|maß|maßen)(?=\s[0-9])"
)
STUDIES = (
    rf"{OLD}{FILL}{STUDY}|{ALT}\s(?:[a-zäöüß-]{{1,20}}\s)?{STUDY}|"
    rf"priors?(?=\s{{0,2}}(?:[:;,.()\[\]{MASK}]|$))|(?:previous|comparison|vergleich)(?=\s?:)|vu\b|"
    r"vor-?(?:untersuchung(?:en)?|befund(?:e|es|en)?|aufnahmen?|studien?|serien?|bildern?|ct|mrt|pet[-/]?ct)\b"
)
SINCE = (
    r"(?:since|seit(?:\sdem)?|gegenüber(?:\s(?:dem|vom))?|(?:im\s)?vergleich\s(?:zum|zur|mit)|"
    rf"compared\s(?:with|to)(?:\sthe)?|verglichen\smit(?:\sdem)?)\s{WHEN}"
)
SAID_THEN = r"(?:noch|nur|still|only|bereits|already|war|was|measured|maß|[0-9])"
CUE = re.compile(
    rf"(?P<current>\b(?:{TODAY}))|(?P<since>\b{SINCE})"
    rf"|(?P<prior>\b(?:{STUDIES}|{THEN})(?:\s?[,(]?\s?(?:{OF}\s)?{WHEN})?)"
    rf"|(?P<dated>\b{STUDY}{FILL}(?:{OF}\s)?{WHEN}|\b{WHEN}{FILL}{STUDY})"
    rf"|(?P<near>(?:\b{OF}\s)?\b(?:{DATE})(?=[\s,:(\[]{{0,3}}{MASK})|"
    rf"\b(?:am|on)\s(?:{DATE})(?=\s{SAID_THEN})|(?<={MASK}\s)(?:vom|of|from|dated|am|on)\s{WHEN})",
    re.IGNORECASE,
)
SEEN_THEN = re.compile(rf"\b{SEEN}\s(?:in|on|at)\s(?:the|a|an|his|her)?\s?$", re.IGNORECASE)
"""What was "described on the prior CT" is still spoken of today."""
SEEN_BEHIND = re.compile(
    r"\s(?:vor)?(?:beschrieben|bekannt|gesehen|genannt|erwähnt)e[nrsm]?\b", re.IGNORECASE
)
THERE = re.compile(
    r"\s?[,(]?\s?(?:in which|on which|where|wherein|dort|damals|in (?:der|dem|welche[rmn]))\b", re.IGNORECASE
)
COMPARED = re.compile(
    r"\b(?:(?:in\s)?compar(?:ed|ison)\s(?:with|to)|than|from|since|versus|vs\.?|relative\sto|to|unchanged|stable|"
    r"gegenüber|zur|zum|zu|(?:im\s)?vergleich\s(?:mit|zu|zur|zum)|seit|verglichen\smit|als)"
    r"(?:\s(?:the|a|an|der|dem|den|die|einer|einem|his|her))?\s$",
    re.IGNORECASE,
)
DENIED = re.compile(r"\b(?:no|any|keine[nrsm]?|without|ohne)\s$", re.IGNORECASE)
NEGATION = re.compile(r"\b(?:not|no|never|nicht|kein(?:e[nrsm]?)?|without|ohne)\b", re.IGNORECASE)
ATTACHED = re.compile(r"\s?(?:[,(\[-]\s?)?(?:(?:of|in|on|from|at|the|der|des|dem|den|im|auf|aus|von|zur)\s)*")
BOUND = re.compile(r"(?:of|in|on|from|at|der|des|dem|den|im|auf|aus|von)\s")
ADJACENT = re.compile(rf"[\s,:;(\[-]{{0,4}}(?:(?:ct|{OF})\s)?")
HEADING_LINE = re.compile(r"^[ \t]*(?:[^\W\d_][^\n:.()]{1,40}:|$)", re.MULTILINE)
PRIOR_HEADING = re.compile(
    r"[ \t]*(?:comparison|vergleich|"
    rf"{OLD}\s(?:\w{{1,12}}\s)?{STUDY}|vor-?(?:untersuchung(?:en)?|befunde?|aufnahmen?))"
    r"[^\n:]{0,30}:",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Cue:
    """A word about time.

    Args:
        kind: what it says. start, end: characters of its sentence. dated: a date belongs to it.
        since: it says since when.
    """

    kind: CueKind
    start: int
    end: int
    dated: bool
    since: bool = False


def prior_blocks(text: str) -> list[tuple[int, int]]:
    """Stretches of a report under a heading about the earlier study ("Comparison:", "Voruntersuchung:").

    Each ends with the next heading or empty line. The last stretch counts as none: it may hold the report.
    """
    starts = [m.start() for m in HEADING_LINE.finditer(text)]
    return [(start, end) for start, end in pairwise(starts) if PRIOR_HEADING.match(text, start)]


def cues_of(masked: str) -> list[Cue]:
    """The cues of a sentence whose references are masked, in order."""
    cues: list[Cue] = []
    for match in CUE.finditer(masked):
        before = masked[max(0, match.start() - 40) : match.start()]
        kind: CueKind = "prior"
        compared = COMPARED.search(before)
        if match.lastgroup in ("current", "since"):
            kind = "current" if match.lastgroup == "current" else "compare"
        elif DENIED.search(before):
            continue
        elif THERE.match(masked, match.end()):
            kind = "prior"
        elif SEEN_THEN.search(before) or SEEN_BEHIND.match(masked, match.end()):
            kind = "prior" if _adjacent(masked, match.end()) else "compare"
        elif compared:
            kind = "compare"
        elif match.lastgroup == "dated" and match.start() == 0 and not _adjacent(masked, match.end()):
            continue  # "CT of 12.03.2015: ..." is the title of the report itself
        dated = re.search(WHEN, match.group(), re.IGNORECASE) is not None
        words = compared.group() if compared and match.lastgroup != "since" else match.group()
        since = words.lower().startswith(("since", "seit"))
        cues.append(Cue(kind, match.start(), match.end(), dated, since))
    return cues


def prior_flags(
    masked: str, cues: Sequence[Cue], places: Sequence[tuple[int, int]], series: Sequence[int | None]
) -> list[bool]:
    """Which references belong to an earlier study.

    Args:
        masked: sentence with every reference masked. cues: of `cues_of`.
        places: start and end of each reference in the sentence, in order. series: number of each.
    """
    closes = _closes(masked)
    flags: list[bool] = []
    for at, (start, end) in enumerate(places):
        flag = _attached(masked, cues, start, end)
        flags.append(flag or _told(masked, cues, closes, places, series, flags, at, start))
    return flags


def _attached(masked: str, cues: Sequence[Cue], start: int, end: int) -> bool:
    """True for "image 20 of the previous study" and "(Se 3/20, prior CT)"."""
    cue = next((c for c in cues if c.start >= end), None)
    if cue is None or cue.kind != "prior" or _adjacent(masked, cue.end):
        return False
    between = masked[end : cue.start]
    link = ATTACHED.fullmatch(between)
    if link is None:
        return False
    if BOUND.search(between) or masked[cue.start : cue.end].lower().startswith(
        ("vom ", "of ", "from ", "dated ")
    ):
        return "," not in between
    rest = masked[cue.end : cue.end + 2].lstrip()
    return rest[:1] in (")", "]") and (between.strip() != "" or masked[start:end] != "")


def _told(
    masked: str,
    cues: Sequence[Cue],
    closes: Sequence[int],
    places: Sequence[tuple[int, int]],
    series: Sequence[int | None],
    flags: Sequence[bool],
    at: int,
    start: int,
) -> bool:
    """True when the last cue before a reference puts it into an earlier study."""
    cue = next((c for c in reversed(cues) if c.end <= start and closes[c.start] > start), None)
    if cue is None or cue.kind == "current":
        return False
    between = masked[cue.end : start]
    earlier = [k for k in range(at) if places[k][0] >= cue.end]
    if cue.kind == "compare":
        if ADJACENT.fullmatch(between) is None:
            return False
        leads = COMPARED.fullmatch(masked[: cue.start].lstrip()) is not None
        bracket = "(" in between or "[" in between
        told = not cue.since and (cue.dated or not bracket or leads)
        return told or any(not f for f in flags)
    if ";" in between and closes[cue.start] == len(masked):
        return False
    if NEGATION.search(between):
        return False
    if not earlier and at and flags[at - 1] and places[at - 1][1] <= cue.start:
        earlier = [at - 1]  # the cue belongs to the reference before it
    if not earlier:
        return True
    last = earlier[-1]
    if not flags[last]:
        return False
    joint = re.fullmatch(r"[\s,;&]*(?:and|und)?\s*", masked[places[last][1] : start]) is not None
    return joint or series[at] == series[last]


def _adjacent(masked: str, end: int) -> bool:
    """True when a reference follows at once."""
    match = ADJACENT.match(masked, end)
    at = match.end() if match else end
    return masked[at : at + 1] == MASK


def _closes(masked: str) -> list[int]:
    """For each character the end of the innermost bracket around it; the end of the sentence outside."""
    closes, ends = [len(masked)] * len(masked), [len(masked)]
    partner: dict[int, int] = {}
    stack: list[int] = []
    for at, sign in enumerate(masked):
        if sign in "([":
            stack.append(at)
        elif sign in ")]" and stack:
            partner[stack.pop()] = at
    for at, sign in enumerate(masked):
        if at in partner:
            ends.append(partner[at])
        elif sign in ")]" and len(ends) > 1 and ends[-1] == at:
            ends.pop()
        closes[at] = ends[-1]
    return closes
