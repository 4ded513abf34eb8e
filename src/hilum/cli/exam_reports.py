"""`hilum exam --suite report`: the part of `hilum exam` about written reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def run_reports(reports: Path, truth: Path, *, with_radgraph: bool, quiet: bool) -> dict[str, Any]:
    """The suite's figures, JSON-ready, with `text` for people."""
    from hilum.cli.common import progress
    from hilum.exam.report_suite import as_text, examine_reports, read_cases

    cases = read_cases(reports, truth)
    with progress("comparing words", len(cases.names), quiet) as tell:
        result = examine_reports(cases, with_radgraph=with_radgraph, progress=tell)
    return {**result.as_dict(), "text": as_text(result)}
