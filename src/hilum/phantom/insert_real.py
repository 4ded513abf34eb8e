"""Lesions implanted into a real scan, given masks of its lungs: real anatomy, known truth.

The scan is brought to an isotropic working grid around its lungs, the lesions module draws there, and what it
changed goes back onto the scan as a difference: every voxel away from a lesion keeps its value.
The result is no longer the patient's scan: call it SYNTHETIC LESIONS wherever it is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from hilum.errors import UsageError
from hilum.geometry import Geometry
from hilum.phantom.lesions import insert_all
from hilum.phantom.plan import FindingPlan, PhantomPlan, TumourPlan
from hilum.phantom.scene import Scene
from hilum.text.vocabulary import LOBES, REGIONS
from hilum.types import MaskVolume, VolumeHU
from hilum.volume import CTVolume

IMPLANTABLE = ("lung_nodule", "lung_opacity", "consolidation", "emphysema")
"""Findings that need nothing but lungs; the others need trees and organs that a mask does not give."""

NEEDS_LOBES = ("consolidation",)
NEEDED = ("lung_right", "lung_left")
KNOWN = (
    *NEEDED, *LOBES, *REGIONS, "airway_lumen", "airway_wall", "vessels", "myocardium", "left_ventricle",
    "right_ventricle", "left_atrium", "right_atrium", "aorta", "pulmonary_artery", "vena_cava", "spine",
    "ribs", "sternum", "liver", "spleen", "stomach", "muscle", "fat", "body", "pericardium",
)  # fmt: skip
MARGIN_MM = 12.0
VESSEL_HU, AIR_HU, BODY_HU = -500.0, -950.0, -400.0


@dataclass(frozen=True)
class Implanted:
    """A scan with lesions.

    Args:
        hu: on the scan's own grid. lesions: mask by slug, same grid.
        scene: the working world with `scene.lesions`, shifted by `offset_mm` from the patient's mm.
        offset_mm: patient mm = scene mm + offset.
    """

    hu: VolumeHU
    lesions: dict[str, MaskVolume]
    scene: Scene
    offset_mm: tuple[float, float, float]


def implant(
    volume: CTVolume,
    masks: Mapping[str, MaskVolume],
    findings: Sequence[FindingPlan],
    *,
    tumour: TumourPlan | None = None,
    work_mm: float = 1.5,
) -> Implanted:
    """Draw lesions into a real scan.

    Args:
        volume: the scan. masks: on `volume.geometry`; `lung_right`, `lung_left`; lobes and heart help.
        findings: of `IMPLANTABLE`. tumour: a staged nodule instead. work_mm: working voxel edge.

    Raises:
        UsageError: a finding that cannot be implanted (`OPTION_UNKNOWN`), a mask missing (`MASK_MISSING`) or
            on another grid (`GRID_MISMATCH`).
    """
    for finding in findings:
        if finding.slug not in IMPLANTABLE:
            raise UsageError("OPTION_UNKNOWN", "needs only lungs", expected=IMPLANTABLE, got=finding.slug)
    _check_masks(volume, masks)
    lobar = [f.slug for f in findings if f.slug in NEEDS_LOBES]
    if lobar and not any(lobe in masks for lobe in LOBES):
        raise UsageError("MASK_MISSING", f"{lobar[0]} is placed by lobe", expected=LOBES, got=sorted(masks))
    plan = PhantomPlan("synthetic-lesions", 0, findings=tuple(findings), tumour=tumour)
    scene, offset_mm = scene_of(volume, masks, plan, work_mm)
    before = scene.hu.clone()
    insert_all(scene)
    change = (scene.hu - before).numpy()
    pull = _pull(volume.geometry, scene.grid, offset_mm)
    hu = volume.hu + ndimage.affine_transform(
        change, *pull, output_shape=volume.shape, order=1, cval=0.0, output=np.float32
    )
    lesions = {
        t.slug: ndimage.affine_transform(
            t.mask.numpy().astype(np.float32), *pull, output_shape=volume.shape, order=1, cval=0.0
        )
        >= 0.5
        for t in scene.lesions
    }
    return Implanted(hu.astype(np.float32), lesions, scene, offset_mm)


def scene_of(
    volume: CTVolume, masks: Mapping[str, MaskVolume], plan: PhantomPlan, work_mm: float
) -> tuple[Scene, tuple[float, float, float]]:
    """A working world from a real scan: what is not given is derived from HU or left empty."""
    lungs = masks["lung_right"] | masks["lung_left"]
    where_mm = volume.geometry.to_mm(np.argwhere(lungs))
    low, high = where_mm.min(axis=0) - MARGIN_MM, where_mm.max(axis=0) + MARGIN_MM
    middle = (low + high) / 2
    shape = np.ceil((high - low) / work_mm).astype(int) + 1
    affine = np.diag([work_mm, work_mm, work_mm, 1.0])
    affine[:3, 3] = low - middle
    grid = Geometry((int(shape[0]), int(shape[1]), int(shape[2])), affine)
    offset_mm = (float(middle[0]), float(middle[1]), float(middle[2]))
    pull = _pull(grid, volume.geometry, offset_mm, reverse=True)
    hu = ndimage.affine_transform(volume.hu, *pull, output_shape=grid.shape, order=1, cval=-1000.0)
    given = {
        name: ndimage.affine_transform(m.astype(np.uint8), *pull, output_shape=grid.shape, order=0) > 0
        for name, m in masks.items()
    }
    regions = _regions(hu, given)
    depth = ndimage.distance_transform_edt(regions["lung"]) * work_mm
    tensors = {name: torch.from_numpy(mask) for name, mask in regions.items()}
    scene = Scene(
        plan,
        grid,
        torch.from_numpy(hu.astype(np.float32)),
        tensors,
        torch.from_numpy(depth.astype(np.float32)),
        [],
    )
    return scene, offset_mm


def _regions(hu: np.ndarray, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    regions = {name: np.zeros(hu.shape, dtype=bool) for name in KNOWN} | dict(given)
    regions["lung"] = regions["lung_right"] | regions["lung_left"]
    inner = ndimage.binary_erosion(regions["lung"], iterations=2)
    if not regions["vessels"].any():
        regions["vessels"] = inner & (hu > VESSEL_HU)
    if not regions["airway_lumen"].any():
        regions["airway_lumen"] = (
            inner & (hu < AIR_HU) & ndimage.binary_dilation(inner & (hu > -700), iterations=1)
        )
    regions["airways"] |= regions["airway_lumen"]
    if not regions["body"].any():
        regions["body"] = regions["lung"] | (hu > BODY_HU)
    return regions


def _pull(
    target: Geometry, source: Geometry, offset_mm: tuple[float, float, float], reverse: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset that take a target voxel to a source voxel; one grid is shifted by the offset."""
    shift = np.eye(4)
    shift[:3, 3] = np.array(offset_mm) * (1.0 if reverse else -1.0)
    whole = np.linalg.inv(source.affine_ras) @ shift @ target.affine_ras
    return whole[:3, :3], whole[:3, 3]


def _check_masks(volume: CTVolume, masks: Mapping[str, MaskVolume]) -> None:
    for name in NEEDED:
        if name not in masks or not masks[name].any():
            raise UsageError("MASK_MISSING", "both lungs are needed", expected=NEEDED, got=sorted(masks))
    for name, mask in masks.items():
        if mask.shape != volume.shape:
            raise UsageError(
                "GRID_MISMATCH", f"mask {name} lies on the scan", expected=volume.shape, got=mask.shape
            )
