"""How much of what a reading holds arrives at its reader: labels out of the narrator's text, by our labeller,
against the labels it was given. Synthetic: label sets are those of phantom plans, the rest is drawn.

    python benchmarks/narrator_efficacy.py [--readings 400] [--seed 0] [--out FILE.json]

Both languages; intervals by resampling readings. No CT is made: a plan says which findings a phantom has.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np

from hilum.exam.report_efficacy import efficacy, stated_in
from hilum.exam.report_readings import plan_reading
from hilum.read.narrate import narrate
from hilum.read.reading import NOTICE
from hilum.text.labels import label_report
from hilum.text.vocabulary import SLUGS

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readings", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "narrator_efficacy.json"
    )
    given = parser.parse_args()
    seeds = range(7_000_000 + given.seed, 7_000_000 + given.seed + given.readings)
    readings = [plan_reading(seed) for seed in seeds]
    truth = np.array([[f.present for f in findings] for findings, _, _ in readings])
    found: dict[str, Any] = {"command": "python benchmarks/narrator_efficacy.py", "synthetic": True}
    found |= {"readings": len(readings), "seeds": [seeds.start, seeds.stop - 1], "draws": given.draws}
    found |= {
        "positives": int(truth.sum()),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    for language in ("en", "de"):
        texts = [narrate(*reading, NOTICE, language).text for reading in readings]
        labels = [label_report(text) for text in texts]
        score = efficacy(stated_in(labels), truth.astype(np.float64), list(seeds), draws=given.draws)
        hedged = sum(label.status == "doubted" for told in labels for label in told.values())
        table = score.as_dict() | {"hedged": hedged}
        found[language] = table
        low = [slug for slug in SLUGS if (table["findings"][slug]["f1"][0] or 0) < 0.95]
        print(f"{language}: micro F1 {table['micro']['f1']}, macro F1 {table['macro']['f1']}")
        print(f"    below 0.95: {', '.join(low) or 'none'}")
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
