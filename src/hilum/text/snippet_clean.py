"""The words of a snippet: its clause without the reference, without the earlier study, without what is left
hanging.

Works on a sentence in which signs stand for what goes: `MASK` for a reference, `AUX` for a series named apart
from its image, `OLD` for words about an earlier study. Words are taken out, never added or moved. Source: our
own rules.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hilum.text.snippet_prior import MASK, SEEN, Cue

AUX, OLD = "\ue001", "\ue002"
SIGNS = re.compile(f"[{MASK}{AUX}{OLD}]")
WORD = re.compile(r"[^\W_]")

BEFORE_CUE = re.compile(
    r"(?:\b(?:in|on|at|from|to|of|since|than|as|with|by|im|auf|am|aus|bei|von|zur|zum|zu|mit|gegenüber|seit|als|wie|"
    r"verglichen|vergleich|idem|identisch|analog|identical|similar|compared|comparison|relative|versus|vs|"
    r"unchanged|stable|unverändert|größenkonstant|konstant|already|bereits|schon|noch|the|a|an|der|dem|den|die|das|"
    r"des|einer|einem|seen|known|bekannt|when|size|and|und)\s)+$",
    re.IGNORECASE,
)
"""Little words in front of a cue that say nothing without it."""
STUDIED = (
    r"(?:not|nicht|no\slonger|noch\snicht)\s"
    r"(?:seen|visible|present|detectable|abgrenzbar|nachweisbar|sichtbar)\w{0,3}"
)
NOT_THEN = re.compile(rf"{OLD}\s{STUDIED}\b|\b{STUDIED}\s{OLD}", re.IGNORECASE)
LEAD = re.compile(
    r"(?:,\s)?(?:\b(?:is|are|was|were)\s(?=(?:[a-z.]{2,9}\s){0,3}(?:on|in|at)\s[^.]{0,30}[\ue000\ue001](?:[\s)]?[,;.)]|$)))?"
    r"(?:\b(?:e\.\s?g\.|z\.\s?b\.|as|for\sexample|exemplarisch|beispielsweise|am|besten|best|most|better|clearly|well|"
    r"gut|also|auch)\s){0,3}"
    r"(?:\b(?:seen|visible|shown|demonstrated|appreciated|depicted|identified|noted|evident|abgrenzbar|sichtbar|"
    r"erkennbar|zu\ssehen|zu\serkennen|dargestellt|abgebildet|corresponds|corresponding|see|siehe|s\.|vgl\.?|cf\.?|"
    r"vergleiche)\s)?"
    r"(?:\b(?:on|in|at|to|auf|from|von|bei|im|of|unter|per)\s)?"
    r"(?:\b(?:the|den|dem|der|die|das|axial|axialen|axiale|key)\s){0,2}[\ue000\ue001]",
    re.IGNORECASE,
)
BRACKET = re.compile(r"\s?[(\[{<]([^()\[\]{}<>]*)[)\]}>]")
EDGES = " ,;:.-–/&"
HEADING = re.compile(
    r"^(?:findings?|impression|conclusion|summary|comparison|technique|history|befunde?|beurteilung|vergleich|technik|"
    r"anamnese)\s?:\s?",
    re.IGNORECASE,
)
COUNTER = re.compile(r"^[0-9]{1,2}[.)]\s")
"""The number of an item in a list of findings."""
VERB_FIRST = re.compile(
    r"^(?:shows?|demonstrates?|reveals?|depicts?|(?:zeigt|zeigen|findet|finden|stellt|stellen)(?:\ssich)?|(?:sieht|findet|erkennt)\sman)\s",
    re.IGNORECASE,
)
STATE = (
    r"(?:unchanged|stable|newly(?:\s(?:developed|appeared))?|new|known|previously\s" + SEEN + r"|"
    r"(?:unverändert|größenkonstant|größenstabil|vorbekannt|vorbeschrieben|bekannt|neu\saufgetreten|neu)(?:e[nrsm]?)?|"
    r"(?:zuvor|vorher)\s[a-zäöü]{4,15}(?:e[nrsm]?)?)"
)
ATTRIBUTE = re.compile(
    rf"(^|[,;:(]\s?|\b(?:a|an|the|ein|eine[nrms]?|der|die|das|den|dem|mit|with|of)\s){STATE}\s"
    r"(?=\w)(?!(?:in|since|from|to|compared|zu|zur|zum|gegenüber|seit)\b)",
    re.IGNORECASE,
)
PREDICATE = re.compile(
    rf"(?:\s(?:is|are|ist|sind|remains?|bleibt|bleiben)|,)\s{STATE}\s?(?=[,;.(\[{MASK}{OLD}]|$)",
    re.IGNORECASE,
)
JOINTS = re.compile(
    r"^(?:and|und|sowie|but|aber|while|whereas|während|as well as|compared (?:with|to)|versus|vs\.)(?!\w)\s?",
    re.IGNORECASE,
)
HANGING = re.compile(
    r"\s(?:and|und|sowie|but|aber|is|are|was|were|from|in|on|at|with|than|the|compared|to|gegenüber|zur|zum)$",
    re.IGNORECASE,
)


def mark_cues(masked: str, cues: Sequence[Cue]) -> str:
    """The sentence with `OLD` for every phrase about an earlier study; words about today just go."""
    out, done = [], 0
    for cue in cues:
        before = masked[done : cue.start]
        window = before[-60:]
        little = BEFORE_CUE.search(window)
        if little:
            before = before[: len(before) - len(window) + little.start()]
        out += [before, "" if cue.kind == "current" else OLD]
        done = cue.end
    return "".join([*out, masked[done:]])


def clean_texts(marked: str, flags: Sequence[bool]) -> list[str]:
    """The words of each reference of a sentence.

    Args:
        marked: of `mark_cues`; holds one `MASK` per reference. flags: which belong to an earlier study.

    Returns:
        One text per reference, without full stop. References side by side share one. Empty where the sentence
        says nothing but where to look.
    """
    stations = _stations(marked)
    leading = not _says(HEADING.sub("", marked[: stations[0][0]]))
    bounds = _bounds(marked, stations, leading)
    texts: list[str] = []
    for (first, last), (start, end) in zip([(s[2], s[3]) for s in stations], bounds, strict=True):
        part = marked[start:end]
        said = {flag: _clean(part, flag) for flag in set(flags[first : last + 1])}
        texts += [said[flag] for flag in flags[first : last + 1]]
    for at, text in enumerate(texts):
        if not text:
            behind = (t for t in texts[at + 1 :] if t)
            texts[at] = (texts[at - 1] if at else "") or next(behind, "")
    return texts


def _stations(marked: str) -> list[tuple[int, int, int, int]]:
    """Places where references stand: start, end (brackets included), first and last reference."""
    brackets = [m.span() for m in BRACKET.finditer(marked) if MASK in m.group()]
    stations: list[tuple[int, int, int, int]] = []
    upcoming = 0
    for number, match in enumerate(re.finditer(MASK, marked)):
        start, end = match.span()
        while upcoming < len(brackets) and brackets[upcoming][1] <= start:
            upcoming += 1
        if upcoming < len(brackets) and brackets[upcoming][0] <= start:
            start, end = brackets[upcoming]
        if stations and (start < stations[-1][1] or not _says(marked[stations[-1][1] : start])):
            before = stations.pop()
            stations.append((before[0], max(end, before[1]), before[2], number))
        else:
            stations.append((start, end, number, number))
    return stations


def _says(text: str) -> bool:
    """True when a stretch of text has words of its own."""
    bare = SIGNS.sub("", LEAD.sub("", text + MASK))
    return WORD.search(JOINTS.sub("", bare.strip(EDGES + "([)]"))) is not None


def _bounds(
    marked: str, stations: Sequence[tuple[int, int, int, int]], leading: bool
) -> list[tuple[int, int]]:
    """The clause of each station: what leads to it, or what follows it where the sentence begins with one."""
    if leading:
        starts = [0, *(s[0] for s in stations[1:])]
        return list(zip(starts, [*starts[1:], len(marked)], strict=True))
    ends = [*(s[1] for s in stations[:-1]), len(marked)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _clean(part: str, prior: bool) -> str:
    """One clause without its signs."""
    text = HEADING.sub("", COUNTER.sub("", part.strip(EDGES + "•*")))
    text = NOT_THEN.sub(OLD, text)
    text = text if prior else _today(text)
    text = PREDICATE.sub("", text)
    text = BRACKET.sub(lambda m: _bracket(m, prior), text)
    text = LEAD.sub(" ", text)
    text = re.sub(r"\s+", " ", SIGNS.sub(" ", text)).strip(EDGES)
    text = VERB_FIRST.sub("", JOINTS.sub("", text))
    text = ATTRIBUTE.sub(_article, text)
    text = re.sub(r"\s([,;.:)])", r"\1", re.sub(r"([,;])(?:\s?[,;])+", r"\1", text))
    text = HANGING.sub("", text.strip(EDGES)).rstrip(EDGES + "([{<").lstrip(EDGES + ")]}>")
    return text if WORD.search(text) and text.lower() not in ("vgl", "cf", "see", "siehe", "please") else ""


def _today(text: str) -> str:
    """Without the clauses that speak of an earlier study only, if anything is left then."""
    parts = re.split(r"(?<=[,;])\s(?![^(\[]*[)\]])", text) if len(text) < 2000 else [text]
    kept = [p for p in parts if OLD not in p or MASK in p]
    return " ".join(kept) if any(_says(p) for p in kept) else text


def _bracket(match: re.Match[str], prior: bool) -> str:
    """What stays of a bracket: nothing, or its words beside references and earlier studies."""
    inner = match.group(1)
    if not SIGNS.search(inner):
        return match.group()
    parts = [p for p in re.split(r"[,;]\s?", inner) if _says(p) and (OLD not in p or (prior and MASK in p))]
    kept = [SIGNS.sub("", LEAD.sub("", p)).strip(EDGES) for p in parts]
    said = ", ".join(k for k in kept if WORD.search(k) and not _window(k))
    return f" ({said})" if said else ""


def _window(text: str) -> bool:
    """True for the name of a window or plane, which belongs to the reference."""
    return (
        re.fullmatch(
            r"(?:lung|soft tissue|bone|axial|coronal|sagittal|koronar|\w+fenster)(?:\swindow)?", text.lower()
        )
        is not None
    )


def _article(match: re.Match[str]) -> str:
    """The article fits the next word again."""
    lead, after = match.group(1), match.string[match.end() : match.end() + 1].lower()
    if lead.lower() in ("a ", "an "):
        lead = lead[0] + ("n " if after in "aeiou8" else " ")
    return lead
