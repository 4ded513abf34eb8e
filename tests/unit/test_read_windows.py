"""Windows and depths of voxels: against plain loops, in padding, at their heights."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hilum.cohort.phantom_set import phantom_volume
from hilum.errors import UsageError
from hilum.geometry import Geometry
from hilum.io.weights import preset_data
from hilum.model.preset import Preset
from hilum.phantom.draw import draw_plan
from hilum.phantom.make import make_phantom
from hilum.read.reader_windows import ReaderWindows, pooled
from hilum.read.scan_model import ScanModel
from hilum.volume import CTVolume, Provenance

SIDE = 24


def test_statistics_are_those_of_plain_loops():
    voxels = torch.randn(3, 30, 20, 50, generator=torch.Generator().manual_seed(0))
    voxels[0].abs_()
    windows, depths, start = pooled(voxels, SIDE, 6)
    assert windows.shape == (2, 1, 3, 12) and depths.shape == (2, 1, 3, 4, 6) and start == -11
    full = torch.full((3, 48, 24, 72), -1.0)
    full[0] = 0.0
    full[:, 9:39, 2:22, 11:61] = voxels
    for u, w, p in ((0, 0, 0), (1, 0, 3), (1, 2, 1), (0, 1, 2)):
        slab = full[:, SIDE * u : SIDE * (u + 1), :, SIDE * w + 6 * p : SIDE * w + 6 * (p + 1)]
        told = torch.cat([slab.amax((1, 2, 3)), slab.mean((1, 2, 3))])
        assert torch.allclose(depths[u, 0, w, p], told, atol=1e-6)
        own = depths[u, 0, w]
        assert torch.allclose(windows[u, 0, w], torch.cat([own.amax(0), own.mean(0)]), atol=1e-6)


class StandIn(ScanModel):
    """A model that says where the scan is bright."""

    def __init__(self) -> None:
        self.preset = Preset.from_dict(preset_data("phantom-small"))

    def run(self, volume, outlines=True):
        tensor, trace = self.preset.prep.apply(volume)
        bright = (tensor[0, 0] > 0.5).float().numpy()
        return SimpleNamespace(
            organs=np.stack([bright] * 7), maps=np.stack([bright] * 18), grid=trace.grid
        )  # fmt: skip


@pytest.mark.parametrize("depth_mm", [12.0, 4.0, 24.0])
def test_depths_lie_at_their_heights(depth_mm):
    hu = np.full((80, 80, 90), -1000.0, dtype=np.float32)
    hu[10:70, 10:70] = 0.0
    hu[20:35, 20:60, 10:80] = hu[45:60, 20:60, 10:80] = -850.0
    hu[30:50, 30:50, 60:63] = 1000.0
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -160.0, -160.0, -500.0
    volume = CTVolume.from_source(hu, Geometry(hu.shape, affine), Provenance("phantom", "0" * 64))
    source = ReaderWindows(StandIn())
    found = source.read(volume, depth_mm)
    assert source.width == 92 and found.both.shape[4] == 2 * 92 and found.depths.shape[5] == 92
    assert np.allclose(np.diff(found.depth_mm), depth_mm)
    assert len(found.depth_mm) == found.depths.shape[3] * found.depths.shape[4]
    # the highest value of the first map at every depth, over all windows of the plane
    line = found.depths[0, :, :, :, :, 7].amax((0, 1)).flatten().numpy()
    bright_mm = -500 + 4 * 61
    at = found.depth_mm[line > 0.5]
    assert len(at) and np.abs(at - bright_mm).max() <= depth_mm / 2 + 6
    inside = found.depth_mm[found.there]
    assert inside.min() >= -500 and inside.max() <= -500 + 4 * 89


def test_depths_divide_a_window():
    volume = CTVolume.from_source(
        np.zeros((8, 8, 8), np.float32), Geometry((8, 8, 8), np.eye(4)), Provenance("phantom", "0" * 64)
    )
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*divide a window"):
        ReaderWindows(StandIn()).read(volume, 20.0)


def test_windows_need_no_outlines():
    phantom = make_phantom(draw_plan(3, spacing_mm=(3.0, 3.0, 4.0)), work_mm=4.0)
    volume, model = phantom_volume(phantom), ScanModel.load("phantom-small")
    whole, without = model.run(volume), model.run(volume, outlines=False)
    assert (whole.organs == without.organs).all() and (whole.maps == without.maps).all()
    assert whole.outlines.shape > without.outlines.shape == without.organs.shape
