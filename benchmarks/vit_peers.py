"""One side of `vit_speed.py`, in a process of its own so that its peak memory is its own.

Reads one job (JSON) as its argument and prints one line of JSON.
"""

from __future__ import annotations

import importlib
import json
import resource
import statistics
import sys
import time
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from hilum.convert.run import import_encoder
from hilum.io.encoder_file import load_encoder
from hilum.io.weights import preset_data
from hilum.model.encoder import build_encoder, load_tensors
from hilum.model.preset import BackbonePreset
from hilum.model.vit import ViT
from hilum.model.vit_config import ViTConfig

RENAMED = {
    "patch_embed_2D.proj": "patch_2d",
    "patch_embed_3D.proj": "patch_3d",
    "cls_token": "cls",
    "storage_tokens": "registers",
    "norm1": "norm_attention",
    "attn.": "attention.",
    "ls1.gamma": "scale_attention",
    "norm2": "norm_mlp",
    "mlp.fc1": "mlp.up",
    "mlp.fc2": "mlp.down",
    "ls2.gamma": "scale_mlp",
}
"""Names of the public code's parameters and of ours."""


def config_of(preset: str) -> ViTConfig:
    """The preset's numbers; nothing random, so that every side does the same work."""
    return replace(BackbonePreset.from_dict(preset_data(preset)).net, drop_path=0.0, rescale=1.0)


class PlainViT(nn.Module):
    """The same width, depth and tokens out of torch's own parts: a convolution, learned places and
    `nn.TransformerEncoder`."""

    def __init__(self, config: ViTConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        conv = nn.Conv3d if len(shape) == 3 else nn.Conv2d
        self.patch = conv(config.channels, config.width, config.patch, stride=config.patch)
        count = config.prefix
        patches = 1
        for n in shape:
            patches *= n // config.patch
        self.prefix = nn.Parameter(0.02 * torch.randn(1, count, config.width))
        self.places = nn.Parameter(0.02 * torch.randn(1, patches, config.width))
        layer = nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            config.mlp * config.width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        norm = nn.LayerNorm(config.width)
        self.encoder = nn.TransformerEncoder(layer, config.depth, norm, enable_nested_tensor=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """All tokens."""
        tokens = self.patch(image).flatten(2).transpose(1, 2) + self.places
        return self.encoder(torch.cat([self.prefix.expand(len(image), -1, -1), tokens], dim=1))


def public_model(config: ViTConfig, checkout: str) -> nn.Module:
    """The public code's backbone from a checkout, without importing its text tower."""
    package = types.ModuleType("flexi_ct")
    package.__path__ = [str(Path(checkout) / "flexi_ct")]
    sys.modules["flexi_ct"] = package
    return importlib.import_module("flexi_ct.models").Flexi_CT_Backbone(
        patch_size=config.patch,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        ffn_ratio=config.mlp,
        qkv_bias=False,
        layerscale_init=config.layer_scale,
        n_storage_tokens=config.registers,
        pos_embed_rope_dtype="bf16" if config.rope_bf16 else "fp32",
    )


def ours_of(public: nn.Module, config: ViTConfig) -> ViT:
    """Our model with the public model's weights, strictly."""
    state = {}
    for name, parameter in public.named_parameters():
        for theirs, ours in RENAMED.items():
            name = name.replace(theirs, ours)
        state[name] = parameter.detach().flatten() if name == "mask_token" else parameter.detach()
    model = ViT(config)
    model.load_state_dict(state)
    return model.eval()


def agreement(job: dict[str, Any]) -> dict[str, float]:
    """Largest differences of outputs on random weights, both patch sizes, slices and volumes."""
    worst = {}
    for bf16 in (False, True):
        config = replace(config_of(job["preset"]), rope_bf16=bf16)
        public = public_model(config, job["checkout"]).eval()
        generator = torch.Generator().manual_seed(0)
        for parameter in public.parameters():
            nn.init.normal_(parameter, std=0.2, generator=generator)
        ours = ours_of(public, config)
        for shape in ((96, 64), (32, 48, 16)):
            for patch in (8, 16):
                image = torch.randn(2, 1, *shape, generator=generator)
                getattr(public, f"patch_embed_{len(shape)}D").set_patch_size(patch)
                with torch.inference_mode():
                    mask = torch.rand(ours(image, patch=patch).patches.shape[:2], generator=generator) < 0.4
                    out = ours(image, patch=patch, mask=mask)
                    other = public.forward_features(image, mask)
                pairs = (
                    (out.cls, other["x_norm_clstoken"]),
                    (out.registers, other["x_storage_tokens"]),
                    (out.patches, other["x_norm_patchtokens"]),
                )
                rope = "bf16" if bf16 else "fp32"
                label = f"{len(shape)}D, patch {patch}, rope {rope}"
                worst[label] = max((a - b).abs().max().item() for a, b in pairs)
    return worst


def imported(job: dict[str, Any]) -> dict[str, float]:
    """Largest differences after `hilum import`: the public model's weights through a torch archive, the
    public model on [Z, Y, X] and ours on [X, Y, Z]."""
    config = replace(config_of(job["preset"]), rope_bf16=True)
    public = public_model(config, job["checkout"]).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in public.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    state = {f"backbone.{name}": tensor for name, tensor in public.state_dict().items()}
    ours = through_import("flexict", {"teacher": state}, kind="3d")
    worst = {}
    for shape in ((96, 64), (32, 48, 16)):
        back = list(range(len(shape) + 1, 1, -1))
        for patch in (8, 16):
            image = torch.randn(2, 1, *shape, generator=generator)
            getattr(public, f"patch_embed_{len(shape)}D").set_patch_size(patch)
            with torch.inference_mode():
                out = ours(image.permute(0, 1, *back), patch=patch)
                other = public.forward_features(image)
            pairs = (
                (out.cls, other["x_norm_clstoken"]),
                (out.registers, other["x_storage_tokens"]),
                (out.maps().permute(0, 1, *back).flatten(2).mT, other["x_norm_patchtokens"]),
            )
            worst[f"{len(shape)}D, patch {patch}"] = max((a - b).abs().max().item() for a, b in pairs)
    return worst


def imported_windows(job: dict[str, Any]) -> dict[str, float]:
    """The same of SPECTRE's backbone, a small one."""
    public = public_spectre(job["spectre"], (128, 128, 64), 180, 4, 2).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in public.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    ours = through_import("spectre", public.state_dict())
    image = torch.rand(2, 1, 128, 128, 64, generator=generator)
    with torch.inference_mode():
        out, other = ours(image), public(image)
    pairs = ((out.cls, other[:, 0]), (out.patches, other[:, 1:]))
    return {"3D, patch 16 x 16 x 8": max((a - b).abs().max().item() for a, b in pairs)}


def public_spectre(folder: str, shape: tuple[int, int, int], width: int, depth: int, heads: int) -> nn.Module:
    """SPECTRE's backbone from a folder with its package `spectre`, without the rest of that package. It needs
    timm and huggingface_hub."""
    for name in ("spectre", "spectre.models", "spectre.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(folder) / name.replace(".", "/"))]
        sys.modules[name] = package
    for part in ("_utils", "modeling"):
        module = importlib.import_module(f"spectre.utils.{part}")
        vars(sys.modules["spectre.utils"]).update(
            {name: value for name, value in vars(module).items() if not name.startswith("__")}
        )
    return importlib.import_module("spectre.models.vision_transformer").VisionTransformer(
        img_size=shape,
        patch_size=(16, 16, 8),
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        qkv_bias=True,
        norm_layer=nn.LayerNorm,
        num_classes=0,
        global_pool="",
        pos_embed="rope",
        rope_kwargs={"base": 1000.0},
        init_values=1.0,
    )


def through_import(family: Any, content: Any, **options: Any) -> ViT:
    """The backbone of an encoder folder that `hilum import` made of a torch archive."""
    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "public.pth", Path(folder) / "encoder"
        torch.save(content, source)
        import_encoder(family, source, target, **options)
        file = load_encoder(target)
        encoder = build_encoder(file.config)
        load_tensors(encoder, {name: torch.from_numpy(value) for name, value in file.tensors.items()})
    return encoder.vision.eval()


def patch_tokens(job: dict[str, Any], config: ViTConfig) -> tuple[nn.Module, Callable[[Any], torch.Tensor]]:
    """A side's model and how to get its patch tokens."""
    if job["side"] == "plain":
        plain = PlainViT(config, tuple(job["shape"]))
        return plain, lambda image: plain(image)[:, config.prefix :]
    if job["side"] == "public":
        public = public_model(config, job["checkout"])
        return public, lambda image: public.forward_features(image)["x_norm_patchtokens"]
    ours = ViT(config)
    return ours, lambda image: ours(image).patches


def speed(job: dict[str, Any]) -> dict[str, float]:
    """Tokens per second and peak memory of a task."""
    config, device = config_of(job["preset"]), torch.device(job["device"])
    torch.manual_seed(0)
    model, tokens_of = patch_tokens(job, config)
    model.to(device).train(job["task"] == "step")
    image = torch.randn(job["batch"], config.channels, *job["shape"], device=device)
    optim = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            return tokens_of(image)

    def step() -> torch.Tensor:
        optim.zero_grad()
        out = tokens_of(image)
        out.square().mean().backward()
        optim.step()
        return out

    run = step if job["task"] == "step" else forward
    count = run().shape[:2].numel()
    seconds = []
    for _ in range(job["repeats"]):
        start = time.perf_counter(), time.process_time()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    wall_s, cpu_s = (statistics.median(column) for column in zip(*seconds, strict=True))
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1e6
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"tokens": count, "wall_s": wall_s, "cpu_s": cpu_s, "peak_mb": peak}


def main() -> None:
    """Do the job."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    tasks = {"agree": agreement, "import": imported, "import spectre": imported_windows}
    task = tasks.get(job["task"], speed)
    print(json.dumps(task(job)))


if __name__ == "__main__":
    main()
