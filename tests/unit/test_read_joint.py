"""A scan in one space with texts, depth by depth: windows, thin depths, padding, places."""

import numpy as np
import pytest
import torch
from _encoders import file_of, stand_in

from hilum.cohort.prep_presets import Pipeline
from hilum.errors import UsageError
from hilum.geometry import Geometry
from hilum.read.encoder import LoadedEncoder
from hilum.read.joint import locate, put_in_space
from hilum.volume import CTVolume, Provenance

PREP = Pipeline(
    "tiny-joint", spacing_mm=(4.0, 4.0, 3.0), anchor="first", clip_first=True, values="unit",
    fit="pad-multiple", fit_vox=(32, 32, 16),
)  # fmt: skip
LOW_MM = -70.0


@pytest.fixture(autouse=True)
def _tower(monkeypatch):
    stand_in(monkeypatch)


@pytest.fixture(scope="module")
def scan():
    """40 slices of 3 mm, every one brighter than the one below, in a field of two windows."""
    hu = np.random.default_rng(0).normal(0, 20, (40, 32, 40)).astype(np.float32)
    hu += np.linspace(-600, 400, 40, dtype=np.float32)
    affine = np.diag([4.0, 4.0, 3.0, 1.0])
    affine[:3, 3] = -80.0, -60.0, LOW_MM
    return CTVolume.from_source(hu, Geometry(hu.shape, affine), Provenance("phantom", "0" * 64))


def joint(**changes) -> LoadedEncoder:
    net = {"patch": 8, "patch_z": 4, "rope_full": True, "slices": False, "qkv_bias": True, "registers": 0}
    return LoadedEncoder(
        file_of("3d-joint", prep=PREP.facts(), prep_2d=None, net=net, patch=[8, 8, 4], field_vox=[32, 32, 16],
                **changes)
    )  # fmt: skip


def test_depths_lie_where_the_scan_is_and_padding_is_none(scan):
    found = put_in_space(joint(), scan)
    # 40 slices in windows of 16 are three windows of 48: 4 slices of padding at each end, one depth each
    step = np.diff(found.depth_mm)
    assert np.allclose(step, 12.0)
    inside = scan.geometry.corners_mm()[:, 2]
    assert inside.min() <= found.depth_mm.min() and found.depth_mm.max() <= inside.max()
    assert found.depths.shape == (len(found.depth_mm), 12) and len(found.depth_mm) == 10
    assert np.allclose(np.linalg.norm(found.depths, axis=1), 1, atol=1e-5)
    assert np.isclose(np.linalg.norm(found.report), 1, atol=1e-5) and found.disease.shape == (12,)


@pytest.mark.parametrize(("depth_mm", "count"), [(12.0, 10), (6.0, 20), (3.0, 40)])
def test_thinner_depths(scan, depth_mm, count):
    found = put_in_space(joint(), scan, depth_mm=depth_mm)
    assert len(found.depth_mm) == count and np.allclose(np.diff(found.depth_mm), depth_mm)


@pytest.mark.parametrize("depth_mm", [0.5, 5.0, 36.0, -3.0])
def test_depths_divide_a_window(scan, depth_mm):
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*divide a window"):
        put_in_space(joint(), scan, depth_mm=depth_mm)


def test_the_batch_of_windows_does_not_matter(scan):
    model = joint()
    one, all_ = (put_in_space(model, scan, batch=size) for size in (1, 99))
    assert np.allclose(one.depths, all_.depths, atol=1e-5) and np.allclose(one.report, all_.report, atol=1e-5)


def test_a_scan_upside_down_has_its_depths_the_right_way_up(scan):
    """The same anatomy, stored from head to foot."""
    affine = scan.geometry.affine_ras.copy()
    affine[:3, 3] += 39 * affine[:3, 2]
    affine[:3, 2] *= -1
    stored = CTVolume.from_source(
        np.ascontiguousarray(scan.hu[:, :, ::-1]), Geometry(scan.hu.shape, affine), scan.provenance
    )
    model = joint()
    one, other = put_in_space(model, scan), put_in_space(model, stored)
    assert np.allclose(one.depth_mm, other.depth_mm) and np.allclose(one.depths, other.depths, atol=1e-5)


def test_a_sentence_is_put_at_the_depth_that_is_like_it(scan, monkeypatch):
    model = joint()
    found = put_in_space(model, scan)
    rows = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0][:10].astype(np.float32)
    found = type(found)(found.report, found.disease, rows, found.depth_mm)
    mixed = rows[6] + rows[7]
    told = np.stack([rows[3], mixed / np.linalg.norm(mixed)])
    monkeypatch.setattr(model, "encode_text", lambda texts, snippets: told)
    alone, between = locate(model, found, ["a", "b"])
    assert alone.z_mm == pytest.approx(found.depth_mm[3], abs=0.1)
    assert between.z_mm == pytest.approx((found.depth_mm[6] + found.depth_mm[7]) / 2, abs=0.5)
    assert alone.share.argmax() == 3 and alone.share.sum() == pytest.approx(1, abs=1e-5)
    assert 0 < alone.spread_mm < between.spread_mm < 40


def test_sentences_go_through_the_head_of_snippets(scan):
    model = joint()
    with torch.no_grad():
        model.encoder.joint.text_copy.last.weight.normal_()
    reports, snippets = model.encode_text(["effusion"]), model.encode_text(["effusion"], snippets=True)
    assert reports.shape == snippets.shape == (1, 12) and not np.allclose(reports, snippets)
    (where,) = locate(model, put_in_space(model, scan), ["effusion"])
    assert LOW_MM <= where.z_mm <= LOW_MM + 120


@pytest.mark.parametrize("kind", ["3d", "3d-vlm"])
def test_other_models_say_what_they_are(scan, kind):
    model = LoadedEncoder(file_of(kind))
    with pytest.raises(UsageError, match=rf"MODEL_INPUT.*3d-joint; got kind {kind}"):
        put_in_space(model, scan)
    if kind == "3d-vlm":
        with pytest.raises(UsageError, match=r"MODEL_INPUT.*snippets"):
            model.encode_text(["a"], snippets=True)


@pytest.mark.parametrize("seed", range(5))
def test_the_answer_is_as_likely_too_high_as_too_low(scan, monkeypatch, seed):
    model = joint()
    found = put_in_space(model, scan)
    told = np.random.default_rng(seed).normal(size=(1, 12)).astype(np.float32)
    monkeypatch.setattr(model, "encode_text", lambda texts, snippets: told / np.linalg.norm(told))
    (where,) = locate(model, found, ["a"])
    step = np.diff(found.depth_mm).mean()
    # each depth spread evenly over its thickness
    below = np.clip((where.z_mm - (found.depth_mm - step / 2)) / step, 0, 1)
    assert (below * where.share).sum() == pytest.approx(0.5, abs=1e-3)
