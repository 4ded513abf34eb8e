"""Phantoms as samples of scans and texts: several wordings of each report, in both languages, and what they
point at. Synthetic.

Sentences with a place come the way they come from a hospital: our own miner reads the report as it stands,
and the image number that it finds is looked up. Where that image lies the phantom knows.
"""

from __future__ import annotations

from collections.abc import Iterator

from hilum.cohort.joint_samples import JointSample, Language, PlacedText, Report
from hilum.phantom.make import Phantom
from hilum.phantom.narrator import narrate
from hilum.phantom.narrator_sentence import Narrative
from hilum.text.snippets import mine
from hilum.text.vocabulary import SLUGS

LANGUAGES: tuple[Language, ...] = ("en", "de")
HEADS = {"en": ("Findings", "Impression"), "de": ("Befund", "Beurteilung")}


def phantom_sample(phantom: Phantom, split: str, wordings: int = 4) -> JointSample:
    """One phantom. Patients are seeds: siblings share one.

    Args:
        wordings: reports in each language, told apart by their seed alone.
    """
    plan, reports, snippets = phantom.plan, list[Report](), dict[str, PlacedText]()
    for language in LANGUAGES:
        for k in range(wordings):
            told = narrate(phantom, language, seed=plan.seed * 1009 + k)
            findings, impression = HEADS[language]
            text = f"{findings}: {told.findings}\n{impression}: {told.impression}"
            reports.append(Report(text=text, language=language))
            snippets |= {snippet.text: snippet for snippet in placed(told, language)}
    return JointSample(
        key=plan.key, patient=f"phantom:{plan.seed}", split=split,
        labels={slug: 1 if v else 0 for slug, v in zip(SLUGS, phantom.labels, strict=True)},
        reports=tuple(reports), snippets=tuple(snippets.values()),
    )  # fmt: skip


def placed(told: Narrative, language: Language) -> Iterator[PlacedText]:
    """What the miner finds in a report, at the height of the image that it names."""
    heights = _heights(told)
    for snippet in mine(told.text):
        found = [heights[image] for image in snippet.images if image in heights]
        if found and snippet.text and not snippet.prior:
            yield PlacedText(text=snippet.text, z_mm=round(found[0], 3), language=language)


def _heights(told: Narrative) -> dict[int, float]:
    """Image number -> height of what lies there."""
    return {s.image: s.z_mm for s in told.sentences if s.image is not None and s.z_mm is not None}
