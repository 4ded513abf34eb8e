"""An encoder's folder: in and out whole, and every way in which it is refused."""

import json

import numpy as np
import pytest
import torch
from _encoders import CARD, config_of, file_of, stand_in

from hilum.errors import OutputError, UsageError, WeightsError
from hilum.io.encoder_file import (
    EncoderConfig,
    EncoderFile,
    is_encoder,
    load_encoder,
    save_encoder,
    tensor_table,
)
from hilum.io.hashing import sha256_of
from hilum.io.weights import save_weights
from hilum.model.encoder import build_encoder, load_tensors, tensors_of

KINDS = ("2d", "3d", "3d-vlm", "3d-joint")


@pytest.fixture(autouse=True)
def _tower(monkeypatch):
    stand_in(monkeypatch)


def torch_of(file):
    return {name: torch.from_numpy(array) for name, array in file.tensors.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_comes_back_bit_for_bit(kind, tmp_path):
    file = file_of(kind, tokenizer='{"ä": 1}')
    digest = save_encoder(tmp_path / "a", file)
    back = load_encoder(tmp_path / "a")
    assert back.config == file.config and back.tokenizer == file.tokenizer
    assert back.card == {**CARD, "sha256": digest} and digest == sha256_of(tmp_path / "a/model.safetensors")
    assert list(back.tensors) == sorted(file.tensors)
    assert all(np.array_equal(back.tensors[name], array) for name, array in file.tensors.items())
    names = {"config.json", "model.safetensors", "card.json"} | (
        {"tokenizer.json"} if kind in KINDS[2:] else set()
    )
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    save_encoder(tmp_path / "b", back)
    assert all((tmp_path / "b" / n).read_bytes() == (tmp_path / "a" / n).read_bytes() for n in names)
    encoder = build_encoder(back.config)
    load_tensors(encoder, torch_of(back))
    again = tensors_of(encoder)
    assert all(np.array_equal(again[name], array) for name, array in file.tensors.items())


def test_half_precision_stays_half_on_disk(tmp_path):
    file = file_of()
    half = {name: array.astype(np.float16) for name, array in file.tensors.items()}
    save_encoder(tmp_path / "a", EncoderFile(file.config, half, None, CARD))
    back = load_encoder(tmp_path / "a")
    assert {str(array.dtype) for array in back.tensors.values()} == {"float16"}
    assert {kind for kind, _ in tensor_table(tmp_path / "a/model.safetensors").values()} == {"float16"}
    encoder = build_encoder(back.config)
    load_tensors(encoder, torch_of(back))
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


def test_an_older_folder_is_replaced_only_when_asked(tmp_path):
    save_encoder(tmp_path / "a", file_of(seed=0))
    with pytest.raises(OutputError, match="OUTPUT_EXISTS"):
        save_encoder(tmp_path / "a", file_of(seed=1))
    first = sha256_of(tmp_path / "a/model.safetensors")
    assert save_encoder(tmp_path / "a", file_of(seed=1), overwrite=True) != first
    load_encoder(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_other_bytes_than_the_card_says_are_refused(tmp_path):
    save_encoder(tmp_path / "a", file_of())
    weights = tmp_path / "a/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(WeightsError, match="WEIGHTS_HASH"):
        load_encoder(tmp_path / "a")
    weights.write_bytes(bytes(data[: len(data) // 2]))
    with pytest.raises(WeightsError, match="WEIGHTS_TRUNCATED"):
        load_encoder(tmp_path / "a")
    card = json.loads((tmp_path / "a/card.json").read_text())
    (tmp_path / "a/card.json").write_text(json.dumps({k: v for k, v in card.items() if k != "sha256"}))
    save_weights(weights, file_of().tensors, {})
    with pytest.raises(WeightsError, match="WEIGHTS_HASH"):
        load_encoder(tmp_path / "a")


@pytest.mark.parametrize("name", ["config.json", "card.json", "model.safetensors"])
def test_a_file_that_is_not_there_is_named(name, tmp_path):
    save_encoder(tmp_path / "a", file_of())
    (tmp_path / "a" / name).unlink()
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        load_encoder(tmp_path / "a")
    assert is_encoder(tmp_path / "a") == (name != "config.json")


@pytest.mark.parametrize(
    ("text", "code"),
    [("[]", "CONFIG_FILE"), ("{", "CONFIG_FILE"), ("[" * 100_000, "CONFIG_FILE"), ("\udcff", "CONFIG_FILE")],
)
def test_a_config_is_a_json_object(text, code, tmp_path):
    save_encoder(tmp_path / "a", file_of())
    (tmp_path / "a/config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(WeightsError, match=code):
        load_encoder(tmp_path / "a")
    assert not is_encoder(tmp_path / "a")


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"patches": 8}, "CONFIG_KEY", "Did you mean patch?"),
        ({"format": 2}, "FORMAT_NEWER", "got 2"),
        ({"kind": "4d"}, "CONFIG_VALUE", "kind"),
        ({"model_type": "bert"}, "CONFIG_VALUE", "model_type"),
        ({"patch": 0}, "CONFIG_VALUE", "patch"),
        ({"field_vox": [32, 32, 0]}, "CONFIG_VALUE", "field_vox"),
        ({"embedding": 12}, "CONFIG_VALUE", "3d-vlm"),
        ({"kind": "3d-vlm"}, "CONFIG_VALUE", "3d-vlm"),
        ({"kind": "3d-joint"}, "CONFIG_VALUE", "3d-joint"),
        ({"joint": {}}, "CONFIG_VALUE", "joint belongs"),
        ({**config_of("3d-joint"), "field_vox": None}, "CONFIG_VALUE", "is its window"),
        ({**config_of("3d-joint"), "joint": {"widht": 24}}, "CONFIG_KEY", "width"),
    ],
)
def test_a_config_that_is_wrong_is_refused(changes, code, words):
    with pytest.raises(WeightsError, match=code) as caught:
        EncoderConfig.from_dict({**config_of("3d"), **changes})
    assert words in str(caught.value)


def test_an_unknown_key_of_the_text_tower_is_named():
    data = config_of("3d-vlm")
    with pytest.raises(WeightsError, match=r"CONFIG_KEY.*text\.poling.*Did you mean pooling"):
        EncoderConfig.from_dict({**data, "text": {**data["text"], "poling": "mean"}})


def test_cards_and_tokenizers_belong_to_their_kind(tmp_path):
    file, vlm = file_of(), file_of("3d-vlm")
    for key in ("name", "synthetic", "trained_on", "licence"):
        card = {k: v for k, v in CARD.items() if k != key}
        with pytest.raises(WeightsError, match=f"CONFIG_VALUE.*{key}"):
            EncoderFile(file.config, file.tensors, None, card)
    with pytest.raises(WeightsError, match=r"CONFIG_VALUE.*tokenizer"):
        EncoderFile(file.config, file.tensors, "{}", CARD)
    with pytest.raises(WeightsError, match=r"CONFIG_VALUE.*tokenizer"):
        EncoderFile(vlm.config, vlm.tensors, None, CARD)
    with pytest.raises(WeightsError, match="CONFIG_VALUE"):
        save_encoder(
            tmp_path / "a", EncoderFile(file.config, file.tensors, None, {**CARD, "x": float("nan")})
        )
    assert list(tmp_path.iterdir()) == []


def test_tensors_are_floating_point(tmp_path):
    file = file_of()
    name = next(iter(file.tensors))
    for wrong in (np.int64, np.float64):
        with pytest.raises(WeightsError, match=rf"WEIGHTS_KEYS.*{name}"):
            EncoderFile(file.config, {**file.tensors, name: file.tensors[name].astype(wrong)}, None, CARD)
    save_encoder(tmp_path / "a", file)
    from safetensors.torch import save_file

    save_file({name: torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "a/model.safetensors")
    with pytest.raises(WeightsError, match=r"WEIGHTS_KEYS.*bfloat16"):
        load_encoder(tmp_path / "a")


@pytest.mark.parametrize("part", ["projection", "temperature", "text", "vision"])
def test_a_missing_part_is_an_error_that_names_it(part):
    file = file_of("3d-vlm")
    encoder, tensors = build_encoder(file.config), torch_of(file)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(part)}
    with pytest.raises(WeightsError, match=rf"WEIGHTS_KEYS.*no {part}") as caught:
        load_tensors(encoder, kept)
    assert caught.value.hint
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())


def test_a_missing_strange_or_misshapen_tensor_is_an_error_that_names_it():
    file = file_of("3d-vlm")
    tensors, name = torch_of(file), "vision.blocks.1.norm1.weight"
    name = name if name in tensors else next(n for n in tensors if n.startswith("vision.blocks.1"))
    for wrong in (
        {k: v for k, v in tensors.items() if k != name},
        {**tensors, "vision.stranger": tensors[name]},
        {**tensors, name: tensors[name][..., None]},
        {**tensors, "projection.bias": torch.zeros(12)},
    ):
        with pytest.raises(WeightsError, match="WEIGHTS_KEYS"):
            load_tensors(build_encoder(file.config), wrong)


def test_a_backbone_or_space_that_is_none_is_refused():
    for changes in ({"backbone": {"name": "x", "network": "ynet", "net": {}}}, {"net": {"width": 25}}):
        with pytest.raises(WeightsError, match=r"CONFIG_VALUE"):
            build_encoder(EncoderConfig.from_dict(config_of("3d", **changes)))
    with pytest.raises(WeightsError, match=r"CONFIG_KEY.*depth"):
        build_encoder(EncoderConfig.from_dict(config_of("3d", net={"dept": 2})))
    with pytest.raises(WeightsError, match=r"CONFIG_VALUE.*embedding = 12"):
        build_encoder(EncoderConfig.from_dict(config_of("3d-vlm", embedding=13)))


def test_a_scans_embedding_is_the_projection_of_cls_and_mean_patch():
    encoder = build_encoder(file_of("3d-vlm").config).eval()
    output = encoder.vision(torch.randn(2, 1, 16, 16, 8, generator=torch.Generator().manual_seed(0)))
    by_hand = torch.cat([output.cls, output.patches.sum(1) / 4], 1) @ encoder.projection.weight.T
    by_hand = by_hand / (by_hand**2).sum(1, keepdim=True).sqrt()
    assert torch.allclose(encoder.image_embedding(output), by_hand, atol=1e-6)
    with pytest.raises(UsageError, match=r"MODEL_INPUT.*3d-vlm"):
        build_encoder(file_of("3d").config).image_embedding(output)
