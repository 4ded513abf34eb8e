"""Options of `hilum exam` that belong to the suites diagnosis and localize."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

CallT = TypeVar("CallT", bound=Callable[..., Any])

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--convention",
        {
            "type": click.Choice(["default", "paper", "fvlm"]),
            "default": "default",
            "show_default": True,
            "help": "diagnosis, localize: whose thresholds and F1; paper (EXACT) and fvlm fit on test.",
        },
    ),
    (
        "--rule",
        {
            "type": click.Choice(["youden", "corner"]),
            "default": "youden",
            "show_default": True,
            "help": "diagnosis: which threshold of validation.",
        },
    ),
    (
        "--label-set",
        {
            "type": click.Choice(["ct-rate", "rad-chestct", "fvlm"]),
            "help": "diagnosis: 18 findings, RAD-ChestCT's 16, or the 16 of fVLM's tables; else by data set.",
        },
    ),
    (
        "--calcification",
        {
            "type": click.Choice(["arterial", "either"]),
            "default": "arterial",
            "show_default": True,
            "help": "diagnosis: RAD-ChestCT's one calcification is scored with one or the larger of two.",
        },
    ),
    ("--predictions", {"type": FILE, "help": "diagnosis: a table of probabilities instead of MODEL."}),
    (
        "--validation-part",
        {"default": "val", "show_default": True, "help": "diagnosis, localize: the part that decides."},
    ),
    (
        "--test-part",
        {"default": "test", "show_default": True, "help": "diagnosis, localize: the part that is measured."},
    ),
    (
        "--features",
        {
            "type": click.Path(path_type=Path, exists=True, file_okay=False),
            "multiple": True,
            "help": "joint: kept windows (hilum features), once for all models or once for each.",
        },
    ),
    ("--source", {"help": "localize: the data set's layout, else it is recognised."}),
    (
        "--maps",
        {
            "type": click.Path(path_type=Path, exists=True, file_okay=False),
            "help": "localize: maps instead of MODEL, DIR/SCAN/FINDING.nii.gz.",
        },
    ),
    ("--chosen", {"type": FILE, "help": "localize: an earlier localize.json whose cuts hold."}),
    (
        "--join",
        {"type": click.Choice(["sum", "max"]), "help": "localize: of the findings' maps. [default: sum]"},
    ),
    (
        "--grid",
        {
            "type": click.Choice(["scan", "published"]),
            "help": "localize: the scan's own, or EXACT's 64 x 128 x 128. [default: scan]",
        },
    ),
    (
        "--cut",
        {
            "type": click.Choice(["abs", "rel", "both"]),
            "default": "both",
            "show_default": True,
            "help": "localize: thresholds that validation may choose from.",
        },
    ),
    (
        "--tolerance-mm",
        {
            "type": click.FloatRange(0),
            "default": 10.0,
            "show_default": True,
            "help": "localize: how far a peak may lie from its lesion.",
        },
    ),
)


def suite_options(command: CallT) -> CallT:
    """Adds them; the command receives all of them in one dict, `more`."""

    names = [flag.lstrip("-").replace("-", "_") for flag, _ in OPTIONS]

    @functools.wraps(command)
    def call(*args: Any, **options: Any) -> Any:
        return command(*args, more={name: options.pop(name) for name in names}, **options)

    decorated: Any = call
    for flag, settings in reversed(OPTIONS):
        decorated = click.option(flag, **settings)(decorated)
    return decorated
