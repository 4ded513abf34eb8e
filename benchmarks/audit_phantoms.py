"""False and true hits of the audit among phantoms (SYNTHETIC): voxels and reports.

    python benchmarks/audit_phantoms.py --count 200 --copies 20 --jobs 1

Makes COUNT small phantoms, one seed each, compares the fingerprints of every pair, changes the first COPIES
as re-exports change a scan, and looks for each changed copy among all. Reports are compared too. Prints one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np

from hilum.cohort.audit_text import LEAST_WORDS, Text, near_duplicates
from hilum.cohort.audit_voxels import THRESHOLD_HU, distances_hu
from hilum.cohort.fingerprint import fingerprint
from hilum.cohort.report_hash import words_of
from hilum.geometry import Geometry
from hilum.volume import CTVolume

SPACING_MM, WORK_MM = (3.0, 3.0, 3.0), 5.0
Prints = tuple[bytes, bytes]


def _made(volume: CTVolume, hu: np.ndarray, spacing_mm: tuple[float, float, float] | None = None) -> CTVolume:
    affine = np.diag([*(spacing_mm or volume.spacing_mm), 1.0])
    geometry = Geometry((hu.shape[0], hu.shape[1], hu.shape[2]), affine)
    return CTVolume.from_source(np.ascontiguousarray(hu, dtype=np.float32), geometry, volume.provenance)


def respaced(volume: CTVolume, spacing_mm: tuple[float, float, float]) -> CTVolume:
    """The same field at another spacing, trilinear."""
    from scipy import ndimage

    step = np.array(spacing_mm) / np.array(volume.spacing_mm)
    shape = np.maximum(1, np.floor(np.array(volume.shape) / step)).astype(int)
    start = (step - 1) / 2
    hu = ndimage.affine_transform(
        volume.hu, np.diag(step), start, output_shape=tuple(shape), order=1, mode="nearest"
    )
    return _made(volume, hu, spacing_mm)


def shifted(volume: CTVolume, share: float = 0.5) -> CTVolume:
    """Resampled onto a grid that starts a part of a voxel later."""
    from scipy import ndimage

    return _made(volume, ndimage.shift(volume.hu, (share,) * 3, order=1, mode="nearest"))


def noisy(volume: CTVolume, sigma_hu: float) -> CTVolume:
    """White noise."""
    noise = np.random.default_rng(0).normal(0, sigma_hu, volume.shape)
    return _made(volume, volume.hu + noise)


def cropped(volume: CTVolume, low: tuple[float, ...], high: tuple[float, ...]) -> CTVolume:
    """Cut off shares of the field at both ends of each axis."""
    cut = tuple(
        slice(round(a * n), n - round(b * n)) for a, b, n in zip(low, high, volume.shape, strict=True)
    )
    return _made(volume, volume.hu[cut])


def padded(volume: CTVolume) -> CTVolume:
    """-3024 around, as some exports have it."""
    return _made(volume, np.pad(volume.hu, 12, constant_values=-3024.0))


CHANGES: dict[str, Callable[[CTVolume], CTVolume]] = {
    "whole HU": lambda v: _made(v, np.round(v.hu)),
    "clipped to -1000..1000": lambda v: _made(v, np.clip(v.hu, -1000, 1000)),
    "noise of 40 HU": partial(noisy, sigma_hu=40.0),
    "1.5 x 1.5 x 5 mm": partial(respaced, spacing_mm=(1.5, 1.5, 5.0)),
    "4 mm": partial(respaced, spacing_mm=(4.0, 4.0, 4.0)),
    "half a voxel on": shifted,
    "padded": padded,
    "sides cut by 4 %": partial(cropped, low=(0.04, 0.04, 0), high=(0.04, 0.04, 0)),
    "base cut by 10 %": partial(cropped, low=(0, 0, 0.10), high=(0, 0, 0)),
    "top cut by 10 %": partial(cropped, low=(0, 0, 0), high=(0, 0, 0.10)),
    "mirrored left to right": lambda v: _made(v, v.hu[::-1]),
    "upside down": lambda v: _made(v, v.hu[:, :, ::-1]),
    "turned by half": lambda v: _made(v, v.hu[::-1, ::-1]),
}
"""What re-exports do to a scan; the header's place is lost in each."""


def prints_of(seed: int, copies: int) -> tuple[str, dict[str, Prints]]:
    """The report of one phantom; its fingerprint, and those of its changed copies."""
    import torch

    torch.set_num_threads(1)
    from hilum.cohort.phantom_set import phantom_volume
    from hilum.phantom.draw import draw_plan
    from hilum.phantom.make import make_phantom
    from hilum.phantom.narrator import narrate_facts
    from hilum.phantom.narrator_facts import lesion_facts

    plan = draw_plan(seed, spacing_mm=SPACING_MM)
    phantom = make_phantom(plan, work_mm=WORK_MM)
    story = narrate_facts(lesion_facts(phantom, None), plan.scanner, "en", series=2, seed=seed)
    volume = phantom_volume(phantom)
    volume = replace(volume, valid_mask=None)
    changes = CHANGES if seed < copies else {}
    prints = {name: fingerprint(change(volume)) for name, change in changes.items()}
    return story.text, {"": fingerprint(volume)} | prints


def figures(texts: list[str], made: list[dict[str, Prints]]) -> dict[str, object]:
    """Distances between different phantoms, and from each changed copy to its own and the nearest other."""
    plain = [m[""] for m in made]
    between = distances_hu(plain, plain)
    off = between[~np.eye(len(plain), dtype=bool)]
    told: dict[str, object] = {
        "phantoms": len(plain),
        "without fingerprint": sum(not p[0] for p in plain),
        "pairs": len(plain) * (len(plain) - 1) // 2,
        "threshold_hu": THRESHOLD_HU,
        "false hits": int((off <= THRESHOLD_HU).sum()) // 2,
        "nearest of two different, HU": round(float(np.nanmin(off)), 1),
        "1st percentile of different, HU": round(float(np.nanpercentile(off, 1)), 1),
    }
    reports = [Text(str(i), str(i), text) for i, text in enumerate(texts)]
    half = len(reports) // 2
    told["pairs of reports, first half against second"] = half * (len(reports) - half)
    told["false hits of reports"] = len(near_duplicates(reports[:half], reports[half:]))
    told["reports found in themselves"] = sum(i == j for i, j, _ in near_duplicates(reports, reports))
    told["reports long enough to be found"] = sum(len(words_of(text)) >= LEAST_WORDS for text in texts)
    copies = [i for i, m in enumerate(made) if len(m) > 1]
    rows = {}
    for name in CHANGES:
        found = distances_hu([made[i][name] for i in copies], plain)
        own = found[np.arange(len(copies)), copies]
        found[np.arange(len(copies)), copies] = np.inf
        rows[name] = {
            "found": f"{int((own <= THRESHOLD_HU).sum())}/{len(copies)}",
            "furthest own, HU": round(float(own.max()), 1),
            "nearest other, HU": round(float(found.min()), 1),
        }
    return told | {"changed copies": rows}


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    work = partial(prints_of, copies=given.copies)
    with ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        made = list(pool.map(work, range(given.count)))
    print(json.dumps(figures([text for text, _ in made], [prints for _, prints in made]), indent=1))


if __name__ == "__main__":
    main()
