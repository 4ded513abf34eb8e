"""From a plan to a scanned chest with its truth: anatomy, then lesions, then the scanner."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32

from hilum.geometry import Geometry
from hilum.phantom.anatomy import build_scene
from hilum.phantom.lesions import insert_all
from hilum.phantom.plan import PhantomPlan
from hilum.phantom.scanner import Scan, scan
from hilum.phantom.scene import LesionTruth, Scene
from hilum.text.vocabulary import INDEX, SLUGS


@dataclass(frozen=True)
class Phantom:
    """One phantom: what was planned, the world it became, and the scan of it. Synthetic.

    Args:
        plan: numbers. scene: HU and masks on the working grid. scan: what a scanner saw of it.
        labels: 1 where a finding lies in the scanned part, 0 where it was not planned, could not be inserted,
            or lies outside; order of `vocabulary.FINDINGS`.
    """

    plan: PhantomPlan
    scene: Scene
    scan: Scan
    labels: Float32[np.ndarray, "D"]

    @property
    def lesions(self) -> list[LesionTruth]:
        """The lesions that lie in the scanned part."""
        return [t for t in self.scene.lesions if self.labels[INDEX[t.slug]] > 0]


def make_phantom(
    plan: PhantomPlan,
    *,
    work_mm: float | None = None,
    device: str | torch.device = "cpu",
    anatomy: Scene | None = None,
) -> Phantom:
    """Build, afflict and scan one chest.

    Args:
        plan: from `draw.draw_plan`.
        work_mm: voxel edge of the working grid; by default 1.5 in-plane voxels, within 1..2 mm.
        device: torch device that does the work.
        anatomy: the healthy chest of the same patient (a sibling's), which is four fifths of the work; it is
            copied. By default it is built.
    """
    edge_mm = work_mm or min(2.0, max(1.0, plan.scanner.spacing_mm[0] * 1.5))
    if anatomy is None:
        scene = build_scene(plan, work_mm=edge_mm, device=device)
    else:
        scene = _copy(anatomy, plan)
    insert_all(scene)
    seen = scan(scene)
    labels = np.zeros(len(SLUGS), dtype=np.float32)
    for truth in scene.lesions:
        if _scanned(truth, scene.grid, seen.geometry):
            labels[INDEX[truth.slug]] = 1.0
    return Phantom(plan, scene, seen, labels)


def _copy(anatomy: Scene, plan: PhantomPlan) -> Scene:
    """A healthy scene for another plan of the same patient."""
    return Scene(
        plan,
        anatomy.grid,
        anatomy.hu.clone(),
        {name: mask.clone() for name, mask in anatomy.regions.items()},
        anatomy.depth_mm.clone(),
        list(anatomy.branches),
    )


def _scanned(truth: LesionTruth, grid: Geometry, seen: Geometry) -> bool:
    """True when at least a tenth of the lesion's voxels lie within the scanned box."""
    where_mm = grid.to_mm(truth.mask.nonzero().cpu().numpy())
    if not len(where_mm):
        return False
    index = seen.to_vox(where_mm)
    inside = ((index >= -0.5) & (index <= np.array(seen.shape) - 0.5)).all(axis=1)
    return bool(inside.mean() >= 0.1)
