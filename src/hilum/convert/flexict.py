"""The public FlexiCT checkpoints (2D, 3D, 3D-VLM) as encoders.

Source: FlexiCT §1, §5, and the names in the public code. Its arrays are [Z, Y, X] and [Y, X] of LPS images as
SimpleITK gives them; here they are [X, Y, Z] and [X, Y] of the same images. So patch kernels are turned over,
and the last axis has the first channels of a head (`rope_reversed`): outputs are equal, on turned grids. The
same cannot be had by moving channels of queries and keys, since slices share them two by two and volumes
three by three.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

import torch

from hilum.cohort.prep_presets import pipeline
from hilum.convert.foreign import Foreign
from hilum.convert.names import Rule, block_rules, count_blocks, shape_of, unfit, without_tower
from hilum.errors import UsageError
from hilum.model.rope import periods
from hilum.model.vit_config import ViTConfig

LICENCE = "CC BY-NC-ND 4.0"
TERMS = "The weights are CC BY-NC-ND 4.0: not for commercial use, and no redistribution of derivatives."
LAYOUTS = ("teacher.backbone.", "model.vision_model.", "vision_model.", "backbone.", "")
"""Where the backbone stands: the teacher of a training run, the model of volumes and reports, the hub's."""

BASE, MAX_TOKENS = 100.0, 768
FIELD_VOX = (160, 160, 160)
Kind = Literal["2d", "3d", "3d-vlm"]


def turned(kernel: torch.Tensor) -> torch.Tensor:
    """A patch kernel (W, C, *patch) with its axes from last to first."""
    return kernel.permute(0, 1, *range(kernel.dim() - 1, 1, -1))


def prefix_of(foreign: Foreign) -> str:
    """What stands before the backbone's names.

    Raises:
        WeightsError: `WEIGHTS_KEYS` for none of the layouts, or more than one.
    """
    found = [prefix for prefix in LAYOUTS if f"{prefix}cls_token" in foreign.table]
    if len(found) != 1:
        raise unfit(foreign, missing=["cls_token"] if not found else (), strange=found[1:])
    return found[0]


def rules_of(prefix: str) -> list[Rule]:
    """The table of names for a checkpoint whose backbone stands under `prefix`."""
    root = prefix.removesuffix("vision_model.").removesuffix("backbone.")
    at, top = prefix.replace(".", r"\."), root.replace(".", r"\.")
    rules = [
        Rule(rf"{at}cls_token", "vision.cls"),
        Rule(rf"{at}storage_tokens", "vision.registers"),
        Rule(
            rf"{at}mask_token", "vision.mask_token", "renamed, without its axis of one", torch.Tensor.flatten
        ),
        Rule(
            rf"{at}patch_embed_([23])D\.proj\.weight", r"vision.patch_\1d.weight", "axes turned over", turned
        ),
        Rule(rf"{at}patch_embed_([23])D\.proj\.bias", r"vision.patch_\1d.bias"),
        *block_rules(at),
        Rule(rf"{at}blocks\.(\d+)\.attn\.qkv\.weight", r"vision.blocks.\1.attention.qkv.weight"),
        Rule(
            rf"{at}rope_embed_[23]D\.periods",
            None,
            "left out: computed from the base, and checked against it",
        ),
    ]
    if prefix.endswith("backbone."):
        rules.append(Rule(rf"{top}(dino|ibot)_head\..*", None, "left out: a head of the pretraining losses"))
    if prefix.endswith("vision_model."):
        rules += [
            Rule(rf"{top}vlm_vision_projection\.weight", "projection.weight"),
            Rule(rf"{top}logit_scale", "temperature.log_scale"),
            Rule(rf"{top}text_model\.backbone\.(.+)", r"text.model.\1"),
        ]
    return rules


def kind_of(foreign: Foreign, prefix: str, asked: str | None) -> Kind:
    """What a checkpoint was trained on. Slices or volumes cannot be told by the names: both have both patch
    embeddings.

    Raises:
        UsageError: `CONFIG_VALUE` where it has to be said, or is said wrong.
    """
    root = prefix.removesuffix("vision_model.")
    reports = f"{root}vlm_vision_projection.weight" in foreign.table
    if reports and asked in (None, "3d-vlm"):
        return "3d-vlm"
    if not reports and asked in ("2d", "3d"):
        return "2d" if asked == "2d" else "3d"
    expected = (
        "3d-vlm: it has a projection for reports" if reports else "2d or 3d: it has no projection for reports"
    )
    raise UsageError(
        "CONFIG_VALUE", "the kind of a checkpoint is known", expected=expected, got=asked, path=foreign.path,
        hint=None if reports else "Names do not tell slices from volumes: say --kind 2d or --kind 3d.",
    )  # fmt: skip


def config_of(foreign: Foreign, prefix: str) -> ViTConfig:
    """The backbone's numbers, from shapes; heads and precision of places from the stored periods.

    Raises:
        WeightsError: `WEIGHTS_KEYS` for a tensor that is missing or has other axes, `CONFIG_VALUE` for
            numbers that make no network.
    """
    width = shape_of(foreign, f"{prefix}cls_token", 3)[2]
    hidden = shape_of(foreign, f"{prefix}blocks.0.mlp.fc1.weight", 2)[0]
    kernel = shape_of(foreign, f"{prefix}patch_embed_3D.proj.weight", 5)
    head, coarse = _places(foreign, prefix)
    if width % head or hidden % width:
        raise unfit(
            foreign, shapes=[f"{prefix}cls_token {width} for heads of {head}, perceptron of {hidden}"]
        )
    return ViTConfig(
        width=width,
        depth=count_blocks(foreign, f"{prefix}blocks."),
        heads=width // head,
        mlp=hidden // width,
        patch=kernel[2],
        channels=kernel[1],
        registers=shape_of(foreign, f"{prefix}storage_tokens", 3)[1],
        rope_base=BASE,
        rope_reversed=True,
        rope_bf16=coarse,
    )


def _places(foreign: Foreign, prefix: str) -> tuple[int, bool]:
    """Channels of a head, and whether places are computed in bfloat16, by the periods that are stored."""
    found = set()
    for axes in (2, 3):
        name = f"{prefix}rope_embed_{axes}D.periods"
        head = 2 * axes * shape_of(foreign, name, 1)[0]
        stored = foreign.get(name).float()
        coarse = next((c for c in (False, True) if _same_periods(stored, head, axes, c)), None)
        if coarse is None:
            raise unfit(foreign, shapes=[f"{name} {stored.tolist()[:4]} for periods of base {BASE:g}"])
        found.add((head, coarse))
    if len(found) != 1:
        raise unfit(foreign, shapes=[f"{prefix}rope_embed_2D.periods for those of rope_embed_3D"])
    return found.pop()


def _same_periods(stored: torch.Tensor, head: int, axes: int, coarse: bool) -> bool:
    like = torch.empty(0, dtype=torch.bfloat16 if coarse else torch.float32)
    # a step of bfloat16, since powers are rounded one way here and another there
    return torch.allclose(stored, periods(head, axes, BASE, like).float(), rtol=2**-7 if coarse else 1e-5)


def encoder_config(
    foreign: Foreign, prefix: str, kind: Kind, text: Mapping[str, Any] | None
) -> dict[str, Any]:
    """config.json of the encoder folder.

    Args:
        foreign: the checkpoint. prefix, kind: of it. text: Hugging Face configuration of the text tower.

    Raises:
        WeightsError: as of `config_of`. UsageError: `CONFIG_VALUE` without the text tower's configuration.
    """
    net = config_of(foreign, prefix)
    volumes = kind != "2d"
    data: dict[str, Any] = {
        "kind": kind,
        "backbone": {"name": f"flexict-public-{kind}", "network": "vit", "net": asdict(net)},
        "prep": pipeline("flexict-3d" if volumes else "flexict-2d").facts(),
        "prep_2d": pipeline("flexict-2d").facts() if volumes else None,
        "patch": net.patch,
        "field_vox": list(FIELD_VOX) if volumes else None,
    }
    if kind == "3d-vlm":
        if text is None:
            raise without_tower()
        data["text"] = {"config": dict(text), "pooling": "last", "max_tokens": MAX_TOKENS, "lower": True}
        root = prefix.removesuffix("vision_model.")
        data["embedding"] = shape_of(foreign, f"{root}vlm_vision_projection.weight", 2)[0]
    return data
