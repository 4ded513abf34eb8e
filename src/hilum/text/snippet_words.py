"""Words and tokens of references to images, English and German. Data and one linear tokenizer.

Source: our own rules; what radiologists write ("series 4, image 38", "Se 4/38", "Serie 4 Bild 38 bis 42") is
listed in tests/unit/data/snippets_cases.json, which came first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["date", "decimal", "number", "word", "mark"]

DATE = (
    r"(?:19|20)[0-9]{2}-[01][0-9]-[0-3][0-9](?![0-9])"
    r"|(?:0?[1-9]|[12][0-9]|3[01])\.[ ]?(?:0?[1-9]|1[0-2])\.(?:[ ]?(?:19|20)[0-9]{2}|[0-9]{2})?(?![0-9])"
    r"|[0-3]?[0-9]/[0-3]?[0-9]/(?:19|20)[0-9]{2}(?![0-9])"
)
"""A day of the calendar, as figures."""


def words_of(text: str) -> frozenset[str]:
    """A set of words from one string with spaces between."""
    return frozenset(text.split())


TOKEN = re.compile(
    rf"(?P<date>(?<![0-9.,/])(?:{DATE}))"
    r"|(?P<decimal>(?<![0-9][.,])[0-9]++[.,][0-9]++(?![.,][0-9]))"
    r"|(?P<number>[0-9]++)|(?P<word>[^\W\d_]++)|(?P<mark>[^\w\s]|_)"
)

SERIES = words_of("series serie serien serial serials seq serial serials ser se sers seriennummer seriennr")
SERIES_WEAK = frozenset({"s"})
"""Words too short to stand alone: a segment, a sacral vertebra, a page."""
IMAGE = words_of(
    "image images img imgs ima imas bild bilder bildern bildes bilde bildnummer bildnr slice slices "
    "schicht schichten schichtbild schichtbilder schnitt schnitte schnitten schnittbild schnittbilder "
    "ims"
)
IMAGE_WEAK = frozenset({"im", "i", "b", "sl", "section", "sections", "frame", "frames"})
PLURAL = words_of(
    "images imgs imas ims bilder bildern slices schichten schichtbilder schnitte schnitten "
    "schnittbilder ima im img sections frames"
)
"""Words that a list of numbers may follow; the short ones do not tell."""
ABBREVIATED = words_of("se ser sers s im img imgs ima ims i b sl seriennr bildnr nr no")
"""Keywords that may carry a full stop of their own."""

NUMBERED = words_of("number no nr nummer num position pos")
TO = words_of("to bis through thru until till")
DASHES = frozenset("-–—‐‑−")
AND = frozenset({"and", "und", "u", "sowie", "&", "+", "or", "oder"})
OPENING, CLOSING = frozenset("([{"), frozenset(")]}")

UNITS = words_of(
    "mm cm m ml l cc hu he g mg kg gy mgy msv sv kv kvp ma mas s sec sek min h hz mhz bpm mmhg ppm "
    "mci mbq percent prozent months month weeks week days day years year hours minutes seconds yo "
    "monate monaten monat wochen woche tage tagen tag jahre jahren jahr jährige jähriger jährigen "
    "stunden minuten sekunden uhr am pm times fold malig fach th st nd rd"
)
"""A number before one of these is a quantity."""
COUNTABLE = words_of("images bilder slices schichten schnitte")
"""Before a colon and one number these give an amount: "Images: 380"."""
COUNTED = words_of(
    "nodules nodule lesions lesion nodes node lymph further additional other others more masses cysts "
    "foci patients images slices series segments ribs rundherde rundherd herde herd läsionen läsion "
    "lymphknoten weitere weiteren zysten knoten noduli bilder schichten serien segmente rippen rippe "
    "segment interkostalraum icr bwk lwk hwk brustwirbel lebensjahr wirbel wirbelkörper"
)
"""A number before one of these counts or names something else than an image."""
FOLLOWS = words_of(
    "of in on at from with within the is are was were show shows demonstrate demonstrates see "
    "respectively der die das des dem den von vom aus auf im zeigt zeigen zeigte ist sind war waren "
    "mit bei ff f"
)
"""Words that may follow the last number of a list."""
COUNTING = words_of("number total anzahl gesamtzahl zahl insgesamt count")
SEE = words_of("see siehe s vgl cf vergleiche ref")
ORDINAL = words_of(
    "rippe rippen segment segmentes interkostalraum icr bwk lwk hwk brustwirbel "
    "brustwirbelkörper lendenwirbel halswirbel wirbelkörper lebensjahr tag"
)
"""A number with a full stop before one of these counts."""
EARLIER = words_of("vu prior priors previously zuvor vorher voruntersuchung vor ct vorbefund")
"""Words that may stand between two pairs of numbers."""
NOT_PLACES = words_of(
    "ratio ratios verhältnis verhältnisses dilution diluted verdünnung verdünnt index quotient score "
    "uhr um time at injection maßstab scale odds"
)
"""Before these a pair of numbers is a ratio or a time."""

ABBREVIATIONS = words_of(
    "s se ser im img no nr ca z b v a n i re li dr vs vgl cf bzw ggf max min approx st e g p u o d h "
    "evtl ant post lat med inf sup dd abb fig ed al incl inkl zw bds sog usw etc segm seg resp rt lt "
    "ml"
)
"""A full stop after one of these ends no sentence."""


@dataclass(frozen=True)
class Token:
    """One token: its kind, its text in lower case, and where it stands in the report.

    Args:
        kind: what it is. text: lower case. start, end: characters of the report.
        capital: it begins with a capital letter.
    """

    kind: Kind
    text: str
    start: int
    end: int
    capital: bool = False

    @property
    def value(self) -> int:
        """The number; -1 when it is none, or one that no series or image has."""
        return int(self.text) if self.kind == "number" and len(self.text) <= 5 else -1


def tokens_of(text: str) -> list[Token]:
    """The tokens of a text, in order; white space is none. Linear in the length of the text."""
    return [
        Token(m.lastgroup, m.group().lower(), m.start(), m.end(), m.group()[0].isupper())  # type: ignore[arg-type]
        for m in TOKEN.finditer(text)
    ]
