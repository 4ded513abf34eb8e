"""A part of the chest by name: where it lies, and that nothing outside it is seen."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from hilum.errors import InputRefused, UsageError
from hilum.geometry import Geometry
from hilum.io.weights import preset_data
from hilum.model.preset import Preset
from hilum.read import regions
from hilum.read.reader_windows import ReaderWindows
from hilum.read.regions import LUNG_THIRDS, LUNGS, Region, region_alone, region_in, require_region
from hilum.read.scan_model import ScanModel
from hilum.text.vocabulary import ORGAN_CHANNELS
from hilum.volume import CTVolume, Provenance

SHAPE = (60, 40, 60)


def chest(bright=(), seed=0):
    """Two lungs as boxes, the right one (greater x) taller; noise; `bright` boxes of bone."""
    hu = np.random.default_rng(seed).normal(0, 10, SHAPE).astype(np.float32)
    hu[6:26, 8:32, 10:46] = hu[34:54, 8:32, 10:52] = -850.0
    for box in bright:
        hu[box] = 1000.0
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -120.0, -80.0, -300.0
    return CTVolume.from_source(hu, Geometry(SHAPE, affine), Provenance("phantom", "0" * 64))


class StandIn(ScanModel):
    """A model that calls air a lung and bone every finding."""

    def __init__(self):
        self.preset = Preset.from_dict(preset_data("phantom-small"))

    def run(self, volume, outlines=True):
        tensor, trace = self.preset.prep.apply(volume)
        hu = tensor[0, 0].numpy() * 1000
        # beyond the body is air as well
        lung = (hu < -500) & (hu > -950)
        organs = np.stack([lung if name == "lung" else hu > 5000 for name in ORGAN_CHANNELS])
        maps = np.stack([(hu > 500).astype(np.float32)] * 18)
        return SimpleNamespace(organs=organs.astype(np.float32), maps=maps, grid=trace.grid)


@pytest.fixture
def model(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setattr(regions, "_outlines", lambda: stand_in)
    return stand_in


def places(name, volume, model, organs=None):
    found = model.run(volume)
    return found.grid.to_mm(np.argwhere(region_in(Region(name, organs), found.organs, found.grid, volume)))


def test_lungs_and_thirds_part_the_lungs(model):
    volume = chest()
    whole = places("lung", volume, model)
    right, left = (places(name, volume, model) for name in LUNGS)
    assert right[:, 0].min() > left[:, 0].max() and len(right) + len(left) == len(whole)
    thirds = [places(name, volume, model) for name in LUNG_THIRDS]
    assert sum(map(len, thirds)) == len(whole)
    for lung, own in ((right, thirds[:3]), (left, thirds[3:])):
        lower, middle, upper = own
        assert lower[:, 2].max() < middle[:, 2].min() < middle[:, 2].max() < upper[:, 2].min()
        assert lower[:, 2].min() == lung[:, 2].min() and upper[:, 2].max() == lung[:, 2].max()
        assert max(map(len, own)) < 1.3 * min(map(len, own))


def test_what_the_scan_does_not_show_is_refused(model):
    with pytest.raises(InputRefused) as caught:
        places("heart", chest(), model)
    assert caught.value.code == "COVERAGE" and "heart" in str(caught.value)


def test_lobes_need_masks(model, tmp_path):
    volume = chest()
    for name, hint in (("left lower lobe", True), ("left kidney", False)):
        with pytest.raises(UsageError) as caught:
            require_region(name, organs=False)
        assert caught.value.code == "OPTION_UNKNOWN" and ("--organs" in str(caught.value)) == hint
    require_region("left lower lobe", organs=True)
    # TotalSegmentator's number of the left lower lobe is 11, of the upper 10
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[6:26, 8:32, 10:28], labels[6:26, 8:32, 28:46] = 11, 10
    nib.save(nib.Nifti1Image(labels, volume.geometry.affine_ras), tmp_path / "o.nii.gz")
    lower = places("left lower lobe", volume, model, tmp_path / "o.nii.gz")
    assert len(lower) == 20 * 24 * 18 and lower[:, 2].max() == -300 + 4 * 27
    with pytest.raises(InputRefused) as caught:
        places("right lower lobe", volume, model, tmp_path / "o.nii.gz")
    assert caught.value.code == "COVERAGE"


def test_a_region_alone_is_a_scan_in_its_own_place(model):
    volume = chest(bright=[np.s_[10:14, 12:16, 20:24]])
    alone = region_alone(volume, Region("left lung"))
    assert set(np.unique(np.sign(alone.hu + 500))) <= {-1.0, 1.0} and alone.shape < volume.shape
    # what is left is where it was, and the rest is air
    index = np.argwhere(alone.hu > -1000)
    there = np.rint(volume.geometry.to_vox(alone.geometry.to_mm(index))).astype(int)
    assert len(index) and (volume.hu[tuple(there.T)] == alone.hu[tuple(index.T)]).all()
    assert there[:, 0].max() < 30


@pytest.mark.parametrize("name", ["left lung", "lower third of the left lung"])
def test_a_reader_sees_nothing_outside_the_region(model, name):
    windows = ReaderWindows(model)
    outside = chest(bright=[np.s_[40:46, 12:20, 14:40]])
    one, other = (windows.read_region(volume, Region(name)) for volume in (chest(), outside))
    assert (one.both == other.both).all() and (one.depths == other.depths).all()
    assert not (windows.read(chest()).both == windows.read(outside).both).all()
    # a lesion within, wholly walled by lung, is seen
    hu = np.array(chest().hu)
    hu[14:15, 18:19, 14:16] = -600.0
    within = CTVolume.from_source(hu, chest().geometry, Provenance("phantom", "0" * 64))
    assert not (windows.read_region(within, Region(name)).both == one.both).all()
    low, high = one.depth_mm[one.there].min(), one.depth_mm[one.there].max()
    assert -320 < low < high < -60
