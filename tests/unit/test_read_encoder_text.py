"""An encoder with a real text tower and a real tokenizer, from a folder. Needs transformers, which loads
slowly: what surrounds a tower is tested with a stand-in in `test_read_encoder.py`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from _encoders import file_of
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import hilum
from hilum.errors import WeightsError
from hilum.io.encoder_file import EncoderFile, save_encoder

TOWERS = {
    "bert": {"model_type": "bert", "max_position_embeddings": 32, "intermediate_size": 48},
    "qwen3": {
        "model_type": "qwen3",
        "head_dim": 12,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
        "intermediate_size": 48,
    },
}
SIZES = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 16}


def tokenizer() -> str:
    words = ["[PAD]", "[UNK]", "no", "nodule", "effusion", "."]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    return made.to_str()


def vlm(kind: str, pooling: str, seed: int = 0) -> EncoderFile:
    text = {"config": {**SIZES, **TOWERS[kind]}, "pooling": pooling, "max_tokens": 16, "lower": True}
    return file_of("3d-vlm", seed=seed, tokenizer=tokenizer(), text=text, embedding=24)


@pytest.mark.parametrize(("kind", "pooling"), [("bert", "mean"), ("bert", "attention"), ("qwen3", "last")])
def test_a_folder_with_a_language_model_encodes_texts(kind, pooling, tmp_path):
    digest = save_encoder(tmp_path / "a", vlm(kind, pooling))
    model = hilum.load(tmp_path / "a")
    texts = ["No nodule .", "effusion", "nodule nodule effusion ."]
    found = model.encode_text(texts)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    # each alone, without padding, through the tower itself
    vocabulary = {"no": 2, "nodule": 3, "effusion": 4, ".": 5}
    for text, row in zip(texts, found, strict=True):
        ids = torch.tensor([[vocabulary[word] for word in text.lower().split()]])
        with torch.no_grad():
            alone = model.encoder.text(ids, torch.ones_like(ids, dtype=torch.bool))[0]
        assert np.allclose(row, (alone / alone.norm()).numpy(), atol=1e-5)
    assert model.similarity(found[0], found)[0] == pytest.approx(np.exp(2.659), rel=1e-5)
    assert model.save(tmp_path / "b") == digest


def test_a_tower_of_other_weights_is_refused(tmp_path):
    file = vlm("bert", "mean")
    names = [name for name in file.tensors if name.startswith("text.")]
    tensors = {name: array for name, array in file.tensors.items() if name != names[0]}
    save_encoder(tmp_path / "a", EncoderFile(file.config, tensors, file.tokenizer, file.card))
    with pytest.raises(WeightsError, match=r"WEIGHTS_KEYS.*text\."):
        hilum.load(tmp_path / "a")
