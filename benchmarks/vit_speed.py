"""Tokens per second and peak memory of the backbone, beside a plain ViT of torch's own parts and the public
code.

    python benchmarks/vit_speed.py [--public DIR] [--device cpu] [--threads 1] [--rounds 3] [--repeats 5]
    python benchmarks/vit_speed.py --only import --public DIR --spectre DIR

DIR is a checkout of the public FlexiCT code (ricklisz/FlexiCT, branch main), which is no dependency of Hilum.
Without it that side is left out and the result says so. With it the outputs of both on the same random
weights are compared first.

Each preset's forward and training step (AdamW) on volumes of patches of 8 voxels, in fp32 without anything
random. Each run is a process of its own; sides take turns, `rounds` times; medians. Sides differ: the plain
one has learned places and biases where the others have rotary places, LayerScale and none.

`--only import` compares what `hilum import` makes of public models' weights, and nothing else, FlexiCT's and,
with a folder that holds its package, SPECTRE's; it writes benchmarks/results/import_parity.json.

Writes benchmarks/results/vit_speed.json. On a busy machine CPU seconds are the ones to look at.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SHAPES = {"flexict-nano": (2, [64, 64, 64]), "flexict-small": (1, [64, 64, 64])}
"""Batch and voxels per preset: 512 patches each."""


def child(job: dict[str, Any]) -> dict[str, float]:
    """One run of `vit_peers.py`."""
    command = [sys.executable, str(HERE / "vit_peers.py"), json.dumps(job)]
    threads = {name: str(job["threads"]) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **threads}
    )
    return json.loads(done.stdout.splitlines()[-1])


def measured(job: dict[str, Any], sides: list[str], rounds: int) -> dict[str, Any]:
    """A task of every side, in turns."""
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            runs[side].append(child({**job, "side": side}))
    rows = {}
    for side, found in runs.items():
        middle = {key: statistics.median(run[key] for run in found) for key in found[0]}
        rows[side] = {
            "tokens_per_cpu_s": round(middle["tokens"] / middle["cpu_s"], 1),
            "tokens_per_wall_s": round(middle["tokens"] / middle["wall_s"], 1),
            "peak_mb": round(middle["peak_mb"]),
        }
    return rows


def import_parity(base: dict[str, Any]) -> int:
    """What `hilum import` makes of the public model's weights, beside the public model."""
    result = {
        "what": "largest difference of any token between the public code and Hilum after hilum import, "
        "on the same random weights (normal, 0.2), fp32",
        "command": "python benchmarks/vit_speed.py --only import --public DIR --spectre DIR",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in ("hilum", "torch")},
        "flexict": child({**base, "task": "import", "preset": "flexict-nano"}),
        "spectre": child({**base, "task": "import spectre"}),
    }
    text = json.dumps(result, indent=1) + "\n"
    (HERE / "results" / "import_parity.json").write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--public", type=Path, help="checkout of the public FlexiCT code")
    parser.add_argument("--spectre", type=Path, help="folder that holds the public package spectre")
    parser.add_argument("--only", choices=["import"], help="instead of everything else")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5, help="timed calls per run, after one to warm up")
    options = parser.parse_args()
    sides = ["hilum", "plain"] + (["public"] if options.public else [])
    base = {
        "device": options.device,
        "threads": options.threads,
        "repeats": options.repeats,
        "checkout": str(options.public),
        "spectre": str(options.spectre),
    }
    if options.only == "import":
        return import_parity(base)
    load = round(os.getloadavg()[0], 1)
    result: dict[str, Any] = {
        "what": "tokens (patches) per second and peak memory, fp32, patch 8",
        "command": f"python benchmarks/vit_speed.py {'--public DIR ' if options.public else ''}"
        f"--device {options.device} --threads {options.threads} --rounds {options.rounds} "
        f"--repeats {options.repeats}",
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "load_before": load,
        "versions": {name: version(name) for name in ("hilum", "torch")},
        "public_code": "compared" if options.public else "left out: no --public",
        "speed": {},
    }
    if options.public:
        job = {**base, "task": "agree", "preset": "flexict-nano"}
        result["largest_difference_to_public_code"] = child(job)
    for preset, (batch, shape) in SHAPES.items():
        for task in ("forward", "step"):
            job = {**base, "task": task, "preset": preset, "batch": batch, "shape": shape}
            result["speed"][f"{preset}, {task}, {batch} x {shape}"] = measured(job, sides, options.rounds)
    text = json.dumps(result, indent=1) + "\n"
    (HERE / "results" / "vit_speed.json").write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
