"""RadFinder beside its public code: same random weights in, same embeddings out.

    python benchmarks/radfinder_peer.py --public DIR [--depth 24]

DIR is a clone of the public repository (MIT; its weights are not free, and none are used): it is imported
from where it lies. Libraries that it names and that are not needed to run it are replaced by empty ones, and
the layers of timm that it takes by plain ones written here. The weights go through `hilum import radfinder`:
a checkpoint with the hub's names, its table, the encoder's folder. Two scans of different grids in one batch:
reports, diseases, every depth; texts and snippets with padding on the right. The text tower is a Qwen3 of two
layers. Writes benchmarks/results/radfinder_peer.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from hilum.convert.run import import_encoder
from hilum.io.encoder_file import load_encoder
from hilum.model.encoder import Encoder, build_encoder, load_tensors

RESULTS = Path(__file__).parent / "results" / "radfinder_peer.json"
TOLERANCE = 1e-4
GRIDS = ((2, 1, 1), (1, 1, 2))
WINDOW, WIDTH, HEADS, SIZE = (128, 128, 32), 1080, 12, 512
TEXT = {
    "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 200,
    "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip
SNIPPETS = {
    "enabled": True, "snippet_mode": "axis_localization", "rope_mode": "physical",
    "projector_mode_image": "copy", "projector_mode_text": "copy",
}  # fmt: skip
EMPTY = (
    "loguru", "monai", "monai.data", "monai.data.meta_tensor",
    "packg", "packg.constclass", "packg.iotools", "packg.iotools.pathspec_matcher", "packg.log",
    "packg.strings", "packg.strings.formatters", "packg.typext", "visiontext", "visiontext.distutils",
    "timm", "timm.layers", "timm.layers.fast_norm", "timm.models", "timm.models.vision_transformer",
    "radfinder.transforms.crop_metadata", "radfinder.transforms.largest_multiple_crop",
    "radfinder.utils.scan_utils",
)  # fmt: skip


class _Mlp(nn.Module):
    def __init__(
        self, in_features: int, hidden_features: int, act_layer: Any, bias: bool, drop: float
    ) -> None:
        super().__init__()
        self.fc1, self.act = nn.Linear(in_features, hidden_features, bias), act_layer()
        self.fc2 = nn.Linear(hidden_features, in_features, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class _LayerScale(nn.Module):
    def __init__(self, dim: int, init_values: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(init_values * torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class _Nothing:
    """Stands for whatever is named and not used."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    @staticmethod
    def verify_value(value: Any) -> None: ...


class _Empty(types.ModuleType):
    """A module in which every name is there."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing


def public_code(clone: Path) -> None:
    """Make the public package importable."""
    for name in EMPTY:
        module = _Empty(name)
        module.__path__ = []
        sys.modules[name] = module
    plain: Any = sys.modules["timm.models.vision_transformer"]
    plain.Mlp, plain.LayerScale = _Mlp, _LayerScale
    layers: Any = sys.modules["timm.layers"]
    layers.use_fused_attn = lambda: True
    logger: Any = sys.modules["loguru"]
    logger.logger = types.SimpleNamespace(log=lambda *a, **k: None, opt=lambda **k: logger.logger)
    said: Any = _Empty("radfinder.utils.logging_utils")
    for name in ("log_info", "log_debug", "log_warning", "log_error"):
        setattr(said, name, lambda *args, **kwargs: None)
    sys.modules["radfinder.utils.logging_utils"] = said
    sys.path.insert(0, str(clone / "src"))


def public_model(depth: int) -> nn.Module:
    """As the published configuration builds it, with random weights everywhere."""
    from radfinder.losses.siglip_loss import SigLIPLoss  # type: ignore[import-not-found]
    from radfinder.models.siglip_head import SigLIPProjectionHead  # type: ignore[import-not-found]
    from radfinder.models.vision_language import SigLIP  # type: ignore[import-not-found]
    from radfinder.models.vision_transformer import VisionTransformer  # type: ignore[import-not-found]
    from radfinder.models.vision_transformer_features import (  # type: ignore[import-not-found]
        FeatureVisionTransformer,
    )
    from transformers import Qwen3Config, Qwen3Model

    both: dict[str, Any] = {"num_classes": 0, "global_pool": "", "pos_embed": "rope", "init_values": 1.0}
    windows = VisionTransformer(
        sliding_window_size=WINDOW, patch_size=(16, 16, 8), embed_dim=WIDTH, depth=depth, num_heads=HEADS,
        half_patch_embed=True, rope_kwargs={"base": 1000.0}, **both,
    )  # fmt: skip
    windows.post_weight_loading()
    combiner = FeatureVisionTransformer(
        patch_dim=2 * WIDTH, embed_dim=WIDTH, depth=4, num_heads=HEADS, rope_kwargs={"base": 100.0},
        stored_init_kwargs={}, **both,
    )  # fmt: skip
    combiner.init_axis_patch_proj()
    model = SigLIP(
        image_backbone=windows,
        image_feature_comb=combiner,
        image_projection=SigLIPProjectionHead(input_dim=2 * WIDTH, output_dim=SIZE),
        text_backbone=Qwen3Model(Qwen3Config.from_dict(TEXT)),
        text_projection=SigLIPProjectionHead(input_dim=TEXT["hidden_size"], output_dim=SIZE),
        criterion=SigLIPLoss(),
        mask_usage_train="true",
        do_snippet_alignment=SNIPPETS,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # copies and original begin equal, scales at 1, tokens near 0: nothing would be told apart
            if not name.endswith("original0"):
                parameter.add_(0.02 * torch.randn_like(parameter))
    model.eval()
    return model


def imported(theirs: nn.Module, folder: Path) -> Encoder:
    """Ours, through the importer."""
    state = {f"model.{k}": v.clone().contiguous() for k, v in theirs.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "text").mkdir()
    (folder / "text" / "config.json").write_text(json.dumps(TEXT))
    (folder / "text" / "tokenizer.json").write_text("{}")
    import_encoder("radfinder", folder / "model.safetensors", folder / "ours", text=folder / "text")
    file = load_encoder(folder / "ours")
    ours = build_encoder(file.config)
    load_tensors(ours, {name: torch.from_numpy(array) for name, array in file.tensors.items()})
    return ours.eval()


def batch() -> dict[str, torch.Tensor]:
    """Windows of two scans, two reports, three snippets."""
    windows = torch.rand(sum(a * b * c for a, b, c in GRIDS), 1, *WINDOW)
    present = torch.zeros(len(GRIDS), *(max(axis) for axis in zip(*GRIDS, strict=True)), dtype=torch.bool)
    for scan, (u, v, w) in enumerate(GRIDS):
        present[scan, :u, :v, :w] = True
    ids, mask = torch.randint(0, 200, (3, 12)), torch.ones(3, 12, dtype=torch.bool)
    mask[1, 7:], mask[2, 10:] = False, False
    return {"windows": windows, "present": present, "ids": ids, "mask": mask}


def theirs_says(model: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Embeddings by the public code, brought to length 1 as its losses do."""
    images = {
        "image": given["windows"],
        "image_grid_shape": torch.tensor(GRIDS, dtype=torch.int32),
        "window_mask": given["present"],
    }
    scans = model.forward_image_only(images)
    mask = given["mask"].long()
    depths, valid, snippets = model.encode_localization(images, given["ids"], mask)
    found = {
        "report": scans.image_embeddings,
        "disease": scans.image_embeddings_secondary,
        "depths": depths[valid],
        "texts": model.encode_text_report(given["ids"], mask),
        "snippets": snippets,
    }
    return {name: F.normalize(rows, dim=-1) for name, rows in found.items()}


def ours_says(model: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same by ours."""
    read, present = model.read_windows(given["windows"]), given["present"]
    both = read.both.new_zeros(*present.shape, read.both.shape[1])
    deep = read.depths.new_zeros(*present.shape, *read.depths.shape[1:])
    both[present], deep[present] = read.both, read.depths
    scans = model.joint.scans(both, present)
    depths, valid = model.joint.depths(deep, present)
    pooled = model.text(given["ids"], given["mask"])
    return {
        "report": scans.report,
        "disease": scans.disease,
        "depths": depths[valid],
        "texts": model.joint.reports(pooled),
        "snippets": model.joint.snippets(pooled),
    }


def main(clone: Path, depth: int, seed: int) -> dict[str, Any]:
    """Both on one batch; the largest difference of every kind of embedding."""
    public_code(clone)
    torch.manual_seed(seed)
    theirs = public_model(depth)
    given = batch()
    with torch.inference_mode():
        wanted = theirs_says(theirs, given)
    with tempfile.TemporaryDirectory() as folder:
        ours = imported(theirs, Path(folder))
    counts = {"public": sum(p.numel() for p in theirs.parameters())}
    counts["ours"] = sum(p.numel() for p in ours.parameters())
    with torch.inference_mode():
        found = ours_says(ours, given)
    return {
        "grids_of_windows": GRIDS, "depth_of_window_encoder": depth, "seed": seed, "parameters": counts,
        "largest_difference": {k: float((found[k] - wanted[k]).abs().max()) for k in wanted},
        "rows": {k: len(rows) for k, rows in wanted.items()},
        "rows_apart": {k: float(torch.pdist(rows).min()) for k, rows in wanted.items()},
        "tolerance": TOLERANCE,
        "equal": all(float((found[k] - wanted[k]).abs().max()) <= TOLERANCE for k in wanted),
        "torch": torch.__version__,
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--public", type=Path, required=True, help="clone of the public repository")
    parser.add_argument("--depth", type=int, default=24, help="blocks of the window encoder")
    parser.add_argument("--seed", type=int, default=0)
    given_arguments = parser.parse_args()
    result = main(given_arguments.public, given_arguments.depth, given_arguments.seed)
    print(json.dumps(result, indent=2))
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if result["equal"] else 1)
