"""Small checkpoints of random numbers in the public layouts, for the tests of `hilum import`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

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


def spectre(width: int = 36, depth: int = 2, heads: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """SPECTRE's backbone: parameters and the stored periods; patches of 8 x 8 x 4."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "patch_embed.proj.weight": (width, 1, 8, 8, 4),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
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
    head = width // heads
    steps = torch.arange(head // 6, dtype=torch.float32)
    return drawn(shapes, seed) | {"rope.periods": 1000.0 ** (2 * steps / (head // 3))}


def text_folder(path: Path, config: dict[str, Any]) -> Path:
    """config.json and tokenizer.json of a text tower."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": {}}))
    return path
