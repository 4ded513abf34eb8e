"""Phantoms without findings a second: build and scan, at 2 mm and at 1 mm.

    python benchmarks/phantom_speed.py [--device cpu|cuda] [--threads 1] [--repeat 3]

Medians. Writes benchmarks/results/phantom_speed.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from read_lidc import RESULTS, hardware

from hilum.phantom.anatomy import build_scene
from hilum.phantom.plan import Patient, PhantomPlan, Scanner
from hilum.phantom.scanner import scan


def timed(
    work_mm: float, spacing_mm: tuple[float, float, float], device: str, seed: int
) -> tuple[float, float]:
    """Seconds to build and to scan one body."""
    plan = PhantomPlan(
        f"speed-{seed}", seed, Patient(shape_seed=seed), scanner=Scanner(spacing_mm=spacing_mm, seed=seed)
    )
    start = time.perf_counter()
    scene = build_scene(plan, work_mm=work_mm, device=device)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    middle = time.perf_counter()
    scan(scene)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return middle - start, time.perf_counter() - middle


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = []
    for work_mm, spacing_mm in ((2.0, (3.0, 3.0, 3.0)), (1.0, (0.8, 0.8, 2.0))):
        timed(4.0, spacing_mm, options.device, 0)
        rows = [timed(work_mm, spacing_mm, options.device, s + 1) for s in range(options.repeat)]
        build_s, scan_s = (statistics.median(column) for column in zip(*rows, strict=True))
        seconds = {"build_s": round(build_s, 2), "scan_s": round(scan_s, 2)}
        rate = round(1 / (build_s + scan_s), 3)
        sizes.append({"work_mm": work_mm, "spacing_mm": spacing_mm, **seconds, "volumes_per_second": rate})
    counts = f"--device {options.device} --threads {options.threads} --repeat {options.repeat}"
    result = {
        "what": "synthetic phantoms without findings, built and scanned, one after the other",
        "command": f"python benchmarks/phantom_speed.py {counts}",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "torch": torch.__version__,
        "sizes": sizes,
    }
    text = json.dumps(result, indent=1) + "\n"
    (RESULTS / "phantom_speed.json").write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
