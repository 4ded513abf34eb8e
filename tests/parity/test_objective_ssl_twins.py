"""Losses of self-supervision and language against slow, obviously right twins: value and gradient."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hilum.model.dino_head import DinoHead, DinoHeadConfig
from hilum.objective.clip import Temperature, clip_loss
from hilum.objective.dino import dino_loss, soft_cross_entropy, view_targets
from hilum.objective.gram import gram_loss, resize_features
from hilum.objective.ibot import ibot_loss, token_weights
from hilum.objective.koleo import LEAST, koleo_loss
from hilum.objective.osl import osl_loss
from hilum.objective.parts import backward_in_parts
from hilum.objective.sinkhorn import balance, sinkhorn

TAU = 0.1


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape, seed=0):
    x = draw(*shape, seed=seed)
    return x / x.norm(dim=-1, keepdim=True)


def same(fast, slow, inputs, atol=1e-10):
    """`fast` and `slow` take fresh copies of `inputs` and agree, in value and in every gradient."""
    outcomes = []
    for function in (fast, slow):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        value = function(*leaves)
        grads = torch.autograd.grad(value, leaves)
        assert any(g.abs().max() > 1e-6 for g in grads), "a gradient of nothing proves nothing"
        outcomes.append((value.detach(), *grads))
    for a, b in zip(*outcomes, strict=True):
        assert torch.allclose(a, b, atol=atol), (a - b).abs().max()


def slow_log_softmax(row):
    row = [x / TAU for x in row]
    total = sum(torch.exp(x) for x in row).log()
    return [x - total for x in row]


def slow_cross_entropy(student, target):
    return -sum(t * s for t, s in zip(target, slow_log_softmax(student), strict=True))


def slow_sinkhorn(logits, temperature, iterations):
    """As published: exponentials in a table, prototypes along its rows."""
    q = (logits / temperature).exp().T
    q = q / q.sum()
    for _ in range(iterations):
        for k in range(len(q)):
            q[k] = q[k] / q[k].sum() / len(q)
        for n in range(q.shape[1]):
            q[:, n] = q[:, n] / q[:, n].sum() / q.shape[1]
    return (q * q.shape[1]).T


@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn_equals_its_twin(iterations):
    logits = draw(7, 5) * 0.1
    assert torch.allclose(
        sinkhorn(logits, 0.07, iterations), slow_sinkhorn(logits, 0.07, iterations), atol=1e-12
    )


@pytest.mark.parametrize(("student", "teacher", "same_views"), [(2, 2, True), (3, 3, True), (4, 2, False)])
def test_dino_equals_its_twin(student, teacher, same_views):
    targets = view_targets(draw(teacher, 3, 6, seed=1) * 0.1, 0.05)

    def slow(x):
        pairs = [(s, t) for s in range(student) for t in range(teacher) if not (same_views and s == t)]
        rows = [slow_cross_entropy(x[s, b], targets[t, b]) for s, t in pairs for b in range(3)]
        return sum(rows) / len(rows)

    same(lambda x: dino_loss(x, targets, same_views=same_views), slow, [draw(student, 3, 6) * 0.3])


def test_targets_of_views_share_one_sinkhorn():
    logits = draw(2, 3, 6)
    assert torch.equal(view_targets(logits, 0.07).reshape(6, 6), sinkhorn(logits.reshape(6, 6), 0.07))


MASKS = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize("chunk", [None, 1, 3, 4, 99])
def test_ibot_equals_its_twin(chunk):
    targets = sinkhorn(draw(4, 5, seed=1) * 0.1, 0.07)

    def slow(tokens, prototypes):
        total, row = 0.0, 0
        for mask in MASKS:
            count = int(mask.sum())
            for _ in range(count):
                total = total + slow_cross_entropy(tokens[row] @ prototypes.T, targets[row]) / count
                row += 1
        return total / len(MASKS)

    def fast(tokens, prototypes):
        weights = token_weights(MASKS)
        return ibot_loss(
            tokens, targets, weights, len(MASKS), project=lambda t: t @ prototypes.T, chunk=chunk
        )

    # the weights are float32: a third is a third to seven digits
    same(fast, slow, [draw(4, 3), draw(5, 3, seed=2)], atol=1e-6)


def test_koleo_equals_its_twin():
    def slow(x):
        rows = [row / row.norm() for row in x]
        total = 0.0
        for i, a in enumerate(rows):
            nearest = min((a - b).norm() for j, b in enumerate(rows) if j != i)
            total = total - (nearest.square() + LEAST**2).sqrt().log()
        return total / len(rows)

    same(koleo_loss, slow, [draw(6, 4)])


@pytest.mark.parametrize("chunk", [None, 1, 3, 6])
def test_gram_equals_its_twin(chunk):
    teacher = draw(2, 6, 5, seed=1)

    def cosine(a, b):
        return (a * b).sum() / (a.norm() * b.norm())

    def slow(x):
        total = 0.0
        for b in range(2):
            for i in range(6):
                for j in range(6):
                    total = total + (cosine(x[b, i], x[b, j]) - cosine(teacher[b, i], teacher[b, j])) ** 2
        return total / 72

    same(lambda x: gram_loss(x, teacher, chunk=chunk), slow, [draw(2, 6, 4)])


def test_gram_features_are_resized_along_their_own_axes():
    """A linear ramp along one axis stays one along that axis under trilinear resizing."""
    ramp = torch.arange(8.0)[:, None, None].expand(8, 4, 2)
    features = torch.stack([ramp.flatten(), 2 * ramp.flatten()], -1)[None]
    resized = resize_features(features, (8, 4, 2), (4, 2, 2)).reshape(4, 2, 2, 2)
    assert torch.allclose(resized[..., 0], torch.tensor([0.5, 2.5, 4.5, 6.5])[:, None, None].expand(4, 2, 2))
    assert torch.allclose(resized[..., 1], 2 * resized[..., 0])
    plane = resize_features(features[:, :32], (8, 4), (8, 2))
    assert plane.shape == (1, 16, 2)
    kept = resize_features(features, (8, 4, 2), (8, 4, 2))
    assert torch.equal(kept, features)


def test_bicubic_resizing_equals_its_twin():
    """Keys' kernel with a = -0.75, samples at pixel centres, borders repeated."""

    def weight(x):
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    maps = draw(6, 6).float()
    resized = resize_features(maps.reshape(1, 36, 1), (6, 6), (4, 4)).reshape(4, 4)
    for i in range(4):
        for j in range(4):
            y, x, total = (i + 0.5) * 1.5 - 0.5, (j + 0.5) * 1.5 - 0.5, 0.0
            for u in range(math.floor(y) - 1, math.floor(y) + 3):
                for v in range(math.floor(x) - 1, math.floor(x) + 3):
                    value = maps[min(max(u, 0), 5), min(max(v, 0), 5)].item()
                    total += weight(y - u) * weight(x - v) * value
            assert resized[i, j].item() == pytest.approx(total, abs=1e-5)


def slow_clip(images, texts, scale, names):
    total = 0.0
    for rows, columns in ((images, texts), (texts, images)):
        for i, row in enumerate(rows):
            logits = [scale * (row @ c) for j, c in enumerate(columns) if j == i or names[i] != names[j]]
            own = scale * (row @ columns[i])
            total = total + sum(torch.exp(x - own) for x in logits).log()
    return total / (2 * len(images))


@pytest.mark.parametrize("chunk", [None, 1, 2, 5])
@pytest.mark.parametrize("names", [[0, 1, 2, 3, 4], [7, 3, 7, 3, 7]])
def test_clip_equals_its_twin(chunk, names):
    twins = torch.tensor(names)
    same(
        lambda i, t, s: clip_loss(i, t, s, same=twins, chunk=chunk),
        lambda i, t, s: slow_clip(i, t, s, names),
        [unit(5, 4), unit(5, 4, seed=1), torch.tensor(14.3, dtype=torch.float64)],
    )


def test_clip_without_names_takes_every_other_pair_as_negative():
    inputs = [unit(5, 4), unit(5, 4, seed=1), torch.tensor(9.0, dtype=torch.float64)]
    same(clip_loss, lambda i, t, s: slow_clip(i, t, s, range(5)), inputs)


def test_osl_equals_its_twin():
    labels = torch.tensor([[1, 0, -1], [-1, -1, -1], [0, 0, 1]])

    def slow(images, statements, opposites, scale):
        rows = []
        for b in range(3):
            for k in range(3):
                if labels[b, k] < 0:
                    continue
                logits = scale * torch.stack([images[b] @ statements[b, k], images[b] @ opposites[b, k]])
                rows.append(torch.logsumexp(logits, 0) - logits[0 if labels[b, k] == 1 else 1])
        return sum(rows) / 5

    scale = torch.tensor(14.3, dtype=torch.float64)
    inputs = [unit(3, 4), unit(3, 3, 4, seed=1), unit(3, 3, 4, seed=2), scale]
    same(lambda i, s, o, t: osl_loss(i, s, o, labels, t), slow, inputs)


@pytest.mark.parametrize("weight_norm", [False, True])
def test_the_head_equals_its_twin(weight_norm):
    head = DinoHead(DinoHeadConfig(6, hidden=8, bottleneck=4, prototypes=5, weight_norm=weight_norm)).double()
    tokens = draw(3, 6)

    def slow(x):
        for i in (0, 2, 4):
            layer = head.layers[i]
            x = torch.stack([layer.weight @ row + layer.bias for row in x])
            x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2))) if i < 4 else x
        x = torch.stack([row / row.norm() for row in x])
        last = head.last.weight
        last = torch.stack([w / w.norm() for w in last]) if weight_norm else last
        return x @ last.T

    outcomes = []
    for function in (head, slow):
        head.zero_grad()
        out = function(tokens)
        (out * draw(3, 5, seed=4)).sum().backward()
        outcomes.append([out.detach(), *(p.grad.clone() for p in head.parameters())])
    for a, b in zip(*outcomes, strict=True):
        assert a.abs().max() > 0
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)


def test_a_head_of_the_paper_has_23_million_parameters():
    with torch.device("meta"):
        head = DinoHead(DinoHeadConfig(864))
    assert sum(p.numel() for p in head.parameters()) == 23_269_632


class Toy(nn.Module):
    """Image and text side, a projection, a temperature and a head: what a stage-3 model has."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.image, self.text, self.projection = nn.Linear(6, 8), nn.Linear(5, 4), nn.Linear(8, 4, bias=False)
        self.temperature = Temperature()
        self.head = DinoHead(DinoHeadConfig(8, hidden=8, bottleneck=4, prototypes=6))
        for layer in self.head.layers[::2]:  # the usual start has huge gradients in a small head
            nn.init.normal_(layer.weight, std=0.5)

    def embed(self, batch):
        tokens = self.image(batch[0]).tanh()
        return (
            nn.functional.normalize(self.projection(tokens), dim=-1),
            nn.functional.normalize(self.text(batch[1]), dim=-1),
            self.head(tokens),
            tokens,
        )

    def loss(self, images, texts, logits, tokens):
        targets = sinkhorn(tokens @ tokens.new_ones(8, 6).cumsum(1), 1.0)
        return (
            clip_loss(images, texts, self.temperature(), chunk=3)
            + 0.1 * koleo_loss(tokens)
            + soft_cross_entropy(logits, targets).mean()
        )


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("sizes", [(2, 2, 2, 2), (1, 5, 2), (8,)])
def test_parts_of_a_batch_give_the_gradients_of_the_whole(sizes):
    model, batch = Toy().double(), (draw(8, 6), draw(8, 5, seed=1))
    whole = model.loss(*model.embed(batch))
    whole.backward()
    wanted = gradients(model)
    assert all(g.abs().max() > 0 for g in wanted.values()), "temperature and projection included"
    model.zero_grad()
    parts = list(zip(*(x.split(sizes) for x in batch), strict=True))
    value = backward_in_parts(model.embed, parts, model.loss)
    assert torch.allclose(value, whole.detach(), atol=1e-10)
    for name, grad in gradients(model).items():
        assert torch.allclose(grad, wanted[name], atol=1e-9), name


def test_micro_batches_of_losses_that_are_means_add_up():
    """DINO, iBOT, Gram and OSL are means over rows once targets are made: weighted parts are the whole."""
    views, teacher = draw(2, 8, 6), draw(8, 6, 5, seed=2)
    targets = view_targets(draw(2, 8, 6, seed=1), 0.07)
    labels = torch.randint(-1, 2, (8, 3), generator=torch.Generator().manual_seed(0))
    images, statements, opposites = unit(8, 4), unit(8, 3, 4, seed=1), unit(8, 3, 4, seed=2)
    scale = torch.tensor(5.0, dtype=torch.float64)
    losses = {
        "dino": (lambda x, at: dino_loss(x[:, at], targets[:, at], same_views=True), views, 8),
        "gram": (lambda x, at: gram_loss(x[at], teacher[at]), draw(8, 6, 4), 8),
        "osl": (
            lambda x, at: osl_loss(x[at], statements[at], opposites[at], labels[at], scale),
            images,
            int((labels >= 0).sum()),
        ),
    }
    for name, (loss, start, count) in losses.items():
        grads = []
        for width in (8, 2):
            x = start.clone().requires_grad_()
            for k in range(0, 8, width):
                rows = width if name != "osl" else int((labels[k : k + width] >= 0).sum())
                (loss(x, slice(k, k + width)) * rows / count).backward()
            grads.append(x.grad)
        assert grads[0].abs().max() > 1e-6
        assert torch.allclose(*grads, atol=1e-7), name


@pytest.mark.parametrize("chunk", [None, 1, 3, 7, 50])
def test_sinkhorn_in_chunks_equals_its_twin(chunk):
    directions, prototypes = draw(7, 3), draw(5, 3, seed=1) * 0.1
    balanced = balance(directions, 0.07, project=lambda d: d @ prototypes.T, chunk=chunk)
    slow = slow_sinkhorn(directions @ prototypes.T, 0.07, 3)
    assert torch.allclose(balanced.shares(directions, balanced.of_sample), slow, atol=1e-12)
    part = balanced.shares(directions[2:5], balanced.of_sample[2:5])
    assert torch.allclose(part, slow[2:5], atol=1e-12)


@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_ibot_with_unwritten_targets_is_ibot(chunk):
    teacher, prototypes, weights = draw(4, 3, seed=1), draw(5, 3, seed=2), torch.ones(4)
    written = sinkhorn(teacher @ prototypes.T, 0.5)
    unwritten = balance(teacher, 0.5, project=lambda d: d @ prototypes.T, chunk=chunk)
    same(
        lambda x, p: ibot_loss(x, unwritten, weights, 4, project=lambda t: t @ p.T, chunk=chunk),
        lambda x, p: ibot_loss(x @ p.T, written, weights, 4),
        [draw(4, 3), draw(5, 3, seed=3)],
    )


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor that was made has."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


@pytest.mark.parametrize("chunk", [None, 8])
def test_chunks_keep_what_exists_small(chunk):
    """iBOT of 64 tokens and 512 prototypes, teacher, student, backward pass: no more than a chunk is made."""
    student, last = draw(64, 4).requires_grad_(), (draw(512, 4) * 0.1).requires_grad_()

    def project(directions):
        return directions @ last.T

    with Largest() as largest:
        targets = balance(draw(64, 4, seed=1), 0.07, project=project, chunk=chunk)
        ibot_loss(student, targets, torch.ones(64), 4, project=project, chunk=chunk).backward()
    assert last.grad.abs().max() > 0
    assert largest.numbers == (chunk or 64) * 512


def test_chunks_of_clip_and_gram_keep_what_exists_small():
    images, texts = unit(64, 4).requires_grad_(), unit(64, 4, seed=1).requires_grad_()
    features = draw(2, 64, 4).requires_grad_()
    with Largest() as largest:
        clip_loss(images, texts, torch.tensor(9.0), chunk=8).backward()
    assert largest.numbers == 8 * 64
    with Largest() as largest:
        gram_loss(features, draw(2, 64, 4, seed=1), chunk=8).backward()
    assert largest.numbers == 2 * 8 * 64
