"""`hilum import colipri`: every tensor in its place, and a plain forward pass over the public names. The text
tower is BERT itself, which needs transformers."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
import torch
from _encoders import file_of
from _public_layouts import (
    CXR_BERT,
    colipri,
    loaded,
    public_pool,
    public_primus,
    shapes_of_bert,
    shapes_of_colipri,
    stored,
)
from torch.nn import functional as F

import hilum
from hilum.cli import run
from hilum.convert.run import import_encoder
from hilum.errors import UsageError, WeightsError
from hilum.exam.frozen_models import Loaded
from hilum.geometry import Geometry
from hilum.io.encoder_file import EncoderConfig, load_encoder, save_encoder
from hilum.io.weights import preset_data
from hilum.model.encoder import build_encoder
from hilum.read.embed import embed_scan, index_model
from hilum.train.teacher_encoder import encoder_teacher
from hilum.volume import CTVolume, Provenance

PUBLISHED = 258_367_104
"""Numbers in the published file, as its hub counts them."""


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CXR_BERT))
    words = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "no", "nodule", "effusion", "."])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    (folder / "tokenizer.json").write_text(made.to_str())
    return folder


def hub(tmp_path, state):
    """A folder as the hub has it."""
    folder = tmp_path / "hub"
    folder.mkdir()
    stored(folder / "model.safetensors", state)
    return folder


def test_a_scan_and_its_patches_are_the_published_ones(tmp_path, text):
    state = colipri()
    import_encoder("colipri", hub(tmp_path, state), tmp_path / "out", text=text)
    _, encoder = loaded(tmp_path / "out")
    image = torch.rand(2, 1, 12, 8, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    patches = public_primus(state, image)
    projected = patches @ state["image_encoder.projector.weight"].double().flatten(1).T
    projected = projected + state["image_encoder.projector.bias"].double()
    scans = torch.stack([public_pool(state, "image_encoder", one) for one in projected])
    # one token alone is what it says of itself
    dense = torch.stack([public_pool(state, "image_encoder", one[None]) for one in projected[0]])
    with torch.no_grad():
        out = encoder.vision(image)
        assert out.grid == (3, 2, 4) and torch.allclose(out.cls, out.patches.mean(1))
        assert torch.allclose(out.patches.double(), patches, atol=1e-4)
        assert torch.allclose(encoder.image_embedding(out).double(), F.normalize(scans, dim=1), atol=1e-5)
        found = encoder.patch_embeddings(out.patches)[0].double()
    assert torch.allclose(found, F.normalize(dense, dim=1), atol=1e-5)
    assert torch.pdist(found).min() > 1e-3


def test_texts_are_the_published_ones(tmp_path, text):
    state = colipri()
    import_encoder("colipri", hub(tmp_path, state), tmp_path / "out", text=text)
    model = hilum.load(tmp_path / "out")
    texts = ["no nodule .", "effusion", "nodule . " * 40]
    found = model.encode_text(texts)
    ids = [[2, 3, 5], [4], [3, 5] * 16]  # 32 places: the longest is cut there
    for row, one in zip(found, ids[:2], strict=False):
        with torch.no_grad():
            words = model.encoder.text.model(input_ids=torch.tensor([one])).last_hidden_state[0]
        expected = F.normalize(public_pool(state, "text_encoder", words), dim=0)
        assert np.allclose(row, expected.numpy(), atol=1e-5)
    assert model.similarity(found[0], found[:1])[0] == pytest.approx(1 / 0.07, rel=1e-5)


def scan(shape=(96, 80, 40)):
    generator = np.random.default_rng(0)
    hu = generator.normal(0, 300, shape).astype(np.float32)
    geometry = Geometry(shape, np.diag([4.0, 4.0, 8.0, 1.0]))
    return CTVolume.from_source(hu, geometry, Provenance("phantom", "0"))


def test_a_folder_reads_scans_and_keeps_its_bytes(tmp_path, text):
    # 2 mm patches of 4 voxels in a field of 192³ are too many for a test: of 64
    source = hub(tmp_path, colipri(None))
    report = import_encoder("colipri", source, tmp_path / "whole", text=text)
    file = load_encoder(tmp_path / "whole")
    assert file.config.field_vox == (192, 192, 192) and file.config.patch == 4
    data = file.config.as_dict()
    data |= {
        "field_vox": [16, 16, 16],
        "prep": {**data["prep"], "spacing_mm": [24.0] * 3, "fit_vox": [16] * 3},
    }
    small = type(file)(EncoderConfig.from_dict(data), file.tensors, file.tokenizer, file.card)
    save_encoder(tmp_path / "small", small)
    model = hilum.load(tmp_path / "small")
    features = model.encode_volume(scan())
    assert features.grid == (4, 4, 4) and features.embedding is not None
    assert np.linalg.norm(features.embedding) == pytest.approx(1, abs=1e-5)
    rows = model.encode_patches(features)
    assert rows.shape == (64, 24) and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    answers = model.zero_shot(features, ["nodule"], ["no nodule"])
    cosines = model.encode_text(["nodule", "no nodule"]) @ features.embedding
    # without a temperature cosines are compared as they are
    assert answers[0] == pytest.approx(1 / (1 + np.exp(cosines[1] - cosines[0])), abs=1e-6)
    whole = model.encode_scan(scan())
    assert whole.windows.grid == (4, 4, 4) and np.allclose(whole.embedding, features.embedding, atol=1e-5)
    # as hilum index has it
    assert index_model(model).spaces == {"report": 24}
    assert np.array_equal(embed_scan(model, scan())["report"], whole.embedding)
    assert model.save(tmp_path / "again") == model.card["sha256"]
    assert report.licence == "MIT" and file.card["licence"] == "MIT" and "MIT" in file.card["terms"]


def test_windows_of_a_large_scan_are_pooled_together(tmp_path, text):
    import_encoder("colipri", hub(tmp_path, colipri()), tmp_path / "whole", text=text)
    file = load_encoder(tmp_path / "whole")
    data = file.config.as_dict()
    data |= {"field_vox": [8, 8, 8], "prep": {**data["prep"], "spacing_mm": [24.0] * 3, "fit_vox": [8] * 3}}
    small = type(file)(EncoderConfig.from_dict(data), file.tensors, file.tokenizer, file.card)
    save_encoder(tmp_path / "small", small)
    model = hilum.load(tmp_path / "small")
    features = model.encode_scan(scan(), batch=3)
    assert len(features.windows) > 1
    with torch.no_grad():
        pooled = model.encoder.pooled(torch.from_numpy(features.patches)[None])[0]
    assert np.allclose(features.embedding, F.normalize(pooled, dim=0).numpy(), atol=1e-6)


def test_the_account_and_the_preparation(tmp_path, text, capsys):
    state = colipri()
    source, out = str(hub(tmp_path, state)), str(tmp_path / "out")
    assert run(["import", "colipri", source, out, "--text", str(text), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert sorted(name for row in report["tensors"] for name in row["sources"]) == sorted(state)
    left = [row["sources"][0] for row in report["tensors"] if row["target"] is None]
    assert left == ["image_encoder.backbone.mask_token"] and report["filled"] == []
    assert report["kind"] == "3d-vlm" and report["licence"] == "MIT"
    file, encoder = loaded(tmp_path / "out")
    prep = file.config.prep
    assert prep["name"] == "colipri" and prep["axes"] == "RAS" and prep["fit_vox"] == [192, 192, 192]
    assert prep["spacing_mm"] == [2.0, 2.0, 2.0] and prep["odd"] == "first"
    assert file.config.text is not None and file.config.text.config["model_type"] == "bert"
    assert "auto_map" not in file.config.text.config and file.config.text.max_tokens == 32
    assert encoder.temperature().item() == pytest.approx(1 / 0.07, rel=1e-5)


@pytest.mark.parametrize(
    ("value", "kept"),
    [(torch.tensor(1), 1.0), (torch.tensor(0.5), 2.0), (torch.tensor(0.01), 100.0), (torch.tensor(1.0), 1.0)],
)
def test_its_temperature_is_a_float_or_the_whole_number_one(tmp_path, text, value, kept):
    state = colipri(None) | {"softmax_temperature": value}
    import_encoder("colipri", hub(tmp_path, state), tmp_path / "out", text=text)
    assert loaded(tmp_path / "out")[1].temperature().item() == pytest.approx(kept, rel=1e-5)


def without(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


BLOCK = "image_encoder.backbone.eva.blocks.1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("image_encoder.backbone.down_projection.proj.weight"), r"missing: image_encoder\.backb"),
        (without(f"{BLOCK}.attn.norm.bias"), r"missing: vision\.blocks\.1\.attention\.norm\.bias"),
        (without("text_encoder.pooler.attn.in_proj_weight"), r"missing: text\.pooler\.qkv\.weight"),
        (without("text_encoder.backbone.embeddings.LayerNorm.bias"), r"missing: text\.model\.embeddings\.L"),
        (lambda s: s | {f"{BLOCK}.attn.k_proj.bias": torch.zeros(72)}, r"not known: .*attn\.k_proj\.bias"),
        (
            lambda s: s | {"image_encoder.backbone.register_tokens": torch.zeros(1, 2, 72)},
            r"not known: image_encoder\.backbone\.register_tokens",
        ),
        (
            lambda s: s | {"image_encoder.backbone.eva.pos_embed": torch.zeros(1, 8, 72)},
            r"not known: image_encoder\.backbone\.eva\.pos_embed",
        ),
        (
            lambda s: s | {"text_encoder.backbone.pooler.dense.weight": torch.zeros(24, 24)},
            r"not known: text_encoder\.backbone\.pooler",
        ),
        (lambda s: s | {f"{BLOCK}.gamma_1": torch.zeros(71)}, r"of another shape: .*gamma_1 \(71,\)"),
        (lambda s: s | {"softmax_temperature": torch.tensor(2.0)}, r"softmax_temperature \[2\.0\]"),
        (lambda s: s | {"softmax_temperature": torch.tensor(3)}, r"softmax_temperature \[3\]"),
    ],
)  # fmt: skip
def test_what_is_not_the_published_layout_is_refused_by_name(tmp_path, text, change, message):
    source = hub(tmp_path, change(colipri()))
    with pytest.raises(WeightsError, match=f"WEIGHTS_KEYS.*{message}"):
        import_encoder("colipri", source, tmp_path / "out", text=text)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hub", "text"]


def test_other_containers_kinds_and_towers_are_refused(tmp_path, text):
    source = hub(tmp_path, colipri())
    torch.save(colipri(), tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"WEIGHTS_PICKLE.*safetensors"):
        import_encoder("colipri", tmp_path / "a.pt", tmp_path / "out", text=text)
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*CXR-BERT"):
        import_encoder("colipri", source, tmp_path / "out")
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*3d-vlm"):
        import_encoder("colipri", source, tmp_path / "out", text=text, kind="2d")
    (text / "config.json").write_text(json.dumps({**CXR_BERT, "model_type": "qwen3"}))
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*cxr-bert"):
        import_encoder("colipri", source, tmp_path / "out", text=text)


def test_what_needs_a_vit_or_a_pooling_says_so(tmp_path, text):
    import_encoder("colipri", hub(tmp_path, colipri()), tmp_path / "out", text=text)
    model = hilum.load(tmp_path / "out")
    with pytest.raises(UsageError, match=r"MODEL_INPUT.*vit.*primus"):
        encoder_teacher(tmp_path / "out", model.config.prep)
    with pytest.raises(UsageError, match=r"MODEL_INPUT.*vit.*primus"):
        _ = Loaded.vision.fget(SimpleNamespace(model=model))
    save_encoder(tmp_path / "vit", file_of("3d"))
    other = hilum.load(tmp_path / "vit")
    with pytest.raises(UsageError, match=r"MODEL_INPUT.*patches"):
        other.encode_patches(other.encode_volume(scan()))


def test_it_is_as_large_as_published(tmp_path, text):
    shapes = shapes_of_colipri(864, 16, 2304, 768, 8)
    bert = shapes_of_bert(768, 12, 3072, 30522, 512)
    assert sum(map(math.prod, [*shapes.values(), *bert.values()])) == PUBLISHED
    import_encoder("colipri", hub(tmp_path, colipri()), tmp_path / "out", text=text)
    data = load_encoder(tmp_path / "out").config.as_dict()
    tower = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    }
    places = {"vocab_size": 30522, "max_position_embeddings": 512}
    data["backbone"], data["embedding"] = preset_data("colipri"), 768
    data["text"]["config"] |= tower | places
    with torch.device("meta"):
        own = build_encoder(EncoderConfig.from_dict(data))
    # theirs has a mask token, ours a temperature
    assert sum(p.numel() for p in own.parameters()) == PUBLISHED - 864 + 1
