"""Which maps answer for which masks, per data set. Data; EXACT §2.2 for the lists and thresholds.

ReXGroundingCT knows 14 categories and the models 18 findings. A category is compared alone only where a
finding means the same: ``1e`` micronodules are a pattern and no nodule, honeycombing is no sequela, and
"other" is anything; they count in the union only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hilum.cohort.records import MaskRef, ScanRecord
from hilum.cohort.sources.rexgrounding import CATEGORIES
from hilum.errors import UsageError
from hilum.text.vocabulary import SLUGS

COVID = ("atelectasis", "lung_opacity", "mosaic_attenuation", "consolidation")
REX = (
    "pleural_effusion", "bronchiectasis", "peribronchial_thickening", "septal_thickening", "atelectasis",
    "lung_opacity", "consolidation", "mosaic_attenuation", "fibrotic_sequela",
)  # fmt: skip

REX_FINDINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "1a": ("peribronchial_thickening",),
        "1b": ("bronchiectasis",),
        "1c": ("emphysema",),
        "1d": ("septal_thickening",),
        "1e": (),
        "1f": (),
        "2a": ("atelectasis", "fibrotic_sequela"),
        "2b": ("atelectasis", "consolidation"),
        "2c": ("lung_opacity",),
        "2d": ("lung_nodule",),
        "2e": ("pleural_effusion",),
        "2f": (),
        "2g": (),
        "2h": (),
    }
)
"""Category -> findings whose maps together answer for it; () where none does."""


@dataclass(frozen=True)
class Protocol:
    """How one data set is examined.

    Args:
        union: findings whose maps are joined. alone: target -> findings that answer for it alone.
        published: absolute threshold of the published figures, None without. empties: scans without any
            mask count as scans without lesions; else they are scans that nobody outlined.
    """

    union: tuple[str, ...]
    alone: Mapping[str, tuple[str, ...]]
    published: float | None = None
    empties: bool = False


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "rexgroundingct": Protocol(
            REX, {CATEGORIES[code]: slugs for code, slugs in REX_FINDINGS.items() if slugs}, 0.20
        ),
        "covid-19-ct-seg": Protocol(COVID, {}, 0.15),
        "mosmed": Protocol(COVID, {}, 0.15),
        "phantom": Protocol(REX, {slug: (slug,) for slug in SLUGS}, None, empties=True),
    }
)
ALIASES: Mapping[str, str] = MappingProxyType(
    {"rexgrounding": "rexgroundingct", "rex": "rexgroundingct", "covid-seg": "covid-19-ct-seg"}
)


def protocol_of(source: str) -> Protocol:
    """By the name of the data set's adapter.

    Raises:
        UsageError: `SOURCE_UNKNOWN`: none of those with outlined findings.
    """
    if source not in PROTOCOLS:
        raise UsageError(
            "SOURCE_UNKNOWN", "localisation is examined where findings are outlined",
            expected=", ".join(PROTOCOLS), got=source,
        )  # fmt: skip
    return PROTOCOLS[source]


def masks_of(source: str, record: ScanRecord) -> Iterator[tuple[MaskRef, str, bool]]:
    """The masks of lesions of a record, the target each stands for ("" for none alone), and whether it is
    part of the union's truth.

    Args:
        source: name of the data set's adapter. record: one scan.
    """
    protocol = protocol_of(source)
    places = {s.mask: s.place for s in record.sentences if s.mask}
    for mask in record.masks:
        kind, _, name = mask.name.partition("/")
        if source == "phantom":
            if kind == "finding":
                yield mask, name, name in protocol.union
        elif source == "rexgroundingct":
            if kind == "finding":
                place = places.get(mask.name, "")
                yield mask, place if place in protocol.alone else "", True
        elif mask.name == "covid_lesion":
            yield mask, "", True
