"""Phantoms as samples of scans and texts: several wordings of each report, in both languages, and what they
point at. Synthetic.

Sentences with a place come the way they come from a hospital: our own miner reads the report as it stands,
and the image number that it finds is looked up. Where that image lies the phantom knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hilum.cohort.joint_samples import JointSample, Language, PlacedText, Report
from hilum.geometry import Geometry
from hilum.phantom.make import Phantom
from hilum.phantom.narrator import narrate
from hilum.phantom.narrator_facts import numbers_from_top
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
    heights = image_heights(phantom.scan.geometry)
    for language in LANGUAGES:
        for k in range(wordings):
            told = narrate(phantom, language, seed=plan.seed * 1009 + k)
            findings, impression = HEADS[language]
            text = f"{findings}: {told.findings}\n{impression}: {told.impression}"
            reports.append(Report(text=text, language=language))
            snippets |= {snippet.text: snippet for snippet in placed(told.text, language, heights)}
    return JointSample(
        key=plan.key, patient=f"phantom:{plan.seed}", split=split,
        labels={slug: 1 if v else 0 for slug, v in zip(SLUGS, phantom.labels, strict=True)},
        reports=tuple(reports), snippets=tuple(snippets.values()),
    )  # fmt: skip


def placed(report: str, language: Language, heights: Mapping[int, float]) -> Iterator[PlacedText]:
    """What the miner finds in a report, at the height of the image that it names; of a range, its middle.

    Args:
        heights: of images, mm RAS+.
    """
    for snippet in mine(report):
        found = [heights[image] for image in snippet.images if image in heights]
        if found and snippet.text and not snippet.prior:
            yield PlacedText(text=snippet.text, z_mm=round(sum(found) / len(found), 3), language=language)


def image_heights(geometry: Geometry) -> dict[int, float]:
    """Image number -> height of that slice's middle, mm RAS+."""
    heights = geometry.heights_mm(range(geometry.shape[2]))
    return dict(zip(numbers_from_top(geometry), heights.tolist(), strict=True))
