"""Astra as a teacher: its window and axes, where features lie, and weights that arrive in parts."""

import hashlib
import inspect

import numpy as np
import pytest
import torch

from hilum.cohort.prep_presets import pipeline
from hilum.errors import HilumError, UsageError, WeightsError
from hilum.model.astra import Astra, AstraConfig, astra_values
from hilum.train import teacher_astra
from hilum.train.teacher_astra import PARTS, AstraTeacher
from hilum.train.teachers import HuScale, Shown

STUDENT = pipeline("flexict-3d").facts()
TINY = AstraConfig(blocks=(1, 1), width=2)


def network():
    torch.manual_seed(2)
    return Astra(TINY)


def test_hu_go_in_as_published_and_features_come_back_on_the_students_axes():
    """The student's LPS to RAS is a turn of half a circle in the plane."""
    g = torch.Generator().manual_seed(1)
    hu = (300 * torch.randn(2, 1, 16, 24, 12, generator=g) - 400).clamp(-1000, 1000)
    slope, intercept = torch.tensor([0.002, 0.003]), torch.tensor([0.5, 0.6])
    view = (-1, 1, 1, 1, 1)
    given = Shown(hu * slope.view(view) + intercept.view(view), (2.0, 2.0, 2.0), HuScale(slope, intercept))
    teacher = AstraTeacher(network(), "ab" * 32, STUDENT, vox=(16, 24, 12))
    found = teacher.features(given)
    assert found.grid == (2, 3, 3)
    # half a cell of air before the field, and the feature in it left out
    air = torch.zeros(2, 1, 20, 28, 14)
    air[:, :, 4:, 4:, 2:] = astra_values(hu.flip(2, 3))
    maps = teacher.network(air)[:, :, 1:, 1:, 1:]
    assert maps.shape[2:] == (2, 3, 3)
    assert torch.allclose(found.summary, maps.mean((2, 3, 4)), atol=1e-5)
    patches = found.patches.unflatten(1, found.grid)
    for i in range(2):
        for j in range(3):
            assert torch.allclose(patches[:, i, j, 1], maps[:, :, 1 - i, 2 - j, 1], atol=1e-5)
    with pytest.raises(HilumError):
        teacher.features(Shown(given.images, given.spacing_mm))


def test_features_lie_in_the_middle_of_their_cells():
    """The gradient of a feature is centred where its cell is, when kernels weigh all their voxels alike."""
    even = network()
    for name, parameter in even.named_parameters():
        torch.nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 0.1)
    teacher = AstraTeacher(even, "ab" * 32, {**STUDENT, "axes": "RAS", "values": "hu"}, vox=(64, 64, 32))
    g = torch.Generator().manual_seed(1)
    hu = (-400 + 100 * torch.rand(1, 1, 64, 64, 32, generator=g)).requires_grad_()
    scale = HuScale(torch.ones(1), torch.zeros(1))
    features = inspect.unwrap(AstraTeacher.features)(teacher, Shown(hu, (1.0, 1.0, 1.0), scale))
    patches = features.patches.unflatten(1, features.grid)
    for axis, size, cell in ((0, 8, 4), (1, 8, 3), (2, 4, 3)):
        at = [4, 4, 4]
        at[axis] = cell
        (gradient,) = torch.autograd.grad(patches[0, *at].sum(), hu, retain_graph=True)
        weight = gradient[0, 0].abs().sum([a for a in range(3) if a != axis])
        centre = (weight * torch.arange(len(weight))).sum() / weight.sum()
        assert centre.item() == pytest.approx((cell + 0.5) * size, abs=0.35 * size)


def test_it_sees_whole_cells():
    with pytest.raises(UsageError) as caught:
        AstraTeacher(network(), "ab" * 32, STUDENT, vox=(16, 20, 12))
    assert caught.value.code == "CONFIG_VALUE"


@pytest.mark.parametrize("preset", ["flexict-2d", "exact"])
def test_a_student_that_cannot_show_hu_is_refused(preset):
    with pytest.raises(UsageError) as caught:
        AstraTeacher(network(), "ab" * 32, pipeline(preset).facts())
    assert caught.value.code == "CONFIG_VALUE"


def test_parts_are_joined_in_order_and_checked(tmp_path, monkeypatch):
    pieces = [bytes([n]) * (3 + n) for n in range(3)]
    for n, piece in enumerate(pieces):
        (tmp_path / f"{n}").write_bytes(piece)
    monkeypatch.setattr(teacher_astra, "member_file", lambda part, *_: tmp_path / f"{PARTS.index(part)}")
    with pytest.raises(WeightsError) as caught:
        teacher_astra.joined(tmp_path / "whole", tmp_path, None)
    assert caught.value.code == "WEIGHTS_HASH"
    assert not (tmp_path / "whole").exists()
    monkeypatch.setattr(teacher_astra, "SHA256", hashlib.sha256(b"".join(pieces)).hexdigest())
    assert teacher_astra.joined(tmp_path / "whole", tmp_path, None).read_bytes() == b"".join(pieces)


def test_a_torch_archive_becomes_weights_once(tmp_path, monkeypatch):
    """The way from an archive in the published layout to a teacher, in a process of its own."""
    small = Astra(TINY)
    published = {}
    for name, tensor in small.state_dict().items():
        if name.endswith("bias"):
            continue
        own = name.removesuffix(".weight")
        kernel, norm = names(own)
        weight = tensor.permute(0, 1, 4, 2, 3)
        published[f"state_dict.{kernel}.weight"] = (
            weight.expand(-1, 3, -1, -1, -1) if own == "stem" else weight
        )
        for part, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            published[f"state_dict.{norm}.{part}"] = torch.full((len(tensor),), float(value))
    archive = tmp_path / "archive.pt"
    content = {name.removeprefix("state_dict."): t.contiguous() for name, t in published.items()}
    torch.save({"state_dict": content, "meta": {"licence": "MIT"}}, archive)

    def joined(path, cache, progress):
        path.write_bytes(archive.read_bytes())
        return path

    monkeypatch.setattr(teacher_astra, "joined", joined)
    monkeypatch.setattr(teacher_astra, "Astra", lambda: Astra(TINY))
    monkeypatch.setattr(teacher_astra, "fold_published", lambda t: FOLD(t, TINY))
    teacher = teacher_astra.astra_teacher(STUDENT, vox=(16, 16, 8), cache=tmp_path)
    gain = 1 / np.sqrt(1 + 1e-5)
    stem = small.stem.weight * 3 * gain
    assert torch.allclose(teacher.network.stem.weight, stem, atol=1e-6)
    monkeypatch.setattr(teacher_astra, "joined", None)
    again = teacher_astra.astra_teacher(STUDENT, vox=(16, 16, 8), cache=tmp_path)
    assert torch.equal(again.network.stem.weight, teacher.network.stem.weight)
    assert [p.name for p in (tmp_path / "models").iterdir()] == [f"astra-{teacher.sha256[:16]}.safetensors"]


FOLD = teacher_astra.fold_published


def names(own):
    if own == "stem":
        return "conv1", "bn1"
    _, stage, block, part = own.split(".")
    at = f"layer{int(stage) + 1}.{block}"
    if part == "shortcut":
        return f"{at}.downsample.0", f"{at}.downsample.1"
    n = ("reduce", "spread", "expand").index(part) + 1
    return f"{at}.conv{n}", f"{at}.bn{n}"


def test_pins_are_whole():
    assert len({part.sha256 for part in PARTS} | {part.archive.sha256 for part in PARTS}) == 6
    assert sum(part.size for part in PARTS) == 235_318_802
    assert all(len(part.sha256) == len(part.archive.sha256) == 64 for part in PARTS)
