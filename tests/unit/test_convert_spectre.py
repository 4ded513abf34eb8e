"""`hilum import spectre`: its backbone against a plain forward pass over the public names."""

import json

import pytest
import torch
from _public_layouts import loaded, public_windows, spectre, stored

from hilum.cli import run
from hilum.convert.run import import_encoder
from hilum.errors import UsageError, WeightsError


@pytest.mark.parametrize("prefix", ["", "backbone.", "model.backbone."])
def test_outputs_are_the_published_ones(tmp_path, prefix):
    state = {f"{prefix}{name}": tensor for name, tensor in spectre().items()}
    import_encoder("spectre", stored(tmp_path / "a.safetensors", state), tmp_path / "out")
    file, encoder = loaded(tmp_path / "out")
    image = torch.rand(2, 1, 16, 24, 8, generator=torch.Generator().manual_seed(1))
    expected = public_windows(spectre(), image, 1e-5)
    with torch.no_grad():
        out = encoder.vision(image, patch=file.config.patch)
    assert file.config.patch == (8, 8, 4) and out.grid == (2, 3, 2)
    assert torch.allclose(out.cls.double(), expected[:, 0], atol=1e-4)
    assert torch.allclose(out.patches.double(), expected[:, 1:], atol=1e-4)


def test_the_account_and_the_preparation(tmp_path, capsys):
    state = {f"backbone.{name}": tensor for name, tensor in spectre().items()}
    state["feature_combiner.patch_proj.weight"] = torch.zeros(36, 72)
    source = stored(tmp_path / "a.safetensors", state)
    assert run(["import", "spectre", str(source), str(tmp_path / "out"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert sorted(name for row in report["tensors"] for name in row["sources"]) == sorted(state)
    joined = [row for row in report["tensors"] if len(row["sources"]) == 2]
    assert [row["target"] for row in joined[:2]] == [
        "vision.blocks.0.attention.qkv.bias", "vision.blocks.0.attention.qkv.weight"
    ]  # fmt: skip
    left = {row["sources"][0]: row["note"] for row in report["tensors"] if row["target"] is None}
    assert left == {
        "backbone.rope.periods": "left out: computed from the base, and checked against it",
        "feature_combiner.patch_proj.weight": "left out: an encoder has no combiner of windows",
    }
    assert report["filled"] == ["vision.mask_token", "vision.registers"]
    file, encoder = loaded(tmp_path / "out")
    assert encoder.vision.mask_token.abs().max() == 0 and encoder.vision.registers.shape == (1, 0, 36)
    prep = file.config.prep
    assert (prep["axes"], prep["spacing_mm"], prep["fit_vox"]) == ("RAS", [0.75, 0.75, 1.5], [128, 128, 64])
    assert (prep["clip_hu"], prep["clip_first"], prep["values"]) == ([-1000.0, 1000.0], True, "unit")
    assert file.config.field_vox == (128, 128, 64)
    assert file.card["licence"] == "CC BY-NC-SA 4.0"


def test_registers_are_taken_where_there_are_some(tmp_path):
    state = spectre() | {"reg_token": torch.ones(1, 3, 36)}
    report = import_encoder("spectre", stored(tmp_path / "a.safetensors", state), tmp_path / "out")
    assert report.filled == ("vision.mask_token",)
    assert torch.equal(loaded(tmp_path / "out")[1].vision.registers, torch.ones(1, 3, 36))


def without(*names):
    return lambda state: {key: value for key, value in state.items() if key not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("patch_embed.proj.weight"), r"missing: patch_embed\.proj\.weight"),
        (without("blocks.1.attn.kv.weight"), r"not known: blocks\.1\.attn\.q\.weight"),
        (without("blocks.1.attn.q.weight"), r"not known: blocks\.1\.attn\.kv\.weight"),
        (without("blocks.1.attn.q.bias", "blocks.1.attn.kv.bias"), r"missing: vision\.blocks\.1\.attention"),
        (lambda s: s | {"blocks.1.attn.kv.weight": torch.zeros(72, 35)}, r"kv\.weight \(72, 35\)"),
        (without("rope.periods"), r"missing: rope\.periods"),
        (lambda s: s | {"pos_embed": torch.zeros(1, 5, 36)}, r"not known: pos_embed"),
        (lambda s: s | {"rope.periods": torch.tensor([1.0, 4.6, 21.5])}, r"rope\.periods.*base 1000"),
        (lambda s: s | {"blocks.0.attn.q_norm.weight": torch.ones(18)}, r"not known: blocks\.0\.attn\.q_n"),
        (lambda s: s | {"patch_embed.proj.weight": torch.zeros(36, 1, 8, 4, 4)}, r"patches of \(8, 4, 4\)"),
        (lambda s: s | {"blocks.1.attn.kv.weight": torch.zeros(71, 36)}, r"kv\.weight.* for \(108, 36\)"),
    ],
)  # fmt: skip
def test_what_is_not_the_published_layout_is_refused_by_name(tmp_path, change, message):
    source = stored(tmp_path / "a.safetensors", change(spectre()))
    with pytest.raises(WeightsError, match=f"WEIGHTS_KEYS.*{message}"):
        import_encoder("spectre", source, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_it_reads_volumes(tmp_path):
    source = stored(tmp_path / "a.safetensors", spectre())
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*expected 3d; got 2d"):
        import_encoder("spectre", source, tmp_path / "out", kind="2d")
