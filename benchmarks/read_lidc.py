"""Time and peak memory of `hilum read` on LIDC-IDRI-0001 (512×512×133), page and maps included.

    python benchmarks/read_lidc.py [--threads 2] [--runs 1]

The scan is fetched into the cache first, outside the figures. Writes benchmarks/results/read_lidc.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


def run_once(scan: Path, threads: int) -> dict[str, float]:
    """One reading in a process of its own: wall seconds, CPU seconds, peak resident memory in MiB."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    with tempfile.TemporaryDirectory() as folder:
        code = "from hilum.cli import main; main()"
        command = [sys.executable, "-c", code, "read", str(scan), "--out", f"{folder}/out"]
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.perf_counter() - start
    if process.returncode not in (0, 4):
        raise SystemExit(f"hilum read ended with {process.returncode}")
    unit = 1024 if sys.platform != "darwin" else 1024**2
    cpu_s = usage.ru_utime + usage.ru_stime
    return {"wall_s": round(wall_s, 1), "cpu_s": round(cpu_s, 1), "peak_mib": round(usage.ru_maxrss / unit)}


def hardware() -> dict[str, object]:
    """What the figures were taken on."""
    model = ""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": model or platform.processor(),
        "cores": usable,
        "system": f"{platform.system()} {platform.machine()}",
    }


def main() -> int:
    """Measure and write."""
    from importlib.metadata import version

    from hilum.read.samples import DEMO_SAMPLE, sample_path

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of the reading")
    parser.add_argument("--runs", type=int, default=1, help="how often; every run is written")
    options = parser.parse_args()
    scan = sample_path(DEMO_SAMPLE)
    result = {
        "what": "hilum read on LIDC-IDRI-0001, 512x512x133, page and maps included",
        "command": f"python benchmarks/read_lidc.py --threads {options.threads} --runs {options.runs}",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "threads": options.threads,
        "versions": {name: version(name) for name in ("hilum", "torch", "numpy")}
        | {"python": platform.python_version()},
        "runs": [run_once(scan, options.threads) for _ in range(options.runs)],
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / "read_lidc.json").write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
