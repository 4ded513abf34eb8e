"""Where the great vessels, the central airways and the oesophagus run (canonical mm), and their calibres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hilum.phantom.anatomy_build import Build
from hilum.phantom.anatomy_heart import heart_points
from hilum.phantom.shapes import Mm3, smooth_line

Points = list[Mm3]


@dataclass(frozen=True)
class Course:
    """A tube: scene polyline, radius at each node (mm), what it belongs to, how much mediastinal fat
    surrounds it (mm).

    Args:
        name: readable. group: ``aorta``, ``pulmonary_artery``, ``pulmonary_vein``, ``vena_cava``,
        ``airway``, ``oesophagus``.
    """

    name: str
    group: str
    line_mm: np.ndarray
    radii_mm: np.ndarray
    margin_mm: float


# name, group, margin, follows the heart, points, radii at first and last point
_COURSES: list[tuple[str, str, float, bool, Points, tuple[float, float]]] = [
    ("aortic root", "aorta", 5, True, [(-12, 16, -44), (2, 24, -32), (14, 29, -16)], (15.5, 16.5)),
    (
        "ascending aorta",
        "aorta",
        5,
        False,
        [(14, 29, -16), (19, 30, 0), (17, 24, 20), (8, 16, 35)],
        (16.5, 15),
    ),
    (
        "aortic arch",
        "aorta",
        4,
        False,
        [(8, 16, 35), (-8, 4, 42), (-21, -14, 42), (-27, -33, 34), (-28, -46, 18)],
        (15, 13),
    ),
    (
        "descending aorta",
        "aorta",
        3,
        False,
        [
            (-28, -46, 18),
            (-28, -50, -10),
            (-26, -51, -50),
            (-21, -46, -90),
            (-12, -36, -125),
            (-4, -22, -160),
            (-3, -5, -200),
            (-3, 12, -290),
        ],
        (13, 10.5),
    ),
    (
        "brachiocephalic trunk",
        "aorta",
        4,
        False,
        [(4, 14, 46), (10, 11, 60), (17, 10, 76), (24, 14, 90)],
        (6.5, 6),
    ),
    ("right carotid", "aorta", 6, False, [(24, 14, 90), (24, 22, 115), (26, 28, 150)], (4, 3.5)),
    ("right subclavian", "aorta", 3, False, [(24, 14, 90), (45, 14, 99), (85, 16, 88), (120, 0, 82)], (5, 4)),
    (
        "left carotid",
        "aorta",
        5,
        False,
        [(-10, 4, 50), (-14, 8, 75), (-20, 20, 110), (-24, 28, 150)],
        (4, 3.5),
    ),
    (
        "left subclavian",
        "aorta",
        4,
        False,
        [(-22, -10, 48), (-24, -8, 74), (-40, 4, 95), (-85, 14, 90), (-120, 0, 82)],
        (5.5, 4),
    ),
    (
        "pulmonary trunk",
        "pulmonary_artery",
        4,
        True,
        [(-18, 46, -34), (-24, 38, -16), (-24, 22, -5), (-24, 10, -4)],
        (13.5, 13.5),
    ),
    (
        "right pulmonary artery",
        "pulmonary_artery",
        3,
        False,
        [(-22, 12, -6), (0, 5, -11), (22, 1, -15), (40, -5, -20)],
        (11.5, 9),
    ),
    (
        "left pulmonary artery",
        "pulmonary_artery",
        3,
        False,
        [(-24, 12, -4), (-34, -6, -4), (-44, -22, -10), (-48, -30, -22)],
        (11.5, 8.5),
    ),
    (
        "superior vena cava",
        "vena_cava",
        3,
        False,
        [(27, 26, 50), (29, 21, 25), (29, 18, 0), (21, 15, -26)],
        (8.5, 9.5),
    ),
    (
        "right brachiocephalic vein",
        "vena_cava",
        3,
        False,
        [(52, 18, 90), (36, 22, 74), (27, 26, 50)],
        (6, 7.5),
    ),
    (
        "left brachiocephalic vein",
        "vena_cava",
        3,
        False,
        [(-52, 20, 88), (-30, 28, 72), (-4, 36, 58), (26, 27, 48)],
        (6, 7),
    ),
    (
        "inferior vena cava",
        "vena_cava",
        3,
        False,
        [(17, 8, -74), (20, 2, -100), (22, -4, -130), (16, 2, -200), (14, 14, -290)],
        (12, 11),
    ),
    (
        "azygos vein",
        "vena_cava",
        2,
        False,
        [
            (6, -30, -160),
            (7, -46, -110),
            (8, -49, -40),
            (9, -44, 8),
            (16, -24, 24),
            (28, 2, 25),
            (31, 16, 22),
        ],
        (3.2, 4.5),
    ),
    (
        "right superior pulmonary vein",
        "pulmonary_vein",
        2,
        False,
        [(16, -12, -34), (34, -3, -31), (46, 2, -30)],
        (7.5, 6),
    ),
    (
        "right inferior pulmonary vein",
        "pulmonary_vein",
        2,
        False,
        [(16, -22, -42), (32, -31, -50), (44, -40, -58)],
        (7.5, 6),
    ),
    (
        "left superior pulmonary vein",
        "pulmonary_vein",
        2,
        False,
        [(-32, -12, -28), (-46, -4, -24), (-54, 4, -20)],
        (7.5, 6),
    ),
    (
        "left inferior pulmonary vein",
        "pulmonary_vein",
        2,
        False,
        [(-32, -22, -38), (-44, -33, -46), (-52, -42, -54)],
        (7.5, 6),
    ),
    (
        "oesophagus",
        "oesophagus",
        3,
        False,
        [
            (-2, 14, 130),
            (-3, 2, 95),
            (-5, -14, 60),
            (-6, -26, 30),
            (-5, -33, 5),
            (-3, -41, -30),
            (-4, -41, -60),
            (-10, -33, -90),
            (-20, -18, -112),
            (-34, -4, -128),
        ],
        (7.5, 9),
    ),
]
# The trachea bends around the arch; the right main bronchus is the steeper and shorter one.
AIRWAY_TRUNKS: list[tuple[str, int, Points, tuple[float, float]]] = [
    ("trachea", 0, [(1, 32, 140), (2, 19, 95), (4, 2, 60), (5, -9, 32), (0, -15, 0)], (9.0, 8.5)),
    ("right main bronchus", 1, [(0, -15, 0), (13, -17, -11), (24, -18, -21)], (7.5, 6.8)),
    ("left main bronchus", 1, [(0, -15, 0), (-20, -18, -13), (-41, -23, -28)], (6.8, 6.0)),
    ("right upper lobe bronchus", 2, [(24, -18, -21), (33, -18, -17), (43, -16, -13)], (5.2, 4.5)),
    ("intermediate bronchus", 2, [(24, -18, -21), (30, -19, -36), (35, -20, -46)], (5.8, 5.3)),
    ("middle lobe bronchus", 2, [(35, -20, -46), (42, -9, -52), (50, 2, -57)], (4.2, 3.6)),
    ("right lower lobe bronchus", 2, [(35, -20, -46), (41, -29, -58), (46, -36, -68)], (5.0, 4.2)),
    ("left upper lobe bronchus", 2, [(-41, -23, -28), (-49, -16, -25), (-57, -10, -20)], (5.2, 4.5)),
    ("left lower lobe bronchus", 2, [(-41, -23, -28), (-47, -31, -42), (-52, -38, -56)], (5.2, 4.4)),
]


def courses(build: Build) -> list[Course]:
    """Every central tube in scene mm, with small individual changes of calibre."""
    rng = build.rng(41)
    out = []
    for name, group, margin, with_heart, points, (first, last) in _COURSES:
        factor = float(np.clip(rng.normal(1.0, 0.06), 0.85, 1.18)) * (0.92 if build.female else 1.0)
        p = np.array(points, float)
        if with_heart:
            # Only the end that sits on the heart follows its size; the other end joins the next vessel.
            share = np.linspace(1.0, 0.0, len(p))[:, None]
            p = share * heart_points(build, p) + (1.0 - share) * p
            line = build.frame.to_scene(_smooth(p))
        else:
            line = build.line([(float(a), float(b), float(c)) for a, b, c in p])
        out.append(Course(name, group, line, np.linspace(first, last, len(line)) * factor, float(margin)))
    for name, _, points, (first, last) in AIRWAY_TRUNKS:
        line = build.line(points)
        radii = np.linspace(first, last, len(line)) * (0.88 if build.female else 1.0)
        out.append(Course(name, "airway", line, radii, 4.0 if "lobe" not in name else 2.0))
    return out


def _smooth(points: np.ndarray) -> np.ndarray:
    return smooth_line(points, 8 * len(points)) if len(points) > 2 else points
