"""Scans that look alike in one lung: an embedding of that lung alone beside that of the whole scan.

    python benchmarks/region_search.py [--model radfinder-nano] [--count 80] [--workers 2] [--smoke]

SYNTHETIC phantoms that no model has seen. Of each lung of each phantom the truth knows which findings of the
lungs it has. Asked with a lung that has any, each way ranks the same lung of all other phantoms; measured is
how much the findings of the five nearest are those that were asked with (intersection over union, mean), and
the average over all, which is what chance finds. Intervals are over patients.

Writes benchmarks/results/region_search.json (with --smoke nothing).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hilum.cli.common import counted_bars
from hilum.cohort.phantom_set import phantom_volume
from hilum.errors import InputRefused
from hilum.exam.bootstrap import interval, listed, mean_draws, patient_draws
from hilum.io.atomic import atomic_write
from hilum.phantom.draw import draw_plan
from hilum.phantom.make import make_phantom
from hilum.phantom.narrator_facts import lesion_facts
from hilum.read.embed import REPORT, embed_scan
from hilum.read.encoder import LoadedEncoder, load
from hilum.read.regions import LUNGS, Region
from hilum.text.vocabulary import FINDINGS

FIRST_SEED, NEAREST = 23_000_000, 5
SPACING_MM, WORK_MM = (1.6, 1.6, 2.5), 2.5
IN_LUNGS = {f.slug for f in FINDINGS if f.organ == "lung"}
RESULTS = Path(__file__).parent / "results"


@cache
def opened(name: str) -> LoadedEncoder:
    """One per process."""
    return load(name)


def read(job: tuple[str, int]) -> dict[str, Any] | None:
    """One phantom: its embeddings, and the findings of each lung; None where a lung is not shown."""
    import torch

    torch.set_num_threads(1)
    name, seed = job
    model = opened(name)
    phantom = make_phantom(draw_plan(seed, spacing_mm=SPACING_MM), work_mm=WORK_MM)
    volume = phantom_volume(phantom)
    told = {f.slug: f.side for f in lesion_facts(phantom).values() if f.slug in IN_LUNGS}
    sides = {lung: {s for s, side in told.items() if side in (lung.split()[0], "both", "")} for lung in LUNGS}
    try:
        rows = {lung: embed_scan(model, volume, Region(lung))[REPORT] for lung in LUNGS}
    except InputRefused:
        return None
    return {"seed": seed, "whole": embed_scan(model, volume)[REPORT], "lungs": rows, "findings": sides}


def alike(one: set[str], other: set[str]) -> float:
    """Intersection over union."""
    return len(one & other) / len(one | other)


def measured(scans: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Way -> (scan, how alike the nearest are) of every lung that is asked with."""
    found: dict[str, list[tuple[int, float]]] = {"the lung alone": [], "the whole scan": [], "chance": []}
    whole = np.stack([scan["whole"] for scan in scans])
    for lung in LUNGS:
        alone = np.stack([scan["lungs"][lung] for scan in scans])
        told = [scan["findings"][lung] for scan in scans]
        for n, own in enumerate(told):
            if not own:
                continue
            shares = np.array([alike(own, other) for other in told])
            others = np.arange(len(scans)) != n
            found["chance"].append((n, float(shares[others].mean())))
            for way, rows in (("the lung alone", alone), ("the whole scan", whole)):
                score = np.where(others, rows @ rows[n], -np.inf)
                found[way].append((n, float(shares[np.argsort(-score)[:NEAREST]].mean())))
    return found


def main() -> None:
    """Everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="radfinder-nano")
    parser.add_argument("--count", type=int, default=80)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    jobs = [(given.model, FIRST_SEED + n) for n in range(8 if given.smoke else given.count)]
    with counted_bars() as bars, ProcessPoolExecutor(
        given.workers, multiprocessing.get_context("spawn")
    ) as pool:  # fmt: skip
        row, scans = bars.add_task("phantoms", total=len(jobs)), []
        for scan in pool.map(read, jobs):
            scans += [] if scan is None else [scan]
            bars.advance(row)
    found = measured(scans)
    draws = patient_draws([scan["seed"] for scan in scans], 1000, 0)
    of_scan = np.array([n for n, _ in found["chance"]])
    values = {way: np.array([share for _, share in rows]) for way, rows in found.items()}
    drawn = {way: mean_draws(own, draws[:, of_scan]) for way, own in values.items()}
    rows = {way: listed(interval(float(own.mean()), drawn[way])) for way, own in values.items()}
    alone, whole = "the lung alone", "the whole scan"
    better = interval(float((values[alone] - values[whole]).mean()), drawn[alone] - drawn[whole])
    model = opened(given.model).card
    facts = {
        "synthetic": True, "model": {"name": model["name"], "sha256": model["sha256"]},
        "scans": len(scans), "not_shown": len(jobs) - len(scans), "asked": len(of_scan), "nearest": NEAREST,
        "iou_of_findings": rows, "alone_less_whole": listed(better),
        "first_seed": FIRST_SEED, "machine": platform.processor() or platform.machine(),
    }  # fmt: skip
    print(json.dumps(facts, indent=1))
    if not given.smoke:
        with atomic_write(RESULTS / "region_search.json") as file:
            file.write((json.dumps(facts, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
