"""The 18 findings, drawn into a scene with their truth.

`insert_all` goes from what changes the shape of organs (hernia, fluid) over the lung to small dense things,
so that later lesions are placed in what earlier ones left. Where a dense lesion covers an earlier one, the
earlier mask gives way.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from hilum.phantom.lesions._truth import locate, organ_mask
from hilum.phantom.lesions.airspace import insert_atelectasis, insert_consolidation, insert_lung_opacity
from hilum.phantom.lesions.airways import insert_bronchiectasis, insert_peribronchial_thickening
from hilum.phantom.lesions.cardiac import (
    heart_itself,
    insert_cardiomegaly,
    insert_coronary_calcification,
    insert_pericardial_effusion,
)
from hilum.phantom.lesions.interstitial import (
    insert_emphysema,
    insert_fibrotic_sequela,
    insert_mosaic_attenuation,
    insert_septal_thickening,
)
from hilum.phantom.lesions.material import insert_medical_material
from hilum.phantom.lesions.mediastinum import insert_hiatal_hernia, insert_lymphadenopathy
from hilum.phantom.lesions.nodule import insert_lung_nodule, t_stage
from hilum.phantom.lesions.pleura import insert_pleural_effusion
from hilum.phantom.lesions.vascular import insert_arterial_wall_calcification
from hilum.phantom.plan import Degree, FindingPlan
from hilum.phantom.scene import LesionTruth, Scene

Maker = Callable[[Scene, torch.Generator, Degree], LesionTruth | None]

MAKERS: dict[str, Maker] = {
    "hiatal_hernia": insert_hiatal_hernia,
    "pericardial_effusion": insert_pericardial_effusion,
    "pleural_effusion": insert_pleural_effusion,
    "cardiomegaly": insert_cardiomegaly,
    "lymphadenopathy": insert_lymphadenopathy,
    "mosaic_attenuation": insert_mosaic_attenuation,
    "emphysema": insert_emphysema,
    "lung_opacity": insert_lung_opacity,
    "septal_thickening": insert_septal_thickening,
    "peribronchial_thickening": insert_peribronchial_thickening,
    "bronchiectasis": insert_bronchiectasis,
    "atelectasis": insert_atelectasis,
    "consolidation": insert_consolidation,
    "fibrotic_sequela": insert_fibrotic_sequela,
    "lung_nodule": insert_lung_nodule,
    "coronary_calcification": insert_coronary_calcification,
    "arterial_wall_calcification": insert_arterial_wall_calcification,
    "medical_material": insert_medical_material,
}
"""By slug, in the order of insertion."""

OPAQUE = ("atelectasis", "consolidation", "lung_nodule")
COVERED = (
    "mosaic_attenuation",
    "emphysema",
    "lung_opacity",
    "septal_thickening",
    "atelectasis",
    "consolidation",
    "fibrotic_sequela",
)
"""An `OPAQUE` lesion takes its voxels from an earlier `COVERED` one."""


def insert(scene: Scene, finding: FindingPlan) -> LesionTruth | None:
    """Draw one finding and append its truth to `scene.lesions`; None when the anatomy has no place for it."""
    generator = torch.Generator().manual_seed(finding.seed)
    truth = MAKERS[finding.slug](scene, generator, finding.degree)
    if truth is None:
        return None
    if truth.slug in OPAQUE:
        for earlier in scene.lesions:
            if earlier.slug in COVERED:
                earlier.mask = earlier.mask & ~truth.mask
    scene.lesions.append(truth)
    return truth


def insert_all(scene: Scene) -> None:
    """Draw every finding of `scene.plan` (HU, regions and `scene.lesions` change in place).

    A planned tumour is the scene's `lung_nodule`; it is drawn even when the plan lists no such finding.
    """
    planned = list(scene.plan.findings)
    tumour = scene.plan.tumour
    if tumour is not None and all(f.slug != "lung_nodule" for f in planned):
        degree: Degree = (
            "mild" if tumour.diameter_mm <= 7 else "moderate" if tumour.diameter_mm <= 15 else "severe"
        )
        planned.append(FindingPlan("lung_nodule", degree, tumour.seed))
    order = list(MAKERS)
    for finding in sorted(planned, key=lambda f: order.index(f.slug)):
        insert(scene, finding)
    for truth in scene.lesions:
        truth.mask = heart_itself(scene) if truth.slug == "cardiomegaly" else truth.mask
        truth.mask = truth.mask & organ_mask(scene, truth.slug)
        locate(scene, truth)
    scene.lesions[:] = [truth for truth in scene.lesions if bool(truth.mask.any())]


__all__ = ["MAKERS", "insert", "insert_all", "t_stage"]
