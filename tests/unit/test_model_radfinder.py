"""The combiner and the heads: sizes, grids of different scans in one batch, places, copies."""

import math

import pytest
import torch

from hilum.model.combiner import Combiner, CombinerConfig, combiner_vit
from hilum.model.joint_head import JointHead
from hilum.model.radfinder import RadFinder, RadFinderConfig
from hilum.model.rope import coordinates, rotation

TINY = CombinerConfig(window_width=8, vit=combiner_vit(width=24, depth=2, heads=2))
SMALL = RadFinderConfig(TINY, text_width=10, hidden=16, bottleneck=6, size=12)
GRIDS = [(2, 1, 3), (1, 2, 2), (3, 2, 1)]
DEPTHS = 4


def batch(generator=None):
    """Three scans with grids of their own, padded to the largest, with rubbish where no window is."""
    generator = generator or torch.Generator().manual_seed(0)
    windows = torch.randn(3, 3, 2, 3, 16, generator=generator)
    deep = torch.randn(3, 3, 2, 3, DEPTHS, 8, generator=generator)
    present = torch.zeros(3, 3, 2, 3, dtype=torch.bool)
    for scan, (u, v, w) in enumerate(GRIDS):
        present[scan, :u, :v, :w] = True
    return windows, deep, present


def trained(module):
    """Far from the start, where all scans look alike."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return module.eval()


@pytest.mark.parametrize("frame", ["published", "shared"])
def test_a_padded_scan_is_what_it_is_alone(frame):
    model = trained(RadFinder(RadFinderConfig(CombinerConfig(8, TINY.vit, frame), 10, 16, 6, 12)))
    windows, deep, present = batch()
    scans, (rows, valid) = model.scans(windows, present), model.depths(deep, present)
    for scan, (u, v, w) in enumerate(GRIDS):
        whole = torch.ones(1, u, v, w, dtype=torch.bool)
        alone = model.scans(windows[scan : scan + 1, :u, :v, :w], whole)
        for ours, theirs in zip(scans, alone, strict=True):
            assert torch.allclose(ours[scan], theirs[0], atol=1e-5)
        own, there = model.depths(deep[scan : scan + 1, :u, :v, :w], whole)
        assert valid[scan].sum() == w * DEPTHS == there.sum()
        assert torch.allclose(rows[scan, : w * DEPTHS], own[0], atol=1e-5)


def test_embeddings_have_length_one_and_tell_scans_apart():
    model = trained(RadFinder(SMALL))
    windows, deep, present = batch()
    scans, (rows, valid) = model.scans(windows, present), model.depths(deep, present)
    for found in (*scans, rows[valid], model.reports(torch.randn(4, 10)), model.snippets(torch.randn(2, 10))):
        assert torch.allclose(found.norm(dim=-1), torch.ones(found.shape[:-1]), atol=1e-5)
    assert (scans.report[0] - scans.report[1]).norm() > 0.1 and (rows[0, 0] - rows[0, 5]).norm() > 0.05


def test_copies_begin_equal_and_go_apart():
    model = RadFinder(SMALL)
    windows, _, present = batch()
    scans = model.scans(windows, present)
    assert torch.equal(scans.report, scans.disease)
    pooled = torch.randn(3, 10)
    assert torch.equal(model.reports(pooled), model.snippets(pooled))
    scans.disease.sum().backward()
    assert model.image_head.last.weight.grad is None and model.image_copy.last.weight.grad is not None


def test_depths_begin_as_means_of_patches_are_read():
    combiner = Combiner(TINY)
    assert torch.equal(combiner.depth_proj.weight, combiner.window_proj.weight[:, 8:])
    with torch.no_grad():
        combiner.window_proj.weight.normal_()
        combiner.window_proj.bias.normal_()
    combiner.start_depths()
    deep = torch.randn(1, 1, 1, 1, 1, 8)
    windows = torch.cat([torch.zeros(1, 1, 1, 1, 8), deep[..., 0, :]], dim=-1)
    assert torch.allclose(combiner.depth_proj(deep)[..., 0, :], combiner.window_proj(windows))


def test_places_of_windows_and_depths():
    _, _, present = batch()
    tokens = torch.zeros(3, *present.shape[1:], 24)
    head, base = TINY.vit.head, TINY.vit.rope_base
    for scan, grid in enumerate(GRIDS):
        own = coordinates(grid, device=torch.device("cpu"), dtype=torch.float32)
        expected = rotation(own, head, base, full=True)
        table = Combiner(TINY)._table(present, 1, tokens, None)
        assert torch.allclose(table.cos[scan, 0][present[scan].flatten()], expected.cos, atol=1e-6)
    there = torch.ones(1, 1, 1, 2 * 8, dtype=torch.bool)
    deep = torch.zeros(1, 1, 1, 16, 24)
    lines = {"published": (2 * (torch.arange(16) + 0.5) / 2 - 1), "shared": (torch.arange(16) + 0.5) / 8 - 1}
    for frame, line in lines.items():
        places = torch.stack([torch.zeros(16), torch.zeros(16), line], dim=1)
        table = Combiner(CombinerConfig(8, TINY.vit, frame))._table(there, 8, deep, None)  # type: ignore[arg-type]
        assert torch.allclose(table.sin[0, 0], rotation(places, head, base, full=True).sin, atol=1e-5)
    assert lines["published"][-1] == 14.5 and lines["shared"][-1] == pytest.approx(1 - 1 / 16)


def test_all_coordinates_are_rescaled_together():
    _, _, present = batch()
    tokens, two = torch.zeros(3, *present.shape[1:], 24), torch.tensor(2.0)
    combiner = Combiner(TINY)
    plain, wide = (combiner._table(present, 1, tokens, factor) for factor in (None, two))
    angle = torch.atan2(plain.sin, plain.cos)
    assert torch.allclose(wide.sin, torch.sin(2 * angle), atol=1e-5)


def test_published_sizes():
    with torch.device("meta"):
        model = RadFinder(RadFinderConfig())
    block = 4 * 1080**2 + 4 * 1080 + 8 * 1080**2 + 5 * 1080 + 2 * 2 * 1080 + 2 * 1080
    combiner = 4 * block + (2160 + 1) * 1080 + (1080 + 1) * 1080 + 1080 + 2 * 1080
    head = lambda width: (width + 1) * 2048 + 2049 * 2048 + 2049 * 256 + 256 * 512  # noqa: E731
    assert sum(p.numel() for p in model.combiner.parameters()) == combiner
    total = combiner + 2 * head(2160) + 2 * head(1024) + 2
    assert sum(p.numel() for p in model.parameters()) == total


def test_a_head_is_its_layers_and_rows_of_length_one():
    head = trained(JointHead(5, 7, 4, 3))
    x = torch.randn(2, 5)
    middle = x
    for layer in head.layers:
        middle = layer(middle)
    rows = head.last.weight / head.last.weight.norm(dim=1, keepdim=True)
    product = middle @ rows.T
    assert torch.allclose(head(x), product / product.norm(dim=1, keepdim=True), atol=1e-6)
    assert math.isclose(float(head(x)[0].detach().norm()), 1.0, rel_tol=1e-5)
