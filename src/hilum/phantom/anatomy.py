"""From a plan to a scene: the healthy body, with HU and truth."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from hilum.phantom.anatomy_abdomen import build_abdomen
from hilum.phantom.anatomy_bones import build_bones
from hilum.phantom.anatomy_build import Build, make_build
from hilum.phantom.anatomy_chest import Chest, build_chest, lobe_fields, lung_masks, mediastinal_core
from hilum.phantom.anatomy_heart import Heart, build_heart, coronary_lines, paint_union
from hilum.phantom.anatomy_paint import Parts, paint
from hilum.phantom.anatomy_regions import depth_and_pleura, regions_of
from hilum.phantom.anatomy_vessels import Course, courses
from hilum.phantom.plan import PhantomPlan
from hilum.phantom.scene import Branch, Scene
from hilum.phantom.shapes import ellipsoid_level, splat, tube
from hilum.phantom.trees import branch_points, grow_trees, straight
from hilum.text.vocabulary import LOBES

BEHIND_ATRIUM_MM = {"airway": 3.0, "oesophagus": 1.5}
"""Wall and fat around what lies against the heart."""


def build_scene(plan: PhantomPlan, *, work_mm: float = 2.0, device: str | torch.device = "cpu") -> Scene:
    """The healthy body of a plan's patient, in the plan's contrast phase.

    Args:
        plan: what to make. work_mm: voxel edge of the working grid, mm. device: where the tensors live.

    Returns:
        A scene without lesions. Equal plans, voxel sizes and device types give equal scenes.
    """
    with torch.no_grad():
        build = make_build(plan, work_mm, torch.device(device))
        chest = build_chest(build)
        heart = build_heart(build)
        trunks = courses(build)
        covers = _trunk_covers(build, trunks)
        pericardium = build.frame.empty()
        pericardium[heart.box] = heart.pericardium
        pericardium &= (chest.wall_mm < -2.0) & ~_pressed_in(build, trunks)
        core = mediastinal_core(build, chest, _core_cover(build, trunks), pericardium)
        right, left = lung_masks(build, chest, core)
        lobes, fissures = _lobes(build, right, left)
        branches = grow_trees(build, lobes, trunks)
        parts = _parts(build, chest, heart, pericardium, right, left, lobes, fissures, branches, covers)
        parts.depth_mm, parts.pleura = depth_and_pleura(build, right, left)
        hu = paint(build, parts)
        regions = regions_of(build, parts)
        branches += _named_branches(build, trunks)
    return Scene(plan, build.frame.grid, hu, regions, parts.depth_mm, branches)


def _trunk_covers(build: Build, trunks: list[Course]) -> dict[str, Tensor]:
    """Coverage of the central tubes by group (airway: the lumen)."""
    covers: dict[str, Tensor] = {}
    for course in trunks:
        canvas = covers.setdefault(course.group, build.frame.zeros())
        tube(build.frame, canvas, course.line_mm, course.radii_mm)
    return covers


def _pressed_in(build: Build, trunks: list[Course]) -> Tensor:
    """What indents the left atrium from behind: the bronchi with their walls, the oesophagus."""
    canvas = build.frame.zeros()
    for course in trunks:
        if course.group in BEHIND_ATRIUM_MM:
            tube(build.frame, canvas, course.line_mm, course.radii_mm, BEHIND_ATRIUM_MM[course.group])
    return canvas > 0.5


def _core_cover(build: Build, trunks: list[Course]) -> Tensor:
    canvas = build.frame.zeros()
    for course in trunks:
        tube(build.frame, canvas, course.line_mm, course.radii_mm, course.margin_mm)
    return canvas


def _lobes(build: Build, right: Tensor, left: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Five lobes and the coverage of the fissures between them."""
    oblique_r, oblique_l, minor = lobe_fields(build)
    above_r, above_l = oblique_r > 0, oblique_l > 0
    upper = minor > 0
    lobes = {
        LOBES[0]: right & above_r & upper,
        LOBES[1]: right & above_r & ~upper,
        LOBES[2]: right & ~above_r,
        LOBES[3]: left & above_l,
        LOBES[4]: left & ~above_l,
    }
    thin = 0.75 * max(build.frame.h, 1.0)
    fissures = (right & ((oblique_r.abs() < 1.36 * thin) | (above_r & (minor.abs() < thin)))) | (
        left & (oblique_l.abs() < 1.36 * thin)
    )
    return lobes, fissures


def _parts(
    build: Build,
    chest: Chest,
    heart: Heart,
    pericardium: Tensor,
    right: Tensor,
    left: Tensor,
    lobes: dict[str, Tensor],
    fissures: Tensor,
    branches: list[Branch],
    covers: dict[str, Tensor],
) -> Parts:
    frame = build.frame
    lung = right | left
    vessel = frame.zeros()
    lumen, wall = covers["airway"], covers["airway"].clone()
    step = 0.5 * frame.h
    points, radii = branch_points([b for b in branches if b.kind != "airway"], step)
    splat(frame, vessel, points, radii)
    bronchi = [b for b in branches if b.kind == "airway"]
    splat(frame, lumen, *branch_points(bronchi, step))
    points, radii = branch_points(bronchi, step)
    splat(frame, wall, points, radii + np.clip(0.22 * radii, 0.5, 1.4))
    sheath = frame.zeros()
    points, radii = branch_points([b for b in bronchi if b.generation <= 3], step)
    splat(frame, sheath, points, radii + 2.5)
    coronaries = frame.zeros()
    for _, line in coronary_lines(build):
        tube(frame, coronaries, line, np.linspace(2.1, 1.1, len(line)))
        for a, b in pairwise(line):
            branches.append(straight(a, b, 1.8, 4, "", "coronary"))
    bones = build_bones(build, chest)
    taken = pericardium.clone()
    thyroid = frame.empty()
    for side in (-1.0, 1.0):
        box = frame.box((min(0, side * 45), -10, 70), (max(0, side * 45), 70, 150))
        lobe = ellipsoid_level(frame.coords(box), (side * 17.0 + 2.0, 20, 108), (9.5, 10.5, 22))
        paint_union(thyroid, box, lobe < 0)
    abdomen = build_abdomen(build, chest, taken | (covers["vena_cava"] > 0.5) | (covers["oesophagus"] > 0.5))
    return Parts(
        chest,
        heart,
        pericardium,
        right,
        left,
        lung,
        lobes,
        fissures,
        vessel,
        lumen,
        wall,
        sheath > 0.5,
        coronaries,
        covers,
        bones,
        thyroid & chest.body,
        abdomen,
    )


def _named_branches(build: Build, trunks: list[Course]) -> list[Branch]:
    """The aorta, the central arteries and veins as branches of generation 0 and 1."""
    kinds = {"aorta": "aorta", "pulmonary_artery": "artery", "pulmonary_vein": "vein"}
    out = []
    for course in trunks:
        if course.group not in kinds:
            continue
        generation = 0 if course.group == "aorta" and "aort" in course.name else 1
        line, radii = course.line_mm[::4], course.radii_mm[::4]
        for i, (a, b) in enumerate(pairwise(line)):
            out.append(straight(a, b, radii[i], generation, "", kinds[course.group]))
    return out
