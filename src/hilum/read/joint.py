"""A scan in one space with texts, whole and depth by depth, and where in it a sentence belongs.

Source: RadFinder §1.2 and 1.5c. A sentence is compared with every depth of the scan; the softmax of cosines
over tau is its curve over depth. What is ours: the answer in millimetres between the depths, its spread, and
depths of 6 or 3 mm by thinner patches (the paper's are 12 mm and its answer is one of them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32

from hilum.cohort.pipeline import PipelineTrace
from hilum.errors import UsageError
from hilum.model.encoder import Encoder
from hilum.model.patch import patch_sizes
from hilum.objective.depth import TAU
from hilum.read.encoder import LoadedEncoder, Scan, opened
from hilum.read.encoder_run import Progress, in_batches
from hilum.read.encoder_windows import Windows, cover, padding, uncropped
from hilum.read.maps import finite
from hilum.types import EmbeddingRows, EmbeddingVector

DepthCentres = Float32[np.ndarray, "D"]
"""mm RAS+ along Z, from below upwards."""
NEAR = 1.5
"""Depths to each side of the highest that make the answer between depths."""


@dataclass(frozen=True, eq=False)
class ScanInSpace:
    """One scan.

    Args:
        report: embedding to be compared with whole reports. disease: with prompts. Both of length 1.
        depths: embedding of each depth that the scan has. depth_mm: where it lies.
        trace: the way back to the volume's grid.
    """

    report: EmbeddingVector
    disease: EmbeddingVector
    depths: EmbeddingRows
    depth_mm: DepthCentres
    trace: PipelineTrace


@dataclass(frozen=True, eq=False)
class Located:
    """Where a sentence belongs.

    Args:
        z_mm: mm RAS+ along Z. spread_mm: standard deviation of the curve. share: of each depth, sums to 1.
    """

    z_mm: float
    spread_mm: float
    share: DepthCentres


def put_in_space(
    model: LoadedEncoder,
    scan: Scan,
    *,
    depth_mm: float | None = None,
    batch: int = 4,
    progress: Progress | None = None,
) -> ScanInSpace:
    """All of a scan, in windows that do not overlap.

    Args:
        model: of kind 3d-joint. scan: a volume or its path. depth_mm: thickness of a depth; None takes the
            config's patch. batch: windows at once. progress: called after each batch.

    Raises:
        InputRefused: the input cannot be trusted. UsageError: `MODEL_INPUT` for a model of another kind,
            `CONFIG_VALUE` for depths that do not divide a window, or a batch of none.
        RunError: `OUTPUT_NONFINITE`.
    """
    encoder, field = model.encoder, model.config.field_vox
    if encoder.joint is None or field is None:
        raise not_joint(model)
    tensor, trace = uncropped(model.prep).apply(opened(scan))
    sizes = _sizes(model, trace.grid.spacing_mm[2], depth_mm)
    windows = cover(trace.grid.shape, field, sizes, overlap=0.0)
    both, depths = _read(model, tensor[0, 0], trace, windows, sizes, batch, progress)
    return _combined(encoder, both, depths, windows, trace)


@torch.inference_mode()
def locate(model: LoadedEncoder, scan: ScanInSpace, sentences: Sequence[str]) -> list[Located]:
    """At which depth of the scan each sentence belongs.

    Raises:
        UsageError: `MODEL_INPUT` for a model of another kind, or one text that is not in a list.
    """
    texts = model.encode_text(sentences, snippets=True)
    logits = torch.from_numpy(texts @ scan.depths.T).double() / TAU
    return [_located(row.numpy(), scan.depth_mm) for row in logits.softmax(1)]


def not_joint(model: LoadedEncoder) -> UsageError:
    """The error of a call that only a model of windows and texts can answer."""
    return UsageError(
        "MODEL_INPUT",
        "a place in a scan needs a model of windows and texts",
        expected="kind 3d-joint",
        got=f"kind {model.config.kind}",
        hint="Train one, or import RadFinder.",
    )


def _sizes(model: LoadedEncoder, spacing_mm: float, depth_mm: float | None) -> tuple[int, ...]:
    """Voxels of a patch; along Z as thick as was asked for."""
    own = patch_sizes(model.config.patch, 3)
    if depth_mm is None:
        return own
    thick, window = round(depth_mm / spacing_mm), model.config.field_vox
    if thick < 1 or abs(thick * spacing_mm - depth_mm) > 1e-3 or window is None or window[2] % thick:
        raise UsageError(
            "CONFIG_VALUE",
            "depths divide a window evenly",
            expected=f"{spacing_mm:g} mm times a divisor of {window[2] if window else '?'}",
            got=f"{depth_mm:g} mm",
        )
    return (*own[:2], thick)


@torch.inference_mode()
def _read(
    model: LoadedEncoder,
    scan: torch.Tensor,
    trace: PipelineTrace,
    windows: Windows,
    sizes: tuple[int, ...],
    batch: int,
    progress: Progress | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every window by the window encoder, in the order of `windows`."""
    fill, done = padding(trace, scan), 0
    both, depths = [], []
    for some in in_batches(list(windows), batch):
        shown = torch.stack([windows.show(scan, at, fill, sizes) for at in some])[:, None]
        with model.runner.autocast():
            read = model.encoder.read_windows(shown.to(model.runner.device), sizes)
        both.append(read.both.float())
        depths.append(read.depths.float())
        done += len(some)
        if progress is not None:
            progress(done, len(windows))
    return torch.cat(both), torch.cat(depths)


@torch.inference_mode()
def _combined(
    encoder: Encoder, both: torch.Tensor, depths: torch.Tensor, windows: Windows, trace: PipelineTrace
) -> ScanInSpace:
    assert encoder.joint is not None, "asked before"
    grid = (1, *(len(axis) for axis in windows.starts))
    present = torch.ones(grid, dtype=torch.bool, device=both.device)
    scans = encoder.joint.scans(both.unflatten(0, grid), present)
    rows, _ = encoder.joint.depths(depths.unflatten(0, grid), present)
    centres = windows.geometry(trace.grid)
    middle = [(n - 1) / 2 for n in centres.shape[:2]]
    mm = centres.to_mm(np.array([(*middle, k) for k in range(centres.shape[2])]))
    # what is padding alone is no depth of the scan
    there = _inside(trace, mm)
    return ScanInSpace(
        finite(scans.report[0].cpu().numpy(), "the embedding of the scan"),
        finite(scans.disease[0].cpu().numpy(), "the embedding of the scan"),
        finite(rows[0].cpu().numpy()[there], "the embeddings of depths"),
        mm[there, 2].astype(np.float32),
        trace,
    )


def _inside(trace: PipelineTrace, mm: np.ndarray) -> np.ndarray:
    """Which depths lie in the volume, by their Z; the nearest one if none does."""
    corners = trace.source.corners_mm()[:, 2]
    inside = (mm[:, 2] >= corners.min()) & (mm[:, 2] <= corners.max())
    if not inside.any():
        inside[np.abs(mm[:, 2] - corners.mean()).argmin()] = True
    return inside


def _located(share: np.ndarray, depth_mm: DepthCentres) -> Located:
    """The mean over the depths around the highest, and the spread of the whole curve."""
    place = depth_mm.astype(np.float64)
    step = float(np.diff(place).mean()) if len(place) > 1 else 1.0
    near = np.abs(place - place[int(share.argmax())]) <= NEAR * abs(step)
    z_mm = float((share * near * place).sum() / (share * near).sum())
    mean = float((share * place).sum())
    spread = float(np.sqrt(max(0.0, (share * (place - mean) ** 2).sum())))
    return Located(z_mm, spread, share.astype(np.float32))
