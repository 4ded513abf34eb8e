"""The diagnosis suite's tables, as plain text and as Markdown."""

from __future__ import annotations

import numpy as np

from hilum.exam.diagnosis import Diagnosis
from hilum.exam.diagnosis_measure import F1_OF, Column
from hilum.exam.frozen_table import INTERVAL, Table, piped, plain_table, shown
from hilum.text.vocabulary import FINDINGS, INDEX

SHORT = "{0.value:.3f}"


def as_text(result: Diagnosis) -> str:
    """For a terminal: per finding without intervals, the means with them."""
    parts = [_head(result), plain_table(*_per_finding(result, SHORT)), plain_table(*_means(result))]
    return "\n\n".join([*parts, *_notes(result)]) + "\n"


def as_markdown(result: Diagnosis) -> str:
    """The same with every interval."""
    parts = [_head(result), piped(*_means(result)), piped(*_per_finding(result, INTERVAL))]
    return "\n\n".join([*parts, *_notes(result)]) + "\n"


def _head(result: Diagnosis) -> str:
    facts = result.facts
    return (
        f"{facts['model']} on {facts['scans']} scans of {facts['patients']} patients "
        f"({facts['cohort']['source']}, {facts['part']}).\n{facts['convention_note']}\n"
        f"Thresholds: {facts['thresholds_from']}."
    )


def _per_finding(result: Diagnosis, how: str) -> Table:
    f1 = F1_OF[result.facts["convention"]]
    columns = ("auroc", "average_precision", f1, "accuracy", "sensitivity", "specificity")
    head = ["finding", "present", "AUROC", "AP", f1.replace("f1_", "F1 "), "acc", "sens", "spec"]
    body = [
        [FINDINGS[INDEX[c.slug]].name, _count(c), *(shown(c.values[name], how) for name in columns)]
        for c in result.figures.columns
    ]
    return "Per finding", head, body


def _count(column: Column) -> str:
    total = column.positives + column.negatives
    return f"{column.positives}/{total}" + (f" ({column.unknown} unknown)" if column.unknown else "")


def _means(result: Diagnosis) -> Table:
    measured = sum(not c.excluded for c in result.figures.columns)
    body = [[name.replace("_", " "), shown(value)] for name, value in result.figures.macro.items()]
    body.append(["ECE, calibrated, all findings pooled, 15 bins of equal width", shown(result.ece)])
    return f"Means over {measured} findings, 95 % intervals by patient", ["measure", "value"], body


def _notes(result: Diagnosis) -> list[str]:
    raw, told = result.calibration["raw"], result.calibration["calibrated"]
    notes = [
        f"Calibration ({result.calibration['kind']}): ECE {raw['ece']:.3f} raw, {told['ece']:.3f} calibrated "
        f"(a perfect model would show {told['ece_floor']:.3f}); equal mass {told['ece_equal_mass']:.3f}; "
        f"mean of findings {told['ece_mean_of_findings']:.3f}; Brier {raw['brier']:.3f} raw, "
        f"{told['brier']:.3f} calibrated."
    ]
    if result.excluded:
        named = ", ".join(f"{FINDINGS[INDEX[c.slug]].name} ({c.excluded})" for c in result.excluded)
        notes.append(f"In no mean: {named}.")
    if any(np.isnan(c.values["accuracy"].value) for c in result.figures.columns if not c.excluded):
        notes.append("Without a threshold from validation there is no F1 and no accuracy: see --choose.")
    if result.facts["unanswered"]:
        notes.append(f"{len(result.facts['unanswered'])} scans without an answer were left out.")
    return notes
