"""Text towers of three layouts with random weights: padding, pooling, strict loading; MiniLM if it is cached.

One module for all that needs transformers: its import takes longer than every test here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import save_file

from hilum.errors import HilumError, InputRefused, UsageError, WeightsError
from hilum.io.fetch import is_cached
from hilum.io.hub import FETCHED, encoder_folder
from hilum.model.text_tower import TextTower, pool, pooling_weights
from hilum.train.text_source import default_pooling, fitted_names, load_text_tower

TINY = {
    "hidden_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "vocab_size": 40,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", "max_position_embeddings": 32, **TINY},
    "xlm-roberta": {"model_type": "xlm-roberta", "max_position_embeddings": 32, "pad_token_id": 1, **TINY},
    "qwen3": {
        "model_type": "qwen3",
        "head_dim": 12,
        "num_key_value_heads": 1,
        "rope_theta": 1e6,
        "max_position_embeddings": 64,
        "torch_dtype": "bfloat16",
        **TINY,
    },
}
POOLINGS = ("mean", "last", "cls", "attention")


def tower(kind: str, pooling: Any = "mean", seed: int = 0) -> TextTower:
    torch.manual_seed(seed)
    made = TextTower(CONFIGS[kind], pooling)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return made


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Five texts of 7, 4, 1, 6 and 0 tokens, padded on the right."""
    ids = torch.randint(3, 40, (5, 7), generator=torch.Generator().manual_seed(1))
    return ids, torch.arange(7) < torch.tensor([[7], [4], [1], [6], [0]])


def to_left(ids: torch.Tensor, mask: torch.Tensor, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [torch.cat([torch.full((int((~m).sum()),), pad), i[m]]) for i, m in zip(ids, mask, strict=True)]
    return torch.stack(rows), mask.flip(1)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_side_and_the_id_of_padding_change_nothing(kind: str, pooling: str) -> None:
    made, (ids, mask) = tower(kind, pooling), batch()
    right = made(ids.masked_fill(~mask, 0), mask)
    left = made(*to_left(ids, mask, 2))
    alone = torch.cat([made(i[m][None], m[m][None]) for i, m in zip(ids[:4], mask[:4], strict=True)])
    assert right.dtype == torch.float32 and right.shape == (5, 24)
    assert (right - left).abs().max() < 1e-5
    assert (right[:4] - alone).abs().max() < 1e-5
    # They are different texts.
    assert torch.pdist(right).min() > 1e-2


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_parameter_has_a_gradient_and_a_text_without_tokens_none(kind: str, pooling: str) -> None:
    made, (ids, mask) = tower(kind, pooling), batch()
    out = made(ids, mask)
    assert torch.equal(out[4], torch.zeros(24))
    out.square().sum().backward()
    # DDP stops on a parameter that the loss does not reach.
    assert [name for name, p in made.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in made.parameters() if p.grad is not None)
    made.zero_grad()
    made(ids[4:], mask[4:]).square().sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in made.parameters())


@pytest.mark.parametrize("kind", CONFIGS)
def test_equal_to_the_library_called_plainly(kind: str) -> None:
    made, (ids, mask) = tower(kind, "last"), batch()
    ids, mask = ids[:4], mask[:4]
    plain = made.model.eval()
    if kind == "qwen3":
        # As Qwen3-Embedding is used: padded on the left, positions counted from the first token.
        ids, mask = to_left(ids, mask, 0)
        places = (mask.cumsum(1) - 1).clamp_min(0)
        states = plain(input_ids=ids, attention_mask=mask.long(), position_ids=places).last_hidden_state
        expected = states[:, -1]
    else:
        ids = ids.masked_fill(~mask, CONFIGS[kind].get("pad_token_id", 0))
        states = plain(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        expected = states[torch.arange(4), mask.sum(1) - 1]
    assert (made.eval()(ids, mask) - expected).abs().max() < 1e-5


def twin(states: torch.Tensor, seen: torch.Tensor, pooling: str, query: torch.Tensor) -> torch.Tensor:
    """Pooling, text by text."""
    rows = []
    for row, on in zip(states, seen, strict=True):
        tokens = [row[i] for i in range(len(row)) if on[i]]
        if not tokens:
            rows.append(torch.zeros_like(row[0]))
        elif pooling == "mean":
            rows.append(sum(tokens[1:], tokens[0]) / len(tokens))
        elif pooling == "attention":
            scores = torch.stack([torch.dot(token, query) / len(token) ** 0.5 for token in tokens])
            shares = scores.exp() / scores.exp().sum()
            rows.append(sum((s * t for s, t in zip(shares, tokens, strict=True)), torch.zeros_like(row[0])))
        else:
            rows.append(tokens[-1 if pooling == "last" else 0])
    return torch.stack(rows)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_is_its_twin_with_its_gradient(pooling: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    seen = torch.rand(6, 5, generator=generator) < 0.6
    seen[0], seen[1] = False, True
    states = torch.randn(6, 5, 8, generator=generator, dtype=torch.float64)
    query = torch.randn(8, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    gradients = []
    for function in (pool, twin):
        s, q = states.clone().requires_grad_(), query.clone().requires_grad_()
        out = function(s, seen, pooling, q)
        (out * weight).sum().backward()
        gradients.append((out.detach(), s.grad, torch.zeros(8) if q.grad is None else q.grad))
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain.to(ours.dtype), atol=1e-12, rtol=0)


def test_what_is_not_seen_reaches_nothing_even_when_it_is_not_finite() -> None:
    states = torch.randn(2, 3, 4)
    states[0, 2], states[1] = float("nan"), float("inf")
    states.requires_grad_()
    seen = torch.tensor([[True, True, False], [False, False, False]])
    for how in ("mean", "last", "cls", "attention"):
        out = pool(states, seen, how, torch.ones(4))
        assert out.isfinite().all() and not out[1].any()
        (grad,) = torch.autograd.grad(out.sum(), states)
        assert grad.isfinite().all() and not grad[~seen].any()


def test_attention_starts_as_the_mean_and_learns() -> None:
    (ids, mask), made = batch(), TextTower(CONFIGS["bert"], "attention")
    states = torch.randn(5, 7, 24, generator=torch.Generator().manual_seed(0))
    assert made.query is not None
    torch.testing.assert_close(pool(states, mask, "attention", made.query), pool(states, mask, "mean"))
    made(ids, mask).square().sum().backward()
    assert made.query.grad is not None and made.query.grad.abs().max() > 0
    with pytest.raises(UsageError, match="query"):
        pooling_weights(states, mask, "attention")


def test_training_mode_is_no_noise() -> None:
    for kind in CONFIGS:
        made, (ids, mask) = tower(kind), batch()
        assert torch.equal(made.train()(ids, mask), made.eval()(ids, mask))


def test_parameters_stay_float32_whatever_the_configuration_says_and_autocast_works() -> None:
    for kind in CONFIGS:
        made, (ids, mask) = tower(kind), batch()
        assert {p.dtype for p in made.parameters()} == {torch.float32}
        exact = made(ids, mask)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = made(ids, mask)
        assert rounded.dtype == torch.float32
        assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()


def test_a_base_of_rotary_angles_is_the_configuration_s() -> None:
    made = tower("qwen3")
    frequencies = dict(made.model.named_buffers())["rotary_emb.inv_freq"]
    assert frequencies[-1].item() == pytest.approx(1e6 ** (-10 / 12), rel=1e-5)


@pytest.mark.parametrize(("kind", "limit"), [("bert", 32), ("xlm-roberta", 30), ("qwen3", 64)])
def test_a_text_longer_than_the_positions_is_refused(kind: str, limit: int) -> None:
    made = tower(kind)
    assert made.max_tokens == limit
    made(torch.full((1, limit), 5), torch.ones(1, limit, dtype=torch.bool))
    for length in (limit + 1, 0):
        with pytest.raises(InputRefused, match="MODEL_INPUT"):
            made(torch.full((1, length), 5), torch.ones(1, length, dtype=torch.bool))


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({}, "CONFIG_KEY"),
        ({"model_type": "no-such-layout"}, "CONFIG_VALUE"),
        ({"model_type": "no-such-layout", "auto_map": {"AutoModel": "evil.Model"}}, "CONFIG_CODE"),
        ({"model_type": "t5"}, "CONFIG_VALUE"),
        ({**CONFIGS["bert"], "num_attention_heads": 5}, "CONFIG_VALUE"),
        ({**CONFIGS["bert"], "hidden_act": "no-such-function"}, "CONFIG_VALUE"),
    ],
)
def test_a_configuration_that_makes_no_encoder_is_refused(config: dict[str, Any], code: str) -> None:
    with pytest.raises(WeightsError) as caught:
        TextTower(config)
    assert caught.value.code == code


def test_code_and_kernels_that_a_configuration_names_are_not_taken() -> None:
    named = {
        "auto_map": {"AutoModel": "evil.Model"},
        "attn_implementation": "owner/kernel",
        "dtype": "float16",
    }
    made = TextTower({**CONFIGS["bert"], **named})
    assert type(made.model) is transformers.BertModel
    assert made.model.config._attn_implementation == "sdpa"
    assert next(made.parameters()).dtype == torch.float32


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(HilumError, match="attention"):
        TextTower(CONFIGS["bert"], "max")


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"hilum\[text\]") as caught:
        TextTower(CONFIGS["bert"])
    assert caught.value.code == "EXTRA_MISSING"


def write_encoder(
    folder: Path, kind: str = "bert", words: int = 40, change: Any = lambda tensors: tensors, shards: int = 1
) -> TextTower:
    """A folder as it is published, of a tower with random weights."""
    made = tower(kind, default_pooling(folder, CONFIGS[kind]), seed=5)
    model = tokenizers.models.WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "config.json").write_text(json.dumps(CONFIGS[kind]))
    tensors = change({k: v.contiguous() for k, v in made.model.state_dict().items()})
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return made
    table = {
        name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors"
        for i, name in enumerate(sorted(tensors))
    }
    for file in set(table.values()):
        save_file({n: t for n, t in tensors.items() if table[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return made


def with_heads(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As a checkpoint of BERT's pretraining names them."""

    def old(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    heads = ("bert.pooler.dense.weight", "cls.predictions.bias", "cls.seq_relationship.weight")
    table = {"bert.embeddings.position_ids": torch.arange(32)[None]}
    return {f"bert.{old(k)}": v for k, v in tensors.items()} | {name: torch.ones(2) for name in heads} | table


@pytest.mark.parametrize(
    ("kind", "change", "shards"),
    [
        ("bert", lambda tensors: tensors, 1),
        ("bert", with_heads, 1),
        ("bert", with_heads, 3),
        (
            "xlm-roberta",
            lambda t: {f"roberta.{k}": v for k, v in t.items()} | {"lm_head.bias": torch.ones(2)},
            1,
        ),
        (
            "qwen3",
            lambda t: {f"model.{k}": v for k, v in t.items()} | {"lm_head.weight": torch.ones(2, 2)},
            2,
        ),
    ],
    ids=["plain", "heads", "shards", "roberta", "qwen"],
)
def test_a_folder_gives_back_its_tower(tmp_path: Path, kind: str, change: Any, shards: int) -> None:
    made = write_encoder(tmp_path, kind, change=change, shards=shards)
    found, tokens, config = load_text_tower(tmp_path)
    assert config == CONFIGS[kind] and not found.training
    assert (found.pooling, tokens.side) == (("last", "left") if kind == "qwen3" else ("mean", "right"))
    ids, mask = (torch.from_numpy(array) for array in tokens(["w5 w7 w9", "w3"], 16))
    assert torch.equal(found(ids, mask), made.eval()(ids, mask))
    assert load_text_tower(tmp_path, "attention")[0].query is not None


def test_bfloat16_files_are_read_exactly(tmp_path: Path) -> None:
    made = write_encoder(tmp_path, change=lambda t: {k: v.bfloat16() for k, v in t.items()})
    found, _, _ = load_text_tower(tmp_path)
    for ours, theirs in zip(found.parameters(), made.parameters(), strict=True):
        assert torch.equal(ours, theirs.bfloat16().float())


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda t: {**t, "adapter.weight": torch.ones(2)}, "WEIGHTS_KEYS"),
        (lambda t: {k: v for k, v in t.items() if "query" not in k}, "WEIGHTS_KEYS"),
        (lambda t: {k: v[:-1] for k, v in t.items()}, "WEIGHTS_KEYS"),
        (lambda t: {**t, "bert.embeddings.word_embeddings.weight": torch.ones(40, 24)}, "WEIGHTS_KEYS"),
        (lambda t: {k: v * float("nan") for k, v in t.items()}, "WEIGHTS_NONFINITE"),
    ],
    ids=["foreign", "missing", "shape", "twice", "nan"],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, change: Any, code: str) -> None:
    write_encoder(tmp_path, change=change)
    with pytest.raises(WeightsError) as caught:
        load_text_tower(tmp_path)
    assert caught.value.code == code


def test_a_cut_file_and_a_tokenizer_of_more_words_are_refused(tmp_path: Path) -> None:
    write_encoder(tmp_path, words=41)
    with pytest.raises(WeightsError, match="TOKEN_IDS"):
        load_text_tower(tmp_path)
    write_encoder(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(WeightsError, match="WEIGHTS_TRUNCATED"):
        load_text_tower(tmp_path)


def test_only_heads_are_left_out() -> None:
    names = ["bert.pooler.dense.bias", "bert.embeddings.x", "encoder.y", "cls.predictions.bias", "odd.z"]
    fitted, left = fitted_names(names, ["embeddings.x", "encoder.y"], "bert")
    assert fitted == {"bert.embeddings.x": "embeddings.x", "encoder.y": "encoder.y", "odd.z": "odd.z"}
    assert left == ["bert.pooler.dense.bias", "cls.predictions.bias"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"pooling_mode_cls_token": True, "include_prompt": True}, "cls"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "last"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, None),
        ({"pooling_mode_max_tokens": True}, None),
    ],
)
def test_a_folder_says_how_it_pools(tmp_path: Path, said: dict[str, bool], expected: str | None) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(said))
    if expected is not None:
        assert default_pooling(tmp_path, {"model_type": "qwen3"}) == expected
        return
    with pytest.raises(WeightsError, match="CONFIG_VALUE"):
        default_pooling(tmp_path, {})


def test_minilm_says_what_the_library_says_of_it() -> None:
    if not is_cached(FETCHED["minilm"][0].archive):
        pytest.skip("MiniLM is not in the cache")
    made, tokens, config = load_text_tower("minilm")
    assert (made.width, made.max_tokens, made.pooling, config["model_type"]) == (384, 512, "mean", "bert")
    texts = ["Small left pleural effusion.", "No pleural effusion.", "The heart is not enlarged. " * 30]
    ids, mask = (torch.from_numpy(array) for array in tokens(texts, 128))
    assert ids.shape[1] == 128
    plain = transformers.AutoModel.from_pretrained(encoder_folder("minilm"), local_files_only=True)
    with torch.no_grad():
        states = plain(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        expected = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        found = made(ids, mask)
    assert (found - expected).abs().max() < 1e-6
    near = torch.nn.functional.cosine_similarity(found[0], found[1], dim=0)
    # It is blind to negation: what the Opposite Sentence Loss is for.
    assert 0.6 < near < 0.9
