"""The working world of a phantom: HU and masks on one isotropic RAS+ grid, and the trees that run through it.

`anatomy.build_scene` makes it, `lesions.insert_all` changes it, `scanner.scan` looks at it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from hilum.geometry import Geometry
from hilum.phantom.plan import Degree, PhantomPlan
from hilum.tensors import MaskTensor, VoxelTensor


@dataclass(frozen=True)
class Branch:
    """One straight segment of a tree.

    Args:
        start_mm, end_mm: RAS mm. radius_mm: of the lumen (airway) or the vessel.
        generation: 0 trachea, 1 main, 2 lobar, 3 segmental, 4+ beyond. lobe: name of `vocabulary.LOBES`, ""
            outside the lungs.
        kind: ``airway``, ``artery``, ``vein``, ``coronary``, ``aorta``.
    """

    start_mm: tuple[float, float, float]
    end_mm: tuple[float, float, float]
    radius_mm: float
    generation: int
    lobe: str
    kind: str


@dataclass
class LesionTruth:
    """What was inserted, with its voxels.

    Args:
        slug: finding. mask: its voxels on the scene's grid. degree: how bad.
        side: ``right``, ``left``, ``both`` or ``""`` (midline). lobes: names of `vocabulary.LOBES` touched
            by at least 5 % of it.
        size_mm: longest diameter of the largest piece. count: number of pieces. attributes: what else is
            known (stage, kind).
    """

    slug: str
    mask: MaskTensor
    degree: Degree
    side: str = ""
    lobes: tuple[str, ...] = ()
    size_mm: float = 0.0
    count: int = 1
    attributes: dict[str, str | float] = field(default_factory=dict)


@dataclass
class Scene:
    """HU and truth on `grid`.

    Args:
        plan: what it was made from.
        grid: isotropic, axis-aligned RAS+; x = 0 is the mid-sagittal plane, z = 0 the carina, mm.
        hu: float32 HU.
        regions: bool masks by name. Always present: `body`, the five `vocabulary.LOBES`, the nine
            `vocabulary.REGIONS`,
            `lung_right`, `lung_left`, `airway_lumen`, `airway_wall`, `vessels` (in the lung), `myocardium`,
            `left_ventricle`,
            `right_ventricle`, `left_atrium`, `right_atrium`, `aorta`, `pulmonary_artery`, `vena_cava`,
            `spine`, `ribs`,
            `sternum`, `liver`, `spleen`, `stomach`, `muscle`, `fat`.
            `pericardium` is all within the sac; `heart` is its chambers, muscle and coronaries, the
            pulmonary arteries up to the lungs, and all of the sac when it holds an effusion; `lung`
            includes its vessels and intrapulmonary airways;
            `mediastinum` lies between the lungs, without the heart, with great vessels, trachea and
            oesophagus;
            `pleura` is a shell of about 6 mm on either side of the lung surface; `airways` is lumen and wall
            to segmental level.
        depth_mm: distance of a lung voxel from its lung's surface, 0 outside.
        branches: airways, arteries, veins, coronaries, aorta.
        lesions: truth, filled by `lesions`.
    """

    plan: PhantomPlan
    grid: Geometry
    hu: VoxelTensor
    regions: dict[str, MaskTensor]
    depth_mm: VoxelTensor
    branches: list[Branch]
    lesions: list[LesionTruth] = field(default_factory=list)

    @property
    def work_mm(self) -> float:
        """Edge of a voxel, mm."""
        return self.grid.spacing_mm[0]

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.hu.device

    def axes_mm(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Coordinates along x, y, z in mm, shaped (X,1,1), (1,Y,1), (1,1,Z): broadcast, never materialise
        a full grid."""
        origin = self.grid.affine_ras[:3, 3]
        axes = [
            torch.arange(n, device=self.device, dtype=torch.float32) * self.work_mm + float(o)
            for n, o in zip(self.grid.shape, origin, strict=True)
        ]
        return axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
