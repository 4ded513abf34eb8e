"""The selective scan on CPU cores: time and memory of our two scans beside a loop over tokens.

    python benchmarks/scan_speed.py [--threads 1] [--runs 5] [--at-once 1]

The first stage of Y-Mamba on 64 x 128 x 128 voxels: 131,072 tokens, 96 channels, 16 states, random float32
inputs of seed 0. Every case is a process of its own. Its first run is not timed: it gives the memory (peak of
the resident set above what stood before). Times are medians on the clock; processor seconds of all threads
stand beside. The loop's backward pass keeps its whole graph, so it is measured on 16,384 tokens.

How many times faster a scan is comes from processes in which the loop and the scans take turns: the median
over turns of loop / scan, in processor seconds, for on a busy machine the clock is kinder to the shorter of
two. In one of them the scan by Numba has two threads: there it is the loop's processor seconds / its clock.
The loop always has one thread, which suits its small operations best. What the first call by Numba takes is
measured on 64 tokens, with an empty cache and with what that left. Without Numba its rows are missing.
Writes benchmarks/results/scan_speed.json and the table of docs/exact.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hilum.model import selective_scan_chunked as chunked
from hilum.model.selective_scan import compiles, selective_scan

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "scan_speed.json"
PAGE, MARKS = ROOT / "docs" / "exact.md", ("<!-- scan_speed.py -->", "<!-- end -->")
CHANNELS, STATES, LONG, SHORT = 96, 16, 131_072, 16_384
OURS = ("chunked", "numba") if compiles() else ("chunked",)
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


def in_turns(backends: list[str], tokens: int, backward: bool, runs: int, threads: int) -> dict[str, Any]:
    """How many times faster than the loop, in this process."""
    values = scan_inputs(tokens, backward)
    taken: dict[str, list[float]] = {backend: [] for backend in backends}
    for backend in backends:
        run_once(scan_inputs(512, backward), backend, backward)
    for _ in range(runs):
        for backend in backends:
            torch.set_num_threads(1 if backend == "sequential" else threads)
            now = time.process_time if threads == 1 or backend == "sequential" else time.perf_counter
            start = now()
            run_once(values, backend, backward)
            taken[backend].append(now() - start)
    loop = taken.pop("sequential")
    turns = {name: [a / b for a, b in zip(loop, found, strict=True)] for name, found in taken.items()}
    return {
        "tokens": tokens,
        "pass": "forward and backward" if backward else "forward",
        "threads": threads,
        "turns": runs,
        "times_faster": {name: round(statistics.median(found), 1) for name, found in turns.items()},
        "least_and_most": {name: [round(min(t), 1), round(max(t), 1)] for name, t in turns.items()},
    }


def first_call() -> dict[str, float]:
    """Seconds of the first call of the scan by Numba, and of the first backward pass, in this process."""
    start = time.perf_counter()
    run_once(scan_inputs(64, False), "numba", False)
    forward = time.perf_counter() - start
    run_once(scan_inputs(64, True), "numba", True)
    return {
        "forward_s": round(forward, 2),
        "backward_s": round(time.perf_counter() - start - forward, 2),
    }


def first_calls() -> dict[str, dict[str, float]]:
    """With an empty cache, and with what that left."""
    with tempfile.TemporaryDirectory() as folder:
        case = {"what": "first_call", "threads": 1}
        return {name: in_a_process(case, NUMBA_CACHE_DIR=folder) for name in ("compiled", "from the cache")}


def in_a_process(case: dict[str, Any], **variables: str) -> dict[str, Any]:
    """A case there: of `measure`, unless it says of what."""
    env = {**os.environ, "OMP_NUM_THREADS": str(case["threads"]), **variables}
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def here(case: dict[str, Any]) -> dict[str, Any]:
    """A case in this process."""
    what = case.pop("what", "measure")
    if what == "first_call":
        return dict(first_call())
    return in_turns(**case) if what == "in_turns" else measure(**case)


def cases(runs: int, threads: int) -> list[dict[str, Any]]:
    """Every case, the loop with fewer runs."""
    found = []
    for backend, tokens, backward in (
        ("sequential", LONG, False), *((one, LONG, False) for one in OURS),
        *((one, LONG, True) for one in OURS),
        ("sequential", SHORT, True), *((one, SHORT, True) for one in OURS),
    ):  # fmt: skip
        few = max(1, runs // 2) if backend == "sequential" else runs
        found.append(
            {"backend": backend, "tokens": tokens, "backward": backward, "runs": few, "threads": threads}
        )
    return found


def turns(runs: int, threads: int) -> list[dict[str, Any]]:
    """Every comparison with the loop."""
    case = {"what": "in_turns", "runs": runs, "threads": threads, "backends": ["sequential", *OURS]}
    found = [{**case, "tokens": LONG, "backward": False}, {**case, "tokens": SHORT, "backward": True}]
    if "numba" in OURS and threads == 1:
        found.append({**found[0], "threads": 2, "backends": ["sequential", "numba"]})
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


def faster(compared: list[dict[str, Any]]) -> dict[str, float]:
    """How many times faster than the loop; the chunked scan has no name before its figures."""
    found = {}
    for case in compared:
        tail = f"{case['pass']}, {case['tokens']} tokens"
        tail += ", two threads" if case["threads"] == 2 else ""
        for name, times in case["times_faster"].items():
            found[tail if name == "chunked" else f"{name}, {tail}"] = times
    return found


def peaks(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Peak of each scan's forward pass: inputs and what it took above them, MB, and its share of the plan."""
    plan = memory_plan()
    found: dict[str, float] = {**plan}
    for row in rows:
        if row["backend"] in OURS and row["pass"] == "forward":
            head = "" if row["backend"] == "chunked" else f"{row['backend']}_"
            peak = plan["inputs_mb"] + row["peak_above_inputs_mb"]
            found[f"{head}forward_peak_mb"] = round(peak, 1)
            share = round(peak / plan["inputs_output_state_mb"], 2)
            found[f"{head}forward_peak_over_inputs_output_state"] = share
    return found


def main(runs: int, threads: int, at_once: int) -> dict[str, Any]:
    """All cases and what follows from them."""
    with ThreadPoolExecutor(at_once) as pool:
        rows = list(pool.map(in_a_process, cases(runs, threads)))
        compared = list(pool.map(in_a_process, turns(runs, threads)))
    return {
        "rows": rows,
        "faster": faster(compared),
        "turns": compared,
        "memory": peaks(rows),
        "first_call_of_numba": first_calls() if "numba" in OURS else None,
        "block_bytes": chunked.BLOCK_BYTES,
        "steps": chunked.STEPS,
        "seed": 0,
        "threads": threads,
        "cases_at_once": at_once,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end",
        "torch": torch.__version__,
        "numba": version("numba") if "numba" in OURS else None,
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
        print(json.dumps(here(json.loads(given.case))))
    else:
        found = main(given.runs, given.threads, given.at_once)
        write(found)
        print(json.dumps(found, indent=2))
