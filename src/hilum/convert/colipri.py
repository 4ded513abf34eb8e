"""The public COLIPRI (volumes, and reports by CXR-BERT) as an encoder of kind 3d-vlm.

Source: arXiv:2510.15042, and the names in its package (colipri 0.1.3). Its arrays are [X, Y, Z] of RAS
images, as here. It turns neighbouring channels of a head together, here channel j turns with channel
j + head / 2: rows of queries and keys are put into that order, which leaves every product as it was. The
decoder of pretraining and the head of CXR-BERT are not in the published file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from hilum.cohort.prep_presets import pipeline
from hilum.convert.foreign import Foreign
from hilum.convert.names import FLOATS, WB, Rule, count_blocks, shape_of, unfit, without_tower
from hilum.errors import UsageError, WeightsError
from hilum.model.primus import PrimusConfig

LICENCE = "MIT"
TERMS = "The weights are MIT; their authors share them for research, not for use in the clinic."

HEADS, POOL_HEADS = 12, 12
"""Of the published configuration: no shape tells them."""

MAX_TOKENS = 512
FIELD_VOX = (192, 192, 192)
TOWER = "BiomedVLP-CXR-BERT-specialized"
TEXT_KIND = "cxr-bert"
NOT_BERT = ("model_type", "auto_map", "architectures", "projection_size", "_name_or_path")
"""Keys of CXR-BERT's configuration that say how it differs from BERT: by a head, which is not used."""

IMAGE, TEXT, TEMPERATURE = "image_encoder.", "text_encoder.", "softmax_temperature"
FIRST = f"{IMAGE}backbone.down_projection.proj.weight"
SCALES = (1.0, 100.0)
"""One over the temperature, as `model.temperature` can have it."""


def rules_of(foreign: Foreign) -> list[Rule]:
    """The table of names."""
    eva = r"image_encoder\.backbone\.eva\."
    block, ours = rf"{eva}blocks\.(\d+)\.", r"vision.blocks.\1."
    order = "renamed, channels of heads in another order"
    temperature = r"softmax_temperature"
    return [
        Rule(rf"image_encoder\.backbone\.down_projection\.proj{WB}", r"vision.patch_3d.\1"),
        Rule(rf"{eva}norm{WB}", r"vision.norm.\1"),
        Rule(rf"{block}norm1{WB}", rf"{ours}norm_attention.\2"),
        Rule(rf"{block}attn\.q_proj{WB}", rf"{ours}attention.query.\2", order, halved),
        Rule(rf"{block}attn\.k_proj\.weight", rf"{ours}attention.key.weight", order, halved),
        Rule(rf"{block}attn\.v_proj{WB}", rf"{ours}attention.value.\2"),
        Rule(rf"{block}attn\.(norm|proj){WB}", rf"{ours}attention.\2.\3"),
        Rule(rf"{block}gamma_1", rf"{ours}scale_attention"),
        Rule(rf"{block}norm2{WB}", rf"{ours}norm_mlp.\2"),
        Rule(rf"{block}mlp\.fc1_g{WB}", rf"{ours}mlp.gate.\2"),
        Rule(rf"{block}mlp\.fc1_x{WB}", rf"{ours}mlp.up.\2"),
        Rule(rf"{block}mlp\.norm{WB}", rf"{ours}mlp.norm.\2"),
        Rule(rf"{block}mlp\.fc2{WB}", rf"{ours}mlp.down.\2"),
        Rule(rf"{block}gamma_2", rf"{ours}scale_mlp"),
        Rule(r"image_encoder\.backbone\.mask_token", None, "left out: reading hides no patch"),
        Rule(
            r"image_encoder\.projector\.weight", "pooled.projection.weight", "as a linear map",
            lambda kernel: kernel.flatten(1),
        ),
        Rule(r"image_encoder\.projector\.bias", "pooled.projection.bias"),
        *_pool_rules(r"image_encoder\.pooler\.", "pooled.pool."),
        Rule(r"text_encoder\.backbone\.(.+)", r"text.model.\1"),
        *_pool_rules(r"text_encoder\.pooler\.", "text.pooler."),
        Rule(temperature, "temperature.log_scale", "as the logarithm of its inverse", _log_scale)
        if _has_temperature(foreign)
        else Rule(temperature, None, "left out: the whole number 1, which changes nothing"),
    ]  # fmt: skip


def _pool_rules(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(rf"{theirs}attn\.in_proj_(weight|bias)", rf"{ours}qkv.\1"),
        Rule(rf"{theirs}attn\.out_proj{WB}", rf"{ours}proj.\1"),
    ]


def halved(rows: torch.Tensor) -> torch.Tensor:
    """Rows (W, ...) of a map of queries or keys: of each head the even channels first, then the odd ones."""
    apart = rows.unflatten(0, (HEADS, -1, 2))
    return apart.transpose(1, 2).flatten(0, 2)


def filled_of(foreign: Foreign) -> dict[str, float]:
    """Ours that the published file may lack: without a temperature, cosines are compared as they are."""
    return {} if _has_temperature(foreign) else {"temperature.log_scale": 0.0}


def encoder_config(foreign: Foreign, kind: str | None, text: Mapping[str, Any] | None) -> dict[str, Any]:
    """config.json of the encoder folder.

    Args:
        kind: None, or 3d-vlm. text: Hugging Face configuration of CXR-BERT.

    Raises:
        WeightsError: `WEIGHTS_PICKLE` for a torch archive; `WEIGHTS_KEYS` for tensors that are missing or
            have other axes, and for a temperature beyond its range. UsageError: `CONFIG_VALUE` for another
            kind, or without the text tower's configuration, or for that of another tower.
    """
    if foreign.form != "safetensors":
        raise WeightsError(
            "WEIGHTS_PICKLE", "COLIPRI is published as safetensors", expected="model.safetensors",
            got=foreign.form, path=foreign.path,
        )  # fmt: skip
    if kind not in (None, "3d-vlm"):
        raise UsageError("CONFIG_VALUE", "COLIPRI reads volumes and reports", expected="3d-vlm", got=kind)
    if text is None:
        raise without_tower(TOWER)
    _require_temperature(foreign)
    net = config_of(foreign)
    tower = tower_of(text)
    places = tower.get("max_position_embeddings", MAX_TOKENS)
    return {
        "kind": "3d-vlm",
        "backbone": {"name": "colipri-public", "network": "primus", "net": asdict(net)},
        "prep": pipeline("colipri").facts(),
        "patch": net.patch,
        "field_vox": list(FIELD_VOX),
        "text": {
            "config": tower,
            "pooling": "mean-query",
            "heads": POOL_HEADS,
            "max_tokens": min(MAX_TOKENS, places) if isinstance(places, int) else MAX_TOKENS,
        },
        "embedding": shape_of(foreign, f"{IMAGE}projector.weight", 5)[0],
        "pooled": {"heads": POOL_HEADS},
    }


def config_of(foreign: Foreign) -> PrimusConfig:
    """The backbone's numbers, from shapes; heads from the published configuration.

    Raises:
        WeightsError: `WEIGHTS_KEYS` for a tensor that is missing or has other axes, `CONFIG_VALUE` for
            numbers that make no network.
    """
    kernel, at = shape_of(foreign, FIRST, 5), f"{IMAGE}backbone.eva.blocks."
    if len(set(kernel[2:])) != 1:
        raise unfit(foreign, shapes=[f"{FIRST} {kernel} for patches as wide as deep"])
    return PrimusConfig(
        width=kernel[0],
        depth=count_blocks(foreign, at),
        heads=HEADS,
        hidden=shape_of(foreign, f"{at}0.mlp.fc1_g.weight", 2)[0],
        patch=kernel[2],
        channels=kernel[1],
    )


def tower_of(text: Mapping[str, Any]) -> dict[str, Any]:
    """CXR-BERT's configuration as the BERT that it is below its head.

    Raises:
        UsageError: `CONFIG_VALUE` for the configuration of another tower.
    """
    kind = text.get("model_type")
    if kind not in (TEXT_KIND, "bert"):
        raise UsageError(
            "CONFIG_VALUE", "COLIPRI reads reports with CXR-BERT", expected=f"model_type {TEXT_KIND}",
            got=kind, hint=f"--text FOLDER with config.json and tokenizer.json of {TOWER}.",
        )  # fmt: skip
    return {"model_type": "bert", **{key: value for key, value in text.items() if key not in NOT_BERT}}


def _has_temperature(foreign: Foreign) -> bool:
    return TEMPERATURE in foreign.table and foreign.table[TEMPERATURE].kind in FLOATS


def _require_temperature(foreign: Foreign) -> None:
    """The package keeps the number 1 as an integer, and a learned one as a float."""
    if TEMPERATURE not in foreign.table:
        return
    value = foreign.get(TEMPERATURE)
    low, high = SCALES
    fine = value.numel() == 1 and float(value) == 1
    if value.numel() == 1 and value.is_floating_point():
        # a float of 0.01 lies a hair below it
        fine = float(value) > 0 and low <= 1 / float(value) <= high * (1 + 1e-6)
    if not fine:
        got = value.flatten()[:3].tolist()
        raise unfit(foreign, shapes=[f"{TEMPERATURE} {got} for one number of {1 / high:g} to {1 / low:g}"])


def _log_scale(temperature: torch.Tensor) -> torch.Tensor:
    return -temperature.reshape(1).log().clamp(-math.log(SCALES[1]), 0.0)
