"""The words: 18 findings in CT-RATE's order, seven organ channels, and which finding lives in which organ.

Source: CT-RATE column order; EXACT §1.4, §1.5 (`FINDINGS[i].organ` is the fixed disease -> organ table).
"""

from __future__ import annotations

from dataclasses import dataclass

ORGAN_CHANNELS = ("lung", "airways", "pleura", "mediastinum", "heart", "oesophagus", "global")
"""EXACT's seven channels; `global` is the union of the nine regions."""

REGIONS = ("lung", "airways", "pleura", "mediastinum", "heart", "oesophagus", "bone", "thyroid", "abdomen")
"""RadGenome-ChestCT's nine regions, in its order."""

LOBES = ("right upper lobe", "right middle lobe", "right lower lobe", "left upper lobe", "left lower lobe")


@dataclass(frozen=True)
class FindingName:
    """One of the 18.

    Args:
        slug: stable identifier, used in file names.
        name: CT-RATE's column name. name_de: German.
        organ: channel of `ORGAN_CHANNELS` that it belongs to (see `GATES`).
    """

    slug: str
    name: str
    name_de: str
    organ: str


FINDINGS: tuple[FindingName, ...] = (
    FindingName("medical_material", "Medical material", "Fremdmaterial", "global"),
    FindingName(
        "arterial_wall_calcification", "Arterial wall calcification", "Gefäßwandverkalkung", "global"
    ),
    FindingName("cardiomegaly", "Cardiomegaly", "Kardiomegalie", "heart"),
    FindingName("pericardial_effusion", "Pericardial effusion", "Perikarderguss", "heart"),
    FindingName("coronary_calcification", "Coronary artery wall calcification", "Koronarkalk", "heart"),
    FindingName("hiatal_hernia", "Hiatal hernia", "Hiatushernie", "oesophagus"),
    FindingName("lymphadenopathy", "Lymphadenopathy", "Lymphadenopathie", "mediastinum"),
    FindingName("emphysema", "Emphysema", "Emphysem", "lung"),
    FindingName("atelectasis", "Atelectasis", "Atelektase", "lung"),
    FindingName("lung_nodule", "Lung nodule", "Lungenrundherd", "lung"),
    FindingName("lung_opacity", "Lung opacity", "Milchglastrübung", "lung"),
    FindingName("fibrotic_sequela", "Pulmonary fibrotic sequela", "Narbige Residuen", "lung"),
    FindingName("pleural_effusion", "Pleural effusion", "Pleuraerguss", "pleura"),
    FindingName("mosaic_attenuation", "Mosaic attenuation pattern", "Mosaikperfusion", "lung"),
    FindingName(
        "peribronchial_thickening", "Peribronchial thickening", "Peribronchiale Verdickung", "airways"
    ),
    FindingName("consolidation", "Consolidation", "Konsolidierung", "lung"),
    FindingName("bronchiectasis", "Bronchiectasis", "Bronchiektasen", "airways"),
    FindingName("septal_thickening", "Interlobular septal thickening", "Septenverdickung", "lung"),
)

SLUGS = tuple(f.slug for f in FINDINGS)
INDEX = {f.slug: i for i, f in enumerate(FINDINGS)}
ORGAN_OF = tuple(ORGAN_CHANNELS.index(f.organ) for f in FINDINGS)
"""Organ channel index of each finding."""

_OPENED_BY = {
    "arterial_wall_calcification": ("mediastinum", "heart"),
    "peribronchial_thickening": ("airways", "lung"),
    "bronchiectasis": ("airways", "lung"),
}
GATES = tuple(
    tuple(ORGAN_CHANNELS.index(channel) for channel in _OPENED_BY.get(f.slug, (f.organ,))) for f in FINDINGS
)
"""Channels whose union a finding's map is confined to: its organ's own, but for three. EXACT confines airway
findings to the airway mask; masks of airways end at lobar or segmental bronchi, and diseased ones lie beyond:
lung opens too. EXACT lets arterial calcification lie anywhere; every bone then competes with a plaque, and
the thoracic aorta and its branches lie in the mediastinum, its root at the heart."""
