"""Where is this sentence, on the public scans that come with a tumour mask: errors in mm.

    python benchmarks/locate_samples.py [--model radfinder-nano] [--pictures DIR]

The masks were drawn by people (docs/samples.md). Asked in English and German, in words that a report would
use; beside it the middle of the scan. A handful of scans is an anecdote, not a figure of a population.

Writes benchmarks/results/locate_samples.json.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np

from hilum.cli.common import progress
from hilum.io.atomic import atomic_write
from hilum.read.encoder import LoadedEncoder, load
from hilum.read.joint import locate, put_in_space
from hilum.read.locate import LocatedAll, answer_of
from hilum.read.samples import load_sample
from hilum.show.located import located_picture

ASKED = {
    "lidc-idri-0001": (
        "spiculated mass in the left lower lobe", "nodule in the left lower lobe",
        "Rundherd im linken Unterlappen",
    ),
    "lung1": ("nodule in the right upper lobe", "Rundherd im rechten Oberlappen"),
    "lung2": ("mass in the left lower lobe", "Raumforderung im linken Unterlappen"),
}  # fmt: skip
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="radfinder-nano")
    parser.add_argument("--pictures", type=Path)
    given = parser.parse_args()
    model, rows = load(given.model), list[dict[str, Any]]()
    for slug in ASKED:
        with progress(slug, quiet=False):
            rows += of_sample(model, slug, given.pictures)
    facts = {
        "model": {"name": model.card["name"], "sha256": model.card["sha256"]},
        "machine": platform.processor() or platform.machine(), "rows": rows,
        "mean_error_mm": round(float(np.mean([r["error_mm"] for r in rows])), 1),
        "mean_error_of_the_middle_mm": round(float(np.mean([r["middle_error_mm"] for r in rows])), 1),
    }  # fmt: skip
    with atomic_write(RESULTS / "locate_samples.json") as file:
        file.write((json.dumps(facts, indent=1) + "\n").encode())
    for row in rows:
        print(f"{row['sample']}: {row['sentence']!r} {row['z_mm']} mm, error {row['error_mm']} mm")


def of_sample(model: LoadedEncoder, slug: str, pictures: Path | None) -> list[dict[str, Any]]:
    """Every sentence about one scan."""
    sample = load_sample(slug)
    volume, mask = sample.volume, sample.truth["lung_nodule"]
    heights = volume.geometry.to_mm(np.argwhere(mask))[:, 2]
    truth, low, high = float(heights.mean()), float(heights.min()), float(heights.max())
    corners = volume.geometry.corners_mm()[:, 2]
    space = put_in_space(model, volume)
    found = locate(model, space, ASKED[slug])
    if pictures is not None:
        answers = tuple(answer_of(t, f, volume) for t, f in zip(ASKED[slug], found, strict=True))
        told = LocatedAll(answers, tuple(map(float, space.depth_mm)), {}, volume)
        located_picture(told).save(pictures / f"{slug}.png")
    return [
        {
            "sample": slug, "sentence": text,
            "z_mm": round(one.z_mm, 1), "spread_mm": round(one.spread_mm, 1),
            "truth_mm": round(truth, 1), "extent_mm": [round(low, 1), round(high, 1)],
            "error_mm": round(abs(one.z_mm - truth), 1), "within_lesion": bool(low <= one.z_mm <= high),
            "middle_error_mm": round(abs(float(corners.min() + corners.max()) / 2 - truth), 1),
        }
        for text, one in zip(ASKED[slug], found, strict=True)
    ]  # fmt: skip


if __name__ == "__main__":
    main()
