"""How a dense network's maps become a scan's answer, as data: the same rule trains and reads. No torch here.

Source: EXACT §1.5, 1.7, 1.8. `PAPER` is the publication's; what Hilum does otherwise is said at each field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from hilum.errors import WeightsError
from hilum.text.vocabulary import GATES, ORGAN_OF, SLUGS

Gate = Literal["hard", "soft", "given", "either"]
Pool = Literal["topk", "lse", "volume"]

POOL_ML: Mapping[str, float] = MappingProxyType(
    {
        "medical_material": 0.5,
        "arterial_wall_calcification": 0.3,
        "cardiomegaly": 60.0,
        "pericardial_effusion": 10.0,
        "coronary_calcification": 0.2,
        "hiatal_hernia": 4.0,
        "lymphadenopathy": 1.0,
        "emphysema": 3.0,
        "atelectasis": 2.0,
        "lung_nodule": 0.3,
        "lung_opacity": 5.0,
        "fibrotic_sequela": 1.5,
        "pleural_effusion": 10.0,
        "mosaic_attenuation": 20.0,
        "peribronchial_thickening": 1.0,
        "consolidation": 5.0,
        "bronchiectasis": 1.0,
        "septal_thickening": 4.0,
    }
)
"""Volume that a finding of each kind usually has at least, ml: what `pool = "volume"` averages, as
`phantom-small` has them."""


@dataclass(frozen=True)
class DenseRule:
    """Every number between maps and answer.

    Args:
        gate: where evidence of a finding counts: ``hard`` where the network's own organ is above 0.5, without
            a gradient; ``soft`` weighted with the organ's probability, which is then taught by findings too;
            ``given`` in the data set's masks; ``either`` in any of the two. A scan that is read has no
            masks: ``given`` and ``either`` then read as ``hard``.
        opened_by: which organs open a finding's gate: the ``paper``'s one, or ``hilum``'s
            (`vocabulary.GATES`).
        guard: an organ that was not found keeps its likeliest voxels open, so that its findings go on
            learning (EXACT §1.7: they have no gradient).
        pool: ``topk`` mean of the highest `k_low` and `k_high` voxels; ``volume`` of as many as make
            `pool_ml`; ``lse`` log-mean-exp at `sharpness` over the whole gate.
        k_read: voxels at full resolution when a scan is read; None as trained, the paper's 3.
        pool_ml: by finding; what is left out has `POOL_ML`.
    """

    gate: Gate = "hard"
    opened_by: Literal["paper", "hilum"] = "hilum"
    guard: bool = True
    pool: Pool = "topk"
    k_low: int = 6
    k_high: int = 48
    k_read: int | None = None
    sharpness: float = 20.0
    pool_ml: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = [slug for slug in self.pool_ml if slug not in SLUGS]
        if wrong or min(self.k_low, self.k_high, self.k_read or 1) < 1 or not self.sharpness > 0:
            raise ValueError(
                f"k_low, k_high and k_read are 1 or more, sharpness is positive, pool_ml names findings; got "
                f"{self.k_low}, {self.k_high}, {self.k_read}, {self.sharpness}, {wrong}"
            )
        if any(not ml > 0 for ml in self.pool_ml.values()):
            raise ValueError(f"pool_ml are volumes in ml, got {self.pool_ml}")

    @property
    def gates(self) -> tuple[tuple[int, ...], ...]:
        """Organ channels that open each finding's gate."""
        return GATES if self.opened_by == "hilum" else tuple((organ,) for organ in ORGAN_OF)

    @property
    def volumes_ml(self) -> tuple[float, ...]:
        """Pooled volume per finding, ml."""
        return tuple(self.pool_ml.get(slug, POOL_ML[slug]) for slug in SLUGS)

    def facts(self) -> dict[str, Any]:
        """For a card (JSON types only)."""
        return asdict(self)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> DenseRule:
        """The rule of a card, checked: it comes from a file.

        Raises:
            WeightsError: `CONFIG_VALUE`.
        """
        from pydantic import TypeAdapter, ValidationError  # heavy, and only files need it

        try:
            return TypeAdapter(cls).validate_python(dict(facts), strict=False)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise WeightsError(
                "CONFIG_VALUE", f"rule {where} of a model: {first['msg']}", got=first["input"]
            ) from None


PAPER = DenseRule(opened_by="paper", guard=False, k_read=3)
"""As published."""
