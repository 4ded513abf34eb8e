"""Encoder folders as teachers: their own values, axes and voxels, made of what the student is shown."""

from dataclasses import replace

import pytest
import torch
from _encoders import SLICES, VOLUMES, config_of, file_of

from hilum.errors import UsageError, WeightsError
from hilum.io.encoder_file import EncoderConfig, load_card, save_encoder
from hilum.model.encoder import build_encoder
from hilum.train.distil import Distil, DistilRecipe
from hilum.train.distil_teachers import load_teachers
from hilum.train.teacher_encoder import EncoderTeacher, encoder_teacher
from hilum.train.teachers import HuScale, Shown

STUDENT = VOLUMES.facts()
UNIT = replace(VOLUMES, name="unit", axes="SAR", values="unit", clip_hu=(-900.0, 500.0))


def shown(shape=(16, 24, 32), scans=2, spacing_mm=(4.0, 4.0, 4.0)):
    """z-scores of HU that reach the student's clip."""
    g = torch.Generator().manual_seed(1)
    hu = (500 * torch.randn(scans, 1, *shape, generator=g) - 300).clamp(-1000, 1000)
    slope = torch.tensor([0.002, 0.0025])[:scans]
    view = (-1, *[1] * (len(shape) + 1))
    return Shown(hu * slope.view(view) + 0.7, spacing_mm, HuScale(slope, torch.full((scans,), 0.7))), hu


def teacher_of(student=STUDENT, prep=None, vox=None, patch=None, own_patch=8, **changes):
    more = {"patch": own_patch, **({} if prep is None else {"prep": prep.facts()}), **changes}
    config = EncoderConfig.from_dict(config_of(**more))
    torch.manual_seed(3)
    vision = build_encoder(config).vision
    return EncoderTeacher("tiny", vision, config, "ab" * 32, student, vox=vox, patch=patch)


def test_a_teacher_of_the_same_preparation_sees_the_same():
    teacher, (given, _) = teacher_of(), shown()
    found = teacher.features(given)
    out = teacher.vision(given.images, patch=8)
    assert found.grid == out.grid == (2, 3, 4)
    assert torch.equal(found.patches, out.patches)
    assert torch.equal(found.summary, out.cls)
    assert not found.patches.requires_grad
    assert teacher.width == teacher.summary_width == 24


def test_its_own_values_and_axes_are_made_of_hu():
    """LPS -> SAR by hand: axes reversed, and each of them the other way where its letter changes."""
    teacher, (given, hu) = teacher_of(prep=UNIT), shown()
    found = teacher.features(given)
    values = ((hu + 900) / 1400).clamp(0, 1).permute(0, 1, 4, 3, 2).flip(3, 4)
    out = teacher.vision(values.contiguous(), patch=8)
    assert found.grid == (2, 3, 4)
    assert out.grid == (4, 3, 2)
    theirs, ours = out.patches.unflatten(1, out.grid), found.patches.unflatten(1, found.grid)
    for i in range(2):
        for j in range(3):
            for k in range(4):
                assert torch.allclose(ours[:, i, j, k], theirs[:, k, 2 - j, 1 - i], atol=2e-4)
    assert (ours - theirs.permute(0, 3, 2, 1, 4)).abs().max() > 1e-2, "turned without flips is something else"


@pytest.mark.parametrize(("values", "factor"), [("hu", 1.0), ("thousandth", 1e-3)])
def test_hu_as_they_are(values, factor):
    teacher, (given, hu) = teacher_of(prep=replace(VOLUMES, values=values)), shown()
    wanted = teacher.vision(hu * factor, patch=8).patches
    assert torch.allclose(teacher.features(given).patches, wanted, atol=1e-3)


@pytest.mark.parametrize(
    ("spacing_mm", "vox", "patch", "sees"),
    [
        ((8.0, 8.0, 8.0), None, None, (8, 16, 16)),
        ((4.0, 4.0, 2.0), None, None, (16, 24, 64)),
        (None, None, None, (16, 24, 32)),
        (None, (8, 8, 8), None, (8, 8, 8)),
        (None, None, 16, (16, 32, 32)),
    ],
)
def test_it_sees_the_field_in_its_own_voxels(monkeypatch, spacing_mm, vox, patch, sees):
    teacher = teacher_of(prep=replace(VOLUMES, spacing_mm=spacing_mm), vox=vox, patch=patch)
    seen = []
    monkeypatch.setattr(
        teacher.vision, "forward", lambda image, **how: seen.append((image, how)) or OUT(image, **how)
    )
    OUT = type(teacher.vision).forward.__get__(teacher.vision)
    given, _ = shown()
    found = teacher.features(given)
    image, how = seen[0]
    size = patch or 8
    assert tuple(image.shape[2:]) == sees
    assert found.grid == tuple(n // size for n in sees)
    mm = [n * 4.0 / m for n, m in zip((16, 24, 32), sees, strict=True)]
    assert how["spacing_mm"] == pytest.approx(mm)


def test_a_large_field_is_seen_in_windows():
    teacher = teacher_of(field_vox=(16, 8, 16))
    given, _ = shown()
    found = teacher.features(given)
    assert found.grid == (2, 3, 4)
    patches, sums = found.patches.unflatten(1, found.grid), 0
    for j in range(3):
        for k in range(2):
            part = given.images[:, :, :, 8 * j : 8 * j + 8, 16 * k : 16 * k + 16].contiguous()
            out = teacher.vision(part, patch=8)
            cells = out.patches.unflatten(1, out.grid)
            assert torch.allclose(patches[:, :, j : j + 1, 2 * k : 2 * k + 2], cells, atol=1e-5)
            sums = sums + out.cls
    assert torch.allclose(found.summary, sums / 6, atol=1e-5)
    # windows are whole: 24 voxels become two of 16
    assert teacher_of(field_vox=(16, 16, 16)).features(given).grid == (2, 4, 4)
    assert teacher_of(field_vox=(64, 64, 64)).features(given).grid == (2, 3, 4)
    asked = teacher_of(field_vox=(8, 16, 16), vox=(16, 24, 16))
    assert asked._windows(asked.vox) == ((16, 24, 16), (2, 1, 1))


def test_patches_of_another_depth():
    teacher = teacher_of(net={"patch_z": 4}, own_patch=(8, 8, 4))
    given, _ = shown()
    assert teacher.features(given).grid == (2, 3, 8)
    assert teacher_of(net={"patch_z": 4}, patch=16, own_patch=(8, 8, 4)).features(given).grid == (1, 2, 2)


def test_slices_of_a_model_of_both():
    teacher = teacher_of(student=SLICES.facts())
    given, _ = shown((16, 24))
    found = teacher.features(given)
    assert found.grid == (2, 3)
    assert torch.equal(found.patches, teacher.vision(given.images, patch=8).patches)
    assert teacher_of(student=SLICES.facts(), kind="2d").features(given).grid == (2, 3)


@pytest.mark.parametrize(
    ("student", "more"),
    [
        (STUDENT, {"kind": "2d"}),
        (SLICES.facts(), {"prep_2d": None}),
        (replace(VOLUMES, clip_hu=(-1000.0, 400.0)).facts(), {}),
        (replace(VOLUMES, values="unit").facts(), {}),
        (replace(VOLUMES, clip_hu=(-800.0, 400.0)).facts(), {"prep": UNIT}),
        (replace(VOLUMES, values="clahe").facts(), {"prep": UNIT}),
        (STUDENT, {"prep": replace(VOLUMES, values="clahe")}),
        (replace(SLICES, axes="RAS").facts(), {}),
    ],
)
def test_what_the_student_does_not_hold_is_refused_at_the_start(student, more):
    with pytest.raises(UsageError) as caught:
        teacher_of(student, **more)
    assert caught.value.code == "CONFIG_VALUE"


def test_a_folder_is_a_teacher(tmp_path):
    save_encoder(tmp_path / "tiny", file_of(seed=5))
    teacher = encoder_teacher(tmp_path / "tiny", STUDENT)
    assert teacher.name == "tiny"
    assert teacher.sha256 == load_card(tmp_path / "tiny")["sha256"]
    given, _ = shown()
    assert teacher.features(given).patches.abs().max() > 0
    assert not any(p.requires_grad for p in teacher.vision.parameters())
    with pytest.raises(WeightsError):
        encoder_teacher(tmp_path / "nothing", STUDENT)


def test_a_recipe_names_its_teachers(tmp_path):
    """Two folders, one of them seen smaller, as the distillation part of a student."""
    for n, name in enumerate(("one", "two")):
        save_encoder(tmp_path / name, file_of(seed=n))
    rows = [{"teacher": str(tmp_path / "one")}, {"teacher": str(tmp_path / "two"), "vox": (8, 8, 16)}]
    recipe = DistilRecipe.model_validate({"teachers": rows})
    distil = Distil(12, recipe, load_teachers(recipe, STUDENT))
    given, _ = shown()
    distil.fit([given])
    targets = distil.targets(given.images, given.spacing_mm)
    assert targets["one"].grid == (2, 3, 4)
    assert targets["two"].grid == (1, 1, 2)
    losses = distil.losses(torch.zeros(2, 12), torch.zeros(2, 24, 12), (2, 3, 4), targets)
    assert losses["one/patches"].item() == pytest.approx(1, abs=1e-3), "adaptors start at the mean"
