"""`hilum import spectre`: its backbone against a plain forward pass over the public names."""

import json
import math

import pytest
import torch
from _public_layouts import spectre
from safetensors.torch import save_file
from torch.nn import functional as F

from hilum.cli import run
from hilum.convert.run import import_encoder
from hilum.errors import UsageError, WeightsError
from hilum.io.encoder_file import load_encoder
from hilum.model.encoder import build_encoder, load_tensors

HEADS = 2


def turned(x, grid, periods):
    """Every pair of channels as a complex number, turned by the angle of its axis; CLS stays."""
    number = torch.complex(*x[:, :, 1:].double().chunk(2, dim=-1))
    lines = [(torch.arange(n) + 0.5) / n * 2 - 1 for n in grid]
    places = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).reshape(-1, 3).double()
    angles = (2 * math.pi * places[:, :, None] / periods.double()).flatten(1)
    number = number * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([x[:, :, :1].double(), torch.cat([number.real, number.imag], -1)], dim=2)


def published(state, image):
    """The public forward pass, name by name, in float64: (B, 1 + N, W)."""
    s = {name: tensor.double() for name, tensor in state.items()}
    x = F.conv3d(image.double(), s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], stride=(8, 8, 4))
    grid, width = x.shape[2:], x.shape[1]
    x = torch.cat([s["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    for n in range(2):
        b = {name.removeprefix(f"blocks.{n}."): t for name, t in s.items() if name.startswith(f"blocks.{n}.")}
        y = F.layer_norm(x, (width,), b["norm1.weight"], b["norm1.bias"], 1e-5)
        q = y @ b["attn.q.weight"].T + b["attn.q.bias"]
        k, v = (y @ b["attn.kv.weight"].T + b["attn.kv.bias"]).split(width, dim=2)
        q, k, v = (t.unflatten(2, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
        q, k = (turned(t, grid, s["rope.periods"]) for t in (q, k))
        share = (q @ k.transpose(2, 3) / math.sqrt(width // HEADS)).softmax(-1)
        y = (share @ v).transpose(1, 2).flatten(2) @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        x = x + b["ls1.gamma"] * y
        y = F.layer_norm(x, (width,), b["norm2.weight"], b["norm2.bias"], 1e-5)
        y = F.gelu(y @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"])
        x = x + b["ls2.gamma"] * (y @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"])
    return F.layer_norm(x, (width,), s["norm.weight"], s["norm.bias"], 1e-5)


def stored(path, state):
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, path)
    return path


def loaded(folder):
    file = load_encoder(folder)
    encoder = build_encoder(file.config)
    load_tensors(encoder, {name: torch.from_numpy(tensor) for name, tensor in file.tensors.items()})
    return file, encoder.eval()


@pytest.mark.parametrize("prefix", ["", "backbone.", "model.backbone."])
def test_outputs_are_the_published_ones(tmp_path, prefix):
    state = {f"{prefix}{name}": tensor for name, tensor in spectre().items()}
    import_encoder("spectre", stored(tmp_path / "a.safetensors", state), tmp_path / "out")
    file, encoder = loaded(tmp_path / "out")
    image = torch.rand(2, 1, 16, 24, 8, generator=torch.Generator().manual_seed(1))
    expected = published(spectre(), image)
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
