"""Names and numbers of TotalSegmentator's "total" task (version 2; version 1 names in folders), and our
channels for them.

Source: the class table published with TotalSegmentator (Wasserthal et al. 2023), task `total`.
"""

from __future__ import annotations

LOBE_NAMES = {
    "lung_upper_lobe_right": "right upper lobe",
    "lung_middle_lobe_right": "right middle lobe",
    "lung_lower_lobe_right": "right lower lobe",
    "lung_upper_lobe_left": "left upper lobe",
    "lung_lower_lobe_left": "left lower lobe",
}

CHANNEL_OF: dict[str, str] = {
    **dict.fromkeys(LOBE_NAMES, "lung"),
    **dict.fromkeys(("lung", "lung_left", "lung_right"), "lung"),
    **dict.fromkeys(("trachea", "lung_trachea_bronchia"), "airways"),
    **dict.fromkeys(("heart", "heart_myocardium", "heart_atrium_left", "heart_atrium_right"), "heart"),
    **dict.fromkeys(("heart_ventricle_left", "heart_ventricle_right", "atrial_appendage_left"), "heart"),
    # version 2 counts it to the heart; version 1 has a label for it
    "pulmonary_artery": "heart",
    "esophagus": "oesophagus",
    **dict.fromkeys(("aorta", "pulmonary_vein", "superior_vena_cava"), "mediastinum"),
    **dict.fromkeys(
        ("brachiocephalic_trunk", "brachiocephalic_vein_left", "brachiocephalic_vein_right"), "mediastinum"
    ),
    **{name: name for name in ("airways", "pleura", "mediastinum", "oesophagus")},
}
"""Structure -> channel. The last row are our own names. Structures that are in no channel still belong to
`global`."""


def _ribs() -> list[str]:
    return [f"rib_{side}_{i}" for side in ("left", "right") for i in range(1, 13)]


def _vertebrae() -> list[str]:
    levels = [f"L{i}" for i in range(5, 0, -1)] + [f"T{i}" for i in range(12, 0, -1)]
    return ["vertebrae_S1", *(f"vertebrae_{v}" for v in [*levels, *(f"C{i}" for i in range(7, 0, -1))])]


def _both(*names: str) -> list[str]:
    return [f"{name}_{side}" for name in names for side in ("left", "right")]


_ORDER: list[str] = [
    *("spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach", "pancreas"),
    *("adrenal_gland_right", "adrenal_gland_left", "lung_upper_lobe_left", "lung_lower_lobe_left"),
    *("lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right", "esophagus", "trachea"),
    *("thyroid_gland", "small_bowel", "duodenum", "colon", "urinary_bladder", "prostate"),
    *("kidney_cyst_left", "kidney_cyst_right", "sacrum"),
    *_vertebrae(),
    *("heart", "aorta", "pulmonary_vein", "brachiocephalic_trunk", "subclavian_artery_right"),
    *("subclavian_artery_left", "common_carotid_artery_right", "common_carotid_artery_left"),
    *(
        "brachiocephalic_vein_left",
        "brachiocephalic_vein_right",
        "atrial_appendage_left",
        "superior_vena_cava",
    ),
    *("inferior_vena_cava", "portal_vein_and_splenic_vein", *_both("iliac_artery", "iliac_vena")),
    *_both("humerus", "scapula", "clavicula", "femur", "hip"),
    "spinal_cord",
    *_both("gluteus_maximus", "gluteus_medius", "gluteus_minimus", "autochthon", "iliopsoas"),
    *("brain", "skull"),
    *_ribs(),
    *("sternum", "costal_cartilages"),
]

NAME_OF: dict[int, str] = {i + 1: name for i, name in enumerate(_ORDER)}
"""Label number -> structure, 1 to 117."""
