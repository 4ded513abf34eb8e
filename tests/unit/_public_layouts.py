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


def shapes_of_colipri(
    width: int = 72, depth: int = 2, hidden: int = 20, size: int = 24, patch: int = 4
) -> dict[str, tuple[int, ...]]:
    """COLIPRI but its text tower, in the names of its package; 12 heads, here of 6 channels and of 2."""
    back = "image_encoder.backbone"
    shapes: dict[str, tuple[int, ...]] = {
        f"{back}.mask_token": (1, 1, width),
        f"{back}.down_projection.proj.weight": (width, 1, patch, patch, patch),
        f"{back}.down_projection.proj.bias": (width,),
        f"{back}.eva.norm.weight": (width,), f"{back}.eva.norm.bias": (width,),
        "image_encoder.projector.weight": (size, width, 1, 1, 1), "image_encoder.projector.bias": (size,),
    }  # fmt: skip
    for n in range(depth):
        block = {
            "gamma_1": (width,), "gamma_2": (width,),
            "norm1.weight": (width,), "norm1.bias": (width,),
            "attn.q_proj.weight": (width, width), "attn.q_proj.bias": (width,),
            "attn.k_proj.weight": (width, width),
            "attn.v_proj.weight": (width, width), "attn.v_proj.bias": (width,),
            "attn.norm.weight": (width,), "attn.norm.bias": (width,),
            "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
            "norm2.weight": (width,), "norm2.bias": (width,),
            "mlp.fc1_g.weight": (hidden, width), "mlp.fc1_g.bias": (hidden,),
            "mlp.fc1_x.weight": (hidden, width), "mlp.fc1_x.bias": (hidden,),
            "mlp.norm.weight": (hidden,), "mlp.norm.bias": (hidden,),
            "mlp.fc2.weight": (width, hidden), "mlp.fc2.bias": (width,),
        }  # fmt: skip
        shapes |= {f"{back}.eva.blocks.{n}.{name}": shape for name, shape in block.items()}
    for tower in ("image_encoder", "text_encoder"):
        shapes |= {
            f"{tower}.pooler.attn.in_proj_weight": (3 * size, size),
            f"{tower}.pooler.attn.in_proj_bias": (3 * size,),
            f"{tower}.pooler.attn.out_proj.weight": (size, size),
            f"{tower}.pooler.attn.out_proj.bias": (size,),
        }
    return shapes


def shapes_of_bert(
    width: int, depth: int, hidden: int, words: int, places: int
) -> dict[str, tuple[int, ...]]:
    """BERT without its pooler and head."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (words, width),
        "embeddings.position_embeddings.weight": (places, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,), "embeddings.LayerNorm.bias": (width,),
    }  # fmt: skip
    for n in range(depth):
        layers = {
            "attention.self.query": (width, width), "attention.self.key": (width, width),
            "attention.self.value": (width, width), "attention.output.dense": (width, width),
            "intermediate.dense": (hidden, width), "output.dense": (width, hidden),
        }  # fmt: skip
        for name, shape in layers.items():
            shapes |= {
                f"encoder.layer.{n}.{name}.weight": shape, f"encoder.layer.{n}.{name}.bias": shape[:1]
            }  # fmt: skip
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {
                f"encoder.layer.{n}.{name}.weight": (width,), f"encoder.layer.{n}.{name}.bias": (width,)
            }  # fmt: skip
    return shapes


CXR_BERT = {
    "model_type": "cxr-bert", "architectures": ["CXRBertModel"], "projection_size": 8,
    "auto_map": {"AutoModel": "modeling_cxrbert.CXRBertModel"}, "hidden_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 30, "vocab_size": 40, "max_position_embeddings": 32,
    "type_vocab_size": 2, "pad_token_id": 0,
}  # fmt: skip
"""config.json of the text tower, its code named beside it."""


def colipri(temperature: float | None = 0.07, seed: int = 0) -> dict[str, torch.Tensor]:
    """COLIPRI whole; None for a file without temperature."""
    bert = shapes_of_bert(24, 1, 30, 40, 32)
    shapes = shapes_of_colipri() | {f"text_encoder.backbone.{name}": shape for name, shape in bert.items()}
    state = drawn(shapes, seed)
    return state if temperature is None else state | {"softmax_temperature": torch.tensor(temperature)}


def public_primus(state: Mapping[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    """COLIPRI's backbone, name by name, in float64: (B, N, W). Channels 2 j and 2 j + 1 turn together."""
    s = {name: t.double() for name, t in part_of(state, "image_encoder.backbone.").items()}
    kernel = s["down_projection.proj.weight"]
    x = F.conv3d(image.double(), kernel, s["down_projection.proj.bias"], stride=kernel.shape[2])
    lines = torch.meshgrid(*(torch.arange(n) for n in x.shape[2:]), indexing="ij")
    places = torch.stack(lines, -1).reshape(-1, 3).double()
    x = x.flatten(2).transpose(1, 2)
    width = x.shape[2]
    bands = 10000.0 ** -(torch.arange(width // 12 // 6).double() / (width // 12 // 6))
    turn = torch.polar(torch.ones(1).double(), (places[:, :, None] * bands).flatten(1))

    def normed(y: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(y, y.shape[-1:], b[f"{name}.weight"], b[f"{name}.bias"], 1e-5)

    for n in range(2):
        b = part_of(s, f"eva.blocks.{n}.")
        y = normed(x, "norm1")
        q = y @ b["attn.q_proj.weight"].T + b["attn.q_proj.bias"]
        k = y @ b["attn.k_proj.weight"].T
        v = y @ b["attn.v_proj.weight"].T + b["attn.v_proj.bias"]
        q, k, v = (t.unflatten(2, (12, -1)).transpose(1, 2) for t in (q, k, v))
        q, k = (
            torch.view_as_real(torch.view_as_complex(t.unflatten(3, (-1, 2)).contiguous()) * turn).flatten(3)
            for t in (q, k)
        )
        share = (q @ k.transpose(2, 3) / math.sqrt(width // 12)).softmax(-1)
        y = normed((share @ v).transpose(1, 2).flatten(2), "attn.norm")
        x = x + b["gamma_1"] * (y @ b["attn.proj.weight"].T + b["attn.proj.bias"])
        y = normed(x, "norm2")
        gate = y @ b["mlp.fc1_g.weight"].T + b["mlp.fc1_g.bias"]
        y = gate * torch.sigmoid(gate) * (y @ b["mlp.fc1_x.weight"].T + b["mlp.fc1_x.bias"])
        x = x + b["gamma_2"] * (normed(y, "mlp.norm") @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"])
    return F.layer_norm(x, (width,), s["eva.norm.weight"], s["eva.norm.bias"], 1e-5)


def public_pool(state: Mapping[str, torch.Tensor], tower: str, tokens: torch.Tensor) -> torch.Tensor:
    """COLIPRI's pooling of one text or scan (T, W), head by head, in float64: (W,)."""
    s = {name: t.double() for name, t in part_of(state, f"{tower}.pooler.attn.").items()}
    tokens = tokens.double()
    size = tokens.shape[1] // 12
    kinds = zip(s["in_proj_weight"].chunk(3), s["in_proj_bias"].chunk(3), strict=True)
    (wq, bq), (wk, bk), (wv, bv) = kinds
    q, k, v = wq @ tokens.mean(0) + bq, tokens @ wk.T + bk, tokens @ wv.T + bv
    heads = []
    for h in range(12):
        at = slice(h * size, (h + 1) * size)
        heads.append((k[:, at] @ q[at] / math.sqrt(size)).softmax(0) @ v[:, at])
    return s["out_proj.weight"] @ torch.cat(heads) + s["out_proj.bias"]


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
