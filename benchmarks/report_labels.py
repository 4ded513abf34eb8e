"""Labels of reports: precision, recall and F1 of the rules, against people and against known truth.

    python benchmarks/report_labels.py REPORTS.csv [--narrated 400] [--write-page]

REPORTS.csv has `report_text` and CT-RATE's 18 columns of 0 and 1; it is not part of the repository. Its rows
are split in two by a hash of their name: the development half, whose texts were read while the rules were
made, and the unseen half, which was only ever counted. (b) lists of sentences written by hand,
tests/unit/data. (c) reports of the phantom narrator, English and German, whose truth is known. Writes
benchmarks/results/report_labels.json and, with --write-page, the tables of docs/report_labels.md.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from read_lidc import RESULTS, hardware
from snippets import invented

from hilum.phantom.narrator import narrate_facts
from hilum.phantom.narrator_words import LANGUAGES
from hilum.text.labels import FindingLabel, label_report
from hilum.text.vocabulary import FINDINGS

ROOT = Path(__file__).resolve().parents[1]
LISTS = {"de": "German list", "en": "English list", "second": "second list", "third": "third list"}
PAGE = ROOT / "docs" / "report_labels.md"
START, END = "<!-- tables: made by benchmarks/report_labels.py --write-page -->", "<!-- end of tables -->"
ROUNDS, SEED = 2000, 20
Half = list[tuple[str, np.ndarray]]


def halves(path: Path) -> dict[str, Half]:
    """The two halves: text and 18 x 0 or 1."""
    found: dict[str, Half] = {"development": [], "unseen": []}
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            even = hashlib.sha256(row["AccessionNo"].encode()).digest()[0] % 2 == 0
            marks = np.array([row[f.name] == "1" for f in FINDINGS])
            found["development" if even else "unseen"].append((row["report_text"], marks))
    return found


def f1_of(truth: np.ndarray, said: np.ndarray) -> np.ndarray:
    """F1 per label; arrays [..., N, 18]."""
    both = (truth & said).sum(-2)
    return 2 * both / np.maximum(truth.sum(-2) + said.sum(-2), 1)


def interval(truth: np.ndarray, said: np.ndarray) -> tuple[list[float], np.ndarray]:
    """95 % of macro-F1, and of each label's F1 [18, 2], over resampled reports (one patient each)."""
    rng = np.random.default_rng(SEED)
    drawn = [f1_of(truth[pick], said[pick]) for pick in rng.integers(0, len(truth), (ROUNDS, len(truth)))]
    ends = np.percentile(np.array(drawn), [2.5, 97.5], axis=0).T
    return [float(x) for x in np.percentile(np.mean(drawn, axis=1), [2.5, 97.5])], ends


def judge(half: Half) -> dict[str, Any]:
    """Everything about one half."""
    start = time.process_time()
    labels = [label_report(text) for text, _ in half]
    rate = len(half) / (time.process_time() - start)
    truth = np.array([marks for _, marks in half])
    said = np.array([[label.label == "present" for label in told.values()] for told in labels])
    macro, ends = interval(truth, said)
    rows = {}
    for place, finding in enumerate(FINDINGS):
        marked, found = int(truth[:, place].sum()), int(said[:, place].sum())
        hits = int((truth[:, place] & said[:, place]).sum())
        rows[finding.name] = {
            "marked": marked, "said": found, "precision": round(hits / max(found, 1), 4),
            "recall": round(hits / max(marked, 1), 4), "f1": round(float(f1_of(truth, said)[place]), 4),
            "f1_95": [round(float(x), 4) for x in ends[place]],
        }  # fmt: skip
    scores = [row["f1"] for row in rows.values()]
    return {
        "reports": len(half), "macro_f1": round(float(np.mean(f1_of(truth, said))), 4),
        "macro_f1_95": [round(x, 4) for x in macro], "lowest_f1": min(scores),
        "lowest": min(rows, key=lambda name: rows[name]["f1"]),
        "reports_per_s": round(rate), "labels": rows, "by_status": by_status(labels, truth),
        "brier": round(brier(labels, truth), 4),
    }  # fmt: skip


def by_status(labels: list[dict[str, FindingLabel]], truth: np.ndarray) -> dict[str, list[float]]:
    """How often the finding is marked, by what the deciding statement does: answers, share marked."""
    counted: Counter[str] = Counter()
    marked: Counter[str] = Counter()
    for told, marks in zip(labels, truth, strict=True):
        for label, mark in zip(told.values(), marks, strict=True):
            counted[label.status or "nothing"] += 1
            marked[label.status or "nothing"] += int(mark)
    return {name: [count, round(marked[name] / count, 4)] for name, count in counted.most_common()}


def brier(labels: list[dict[str, FindingLabel]], truth: np.ndarray) -> float:
    """Mean squared error of the probabilities."""
    given = np.array([[label.probability for label in told.values()] for told in labels])
    return float(((given - truth) ** 2).mean())


def lists() -> dict[str, Any]:
    """The lists: of what they name, what is right; of findings said to be present, what is."""
    told = {}
    for name in LISTS:
        path = ROOT / "tests" / "unit" / "data" / f"labels_{name}.json"
        cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
        count: Counter[str] = Counter(texts=len(cases))
        for case in cases:
            for slug, label in label_report(case["text"]).items():
                _count(count, case["labels"].get(slug, "unknown"), label.label, slug in case["labels"])
        told[name] = _shares(count)
    return told


def _count(count: Counter[str], wanted: str, got: str, named: bool) -> None:
    count["named"] += named
    count["right"] += named and wanted == got
    count["present"] += wanted == "present"
    count["found"] += got == "present"
    count["hits"] += wanted == got == "present"
    count["denied"] += wanted == "absent"
    count["denials"] += wanted == got == "absent"


def _shares(count: Counter[str]) -> dict[str, Any]:
    return dict(count) | {
        "precision": round(count["hits"] / max(count["found"], 1), 4),
        "recall": round(count["hits"] / max(count["present"], 1), 4),
        "recall_of_denials": round(count["denials"] / max(count["denied"], 1), 4),
    }


def narrated(reports: int) -> dict[str, Any]:
    """(c) Reports about drawn lesions; what a sentence says with doubt is left out."""
    counts = {language: Counter(texts=reports) for language in LANGUAGES}
    for seed in range(reports):
        plan, facts = invented(seed, list(range(200, 0, -1)))
        for language, count in counts.items():
            story = narrate_facts(facts, plan.scanner, language, series=2, seed=seed)
            wanted: dict[str, str] = {}
            for sentence in story.sentences:
                for slug in (sentence.slug, *sentence.also) if sentence.slug else ():
                    if (
                        sentence.status in ("present", "absent", "uncertain")
                        and wanted.get(slug) != "present"
                    ):
                        wanted[slug] = sentence.status
            for slug, label in label_report(story.text).items():
                if wanted.get(slug) != "uncertain":
                    _count(count, wanted.get(slug, "unknown"), label.label, slug in wanted)
    return {language: _shares(count) for language, count in counts.items()}


def tables(results: dict[str, Any]) -> str:
    """The page's tables."""
    dev, new = results["halves"]["development"], results["halves"]["unseen"]
    lines = [
        "| | reports | macro-F1 (95 %) | lowest label | reports/s, one core |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, half in results["halves"].items():
        low, high = half["macro_f1_95"]
        lines.append(
            f"| {name} half | {half['reports']} | **{half['macro_f1']:.3f}** ({low:.3f} to {high:.3f}) | "
            f"{half['lowest']}, {half['lowest_f1']:.3f} | {half['reports_per_s']} |"
        )
    lines += ["", "| finding | marked | precision | recall | F1 (95 %), unseen | F1, development |"]
    lines.append("|---|---|---|---|---|---|")
    for name, row in new["labels"].items():
        low, high = row["f1_95"]
        lines.append(
            f"| {name} | {row['marked']} | {row['precision']:.3f} | {row['recall']:.3f} | "
            f"{row['f1']:.3f} ({low:.2f} to {high:.2f}) | {dev['labels'][name]['f1']:.3f} |"
        )
    lines += [
        "",
        "| statement | answers, unseen | share marked | share marked, development |",
        "|---|---|---|---|",
    ]
    for name, (count, share) in new["by_status"].items():
        lines.append(f"| {name} | {count} | {share:.3f} | {dev['by_status'].get(name, [0, 0.0])[1]:.3f} |")
    lines += ["", "| text | texts | precision | recall | denials found |", "|---|---|---|---|---|"]
    groups = {LISTS[k]: v for k, v in results["lists"].items()}
    groups |= {f"narrator, {language}": row for language, row in results["narrated"].items()}
    for name, row in groups.items():
        shares = " | ".join(f"{row[key]:.3f}" for key in ("precision", "recall", "recall_of_denials"))
        lines.append(f"| {name} | {row['texts']} | {shares} |")
    return "\n".join(lines)


def write_page(results: dict[str, Any]) -> None:
    """Puts the tables between their marks in the page."""
    page = PAGE.read_text(encoding="utf-8")
    head, rest = page.split(START)
    PAGE.write_text(f"{head}{START}\n\n{tables(results)}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main() -> int:
    """Measures and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reports", type=Path)
    parser.add_argument("--narrated", type=int, default=400, metavar="N")
    parser.add_argument("--write-page", action="store_true", help="put the tables in docs/report_labels.md")
    given = parser.parse_args()
    results = {
        "hardware": hardware(),
        "halves": {name: judge(half) for name, half in halves(given.reports).items()},
        "lists": lists(),
        "narrated": narrated(given.narrated),
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False)
    (RESULTS / "report_labels.json").write_text(text + "\n", encoding="utf-8")
    print(tables(results))
    if given.write_page:
        write_page(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
