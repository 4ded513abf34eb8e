"""The public RadFinder (windows, combiner, heads, text tower) as a model of windows and texts.

Source: arXiv:2603.02026, and the names in the public code and its hub export. Its arrays are [X, Y, Z] of RAS
images, as here. Its kernel of patches is already folded to the 3 mm grid. Adapters of the text tower are left
out: where the public code reads a checkpoint it has merged them before (`loralib`, in evaluation), and reads
the merged weights alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from hilum.cohort.prep_presets import pipeline
from hilum.convert import spectre
from hilum.convert.foreign import Foreign
from hilum.convert.names import (
    WB,
    Rule,
    block_rules,
    count_blocks,
    shape_of,
    split_attention_rule,
    unfit,
    without_tower,
)

LAYOUTS = ("", "model.")
"""Before the names: in a checkpoint of training, in the hub's."""

NORM_EPS, COMBINER_BASE = 1e-6, 100.0
WINDOW_VOX = (128, 128, 32)
MAX_TOKENS = 4096
HEADS = {
    "projection_image": "image_head",
    "projection_image_copy": "image_copy",
    "projection_text": "text_head",
    "projection_text_copy": "text_copy",
}
GAINS = ("parametrizations.weight.original0", "weight_g")
"""Lengths of the last layer's rows, fixed at 1."""


def prefix_of(foreign: Foreign) -> str:
    """What stands before the model's names.

    Raises:
        WeightsError: `WEIGHTS_KEYS` for none of the layouts, or a model that learnt no depths.
    """
    found = [
        prefix for prefix in LAYOUTS if f"{prefix}feature_comb_image.axis_patch_proj.weight" in foreign.table
    ]
    if len(found) != 1:
        raise unfit(foreign, missing=["feature_comb_image.axis_patch_proj.weight"])
    return found[0]


def rules_of(prefix: str) -> list[Rule]:
    """The table of names."""
    at = prefix.replace(".", r"\.")
    combiner, to = rf"{at}feature_comb_image\.", "joint.combiner"
    heads = [
        rule
        for theirs, ours in HEADS.items()
        for rule in (
            Rule(rf"{at}{theirs}\.layers\.(\d+){WB}", rf"joint.{ours}.layers.\1.\2"),
            Rule(
                rf"{at}{theirs}\.last_layer\.(?:parametrizations\.weight\.original1|weight_v)",
                f"joint.{ours}.last.weight",
            ),
            Rule(
                rf"{at}{theirs}\.last_layer\.(?:{'|'.join(g.replace('.', '[.]') for g in GAINS)})",
                None,
                "left out: rows have length 1, which was checked",
            ),
        )
    ]
    return [
        *spectre.backbone_rules(f"{prefix}backbone_image."),
        Rule(rf"{combiner}patch_proj{WB}", rf"{to}.window_proj.\1"),
        Rule(rf"{combiner}axis_patch_proj{WB}", rf"{to}.depth_proj.\1"),
        Rule(rf"{combiner}cls_token", f"{to}.cls"),
        *block_rules(combiner, to),
        split_attention_rule(f"{prefix}feature_comb_image.", to),
        Rule(rf"{combiner}rope\.periods", None, spectre.PERIODS),
        *heads,
        Rule(rf"{at}criterion\.t", "joint.scale.log_scale", "with an axis", change=_with_axis),
        Rule(rf"{at}criterion\.b", "joint.scale.bias", "with an axis", change=_with_axis),
        Rule(rf"{at}loc_criterion\..+", None, "left out: the temperature of depths is fixed"),
        Rule(
            rf"{at}backbone_text\..+\.lora_[AB]", None, "left out: merged before, as the public code reads it"
        ),
        Rule(rf"{at}backbone_text\.(.+)", r"text.model.\1"),
    ]


def encoder_config(foreign: Foreign, prefix: str, text: Mapping[str, Any] | None) -> dict[str, Any]:
    """config.json of the encoder folder.

    Args:
        text: Hugging Face configuration of the text tower.

    Raises:
        WeightsError: `WEIGHTS_KEYS` for tensors that are missing or have other axes, or for rows of a last
            layer that have another length than 1. UsageError: `CONFIG_VALUE` without the text tower's
            configuration.
    """
    if text is None:
        raise without_tower()
    _require_unit_rows(foreign, prefix)
    net = spectre.config_of(foreign, f"{prefix}backbone_image.", NORM_EPS)
    combiner, head = f"{prefix}feature_comb_image.", f"{prefix}projection_image."
    width = shape_of(foreign, f"{combiner}cls_token", 3)[2]
    return {
        "kind": "3d-joint",
        "backbone": {"name": "radfinder-public", "network": "vit", "net": asdict(net)},
        "prep": pipeline("radfinder").facts(),
        "patch": list(net.patch_base(3)),
        "field_vox": list(WINDOW_VOX),
        "text": {"config": dict(text), "pooling": "last", "max_tokens": MAX_TOKENS},
        "embedding": shape_of(foreign, _last(foreign, head), 2)[0],
        "joint": {
            "width": width,
            "depth": count_blocks(foreign, f"{combiner}blocks."),
            "heads": width // spectre.head_of(foreign, f"{combiner}rope.periods", COMBINER_BASE),
            "frame": "published",
            "hidden": shape_of(foreign, f"{head}layers.0.weight", 2)[0],
            "bottleneck": shape_of(foreign, f"{head}layers.4.weight", 2)[0],
        },
    }


def _last(foreign: Foreign, head: str) -> str:
    names = [f"{head}last_layer.{end}" for end in ("parametrizations.weight.original1", "weight_v")]
    return next((name for name in names if name in foreign.table), names[0])


def _require_unit_rows(foreign: Foreign, prefix: str) -> None:
    for name in (f"{prefix}{head}.last_layer.{gain}" for head in HEADS for gain in GAINS):
        if name in foreign.table and not torch.equal(
            gain := foreign.get(name).float(), torch.ones_like(gain)
        ):
            raise unfit(foreign, shapes=[f"{name} {gain.flatten()[:3].tolist()} for lengths of 1"])


def _with_axis(scalar: torch.Tensor) -> torch.Tensor:
    return scalar.reshape(1)
