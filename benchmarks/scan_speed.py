"""The selective scan on CPU cores: time and memory of the chunked scan beside a loop over tokens.

    python benchmarks/scan_speed.py [--threads 1] [--runs 5] [--at-once 1]

The first stage of Y-Mamba on 64 x 128 x 128 voxels: 131,072 tokens, 96 channels, 16 states, random float32
inputs of seed 0. Every case is a process of its own. Its first run is not timed: it gives the memory (peak of
the resident set above what stood before). Times are medians on the clock, and ratios are of these; processor
seconds of all threads stand beside. The loop's backward pass keeps its whole graph, so it is measured on
16,384 tokens. Writes benchmarks/results/scan_speed.json and the table of docs/exact.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from hilum.model import selective_scan_chunked as chunked
from hilum.model.selective_scan import selective_scan

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "scan_speed.json"
PAGE, MARKS = ROOT / "docs" / "exact.md", ("<!-- scan_speed.py -->", "<!-- end -->")
CHANNELS, STATES, LONG, SHORT = 96, 16, 131_072, 16_384
MB = 1e6


def scan_inputs(tokens: int, grad: bool) -> list[torch.Tensor]:
    """x, delta, a, b, c, d, z, bias, with steps and decays as a fresh Mamba layer has them."""
    g = torch.Generator().manual_seed(0)
    wide, narrow = (1, tokens, CHANNELS), (1, tokens, STATES)
    shapes = [wide, wide, (CHANNELS, STATES), narrow, narrow, (CHANNELS,), wide, (CHANNELS,)]
    values = [torch.randn(shape, generator=g) for shape in shapes]
    values[1].mul_(0.3)
    values[2] = -torch.arange(1.0, STATES + 1).repeat(CHANNELS, 1)
    values[7] = torch.log(torch.expm1(torch.full((CHANNELS,), 0.01)))
    return [value.requires_grad_(grad) for value in values]


def run_once(values: list[torch.Tensor], backend: str, backward: bool) -> None:
    """One scan, thrown away."""
    if backward:
        selective_scan(*values, backend=backend).sum().backward()
        for value in values:
            value.grad = None
    else:
        with torch.inference_mode():
            selective_scan(*values, backend=backend)


def resident(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(backend: str, tokens: int, backward: bool, runs: int, threads: int) -> dict[str, Any]:
    """One case, in this process."""
    torch.set_num_threads(threads)
    run_once(scan_inputs(512, backward), backend, backward)
    values = scan_inputs(tokens, backward)
    clock, processor = [], []
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # from here on the peak counts anew
    run_once(values, backend, backward)
    peak = resident("VmHWM") - before
    for _ in range(runs):
        start, used = time.perf_counter(), time.process_time()
        run_once(values, backend, backward)
        clock.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
    return {
        "backend": backend,
        "tokens": tokens,
        "pass": "forward and backward" if backward else "forward",
        "runs": runs,
        "clock_s": round(statistics.median(clock), 3),
        "processor_s": round(statistics.median(processor), 3),
        "processor_all_s": [round(s, 3) for s in processor],
        "peak_above_inputs_mb": round(peak / MB, 1),
    }


def in_a_process(case: dict[str, Any]) -> dict[str, Any]:
    """`measure` there."""
    env = {**os.environ, "OMP_NUM_THREADS": str(case["threads"])}
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def cases(runs: int, threads: int) -> list[dict[str, Any]]:
    """Every case, the loop with fewer runs."""
    found = []
    for backend, tokens, backward in (
        ("sequential", LONG, False), ("chunked", LONG, False), ("chunked", LONG, True),
        ("sequential", SHORT, True), ("chunked", SHORT, True),
    ):  # fmt: skip
        few = runs if backend == "chunked" else max(1, runs // 2)
        found.append(
            {"backend": backend, "tokens": tokens, "backward": backward, "runs": few, "threads": threads}
        )
    return found


def memory_plan() -> dict[str, float]:
    """What the forward pass cannot do without, and what an array of (time, state, channel) takes, MB."""
    inputs = sum(value.nbytes for value in scan_inputs(LONG, False))
    output, state = LONG * CHANNELS * 4, CHANNELS * STATES * 4
    whole = LONG * CHANNELS * STATES * 4
    return {
        "inputs_mb": round(inputs / MB, 1),
        "inputs_output_state_mb": round((inputs + output + state) / MB, 1),
        "time_state_channel_mb": round(whole / MB, 1),
    }


def ratio(rows: list[dict[str, Any]], tokens: int, name: str) -> float:
    """How many times faster than the loop."""
    found = {row["backend"]: row["clock_s"] for row in rows if (row["tokens"], row["pass"]) == (tokens, name)}
    return round(found["sequential"] / found["chunked"], 1)


def main(runs: int, threads: int, at_once: int) -> dict[str, Any]:
    """All cases and what follows from them."""
    with ThreadPoolExecutor(at_once) as pool:
        rows = list(pool.map(in_a_process, cases(runs, threads)))
    plan = memory_plan()
    forward = next(row for row in rows if row["backend"] == "chunked" and row["pass"] == "forward")
    peak = plan["inputs_mb"] + forward["peak_above_inputs_mb"]
    return {
        "rows": rows,
        "faster": {
            "forward, 131072 tokens": ratio(rows, LONG, "forward"),
            "forward and backward, 16384 tokens": ratio(rows, SHORT, "forward and backward"),
        },
        "memory": {
            **plan,
            "forward_peak_mb": round(peak, 1),
            "forward_peak_over_inputs_output_state": round(peak / plan["inputs_output_state_mb"], 2),
        },
        "block_bytes": chunked.BLOCK_BYTES,
        "steps": chunked.STEPS,
        "seed": 0,
        "threads": threads,
        "cases_at_once": at_once,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end",
        "torch": torch.__version__,
    }


def table(result: dict[str, Any]) -> str:
    """For docs/exact.md."""
    lines = [
        "| scan | tokens | pass | s | processor s | above the inputs, MB |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['backend']} | {row['tokens']:,} | {row['pass']} | {row['clock_s']:.2f} | "
        f"{row['processor_s']:.2f} | "
        f"{row['peak_above_inputs_mb']:,.0f} |"
        for row in result["rows"]
    ]
    return "\n".join(lines)


def write(result: dict[str, Any]) -> None:
    """The JSON, and the table between the page's marks."""
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1], 1)[1]
    PAGE.write_text(f"{before}{MARKS[0]}\n{table(result)}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=1, help="cases side by side; 1 for figures to trust")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(measure(**json.loads(given.case))))
    else:
        found = main(given.runs, given.threads, given.at_once)
        write(found)
        print(json.dumps(found, indent=2))
