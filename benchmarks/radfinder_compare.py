"""One space for scans, reports, prompts and sentences with a place: the whole against its parts, one run.

    python benchmarks/radfinder_compare.py [--train 420] [--val 60] [--test 160] [--steps N] [--workers 2]
        [--jobs 2] [--arms full clip ...] [--runs DIR] [--smoke]

SYNTHETIC phantoms with narrated reports in English and German. Windows are read once by the model that ships
(`reader:phantom-small`); only the combiner and the heads are trained, on the same scans, texts, seed and
steps (recipes/radfinder-nano.toml):

full        reports, prompts and placed sentences, depths of 12 mm
fine        the same with depths of 4 mm
no-snippets without the loss of placed sentences
no-prompts  without the loss of prompts
clip        reports alone

Weights are chosen nowhere: every arm's are those after the last step. Retrieval, zero-shot AUROC and
localization are of phantoms that neither an arm nor the window reader has seen; intervals are over patients,
differences on the same draws. A killed run goes on where it stopped.

Writes benchmarks/results/radfinder_compare.json and .md (with --smoke into the folder of the runs).
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

from hilum.cli.common import counted_bars
from hilum.cohort.joint_phantoms import phantom_sample
from hilum.cohort.joint_samples import SAMPLES, JointSample, write_samples
from hilum.cohort.phantom_set import phantom_volume
from hilum.io.atomic import atomic_write
from hilum.io.fetch import cache_folder
from hilum.phantom.draw import draw_plan
from hilum.phantom.make import make_phantom
from hilum.read.window_cache import WindowCache, window_cache

SOURCE = "reader:phantom-small"
SEEDS = {"train": 20_000_000, "val": 21_000_000, "test": 22_000_000}
"""Of the first phantom of each split; phantom-small was trained on seeds from 1,000,000 and 5,000,000."""
DEPTHS_MM = (12.0, 4.0)
SPACING_MM, WORK_MM = (1.6, 1.6, 2.5), 2.5


@cache
def opened(root: Path) -> WindowCache:
    """One per process."""
    return window_cache(root, SOURCE, DEPTHS_MM)


def make(job: tuple[Path, str, int]) -> Path:
    """One phantom: its windows into the cache, what is said of it into a file of its own."""
    import torch

    from hilum.heap import keep_freed_memory

    root, split, seed = job
    torch.set_num_threads(1)
    keep_freed_memory()
    path = root / "said" / f"{split}-{seed}.json"
    if path.is_file():
        return path
    phantom = make_phantom(draw_plan(seed, spacing_mm=SPACING_MM), work_mm=WORK_MM)
    sample = phantom_sample(phantom, split)
    opened(root).put(sample.key, "", lambda: phantom_volume(phantom))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(sample.model_dump_json().encode())
    return path


def make_all(root: Path, counts: dict[str, int], workers: int) -> list[Path]:
    """Folders of features, one per thickness of a depth, each with its samples."""
    jobs = [(root, split, SEEDS[split] + n) for split, count in counts.items() for n in range(count)]
    with counted_bars() as bars, ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        row = bars.add_task("phantoms", total=len(jobs))
        said = []
        for path in pool.map(make, jobs):
            said.append(JointSample.model_validate_json(path.read_bytes()))
            bars.advance(row)
    folders = [found.folder for found in opened(root).caches.values()]
    for folder in folders:
        write_samples(folder / SAMPLES, said)
    return folders


def main() -> None:
    """Everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for split, count in (("train", 420), ("val", 60), ("test", 160)):
        parser.add_argument(f"--{split}", type=int, default=count)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "radfinder_compare")
    parser.add_argument("--cache", type=Path, default=cache_folder() / "radfinder_compare")
    given = parser.parse_args()
    counts = {split: getattr(given, split) for split in SEEDS}
    make_all(given.cache, counts, given.workers)


if __name__ == "__main__":
    main()
