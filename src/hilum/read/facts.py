"""What `reading.json` says about the scan and about how it was read; acquisition facts only, nothing about a
person."""

from __future__ import annotations

import platform
from importlib.metadata import version

from hilum import __version__
from hilum.read.contract import Output, Reader
from hilum.read.organ_masks import OrganMasks
from hilum.read.place import slice_axis_of
from hilum.read.reading import Check, Grid, Receipt, Scan
from hilum.volume import CTVolume

INFO_KEYS = ("kernel", "contrast", "patient_position", "thickness_mm", "kvp", "manufacturer")
"""What may be said about the acquisition; everything else stays behind."""


def scan_facts(volume: CTVolume) -> Scan:
    """The scan: grid as stored, DICOM numbers, acquisition, checks."""
    known, grid = volume.provenance, volume.source
    return Scan(
        kind=known.kind,
        sha256=known.sha256,
        grid=Grid(
            shape=grid.shape,
            spacing_mm=grid.spacing_mm,
            axcodes=grid.axcodes,
            affine_ras=[[float(v) for v in row] for row in grid.affine_ras],
            frame_uid=grid.frame_uid,
            slice_axis=slice_axis_of(volume),
        ),
        series_uid=known.series_uid,
        series_number=known.series_number,
        images=len(known.slices),
        info={key: str(known.info[key]) for key in INFO_KEYS if known.info.get(key)},
        # `where` of a check names files, and file names may name patients: it stays behind
        checks=[
            Check.model_validate({k: v for k, v in f.as_dict().items() if k != "where"})
            for f in known.findings
        ],
    )


def receipt_of(
    volume: CTVolume, model: Reader, output: Output, masks: OrganMasks, mode: str, notice: str
) -> Receipt:
    """What would be needed to get the reading again."""
    packages = ("numpy", "scipy", "torch", "nibabel", "pydicom", "connected-components-3d")
    trace = output.trace.as_dict() if hasattr(output.trace, "as_dict") else {}
    return Receipt(
        input_sha256=volume.provenance.sha256,
        code_version=__version__,
        model_sha256=model.sha256,
        seed=0,
        mode=mode,
        prep=trace,
        organs_sha256=masks.sha256,
        notes=list(masks.notes),
        versions={"python": platform.python_version(), **{name: version(name) for name in packages}},
        use=notice,
    )
