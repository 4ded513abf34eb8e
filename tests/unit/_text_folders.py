"""A text tower in Qwen's layout as a folder, for tests of what trains one."""

from pathlib import Path

import torch

WORDS = tuple("abcdefghijklm")


def tiny_qwen(folder: Path, width: int = 8) -> Path:
    """config.json, tokenizer.json, model.safetensors."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=40, hidden_size=width, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=4, intermediate_size=12, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    Qwen3Model(config).save_pretrained(folder)
    tokenizer = Tokenizer(
        WordLevel({w: n for n, w in enumerate(["[PAD]", "[UNK]", *WORDS])}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
