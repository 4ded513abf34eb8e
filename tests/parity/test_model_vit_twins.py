"""The backbone's parts against slow, obviously right twins: value and gradient."""

import cmath
import math

import pytest
import torch
from torch.nn import functional as F

from hilum.model.patch import PatchEmbed, resize_kernel, resize_matrix
from hilum.model.rope import Rotation, coordinates, coordinates_mm, rotate, rotation
from hilum.model.vit import ViT
from hilum.model.vit_block import Attention, Block
from hilum.model.vit_config import ViTConfig

TINY = ViTConfig(width=48, depth=2, heads=2, patch=4, layer_scale=0.7, drop_path=0.0, rescale=1.0)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_rotate(tokens, grid, head, base):
    """Token by token, channel by channel: a pair of channels is a complex number, turned by its angle."""
    axes = len(grid)
    count, steps = math.prod(grid), head // (2 * axes)
    prefix = tokens.shape[2] - count
    rows = []
    for t in range(tokens.shape[2]):
        turned = [None] * head
        for pair in range(head // 2):
            angle = 0.0
            if t >= prefix:
                axis, step = pair // steps, pair % steps
                index = (t - prefix) // math.prod(grid[axis + 1 :]) % grid[axis]
                place = (index + 0.5) / grid[axis] * 2 - 1
                angle = 2 * math.pi * place / base ** (2 * step / (head // 2))
            number = torch.complex(tokens[:, :, t, pair], tokens[:, :, t, pair + head // 2])
            number = number * cmath.exp(1j * angle)
            turned[pair], turned[pair + head // 2] = number.real, number.imag
        rows.append(torch.stack(turned, -1))
    return torch.stack(rows, 2)


@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 2)])
@pytest.mark.parametrize("head", [12, 24, 36])
def test_rotation_equals_complex_numbers(grid, head):
    a = drawn(2, 2, math.prod(grid) + 5, head).requires_grad_()
    b = a.detach().clone().requires_grad_()
    places = coordinates(grid, device=a.device, dtype=a.dtype)
    fast = rotate(a, rotation(places, head, 100.0))
    slow = slow_rotate(b, grid, head, 100.0)
    assert torch.allclose(fast, slow, atol=1e-12)
    assert torch.equal(fast[:, :, :5], a[:, :, :5])
    weights = drawn(*fast.shape, seed=1)
    (fast * weights).sum().backward()
    (slow * weights).sum().backward()
    assert torch.allclose(a.grad, b.grad, atol=1e-12)


def slow_attention(module, x, table):
    """One head and one token at a time, softmax written out."""
    batch, count, width = x.shape
    size = width // module.heads
    out = torch.zeros_like(x)
    for b in range(batch):
        q, k, v = (x[b] @ module.qkv.weight.T).split(width, dim=1)
        for h in range(module.heads):
            part = slice(h * size, (h + 1) * size)
            qh, kh = (rotate(y[None, None, :, part], table)[0, 0] for y in (q, k))
            logits = qh @ kh.T / math.sqrt(size)
            share = (logits - logits.amax(1, keepdim=True)).exp()
            share = share / share.sum(1, keepdim=True)
            mixed = torch.stack([sum(share[t, s] * v[s, part] for s in range(count)) for t in range(count)])
            out = out + F.pad(mixed, (h * size, width - (h + 1) * size))[None] * (
                torch.arange(batch) == b
            ).double().reshape(-1, 1, 1)
    return out @ module.proj.weight.T + module.proj.bias


def slow_block(block, x, table):
    def norm(module, y):
        centred = y - y.mean(-1, keepdim=True)
        scaled = centred / ((centred**2).mean(-1, keepdim=True) + module.eps).sqrt()
        return scaled * module.weight + module.bias

    x = x + block.scale_attention * slow_attention(block.attention, norm(block.norm_attention, x), table)
    hidden = norm(block.norm_mlp, x) @ block.mlp.up.weight.T + block.mlp.up.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + block.scale_mlp * (hidden @ block.mlp.down.weight.T + block.mlp.down.bias)


def random_double(module, seed):
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return module


def same_gradients(module, fast, slow, a, b):
    weights = drawn(*fast.shape, seed=3)
    (fast * weights).sum().backward()
    ours = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    (slow * weights).sum().backward()
    assert torch.allclose(a.grad, b.grad, atol=1e-9)
    for name, parameter in module.named_parameters():
        assert torch.allclose(ours[name], parameter.grad, atol=1e-9), name


@pytest.mark.parametrize(("kind", "slow"), [(Attention, slow_attention), (Block, slow_block)])
def test_attention_and_block_equal_their_twins(kind, slow):
    module = random_double(kind(TINY), 2)
    places = coordinates((2, 3), device=torch.device("cpu"), dtype=torch.float64)
    table = rotation(places, TINY.head, 100.0)
    a = drawn(2, 6 + 5, TINY.width).requires_grad_()
    b = a.detach().clone().requires_grad_()
    fast = module(a, table) if kind is Attention else module(a, table, None)
    other = slow(module, b, table)
    assert torch.allclose(fast, other, atol=1e-9)
    same_gradients(module, fast, other, a, b)


def test_a_branch_on_some_scans_equals_its_twin():
    block = random_double(Block(TINY), 4)
    table = rotation(coordinates((2, 2), device=torch.device("cpu"), dtype=torch.float64), TINY.head, 100.0)
    a = drawn(4, 4 + 5, TINY.width).requires_grad_()
    b = a.detach().clone().requires_grad_()
    kept = torch.tensor([[2, 0], [0, 1]])
    fast = block(a, table, kept)
    middle = b + torch.stack(
        [
            block.attention(block.norm_attention(b[n : n + 1]), table)[0]
            * block.scale_attention
            * (2.0 if n in (0, 2) else 0.0)
            for n in range(4)
        ]
    )
    slow = middle + torch.stack(
        [
            block.mlp(block.norm_mlp(middle[n : n + 1]))[0] * block.scale_mlp * (2.0 if n in (0, 1) else 0.0)
            for n in range(4)
        ]
    )
    assert torch.allclose(fast, slow, atol=1e-10)
    assert torch.equal(fast[3], a[3])
    same_gradients(block, fast, slow, a, b)


@pytest.mark.parametrize("shape", [(2, 3, 8, 12), (2, 3, 8, 4, 12)])
def test_patches_equal_torchs_convolution(shape):
    axes = len(shape) - 2
    embed = PatchEmbed(7, 3, 4, axes).double()
    embed.reset(torch.Generator().manual_seed(0))
    convolution = F.conv2d if axes == 2 else F.conv3d
    a = drawn(*shape).requires_grad_()
    b = a.detach().clone().requires_grad_()
    fast = embed(a, (4,) * axes)
    slow = convolution(b, embed.weight, embed.bias, stride=4).flatten(2).transpose(1, 2)
    assert torch.allclose(fast, slow, atol=1e-12)
    same_gradients(embed, fast, slow, a, b)


@pytest.mark.parametrize(
    ("old", "new"), [((8, 8), (16, 16)), ((8, 8), (12, 20)), ((4, 4, 4), (8, 8, 8)), ((4, 4, 4), (4, 8, 6))]
)
def test_resized_kernels_equal_one_large_pseudo_inverse(old, new):
    # the whole matrix, from torch's own interpolation of every unit picture
    mode = {2: "bicubic", 3: "trilinear"}[len(old)]
    units = torch.eye(math.prod(old), dtype=torch.float64).reshape(-1, 1, *old)
    bigger = F.interpolate(units, size=new, mode=mode, antialias=len(old) == 2)
    whole = bigger.flatten(1).T
    product = torch.eye(1, dtype=torch.float64)
    for before, after in zip(old, new, strict=True):
        product = torch.kron(product, resize_matrix(before, after, "bicubic" if len(old) == 2 else "linear"))
    assert torch.allclose(whole, product, atol=1e-12)
    weight = drawn(5, 2, *old).requires_grad_()
    again = weight.detach().clone().requires_grad_()
    fast = resize_kernel(weight, new)
    slow = (again.flatten(2) @ torch.linalg.pinv(whole)).reshape(5, 2, *new)
    assert torch.allclose(fast, slow, atol=1e-10)
    weights = drawn(*fast.shape, seed=1)
    (fast * weights).sum().backward()
    (slow * weights).sum().backward()
    assert torch.allclose(weight.grad, again.grad, atol=1e-10)


@pytest.mark.parametrize("axes", [2, 3])
def test_logits_know_only_how_far_apart_patches_are(axes):
    q, k = drawn(1, 1, 6, 24, seed=5), drawn(1, 1, 6, 24, seed=6)
    places = drawn(6, axes, seed=7)

    def logits(at):
        table = rotation(at, 24, 100.0)
        return rotate(q, table) @ rotate(k, table).transpose(2, 3)

    shifted = places + torch.tensor([0.3, -1.7, 0.9], dtype=torch.float64)[:axes]
    assert torch.allclose(logits(places), logits(shifted), atol=1e-10)
    # and they do know that
    assert not torch.allclose(logits(places), logits(1.1 * places), atol=1e-3)
    one_axis = places.clone()
    one_axis[0, axes - 1] += 0.2
    assert not torch.allclose(logits(places), logits(one_axis), atol=1e-3)


def test_millimetres_are_the_same_in_every_crop():
    kind = {"device": torch.device("cpu"), "dtype": torch.float64}
    wide = coordinates_mm((10, 6), (16.0, 32.0), 320.0, **kind).unflatten(0, (10, 6))
    narrow = coordinates_mm((4, 2), (16.0, 32.0), 320.0, **kind).unflatten(0, (4, 2))
    assert torch.allclose(wide[3:7, 2:4], narrow)
    assert torch.allclose(wide[1, 0] - wide[0, 0], torch.tensor([0.1, 0.0], dtype=torch.float64))
    # a crop as wide as the extent has the coordinates of the crop-relative encoding
    whole = coordinates_mm((5, 3), (64.0, 320 / 3), 320.0, **kind)
    assert torch.allclose(whole, coordinates((5, 3), **kind))


def random_vit(config=TINY, seed=0):
    return random_double(ViT(config), seed).eval()


def test_patches_may_come_in_any_order_with_their_places():
    model, grid = random_vit(), (3, 2, 2)
    tokens = drawn(2, 12, TINY.width)
    table = rotation(coordinates(grid, device=tokens.device, dtype=tokens.dtype), TINY.head, 100.0)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    plain = model.encode(tokens, table, [0, 1])
    mixed = model.encode(tokens[:, order], Rotation(table.cos[order], table.sin[order]), [0, 1])
    left = model.encode(tokens[:, order], table, [1])[1]
    for layer in (0, 1):
        assert torch.allclose(mixed[layer][:, :5], plain[layer][:, :5], atol=1e-9)
        assert torch.allclose(mixed[layer][:, 5:], plain[layer][:, 5:][:, order], atol=1e-9)
    assert not torch.allclose(left[:, :5], plain[1][:, :5], atol=1e-3)


@pytest.mark.parametrize("shape", [(3, 1, 8, 12), (3, 1, 8, 4, 12)])
def test_a_scan_does_not_see_its_batch(shape):
    model, image = random_vit(), drawn(*shape)
    together = model(image)
    for n in range(3):
        alone = model(image[n : n + 1])
        assert torch.allclose(alone.cls[0], together.cls[n], atol=1e-9)
        assert torch.allclose(alone.registers[0], together.registers[n], atol=1e-9)
        assert torch.allclose(alone.patches[0], together.patches[n], atol=1e-9)


def test_the_rescale_stretches_every_place():
    model = random_vit(ViTConfig(**{**TINY.__dict__, "rescale": 2.0})).train()
    image = drawn(2, 1, 8, 12, 4)
    noise = model.draw(2, torch.Generator().manual_seed(5))
    assert (noise.rescale - 1).abs() > 0.1
    places = coordinates((2, 3, 1), device=image.device, dtype=image.dtype) * noise.rescale.double()
    table = rotation(places, TINY.head, 100.0)
    slow = model.norm(model.encode(model.patch_3d(image, (4, 4, 4)), table, [1])[1])
    fast = model(image, noise=noise)
    assert torch.allclose(fast.cls, slow[:, 0], atol=1e-9)
    assert torch.allclose(fast.registers, slow[:, 1:5], atol=1e-9)
    assert torch.allclose(fast.patches, slow[:, 5:], atol=1e-9)
    assert not torch.allclose(model.eval()(image).patches, fast.patches, atol=1e-3)


@pytest.mark.parametrize(("grid", "head"), [((3, 4), 12), ((2, 3, 2), 30)])
def test_full_periods_equal_complex_numbers(grid, head):
    tokens = drawn(1, 2, math.prod(grid) + 1, head)
    axes = len(grid)
    # base ** (2 step / (head / axes)): the twin above with a base that makes its exponent this one
    base = 1000.0 ** (axes / 2)
    places = coordinates(grid, device=tokens.device, dtype=tokens.dtype)
    fast = rotate(tokens, rotation(places, head, 1000.0, full=True))
    assert torch.allclose(fast, slow_rotate(tokens, grid, head, base), atol=1e-12)


@pytest.mark.parametrize("shape", [(12, 8), (8, 4, 12)])
def test_reversed_axes_are_the_same_model_on_turned_arrays(shape):
    model = random_vit(TINY).eval()
    turned = ViT(ViTConfig(**{**TINY.__dict__, "rope_reversed": True})).double().eval()
    back = list(range(len(shape) + 1, 1, -1))
    state = dict(model.state_dict())
    for name in ("patch_2d.weight", "patch_3d.weight"):
        state[name] = state[name].permute(0, 1, *range(state[name].dim() - 1, 1, -1))
    turned.load_state_dict(state)
    image = drawn(2, 1, *shape, seed=4)
    out, other = (
        model(image, patch=(4, 2, 4)[: len(shape)]),
        turned(image.permute(0, 1, *back), patch=(4, 2, 4)[: len(shape)][::-1]),
    )
    assert torch.allclose(out.maps(), other.maps().permute(0, 1, *back), atol=1e-12)
    assert torch.allclose(out.cls, other.cls, atol=1e-12)
    plain = ViT(TINY).double().eval()
    plain.load_state_dict(state)
    assert not torch.allclose(
        out.cls, plain(image.permute(0, 1, *back), patch=(4, 2, 4)[: len(shape)][::-1]).cls
    )


def test_attention_with_a_bias_equals_single_heads():
    config = ViTConfig(**{**TINY.__dict__, "qkv_bias": True})
    module = random_double(Attention(config), 5)
    x = drawn(1, 4, TINY.width, seed=6)
    table = rotation(coordinates((2, 2), device=x.device, dtype=x.dtype), TINY.head, 100.0)
    plain = random_double(Attention(TINY), 5)
    # a bias is a weight of a channel that is always 1
    state = {k: v for k, v in module.state_dict().items() if k != "qkv.bias"}
    plain.load_state_dict(state)
    q, k, v = (
        (x @ module.qkv.weight.T + module.qkv.bias).unflatten(2, (3, TINY.heads, -1)).permute(2, 0, 3, 1, 4)
    )
    logits = rotate(q, table) @ rotate(k, table).transpose(-1, -2) / math.sqrt(TINY.head)
    slow = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2) @ module.proj.weight.T + module.proj.bias
    assert torch.allclose(module(x, table), slow, atol=1e-12)
    assert not torch.allclose(plain(x, table), slow, atol=1e-3)
