"""`exact-chat` as a task of the loop. Source: EXACT §2.4; seeds and the two stages' start are ours."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hilum.model.report_writer import LoraShape, ReportWriter
from hilum.objective.gather import mean_over_ranks, rank, world
from hilum.text.report_prompt import ReportTokens, report_prompt, report_requests
from hilum.train.chat_data import ChatSample, facts_of, load_features
from hilum.train.chat_recipe import ChatRecipe
from hilum.train.clipping import clip_by_part
from hilum.train.ema import Average
from hilum.train.phantom_task import pick
from hilum.train.schedule import Rates
from hilum.train.task import Losses

NOT_IDENTITY = {
    "threads", "device", "parallel", "checkpoint_every", "track", "language_model", "data", "start",
}  # fmt: skip


@dataclass(frozen=True)
class ChatStart:
    """What a stage begins with.

    Args:
        config: of the language model. weights: its tensors; None draws them. tokens: its tokenizer.
        writer: pooling, projector (and LoRA) of the stage before. sha256: of all weights.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor] | None
    tokens: ReportTokens
    writer: Mapping[str, torch.Tensor] | None
    sha256: str


@dataclass(frozen=True)
class ChatBatch:
    """Samples as tensors; `keys` name them."""

    features: torch.Tensor
    ids: torch.Tensor
    seen: torch.Tensor
    counted: torch.Tensor
    keys: tuple[str, ...]


class ChatTask:
    """See `train.task.Task`."""

    def __init__(self, recipe: ChatRecipe, samples: tuple[ChatSample, ...], start: ChatStart) -> None:
        self.recipe, self.samples, self.start = recipe, samples, start
        self.steps, self.betas = recipe.steps, (0.9, recipe.beta2)
        self.width = int(load_features(samples[0].features).shape[0])
        facts = recipe.model_dump(mode="json", exclude=NOT_IDENTITY)
        self.identity = json.dumps({**facts, "start": start.sha256, "samples": facts_of(samples)})

    def student(self) -> ReportWriter:
        """See `Task`."""
        recipe = self.recipe
        torch.manual_seed(recipe.seed)
        lora = LoraShape(**recipe.lora.model_dump()) if recipe.stage == "lora" else None
        writer = ReportWriter(self.width, self.start.config, recipe.queries, recipe.heads, lora)
        if self.start.weights is not None:
            load_language_model(writer, self.start.weights)
        if self.start.writer is not None:
            load_parts(writer, self.start.writer)
        return writer

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """See `Task`: one, of what is trained."""
        trained = [p for p in model.parameters() if p.requires_grad]
        return [{"params": trained, "lr_factor": 1.0, "decays": True, "last": False}]

    def rates(self, step: int) -> Rates:
        """See `Task`: warm-up, then cosine to 0. The average is the weights."""
        recipe = self.recipe
        if step < recipe.warmup:
            lr = recipe.lr * (step + 1) / recipe.warmup
        else:
            done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
            lr = recipe.lr * 0.5 * (1 + math.cos(math.pi * done))
        return Rates(lr, lr, recipe.weight_decay, 0.0, temperature=1.0)

    def batches(self, start: int, device: torch.device) -> Iterator[ChatBatch]:
        """See `Task`. Sample and request are a function of seed and place in the run."""
        share = self.recipe.batch // world()
        for step in range(start, self.steps):
            first = step * self.recipe.batch + rank() * share
            yield self._batch(range(first, first + share), device)

    def keys(self, batch: ChatBatch) -> list[str]:
        """See `Task`."""
        return list(batch.keys)

    def backward(self, model: nn.Module, average: Average, batch: ChatBatch, step: int) -> Losses:
        """See `Task`. LoRA's dropout is a function of seed, step and rank."""
        with torch.random.fork_rng():
            torch.manual_seed((self.recipe.seed * 1_000_003 + step) * 1009 + rank())
            total = model(batch.features, batch.ids, batch.seen, batch.counted)
        loss = mean_over_ranks(total, int(batch.counted.sum()))
        loss.backward()
        return {"next_word": loss.detach()}

    def clip(self, model: nn.Module) -> None:
        """See `Task`."""
        clip_by_part(model, self.recipe.clip)

    def _batch(self, places: range, device: torch.device) -> ChatBatch:
        recipe, tokens = self.recipe, self.start.tokens
        requests = report_requests(recipe.language)
        chosen, asked = [], []
        for place in places:
            sample = self.samples[pick(place, len(self.samples), recipe.seed)]
            drawn = torch.Generator().manual_seed(recipe.seed * 1_000_033 + place)
            request = requests[int(torch.randint(len(requests), (), generator=drawn))]
            chosen.append(sample)
            asked.append(tokens.ask(report_prompt(request, sample.present), sample.report, recipe.max_tokens))
        longest = max(len(a.ids) for a in asked)
        shape = (len(asked), longest)
        ids = torch.full(shape, tokens.pad_id)
        seen, counted = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
        for i, row in enumerate(asked):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            seen[i, : len(row.ids)], counted[i, : len(row.ids)] = True, torch.tensor(row.counted)
        features = torch.stack([load_features(sample.features) for sample in chosen])
        keys = tuple(sample.name for sample in chosen)
        features, ids, seen, counted = (x.to(device) for x in (features, ids, seen, counted))
        return ChatBatch(features, ids, seen, counted, keys)


def parts_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a writer adds to its language model: pooling, projector, LoRA."""
    return {name: value for name, value in tensors.items() if not name.startswith("lm.") or ".lora_" in name}


def load_parts(writer: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Into a writer what `parts_of` took out of one; LoRA of a stage before that had none stays fresh.

    Raises:
        WeightsError: `WEIGHTS_KEYS`, of another writer.
    """
    from hilum.errors import WeightsError

    own = parts_of(writer.state_dict())
    lacking = [n for n in own if n not in tensors and ".lora_" not in n]
    foreign = [n for n, value in tensors.items() if n not in own or own[n].shape != value.shape]
    if lacking or foreign:
        raise WeightsError(
            "WEIGHTS_KEYS", "a writer's parts are those of its recipe", expected=sorted(lacking)[:3],
            got=sorted(foreign)[:3],
        )  # fmt: skip
    writer.load_state_dict(dict(tensors), strict=False)


def load_language_model(writer: ReportWriter, weights: Mapping[str, torch.Tensor]) -> None:
    """The weights of a published language model, strict; a tied head may be left out.

    Raises:
        WeightsError: `WEIGHTS_KEYS`.
    """
    from hilum.errors import WeightsError

    # LoRA moves a map's own weight one level down
    own = {name.replace(".base_layer.", "."): name for name in writer.lm.state_dict() if ".lora_" not in name}
    tied = set(own) - set(weights) if writer.lm.config.tie_word_embeddings else set()
    lacking = sorted(set(own) - set(weights) - {n for n in tied if n.startswith("lm_head.")})
    foreign = sorted(set(weights) - set(own))
    if lacking or foreign:
        raise WeightsError(
            "WEIGHTS_KEYS", "a language model's weights are those of its configuration", expected=lacking[:3],
            got=foreign[:3],
        )  # fmt: skip
    writer.lm.load_state_dict({own[name]: value for name, value in weights.items()}, strict=False)
