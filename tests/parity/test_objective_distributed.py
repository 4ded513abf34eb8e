"""Two gloo ranks, each with a part of the batch, against one process: value and every parameter's gradient.

One spawn runs everything. Ranks hold unequal parts, in some cases none of what the loss is about.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from hilum.model.dino_head import DinoHead, DinoHeadConfig
from hilum.model.temperature import SigmoidScale
from hilum.objective.clip import Temperature, clip_loss
from hilum.objective.depth import TAU, depth_loss
from hilum.objective.dino import dino_loss, view_targets
from hilum.objective.gather import gather_rows, mean_over_ranks, row_counts
from hilum.objective.gram import gram_loss, resize_features
from hilum.objective.ibot import ibot_loss, token_weights
from hilum.objective.koleo import koleo_loss
from hilum.objective.osl import osl_loss
from hilum.objective.parts import backward_in_parts
from hilum.objective.prompts import prompt_logits, prompt_loss
from hilum.objective.siglip import siglip_loss
from hilum.objective.sinkhorn import balance, sinkhorn

SCANS, RANKS = 8, 2
PATCHES, WIDTH, SHARED, PAIRS = 6, 8, 4, 3


class Model(nn.Module):
    """Tokens, heads, projection, text side and temperature, all of them trained."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.backbone = nn.Linear(5, WIDTH)
        sizes = DinoHeadConfig(WIDTH, hidden=12, bottleneck=6, prototypes=10)
        self.dino, self.ibot = DinoHead(sizes), DinoHead(sizes)
        self.projection = nn.Linear(WIDTH, SHARED, bias=False)
        self.text = nn.Linear(5, SHARED)
        self.temperature, self.sigmoid = Temperature(), SigmoidScale(bias=-1.0)
        for head in (self.dino, self.ibot):  # the usual start makes numbers of nothing, and huge gradients
            for layer in (*head.layers[::2], head.last):
                nn.init.normal_(layer.weight, std=0.5)

    def tokens(self, x):
        return self.backbone(x).tanh()

    def image(self, x):
        return nn.functional.normalize(self.projection(self.tokens(x)), dim=-1)

    def sentence(self, x):
        return nn.functional.normalize(self.text(x), dim=-1)

    def forward(self, batch):
        """What a stage with CLIP hands to its loss; through DDP, gradients are averaged by DDP."""
        return self.image(batch["scan"]), self.sentence(batch["report"]), self.temperature()


def whole_batch():
    nan = float("nan")
    g = torch.Generator().manual_seed(11)
    masks = torch.zeros((SCANS, PATCHES), dtype=torch.bool)
    for scan, count in enumerate((2, 0, 3, 1, 0, 4, 0, 1)):
        masks[scan, torch.randperm(PATCHES, generator=g)[:count]] = True
    return {
        "scan": torch.randn((SCANS, 5), generator=g),
        "views": torch.randn((SCANS, 3, 5), generator=g),
        "teacher": torch.randn((SCANS, 2, 10), generator=g),
        "patches": torch.randn((SCANS, PATCHES, 5), generator=g),
        "patch_teacher": torch.randn((SCANS, PATCHES, 10), generator=g),
        "anchor": torch.randn((SCANS, 24, 7), generator=g),
        "masks": masks,
        "report": torch.randn((SCANS, 5), generator=g),
        "names": torch.tensor([0, 1, 2, 0, 3, 4, 1, 0]),
        "statements": torch.randn((SCANS, PAIRS, 5), generator=g),
        "opposites": torch.randn((SCANS, PAIRS, 5), generator=g),
        "answers": torch.tensor([[1.0, 0, nan], [nan] * 3, [0, 1, 1], *([[1, nan, 0]] * 5)]),
        "depths": torch.randn((SCANS, 6, 5), generator=g),
        "valid": torch.arange(6)[None] < 2 + torch.arange(SCANS)[:, None] % 5,
        "at": 40 * torch.rand(SCANS, generator=g),
        "labels": torch.tensor([[1, 0, 1], [0, -1, -1], [-1] * 3, [1, 1, -1], *([[0, 1, -1]] * 4)]),
    }


def dino(model, batch, same_views):
    views = batch["views"][:, : 2 if same_views else 3].transpose(0, 1)
    targets = view_targets(batch["teacher"].transpose(0, 1), 0.5)
    return dino_loss(model.dino(model.tokens(views)), targets, same_views=same_views)


def ibot(model, batch, chunk=None):
    masks = batch["masks"]
    teacher = batch["patch_teacher"][masks]
    targets = sinkhorn(teacher, 0.5) if chunk is None else balance(teacher, 0.5, chunk=chunk)
    directions = model.ibot.directions(model.tokens(batch["patches"][masks]))
    weights, head = token_weights(masks), model.ibot.prototypes
    return ibot_loss(directions, targets, weights, len(masks), project=head, chunk=chunk)


def gram(model, batch, chunk=None):
    anchor = resize_features(batch["anchor"], (4, 6), (2, 3))
    return gram_loss(model.tokens(batch["patches"]), anchor, chunk=chunk)


def clip(model, batch, **options):
    return clip_loss(*model(batch), **options)


def osl(model, batch):
    sentences = [model.sentence(batch[name]) for name in ("statements", "opposites")]
    return osl_loss(model.image(batch["scan"]), *sentences, batch["labels"], model.temperature())


def siglip(model, batch, **options):
    return siglip_loss(
        model.image(batch["scan"]), model.sentence(batch["report"]), *model.sigmoid(), **options
    )


def prompts(model, batch):
    sides = [model.sentence(batch[name]) for name in ("statements", "opposites")]
    logits = prompt_logits(model.image(batch["scan"]), *sides, model.sigmoid()[0])
    return prompt_loss(logits, batch["answers"], torch.tensor([2.0, 1.0, 20.0]), [1.0, 1.0, 5.0])


def depth(model, batch):
    logits = torch.einsum("sde,se->sd", model.image(batch["depths"]), model.sentence(batch["report"])) / TAU
    depth_mm = 12.0 * torch.arange(6.0).expand(len(logits), 6)
    return depth_loss(logits, depth_mm, batch["valid"], batch["at"])


LOSSES = {
    "dino global": lambda m, b: dino(m, b, same_views=True),
    "dino local": lambda m, b: dino(m, b, same_views=False),
    "ibot": ibot,
    "ibot in chunks": lambda m, b: ibot(m, b, chunk=2),
    "koleo": lambda m, b: koleo_loss(m.tokens(b["scan"])),
    "gram": gram,
    "gram in chunks": lambda m, b: gram(m, b, chunk=4),
    "clip": clip,
    "clip in chunks": lambda m, b: clip(m, b, chunk=2),
    "clip, equal reports": lambda m, b: clip(m, b, same=b["names"], chunk=3),
    "osl": osl,
    "siglip": siglip,
    "siglip in chunks, equal reports": lambda m, b: siglip(m, b, same=b["names"], chunk=3),
    "prompts": prompts,
    "depth": depth,
    "the three together": lambda m, b: siglip(m, b) + 8 * prompts(m, b) + depth(m, b),
}
PARTS = "clip and koleo in micro-batches"
ONLY_DDP = "clip through DDP"
SPLITS = {"even": (4, 4), "uneven": (3, 5), "one has nothing": (0, 8)}


@dataclass
class Outcome:
    value: torch.Tensor
    grads: dict[str, torch.Tensor]


def step(model, batch, loss):
    model.zero_grad()
    value = loss(model, batch)
    value.backward()
    return Outcome(value.detach(), gradients(model))


def gradients(model):
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def step_in_parts(model, batch, parts):
    model.zero_grad()
    rows = [{k: v[at] for k, v in batch.items()} for at in torch.arange(len(batch["scan"])).split(parts)]

    def embed(part):
        return (*model(part)[:2], model.tokens(part["scan"]))

    def loss(images, texts, tokens):
        return clip_loss(images, texts, model.temperature()) + 0.1 * koleo_loss(tokens)

    return Outcome(backward_in_parts(embed, rows, loss), gradients(model))


def own_rows(batch, rank, sizes):
    return {k: v.split(sizes)[rank] for k, v in batch.items()}


def average(outcome):
    """What DDP does to gradients."""
    for tensor in (outcome.value, *outcome.grads.values()):
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return outcome


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    model, batch, found = Model(), whole_batch(), {}
    for split, sizes in SPLITS.items():
        own = own_rows(batch, rank, sizes)
        for name, loss in LOSSES.items():
            found[f"{name}|{split}"] = average(step(model, own, loss))
        if all(sizes):
            found[f"{PARTS}|{split}"] = average(step_in_parts(model, own, 1 if rank else 2))
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    found[f"{ONLY_DDP}|uneven"] = step(wrapped, own_rows(batch, rank, (3, 5)), clip)
    dist.all_reduce(found[f"{ONLY_DDP}|uneven"].value)
    found[f"{ONLY_DDP}|uneven"].value /= RANKS
    tensors = {f"{k}|{n.removeprefix('module.')}": g for k, o in found.items() for n, g in o.grads.items()}
    tensors |= {f"{k}|value": o.value for k, o in found.items()}
    tensors |= bits(rank)
    save_file(tensors, Path(folder) / f"rank{rank}.safetensors")
    dist.destroy_process_group()


def bits(rank):
    """The parts below the losses."""
    own = torch.full((1 + rank, 2), float(rank + 1), requires_grad=True)
    rows, first = gather_rows(own)
    # each rank weighs rows differently: what a row owes is the sum of both
    (rows * (10.0 * rank + torch.arange(3.0)[:, None])).sum().backward()
    local = koleo_loss(whole_batch()["scan"].split(4)[rank], across_ranks=False)
    names, _ = gather_rows(torch.arange(rank + 1))
    return {
        "rows": rows.detach().clone(),
        "first": torch.tensor(first),
        "owed": own.grad,
        "names": names,
        "counts": torch.tensor(row_counts(own)),
        "mean": mean_over_ranks(torch.tensor(6.0 * (rank + 1)), 1 + 2 * rank),
        "nothing": mean_over_ranks(torch.tensor(0.0), 0),
        "local koleo": local,
        "targets": sinkhorn(whole_batch()["teacher"][:, 0].split((3, 5))[rank], 0.5),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=RANKS, join=True)
    return [load_file(folder / f"rank{r}.safetensors") for r in range(RANKS)]


def agree(ranks, key, alone):
    for rank, found in enumerate(ranks):
        assert torch.allclose(found[f"{key}|value"], alone.value, atol=1e-5), (rank, key)
        for name, grad in alone.grads.items():
            assert torch.allclose(found[f"{key}|{name}"], grad, atol=1e-5), (rank, key, name)


TRAINED = {
    "dino": {"backbone", "dino"},
    "ibot": {"backbone", "ibot"},
    "koleo": {"backbone"},
    "gram": {"backbone"},
    "clip": {"backbone", "projection", "text", "temperature"},
    "osl": {"backbone", "projection", "text", "temperature"},
    "siglip": {"backbone", "projection", "text", "sigmoid"},
    "prompts": {"backbone", "projection", "text", "sigmoid"},
    "depth": {"backbone", "projection", "text"},
    "the": {"backbone", "projection", "text", "sigmoid"},
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", LOSSES)
def test_two_ranks_equal_one_process(ranks, name, split):
    alone = step(Model(), whole_batch(), LOSSES[name])
    trained = {n.split(".")[0] for n, g in alone.grads.items() if g.abs().max() > 1e-4}
    assert trained == TRAINED[name.replace(",", "").split()[0]], "what the loss is about has a gradient"
    agree(ranks, f"{name}|{split}", alone)


@pytest.mark.parametrize("split", ["even", "uneven"])
def test_micro_batches_on_two_ranks_equal_one_process(ranks, split):
    alone = step(Model(), whole_batch(), lambda m, b: clip(m, b) + 0.1 * koleo_loss(m.tokens(b["scan"])))
    agree(ranks, f"{PARTS}|{split}", alone)
    agree(ranks, f"{PARTS}|{split}", step_in_parts(Model(), whole_batch(), 2))


def test_ddp_itself_averages_to_one_process(ranks):
    agree(ranks, f"{ONLY_DDP}|uneven", step(Model(), whole_batch(), clip))


def test_a_mean_per_rank_would_have_been_seen(ranks):
    """The test can fail: with uneven parts the plain mean of each rank's mean is another number."""
    model, batch = Model(), whole_batch()
    parts = [step(model, own_rows(batch, r, (3, 5)), osl) for r in range(RANKS)]
    naive = sum(p.value for p in parts) / RANKS
    alone = step(model, batch, osl)
    assert (naive - alone.value).abs() > 1e-3
    assert (ranks[0]["osl|uneven|value"] - alone.value).abs() < 1e-5
    local = sum(step(model, own_rows(batch, r, (4, 4)), clip).value for r in range(RANKS)) / RANKS
    assert (local - step(model, batch, clip).value).abs() > 1e-2, "negatives of this rank only"


def test_rows_of_unequal_ranks_and_what_they_owe(ranks):
    for rank, found in enumerate(ranks):
        assert found["rows"].tolist() == [[1, 1], [2, 2], [2, 2]]
        assert found["counts"].tolist() == [1, 2]
        assert found["names"].tolist() == [0, 0, 1]
        assert int(found["first"]) == rank
    assert ranks[0]["owed"].tolist() == [[10, 10]]
    assert ranks[1]["owed"].tolist() == [[12, 12], [14, 14]]


def test_a_mean_weighs_ranks_by_what_they_counted(ranks):
    assert torch.stack([found["mean"] for found in ranks]).mean() == pytest.approx((6 + 12) / (1 + 3))
    assert all(found["nothing"] == 0 for found in ranks)


def test_sinkhorn_is_over_all_ranks(ranks):
    together = sinkhorn(whole_batch()["teacher"][:, 0], 0.5)
    assert torch.allclose(torch.cat([found["targets"] for found in ranks]), together, atol=1e-6)
    alone = sinkhorn(whole_batch()["teacher"][:3, 0], 0.5)
    assert not torch.allclose(alone, together[:3], atol=1e-3)


def test_koleo_within_ranks_asks_nobody(ranks):
    for found, own in zip(ranks, whole_batch()["scan"].split(4), strict=True):
        assert found["local koleo"] == pytest.approx(koleo_loss(own).item(), abs=1e-6)
