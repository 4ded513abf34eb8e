"""`hilum import radfinder`: every tensor in its place, and a plain forward pass over the public names."""

import json
import math
import sys

import pytest
import torch
from _encoders import stand_in
from _public_layouts import (
    EMBEDDING,
    RADFINDER_HEADS,
    loaded,
    part_of,
    places_of,
    public_blocks,
    public_windows,
    radfinder,
    stored,
    text_folder,
)
from torch.nn import functional as F

from hilum.cli import run
from hilum.convert.run import import_encoder
from hilum.errors import UsageError, WeightsError

WORDS = {"words.weight": torch.arange(40.0 * EMBEDDING).reshape(40, EMBEDDING)}
GRID, PATCHES = (2, 1, 2), (2, 2, 3)
GAIN = "last_layer.parametrizations.weight.original0"


@pytest.fixture
def tower(tmp_path, monkeypatch):
    stand_in(monkeypatch)
    # the stand-in has its words at the top, the library's modules one level below
    text_tower = sys.modules["hilum.model.text_tower"]

    class Nested(text_tower.TextTower):
        def __init__(self, config, pooling):
            super().__init__(config, pooling)
            self.model = torch.nn.Module()
            self.model.words = self.words
            del self.words

    monkeypatch.setattr(text_tower, "TextTower", Nested)
    return text_folder(tmp_path / "text", {"hidden_size": EMBEDDING, "vocab_size": 40})


def head_of(state, name, rows):
    """A public head, brought to length 1."""
    s = {key: tensor.double() for key, tensor in part_of(state, f"{name}.").items()}
    for layer in (0, 2, 4):
        rows = rows @ s[f"layers.{layer}.weight"].T + s[f"layers.{layer}.bias"]
        rows = F.gelu(rows) if layer < 4 else rows
    last = s["last_layer.parametrizations.weight.original1"]
    return F.normalize(rows @ F.normalize(last, dim=1).T, dim=-1)


def combined(state, tokens, places):
    """The public combiner on projected tokens (N, W): CLS, and the others."""
    part = part_of(state, "feature_comb_image.")
    x = torch.cat([part["cls_token"][0].double(), tokens])[None]
    out = public_blocks(part, x, places, 2, 1e-6)[0]
    return out[0], out[1:]


@pytest.mark.parametrize("prefix", ["", "model."])
def test_embeddings_are_the_published_ones(tmp_path, tower, prefix):
    plain = radfinder(WORDS)
    state = {f"{prefix}{name}": tensor for name, tensor in plain.items()}
    import_encoder("radfinder", stored(tmp_path / "a.safetensors", state), tmp_path / "out", text=tower)
    file, encoder = loaded(tmp_path / "out")
    windows = torch.rand(4, 1, 16, 16, 12, generator=torch.Generator().manual_seed(1))

    read = public_windows(part_of(plain, "backbone_image."), windows, 1e-6)
    patches = read[:, 1:].unflatten(1, PATCHES)
    both = torch.cat([read[:, 0], read[:, 1:].mean(1)], dim=1)
    comb = {name: t.double() for name, t in part_of(plain, "feature_comb_image.").items()}
    cls, tokens = combined(
        plain, both @ comb["patch_proj.weight"].T + comb["patch_proj.bias"], places_of(GRID)
    )
    scan = torch.cat([cls, tokens.mean(0)])
    # (U, V, W, P) of every window's depths, as rows; along Z the step is that of the windows
    deep = patches.mean((1, 2)).unflatten(0, GRID).flatten(0, 3)
    places = places_of((*GRID[:2], GRID[2] * PATCHES[2]), GRID)
    deep = deep @ comb["axis_patch_proj.weight"].T + comb["axis_patch_proj.bias"]
    cls, tokens = combined(plain, deep, places)
    rows = tokens.unflatten(0, (*GRID[:2], -1)).mean((0, 1))
    rows = torch.cat([cls.expand(len(rows), -1), rows], dim=1)

    present = torch.ones(1, *GRID, dtype=torch.bool)
    with torch.no_grad():
        ours = encoder.read_windows(windows, file.config.patch)
        found = encoder.joint.scans(ours.both.unflatten(0, (1, *GRID)), present)
        depths, valid = encoder.joint.depths(ours.depths.unflatten(0, (1, *GRID)), present)
        pooled = torch.rand(3, EMBEDDING)
        texts, snippets = encoder.joint.reports(pooled), encoder.joint.snippets(pooled)
    assert valid.all() and depths.shape == (1, 6, 20)
    for given, name, expected in (
        (found.report[0], "projection_image", scan),
        (found.disease[0], "projection_image_copy", scan),
        (depths[0], "projection_image_copy", rows),
        (texts, "projection_text", pooled.double()),
        (snippets, "projection_text_copy", pooled.double()),
    ):
        assert torch.allclose(given.double(), head_of(plain, name, expected), atol=1e-5), name


def test_the_account_and_the_preparation(tmp_path, tower, capsys):
    state = radfinder(WORDS) | {"backbone_text.layers.0.q_proj.lora_A": torch.zeros(2, 3)}
    source = stored(tmp_path / "a.safetensors", state)
    command = ["import", "radfinder", str(source), str(tmp_path / "out"), "--text", str(tower), "--json"]
    assert run(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert sorted(name for row in report["tensors"] for name in row["sources"]) == sorted(state)
    left = {row["sources"][0]: row["note"] for row in report["tensors"] if row["target"] is None}
    assert left.pop("backbone_text.layers.0.q_proj.lora_A").startswith("left out: merged before")
    assert set(left) == {
        "backbone_image.rope.periods", "feature_comb_image.rope.periods",
        *(f"{head}.{GAIN}" for head in RADFINDER_HEADS),
    }  # fmt: skip
    assert report["kind"] == "3d-joint" and report["licence"] == "CC BY-NC-SA 4.0"
    file, encoder = loaded(tmp_path / "out")
    assert [x.item() for x in encoder.joint.scale()] == pytest.approx([math.exp(2.5), -9.0])
    assert torch.equal(encoder.text.model.words.weight, WORDS["words.weight"])
    assert file.config.prep["name"] == "radfinder" and file.config.prep["fit"] == "pad-multiple"
    assert file.config.field_vox == (128, 128, 32) and file.config.embedding == 20
    assert file.config.joint is not None and file.config.joint.frame == "published"
    assert file.config.text is not None and file.config.text.pooling == "last"


def without(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("feature_comb_image.axis_patch_proj.weight"), r"missing: feature_comb_image\.axis_patch"),
        (without("projection_text_copy.layers.2.bias"), r"missing: joint\.text_copy\.layers\.2\.bias"),
        (without("feature_comb_image.blocks.1.attn.kv.bias"), r"not known: .*blocks\.1\.attn\.q\.bias"),
        (without("criterion.t"), r"missing: joint\.scale\.log_scale"),
        (lambda s: s | {"feature_comb_image.extra_token": torch.zeros(1, 1, 24)}, r"not known: .*extra_tok"),
        (
            lambda s: s | {f"projection_image.{GAIN}": torch.full((20, 1), 2.0)},
            r"original0 \[2\.0, 2\.0, 2\.0\] for lengths of 1",
        ),
        (lambda s: s | {"feature_comb_image.rope.periods": torch.tensor([1.0, 9.0])}, r"periods of base 100"),
    ],
)  # fmt: skip
def test_what_is_not_the_published_layout_is_refused_by_name(tmp_path, tower, change, message):
    source = stored(tmp_path / "a.safetensors", change(radfinder(WORDS)))
    with pytest.raises(WeightsError, match=f"WEIGHTS_KEYS.*{message}"):
        import_encoder("radfinder", source, tmp_path / "out", text=tower)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "text"]


def test_without_a_text_tower_it_is_refused(tmp_path):
    source = stored(tmp_path / "a.safetensors", radfinder(WORDS))
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*text tower"):
        import_encoder("radfinder", source, tmp_path / "out")
