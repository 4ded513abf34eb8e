"""The language model that writes reports: a tiny Llama of random weights, a tokenizer trained here."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hilum.errors import InputRefused, UsageError, WeightsError
from hilum.model.report_writer import AttentionPool, LoraShape, ReportWriter
from hilum.text.report_prompt import (
    IMAGE_ID,
    ReportTokens,
    disease_string,
    report_prompt,
    report_requests,
)
from hilum.text.vocabulary import FINDINGS
from hilum.train.chat_data import read_samples
from hilum.train.chat_recipe import ChatData, ChatRecipe
from hilum.train.chat_run import chat_start, load_writer, run_chat
from hilum.train.chat_task import ChatTask
from hilum.train.loop import Progress, train
from hilum.train.recipe import load_recipe

TEXTS = ["Emphysema. No pleural effusion.", "Nodule in the left lower lobe.", "Kein Pleuraerguss."]


def tiny_tokenizer() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>", "<pad>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([*TEXTS, report_prompt("Write.", [0] * 18)], trainer)
    return tokenizer.to_str()


TOKENIZER = tiny_tokenizer()
TOKENS = ReportTokens(TOKENIZER, "<s>{prompt}")
CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": TOKENS.size, "pad_token_id": 2,
    "bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 1024, "initializer_range": 0.2,
    "tie_word_embeddings": False,
}  # fmt: skip
LORA = LoraShape(4, 8, 0.05)


def writer(lora: LoraShape | None = None) -> ReportWriter:
    torch.manual_seed(0)
    return ReportWriter(8, CONFIG, queries=5, heads=2, lora=lora)


def row(report: str = TEXTS[0]) -> tuple[torch.Tensor, torch.Tensor]:
    asked = TOKENS.ask(report_prompt("Write.", [0, 1] * 9), report)
    return torch.tensor([asked.ids]), torch.tensor([asked.counted])


FEATURES = torch.randn(1, 8, 3, 4, 2, generator=torch.Generator().manual_seed(1))


def test_the_prompt_is_that_of_the_paper() -> None:
    text = report_prompt("Write.", [0] * 17 + [1])
    assert text.startswith(
        "<image>\nWrite. Known frontend model predictions (disease-wise): Medical material=0; "
    )
    assert text.endswith("; Interlobular septal thickening=1.<report_generation>")
    assert [p.split("=")[0] for p in text.split("): ")[1].split("; ")] == [f.name for f in FINDINGS]
    for language in ("en", "de"):
        assert len(set(report_requests(language))) == 42  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        disease_string([0] * 17)


def test_tokens_hold_one_image_and_words_are_never_marks() -> None:
    asked = TOKENS.ask(report_prompt("Say </s> twice.", [0] * 18), "Emphysema </s>.")
    assert asked.ids.count(IMAGE_ID) == 1 and asked.ids[0] == 0
    assert asked.ids.count(TOKENS.end_id) == 1 and asked.ids[-1] == TOKENS.end_id
    answer = [i for i, counted in zip(asked.ids, asked.counted, strict=True) if counted]
    assert TOKENS.decode(answer) == "Emphysema </s>."
    whole = TOKENS.ask(report_prompt("Write.", [0] * 18), TEXTS[0])
    cut = TOKENS.ask(report_prompt("Write.", [0] * 18), TEXTS[0], max_tokens=len(whole.ids) - 3)
    assert cut.ids == whole.ids[:-3] and sum(cut.counted) == sum(whole.counted) - 3


def test_pooling_equals_plain_attention() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(8, 5, 2).double()
    torch.nn.init.normal_(pool.place.weight)
    features = torch.randn(2, 8, 3, 2, 2, dtype=torch.float64)
    found = pool(features)
    attention, heads = pool.attention, 2
    wq, wk, wv = attention.in_proj_weight.chunk(3)
    for b in range(2):
        rows = []
        for u in range(3):
            for v in range(2):
                for w in range(2):
                    at = torch.tensor([-1 + u, -1 + 2 * v, -1 + 2 * w], dtype=torch.float64)
                    rows.append(pool.norm_features(features[b, :, u, v, w]) + pool.place.weight @ at)
        rows = torch.stack(rows)
        for q in range(5):
            query = wq @ pool.norm_query(pool.query[q])
            mixed = []
            for h in range(heads):
                part = slice(h * 4, h * 4 + 4)
                weights = ((rows @ wk.T)[:, part] @ query[part] / 2.0).softmax(0)
                mixed.append(weights @ (rows @ wv.T)[:, part])
            expected = pool.norm(attention.out_proj(torch.cat(mixed)))
            torch.testing.assert_close(found[b, q], expected)


def test_the_loss_is_that_of_the_library_and_padding_changes_nothing() -> None:
    model = writer()
    ids, counted = row()
    seen = torch.ones_like(ids, dtype=torch.bool)
    total = model(FEATURES, ids, seen, counted)
    embed, at = model.lm.get_input_embeddings(), int((ids[0] == IMAGE_ID).nonzero())
    before, after = embed(ids[:, :at]), embed(ids[:, at + 1 :])
    whole = torch.cat([before, model.image_tokens(FEATURES), after], dim=1)
    labels = torch.where(counted, ids, -100)
    labels = torch.cat([labels[:, :at], torch.full((1, 5), -100), labels[:, at + 1 :]], dim=1)
    expected = model.lm(inputs_embeds=whole, labels=labels).loss * counted.sum()
    torch.testing.assert_close(total, expected)
    short, short_counted = row("Nodule.")
    for side in ("left", "right"):
        wide = torch.full((2, ids.shape[1]), 2)
        mask, count = torch.zeros_like(wide, dtype=torch.bool), torch.zeros_like(wide, dtype=torch.bool)
        n = short.shape[1]
        place = slice(-n, None) if side == "left" else slice(n)
        wide[0], mask[0], count[0] = ids, True, counted
        wide[1, place], mask[1, place], count[1, place] = short, True, short_counted
        both = model(FEATURES.expand(2, -1, -1, -1, -1), wide, mask, count)
        alone = model(FEATURES, short, torch.ones_like(short, dtype=torch.bool), short_counted)
        torch.testing.assert_close(both, total + alone)


def test_image_tokens_matter() -> None:
    model = writer(LORA)
    ids, counted = row()
    seen = torch.ones_like(ids, dtype=torch.bool)
    features = FEATURES.clone().requires_grad_(True)
    total = model(features, ids, seen, counted)
    total.backward()
    assert features.grad is not None and bool((features.grad.abs().amax(1) > 0).all()), (
        "every row of the grid"
    )
    assert not torch.equal(model(FEATURES.flip(2), ids, seen, counted), model(-FEATURES, ids, seen, counted))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
    assert trained == with_gradient, "DDP finds no unused parameter"
    assert all(not n.startswith("lm.") or ".lora_" in n for n in trained)


def test_a_prompt_without_image_is_refused() -> None:
    ids, counted = row()
    with pytest.raises(InputRefused, match="MODEL_INPUT"):
        writer()(FEATURES, ids.masked_fill(ids == IMAGE_ID, 5), torch.ones_like(counted), counted)


def test_greedy_words_are_the_most_probable_of_the_whole_text() -> None:
    """With the cache as without it."""
    model = writer().eval()
    asked = TOKENS.ask(report_prompt("Write.", [0] * 18))
    told = model.write(FEATURES, asked.ids, end_id=-1, max_new=6)
    assert len(told) == 6
    embed, at = model.lm.get_input_embeddings(), asked.ids.index(IMAGE_ID)
    for n, word in enumerate(told):
        ids = torch.tensor([asked.ids + told[:n]])
        whole = [embed(ids[:, :at]), model.image_tokens(FEATURES), embed(ids[:, at + 1 :])]
        assert int(model.lm(inputs_embeds=torch.cat(whole, 1)).logits[0, -1].argmax()) == word
    assert model.write(FEATURES, asked.ids, end_id=told[0], max_new=6) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chat")
    (root / "lm").mkdir()
    (root / "lm" / "config.json").write_text(json.dumps(CONFIG))
    (root / "lm" / "tokenizer.json").write_text(TOKENIZER)
    torch.manual_seed(3)
    save_file(dict(writer().lm.state_dict()), root / "lm" / "model.safetensors")
    (root / "features").mkdir()
    names = [f"valid_{n}_a_1" for n in range(3)]
    for n, name in enumerate(names):
        value = torch.randn(8, 2, 2, 2, generator=torch.Generator().manual_seed(n))
        save_file({"features": value}, root / "features" / f"{name}.safetensors")
    with (root / "reports.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["VolumeName", "report"],
                *([f"{n}.nii.gz", t] for n, t in zip(names, TEXTS, strict=True)),
                ["x", "y"],
            ]
        )
    with (root / "predictions.csv").open("w", newline="") as file:
        header = ["VolumeName", *(f.name for f in FINDINGS)]
        csv.writer(file).writerows([header, *([f"{n}.nii.gz", *"010" * 6] for n in names)])
    return root


def recipe(root: Path, stage: str = "projector", **changes: Any) -> ChatRecipe:
    data = {name: root / f"{name}.csv" for name in ("reports", "predictions")}
    basic = {
        "name": "tiny", "method": "exact-chat", "stage": stage, "language_model": root / "lm",
        "template": "<s>{prompt}",
        "data": {**data, "features": root / "features"}, "queries": 4, "heads": 2, "steps": 4, "batch": 2,
        "warmup": 1, "precision": "fp32", "threads": 1, "checkpoint_every": 2, "max_tokens": 400, "seed": 5,
        "lora": {"rank": 4, "alpha": 8},
    }  # fmt: skip
    return ChatRecipe.model_validate({**basic, **changes})


def test_samples_have_all_three(folder: Path) -> None:
    samples = read_samples(recipe(folder).data)
    assert [s.name for s in samples] == [f"valid_{n}_a_1" for n in range(3)]
    assert samples[0].present == (0, 1, 0) * 6 and samples[1].report == TEXTS[1]
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        read_samples(ChatData(**{**recipe(folder).data.model_dump(), "features": folder}))


def run(folder: Path, out: Path, stop: int | None = None, **changes: Any) -> tuple[Path, list[float]]:
    losses = []

    def report(state: Progress) -> None:
        losses.append(state.losses["next_word"])
        if stop is not None and state.step + 1 == stop:
            raise KeyboardInterrupt

    return run_chat(recipe(folder, **changes), out, report=report), losses


def test_the_loss_falls_on_one_batch(folder: Path, tmp_path: Path) -> None:
    """Five image tokens before a frozen model can say little; LoRA can say more."""
    changes = {"steps": 30, "batch": 3, "checkpoint_every": 100}
    first, losses = run(folder, tmp_path / "a", **changes, lr=2e-2)
    assert losses[-1] < losses[0] - 0.4
    _, losses = run(folder, tmp_path / "b", **changes, lr=1e-2, stage="lora", start=first)
    assert losses[-1] < 0.6 * losses[0]


def test_two_stages_and_a_run_that_goes_on_is_the_run_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    first, _ = run(folder, tmp_path / "projector")
    changes = {"stage": "lora", "start": first, "lr": 1e-2}
    whole, losses = run(folder, tmp_path / "whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "cut", stop=3, **changes)
    resumed, later = run(folder, tmp_path / "cut", **changes)
    assert later == losses[2:]
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    loaded = load_writer(whole, folder / "lm")
    assert loaded.card["stage"] == "lora" and loaded.card["scans"] == 3
    asked = loaded.tokens.ask(report_prompt("Write.", [0] * 18))
    one = loaded.writer.write(FEATURES, asked.ids, loaded.tokens.end_id, 5)
    assert one == loaded.writer.write(FEATURES, asked.ids, loaded.tokens.end_id, 5)
    lora = [v for n, v in loaded.writer.named_parameters() if "lora_B" in n]
    assert lora and all(bool(v.abs().sum() > 0) for v in lora), "LoRA learned, and was loaded"


def test_a_stage_starts_where_the_last_one_ended(folder: Path, tmp_path: Path) -> None:
    first, _ = run(folder, tmp_path / "projector")
    second = recipe(folder, "lora", start=first)
    student = ChatTask(second, read_samples(second.data), chat_start(second)).student()
    loaded = load_writer(first, folder / "lm").writer
    for name, value in loaded.pool.state_dict().items():
        assert torch.equal(student.pool.state_dict()[name], value)
    key = "model.layers.0.self_attn.q_proj"
    torch.testing.assert_close(
        student.lm.get_submodule(key).base_layer.weight, loaded.lm.get_submodule(key).weight
    )
    with pytest.raises(UsageError, match="projector"):
        chat_start(recipe(folder, "lora"))
    with pytest.raises(WeightsError, match="WEIGHTS_KEYS"):
        ChatTask(
            recipe(folder, "lora", start=first, queries=3), read_samples(second.data), chat_start(second)
        ).student()


@pytest.mark.parametrize("name", ["exact-chat-projector", "exact-chat-lora"])
def test_the_recipes_hold_the_published_numbers(name: str) -> None:
    found = load_recipe(Path(__file__).parents[2] / "recipes" / f"{name}.toml")
    assert isinstance(found, ChatRecipe)
    assert (found.queries, found.heads, found.lora.rank, found.lora.alpha, found.lora.dropout) == (
        256, 8, 128, 256, 0.05,
    )  # fmt: skip
    assert (found.batch, found.lr) == ((12, 1e-3) if found.stage == "projector" else (2, 2e-5))
    assert np.isfinite(found.lr) and train is not None
