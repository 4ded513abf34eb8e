"""A report that a language model writes from a feature grid, each sentence checked against the reading."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import torch

from hilum.read.checked import CheckedText, check_text
from hilum.read.reading import Reading
from hilum.tensors import FeatureGrid
from hilum.text.report_prompt import ReportTokens, report_prompt, report_requests
from hilum.text.vocabulary import SLUGS


@runtime_checkable
class Writes(Protocol):
    """`model.report_writer.ReportWriter` is one."""

    def write(self, features: FeatureGrid, ids: list[int], end_id: int, max_new: int = 512) -> list[int]:
        """The ids of a report."""
        ...


def write_report(
    writer: Writes,
    tokens: ReportTokens,
    features: FeatureGrid,
    reading: Reading,
    *,
    language: Literal["en", "de"] = "en",
    max_new: int = 512,
) -> CheckedText:
    """Ask for the report with the reading's own findings as frontend predictions, decode greedily, check.

    Args:
        features: [1, C, U, V, W], as the writer was trained on.
    """
    present = {finding.slug: finding.present for finding in reading.findings}
    prompt = report_prompt(report_requests(language)[0], [int(present[slug]) for slug in SLUGS])
    with torch.inference_mode():
        told = writer.write(features, tokens.ask(prompt).ids, tokens.end_id, max_new)
    organ_ml = {organ.name: organ.volume_ml for organ in reading.organs}
    return check_text(tokens.decode(told), reading.findings, organ_ml, language)
