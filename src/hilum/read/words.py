"""The report's words, English and German."""

from __future__ import annotations

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

LOBES_DE = {
    "right upper lobe": "rechter Oberlappen",
    "right middle lobe": "Mittellappen",
    "right lower lobe": "rechter Unterlappen",
    "left upper lobe": "linker Oberlappen",
    "left lower lobe": "linker Unterlappen",
    **{
        f"{third} third of the {side} lung": f"{third_de} Drittel der {side_de} Lunge"
        for third, third_de in (("upper", "oberes"), ("middle", "mittleres"), ("lower", "unteres"))
        for side, side_de in (("right", "rechten"), ("left", "linken"))
    },
}


@dataclass(frozen=True)
class Words:
    """Phrases of one language; `{}` fields are filled by `narrate`."""

    language: str
    technique: str
    nothing: str
    hedges: tuple[str, str, str]
    sides: dict[str, str]
    both_lungs: str
    place_joint: str
    about_ml: str
    about_mm: str
    pieces: str
    unplaced: str
    image: str
    series_image: str
    slice_index: str
    no_sign: str
    or_: str
    scanned_part: str
    unseen: str
    partial: str
    narrow: str
    notices: dict[str, str]

    def number(self, text: str) -> str:
        """Decimal comma in German."""
        return text.replace(".", ",") if self.language == "de" else text


WORDS = {
    "en": Words(
        language="en",
        technique="Chest CT, read by software.",
        nothing="None of the 18 findings reached its threshold.",
        hedges=("Possible ", "Probable ", ""),
        sides={
            "right": "on the right",
            "left": "on the left",
            "both": "on both sides",
            "midline": "in the midline",
        },
        both_lungs="both lungs",
        place_joint=", ",
        about_ml="about {ml} ml",
        about_mm="about {mm} mm",
        pieces="{n} places",
        unplaced="place uncertain",
        image="image {image}",
        series_image="series {series}, image {image}",
        slice_index="slice index {index}",
        no_sign="{organ}{scope}: no sign of {names}.",
        or_=" or ",
        scanned_part=" (scanned part)",
        unseen="{organ}: not seen in the field of view, not judged.",
        partial="The lungs are not covered whole: about {percent} % of them were scanned (estimate).",
        narrow="The lungs reach beyond the border of the picture.",
        notices={},
    ),
    "de": Words(
        language="de",
        technique="CT des Thorax, von Software gelesen.",
        nothing="Keiner der 18 Befunde erreichte seine Schwelle.",
        hedges=("Fraglich ", "Wahrscheinlich ", ""),
        sides={"right": "rechts", "left": "links", "both": "beidseits", "midline": "in der Mittellinie"},
        both_lungs="beide Lungen",
        place_joint=", ",
        about_ml="etwa {ml} ml",
        about_mm="etwa {mm} mm",
        pieces="{n} Stellen",
        unplaced="Ort unsicher",
        image="Bild {image}",
        series_image="Serie {series}, Bild {image}",
        slice_index="Schichtindex {index}",
        no_sign="{organ}{scope}: kein Hinweis auf {names}.",
        or_=" oder ",
        scanned_part=" (gescannter Teil)",
        unseen="{organ}: im Bildfeld nicht gesehen, nicht beurteilt.",
        partial="Die Lungen sind nicht ganz erfasst: etwa {percent} % wurden gescannt (Schätzung).",
        narrow="Die Lungen reichen über den Bildrand hinaus.",
        notices={
            NOTICE: "Forschungssoftware. Modell an synthetischen Phantomen trainiert. Kein Medizinprodukt.",
            NOTICE_OTHER: "Forschungssoftware. Kein Medizinprodukt.",
        },
    ),
}
