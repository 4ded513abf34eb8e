"""A snippet's images in its own study: each with its place, and its depth in a volume, or the reason why not.

Source: RadFinder (arXiv 2603.02026) pairs snippets with slices; how is not public. Row E12: images of an
earlier study are never looked for in this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hilum.errors import InputRefused, ReportError
from hilum.geometry import Geometry
from hilum.io.dicom_place import Depth, ImagePlace, Study, depth_in
from hilum.text.snippets import Snippet


@dataclass(frozen=True, eq=False)
class Resolved:
    """One image of a snippet.

    Args:
        image: its number. place: where it lies. depth: in the volume asked for.
        refusal: why place or depth is not there.
    """

    image: int
    place: ImagePlace | None = None
    depth: Depth | None = None
    refusal: InputRefused | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: numbers, UIDs and millimetres, or the refusal's parts."""
        told: dict[str, Any] = {"image": self.image}
        if self.place is not None:
            told |= {
                "series": self.place.series_number,
                "sop_uid": self.place.sop_uid,
                "z_mm": round(self.place.z_mm, 3),
                "centre_mm_ras": [round(v, 3) for v in self.place.centre_mm],
            }
        if self.place is not None and self.place.frame is not None:
            told["frame"] = self.place.frame
        if self.depth is not None:
            told["depth"] = self.depth.index
        if self.refusal is not None:
            parts = self.refusal.as_dict()
            told["refused"] = {k: parts[k] for k in ("code", "rule", "expected", "got", "hint") if parts[k]}
        return told


def resolve(
    snippet: Snippet, study: Study, target: Geometry | None = None, *, same_frame: bool = False
) -> list[Resolved]:
    """Every image of a snippet, in its order. Refusals are returned, not raised.

    Args:
        snippet: of `mine`. study: of `read_study`. target: a grid whose depth index is wanted.
        same_frame: see `depth_in`.
    """
    if snippet.prior:
        refusal = ReportError(
            "PRIOR_REFERENCE",
            "images of an earlier study are not looked for in this one",
            got="a reference to an earlier study",
        )
        return [Resolved(image, refusal=refusal) for image in snippet.images]
    return [_resolve(snippet, image, study, target, same_frame) for image in snippet.images]


def _resolve(
    snippet: Snippet, image: int, study: Study, target: Geometry | None, same_frame: bool
) -> Resolved:
    place: ImagePlace | None = None
    try:
        place = study.find(snippet.series, image, total=snippet.total)
        depth = None if target is None else depth_in(place, target, same_frame=same_frame)
    except InputRefused as refusal:
        return Resolved(image, place, refusal=refusal)
    return Resolved(image, place, depth)
