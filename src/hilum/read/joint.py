"""A scan in one space with texts, whole and depth by depth, and where in it a sentence belongs.

Source: RadFinder §1.2 and 1.5c. A sentence is compared with every depth of the scan; the softmax of cosines
over tau is its curve over depth. What is ours: the answer is the curve's median, in millimetres between the
depths, and has a spread. The paper's answer is the highest depth; on validation phantoms the median was
nearer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32

from hilum.errors import UsageError
from hilum.objective.depth import TAU
from hilum.read.encoder import LoadedEncoder, Scan, opened
from hilum.read.encoder_run import Progress
from hilum.read.maps import finite
from hilum.read.reader_windows import ReadWindows
from hilum.read.windows import windows_of
from hilum.types import EmbeddingRows, EmbeddingVector

DepthCentres = Float32[np.ndarray, "D"]
"""mm RAS+ along Z, from below upwards."""


@dataclass(frozen=True, eq=False)
class ScanInSpace:
    """One scan.

    Args:
        report: embedding to be compared with whole reports. disease: with prompts. Both of length 1.
        depths: embedding of each depth that the scan has. depth_mm: where it lies.
    """

    report: EmbeddingVector
    disease: EmbeddingVector
    depths: EmbeddingRows
    depth_mm: DepthCentres


@dataclass(frozen=True, eq=False)
class Located:
    """Where a sentence belongs.

    Args:
        z_mm: median of the curve, mm RAS+ along Z. spread_mm: its standard deviation. share: of each depth,
            sums to 1.
    """

    z_mm: float
    spread_mm: float
    share: DepthCentres


@torch.inference_mode()
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
        model: of kind 3d-joint. scan: a volume or its path. depth_mm: thickness of a depth; None takes that
            of the training. batch: windows at once. progress: called after each batch.

    Raises:
        InputRefused: the input cannot be trusted. UsageError: `MODEL_INPUT` for a model of another kind,
            `CONFIG_VALUE` for depths that do not divide a window, or a batch of none.
        RunError: `OUTPUT_NONFINITE`.
    """
    if model.encoder.joint is None:
        raise not_joint(model)
    thick = model.config.depth_mm if depth_mm is None else depth_mm
    return in_space(model, windows_of(model, batch, progress).read(opened(scan), thick))


@torch.inference_mode()
def in_space(model: LoadedEncoder, read: ReadWindows) -> ScanInSpace:
    """A scan whose windows are read already, kept ones for instance.

    Raises:
        UsageError: `MODEL_INPUT` for a model of another kind. RunError: `OUTPUT_NONFINITE`.
    """
    joint = model.encoder.joint
    if joint is None:
        raise not_joint(model)
    device = model.runner.device
    both, depths = read.both.to(device), read.depths.to(device)
    present = torch.ones(both.shape[:4], dtype=torch.bool, device=device)
    scans = joint.scans(both, present)
    rows, _ = joint.depths(depths, present)
    return ScanInSpace(
        finite(scans.report[0].cpu().numpy(), "the embedding of the scan"),
        finite(scans.disease[0].cpu().numpy(), "the embedding of the scan"),
        finite(rows[0].cpu().numpy()[read.there], "the embeddings of depths"),
        read.depth_mm[read.there],
    )


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


def _located(share: np.ndarray, depth_mm: DepthCentres) -> Located:
    """The median of the curve, each depth spread evenly over its thickness, and the curve's deviation."""
    place = depth_mm.astype(np.float64)
    step = float(np.diff(place).mean()) if len(place) > 1 else 1.0
    below = np.concatenate([[0.0], np.cumsum(share)]) / share.sum()
    edges = np.append(place - step / 2, place[-1] + step / 2)
    z_mm = float(np.interp(0.5, below, edges))
    mean = float((share * place).sum())
    spread = float(np.sqrt(max(0.0, (share * (place - mean) ** 2).sum())))
    return Located(z_mm, spread, share.astype(np.float32))
