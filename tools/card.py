"""The model card, made from what a model says about itself and from the exam's JSON.

python tools/card.py phantom-small            write src/hilum/weights/phantom-small/CARD.md
python tools/card.py phantom-small --check    exit 1 if the card is out of date
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "src" / "hilum" / "weights"
RESULTS = ROOT / "benchmarks" / "results"
MADE = "<!-- Made by tools/card.py from card.json and benchmarks/results; change those instead. -->"

HEAD = """# {name}

{made}

**Trained on synthetic phantoms only. Research and software testing. Not a medical device, not for diagnosis,
not for any decision about a person.** It has never seen a patient; a probability on a real scan is an
extrapolation.

| what | |
|---|---|
| network | preset `{preset}`: {about} |
| trained on | {trained_on} |
| training | {training_minutes} minutes, CPU threads: {threads} |{organs}{convolutions}
| thresholds, calibration | {validated_on}; chosen there, nowhere else |
| weights | `model.safetensors`, float16, sha256 `{sha256}` |
| licence | {licence} |

{commands}
"""

ABOUT = {
    "phantom-small": "Y-net, EXACT in small (convolutions where the paper has Mamba layers), "
    "3,721,252 parameters",
    "phantom-small-cam": "globally pooled classifier with class-activation maps, 3,740,922 parameters; "
    "the baseline",
}

LIMITS = """
## What it must not be used for

- Reading a patient's scan for care, screening, triage or second opinion.
- Findings outside the 18; anything but a chest CT of an adult.
- Comparing its figures with published ones: phantoms are easier than people, and the figures below on real
  scans rest on a handful of public scans.
"""


def card(name: str) -> str:
    """The whole page."""
    facts = json.loads((WEIGHTS / name / "card.json").read_text(encoding="utf-8"))
    told = {
        "made": MADE,
        "about": ABOUT[name],
        "threads": facts["recipe"]["threads"],
        "commands": _commands(facts),
        "organs": _row("organs", facts),
        "convolutions": _row("convolutions", facts),
    }
    parts = [HEAD.format(**(facts | told)), LIMITS]
    phantom, samples = RESULTS / "exam-phantom.json", RESULTS / "exam-samples.json"
    if phantom.exists():
        parts.append(phantom_section(json.loads(phantom.read_text(encoding="utf-8"))))
    if samples.exists() and name == "phantom-small":
        parts.append(samples_section(json.loads(samples.read_text(encoding="utf-8"))))
    return "\n".join(parts)


def _row(name: str, facts: dict[str, Any]) -> str:
    return f"\n| {name} | {facts[name]} |" if name in facts else ""


def _commands(facts: dict[str, Any]) -> str:
    name, begun = facts["name"], facts["recipe"]["optim"]["organs_from"]
    if begun is None:
        made = f"`hilum train recipes/{name}.toml` and `hilum exam runs/{name} --suite phantom --choose`"
        return f"Made by {made}."
    made = f"`python benchmarks/exact_compare.py --minutes 40 --jobs 2 --organs-from {begun}`"
    return f"Made by {made}, which chooses thresholds and calibration too (`docs/first-model.md`, 10)."


def phantom_section(result: dict[str, Any]) -> str:
    """Unseen phantoms, the baseline beside the model."""
    tables = result["tables"]
    command = "hilum exam phantom-small --suite phantom --out benchmarks/results/exam-phantom.json"
    command += ' --baseline ""' if len(tables) == 1 else ""
    first, last = result["seeds"]
    lines = [
        "## On unseen synthetic phantoms",
        "",
        f"`{command}`: {tables[0]['cases']} phantoms, seeds {first} to {last}, default degrees, "
        "all models in one run. Intervals: 95 % bootstrap over phantoms, 1000 draws, seed 0. Dice at the "
        "voxel threshold chosen on "
        "validation; peak: the map's highest voxel touches the lesion. ml: median volume of the truth.",
        "",
        "| measure | " + " | ".join(t["model"] for t in tables) + " |",
        "|---|" + "---|" * len(tables),
    ]
    for measure in tables[0]["summary"]:
        values = " | ".join("{:.3f} [{:.3f}, {:.3f}]".format(*t["summary"][measure]) for t in tables)
        lines.append(f"| {measure.replace('_', ' ')} | {values} |")
    organs = ", ".join(f"{o} {v:.3f}" for o, v in tables[0]["organs"].items())
    lines += ["", f"Organ Dice of {tables[0]['model']}: {organs}.", ""]
    head = " | ".join("AUROC | Dice | peak" for _ in tables)
    lines += [f"| finding | n | ml | {head} |", "|---|---|---|" + "---|---|---|" * len(tables)]
    for rows in zip(*(t["findings"] for t in tables), strict=True):
        cells = " | ".join(f"{r['auroc']:.2f} | {r['dice']:.2f} | {r['peak_inside']:.2f}" for r in rows)
        name, count, ml = (rows[0][key] for key in ("name", "positives", "median_ml"))
        lines.append(f"| {name} | {count} | {ml:.1f} | {cells} |")
    return "\n".join(lines) + "\n"


def samples_section(result: dict[str, Any]) -> str:
    """Public scans of people, none used in training."""
    command = "hilum exam phantom-small --suite samples --out benchmarks/results/exam-samples.json"
    lines = [
        "## On public scans of people",
        "",
        f"`{command}`: none was used in training or validation. Sources, licences and citations: "
        "`docs/samples.md`.",
        "",
        "| scan | target | truth by | Dice | peak inside | peak to lesion, mm |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        dice = "" if row["dice"] is None else f"{row['dice']:.3f}"
        inside = "" if row["peak_inside"] is None else ("yes" if row["peak_inside"] else "no")
        away = "" if row["peak_distance_mm"] is None else f"{row['peak_distance_mm']:.0f}"
        lines.append(f"| {row['sample']} | {row['target']} | {row['truth']} | {dice} | {inside} | {away} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(ABOUT))
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    path, text = WEIGHTS / options.name / "CARD.md", card(options.name)
    if options.check:
        sys.exit(path.read_text(encoding="utf-8") != text)
    path.write_text(text, encoding="utf-8")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
