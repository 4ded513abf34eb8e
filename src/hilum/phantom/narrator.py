"""A report about a phantom, findings and impression, in which every sentence carries its truth. Synthetic.

It says nothing false: a finding that is there is stated or hedged, one that is not is denied or passed over;
an image number is that of a slice through the lesion; those of an earlier study are marked as such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hilum.phantom.make import Phantom
from hilum.phantom.narrator_facts import LesionFact, lesion_facts
from hilum.phantom.narrator_sentence import Narrative, Section, Sentence, Status
from hilum.phantom.narrator_words import Words, fields_of
from hilum.phantom.plan import Scanner
from hilum.text.vocabulary import SLUGS
from hilum.volume import SliceRef

HEDGED, COMPARED, IN_IMPRESSION, RANGE = 0.12, 0.5, 0.9, 0.15
"""Share of present findings that are hedged, compared with an earlier study, repeated in the impression;
of references that give a range of images."""
COMPARISONS = ("same", "same", "more", "less", "new")
"""What may be said of the earlier study, unless the phrase book limits it."""


def narrate(
    phantom: Phantom,
    language: str = "en",
    slice_refs: Sequence[SliceRef] | None = None,
    *,
    series: int = 1,
    seed: int | None = None,
    previous: bool | None = None,
) -> Narrative:
    """Write the report.

    Args:
        phantom: what it is about. language: ``en`` or ``de``.
        slice_refs: of the written DICOM series; None numbers slices from the head down, as the writer does.
        series: series number of the written DICOM. seed: of the wording; by default the plan's.
        previous: whether an earlier study is spoken of; None leaves it to chance.

    Raises:
        UsageError: unknown language (`OPTION_UNKNOWN`).
    """
    facts = lesion_facts(phantom, slice_refs)
    return narrate_facts(
        facts, phantom.plan.scanner, language, series=series,
        seed=phantom.plan.seed if seed is None else seed, previous=previous,
    )  # fmt: skip


def narrate_facts(
    facts: Mapping[str, LesionFact],
    scanner: Scanner,
    language: str,
    *,
    series: int = 1,
    seed: int = 0,
    previous: bool | None = None,
) -> Narrative:
    """The same from facts alone: a finding that `facts` does not hold is absent."""
    teller = _Teller(facts, Words(language, np.random.default_rng([seed, 18])), series, previous)
    sentences = tuple(teller.technique(scanner) + teller.findings() + teller.impression())

    def joined(*sections: Section) -> str:
        return " ".join(s.text for s in sentences if s.section in sections)

    heading = teller.book["heading"]
    return Narrative(language, heading, joined("technique", "findings"), joined("impression"), sentences)


class _Teller:
    """One report in the making: what is known, what was said, and the earlier study if there is one."""

    def __init__(
        self, facts: Mapping[str, LesionFact], words: Words, series: int, previous: bool | None
    ) -> None:
        self.facts, self.words, self.series, self.book = facts, words, series, words.book
        day, month, year = (int(words.rng.integers(*span)) for span in ((1, 29), (1, 13), (2015, 2025)))
        self.date = f"{day:02d}.{month:02d}.{year}"
        self.has_prior = words.chance(0.3) if previous is None else previous
        self.prior_series = int(words.rng.integers(2, 9))
        self.hedged = {slug for slug in facts if words.chance(HEDGED)}
        self.told: set[str] = set()

    def technique(self, scanner: Scanner) -> list[Sentence]:
        """How it was scanned, what limits it, and whether there is a comparison."""
        table = self.book["technique"]
        known = {"slice": f"{self.words.number(scanner.spacing_mm[2], 2)} mm", "date": self.date}
        parts = [table[scanner.phase]]
        parts += [table["motion"]] if scanner.motion_mm > 2 else []
        parts += [table["noise"]] if scanner.noise_hu > 30 else []
        parts += [table["cover"]] if scanner.z_cover < 1 else []
        if self.has_prior or self.words.chance(0.3):
            parts.append(table["prior" if self.has_prior else "no_prior"])
        return [Sentence(self.words.fill(self.words.pick(p), known), "technique") for p in parts]

    def findings(self) -> list[Sentence]:
        """Region by region: what is there, what is not, and what was also looked at."""
        joint = self._joint_denials()
        return [s for group in self.book["group"] for s in self._group(group, joint)]

    def _joint_denials(self) -> dict[str, Sentence]:
        """Sentences that deny two findings at once, by the finding in whose region they stand."""
        joint: dict[str, Sentence] = {}
        for entry in self.book["joint"]:
            slugs = entry["slugs"]
            free = not any(s in self.facts or s in self.told for s in slugs)
            if free and self.words.chance(0.35):
                self.told.update(slugs)
                text = self.words.fill(self.words.pick(entry["text"]), {})
                joint[slugs[0]] = Sentence(text, slug=slugs[0], status="absent", also=tuple(slugs[1:]))
        return joint

    def _group(self, group: Mapping[str, Any], joint: Mapping[str, Sentence]) -> list[Sentence]:
        told: list[Sentence] = []
        if "intro" in group and (intro := self.words.pick(group["intro"])):
            told.append(Sentence(intro))
        clear = group.get("clear") and not any(s in self.facts for s in group["slugs"])
        if clear and self.words.chance(0.4):
            implied = [s for s in ("consolidation", "lung_nodule", "lung_opacity") if s not in self.told]
            self.told.update(implied)
            if implied:
                text = self.words.pick(group["clear"])
                told.append(Sentence(text, slug=implied[0], status="absent", also=tuple(implied[1:])))
        for slug in group["slugs"]:
            told += [joint[slug]] if slug in joint else []
            told += self._present(slug) if slug in self.facts else self._absent(slug)
        order = self.words.rng.permutation(len(group["fillers"]))[: int(self.words.rng.integers(0, 3))]
        fillers = [Sentence(group["fillers"][i]) for i in order]
        return told + fillers if "intro" in group else fillers + told

    def _known(self, fact: LesionFact) -> tuple[dict[str, str], dict[str, Any]]:
        """Words of a lesion by field, and the truth that each field carries into the record."""
        entry = self.book["finding"][fact.slug]
        where, side, lobes = self.words.place(entry["place"], fact.side, fact.lobes)
        size, size_mm = self.words.size(fact.size_mm) if fact.size_mm > 0 else ("", 0.0)
        thickness_mm = float(fact.attributes.get("thickness_mm", 0) or 0)
        thickness, thick_mm = self.words.size(thickness_mm) if thickness_mm > 0 else ("", 0.0)
        known = {
            "where": where,
            "size": size,
            "thickness": thickness,
            "degree": self.words.pick(self.book["degree"][fact.degree]),
            "kind": self._named(fact, "items"),
            "density": self._named(fact, "density"),
            "stage": str(fact.attributes.get("t_stage", "")),
        }
        place = {"side": side, "lobes": lobes}
        return known, {"where": place, "size": {"size_mm": size_mm}, "thickness": {"size_mm": thick_mm}}

    def _named(self, fact: LesionFact, attribute: str) -> str:
        """An attribute (names joined by commas) in the language's words; empty when one has none."""
        names = [n.strip() for n in str(fact.attributes.get(attribute, "")).split(",") if n.strip()]
        words = [self.book["kinds"].get(name, "") for name in names]
        return self.book["and"].join(words) if all(words) else ""

    def _claim(
        self, fact: LesionFact, templates: Sequence[str], status: Status, section: Section, refer: float
    ) -> Sentence | None:
        """A sentence about a lesion, whose record holds what its words say and nothing more."""
        known, truth = self._known(fact)
        template = self.words.choose(templates, known)
        if template is None:
            return None
        said: dict[str, Any] = {}
        for name in fields_of(template):
            said |= truth.get(name, {})
        if "ref" in fields_of(template) and self.words.chance(refer):
            known["ref"], reference = self._reference(fact)
            said |= reference
        return Sentence(self.words.fill(template, known), section, fact.slug, status, **said)

    def _reference(self, fact: LesionFact) -> tuple[str, dict[str, Any]]:
        low, high = fact.instances
        truth: dict[str, Any] = {"series": self.series, "image": fact.instance, "z_mm": fact.z_mm}
        numbers = {
            "series": str(self.series),
            "image": str(fact.instance),
            "low": str(low),
            "high": str(high),
        }
        kind = "range" if high - low >= 2 and self.words.chance(RANGE) else "one"
        truth |= {"images": (low, high)} if kind == "range" else {}
        return " " + self.words.pick(self.book["reference"][kind]).format_map(numbers), truth

    def _present(self, slug: str) -> list[Sentence]:
        fact, entry = self.facts[slug], self.book["finding"][slug]
        self.told.add(slug)
        many = fact.count > 1 and "present_many" in entry
        status: Status = "uncertain" if slug in self.hedged else "present"
        templates = (
            entry["uncertain"] if slug in self.hedged else entry["present_many" if many else "present"]
        )
        if status == "present" and "t_stage" in fact.attributes and self.words.chance(0.6):
            templates = entry.get("tumour", templates)
        told = self._claim(fact, templates, status, "findings", entry["refer"])
        told = told or self._claim(fact, entry["plain"], "present", "findings", entry["refer"])
        more = [Sentence(t, slug=slug, status="present") for t in self._stage_remarks(fact, entry)]
        compared = (
            [self._compared(slug, entry, many)] if self.has_prior and self.words.chance(COMPARED) else []
        )
        return [*([told] if told else []), *more, *compared]

    def _stage_remarks(self, fact: LesionFact, entry: Mapping[str, Any]) -> list[str]:
        """What makes a tumour's stage besides its size."""
        invades = self._named(fact, "invades")
        told = [self.words.fill(self.words.pick(entry["invasion"]), {"invades": invades})] if invades else []
        if float(fact.attributes.get("satellites", 0) or 0) > 0:
            told.append(self.words.pick(entry["satellites"]))
        return told

    def _compared(self, slug: str, entry: Mapping[str, Any], many: bool) -> Sentence:
        """A remark on the earlier study. An image number in it belongs to that study."""
        kind = self.words.pick(entry.get("compare", COMPARISONS))
        return self._remark(slug, entry, self.book["compare"][kind], "prior", many)

    def _remark(
        self, slug: str, entry: Mapping[str, Any], templates: Sequence[str], status: Status, many: bool
    ) -> Sentence:
        many = many and "noun_many" in entry
        plural = many or entry.get("plural", False)
        verbs = {"en": ("is", "was", "are", "were"), "de": ("ist", "war", "sind", "waren")}[
            self.words.language
        ]
        known = {
            "noun": self.words.pick(entry["noun_many" if many else "noun"]),
            "is": verbs[2 if plural else 0],
            "was": verbs[3 if plural else 1],
            "date": self.date,
        }
        template, image = self.words.pick(templates), int(self.words.rng.integers(10, 320))
        refers = "prior" in fields_of(template) and self.words.chance(0.6)
        if refers:
            numbers = {"series": str(self.prior_series), "image": str(image)}
            known["prior"] = self.words.pick(self.book["reference"]["prior"]).format_map(numbers)
        text = self.words.fill(template, known)
        if not refers:
            return Sentence(text, slug=slug, status=status)
        return Sentence(text, slug=slug, status=status, prior_series=self.prior_series, prior_image=image)

    def _absent(self, slug: str) -> list[Sentence]:
        entry = self.book["finding"][slug]
        if slug in self.told:
            return []
        if self.has_prior and entry.get("can_go", False) and self.words.chance(0.12):
            self.told.add(slug)
            return [self._remark(slug, entry, self.book["compare"]["gone"], "absent", False)]
        if not self.words.chance(entry["mention"]):
            return []
        self.told.add(slug)
        return [Sentence(self.words.fill(self.words.pick(entry["absent"]), {}), slug=slug, status="absent")]

    def impression(self) -> list[Sentence]:
        """What matters, in the vocabulary's order; a normal chest is called normal."""
        told: list[Sentence] = []
        for slug in (s for s in SLUGS if s in self.facts and self.words.chance(IN_IMPRESSION)):
            fact, entry = self.facts[slug], self.book["finding"][slug]
            many = fact.count > 1 and "impression_many" in entry
            status: Status = "uncertain" if slug in self.hedged else "present"
            templates = (
                entry["uncertain"]
                if slug in self.hedged
                else entry["impression_many" if many else "impression"]
            )
            said = self._claim(fact, templates, status, "impression", 0.2)
            told += [said] if said else []
        table, known = self.book["conclusion"], {"date": self.date}
        if not self.facts:
            told.append(Sentence(self.words.pick(table["normal"]), "impression"))
        elif self.words.chance(0.4) or not told:
            told.append(Sentence(self.words.pick(table["advice"]), "impression"))
        if self.has_prior and self.words.chance(0.4):
            told.append(Sentence(self.words.fill(self.words.pick(table["stable"]), known), "impression"))
        return told
