"""What the scan says of a cell: each part against a slow, obviously right twin."""

import numpy as np
import pytest
import torch

from hilum.model.bands import GAIN, CellReader, banded, neighbourhood, voxel_values
from hilum.model.fold import rows
from hilum.model.ynet import AnomalyCells, AnomalyHeads, YNet, YNetConfig

KNOTS = torch.tensor([-1.0, -0.5, 0.0, 0.2, 1.0], dtype=torch.float64)
OTHER = torch.tensor([-0.3, 0.0, 0.4], dtype=torch.float64)


def scan(seed=0, shape=(1, 1, 12, 12, 16)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.6


def test_a_curve_over_bands_is_linear_interpolation():
    values = torch.cat(
        [scan().flatten()[:60], torch.tensor([-9.0, 9.0, -1.0, 1.0, 0.0], dtype=torch.float64)]
    )
    bands = banded(torch.stack([values, values / 2], -1), [KNOTS, OTHER], torch.float64)
    assert bands.shape == (65, 8)
    curve = torch.randn(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slow = np.interp(values, KNOTS, curve[:5]) + np.interp(values / 2, OTHER, curve[5:])
    assert np.allclose((bands @ curve).numpy(), slow)
    assert torch.allclose(bands[:, :5].sum(1), torch.ones(65, dtype=torch.float64))
    assert bands.min() >= 0


def mean_around(volume, centre, half):
    cut = tuple(slice(max(0, int(c) - half), int(c) + half + 1) for c in centre)
    return volume[cut].mean()


def test_neighbourhoods_equal_their_twin():
    x, organs = scan(), torch.rand((1, 2, 6, 6, 8), dtype=torch.float64)
    fast = neighbourhood(x, organs, KNOTS)[0].numpy()
    assert fast.shape == (14, 6, 6, 8)
    volume = x[0, 0].numpy()
    channels = [np.interp(volume, KNOTS, np.eye(5)[k]) for k in range(5)]
    cells = [c.reshape(6, 2, 6, 2, 8, 2).mean((1, 3, 5)) for c in channels] + list(organs[0].numpy())
    for c, cell in enumerate(cells):
        coarse = cell.reshape(3, 2, 3, 2, 4, 2).mean((1, 3, 5))
        for index in np.ndindex(cell.shape):
            assert fast[c][index] == pytest.approx(mean_around(cell, index, 1))
            assert fast[7 + c][index] == pytest.approx(mean_around(coarse, [i // 2 for i in index], 1))


def test_contrasts_equal_their_twin():
    x = scan()
    x[0, 0, 3, 1, 5] = 3.0
    values = rows(voxel_values(x))[0].reshape(6, 6, 8, 3, 2, 2, 2).numpy()
    volume = x[0, 0].numpy()
    tamed = np.clip(volume, -1, 1)
    cells = tamed.reshape(6, 2, 6, 2, 8, 2).mean((1, 3, 5))
    for index in np.ndindex(volume.shape):
        cell, corner = tuple(i // 2 for i in index), tuple(i % 2 for i in index)
        own, sticks_out, near = values[(*cell, slice(None), *corner)]
        surroundings = mean_around(cells, cell, 1)
        assert own == pytest.approx(volume[index])
        assert sticks_out == pytest.approx(tamed[index] - surroundings)
        assert near == pytest.approx(mean_around(tamed, index, 1) - surroundings)


def test_a_reader_sees_what_it_is_given_and_nothing_of_it_carries_a_gradient_to_the_scan():
    reader = CellReader(3, 2, (-1000.0, 0.0, 1000.0), (0.0, 100.0), hidden=4).double()
    x = scan().requires_grad_()
    organs = torch.rand((1, 2, 6, 6, 8), dtype=torch.float64)
    context = reader.context(x, organs)
    assert not context.requires_grad
    decoded = torch.randn(288, 3, dtype=torch.float64, requires_grad=True)
    features, signs, voxels = reader(decoded, rows(context)[0])
    assert features.shape == (288, reader.out_width)
    assert torch.allclose(signs[:, :3] - signs[:, 3:], decoded)
    # the highest of eight voxels, in bands of its value
    highest = x[0, 0].reshape(6, 2, 6, 2, 8, 2).amax((1, 3, 5)).flatten()
    expected = GAIN * banded(highest[:, None], [reader.bands], torch.float64)
    assert torch.allclose(features[:, 6 + 7 : 6 + 7 + 3], expected)
    assert torch.allclose(features[:, 6 : 6 + 7], voxels.mean(1))
    features.sum().backward()
    assert decoded.grad.abs().sum() > 0


def test_rows_of_the_heads_are_the_voxels_of_their_maps():
    net = YNet(YNetConfig(widths=(8, 8, 8, 8), depth=(1, 1, 1, 1), abn_width=8))
    # the heads of a fresh network say the same everywhere
    for parameter in net.anomaly_heads.parameters():
        torch.nn.init.normal_(parameter)
    x = scan(shape=(1, 1, 16, 32, 48)).float()
    organs = net.organ_features(x)
    low, high = (m[0] for m in net.anomaly_maps(x, organs))
    where = torch.tensor([5, 0, 17, 700])
    coarse, fine = net.anomaly_heads.rows(net.anomaly_cells(x, organs).pick(where))
    for n, cell in enumerate(where.tolist()):
        u, v, w = np.unravel_index(cell, (8, 16, 24))
        assert torch.allclose(low[:, u, v, w], coarse[n], rtol=1e-3, atol=1e-3)
        block = high[:, 2 * u : 2 * u + 2, 2 * v : 2 * v + 2, 2 * w : 2 * w + 2]
        assert torch.allclose(block.flatten(1), fine[n], rtol=1e-3, atol=1e-3)


def test_fine_logits_equal_their_twin_value_and_gradient():
    config = YNetConfig(abn_width=3, organs=2, findings=2)
    heads = AnomalyHeads(config).double()
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter)
    x, organs = scan(), torch.rand((1, 2, 6, 6, 8), dtype=torch.float64)
    context = rows(heads.reader.context(x, organs))[0][:7]
    start = torch.randn(7, 3, dtype=torch.float64)
    fast_in, slow_in = (start.clone().requires_grad_() for _ in range(2))
    low, high = heads.rows(AnomalyCells(fast_in, context))
    high.sum().backward()
    knots = [heads.reader.bands, heads.reader.contrasts, heads.reader.contrasts]
    curves = heads.voxel.detach().split([len(k) for k in knots], dim=1)
    features, _, _ = heads.reader(slow_in, context)
    total = 0.0
    for n in range(7):
        signs = torch.cat([slow_in[n].clamp(min=0), (-slow_in[n]).clamp(min=0)])
        for d in range(2):
            cell = features[n] @ heads.cell.weight[d] + heads.cell.bias[d]
            assert low[n, d].item() == pytest.approx(cell.item(), abs=1e-4)
            for k in range(8):
                values = context[n, -24:].reshape(3, 8)[:, k].tolist()
                own = sum(np.interp(v, q, GAIN * c[d]) for v, q, c in zip(values, knots, curves, strict=True))
                voxel = cell + signs @ heads.corner.weight[8 * d + k] + own
                assert high[n, d, k].item() == pytest.approx(voxel.item(), abs=1e-4)
                total = total + voxel
    total.backward()
    assert torch.allclose(fast_in.grad, slow_in.grad, atol=1e-5)
