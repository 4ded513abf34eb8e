"""What a preparation does, as data, and the ones that the published methods use. Imports neither torch nor
NumPy.

A `Pipeline` is the general preparation for stores and for foreign weights; `cohort.prep.Prep` is the one of
the models that ship: the chest on a grid of its own. Both give a tensor, and a trace whose `invert` leads
back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from hilum.errors import UsageError, WeightsError

if TYPE_CHECKING:
    from hilum.cohort.pipeline import PipelineTrace
    from hilum.tensors import ScanBatch
    from hilum.volume import CTVolume

Anchor = Literal["first", "centre", "extent"]
Values = Literal["hu", "thousandth", "unit", "zscore-scan", "zscore-slice", "clahe"]
Fit = Literal["keep", "shape", "at-least", "pad-multiple", "crop-multiple"]
Codec = Literal["zstd", "lz4"]
Three = tuple[float, float, float]
_AXES = ["AP", "RL", "SI"]
LATER: Mapping[str, str] = MappingProxyType({"odd": "last"})
"""Settings that came after format 1 of a store, and what held before."""


@dataclass(frozen=True)
class Pipeline:
    """Orient, resample, clip, scale, crop and pad: every number of it. Axis triples follow `axes`.

    Args:
        name: for receipts. axes: letters of the tensor's axes, each grows towards its letter.
        spacing_mm: of the grid; None keeps the scan's own.
        anchor: ``first`` keeps the first voxel in place and ends nearest the last one; ``centre`` keeps the
            middle and never reaches beyond the field; ``extent`` fills the field with whole voxels, so that
            the spacing is only nearly `spacing_mm`.
        smooth: a triangle filter as wide as the coarser grid instead of plain linear interpolation.
        clip_hu: HU below and above are cut; None keeps all. clip_first: before resampling, not after.
        values: ``hu``; ``thousandth`` HU / 1000; ``unit`` clip_hu -> 0..1; ``zscore-scan`` by mean and
            deviation of the resampled scan, ``zscore-slice`` of each axial slice; ``clahe`` window by
            percentiles and CLAHE per axial slice (EXACT §1.3), 0..1.
        squash_vox: then the whole field to this many voxels (EXACT §1.3).
        coarser_mm: then to this spacing, smoothed.
        fit: ``shape`` crops and pads to `fit_vox` about the centre, ``at-least`` only pads;
            ``pad-multiple`` and ``crop-multiple`` go up or down to whole multiples of `fit_vox` (one at
            least).
        odd: where the odd voxel of a crop or of padding goes, ``last`` or ``first`` along its axis.
        pad: what padding holds: ``low`` the lower end of `clip_hu`, ``min`` the smallest value of the scan.
        dtype: how a store keeps it: ``int16`` in steps of 1 HU (clahe: 1/32640), or ``float16`` values.
        codec: of the store's chunks: ``zstd``, or ``lz4`` for larger files that are read faster.
    """

    name: str
    axes: str = "RAS"
    spacing_mm: Three | None = None
    anchor: Anchor = "first"
    smooth: bool = False
    clip_hu: tuple[float, float] | None = (-1000.0, 1000.0)
    clip_first: bool = False
    values: Values = "thousandth"
    squash_vox: tuple[int, int, int] | None = None
    coarser_mm: Three | None = None
    fit: Fit = "keep"
    fit_vox: tuple[int, int, int] = (1, 1, 1)
    odd: Literal["last", "first"] = "last"
    pad: Literal["low", "min"] = "low"
    dtype: Literal["int16", "float16"] = "int16"
    codec: Codec = "lz4"

    def apply(self, volume: CTVolume) -> tuple[ScanBatch, PipelineTrace]:
        """HU -> tensor [1, 1, U, V, W] on `axes` and the trace that undoes the grid.

        Raises:
            UsageError: `MEMORY_PLAN` when the prepared grid is larger than any chest CT.
        """
        from hilum.cohort.pipeline import apply

        return apply(self, volume)

    def facts(self) -> dict[str, Any]:
        """Every setting, for receipts and for the store (JSON types only). One that came later is there only
        where it is not what all did before: stores that are older stay what they are."""
        told = {k: v for k, v in asdict(self).items() if k not in LATER or v != LATER[k]}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in told.items()}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Pipeline:
        """The pipeline that `facts` are of, checked: they come from a file.

        Raises:
            WeightsError: `CONFIG_KEY` for an unknown or missing setting, `CONFIG_VALUE` for a value that is
                none.
        """
        known = [f.name for f in fields(cls)]
        if wrong := sorted(set(facts) - set(known)) or sorted({"name"} - set(facts)):
            near = get_close_matches(wrong[0], known, n=1)
            hint = f"Did you mean {near[0]}?" if near and wrong[0] not in known else None
            raise WeightsError(
                "CONFIG_KEY", "a preparation has known settings", expected=known, got=wrong, hint=hint
            )
        from pydantic import TypeAdapter, ValidationError  # heavy, and only files need it

        try:
            found = TypeAdapter(cls).validate_python(dict(facts))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise WeightsError(
                "CONFIG_VALUE", f"setting {where} of a preparation: {first['msg']}", got=first["input"]
            ) from None
        found._require_sense()
        return found

    def _require_sense(self) -> None:
        """What types do not say.

        Raises:
            WeightsError: `CONFIG_VALUE`.
        """
        sizes = [s for triple in (self.spacing_mm, self.coarser_mm) for s in triple or ()]
        low, high = self.clip_hu or (0.0, 1.0)
        wrong: tuple[str, object] | None = None
        if (
            sorted(pair for axis in self.axes for pair in _AXES if axis in pair) != _AXES
            or len(self.axes) != 3
        ):
            wrong = ("axes are a letter of RL, AP and SI each", self.axes)
        elif not all(0 < size < math.inf for size in sizes):
            wrong = ("voxels have a size in mm", sizes)
        elif not -math.inf < low < high < math.inf:
            wrong = ("clip_hu is a range of HU", self.clip_hu)
        elif min(self.squash_vox or (1,)) < 1 or min(self.fit_vox) < (0 if self.fit == "shape" else 1):
            wrong = ("grids have voxels along every axis", (self.squash_vox, self.fit_vox))
        if wrong is not None:
            raise WeightsError("CONFIG_VALUE", f"of a preparation, {wrong[0]}", got=wrong[1])


_EXACT = Pipeline(
    "exact",
    axes="SRA",
    spacing_mm=(3.0, 1.0, 1.0),
    anchor="extent",
    clip_first=True,
    values="clahe",
    squash_vox=(64, 128, 128),
)

# FlexiCT §2: z-score of the whole scan before any crop, padded with its smallest value.
_FLEXICT_3D = Pipeline(
    "flexict-3d",
    axes="LPS",
    spacing_mm=(2.0, 2.0, 2.0),
    values="zscore-scan",
    fit="at-least",
    fit_vox=(160, 160, 160),
    pad="min",
)

_HILUM = (
    # Kept as it is: for reading crops of the scan itself, and as the plainest of stores.
    Pipeline("native", clip_hu=(-1024.0, 3071.0)),
    # FlexiCT §3: 384 pixels in the plane; every slice is kept, training chooses among them.
    Pipeline(
        "flexict-2d",
        axes="LPS",
        spacing_mm=(1.5, 1.5, 1.5),
        values="zscore-slice",
        fit="shape",
        fit_vox=(384, 384, 0),
        pad="min",
    ),
    _FLEXICT_3D,
    # The same field at half the resolution, for models that train on a few cores.
    replace(
        _FLEXICT_3D, name="flexict-3d-4mm", spacing_mm=(4.0, 4.0, 4.0), smooth=True, fit_vox=(80, 80, 80)
    ),
    _EXACT,
    # The same intensities; millimetres stay millimetres and nothing aliases.
    replace(
        _EXACT,
        name="exact-mm",
        axes="RAS",
        spacing_mm=(1.0, 1.0, 3.0),
        squash_vox=None,
        coarser_mm=(3.0, 3.0, 3.0),
        fit="pad-multiple",
        fit_vox=(16, 16, 16),
    ),
    # A field of 384 mm at twice that voxel: what a few cores train on.
    replace(
        _EXACT,
        name="exact-6mm",
        axes="RAS",
        spacing_mm=(1.0, 1.0, 3.0),
        squash_vox=None,
        coarser_mm=(6.0, 6.0, 6.0),
        fit="shape",
        fit_vox=(64, 64, 64),
    ),
    # RadFinder §1.2, 1.4. The original crops up to a window of anatomy per axis; padded here.
    Pipeline(
        "radfinder",
        spacing_mm=(0.75, 0.75, 3.0),
        clip_first=True,
        values="unit",
        fit="pad-multiple",
        fit_vox=(128, 128, 32),
    ),
    # CT-CLIP (exact.md §4) takes axes as stored, which for CT-RATE's fixed files are LPS; here by affine.
    Pipeline(
        "ct-clip",
        axes="SLP",
        spacing_mm=(1.5, 0.75, 0.75),
        anchor="extent",
        clip_first=True,
        fit="shape",
        fit_vox=(240, 480, 480),
    ),
    # COLIPRI (radfinder.md §2.1), RAS since version 0.1.2 of its package; before SAR, as its card prints.
    Pipeline(
        "colipri",
        spacing_mm=(2.0, 2.0, 2.0),
        anchor="centre",
        fit="shape",
        fit_vox=(192, 192, 192),
        odd="first",
        pad="min",
    ),
)

PIPELINES: Mapping[str, Pipeline] = MappingProxyType({p.name: p for p in _HILUM})
"""Every preset by name."""

PRESETS = tuple(PIPELINES)

_PAPER: Mapping[str, Mapping[str, Any]] = {
    "radfinder": {"fit": "crop-multiple"},
    "flexict-3d": {"fit": "shape"},
    "flexict-3d-4mm": {"fit": "shape"},
    "exact": {"clip_hu": None},
}
"""Where the published numbers depend on something that Hilum does otherwise: RadFinder's crop, FlexiCT's
centre crop of 320 mm for reports, EXACT's unclamped internal cohort."""


def pipeline(name: str, *, convention: Literal["hilum", "paper"] = "hilum") -> Pipeline:
    """The preset of that name; ``paper`` as the publication had it where Hilum differs.

    Raises:
        UsageError: `PRESET_UNKNOWN`.
    """
    if name not in PIPELINES:
        raise UsageError(
            "PRESET_UNKNOWN", "a preparation is one of the presets", expected=" | ".join(PRESETS), got=name
        )
    changed = _PAPER.get(name, {}) if convention == "paper" else {}
    return replace(PIPELINES[name], **changed)
