"""The public SPECTRE backbone (ViT over windows of a scan) as an encoder of volumes.

Source: arXiv:2511.17209, and the names in the public code (spectre-fm 0.2.1). Its arrays are [X, Y, Z] of RAS
images, as here: nothing is turned. An encoder has no place for the combiner of windows, which is left out by
name, nor for the heads of SigLIP and the adapters of the text tower, which are refused.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch

from hilum.cohort.prep_presets import pipeline
from hilum.convert.foreign import Foreign
from hilum.convert.names import (
    WB,
    Rule,
    block_rules,
    count_blocks,
    facts_of,
    shape_of,
    split_attention_rule,
    unfit,
)
from hilum.errors import UsageError
from hilum.model.rope import periods
from hilum.model.vit_config import ViTConfig

LICENCE = "CC BY-NC-SA 4.0"
TERMS = "The weights are CC BY-NC-SA 4.0: not for commercial use; derivatives are shared alike."
LAYOUTS = ("", "backbone.", "model.backbone.")
"""Where the backbone stands: in a file of its own, before the combiner, in the hub's."""

BASE, NORM_EPS = 1000.0, 1e-5
FIELD_VOX, SPACING_MM = (128, 128, 64), (0.75, 0.75, 1.5)
FIRST = "patch_embed.proj.weight"
PERIODS = "left out: computed from the base, and checked against it"


def prefix_of(foreign: Foreign) -> str:
    """What stands before the backbone's names.

    Raises:
        WeightsError: `WEIGHTS_KEYS` for none of the layouts, as for a combiner, a head or an adapter alone.
    """
    found = [prefix for prefix in LAYOUTS if f"{prefix}{FIRST}" in foreign.table]
    if len(found) != 1:
        raise unfit(foreign, missing=[] if found else [FIRST], strange=found[1:])
    return found[0]


def rules_of(prefix: str) -> list[Rule]:
    """The table of names for a checkpoint whose backbone stands under `prefix`."""
    top = prefix.removesuffix("backbone.").replace(".", r"\.")
    rules = backbone_rules(prefix)
    if prefix:
        rules.append(
            Rule(
                rf"{top}feature_combiner\..+",
                None,
                "left out: an encoder has no combiner of windows",
            )
        )
    return rules


def backbone_rules(prefix: str) -> list[Rule]:
    """The backbone's part of it."""
    at = prefix.replace(".", r"\.")
    return [
        Rule(rf"{at}cls_token", "vision.cls"),
        Rule(rf"{at}reg_token", "vision.registers"),
        Rule(rf"{at}patch_embed\.proj{WB}", r"vision.patch_3d.\1"),
        *block_rules(at),
        split_attention_rule(prefix),
        Rule(rf"{at}rope\.periods", None, PERIODS),
    ]


def filled_of(foreign: Foreign, prefix: str) -> dict[str, float]:
    """Ours that the public model has none of, as constants: it is never masked, and may have no registers."""
    filled = {"vision.mask_token": 0.0}
    return filled if f"{prefix}reg_token" in foreign.table else filled | {"vision.registers": 0.0}


def config_of(foreign: Foreign, prefix: str, norm_eps: float = NORM_EPS) -> ViTConfig:
    """The backbone's numbers, from shapes; heads from the stored periods.

    Raises:
        WeightsError: `WEIGHTS_KEYS` for a tensor that is missing or has other axes, `CONFIG_VALUE` for
            numbers that make no network.
    """
    width = shape_of(foreign, f"{prefix}cls_token", 3)[2]
    hidden = shape_of(foreign, f"{prefix}blocks.0.mlp.fc1.weight", 2)[0]
    kernel = shape_of(foreign, f"{prefix}{FIRST}", 5)
    head = head_of(foreign, f"{prefix}rope.periods", BASE)
    if width % head or hidden % width or kernel[2] != kernel[3]:
        got = f"{prefix}cls_token {width}, heads of {head}, perceptron of {hidden}, patches of {kernel[2:]}"
        raise unfit(foreign, shapes=[got])
    registers = f"{prefix}reg_token"
    return ViTConfig(
        width=width,
        depth=count_blocks(foreign, f"{prefix}blocks."),
        heads=width // head,
        mlp=hidden // width,
        patch=kernel[2],
        patch_z=kernel[4],
        channels=kernel[1],
        slices=False,
        registers=shape_of(foreign, registers, 3)[1] if registers in foreign.table else 0,
        qkv_bias=f"{prefix}blocks.0.attn.q.bias" in foreign.table,
        layer_scale=1.0,
        norm_eps=norm_eps,
        drop_path=0.0,
        rope_base=BASE,
        rope_full=True,
        rescale=1.0,
    )


def encoder_config(foreign: Foreign, prefix: str, kind: str | None) -> dict[str, Any]:
    """config.json of the encoder folder.

    Raises:
        WeightsError: as of `config_of`. UsageError: `CONFIG_VALUE` for another kind than volumes.
    """
    if kind not in (None, "3d"):
        raise UsageError("CONFIG_VALUE", "SPECTRE reads volumes", expected="3d", got=kind)
    net = config_of(foreign, prefix)
    prep = replace(pipeline("radfinder"), name="spectre", spacing_mm=SPACING_MM, fit_vox=FIELD_VOX)
    return {
        "kind": "3d",
        "backbone": {"name": "spectre-public", "network": "vit", "net": asdict(net)},
        "prep": prep.facts(),
        "patch": list(net.patch_base(3)),
        "field_vox": list(FIELD_VOX),
    }


def head_of(foreign: Foreign, name: str, base: float) -> int:
    """Channels of a head; the stored periods are held to the base.

    Raises:
        WeightsError: `WEIGHTS_KEYS`.
    """
    head = 6 * shape_of(foreign, name, 1)[0]
    stored = foreign.get(name).float()
    if not torch.allclose(stored, periods(head, 3, base, torch.empty(0), full=True), rtol=1e-5):
        kind = facts_of(foreign, name).kind
        raise unfit(foreign, shapes=[f"{name} {kind} {stored.tolist()[:4]} for periods of base {base:g}"])
    return head
