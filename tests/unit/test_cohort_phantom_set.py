"""Prepared phantom sets: siblings lie voxel on voxel, training sees no lesion mask, builds go on where they
stopped."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors import safe_open

from hilum.cohort.phantom_set import PhantomSetSpec, build
from hilum.cohort.prep import Prep
from hilum.cohort.samples import load, load_report
from hilum.text.vocabulary import ORGAN_CHANNELS, SLUGS

SPEC = PhantomSetSpec(
    2, 40, Prep(spacing_mm=8.0), work_mm=6.0, spacing_mm=(6.0, 6.0, 6.0), prevalence=0.5, siblings=2
)


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    (paths,) = build(SPEC, root, workers=1)
    return root, paths


def test_siblings_lie_voxel_on_voxel_and_differ_in_findings(patient):
    a, b = (load(path) for path in patient[1])
    assert np.allclose(a.grid.affine_ras, b.grid.affine_ras) and a.scan.shape == b.scan.shape
    assert not torch.equal(a.labels, b.labels)
    outside = ((a.organs == 0) & (b.organs == 0)).all(0)
    assert (a.scan - b.scan)[outside].abs().float().median() < 30, "one body"
    shifted = (a.scan - b.scan.roll(2, 0))[outside].abs().float().mean()
    assert (a.scan - b.scan)[outside].abs().float().mean() < 0.5 * shifted


def test_a_voxel_belongs_to_an_organ_as_far_as_it_lies_in_it(patient):
    organs = load(patient[1][0]).organs
    assert (
        organs.shape == (len(ORGAN_CHANNELS), *load(patient[1][0]).scan.shape) and organs.dtype == torch.uint8
    )
    lung = organs[ORGAN_CHANNELS.index("lung")]
    assert (lung == 255).any() and (lung == 0).any()
    edge = (lung > 0) & (lung < 255)
    assert edge.float().mean() > 0.02 and 90 < lung[edge].float().mean() < 165, "borders are shared"


def test_a_training_file_holds_no_lesions(patient):
    with safe_open(patient[1][0], framework="pt") as file:
        assert sorted(file.keys()) == ["labels", "organs", "scan"]


def test_a_cut_build_makes_only_what_is_missing(patient):
    root, paths = patient
    before = [path.stat().st_mtime_ns for path in paths]
    assert list(build(SPEC, root, workers=1)) == [paths]
    assert [path.stat().st_mtime_ns for path in paths] == before
    first = load(paths[1])
    paths[1].unlink()
    assert list(build(SPEC, root, workers=1)) == [paths]
    again = load(paths[1])
    for name in ("scan", "organs", "labels"):
        assert torch.equal(getattr(first, name), getattr(again, name)), "the same seed gives the same phantom"


def test_the_folder_is_named_by_what_matters(tmp_path):
    assert SPEC.folder(tmp_path) == dataclasses.replace(SPEC, count=8).folder(tmp_path)
    assert SPEC.folder(tmp_path) != dataclasses.replace(SPEC, prevalence=0.4).folder(tmp_path)


def test_a_file_has_the_report_of_its_own_scan(patient):
    a, b = (load(path) for path in patient[1])
    assert a.report and load_report(patient[1][0]) == a.report
    assert [s.text for s in a.report] != [s.text for s in b.report], "siblings are told apart"
    for sample in (a, b):
        there = {SLUGS[i] for i in sample.labels.nonzero().flatten().tolist()}
        told = {s.slug for s in sample.report if s.status in ("present", "uncertain")}
        denied = {slug for s in sample.report if s.status == "absent" for slug in (s.slug, *s.also)}
        assert told == there and not denied & there
        assert {s.section for s in sample.report} == {"technique", "findings", "impression"}
