"""The adapters by name, and the one that fits a folder."""

from __future__ import annotations

import difflib
from importlib import import_module
from pathlib import Path

from hilum.cohort.sources.base import Source
from hilum.errors import ContainerError, RunError, UsageError

MODULES = {
    "phantom": "phantom",
    "rexgroundingct": "rexgrounding",
    "radgenome": "radgenome",
    "ct-rate": "ct_rate",
    "rad-chestct": "rad_chestct",
    "merlin": "merlin",
    "inspect": "inspect",
    "mosmed": "mosmed",
    "covid-19-ct-seg": "covid_seg",
    "lidc-idri": "lidc",
    "nsclc-radiomics": "nsclc",
    "abdomenatlas": "abdomen_atlas",
    "csv": "table",
    "dicom": "dicom_tree",
}
"""Name -> module below `hilum.cohort.sources`, in the order of looking: the most particular layout first."""


def source_named(name: str) -> Source:
    """One adapter.

    Raises:
        UsageError: `SOURCE_UNKNOWN`, with the nearest name.
    """
    if name not in MODULES:
        near = difflib.get_close_matches(name, MODULES, n=1)
        raise UsageError(
            "SOURCE_UNKNOWN", "a source is one that Hilum knows", expected=", ".join(sorted(MODULES)),
            got=name, hint=f"Did you mean {near[0]}?" if near else None,
        )  # fmt: skip
    found = getattr(import_module(f"hilum.cohort.sources.{MODULES[name]}"), "SOURCE", None)
    if not isinstance(found, Source):
        raise RunError("INTERNAL", "an adapter's module holds its source", got=type(found).__name__)
    return found


def source_for(root: Path, name: str | None = None) -> Source:
    """The adapter by name, or the first that knows the layout of `root`.

    Raises:
        UsageError: no adapter has that name (`SOURCE_UNKNOWN`).
        ContainerError: `root` does not exist (`NOT_FOUND`), or its layout is none that is known
            (`SOURCE_UNKNOWN`).
    """
    if not root.exists():
        raise ContainerError("NOT_FOUND", "the data set exists", got="no such folder", path=root)
    if name is not None:
        return source_named(name)
    for known in MODULES:
        source = source_named(known)
        if source.detect(root):
            return source
    raise ContainerError(
        "SOURCE_UNKNOWN", "a data set has a layout that Hilum knows", expected=", ".join(sorted(MODULES)),
        got="none of them", path=root,
        hint="Name it with --source, or write a table: path, patient and what you know (docs/cohorts.md).",
    )  # fmt: skip
