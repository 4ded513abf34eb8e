"""What boxes and running norms promise: a crop is the whole scan's, and statistics are those of all cells."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hilum.model.local import WHOLE, LocalDecoder, LocalStem, RunningNorm, convolved, trimmed

X = torch.randn(2, 4, 9, 10, 11, generator=torch.Generator().manual_seed(3))


def test_statistics_are_those_of_every_cell_seen():
    norm = RunningNorm(4)
    parts = [X[:1, :, :5], X[1:, :, 2:] * 3 + 1, X + 5]
    # boxes count alike, however many cells they have
    for part in parts:
        norm(part)
    means = torch.stack([part.mean((0, 2, 3, 4)) for part in parts])
    squares = torch.stack([part.square().mean((0, 2, 3, 4)) for part in parts])
    assert torch.allclose(norm.mean, means.mean(0), atol=1e-6)
    assert torch.allclose(norm.variance, squares.mean(0) - means.mean(0) ** 2, atol=1e-4)


def test_one_scan_is_normed_as_batch_norm_does():
    norm = RunningNorm(4)
    assert torch.allclose(norm(X), F.batch_norm(X, None, None, training=True), atol=1e-4)


def test_reading_learns_nothing():
    norm = RunningNorm(4)
    norm(X)
    norm.eval()
    before = norm.mean.clone()
    norm(X + 9)
    assert torch.equal(norm.mean, before)


def test_what_all_cells_share_hides_nothing():
    """The fault that a norm across channels had: a large constant beside a small difference."""
    norm = RunningNorm(4)
    large = 0.01 * X + torch.tensor([300.0, -80.0, 5.0, 0.0])[:, None, None, None]
    normed = norm(large)
    assert (normed.std((0, 2, 3, 4)) - 1).abs().max() < 0.1


def test_a_step_with_several_boxes_has_gradients():
    norm = RunningNorm(4)
    weight = torch.ones(4, requires_grad=True)
    total = sum(norm(X * weight[:, None, None, None] + n).square().sum() for n in range(3))
    total.backward()
    assert weight.grad is not None and bool(weight.grad.isfinite().all())


@pytest.mark.parametrize("sides", [WHOLE, (0, 0, 0, 0, 0, 0), (1, 0, 0, 1, 1, 1)])
def test_a_crop_is_convolved_as_the_whole(sides):
    layer = nn.Conv3d(4, 3, 3, padding=1)
    crop = X[:, :, 0:7, 3:10, :]
    ours = convolved(layer, crop, sides)
    # what a crop's own zeros reach is left away, on sides where the scan goes on
    assert torch.allclose(ours, trimmed(layer(crop), sides), atol=1e-5)
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    (ours * weight).sum().backward()
    gradient = layer.weight.grad.clone()
    layer.zero_grad()
    (trimmed(layer(crop), sides) * weight).sum().backward()
    assert torch.allclose(gradient, layer.weight.grad, atol=1e-3)


def test_the_stem_and_the_decoder_give_what_their_reach_says():
    stem, decoder = LocalStem(3, 6), LocalDecoder(6, 5)
    open_ = (0, 0, 0, 0, 0, 0)
    own = stem(torch.randn(1, 3, 24, 24, 28), open_)
    assert own.shape == (1, 6, 10, 10, 12)
    assert decoder(own, open_).shape == (1, 5, 6, 6, 8)
    assert stem(torch.randn(1, 3, 24, 24, 28)).shape == (1, 6, 12, 12, 14)
