"""A model that lies: it says yes wherever the name of a finding stands in a report. How much of it counts?

    python benchmarks/structure_quotes.py LABELLED.csv [--out FILE.json]

The table has a column with the report and one column of 0 or 1 per finding, named as in CT-RATE. What is
measured is the check of quotes alone: a "yes" whose quote is denied by the words around it is unknown.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

from hilum.io.report_table import read_reports
from hilum.text.questions import load_bank
from hilum.text.structure import read_reply
from hilum.text.vocabulary import FINDINGS

WORDS = {
    "cardiomegaly": "cardiomegaly",
    "pericardial_effusion": "pericardial effusion",
    "hiatal_hernia": "hiatal hernia",
    "lymphadenopathy": "lymphadenopathy",
    "emphysema": "emphysema",
    "atelectasis": "atelectasis",
    "lung_nodule": "nodule",
    "pleural_effusion": "pleural effusion",
    "consolidation": "consolidation",
    "bronchiectasis": "bronchiectasis",
}


def lies(path: Path) -> Iterator[tuple[str, bool, bool]]:
    """For every lie: the finding, whether it is really there, whether the answer counted."""
    bank = load_bank()
    columns = {f.slug: f.name for f in FINDINGS}
    texts = {row.row: row.text for row in read_reports(path)}
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 1):
            text = texts[number]
            said = [
                {"id": slug, "answer": "yes", "quote": word}
                for slug, word in WORDS.items()
                if re.search(rf"\b{word}\b", text, re.IGNORECASE)
            ]
            counted = read_reply(bank.items, text, json.dumps({"answers": said})).answers
            for answer in said:
                slug = answer["id"]
                yield slug, row[columns[slug]] == "1", slug in counted


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = list(lies(options.table))
    table = {}
    for slug in [*WORDS, "all"]:
        mine = [(there, counted) for name, there, counted in found if slug in (name, "all")]
        table[slug] = {
            "wrong": sum(not there for there, _ in mine),
            "wrong_made_unknown": sum(not there and not counted for there, counted in mine),
            "right": sum(there for there, _ in mine),
            "right_made_unknown": sum(there and not counted for there, counted in mine),
        }
        print(f"{slug:24s}", *(f"{name} {number:5d}" for name, number in table[slug].items()))
    if options.out:
        options.out.write_text(json.dumps({"table": options.table.name, "findings": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
