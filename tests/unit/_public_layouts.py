"""Small checkpoints of random numbers in the public layouts, for the tests of `hilum import`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from hilum.io.encoder_file import EncoderFile, load_encoder
from hilum.model.encoder import Encoder, build_encoder, load_tensors

WIDTH, DEPTH, HEADS, PATCH = 24, 2, 2, 4
EMBEDDING = 16


def shapes_of_flexict(width: int = WIDTH, depth: int = DEPTH) -> dict[str, tuple[int, ...]]:
    """Parameters of the public backbone, in its names."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "storage_tokens": (1, 4, width),
        "mask_token": (1, width),
        "patch_embed_2D.proj.weight": (width, 1, PATCH, PATCH),
        "patch_embed_2D.proj.bias": (width,),
        "patch_embed_3D.proj.weight": (width, 1, PATCH, PATCH, PATCH),
        "patch_embed_3D.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for n in range(depth):
        block = {
            "norm1.weight": (width,), "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
            "ls1.gamma": (width,),
            "norm2.weight": (width,), "norm2.bias": (width,),
            "mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,),
            "ls2.gamma": (width,),
        }  # fmt: skip
        shapes |= {f"blocks.{n}.{name}": shape for name, shape in block.items()}
    return shapes


def drawn(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def flexict(seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """The backbone's state: parameters and the stored periods."""
    head = WIDTH // HEADS
    state = drawn(shapes_of_flexict(), seed)
    for axes in (2, 3):
        steps = torch.arange(head // (2 * axes), dtype=dtype)
        state[f"rope_embed_{axes}D.periods"] = 100.0 ** (2 * steps / (head // 2))
    return state


def teacher(seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """What stands under ``teacher`` in a checkpoint of slices or volumes, heads included."""
    state = {f"backbone.{name}": tensor for name, tensor in flexict(seed, dtype).items()}
    heads = {"dino_head.mlp.0.weight": (8, WIDTH), "ibot_head.last_layer.weight": (6, 8)}
    return state | drawn(heads, seed + 1)


def with_reports(text: dict[str, torch.Tensor], seed: int = 0) -> dict[str, torch.Tensor]:
    """What stands under ``model`` in the checkpoint of volumes and reports."""
    state = {f"vision_model.{name}": tensor for name, tensor in flexict(seed).items()}
    state |= {f"text_model.backbone.{name}": tensor for name, tensor in text.items()}
    state["vlm_vision_projection.weight"] = drawn({"p": (EMBEDDING, 2 * WIDTH)}, seed + 2)["p"]
    state["logit_scale"] = torch.tensor([3.5])
    return state


def shapes_of_blocks(width: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Parameters of SPECTRE's blocks, CLS and last norm, in its names."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width), "norm.weight": (width,), "norm.bias": (width,)
    }  # fmt: skip
    for n in range(depth):
        block = {
            "norm1.weight": (width,), "norm1.bias": (width,),
            "attn.q.weight": (width, width), "attn.q.bias": (width,),
            "attn.kv.weight": (2 * width, width), "attn.kv.bias": (2 * width,),
            "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
            "ls1.gamma": (width,),
            "norm2.weight": (width,), "norm2.bias": (width,),
            "mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,),
            "ls2.gamma": (width,),
        }  # fmt: skip
        shapes |= {f"blocks.{n}.{name}": shape for name, shape in block.items()}
    return shapes


def periods(head: int, base: float) -> torch.Tensor:
    """As they are stored."""
    return base ** (2 * torch.arange(head // 6, dtype=torch.float32) / (head // 3))


def spectre(width: int = 36, depth: int = 2, heads: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """SPECTRE's backbone: parameters and the stored periods; patches of 8 x 8 x 4."""
    shapes = shapes_of_blocks(width, depth)
    shapes |= {"patch_embed.proj.weight": (width, 1, 8, 8, 4), "patch_embed.proj.bias": (width,)}
    return drawn(shapes, seed) | {"rope.periods": periods(width // heads, 1000.0)}


RADFINDER_HEADS = ("projection_image", "projection_image_copy", "projection_text", "projection_text_copy")


def radfinder(text: Mapping[str, torch.Tensor], seed: int = 0) -> dict[str, torch.Tensor]:
    """RadFinder whole: windows as `spectre`, a combiner 24 wide, heads into 20 numbers."""
    wide, width, out = 36, 24, 20
    combiner = shapes_of_blocks(width, 2) | {
        "patch_proj.weight": (width, 2 * wide), "patch_proj.bias": (width,),
        "axis_patch_proj.weight": (width, wide), "axis_patch_proj.bias": (width,),
    }  # fmt: skip
    shapes = {f"feature_comb_image.{name}": shape for name, shape in combiner.items()}
    for head in RADFINDER_HEADS:
        sizes = (2 * width if "image" in head else EMBEDDING, 14, 14, 6)
        for layer, (a, b) in enumerate(pairwise(sizes)):
            shapes |= {f"{head}.layers.{2 * layer}.weight": (b, a), f"{head}.layers.{2 * layer}.bias": (b,)}
        shapes[f"{head}.last_layer.parametrizations.weight.original1"] = (out, 6)
    state = {f"backbone_image.{name}": tensor for name, tensor in spectre(seed=seed).items()}
    state |= drawn(shapes, seed + 1)
    state |= {
        f"{h}.last_layer.parametrizations.weight.original0": torch.ones(out, 1) for h in RADFINDER_HEADS
    }
    state |= {f"backbone_text.{name}": tensor for name, tensor in text.items()}
    state["feature_comb_image.rope.periods"] = periods(width // 2, 100.0)
    return state | {"criterion.t": torch.tensor(2.5), "criterion.b": torch.tensor(-9.0)}


def turned(x: torch.Tensor, places: torch.Tensor, periods: torch.Tensor) -> torch.Tensor:
    """Every pair of channels as a complex number, turned by the angle of its axis; CLS stays."""
    number = torch.complex(*x[:, :, 1:].double().chunk(2, dim=-1))
    angles = (2 * math.pi * places[:, :, None] / periods.double()).flatten(1)
    number = number * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([x[:, :, :1].double(), torch.cat([number.real, number.imag], -1)], dim=2)


def places_of(grid: Sequence[int], windows: Sequence[int] | None = None) -> torch.Tensor:
    """Centres of a grid, each axis from -1 to 1 over its own number, or over that of windows."""
    lines = [(torch.arange(n) + 0.5) / w * 2 - 1 for n, w in zip(grid, windows or grid, strict=True)]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).reshape(-1, 3).double()


def public_blocks(
    state: Mapping[str, torch.Tensor], x: torch.Tensor, places: torch.Tensor, heads: int, eps: float
) -> torch.Tensor:
    """The public blocks and last norm, name by name, in float64: tokens (B, 1 + N, W) of which CLS is the
    first."""
    s = {name: tensor.double() for name, tensor in state.items()}
    width = x.shape[2]
    for n in range(2):
        b = {name.removeprefix(f"blocks.{n}."): t for name, t in s.items() if name.startswith(f"blocks.{n}.")}
        y = F.layer_norm(x, (width,), b["norm1.weight"], b["norm1.bias"], eps)
        q = y @ b["attn.q.weight"].T + b["attn.q.bias"]
        k, v = (y @ b["attn.kv.weight"].T + b["attn.kv.bias"]).split(width, dim=2)
        q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        q, k = (turned(t, places, s["rope.periods"]) for t in (q, k))
        share = (q @ k.transpose(2, 3) / math.sqrt(width // heads)).softmax(-1)
        y = (share @ v).transpose(1, 2).flatten(2) @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        x = x + b["ls1.gamma"] * y
        y = F.layer_norm(x, (width,), b["norm2.weight"], b["norm2.bias"], eps)
        y = F.gelu(y @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"])
        x = x + b["ls2.gamma"] * (y @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"])
    return F.layer_norm(x, (width,), s["norm.weight"], s["norm.bias"], eps)


def public_windows(state: Mapping[str, torch.Tensor], image: torch.Tensor, eps: float) -> torch.Tensor:
    """The public window encoder: (B, 1 + N, W)."""
    s = {name: tensor.double() for name, tensor in state.items()}
    x = F.conv3d(image.double(), s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], stride=(8, 8, 4))
    tokens = torch.cat([s["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    return public_blocks(state, tokens, places_of(x.shape[2:]), 2, eps)


def part_of(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """What stands under a prefix, without it."""
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def stored(path: Path, state: Mapping[str, torch.Tensor]) -> Path:
    """A checkpoint as safetensors."""
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, path)
    return path


def loaded(folder: Path) -> tuple[EncoderFile, Encoder]:
    """What an import left, and its network."""
    file = load_encoder(folder)
    encoder = build_encoder(file.config)
    load_tensors(encoder, {name: torch.from_numpy(tensor) for name, tensor in file.tensors.items()})
    return file, encoder.eval()


def text_folder(path: Path, config: dict[str, Any]) -> Path:
    """config.json and tokenizer.json of a text tower."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": {}}))
    return path
