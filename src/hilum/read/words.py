"""The report's words, English and German."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hilum.read.reading import NOTICE, NOTICE_OTHER

ORGANS: dict[str, dict[str, str]] = {
    "lung": {"en": "Lungs", "de": "Lungen"},
    "airways": {"en": "Airways", "de": "Atemwege"},
    "pleura": {"en": "Pleura", "de": "Pleura"},
    "mediastinum": {"en": "Mediastinum", "de": "Mediastinum"},
    "heart": {"en": "Heart", "de": "Herz"},
    "oesophagus": {"en": "Oesophagus", "de": "Ösophagus"},
    "global": {"en": "Whole scan", "de": "Gesamter Scan"},
}

_THIRDS = (("upper", "obere"), ("middle", "mittlere"), ("lower", "untere"))
_SIDES = (("right", "rechten"), ("left", "linken"))
LOBES_DE = {
    "right upper lobe": "rechter Oberlappen",
    "right middle lobe": "Mittellappen",
    "right lower lobe": "rechter Unterlappen",
    "left upper lobe": "linker Oberlappen",
    "left lower lobe": "linker Unterlappen",
    **{
        f"{third} third of the {side} lung": f"{third_de}s Drittel der {side_de} Lunge"
        for third, third_de in _THIRDS
        for side, side_de in _SIDES
    },
}
IN_LOBES_DE = {
    "right upper lobe": "im rechten Oberlappen",
    "right middle lobe": "im Mittellappen rechts",
    "right lower lobe": "im rechten Unterlappen",
    "left upper lobe": "im linken Oberlappen",
    "left lower lobe": "im linken Unterlappen",
    **{
        f"{third} third of the {side} lung": f"im {third_de}n Drittel der {side_de} Lunge"
        for third, third_de in _THIRDS
        for side, side_de in _SIDES
    },
}


@dataclass(frozen=True)
class Words:
    """Phrases of one language; `{}` fields are filled by `narrate`."""

    language: str
    technique: str
    graded: str
    ungraded: str
    nothing: str
    further: tuple[str, str]
    hedges: Mapping[str, str]
    sides: Mapping[str, str]
    both_lungs: str
    in_both_lungs: str
    most_marked: str
    about_ml: str
    about_mm: str
    pieces: str
    unplaced: str
    no_place: str
    image: str
    series_image: str
    slice_index: str
    no_sign: str
    or_: str
    scanned_part: str
    unseen: str
    unseen_rest: str
    partial: str
    narrow: str
    notices: Mapping[str, str]

    def number(self, text: str) -> str:
        """Decimal comma in German."""
        return text.replace(".", ",") if self.language == "de" else text

    def place(self, side: str | None, lobe: str | None, organ: str) -> str:
        """Where, inside a sentence: ``in the left upper lobe``, ``on both sides, most marked in the ...``;
        "" when nothing is known."""
        inside = (
            IN_LOBES_DE.get(lobe or "", "") if self.language == "de" else f"in the {lobe}" if lobe else ""
        )
        if side == "both":
            both = self.in_both_lungs if organ == "lung" else self.sides["both"]
            return f"{both}, {self.most_marked} {inside}" if inside else both
        return inside or self.sides.get(side or "", "")

    def place_name(self, side: str | None, lobe: str | None, organ: str) -> str:
        """Where, in a table."""
        if side == "both":
            return self.both_lungs if organ == "lung" else self.sides["both"]
        named = LOBES_DE.get(lobe or "", "") if self.language == "de" else lobe
        return named or self.sides.get(side or "", "")


WORDS = {
    "en": Words(
        language="en",
        technique="Chest CT, read by software.",
        graded="Probable and possible stand for calibrated probabilities.",
        ungraded="The model is not calibrated, so that nothing is graded by certainty.",
        nothing="None of the 18 findings reached its threshold.",
        further=("1 further finding stands above.", "{n} further findings stand above."),
        hedges={"possible": "Possible ", "probable": "Probable "},
        sides={
            "right": "on the right",
            "left": "on the left",
            "both": "on both sides",
            "midline": "in the midline",
        },
        both_lungs="both lungs",
        in_both_lungs="in both lungs",
        most_marked="most marked",
        about_ml="about {ml} ml",
        about_mm="about {mm} mm",
        pieces="{n} places",
        unplaced="place uncertain",
        no_place="without a place on the map",
        image="image {image}",
        series_image="series {series}, image {image}",
        slice_index="slice index {index}",
        no_sign="{organ}{scope}: no sign of {names}.",
        or_=" or ",
        scanned_part=" (scanned part)",
        unseen="{organ}: not seen in the field of view, not judged.",
        unseen_rest="{organ}: hardly in the field of view, not judged otherwise.",
        partial="The lungs are not covered whole: about {percent} % of them were scanned (estimate).",
        narrow="The lungs reach beyond the border of the picture.",
        notices={},
    ),
    "de": Words(
        language="de",
        technique="CT des Thorax, von Software gelesen.",
        graded="Wahrscheinlich und fraglich stehen für kalibrierte Wahrscheinlichkeiten.",
        ungraded="Das Modell ist nicht kalibriert, daher wird nichts nach Sicherheit abgestuft.",
        nothing="Keiner der 18 Befunde erreichte seine Schwelle.",
        further=("1 weiterer Befund steht oben.", "{n} weitere Befunde stehen oben."),
        hedges={"possible": "Fraglich ", "probable": "Wahrscheinlich "},
        sides={"right": "rechts", "left": "links", "both": "beidseits", "midline": "in der Mittellinie"},
        both_lungs="beide Lungen",
        in_both_lungs="in beiden Lungen",
        most_marked="am deutlichsten",
        about_ml="etwa {ml} ml",
        about_mm="etwa {mm} mm",
        pieces="{n} Stellen",
        unplaced="Ort unsicher",
        no_place="ohne Ort auf der Karte",
        image="Bild {image}",
        series_image="Serie {series}, Bild {image}",
        slice_index="Schichtindex {index}",
        no_sign="{organ}{scope}: kein Hinweis auf {names}.",
        or_=" oder ",
        scanned_part=" (gescannter Teil)",
        unseen="{organ}: im Bildfeld nicht gesehen, nicht beurteilt.",
        unseen_rest="{organ}: kaum im Bildfeld, sonst nicht beurteilt.",
        partial="Die Lungen sind nicht ganz erfasst: etwa {percent} % wurden gescannt (Schätzung).",
        narrow="Die Lungen reichen über den Bildrand hinaus.",
        notices={
            NOTICE: "Forschungssoftware. Modell an synthetischen Phantomen trainiert. Kein Medizinprodukt.",
            NOTICE_OTHER: "Forschungssoftware. Kein Medizinprodukt.",
        },
    ),
}
