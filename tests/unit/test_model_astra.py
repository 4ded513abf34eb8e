"""Astra's network against a plain one of the published layout, with its batch norms."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hilum.errors import WeightsError
from hilum.model.astra import Astra, AstraConfig, astra_values, fold_published

TINY = AstraConfig(blocks=(2, 1, 2), width=2)


class PlainBlock(nn.Module):
    def __init__(self, wide, narrow, stride, changes):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(wide, narrow, 1, bias=False), nn.BatchNorm3d(narrow)
        self.conv2 = nn.Conv3d(narrow, narrow, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm3d(narrow)
        self.conv3, self.bn3 = nn.Conv3d(narrow, 4 * narrow, 1, bias=False), nn.BatchNorm3d(4 * narrow)
        if changes:
            shortcut = nn.Conv3d(wide, 4 * narrow, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm3d(4 * narrow))

    def forward(self, x):
        short = self.downsample(x) if hasattr(self, "downsample") else x
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + short)


class Plain(nn.Module):
    """Names and axes as published: Z, X, Y, three equal channels."""

    def __init__(self, config):
        super().__init__()
        self.conv1 = nn.Conv3d(3, config.width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(config.width)
        self.count, wide = len(config.blocks), config.width
        for n, blocks in enumerate(config.blocks):
            narrow, made = config.width * 2**n, []
            for k in range(blocks):
                made.append(PlainBlock(wide, narrow, 2 if n and not k else 1, not k))
                wide = 4 * narrow
            setattr(self, f"layer{n + 1}", nn.Sequential(*made))

    def forward(self, scan):
        x = scan.permute(0, 1, 4, 2, 3).expand(-1, 3, -1, -1, -1)
        x = F.max_pool3d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for n in range(self.count):
            x = getattr(self, f"layer{n + 1}")(x)
        return x.permute(0, 1, 3, 4, 2)


def plain(config=TINY):
    torch.manual_seed(0)
    made = Plain(config).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm3d):  # trained norms are not the identity
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.3)
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.2, 2.0)
    return made


@pytest.mark.parametrize("shape", [(32, 48, 16), (17, 30, 9)])
def test_the_folded_network_equals_the_plain_one(shape):
    published = plain()
    folded = Astra(TINY).eval()
    folded.load_state_dict(fold_published(published.state_dict(), TINY))
    scan = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(1))
    wanted, found = published(scan), folded(scan)
    assert wanted.abs().max() > 0.1
    assert tuple(found.shape) == (
        2,
        TINY.out_width,
        *(-(-n // s) for n, s in zip(shape, TINY.strides, strict=True)),
    )
    assert torch.allclose(found, wanted, atol=1e-5)


def test_the_published_size():
    with torch.device("meta"):
        network = Astra()
    assert network.config.out_width == 2048
    assert network.config.strides == (32, 32, 16)
    kernels = sum(p.numel() for name, p in network.named_parameters() if name.endswith("weight"))
    # published: 117,517,632 with two more input channels, and four numbers per channel for each norm
    channels = sum(p.numel() for name, p in network.named_parameters() if name.endswith("bias"))
    assert kernels + 2 * 64 * 147 + 4 * channels == 117_517_632


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("layer1.0.bn2.running_var"),
        lambda state: state.update({"classifier.weight": torch.zeros(2, 2)}),
        lambda state: state.update({"layer1.0.conv2.weight": torch.zeros(2, 2, 1, 1, 1)}),
        lambda state: state.update({"layer1.0.conv2.weight": torch.zeros(3, 2, 3, 3, 3)}),
    ],
    ids=["missing", "left over", "another kernel", "another norm"],
)
def test_tensors_that_do_not_fit_are_refused(change):
    state = dict(plain().state_dict())
    change(state)
    with pytest.raises(WeightsError) as caught:
        fold_published(state, TINY)
    assert caught.value.code == "WEIGHTS_KEYS"


def test_values_are_the_published_window():
    values = astra_values(torch.tensor([-2000.0, -1000.0, -400.0, 200.0, 900.0]))
    assert values.tolist() == pytest.approx([0, 0, 0.5, 1, 1])
