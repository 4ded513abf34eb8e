"""Lesions go into a scan where the masks say lung is, and nothing else changes."""

import numpy as np
import pytest

from hilum.errors import UsageError
from hilum.geometry import Geometry
from hilum.phantom.insert_real import IMPLANTABLE, implant
from hilum.phantom.plan import FindingPlan
from hilum.volume import CTVolume, Provenance


@pytest.fixture(scope="module")
def chest():
    """Two ellipsoid lungs in water, LPS axes, off centre."""
    shape, spacing = (110, 80, 60), (3.0, 3.0, 4.0)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = (180.0, 100.0, -340.0)
    source = Geometry(shape, affine)
    x, y, z = (np.arange(n) - n / 2 for n in shape)
    x, y, z = x[:, None, None] * 3.0, y[None, :, None] * 3.0, z[None, None, :] * 4.0
    hu = np.where((x / 160) ** 2 + (y / 110) ** 2 < 1, 40.0, -1000.0) + np.zeros(shape)
    lungs = {}
    for side, sign in (("lung_left", 1), ("lung_right", -1)):  # x grows to the left here
        inside = ((x - sign * 75) / 60) ** 2 + (y / 85) ** 2 + (z / 105) ** 2 < 1
        hu[inside] = -850.0
        lungs[side] = inside
    rng = np.random.default_rng(0)
    volume = CTVolume.from_source(
        (hu + rng.normal(0, 5, shape)).astype(np.float32), source, Provenance("phantom", "0")
    )
    return volume, {name: np.ascontiguousarray(volume.axes.apply(m)) for name, m in lungs.items()}


@pytest.mark.parametrize("slug", IMPLANTABLE)
def test_lesion_lies_in_the_lung_and_changes_only_its_surroundings(chest, slug):
    volume, masks = chest
    upper = np.zeros(volume.shape, dtype=bool)
    upper[:, :, 30:] = True
    for side in ("right", "left"):
        lung = masks[f"lung_{side}"]
        masks = masks | {f"{side} upper lobe": lung & upper, f"{side} lower lobe": lung & ~upper}
    result = implant(volume, masks, [FindingPlan(slug, "severe", 3)], work_mm=3.0)
    mask = result.lesions[slug]
    lungs = masks["lung_right"] | masks["lung_left"]
    assert mask.any() and (mask & lungs).sum() >= 0.9 * mask.sum()
    change = np.abs(result.hu - volume.hu)
    assert change[mask].mean() > 20
    assert (change[~lungs] > 1).mean() < 0.02 and np.isfinite(result.hu).all()
    truth = result.scene.lesions[0]
    side = {"right": ["lung_right"], "left": ["lung_left"]}.get(truth.side, ["lung_right", "lung_left"])
    assert all((mask & masks[name]).any() for name in side)


def test_refuses_what_it_cannot_do(chest):
    volume, masks = chest
    with pytest.raises(UsageError, match="OPTION_UNKNOWN"):
        implant(volume, masks, [FindingPlan("hiatal_hernia", "mild", 1)])
    with pytest.raises(UsageError, match="MASK_MISSING"):
        implant(volume, {"lung_left": masks["lung_left"]}, [])
    with pytest.raises(UsageError, match="MASK_MISSING"):
        implant(volume, masks, [FindingPlan("consolidation", "mild", 1)])
    with pytest.raises(UsageError, match="GRID_MISMATCH"):
        implant(volume, masks | {"heart": np.zeros((2, 2, 2), dtype=bool)}, [])
