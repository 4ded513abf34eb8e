"""Features of every scan of a cohort by a frozen backbone, from prepared values and kept on disk.

A scan is shown once: the field in its middle, padded as its preset pads. A volume gives CLS, mean and maximum
of its patches; slices give the mean over slices of CLS and of the mean patch, and the maximum over slices of
both. CLS and mean together are FlexiCT's image embedding before its projection (§1).

A kept file is named by a hash of weights, store, scans and view, so that it can never be another model's.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32
from torch.nn import functional as F

from hilum.cohort.loader import stored_values
from hilum.cohort.pipeline import letters_axis, zscore_slices
from hilum.cohort.store import Store, read_store_file
from hilum.cohort.store_chunks import Three
from hilum.errors import InputRefused, UsageError, WeightsError
from hilum.io.weights import load_weights, save_weights
from hilum.model.patch import patch_sizes
from hilum.model.vit import ViT
from hilum.tensors import VoxelTensor

FORMAT = 1
"""Raised whenever features change, so that kept ones are made anew."""
TOKENS = 8192
"""Tokens that go through the backbone at once; more is no faster on a CPU."""

Pooling = Literal["cls", "mean", "cls+mean", "cls+mean+max"]
POOLINGS: Mapping[Pooling, tuple[str, ...]] = {
    "cls": ("cls",),
    "mean": ("mean",),
    "cls+mean": ("cls", "mean"),
    "cls+mean+max": ("cls", "mean", "max"),
}
BLOCKS = ("cls", "mean", "max")
Block = Float32[np.ndarray, "N F"]


@dataclass(frozen=True)
class FeatureView:
    """How a backbone sees a scan.

    Args:
        kind: ``volume`` through the 3D patch embedding, ``slices`` through the 2D one.
        patch: size of a patch, voxels, one or one per axis.
        field_vox: the field in the scan's middle, voxels of the store along each axis; None takes what the
            store's preset pads or crops to.
        view_vox: voxels that a field of a volume is resized to first, as training does; None: none are.
        every: one axial slice in so many is taken, from half as many on.
        by_slice: each slice is brought to mean 0 and deviation 1 again, as for a model of slices.
        bf16: matrix products in bfloat16.
    """

    kind: Literal["volume", "slices"] = "volume"
    patch: int | tuple[int, ...] = 8
    field_vox: Three | None = None
    view_vox: Three | None = None
    every: int = 4
    by_slice: bool = False
    bf16: bool = False


@dataclass(frozen=True)
class ScanFeatures:
    """Rows in the order of `keys`.

    Args:
        keys: of the scans. blocks: ``cls``, ``mean``, ``max``. facts: what they were made from.
    """

    keys: tuple[str, ...]
    blocks: Mapping[str, Block]
    facts: Mapping[str, Any]

    def pooled(self, pooling: Pooling = "cls+mean") -> Block:
        """One vector per scan."""
        return np.concatenate([self.blocks[name] for name in POOLINGS[pooling]], axis=1)


def scan_features(
    vision: ViT,
    store: Store,
    keys: Sequence[str],
    view: FeatureView,
    *,
    cache: Path | None = None,
    on_scans: Callable[[int], None] | None = None,
) -> ScanFeatures:
    """Features of scans, read from `cache` where they are already there.

    Args:
        vision: the backbone, on the device where it shall run; its mode is left as it was.
        store: prepared scans. keys: which of them, in which order. view: how they are seen.
        cache: folder of kept features.
        on_scans: called with the number of scans just done.

    Raises:
        UsageError: `CONFIG_VALUE` for a view that makes no sense. InputRefused: `PATCH_GRID`; `MODEL_OUTPUT`
            with the scan whose features are not finite. ContainerError: `STORE_DAMAGED`, `NOT_FOUND`.
    """
    facts = feature_facts(vision, store, keys, view)
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    path = None if cache is None else cache / f"{name}.safetensors"
    kept = None if path is None else _kept(path, facts)
    if kept is not None:
        if on_scans is not None:
            on_scans(len(keys))
        return ScanFeatures(tuple(keys), kept, facts)
    blocks = _computed(vision, store, keys, view, on_scans)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(path, blocks, {"features": json.dumps(facts, sort_keys=True)})
    return ScanFeatures(tuple(keys), blocks, facts)


def feature_facts(vision: ViT, store: Store, keys: Sequence[str], view: FeatureView) -> dict[str, Any]:
    """What features are a function of: hashes of weights, store and keys, and the view."""
    how = asdict(view)
    if view.view_vox is None:
        del how["view_vox"]  # features that were kept before there was such a setting are still right
    return {
        "format": FORMAT,
        "weights_sha256": state_sha256(vision),
        "store_sha256": str(read_store_file(store.root)["index_sha256"]),
        "keys_sha256": hashlib.sha256("\n".join(keys).encode("utf-8", "surrogatepass")).hexdigest(),
        "view": how,
    }


def state_sha256(module: torch.nn.Module) -> str:
    """A hash of every parameter's name, shape and bytes, and of what a backbone is configured to."""
    digest = hashlib.sha256(repr(getattr(module, "config", "")).encode())
    for name, tensor in sorted(module.state_dict().items()):
        array = np.ascontiguousarray(tensor.detach().cpu().float().numpy())
        digest.update(f"\0{name}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def centre_field(store: Store, key: str, field_vox: Three | None = None) -> VoxelTensor:
    """The field in the middle of a prepared scan, values as its preset scales them, padded with its smallest.

    Args:
        field_vox: along each axis; None takes what the store's preset pads or crops to.

    Raises:
        UsageError: `CONFIG_VALUE`, the store's preset leaves the size open and none is given.
    """
    size = field_of(store, key) if field_vox is None else field_vox
    row = store.row(key)
    # the larger of field and scan lies about the middle of the other
    start = [(n - k) // 2 if n >= k else -((k - n) // 2) for n, k in zip(row.shape, size, strict=True)]
    return stored_values(store, row, start, size)


def field_of(store: Store, key: str) -> Three:
    """What the store's preset pads or crops to; along an axis that it leaves as it is, the scan's own length.

    Raises:
        UsageError: `CONFIG_VALUE`, the preset does neither.
    """
    if store.prep["fit"] not in ("at-least", "shape"):
        raise UsageError(
            "CONFIG_VALUE",
            "scans of a store have a field of one size, or a size is given",
            expected="a preset that pads or crops to a shape",
            got=f"{store.prep['name']}, fit {store.prep['fit']}",
            hint="Prepare with flexict-3d or flexict-3d-4mm.",
        )
    x, y, z = (wanted or n for wanted, n in zip(store.prep["fit_vox"], store.row(key).shape, strict=True))
    return x, y, z


def _kept(path: Path, facts: Mapping[str, Any]) -> dict[str, Block] | None:
    """Features of an earlier run; None where there are none, or none that can be trusted."""
    if not path.is_file():
        return None
    try:
        tensors, metadata = load_weights(path)
    except WeightsError:
        return None  # they are made again and replaced
    same = metadata.get("features") == json.dumps(facts, sort_keys=True)
    return tensors if same and set(tensors) == set(BLOCKS) else None


@torch.inference_mode()
def _computed(
    vision: ViT,
    store: Store,
    keys: Sequence[str],
    view: FeatureView,
    on_scans: Callable[[int], None] | None,
) -> dict[str, Block]:
    _check(view, store)
    was_training = vision.training
    vision.eval()
    rows: list[list[torch.Tensor]] = []
    try:
        for some in _batches(store, keys, view):
            fields = torch.stack([centre_field(store, key, view.field_vox) for key in some])
            if view.kind == "volume":
                rows.append(_volume_rows(vision, fields, view))
            else:
                rows.append(_slice_rows(vision, fields[0], view, letters_axis(store.prep["axes"], "S")))
            _require_finite(rows[-1], some)
            if on_scans is not None:
                on_scans(len(some))
    finally:
        vision.train(was_training)
    return {name: torch.cat([row[i] for row in rows]).numpy() for i, name in enumerate(BLOCKS)}


def _check(view: FeatureView, store: Store) -> None:
    if min(view.every, *(view.field_vox or (1,)), *(view.view_vox or (1,))) < 1:
        raise UsageError("CONFIG_VALUE", "a view has a field and slices", expected=">= 1", got=view)
    if view.kind == "volume" and store.prep["values"] == "zscore-slice":
        raise UsageError(
            "CONFIG_VALUE",
            "a store scaled by slice shows slices",
            expected="kind slices, or another store",
            got=f"volumes of {store.prep['name']}",
        )


def _batches(store: Store, keys: Sequence[str], view: FeatureView) -> Iterator[Sequence[str]]:
    """Scans of one field together, as many as `TOKENS` allows; slices of one scan at a time."""
    most = 1
    if view.kind == "volume" and keys:
        size = view.view_vox or view.field_vox or field_of(store, keys[0])
        most = max(1, TOKENS // _tokens_of(size, view))
    if view.field_vox is None and 0 in store.prep["fit_vox"]:
        most = 1  # each scan has a field of its own
    for start in range(0, len(keys), most):
        yield keys[start : start + most]


def _tokens_of(size: tuple[int, ...], view: FeatureView) -> int:
    """Patches of one picture."""
    sizes = patch_sizes(view.patch, len(size))
    return max(1, math.prod(n // p for n, p in zip(size, sizes, strict=True)))


def _tokens(vision: ViT, pictures: torch.Tensor, view: FeatureView) -> tuple[torch.Tensor, torch.Tensor]:
    device = vision.cls.device
    half = torch.autocast(device.type, torch.bfloat16) if view.bf16 else nullcontext()
    with half:
        out = vision(pictures.to(device), patch=view.patch)
    return out.cls.float().cpu(), out.patches.float().cpu()


def _volume_rows(vision: ViT, fields: torch.Tensor, view: FeatureView) -> list[torch.Tensor]:
    shown = fields[:, None]
    if view.view_vox is not None:
        shown = F.interpolate(shown, view.view_vox, mode="trilinear")
    cls, patches = _tokens(vision, shown, view)
    return [cls, patches.mean(1), patches.amax(1)]


def _slice_rows(vision: ViT, field: VoxelTensor, view: FeatureView, axis: int) -> list[torch.Tensor]:
    slices = field.movedim(axis, 0)
    slices = slices[view.every // 2 :: view.every] if view.every <= len(slices) else slices[:1]
    seen = slices[slices.flatten(1).amax(1) > slices.flatten(1).amin(1)]
    slices = seen if len(seen) else slices[:1]  # padding beyond the scan's ends shows nothing
    if view.by_slice:
        slices = zscore_slices(slices, 0)
    parts = []
    for some in slices.split(max(1, TOKENS // _tokens_of(tuple(slices.shape[1:]), view))):
        cls, patches = _tokens(vision, some[:, None], view)
        parts.append(torch.stack([cls, patches.mean(1)], dim=1))
    both = torch.cat(parts)
    mean = both.mean(0)
    return [mean[:1], mean[1:], both.amax(0).flatten()[None]]


def _require_finite(rows: list[torch.Tensor], keys: Sequence[str]) -> None:
    fine = torch.stack([row.isfinite().all(1) for row in rows]).all(0)
    if not fine.all():
        wrong = [key for key, good in zip(keys, fine.tolist(), strict=True) if not good]
        raise InputRefused(
            "MODEL_OUTPUT", "features are finite", expected="numbers", got=f"none of {wrong[0]}"
        )
