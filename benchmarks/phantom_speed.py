"""How many healthy a minute: build and scan, at 2 mm and at 1 mm.

Usage: python benchmarks/phantom_speed.py [--device cpu|cuda] [--threads 1] [--repeat 3]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

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
    """Prints one line per voxel size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for work_mm, spacing_mm in ((2.0, (3.0, 3.0, 3.0)), (1.0, (0.8, 0.8, 2.0))):
        timed(4.0, spacing_mm, args.device, 0)
        rows = [timed(work_mm, spacing_mm, args.device, s + 1) for s in range(args.repeat)]
        build, look = (statistics.median(column) for column in zip(*rows, strict=True))
        rate = 60.0 / (build + look)
        print(f"{work_mm:.0f} mm, {args.device}: build {build:.2f} s, scan {look:.2f} s, {rate:.1f} a minute")


if __name__ == "__main__":
    main()
