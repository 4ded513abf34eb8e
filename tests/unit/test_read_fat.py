"""Fat is no heart: what the rule takes away and what it leaves."""

import pytest
import torch

from hilum.cohort.prep import Prep
from hilum.model.preset import Preset, build_network
from hilum.model.ynet import YNetConfig
from hilum.read.scan_chest import ChestWay, is_fat
from hilum.text.vocabulary import ORGAN_CHANNELS

MUSCLE, FAT, AIR = 0.05, -0.09, -0.9


def layers(noise: float = 0.0) -> torch.Tensor:
    """Muscle, 8 mm of fat, muscle, air along the first axis of a scan at 2 mm."""
    scan = torch.full((1, 1, 16, 8, 8), MUSCLE)
    scan[:, :, 4:8], scan[:, :, 12:] = FAT, AIR
    return scan + noise * torch.randn(scan.shape, generator=torch.Generator().manual_seed(0))


def test_a_layer_of_fat_is_found_whole():
    found = is_fat(layers())
    assert found.shape == (16, 8, 8)
    assert found[4:8].all() and not found[:3].any() and not found[9:11].any()
    assert not found[13:].any(), "lung is not fat"


def test_noise_does_not_make_fat_of_muscle():
    noisy = layers(noise=0.03)
    inside = is_fat(noisy)[9:11]
    alone = ((noisy > -0.2) & (noisy < -0.02))[0, 0, 9:11]
    assert alone.float().mean() > 0.004 and inside.float().mean() < 0.001


@pytest.mark.parametrize("organ", ORGAN_CHANNELS)
def test_the_heart_alone_loses_it(organ):
    config = YNetConfig(widths=(8, 8, 8, 8), depth=(1, 1, 1, 1), abn_width=8, reader=8, outline=4)
    preset = Preset("tiny", "ynet", config, Prep(4.0), (1.0,) * 18)
    network = build_network(preset).eval()
    scan, fine = torch.full((1, 1, 32, 16, 16), MUSCLE), torch.full((1, 1, 64, 32, 32), MUSCLE)
    fine[:, :, 10:20] = FAT
    way = ChestWay(preset, network)
    with torch.inference_mode():
        features = network.organ_features(scan)
        told = way.outlines(fine, features)
        plain = torch.sigmoid(network.outlines(fine, features))[0]
    channel = ORGAN_CHANNELS.index(organ)
    outside = torch.ones(64, dtype=torch.bool)
    if organ == "heart":
        assert (told[channel, 10:20] == 0).all() and (plain[channel] > 0).all()
        outside[10:20] = False
    assert torch.equal(told[channel, outside], plain[channel, outside])
