"""An encoder in use: where features lie, windows, slices, texts, and what is refused."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from _encoders import SLICES, VOLUMES, config_of, file_of, stand_in
from _store_scans import chest_hu

import hilum
from hilum.cohort.prep_presets import PRESETS, Pipeline, pipeline
from hilum.errors import InputRefused, RunError, UsageError, WeightsError
from hilum.geometry import AxisMap, Geometry
from hilum.io.encoder_file import save_encoder
from hilum.io.nifti import write_nifti
from hilum.read.encoder import LoadedEncoder, prompts
from hilum.read.encoder_windows import cover, middle
from hilum.train.views import Box, show
from hilum.volume import CTVolume, Provenance

SHAPE = (50, 40, 36)
AFFINE = np.array([[-5.0, 0, 0, 120], [0, 5.0, 0, -90], [0, 0, 6.0, -100], [0, 0, 0, 1]])
MARKER_MM = np.array([-40.0, 30.0, 35.0])


@pytest.fixture(autouse=True)
def _tower(monkeypatch):
    stand_in(monkeypatch)


@pytest.fixture(scope="module")
def hu():
    return chest_hu(0, SHAPE).astype(np.float32)


def volume(array, geometry=None):
    geometry = Geometry(array.shape, AFFINE) if geometry is None else geometry
    return CTVolume.from_source(np.ascontiguousarray(array), geometry, Provenance("phantom", "0"))


def marked(hu, at_mm=MARKER_MM):
    """A bright ball around a point."""
    mm = Geometry(SHAPE, AFFINE).to_mm(np.indices(SHAPE).reshape(3, -1).T)
    near = (np.linalg.norm(mm - at_mm, axis=1) < 12).reshape(SHAPE)
    return np.where(near, np.float32(1000), hu)


def same(a, b, atol=2e-5):
    assert a.geometry.same_grid(b.geometry)
    assert np.allclose(a.patches, b.patches, atol=atol) and np.allclose(a.cls, b.cls, atol=atol)


def test_a_scan_is_seen_in_windows_whose_patches_lie_where_they_are(hu):
    model = LoadedEncoder(file_of())
    plain, lit = model.encode_scan(volume(hu)), model.encode_scan(volume(marked(hu)))
    assert len(plain.windows) > 4 and plain.patches.shape == (np.prod(plain.grid), 24)
    changed = np.linalg.norm(plain.patches - lit.patches, axis=1)
    at = plain.patch_at(MARKER_MM)
    assert changed.argmax() == at
    centre = plain.geometry.to_mm(np.array(np.unravel_index(at, plain.grid)))[0]
    assert np.abs(centre - MARKER_MM).max() <= 16  # half a patch of 8 voxels of 4 mm
    assert np.allclose(plain.affine[:3, :3], np.diag([-32, -32, 32]))
    assert plain.patch_at(np.array([1e4, 0.0, 0.0])) is None
    assert np.array_equal(
        plain.maps()[:, 1, 2, 0], plain.patches[np.ravel_multi_index((1, 2, 0), plain.grid)]
    )


def test_patch_values_come_back_onto_the_voxels_of_the_scan(hu):
    scan = volume(hu)
    for features in (
        LoadedEncoder(file_of()).encode_scan(scan),
        LoadedEncoder(file_of()).encode_volume(scan),
    ):
        values = np.zeros(len(features.patches), dtype=np.float32)
        values[features.patch_at(MARKER_MM)] = 1.0
        back = features.on_scan(values)
        assert back.shape == scan.shape
        mm = scan.geometry.to_mm(np.argwhere(back > 0.99))
        index = np.array(np.unravel_index(features.patch_at(MARKER_MM), features.grid))
        centre = features.geometry.to_mm(index)[0]
        # a patch is 32 mm wide; voxels of up to 6 mm at its border are partly its own
        assert np.abs(mm - centre).max() <= 16.01 and np.abs(mm.mean(0) - centre).max() < 4
        assert len(mm) > 0.5 * 32**3 / scan.geometry.voxel_ml / 1000
        with pytest.raises(RunError, match="GRID_MISMATCH"):
            features.on_scan(values[1:])
    everywhere = LoadedEncoder(file_of()).encode_scan(scan)
    assert (everywhere.on_scan(np.ones(len(everywhere.patches), dtype=np.float32)) > 0.999).all()
    assert everywhere.inside.sum() >= 0.5 * scan.geometry.voxel_ml * hu.size / 32.768


@pytest.mark.parametrize(
    ("order", "flips"),
    [((2, 0, 1), (True, False, True)), ((1, 0, 2), (True,) * 3), ((0, 2, 1), (False, True, False))],
)
def test_the_stored_order_of_axes_makes_no_difference(hu, order, flips):
    model, axes = LoadedEncoder(file_of()), AxisMap(order, flips, SHAPE)
    geometry = Geometry(SHAPE, AFFINE)
    other = volume(axes.apply(hu), axes.geometry(geometry))
    for call in (model.encode_scan, model.encode_volume):
        a, b = call(volume(hu)), call(other)
        assert np.array_equal(a.patches, b.patches) and np.array_equal(a.cls, b.cls)
        assert a.geometry.same_grid(b.geometry, 1e-6)
    a, b = model.encode_slices(volume(hu), 9), model.encode_slices(other, 9)
    assert np.array_equal(a.patches, b.patches) and np.allclose(a.z_mm, b.z_mm)


def test_the_middle_is_the_field_of_training(hu):
    """By hand: prepare, cut the middle, call the backbone."""
    model = LoadedEncoder(file_of())
    features = model.encode_volume(volume(hu))
    tensor, trace = VOLUMES.apply(volume(hu))
    low = [(n - 32) // 2 for n in tensor.shape[2:]]
    crop = tensor[:, :, *(slice(a, a + 32) for a in low)]
    with torch.no_grad():
        out = model.encoder.vision(crop)
    assert np.array_equal(features.cls, out.cls[0].numpy())
    assert np.array_equal(features.patches, out.patches[0].numpy())
    first = trace.grid.to_mm(np.array(low) + 3.5)[0]
    assert np.allclose(features.affine[:3, 3], first)
    assert not model.encoder.training and features.embedding is None


def test_windows_together_are_their_means(hu):
    """The slow twin: every window through the backbone, patches added up one by one."""
    model = LoadedEncoder(file_of("3d-vlm"))
    whole = model.encode_scan(volume(hu), patch=16)
    scan = VOLUMES.apply(volume(hu))[0]
    padded = torch.full([1, 1, *(n * 16 for n in whole.grid)], float(scan.min()))
    before = [-s for s in whole.windows.start]
    assert min(before) >= 0
    padded[:, :, *(slice(b, b + n) for b, n in zip(before, scan.shape[2:], strict=True))] = scan
    sums, counts, cls, joined = {}, {}, [], []
    for at in whole.windows:
        crop = padded[:, :, *(slice(16 * a, 16 * a + 32) for a in at)]
        with torch.no_grad():
            out = model.encoder.vision(crop, patch=16)
        cls.append(out.cls[0].numpy())
        joined.append(torch.cat([out.cls, out.patches.mean(1)], 1)[0].numpy())
        for i, token in enumerate(out.patches[0].numpy()):
            place = tuple(np.array(np.unravel_index(i, (2, 2, 2))) + at)
            sums[place] = sums.get(place, 0) + token
            counts[place] = counts.get(place, 0) + 1
    assert max(counts.values()) > 1 and len(counts) == len(whole.patches)
    slow = np.stack([sums[place] / counts[place] for place in np.ndindex(whole.grid)])
    assert np.allclose(whole.patches, slow, atol=1e-5)
    assert np.allclose(whole.cls, np.mean(cls, 0), atol=1e-5)
    embedding = model.encoder.projection.weight.detach().numpy() @ np.mean(joined, 0)
    assert np.allclose(whole.embedding, embedding / np.linalg.norm(embedding), atol=1e-5)


def test_batches_and_repetition_change_nothing(hu):
    model = LoadedEncoder(file_of("3d-vlm"))
    first, again = model.encode_scan(volume(hu)), model.encode_scan(volume(hu))
    assert np.array_equal(first.patches, again.patches) and np.array_equal(first.embedding, again.embedding)
    seen = []
    four = model.encode_scan(volume(hu), batch=4, progress=lambda done, n: seen.append((done, n)))
    same(first, four)
    assert np.allclose(first.embedding, four.embedding, atol=2e-6)
    assert seen[-1] == (len(first.windows),) * 2 and seen[0][0] == 4
    one, all_ = (model.encode_slices(volume(hu), 9, batch=n) for n in (1, 50))
    assert np.allclose(one.patches, all_.patches, atol=2e-5)
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        model.encode_scan(volume(hu), batch=0)


def test_a_scan_as_large_as_the_field_is_one_window(hu):
    model = LoadedEncoder(file_of(field_vox=[96, 96, 96]))
    middle_, whole = model.encode_volume(volume(hu)), model.encode_scan(volume(hu))
    assert len(whole.windows) == 1 and whole.grid == (12, 12, 12)
    assert np.array_equal(middle_.patches, whole.patches)


@pytest.mark.parametrize("patch", [8, 16, 5, (8, 16, 32)])
def test_odd_and_tiny_scans_are_padded_to_whole_patches(patch):
    model = LoadedEncoder(file_of(field_vox=[33, 32, 40]))
    for shape in ((7, 9, 4), (26, 31, 29)):
        scan = volume(np.random.default_rng(0).normal(-200, 300, shape).astype(np.float32))
        for features in (model.encode_scan(scan, patch=patch), model.encode_volume(scan, patch=patch)):
            assert np.isfinite(features.patches).all()
            assert len(features.patches) == np.prod(features.grid)


def test_a_preset_that_crops_does_not_crop_a_whole_scan(hu):
    shape = Pipeline(**{**VOLUMES.__dict__, "fit": "shape"})
    cropped = LoadedEncoder(file_of(prep=shape.facts()))
    model = LoadedEncoder(file_of())
    assert np.array_equal(cropped.encode_volume(volume(hu)).patches, model.encode_volume(volume(hu)).patches)
    a, b = cropped.encode_scan(volume(hu)), model.encode_scan(volume(hu))
    assert len(a.windows) > 4
    same(a, b, atol=0)


def test_patches_larger_than_the_field_and_overlaps_that_are_none_are_refused(hu):
    model = LoadedEncoder(file_of())
    with pytest.raises(InputRefused, match=r"PATCH_GRID.*smaller patch"):
        model.encode_scan(volume(hu), patch=33)
    with pytest.raises(InputRefused, match="PATCH_GRID"):
        model.encode_volume(volume(hu), patch=(8, 8, 64))
    for overlap in (-0.1, 1.0):
        with pytest.raises(UsageError, match="CONFIG_VALUE"):
            model.encode_scan(volume(hu), overlap=overlap)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_windows_cover_everything_and_overlap_enough(overlap):
    for n in (1, 8, 63, 64, 65, 100, 128, 200, 333):
        windows = cover((n, 64, 10), (64, 64, 0), (8, 16, 8), overlap)
        assert windows.size == (64, 64, 16)
        starts = windows.starts[0]
        assert starts[0] == 0 and starts[-1] == windows.grid[0] - 8
        assert windows.grid[0] * 8 >= n and windows.start[0] <= 0
        assert windows.start[0] + windows.grid[0] * 8 >= n
        assert all(0 < b - a <= max(1, 8 * (1 - overlap) + 1) for a, b in itertools.pairwise(starts))
        assert len(windows) == len(starts) and all(isinstance(i, int) for at in windows for i in at)
    assert middle((100, 20, 7), (64, 64, 0), (8, 8, 8)).start == (18, -22, 0)


def test_slices_are_those_of_the_prepared_scan(hu):
    for kind in ("2d", "3d"):
        model = LoadedEncoder(file_of(kind))
        features = model.encode_slices(volume(hu), indices=[30, 4])
        tensor, trace = SLICES.apply(volume(hu))
        with torch.no_grad():
            out = model.encoder.vision(tensor[0, 0].permute(2, 0, 1)[[30, 4], None])
        assert np.allclose(features.patches, out.patches.numpy(), atol=1e-5)
        assert np.allclose(features.cls, out.cls.numpy(), atol=1e-5)
        assert features.grid == (8, 8) and list(features.index) == [30, 4]
        assert np.allclose(
            features.z_mm, [trace.grid.to_mm(np.array([31.5, 31.5, k]))[0, 2] for k in (30, 4)]
        )
        assert np.allclose(features.affine[:3, 3], trace.grid.to_mm(np.array([3.5, 3.5, 0]))[0])
        assert np.array_equal(features.maps()[1, :, 2, 5], features.patches[1, 2 * 8 + 5])
    every = model.encode_slices(volume(hu), every=5)
    assert list(every.index) == list(range(2, SLICES.apply(volume(hu))[0].shape[-1], 5))
    lit = model.encode_slices(volume(marked(hu)), every=5)
    changed = np.linalg.norm(lit.patches - every.patches, axis=2)
    s, p = np.unravel_index(changed.argmax(), changed.shape)
    at = every.geometry.to_mm(np.array([*np.unravel_index(p, every.grid), every.index[s]]))[0]
    assert np.abs(at - MARKER_MM)[:2].max() <= 16.01 and abs(every.z_mm[s] - MARKER_MM[2]) <= 12


def test_slices_of_padding_are_left_out_and_odd_slices_padded(hu):
    prep = Pipeline(**{**VOLUMES.__dict__, "values": "zscore-slice", "fit_vox": (30, 30, 128)})
    model = LoadedEncoder(file_of("2d", prep=prep.facts()))
    features = model.encode_slices(volume(hu), every=1)
    n = round((SHAPE[2] - 1) * 6 / 4 + 1)
    assert list(features.index) == list(range((128 - n) // 2, (128 - n) // 2 + n))
    assert features.z_mm[0] == pytest.approx(-100) and np.allclose(np.diff(features.z_mm), 4.0)
    assert features.grid == (8, 7)  # 62 × 49 voxels
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*0 to 127"):
        model.encode_slices(volume(hu), indices=[128])
    for wrong in ({"indices": []}, {"every": 0}):
        with pytest.raises(UsageError, match="CONFIG_VALUE"):
            model.encode_slices(volume(hu), **wrong)


def test_a_model_is_asked_only_for_what_it_learned(hu):
    flat, deep = LoadedEncoder(file_of("2d")), LoadedEncoder(file_of("3d", prep_2d=None))
    for call in (flat.encode_volume, flat.encode_scan):
        with pytest.raises(UsageError, match=r"MODEL_INPUT.*encode_slices"):
            call(volume(hu))
    with pytest.raises(UsageError, match=r"MODEL_INPUT.*encode_volume"):
        deep.encode_slices(volume(hu))
    embedding = np.zeros(24, dtype=np.float32)
    for call in (
        lambda: deep.encode_text(["a nodule"]),
        lambda: deep.similarity(embedding, embedding[None]),
        lambda: deep.zero_shot(volume(hu), ["a"], ["b"]),
    ):
        with pytest.raises(UsageError, match=r"MODEL_INPUT.*flexict-text"):
            call()


def test_texts_and_scans_share_a_space(hu):
    model = LoadedEncoder(file_of("3d-vlm"))
    texts = model.encode_text(["a nodule", "No nodule.", ""])
    assert texts.shape == (3, 12) and np.allclose(np.linalg.norm(texts[:2], axis=1), 1, atol=1e-6)
    assert (texts[2] == 0).all() and model.encode_text([]).shape == (0, 12)
    many = [f"text {i}" for i in range(70)]
    assert np.allclose(model.encode_text(many)[66:], model.encode_text(many[66:]), atol=1e-6)
    scan = model.encode_volume(volume(hu)).embedding
    assert np.linalg.norm(scan) == pytest.approx(1, abs=1e-6)
    logits = model.similarity(scan, texts)
    scale = float(np.exp(model.encoder.temperature.log_scale.item()))
    assert logits == pytest.approx(scale * texts @ scan, abs=1e-5)
    assert np.allclose(
        model.similarity(np.stack([scan, -scan]), texts), np.stack([logits, -logits]), atol=1e-5
    )
    with pytest.raises(UsageError, match=r"MODEL_INPUT.*12"):
        model.similarity(scan[:5], texts[:, :5])
    with pytest.raises(UsageError, match=r"MODEL_INPUT.*list"):
        LoadedEncoder.encode_text.__wrapped__(model, "a nodule")


def test_lower_case_and_prefix_are_those_of_the_config():
    text = config_of("3d-vlm")["text"]
    plain = LoadedEncoder(file_of("3d-vlm"))
    asked = LoadedEncoder(file_of("3d-vlm", text={**text, "lower": True, "prefix": "Q: "}))
    assert np.array_equal(asked.encode_text(["A Nodule"]), plain.encode_text(["Q: a nodule"]))
    assert not np.array_equal(plain.encode_text(["A Nodule"]), plain.encode_text(["a nodule"]))
    short = LoadedEncoder(file_of("3d-vlm", text={**text, "max_tokens": 4}))
    assert np.array_equal(short.encode_text(["nodule"]), short.encode_text(["nodu"]))


def test_zero_shot_is_the_softmax_over_a_positive_and_its_negative(hu):
    model = LoadedEncoder(file_of("3d-vlm"))
    positives, negatives = prompts(["Emphysema", "Lung nodule"])
    assert (positives[0], negatives[1]) == ("Emphysema .", "No Lung nodule.")
    found = model.zero_shot(volume(hu), positives, negatives)
    features = model.encode_volume(volume(hu))
    for i, pair in enumerate(zip(positives, negatives, strict=True)):
        logits = torch.from_numpy(model.similarity(features.embedding, model.encode_text(pair)))
        assert found[i] == pytest.approx(logits.softmax(0)[0].item(), abs=1e-6)
    assert np.array_equal(found, model.zero_shot(features, positives, negatives))
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*2 negatives"):
        model.zero_shot(features, positives, negatives[:1])


def test_a_path_is_opened_with_its_checks(hu, tmp_path):
    model = LoadedEncoder(file_of())
    path = tmp_path / "scan.nii.gz"
    write_nifti(path, hu.astype(np.int16), Geometry(SHAPE, AFFINE))
    assert np.array_equal(model.encode_scan(path).patches, model.encode_scan(volume(hu)).patches)
    assert np.array_equal(model.encode_volume(str(path)).cls, model.encode_volume(volume(hu)).cls)
    path.write_bytes(path.read_bytes()[:2000])
    for call in (model.encode_scan, model.encode_volume, model.encode_slices):
        with pytest.raises(InputRefused, match="GZ_TRUNCATED"):
            call(path)


@pytest.mark.parametrize("kind", ["2d", "3d", "3d-vlm"])
def test_a_folder_is_loaded_used_and_saved_again_bit_for_bit(kind, hu, tmp_path):
    save_encoder(tmp_path / "a", file_of(kind))
    state = torch.random.get_rng_state()
    model = hilum.load(tmp_path / "a")
    assert torch.equal(state, torch.random.get_rng_state())
    assert repr(model).startswith(f"LoadedEncoder(tiny · {kind} · 0.0 M")
    assert not any(module.training for module in model.encoder.modules())
    if kind == "2d":
        model.encode_slices(volume(hu), 20)
    else:
        model.encode_volume(volume(hu))
    assert model.save(tmp_path / "b") == model.card["sha256"]
    for path in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()


def test_half_precision_weights_are_saved_as_such(tmp_path):
    file = file_of()
    half = type(file)(
        file.config, {k: v.astype(np.float16) for k, v in file.tensors.items()}, None, file.card
    )
    digest = save_encoder(tmp_path / "a", half)
    assert hilum.load(str(tmp_path / "a")).save(tmp_path / "b") == digest


def test_bfloat16_is_near(hu, tmp_path):
    save_encoder(tmp_path / "a", file_of("3d-vlm"))
    exact, rough = hilum.load(tmp_path / "a"), hilum.load(tmp_path / "a", precision="bf16")
    a, b = exact.encode_volume(volume(hu)), rough.encode_volume(volume(hu))
    assert not np.array_equal(a.patches, b.patches) and b.patches.dtype == np.float32
    assert np.abs(a.patches - b.patches).max() < 0.05 * np.abs(a.patches).max()
    assert a.embedding @ b.embedding > 0.999


def test_what_is_no_encoder_is_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match=r"MODEL_UNKNOWN.*a folder"):
        hilum.load("flexict-huge")
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(UsageError, match=r"MODEL_UNKNOWN.*hilum\.read"):
        hilum.load(tmp_path)
    save_encoder(tmp_path / "a", file_of())
    for device in ("gpu", "meta:x"):
        with pytest.raises(UsageError, match="OPTION_UNKNOWN"):
            hilum.load(tmp_path / "a", device)
    tensors = dict(file_of("3d-vlm").tensors)
    del tensors["projection.weight"]
    broken = file_of("3d-vlm")
    save_encoder(tmp_path / "b", type(broken)(broken.config, tensors, "{}", broken.card))
    with pytest.raises(WeightsError, match=r"WEIGHTS_KEYS.*projection"):
        hilum.load(tmp_path / "b")


def test_a_preparation_comes_back_from_its_facts():
    for name in PRESETS:
        assert Pipeline.from_facts(json.loads(json.dumps(pipeline(name).facts()))) == pipeline(name)
    assert Pipeline.from_facts({"name": "x"}) == Pipeline("x")


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"spacing": [1, 1, 1]}, "CONFIG_KEY", "Did you mean spacing_mm?"),
        ({"spacing_mm": [1, 1]}, "CONFIG_VALUE", "spacing_mm"),
        ({"spacing_mm": [1, 0, 1]}, "CONFIG_VALUE", "mm"),
        ({"spacing_mm": [1, float("nan"), 1]}, "CONFIG_VALUE", "mm"),
        ({"axes": "LPP"}, "CONFIG_VALUE", "LPP"),
        ({"axes": "LP"}, "CONFIG_VALUE", "LP"),
        ({"axes": "xLPS"}, "CONFIG_VALUE", "xLPS"),
        ({"values": "zscore"}, "CONFIG_VALUE", "values"),
        ({"clip_hu": [1000, -1000]}, "CONFIG_VALUE", "HU"),
        ({"fit_vox": [0, 32, 32]}, "CONFIG_VALUE", "voxels"),
    ],
)
def test_a_preparation_that_makes_no_sense_is_refused(changes, code, words):
    with pytest.raises(WeightsError, match=code) as caught:
        LoadedEncoder(file_of(prep={**VOLUMES.facts(), **changes}))
    assert words in str(caught.value)


def test_a_name_is_needed():
    facts = {k: v for k, v in VOLUMES.facts().items() if k != "name"}
    with pytest.raises(WeightsError, match=r"CONFIG_KEY.*name"):
        LoadedEncoder(file_of(prep=facts))


def test_importing_hilum_stays_light_with_load_in_it():
    code = (
        "import sys, hilum; assert 'load' in hilum.__all__; heavy = {'torch', 'numpy', 'pydantic'};"
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


def test_a_patch_that_is_no_cube_is_the_one_of_the_config(hu):
    model = LoadedEncoder(file_of(net={"patch_z": 4}, patch=[8, 8, 4]))
    assert model.encode_volume(volume(hu)).grid == (4, 4, 8)
    assert model.encode_volume(volume(hu), patch=16).grid == (2, 2, 2)
    assert model.encode_slices(volume(hu), 20).grid == (8, 8)
    assert LoadedEncoder(file_of(patch=16)).encode_volume(volume(hu)).grid == (2, 2, 2)


def test_a_field_is_shown_as_training_shows_it(hu):
    """`train.views.show` is the twin."""
    model = LoadedEncoder(file_of("3d-vlm", field_vox=[40, 40, 40], view_vox=[32, 32, 32]))
    scan = volume(hu)
    prepared = VOLUMES.apply(scan)[0][0]
    view = show(prepared, Box(tuple((n - 40) // 2 for n in prepared.shape[1:]), (40, 40, 40)), 32)
    with torch.no_grad():
        out = model.encoder.vision(view[None])
        embedding = model.encoder.image_embedding(out)
    seen = model.encode_volume(scan)
    assert np.allclose(seen.patches, out.patches[0].numpy(), atol=1e-5)
    assert np.allclose(seen.embedding, embedding[0].numpy(), atol=1e-5)
    whole = model.encode_scan(scan)
    assert seen.grid == (4, 4, 4) and np.allclose(np.abs(np.diag(whole.affine)[:3]), 40)
    at = np.ravel_multi_index((3, 2, 2), whole.grid)
    centre = whole.geometry.to_mm(np.array([3, 2, 2]))[0]
    lit = model.encode_scan(volume(marked(hu, centre)))
    assert np.linalg.norm(lit.patches - whole.patches, axis=1).argmax() == at == whole.patch_at(centre)
    values = np.zeros(len(whole.patches), dtype=np.float32)
    values[at] = 1
    back = scan.geometry.to_mm(np.argwhere(whole.on_scan(values) > 0.99))
    assert np.abs(back - centre).max() <= 20.01 and (np.ptp(back, axis=0) > 28).all()
    with pytest.raises(InputRefused, match=r"PATCH_GRID.*another patch"):
        model.encode_volume(scan, patch=9)
