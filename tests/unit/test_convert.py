"""`hilum import`: small checkpoints in the public layouts; all has its place, or nothing is written."""

import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from _public_layouts import EMBEDDING, HEADS, WIDTH, flexict, teacher, text_folder, with_reports
from safetensors.torch import save_file
from torch import nn

from hilum.cli import run
from hilum.convert.foreign import open_foreign
from hilum.convert.run import import_encoder
from hilum.errors import OutputError, UsageError, WeightsError
from hilum.io.encoder_file import load_encoder
from hilum.model.encoder import build_encoder, load_tensors
from hilum.model.vit import ViT
from hilum.model.vit_config import ViTConfig


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path_factory, monkeypatch):
    """Whatever an import leaves behind is seen."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


class Tower(nn.Module):
    """Stands in for `TextTower`, which needs a heavy library: a module of the hub's inside."""

    def __init__(self, config, pooling):
        super().__init__()
        self.width = config["hidden_size"]
        self.model = nn.ModuleDict({"words": nn.Embedding(config["vocab_size"], self.width)})


@pytest.fixture
def tower(monkeypatch, tmp_path):
    module = ModuleType("hilum.model.text_tower")
    module.TextTower = Tower
    monkeypatch.setitem(sys.modules, "hilum.model.text_tower", module)
    return text_folder(tmp_path / "tower", {"hidden_size": EMBEDDING, "vocab_size": 40})


def stored(path: Path, state: dict[str, torch.Tensor]) -> Path:
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, path)
    return path


def loaded(folder: Path):
    file = load_encoder(folder)
    encoder = build_encoder(file.config)
    load_tensors(encoder, {name: torch.from_numpy(tensor) for name, tensor in file.tensors.items()})
    return file, encoder.eval()


def as_published(state: dict[str, torch.Tensor], **config) -> ViT:
    """The backbone on [Z, Y, X], as in the public code: names changed one by one, nothing turned."""
    model = ViT(ViTConfig(width=WIDTH, depth=2, heads=HEADS, patch=4, **config)).eval()
    names = {
        "cls": "cls_token", "registers": "storage_tokens", "mask_token": "mask_token",
        "patch_2d": "patch_embed_2D.proj", "patch_3d": "patch_embed_3D.proj",
        "norm_attention": "norm1", "attention": "attn", "scale_attention": "ls1.gamma",
        "norm_mlp": "norm2", "up": "fc1", "down": "fc2", "scale_mlp": "ls2.gamma",
    }  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            public = ".".join(names.get(part, part) for part in name.split("."))
            parameter.copy_(state[public].reshape(parameter.shape))
    return model


@pytest.mark.parametrize("shape", [(16, 8), (8, 16, 12)])
@pytest.mark.parametrize("patch", [4, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_outputs_are_the_published_ones_on_turned_axes(tmp_path, shape, patch, dtype):
    source = stored(tmp_path / "a.safetensors", {f"backbone.{k}": v for k, v in flexict(dtype=dtype).items()})
    import_encoder("flexict", source, tmp_path / "out", kind="3d")
    file, encoder = loaded(tmp_path / "out")
    coarse = dtype == torch.bfloat16
    assert file.config.backbone["net"]["rope_bf16"] is coarse
    public = as_published(flexict(dtype=dtype), rope_bf16=coarse)
    shape = tuple(n * patch // 4 for n in shape)
    image = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(1))
    back = list(range(len(shape) + 1, 1, -1))
    with torch.no_grad():
        theirs, ours = public(image, patch=patch), encoder.vision(image.permute(0, 1, *back), patch=patch)
    assert torch.allclose(theirs.cls, ours.cls, atol=1e-4)
    assert torch.allclose(theirs.maps(), ours.maps().permute(0, 1, *back), atol=1e-4)
    assert not torch.allclose(theirs.maps(), public(image.flip(-1), patch=patch).maps(), atol=1e-2)


def test_a_torch_archive_comes_through_a_process_of_its_own(tmp_path, capsys):
    torch.save({"teacher": teacher(), "iteration": 7}, tmp_path / "teacher.pth")
    code = run(
        ["import", "flexict", str(tmp_path / "teacher.pth"), str(tmp_path / "out"), "--kind", "2d", "--json"]
    )
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    sources = [name for row in report["tensors"] for name in row["sources"]]
    assert sorted(sources) == sorted(f"teacher.{name}" for name in teacher())
    left = {row["sources"][0]: row["note"] for row in report["tensors"] if row["target"] is None}
    assert left == {
        "teacher.backbone.rope_embed_2D.periods": "left out: computed from the base, and checked against it",
        "teacher.backbone.rope_embed_3D.periods": "left out: computed from the base, and checked against it",
        "teacher.dino_head.mlp.0.weight": "left out: a head of the pretraining losses",
        "teacher.ibot_head.last_layer.weight": "left out: a head of the pretraining losses",
    }
    file, encoder = loaded(tmp_path / "out")
    assert (
        file.config.kind == "2d" and file.config.prep["name"] == "flexict-2d" and file.config.prep_2d is None
    )
    assert torch.equal(encoder.vision.blocks[1].mlp.up.weight, teacher()["backbone.blocks.1.mlp.fc1.weight"])
    assert file.card["licence"] == report["licence"] == "CC BY-NC-ND 4.0"
    assert "no redistribution of derivatives" in file.card["terms"] and file.card["synthetic"] is False
    assert file.card["source"]["values"] == {"iteration": "7"}


def test_volumes_and_reports(tmp_path, tower):
    words = torch.arange(40.0 * EMBEDDING).reshape(40, EMBEDDING)
    state = with_reports({"words.weight": words})
    source = stored(tmp_path / "model.safetensors", state)
    report = import_encoder("flexict", tmp_path, tmp_path / "out", text=tower)
    file, encoder = loaded(tmp_path / "out")
    assert source.exists() and report.kind == file.config.kind == "3d-vlm"
    assert file.config.embedding == EMBEDDING
    assert file.config.text is not None
    assert (file.config.text.pooling, file.config.text.max_tokens, file.config.text.lower) == (
        "last",
        768,
        True,
    )
    assert torch.equal(encoder.projection.weight, state["vlm_vision_projection.weight"])
    assert encoder.temperature.log_scale.tolist() == [3.5]
    assert torch.equal(encoder.text.model.words.weight, words)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == (tower / "tokenizer.json").read_text()


def without(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


WRONG = {
    "one is missing": (
        without("backbone.blocks.0.ls1.gamma"),
        r"WEIGHTS_KEYS.*missing: vision\.blocks\.0\.scale_att",
    ),
    "no tokens": (without("backbone.cls_token"), r"WEIGHTS_KEYS.*missing: cls_token"),
    "one is strange": (
        lambda s: s | {"backbone.head.weight": torch.zeros(2)},
        r"not known: backbone\.head\.weight",
    ),
    "a bias": (lambda s: s | {"backbone.blocks.0.attn.qkv.bias": torch.zeros(72)}, r"not known: .*qkv\.bias"),
    "a block more": (
        lambda s: s | {"backbone.blocks.3.ls1.gamma": torch.ones(24)},
        r"missing: vision\.blocks\.2\.",
    ),
    "a shape": (
        lambda s: s | {"backbone.norm.bias": torch.zeros(25)},
        r"another shape: backbone\.norm\.bias",
    ),
    "a kernel": (
        lambda s: s | {"backbone.patch_embed_3D.proj.weight": torch.zeros(24, 1, 4, 4, 8)},
        r"another shape: backbone\.patch_embed_3D",
    ),
    "a kernel without axes": (
        lambda s: s | {"backbone.patch_embed_2D.proj.weight": torch.zeros(24)},
        r"another shape: backbone\.patch_embed_2D\.proj\.weight \(24,\)",
    ),
    "another base": (
        lambda s: s | {"backbone.rope_embed_3D.periods": torch.tensor([1.0, 10.0])},
        r"another shape: backbone\.rope_embed_3D\.periods.*base 100",
    ),
    "whole numbers": (
        lambda s: s | {"backbone.norm.bias": torch.zeros(24, dtype=torch.int64)},
        r"not known: backbone\.norm\.bias",
    ),
    "not a number": (
        lambda s: s | {"backbone.norm.bias": torch.full((24,), float("nan"))},
        r"WEIGHTS_NONFINITE.*backbone\.norm\.bias",
    ),
    "two layouts": (
        lambda s: s | {"vision_model.cls_token": s["backbone.cls_token"]},
        r"WEIGHTS_KEYS.*not known: backbone\.",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_the_published_layout_is_refused_by_name(tmp_path, name):
    change, message = WRONG[name]
    state = change({f"backbone.{key}": value for key, value in flexict().items()})
    source = stored(tmp_path / "a.safetensors", state)
    with pytest.raises(WeightsError, match=message):
        import_encoder("flexict", source, tmp_path / "out", kind="3d")
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_what_cannot_be_told_is_asked(tmp_path, tower):
    source = stored(tmp_path / "a.safetensors", {f"backbone.{k}": v for k, v in flexict().items()})
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*say --kind 2d or --kind 3d"):
        import_encoder("flexict", source, tmp_path / "out")
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*belongs to a model of reports"):
        import_encoder("flexict", source, tmp_path / "out", kind="3d", text=tower)
    both = stored(tmp_path / "b.safetensors", with_reports({"words.weight": torch.zeros(40, EMBEDDING)}))
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*expected 3d-vlm"):
        import_encoder("flexict", both, tmp_path / "out", kind="3d")
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*--text FOLDER"):
        import_encoder("flexict", both, tmp_path / "out")
    (tower / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"CONFIG_FILE.*tokenizer\.json"):
        import_encoder("flexict", both, tmp_path / "out", text=tower)
    assert not (tmp_path / "out").exists()


def test_a_projection_that_is_missing_is_said(tmp_path):
    state = with_reports({})
    del state["vlm_vision_projection.weight"]
    source = stored(tmp_path / "a.safetensors", state)
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*no projection for reports"):
        import_encoder("flexict", source, tmp_path / "out", kind="3d-vlm")


def test_results_replace_nothing(tmp_path):
    source = stored(tmp_path / "a.safetensors", flexict())
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("folder", "link", "a.safetensors"):
        with pytest.raises(OutputError, match="OUTPUT_EXISTS"):
            import_encoder("flexict", source, tmp_path / name, kind="2d")
    with pytest.raises(OutputError, match="OUTPUT_UNWRITABLE"):
        import_encoder("flexict", source, tmp_path / "not" / "there", kind="2d")


def test_parts_of_a_folder_are_one_checkpoint(tmp_path):
    state = {f"vision_model.{name}": tensor for name, tensor in flexict().items()}
    names = sorted(state)
    folder = tmp_path / "hub"
    folder.mkdir()
    stored(folder / "1.safetensors", {name: state[name] for name in names[:9]})
    stored(folder / "2.safetensors", {name: state[name] for name in names[9:]})
    parts = {name: f"{1 if name in names[:9] else 2}.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    with open_foreign(folder) as foreign:
        assert sorted(foreign.table) == names and foreign.form == "safetensors"
    import_encoder("flexict", folder, tmp_path / "out", kind="3d")
    _, encoder = loaded(tmp_path / "out")
    assert torch.equal(encoder.vision.cls, state["vision_model.cls_token"])


def test_the_command_says_what_went_where(tmp_path, capsys):
    source = stored(tmp_path / "a.safetensors", flexict())
    assert run(["import", "flexict", str(source), str(tmp_path / "out"), "--kind", "3d"]) == 0
    text = capsys.readouterr().out
    assert "3d, " in text and "2 tensors axes turned over" in text and "CC BY-NC-ND 4.0" in text
    assert run(["import", "flexict", str(source), str(tmp_path / "out"), "--kind", "3d"]) == 2
    assert "OUTPUT_EXISTS" in capsys.readouterr().err
