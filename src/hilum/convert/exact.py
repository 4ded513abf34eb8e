"""Checkpoints of the public EXACT code as a model that reads scans.

Source: EXACT §1.2, 1.8, and names in the public code and in what its training saves: ``model_state_dict``,
with or without ``module.`` of `nn.DataParallel`, and ``best_thresholds``, one per finding in CT-RATE's order.
Axes stay: the preparation gives the published ones. Optimiser and schedule are left out unread.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from hilum.convert.foreign import Foreign, open_foreign
from hilum.convert.names import WB, Rule, account, unfit
from hilum.convert.run import ImportReport
from hilum.errors import OutputError, UsageError
from hilum.io.atomic import atomic_folder, atomic_write
from hilum.io.weights import preset_data, save_weights
from hilum.model.preset import ExactPreset, build_exact, preset_from
from hilum.text.vocabulary import SLUGS

LICENCE = "none stated"
TERMS = (
    "The public repository states no licence for code or weights: ask its authors before any use beyond your "
    "own reading. Trained on CT-RATE (CC BY-NC-SA 4.0): not for commercial use."
)
TRAINED_ON = "24,128 chest CTs of CT-RATE with labels from reports and SAT organ masks (arXiv:2604.24146)"
UNREAD = ("optimizer_state_dict", "scheduler_state_dict")
THRESHOLDS = "best_thresholds"
FIRST = "vit.downsample_layers.0.0.weight"
LAYOUTS = tuple(
    f"{state}{wrap}" for state in ("model_state_dict.", "state_dict.", "") for wrap in ("module.", "")
)
"""What may stand before the network's names."""

_CONVS = {"conv1": "first", "conv2": "second", "conv3": "skip"}
_MIXTURE = {"proj": "first", "proj2": "second", "proj3": "point", "proj4": "mix"}
_MAMBA = r"(A_log|D|(?:in_proj|conv1d|x_proj|dt_proj|out_proj)\.(?:weight|bias))"


def prefix_of(foreign: Foreign) -> str:
    """What stands before the network's names.

    Raises:
        WeightsError: `WEIGHTS_KEYS` for none of the layouts, or more than one.
    """
    found = [prefix for prefix in LAYOUTS if f"{prefix}{FIRST}" in foreign.table]
    if len(found) != 1:
        raise unfit(foreign, missing=[FIRST] if not found else (), strange=found[1:])
    return found[0]


def rules_of(prefix: str) -> list[Rule]:
    """The table of names for a checkpoint whose network stands under `prefix`."""
    at = prefix.replace(".", r"\.")
    stage = rf"{at}vit\.stages\.(\d)\.(\d+)"
    ours = r"encoder.stages.\1.layers.\2"
    rules = [
        Rule(rf"{at}vit\.downsample_layers\.(\d)\.[01]{WB}", r"encoder.stages.\1.step.\2"),
        Rule(rf"{stage}\.norm{WB}", rf"{ours}.norm.\3"),
        Rule(rf"{stage}\.mamba\.{_MAMBA}", rf"{ours}.mamba.\3"),
        Rule(rf"{at}vit\.mlps\.(\d)\.fc1{WB}", r"encoder.stages.\1.up.\2"),
        Rule(rf"{at}vit\.mlps\.(\d)\.fc2{WB}", r"encoder.stages.\1.down.\2"),
    ]
    for theirs, name in _MIXTURE.items():
        rules.append(Rule(rf"{at}vit\.gscs\.(\d)\.{theirs}{WB}", rf"encoder.stages.\1.mixture.{name}.\2"))
    for n in range(5):
        rules += _res_block(rf"{at}encoder{n + 1}\.layer", f"skips.{n}")
    for branch in ("seg", "abn"):
        for n in range(4):
            up = rf"{at}{branch}_decoder{5 - n}"
            rules.append(Rule(rf"{up}\.transp_conv\.conv\.weight", f"{branch}.{n}.up.weight"))
            rules += _res_block(rf"{up}\.conv_block", f"{branch}.{n}.block")
        rules += _res_block(rf"{at}{branch}_decoder1\.layer", f"{branch}_last")
    for theirs, name in (("segmentation", "organ"), ("abnormal_low", "low"), ("abnormal_high", "high")):
        rules.append(Rule(rf"{at}final_conv_{theirs}\.conv\.conv{WB}", rf"{name}_head.\1"))
    return [*rules, Rule(THRESHOLDS, None, "left out of the weights: thresholds stand in the card")]


def _res_block(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(rf"{theirs}\.{conv}\.conv\.weight", f"{ours}.{name}.weight") for conv, name in _CONVS.items()
    ]


def thresholds_of(foreign: Foreign) -> dict[str, float]:
    """Scan probability from which a finding is called present; empty where the checkpoint has none.

    Raises:
        WeightsError: `WEIGHTS_KEYS` for another count than 18, or for what is no probability.
    """
    if THRESHOLDS not in foreign.table:
        return {}
    values = foreign.get(THRESHOLDS).double()
    if values.shape != (len(SLUGS),) or not bool(((values >= 0) & (values <= 1)).all()):
        raise unfit(foreign, shapes=[f"{THRESHOLDS} {tuple(values.shape)} for {len(SLUGS)} probabilities"])
    return {slug: round(float(value), 6) for slug, value in zip(SLUGS, values, strict=True)}


def import_exact(source: Path, folder: Path, *, preset: str = "exact-ymamba") -> ImportReport:
    """A checkpoint of the public code as a model folder: `model.safetensors` and `card.json`. Strict, as
    `convert.run.import_encoder`.

    Args:
        source: a torch archive or safetensors. folder: appears when it is whole; its parent must exist.
        preset: whose size the checkpoint has.

    Raises:
        OutputError: `OUTPUT_EXISTS`, `OUTPUT_UNWRITABLE`. UsageError: `PRESET_UNKNOWN`, or `CONFIG_VALUE` for
            a preset of another kind. WeightsError: `WEIGHTS_KEYS` naming the tensors; `NOT_FOUND`,
            `WEIGHTS_PICKLE`, `WEIGHTS_TRUNCATED`, `WEIGHTS_HEADER`, `WEIGHTS_NONFINITE`.
    """
    if folder.exists() or folder.is_symlink():
        raise OutputError("OUTPUT_EXISTS", "results do not replace other files", got="something", path=folder)
    described = preset_from(preset_data(preset))
    if not isinstance(described, ExactPreset) or described.network != "ymamba":
        raise UsageError("CONFIG_VALUE", "a checkpoint of EXACT is a Y-Mamba", expected="ymamba", got=preset)
    with torch.device("meta"):
        network = build_exact(described)
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    with open_foreign(source, arrays=True, skip=UNREAD) as foreign:
        table = account(foreign, rules_of(prefix_of(foreign)))
        tensors = table.tensors(foreign, own)
        thresholds = thresholds_of(foreign)
        card = {
            "name": folder.name,
            "preset": preset,
            "synthetic": False,
            "trained_on": TRAINED_ON,
            "licence": LICENCE,
            "terms": TERMS,
            "thresholds": thresholds,
            # the public code draws its maps from the same threshold on
            "map_thresholds": thresholds,
            "use": "research; not a medical device; not for diagnosis",
            "source": {"form": foreign.form, "sha256": foreign.sha256, "values": dict(foreign.plain)},
        }
    with atomic_folder(folder) as beside:
        sha256 = save_weights(beside / "model.safetensors", tensors, {"preset": preset})
        with atomic_write(beside / "card.json") as file:
            file.write((json.dumps({**card, "sha256": sha256}, indent=2) + "\n").encode())
    count = sum(tensor.size for tensor in tensors.values())
    return ImportReport(folder, preset, count, table.rows, (), LICENCE, TERMS, sha256)
