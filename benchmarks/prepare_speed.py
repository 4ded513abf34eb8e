"""Scans per second per core into a prepared array, crops per second out of a store, each beside its peers.

    python benchmarks/prepare_speed.py --peer-python PATH [--work DIR] [--repeats 5] [--crops 200]

PATH is the Python of an environment of MONAI's own (MONAI is no dependency of Hilum, it stays out of its
environment): `python -m venv peer && peer/bin/pip install monai nibabel`. Without it MONAI is left out and
the result says so. SimpleITK comes with the extra `dev`.

1. LIDC-IDRI-0001 (fetched into the cache) and ten phantoms (made under DIR, kept), each prepared by Hilum, by
   SimpleITK and by MONAI into the same array (`prepare_peer.py`), all on one thread, in turns; medians. Once
   with reading and once without; wall and CPU seconds. The arrays are compared.
2. Random 128³ crops of LIDC-IDRI-0001: from a store, from the NIfTI read again each time, in turns.

Writes benchmarks/results/prepare_speed.json. On a busy machine CPU seconds are the ones to look at.
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
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

import numpy as np  # noqa: E402  after the thread counts

HERE = Path(__file__).resolve().parent
PHANTOM_SEED = 4000
TASKS: dict[str, dict[str, Any]] = {
    "whole field, 1.5 mm": {"spacing_mm": [1.5, 1.5, 1.5], "size": None},
    "1.5 mm, 192x192x128 about the centre": {"spacing_mm": [1.5, 1.5, 1.5], "size": [192, 192, 128]},
}
CROP = 128


class Side:
    """A `prepare_peer.py` that waits for jobs."""

    def __init__(self, name: str, python: str) -> None:
        self.name = name
        command = [python, str(HERE / "prepare_peer.py"), name]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        if json.loads(self._answer()) != {"ready": name}:
            raise SystemExit(f"{name} did not start")

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended by itself; its message stands above")
        return line

    def run(self, job: dict[str, Any]) -> dict[str, float]:
        """One scan; seconds by part."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self._answer())

    def close(self) -> None:
        """Ends it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def scans(work: Path, phantoms: int) -> list[Path]:
    """LIDC-IDRI-0001 and the phantoms' files."""
    from hilum.phantom.batch import BatchRequest, make_batch
    from hilum.read.samples import DEMO_SAMPLE, sample_path

    folder = work / "phantoms"
    if phantoms:
        folder.mkdir(parents=True, exist_ok=True)
        # a coarse body scanned finely: what is in the voxels costs no time here, their number does
        make_batch(phantoms, folder, BatchRequest(PHANTOM_SEED, spacing_mm=(0.75, 0.75, 2.0), work_mm=4.0))
    found = sorted(folder.glob("*/ct.nii.gz"))[:phantoms]
    if len(found) != phantoms:
        raise SystemExit(f"{phantoms} phantoms expected below {folder}, found {len(found)}")
    return [sample_path(DEMO_SAMPLE), *found]


def differences(sides: list[Side], paths: list[Path], task: dict[str, Any]) -> dict[str, dict[str, float]]:
    """How far the peers' arrays are from Hilum's; also warms everything up."""
    worst: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            arrays = {}
            for side in sides:
                out = f"{folder}/{side.name}.npy"
                side.run({"path": str(path), **task, "out": out})
                arrays[side.name] = np.load(out)
            for name, array in arrays.items():
                if name == "hilum":
                    continue
                if array.shape != arrays["hilum"].shape:
                    raise SystemExit(
                        f"{name} gives {array.shape}, hilum {arrays['hilum'].shape} for {path.name}"
                    )
                apart = np.abs(array - arrays["hilum"])
                row = worst.setdefault(name, {"largest": 0.0, "share_above_0.001": 0.0})
                row["largest"] = max(row["largest"], float(apart.max()))
                row["share_above_0.001"] = max(row["share_above_0.001"], float((apart > 1e-3).mean()))
    return worst


def prepare_speed(sides: list[Side], paths: list[Path], repeats: int) -> dict[str, Any]:
    """Every task, in turns, medians per scan."""
    result: dict[str, Any] = {}
    for task_name, task in TASKS.items():
        apart = differences(sides, paths, task)
        seconds: dict[str, list[dict[str, list[float]]]] = {side.name: [] for side in sides}
        for path in paths:
            for side in sides:
                seconds[side.name].append({})
            for repeat in range(repeats):
                order = sides[repeat % len(sides) :] + sides[: repeat % len(sides)]
                for side in order:
                    for part, took in side.run({"path": str(path), **task}).items():
                        seconds[side.name][-1].setdefault(part, []).append(took)
        result[task_name] = {"difference_to_hilum": apart, **rates(seconds)}
    return result


def rates(seconds: dict[str, list[dict[str, list[float]]]]) -> dict[str, Any]:
    """Scans per second with and without reading, and how many times the faster peer."""
    out: dict[str, Any] = {"scans_per_second": {}, "times_the_faster_peer": {}}
    for clock in ("cpu", "wall"):
        for what, parts in (("with reading", ("read", "prepare")), ("without reading", ("prepare",))):
            by_side = {}
            for name, rows in seconds.items():
                medians = [
                    statistics.median(map(sum, zip(*(row[f"{p}_{clock}_s"] for p in parts), strict=True)))
                    for row in rows
                ]
                by_side[name] = len(medians) / sum(medians)
            label = f"{what}, {clock} seconds"
            out["scans_per_second"][label] = {k: round(v, 3) for k, v in by_side.items()}
            peers = [v for k, v in by_side.items() if k != "hilum"]
            if peers:
                out["times_the_faster_peer"][label] = round(by_side["hilum"] / max(peers), 2)
    return out


def profile(path: Path, repeats: int) -> dict[str, float]:
    """What bounds Hilum on one scan: CPU seconds of its parts, and of nothing but inflating the file."""
    import torch
    from zlib_ng import zlib_ng

    from hilum.cohort.pipeline import to_store
    from hilum.cohort.prep_presets import Pipeline
    from hilum.cohort.store_chunks import encode
    from hilum.io.hashing import sha256_of
    from hilum.io.open import open_volume

    torch.set_num_threads(1)
    data = path.read_bytes()
    prep = Pipeline("speed", spacing_mm=(1.5, 1.5, 1.5), values="unit")
    volume = open_volume(path)
    stored = to_store(prep, volume).values
    parts: dict[str, Callable[[], object]] = {
        "inflate, zlib-ng alone": lambda: zlib_ng.decompress(data, wbits=31),
        "sha256 of the file": lambda: sha256_of(path),
        "open_volume, all checks": lambda: open_volume(path),
        "pipeline": lambda: prep.apply(volume),
        "encode for the store": lambda: encode(stored),
    }
    took: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(repeats):
        for name, call in parts.items():
            start = time.process_time()
            call()
            took[name].append(time.process_time() - start)
    return {name: round(statistics.median(values), 4) for name, values in took.items()}


def crop_speed(path: Path, work: Path, crops: int, repeats: int) -> dict[str, Any]:
    """Crops per second out of a store and out of the file read again."""
    import nibabel
    import SimpleITK as sitk

    from hilum.cohort.prep_presets import pipeline
    from hilum.cohort.store import open_store
    from hilum.cohort.store_write import StoreJob, prepare_store

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    stores = {}
    for codec in ("zstd", "lz4"):
        prep, root = replace(pipeline("native"), codec=codec), work / f"store-{codec}"
        prepare_store([StoreJob("lidc", str(path))], root, prep, where="here")
        stores[codec] = open_store(root)
    rng = np.random.default_rng(0)
    row = stores["zstd"].row("lidc")
    shape = row.shape

    def corner() -> list[int]:
        return [int(rng.integers(n - CROP + 1)) for n in shape]

    def from_zstd() -> None:
        x, y, z = corner()
        stores["zstd"].read("lidc", (x, y, z), (CROP,) * 3)

    def from_lz4() -> None:
        x, y, z = corner()
        stores["lz4"].read("lidc", (x, y, z), (CROP,) * 3)

    def nibabel_whole() -> None:
        x, y, z = corner()
        np.asanyarray(nibabel.load(path).dataobj)[x : x + CROP, y : y + CROP, z : z + CROP].copy()

    def nibabel_part() -> None:
        x, y, z = corner()
        np.asanyarray(nibabel.load(path).dataobj[x : x + CROP, y : y + CROP, z : z + CROP])

    def simpleitk() -> None:
        x, y, z = corner()
        image = sitk.ReadImage(str(path))
        sitk.GetArrayFromImage(image[x : x + CROP, y : y + CROP, z : z + CROP])

    from_stores = {"store, zstd": from_zstd, "store, lz4": from_lz4}
    again = {"nibabel": nibabel_whole, "nibabel, sliced": nibabel_part, "SimpleITK": simpleitk}
    took: dict[str, dict[str, list[float]]] = {}
    for _ in range(repeats):
        for name, call in {**from_stores, **again}.items():
            times = crops if name in from_stores else 1
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(times):
                call()
            row = took.setdefault(name, {"cpu": [], "wall": []})
            row["cpu"].append((time.process_time() - cpu) / times)
            row["wall"].append((time.perf_counter() - wall) / times)
    result: dict[str, Any] = {
        "scan": "LIDC-IDRI-0001, 512x512x133",
        "crop": f"{CROP}³",
        "crops_per_second": {},
    }
    for clock in ("cpu", "wall"):
        rate = {name: 1 / statistics.median(row[clock]) for name, row in took.items()}
        best = max(rate[name] for name in again)
        result["crops_per_second"][clock] = {k: round(v, 3) for k, v in rate.items()}
        result[f"times_the_fastest_reread_{clock}"] = {k: round(rate[k] / best, 1) for k in from_stores}
    result["megabytes"] = {"NIfTI": round(path.stat().st_size / 1e6, 1)} | {
        f"store, {codec}": round(store.row("lidc").file_bytes / 1e6, 1) for codec, store in stores.items()
    }
    return result


def hardware() -> dict[str, object]:
    """What the figures were taken on, and how busy it was."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": model or platform.processor(),
        "cores": usable,
        "load_before": round(os.getloadavg()[0], 1),
    }


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", help="Python of an environment with monai and nibabel")
    parser.add_argument(
        "--work", type=Path, help="folder for phantoms and store; a temporary one if not given"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--phantoms", type=int, default=10)
    parser.add_argument("--crops", type=int, default=200, help="crops from the store per repeat")
    options = parser.parse_args()
    if options.peer_python is None:
        print("MONAI is left out: give --peer-python (see --help).", file=sys.stderr)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        machine = hardware()
        paths = scans(work, options.phantoms)
        sides = [Side("hilum", sys.executable), Side("sitk", sys.executable)]
        if options.peer_python:
            sides.append(Side("monai", options.peer_python))
        prepared = prepare_speed(sides, paths, options.repeats)
        for side in sides:
            side.close()
        crops = crop_speed(paths[0], work, options.crops, options.repeats)
        parts = profile(paths[0], options.repeats)
    command = "python benchmarks/prepare_speed.py --peer-python PATH"
    counts = f"--repeats {options.repeats} --phantoms {options.phantoms} --crops {options.crops}"
    names = ("hilum", "torch", "numpy", "blosc2", "simpleitk", "nibabel")
    result = {
        "what": "scans per second per core into a prepared array; 128³ crops per second out of a store",
        "command": f"{command} {counts}",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": machine,
        "versions": {name: version(name) for name in names}
        | ({"monai": peer_version(options.peer_python)} if options.peer_python else {}),
        "scans": len(paths),
        "prepare": prepared,
        "profile_cpu_s": parts,
        "crops": crops,
    }
    (HERE / "results").mkdir(exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (HERE / "results" / "prepare_speed.json").write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


def peer_version(python: str) -> str:
    """MONAI's, asked of its own Python."""
    code = "from importlib.metadata import version; print(version('monai'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
