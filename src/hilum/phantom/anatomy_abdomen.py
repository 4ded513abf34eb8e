"""What lies under the diaphragm, as far as a chest CT shows it: liver, spleen, stomach, kidneys, bowel."""

from __future__ import annotations

import torch
from torch import Tensor

from hilum.phantom.anatomy_build import Build
from hilum.phantom.anatomy_chest import Chest
from hilum.phantom.shapes import ellipsoid_level, smooth_min


def build_abdomen(build: Build, chest: Chest, taken: Tensor) -> dict[str, Tensor]:
    """Masks `liver`, `spleen`, `stomach`, `stomach_gas`, `kidneys`, `bowel`, `bowel_gas`, `diaphragm` on
    the whole grid."""
    frame, rng = build.frame, build.rng(61)
    d = build.drop_mm
    room = chest.cavity & ~taken & (chest.abdomen_mm < -2.5) & (chest.wall_mm < -3.0)
    box = frame.box((-190, -190, -360), (190, 190, -40))
    c = frame.coords(box)
    j = rng.normal(0.0, 4.0, 6)
    liver = ellipsoid_level(c, (60, 8, -160 - d), (80, 92, 96 + j[0]))
    left_lobe = ellipsoid_level(c, (-20 + j[1], 44, -136 - d), (58, 44, 40))
    liver = smooth_min(liver, left_lobe, 14.0)
    spleen = ellipsoid_level(c, (-94, -34, -146 - d + j[2]), (33, 46, 54))
    stomach = ellipsoid_level(c, (-52, 14 + j[3], -146 - d), (40, 52, 52))
    colon = torch.minimum(
        ellipsoid_level(c, (-88, 40, -160 - d + j[4]), (27, 30, 34)),
        ellipsoid_level(c, (-60, 62, -200 - d), (60, 24, 24)),
    )
    kidneys = torch.minimum(
        ellipsoid_level(c, (54, -42, -212 - d), (28, 26, 54)),
        ellipsoid_level(c, (-54, -40, -196 - d), (28, 26, 54)),
    )
    names = {
        "liver": liver < 0,
        "spleen": spleen < 0,
        "kidneys": kidneys < 0,
        "stomach": stomach < 0,
        "bowel": colon < 0,
    }
    out: dict[str, Tensor] = {}
    free = room[box].clone()
    for name in ("spleen", "kidneys", "liver", "stomach", "bowel"):
        mask = names[name] & free
        free &= ~mask
        out[name] = _whole(build, box, mask)
    level = float(rng.uniform(10.0, 40.0))
    out["stomach_gas"] = _whole(build, box, (stomach < -4.0) & (c[1] > level)) & out["stomach"]
    out["bowel_gas"] = _whole(build, box, (colon < -3.0) & (c[1] > 46.0)) & out["bowel"]
    out["diaphragm"] = chest.cavity & ~taken & (chest.abdomen_mm.abs() < 2.5)
    return out


def _whole(build: Build, box: tuple[slice, slice, slice], mask: Tensor) -> Tensor:
    out = build.frame.empty()
    out[box] = mask
    return out
