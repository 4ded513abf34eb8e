"""A chest of ellipsoids and straight tubes: enough anatomy for the lesions, built in milliseconds."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from hilum.geometry import Geometry
from hilum.phantom.plan import FindingPlan, Patient, PhantomPlan, TumourPlan
from hilum.phantom.scene import Branch, Scene
from hilum.text.vocabulary import LOBES, REGIONS

EXTRA = (
    "body",
    "lung_right",
    "lung_left",
    "airway_lumen",
    "airway_wall",
    "vessels",
    "myocardium",
    "left_ventricle",
    "right_ventricle",
    "left_atrium",
    "right_atrium",
    "aorta",
    "pulmonary_artery",
    "vena_cava",
    "spine",
    "ribs",
    "sternum",
    "liver",
    "spleen",
    "stomach",
    "muscle",
    "fat",
)


def _branch(start: tuple, end: tuple, radius: float, generation: int, lobe: str, kind: str) -> Branch:
    a, b = ((float(p[0]), float(p[1]), float(p[2])) for p in (start, end))
    return Branch(a, b, radius, generation, lobe, kind)


def _branches() -> list[Branch]:
    out = [_branch((0, -5, 90), (0, -5, 0), 8.0, 0, "", "airway")]
    for side, names in ((1, LOBES[:3]), (-1, LOBES[3:])):
        hilum = (side * 42.0, -8.0, -18.0)
        out.append(_branch((0, -5, 0), hilum, 6.0, 1, "", "airway"))
        for name in names:
            z = {"upper": 45.0, "middle": -35.0, "lower": -85.0}[name.split()[1]]
            lobar = (side * 60.0, -8.0, (z - 18) / 2)
            out.append(_branch(hilum, lobar, 4.0, 2, name, "airway"))
            for y in (-45.0, -10.0, 25.0):
                segment = (side * 78.0, y, z)
                out.append(_branch(lobar, segment, 2.6, 3, name, "airway"))
                for dz in (-12.0, 12.0):
                    out.append(_branch(segment, (side * 92.0, y * 1.3, z + dz), 1.6, 4, name, "airway"))
    knots = [(5, 20, -40), (8, 22, 10), (-2, 8, 32), (-16, -22, 30), (-18, -34, 0), (-14, -36, -150)]
    out += [_branch(a, b, 12.0, 1, "", "aorta") for a, b in itertools.pairwise(knots)]
    out += [_branch((-15, 48, -40), (-38, 52, -90), 1.5, 1, "", "coronary")]
    out += [_branch((15, 45, -45), (28, 40, -85), 1.5, 1, "", "coronary")]
    return out


def toy_scene(
    work_mm: float = 4.0,
    findings: tuple[FindingPlan, ...] = (),
    tumour: TumourPlan | None = None,
    heart: float = 1.0,
) -> Scene:
    """A healthy toy chest; z = 0 is the carina."""
    low, high = np.array([-170.0, -120.0, -200.0]), np.array([170.0, 120.0, 120.0])
    shape = tuple(int(n) for n in (high - low) / work_mm)
    affine = np.diag([work_mm] * 3 + [1.0])
    affine[:3, 3] = low
    plan = PhantomPlan("toy", 1, Patient(heart_size=heart), findings, tumour)
    scene = Scene(plan, Geometry(shape, affine), torch.zeros(shape), {}, torch.zeros(shape), _branches())
    x, y, z = scene.axes_mm()

    def ball(c: tuple[float, float, float], r: tuple[float, float, float]) -> torch.Tensor:
        return ((x - c[0]) / r[0]) ** 2 + ((y - c[1]) / r[1]) ** 2 + ((z - c[2]) / r[2]) ** 2

    r = scene.regions
    for name in (*REGIONS, *LOBES, *EXTRA):
        r[name] = torch.zeros(shape, dtype=torch.bool)
    r["body"] = ((x / 160) ** 2 + (y / 110) ** 2 < 1).expand(shape).clone()
    right, left = ball((75, -5, -30), (55, 80, 125)), ball((-75, -5, -30), (55, 80, 125))
    r["heart"] = ball((-14, 25, -70), (45 * heart, 38 * heart, 48 * heart)) < 1
    r["pericardium"] = r["heart"].clone()
    r["spine"] = (((x / 20) ** 2 + ((y + 75) / 20) ** 2) < 1).expand(shape) & r["body"]
    r["sternum"] = (x.abs() < 16) & ((y - 88).abs() < 6) & (z > -110) & (z < 40)
    r["bone"] = r["spine"] | r["sternum"]
    r["abdomen"] = r["body"] & (z < -160)
    r["oesophagus"] = (((x / 8) ** 2 + ((y + 32) / 7) ** 2 < 1) & (z > -165)).expand(shape).clone()
    r["aorta"], r["airways"], r["airway_lumen"] = (
        _tubes(scene, "aorta"),
        _tubes(scene, "airway", 1.5),
        _tubes(scene, "airway"),
    )
    r["airway_wall"] = r["airways"] & ~r["airway_lumen"]
    r["vena_cava"] = (((x - 24) / 9) ** 2 + ((y - 14) / 8) ** 2 < 1) & (z > -35) & (z < 60)
    r["pulmonary_artery"] = ball((-5, 10, -15), (25, 10, 9)) < 1
    closed = r["heart"] | r["spine"] | r["abdomen"] | r["aorta"]
    r["lung_right"], r["lung_left"] = (right < 1) & ~closed & (x > 8), (left < 1) & ~closed & (x < -8)
    r["lung"] = r["lung_right"] | r["lung_left"]
    scene.depth_mm = (1 - torch.minimum(right, left).clamp(max=1).sqrt()) * 55 * r["lung"]
    r["right upper lobe"], r["left upper lobe"] = (
        r["lung_right"] & (z > -20),
        r["lung_left"] & (z > -40 - y * 0.5),
    )
    r["right middle lobe"] = r["lung_right"] & (z <= -20) & (y > 20)
    r["right lower lobe"] = r["lung_right"] & (z <= -20) & (y <= 20)
    r["left lower lobe"] = r["lung_left"] & ~r["left upper lobe"]
    between = (x.abs() < 45) & (y > -60) & (y < 60) & (z > -160) & (z < 90)
    r["mediastinum"] = between & r["body"] & ~r["lung"] & ~r["heart"] & ~r["spine"]
    shell = torch.nn.functional.max_pool3d(r["lung"][None, None].float(), 3, 1, 1)[0, 0] > 0
    r["pleura"] = (shell & ~r["lung"]) | (r["lung"] & (scene.depth_mm < 6))
    r["right_atrium"], r["right_ventricle"] = (
        ball((18, 15, -60), (12, 15, 18)) < 1,
        ball((-5, 40, -75), (18, 12, 20)) < 1,
    )
    _fill(scene)
    return scene


def _tubes(scene: Scene, kind: str, grow_mm: float = 0.0) -> torch.Tensor:
    from hilum.phantom.lesions._fields import balls, beads

    parts = [b for b in scene.branches if b.kind == kind]
    paths = [beads((b.start_mm, b.end_mm), 2.0) for b in parts]
    radii = [torch.full((len(p),), b.radius_mm + grow_mm) for p, b in zip(paths, parts, strict=True)]
    return balls(scene, torch.cat(paths), torch.cat(radii)) > 0.4


def _fill(scene: Scene) -> None:
    r, hu = scene.regions, scene.hu
    hu.fill_(-1000.0)
    for name, value in (
        ("body", 20.0),
        ("mediastinum", -60.0),
        ("lung", -840.0),
        ("heart", 45.0),
        ("oesophagus", 30.0),
        ("aorta", 40.0),
        ("vena_cava", 40.0),
        ("pulmonary_artery", 40.0),
        ("spine", 300.0),
        ("sternum", 250.0),
        ("airway_wall", -100.0),
        ("airway_lumen", -990.0),
        ("abdomen", 50.0),
    ):
        hu[r[name]] = value
