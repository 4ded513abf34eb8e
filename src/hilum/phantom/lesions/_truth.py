"""What a lesion does to the truth: which region owns a voxel now, and what is written down about the
lesion.
"""

from __future__ import annotations

import cc3d
import torch
import torch.nn.functional as F
from torch import Tensor

from hilum.phantom.lesions._fields import count as count_voxels
from hilum.phantom.lesions._fields import shrink, window_of
from hilum.phantom.plan import Degree
from hilum.phantom.scene import LesionTruth, Scene
from hilum.text.vocabulary import FINDINGS, INDEX, LOBES, REGIONS

LUNG_PARTS = ("lung", *LOBES, "lung_right", "lung_left", "vessels", "airways", "airway_lumen", "airway_wall")
MIDLINE_ORGANS = ("heart", "mediastinum", "oesophagus", "global")


def organ_mask(scene: Scene, slug: str) -> Tensor:
    """The region that confines a finding's map; `global` is the union of the nine."""
    organ = FINDINGS[INDEX[slug]].organ
    if organ != "global":
        return scene.regions[organ]
    union = torch.zeros(scene.grid.shape, dtype=torch.bool, device=scene.device)
    for name in REGIONS:
        union |= scene.regions[name]
    return union


def move(scene: Scene, mask: Tensor, into: tuple[str, ...], out_of: tuple[str, ...] = LUNG_PARTS) -> None:
    """Give the voxels of `mask` to the regions `into` and take them from `out_of`; they are then no lung
    depth either.
    """
    window = window_of(scene, mask)
    if window is None:
        return
    here = window.of(mask)
    keep = ~here
    for name in {*out_of, *into}:
        if name not in scene.regions:
            continue
        changed = scene.regions[name].clone()
        part = window.of(changed)
        part.logical_or_(here) if name in into else part.logical_and_(keep)
        scene.regions[name] = changed
    if "lung" in out_of and "lung" not in into:
        scene.depth_mm = scene.depth_mm.clone()
        window.of(scene.depth_mm).mul_(keep)


def free_lung(scene: Scene) -> Tensor:
    """Lung voxels where a new lesion can still be seen: no dense lesion, no large vessel, no airway."""
    free = scene.regions["lung"] & ~scene.regions["airways"]
    for truth in scene.lesions:
        if truth.slug in ("consolidation", "atelectasis", "lung_nodule"):
            free = free & ~truth.mask
    return free


def sides_of(scene: Scene, mask: Tensor) -> str:
    """``right``, ``left`` or ``both`` (each at least 5 %) by the mid-sagittal plane; ``""`` for nothing."""
    middle = int((scene.axes_mm()[0].flatten() <= 0).sum())
    left, right = count_voxels(mask[:middle]), count_voxels(mask[middle:])
    if right + left == 0:
        return ""
    if min(right, left) >= 0.05 * (right + left):
        return "both"
    return "right" if right > left else "left"


def lobes_of(scene: Scene, mask: Tensor) -> tuple[str, ...]:
    """Lobes that hold at least 5 % of the mask."""
    window = window_of(scene, mask)
    if window is None:
        return ()
    part = window.of(mask)
    least = 0.05 * count_voxels(part)
    return tuple(n for n in LOBES if count_voxels(window.of(scene.regions[n]) & part) >= least)


def measure(scene: Scene, mask: Tensor) -> tuple[float, int]:
    """Longest diameter of the largest piece in mm and the number of pieces (seen at about 4 mm)."""
    window = window_of(scene, mask)
    if window is None:
        return 0.0, 0
    mask = window.of(mask)
    stride = max(1, round(4.0 / scene.work_mm))
    small = shrink(mask, stride)
    labels = cc3d.connected_components(small.cpu().numpy(), connectivity=26)
    stats = cc3d.statistics(labels)
    counts = stats["voxel_counts"][1:]
    if len(counts) == 0:
        return 0.0, 0
    largest = int(counts.argmax()) + 1
    where = torch.from_numpy(labels == largest).nonzero().float() * (stride * scene.work_mm)
    rays = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 3)[14:]
    rays = F.normalize(rays, dim=1)
    spread = where @ rays.T
    return float((spread.amax(0) - spread.amin(0)).max()) + scene.work_mm, len(counts)


def record(
    scene: Scene,
    slug: str,
    mask: Tensor,
    degree: Degree,
    *,
    size_mm: float | None = None,
    count: int | None = None,
    **attributes: str | float,
) -> LesionTruth | None:
    """The truth of a lesion, cut to the organ that its map may show it in; None when nothing is left.

    Args:
        mask: its voxels. size_mm, count: where the maker knows them; measured otherwise. attributes: what
        else is known.
    """
    inside = mask & organ_mask(scene, slug)
    if not bool(inside.any()):
        return None
    measured = measure(scene, inside) if size_mm is None or count is None else (0.0, 0)
    truth = LesionTruth(
        slug=slug,
        mask=inside,
        degree=degree,
        size_mm=float(measured[0] if size_mm is None else size_mm),
        count=int(measured[1] if count is None else count),
        attributes=dict(attributes),
    )
    locate(scene, truth)
    return truth


def locate(scene: Scene, truth: LesionTruth) -> None:
    """Write side and lobes of the mask as it is now. A maker's own word on the side (attribute ``side``)
    wins at the midline.
    """
    organ = FINDINGS[INDEX[truth.slug]].organ
    if organ in MIDLINE_ORGANS:
        truth.side = str(truth.attributes.get("side", ""))
        truth.lobes = ()
        return
    truth.side = sides_of(scene, truth.mask)
    truth.lobes = lobes_of(scene, truth.mask)
