"""Places, sides, coverage, organs of the user's own, the report, and what `reading.json` promises."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import nibabel as nib
import numpy as np
import pytest
from pydantic import ValidationError
from readshow_standin import NODULE_MM, Standin, chest, points_of, straight_grid

import hilum
from hilum.errors import HeaderError, RunError, SeriesError
from hilum.geometry import Geometry
from hilum.read import narrate
from hilum.read.organs_file import read_organs
from hilum.read.reading import FindingReading, Reading, schema
from hilum.read.report_rules import report_rules
from hilum.read.schema import schema_text
from hilum.read.totalsegmentator import NAME_OF
from hilum.text.vocabulary import SLUGS
from hilum.volume import CTVolume, Provenance

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def volume() -> CTVolume:
    return chest(straight_grid())


@pytest.fixture(scope="module")
def reading(volume: CTVolume) -> Reading:
    bumps = {"lung_nodule": NODULE_MM, "pleural_effusion": np.array([100.0, -50.0, -60.0])}
    return hilum.read(volume, model=Standin(bumps=bumps))


def found(reading: Reading, slug: str) -> FindingReading:
    return next(f for f in reading.findings if f.slug == slug)


def label_file(path: Path, labels: np.ndarray, geometry: Geometry) -> Path:
    image = nib.Nifti1Image(labels.astype(np.uint8), geometry.affine_ras)
    nib.save(image, path)
    return path


def chest_labels(geometry: Geometry) -> np.ndarray:
    """TotalSegmentator numbers: left lower lobe 11 (x < 0), right lower lobe 14, heart 51, liver 5."""
    points = points_of(geometry)

    def ball(x: float, y: float, z: float, *radii: float) -> np.ndarray:
        return (((points - (x, y, z)) / radii) ** 2).sum(-1) < 1

    labels = np.zeros(geometry.shape, dtype=np.uint8)
    labels[ball(80, 0, 0, 55, 80, 105)] = 14
    labels[ball(-80, 0, 0, 55, 80, 105)] = 11
    labels[ball(-20, 30, -30, 45, 40, 50)] = 51
    labels[ball(60, 0, -135, 40, 40, 20)] = 5
    return labels


def test_a_bump_is_placed_where_it_is(reading: Reading, volume: CTVolume) -> None:
    finding = found(reading, "lung_nodule")
    where = finding.where
    assert finding.present and where is not None
    assert np.linalg.norm(np.array(where.centroid_mm_ras) - NODULE_MM) < 0.5
    assert np.linalg.norm(np.array(where.peak_mm_ras) - NODULE_MM) < 4.0
    assert where.z_mm == where.peak_mm_ras[2]
    assert where.centroid_mm_lps == (
        -where.centroid_mm_ras[0],
        -where.centroid_mm_ras[1],
        where.centroid_mm_ras[2],
    )
    low, high = np.array(where.box_mm_ras)
    assert (low < NODULE_MM).all() and (high > NODULE_MM).all()
    low_lps, high_lps = np.array(where.box_mm_lps)
    assert (low_lps <= high_lps).all() and low_lps[0] == -high[0]
    assert np.abs(volume.source.to_mm(np.array([where.peak_voxel]))[0] - where.peak_mm_ras).max() <= 2.5
    assert where.slice_index == where.peak_voxel[2]
    assert where.image is None


def test_volume_of_a_gaussian_is_that_of_its_sphere(reading: Reading) -> None:
    # 0.95 exp(-r²/2s²) >= 0.4  <=>  r <= s sqrt(2 ln(0.95/0.4)); s = 8 mm
    radius_mm = 8.0 * np.sqrt(2 * np.log(0.95 / 0.4))
    expected_ml = 4 / 3 * np.pi * radius_mm**3 / 1000
    assert found(reading, "lung_nodule").volume_ml == pytest.approx(expected_ml, rel=0.12)


def test_sides_and_thirds_follow_the_patient(reading: Reading) -> None:
    nodule, effusion = found(reading, "lung_nodule").where, found(reading, "pleural_effusion").where
    assert nodule is not None and nodule.side == "left"
    assert nodule.lobe_estimate == "middle third of the left lung" and nodule.lobe_basis == "lung height"
    assert effusion is not None and effusion.side == "right"
    assert effusion.lobe_estimate == "lower third of the right lung"


def test_absent_findings_have_no_place(reading: Reading) -> None:
    finding = found(reading, "emphysema")
    assert not finding.present and finding.where is None and finding.volume_ml is None


def test_report_sentences_point_at_their_evidence(reading: Reading) -> None:
    sentence = next(s for s in reading.report.sentences if s.finding == "lung_nodule")
    assert "left lung" in sentence.text and "about" in sentence.text
    evidence = sentence.evidence[0]
    where = found(reading, "lung_nodule").where
    assert where is not None and evidence.peak_mm_ras == where.peak_mm_ras
    assert f"slice index {where.slice_index}" in sentence.text
    assert reading.report.sentences[-1].text == reading.notice
    negative = [s for s in reading.report.sentences if s.kind == "absence" and s.text.startswith("Lungs")]
    assert {e.finding for s in negative for e in s.evidence} >= {"emphysema", "consolidation"}


def test_what_was_not_seen_is_not_called_normal(reading: Reading) -> None:
    airways = next(s for s in reading.report.sentences if s.text.startswith("Airways"))
    assert "not seen" in airways.text and airways.kind == "remark"


def nodule_text(volume: CTVolume, model: Standin) -> str:
    report = hilum.read(volume, model=model).report
    return next(s.text for s in report.sentences if s.finding == "lung_nodule")


def test_calibrated_certainty_hedges_the_sentence(volume: CTVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in's nodule has 0.9."""
    model = Standin(calibrated=True)
    assert nodule_text(volume, model).startswith("Lung nodule")
    rules = report_rules()
    for plain, probable, said in ((0.95, 0.5, "Probable lung nodule"), (0.99, 0.95, "Possible lung nodule")):
        monkeypatch.setattr(
            narrate, "report_rules", lambda p=plain, q=probable: replace(rules, plain=p, probable=q)
        )
        assert nodule_text(volume, model).startswith(said)


def test_what_is_not_calibrated_is_not_graded(volume: CTVolume) -> None:
    model = Standin()
    model.thresholds["lung_nodule"] = 0.89
    report = hilum.read(volume, model=model).report
    assert nodule_text(volume, model).startswith("Lung nodule")
    assert "not calibrated" in report.text and "robable" not in report.text


def test_german_report(volume: CTVolume) -> None:
    text = hilum.read(volume, model=Standin(), language="de").report.text
    assert "Lungenrundherd im mittleren Drittel der linken Lunge" in text
    assert "Kein Medizinprodukt" in text


def test_a_reading_whose_report_says_more_is_refused(reading: Reading) -> None:
    body = json.loads(reading.to_json())
    sentence = next(s for s in body["report"]["sentences"] if s["kind"] == "finding")
    sentence["evidence"][0]["volume_ml"] += 1.0
    with pytest.raises(ValidationError, match="rests on what no finding says"):
        Reading.model_validate(body)


def test_json_validates_and_comes_back(reading: Reading) -> None:
    body = json.loads(reading.to_json())
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.Draft202012Validator(schema()).validate(body)
    assert [f["slug"] for f in body["findings"]] == list(SLUGS)
    assert Reading.from_json(reading.to_json()) == Reading.model_validate(body)
    body["findings"][0]["probability"] = 1.5
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema()).validate(body)


def test_published_schema_is_current() -> None:
    assert (DOCS / "reading.schema.json").read_text(encoding="utf-8") == schema_text(), (
        "run: python -m hilum.read.schema docs/reading.schema.json"
    )


def test_reading_is_deterministic(reading: Reading, volume: CTVolume) -> None:
    bumps = {"lung_nodule": NODULE_MM, "pleural_effusion": np.array([100.0, -50.0, -60.0])}
    assert hilum.read(volume, model=Standin(bumps=bumps)).to_json() == reading.to_json()


@pytest.mark.parametrize("spoil", [np.nan, np.inf])
def test_non_finite_maps_are_refused(volume: CTVolume, spoil: float) -> None:
    with pytest.raises(RunError) as caught:
        hilum.read(volume, model=Standin(spoil=spoil))
    assert caught.value.code == "OUTPUT_NONFINITE"


def test_whole_lungs_are_complete(reading: Reading) -> None:
    assert reading.coverage.complete and reading.coverage.fraction == 1.0
    assert not any(c.code == "COVERAGE" for c in reading.scan.checks)


def test_half_a_chest_is_noted_with_its_fraction() -> None:
    whole = straight_grid()
    affine = whole.affine_ras.copy()
    affine[:3, 3] = whole.to_mm(np.array([[0, 0, 28]]))[0]
    upper = chest(Geometry((84, 64, 28), affine))
    reading = hilum.read(upper, model=Standin())
    assert reading.coverage.cut_bottom and not reading.coverage.cut_top
    assert 0.3 < reading.coverage.fraction < 0.7
    assert [c.level for c in reading.scan.checks if c.code == "COVERAGE"] == ["note"]
    assert "not covered whole" in reading.report.text and "(scanned part)" in reading.report.text


@pytest.mark.parametrize(("kind", "error"), [("nifti", HeaderError), ("dicom", SeriesError)])
def test_no_lungs_is_refused(kind: str, error: type[Exception]) -> None:
    grid = straight_grid()
    hu = np.full(grid.shape, -1000.0, dtype=np.float32)
    hu[20:60, 15:50] = 40.0
    block = CTVolume.from_source(hu, grid, Provenance(kind, "ab" * 32))
    with pytest.raises(error) as caught:
        hilum.read(block, model=Standin())
    assert caught.value.code == "COVERAGE" and caught.value.exit_code == 3  # type: ignore[attr-defined]


def test_one_lung_still_has_a_side() -> None:
    """A right lung alone: the body's middle is the midline, so it is not split into two halves."""
    grid = straight_grid()
    both = chest(grid)
    hu = both.hu.copy()
    x = (np.arange(84) * 4.5 + grid.affine_ras[0, 3])[:, None, None]
    hu[np.broadcast_to(x < 0, hu.shape) & (hu < -400) & (hu > -900)] = 30.0
    volume = CTVolume.from_source(hu, grid, both.provenance)
    where = found(
        hilum.read(volume, model=Standin(bumps={"lung_nodule": np.array([60.0, 0, 0])})), "lung_nodule"
    ).where
    assert where is not None and where.side == "right"
    assert where.lobe_estimate == "middle third of the right lung"


def test_totalsegmentator_numbers_name_lobes(tmp_path: Path, volume: CTVolume) -> None:
    flipped = Geometry(  # the same field on LPS axes and at another resolution
        (42, 32, 28), np.array([[-9.0, 0, 0, 184.5], [0, -9.0, 0, 139.5], [0, 0, 10.0, -135.0], [0, 0, 0, 1]])
    )
    path = label_file(tmp_path / "seg.nii.gz", chest_labels(flipped), flipped)
    reading = hilum.read(volume, model=Standin(), organs=path)
    where = found(reading, "lung_nodule").where
    assert where is not None and (where.lobe_estimate, where.lobe_basis) == ("left lower lobe", "lobe masks")
    source = {o.name: o.source for o in reading.organs}
    assert source["lung"] == source["heart"] == "file"
    assert source["pleura"] == "derived" and source["oesophagus"] == "model"
    lung_ml = next(o.volume_ml for o in reading.organs if o.name == "lung")
    assert lung_ml == pytest.approx(2 * 4 / 3 * np.pi * 5.5 * 8 * 10.5, rel=0.05)
    assert reading.receipt.organs_sha256 is not None
    assert any("pleura" in note for note in reading.receipt.notes)


def test_organs_of_another_field_are_refused(tmp_path: Path, volume: CTVolume) -> None:
    grid = straight_grid()
    moved = grid.affine_ras.copy()
    moved[0, 3] += 20.0
    path = label_file(tmp_path / "seg.nii.gz", chest_labels(grid), Geometry(grid.shape, moved))
    with pytest.raises(SeriesError) as caught:
        hilum.read(volume, model=Standin(), organs=path)
    assert caught.value.code == "FRAME_OF_REFERENCE" and caught.value.exit_code == 3


def test_unknown_labels_are_listed_and_nothing_known_is_refused(tmp_path: Path, volume: CTVolume) -> None:
    grid = straight_grid()
    labels = chest_labels(grid)
    labels[labels == 5] = 200
    path = label_file(tmp_path / "seg.nii.gz", labels, grid)
    notes = hilum.read(volume, model=Standin(), organs=path).receipt.notes
    assert any("unknown labels" in note and "200" in note for note in notes)
    only = label_file(tmp_path / "only.nii.gz", (labels == 200) * 200, grid)
    with pytest.raises(HeaderError) as caught:
        hilum.read(volume, model=Standin(), organs=only)
    assert caught.value.code == "ORGANS_EMPTY"


def test_a_folder_of_named_masks(tmp_path: Path, volume: CTVolume) -> None:
    grid, folder = straight_grid(), tmp_path / "masks"
    folder.mkdir()
    labels = chest_labels(grid)
    for number in (11, 14, 51):
        label_file(folder / f"{NAME_OF[number]}.nii.gz", labels == number, grid)
    label_file(folder / "mystery.nii.gz", labels == 5, grid)
    reading = hilum.read(volume, model=Standin(), organs=folder)
    assert next(o for o in reading.organs if o.name == "heart").source == "file"
    assert any("mystery" in note for note in reading.receipt.notes)


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_a_cut_organ_file_is_refused(tmp_path: Path, volume: CTVolume, keep: float) -> None:
    path = label_file(tmp_path / "seg.nii.gz", chest_labels(straight_grid()), straight_grid())
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)])
    with pytest.raises(hilum.errors.InputRefused):
        hilum.read(volume, model=Standin(), organs=path)


def test_our_own_labels_come_back(tmp_path: Path, volume: CTVolume, reading: Reading) -> None:
    out = reading.save(tmp_path / "out")
    again = hilum.read(volume, model=Standin(), organs=out / "organs.nii.gz")
    before = {o.name: o.volume_ml for o in reading.organs}
    after = {o.name: o.volume_ml for o in again.organs}
    assert next(o for o in again.organs if o.name == "lung").source == "file"
    assert after["lung"] == pytest.approx(before["lung"], rel=0.05)


def test_an_organ_file_regates_a_model_that_opens_its_maps(tmp_path: Path, volume: CTVolume) -> None:
    """The nodule lies outside the user's lung (right lung only): its map is empty there and its probability
    falls."""
    grid = straight_grid()
    path = label_file(tmp_path / "seg.nii.gz", (chest_labels(grid) == 14) * 14, grid)

    class Open(Standin):
        def run(self, scan: CTVolume) -> object:
            out = super().run(scan)
            out.ungated = out.maps.copy()
            return out

        def pool(self, maps: np.ndarray, grid: object = None) -> np.ndarray:
            return maps.reshape(18, -1).max(axis=1)

        def calibrate(self, pooled: np.ndarray) -> np.ndarray:
            return pooled

    assert found(hilum.read(volume, model=Open()), "lung_nodule").present
    regated = found(hilum.read(volume, model=Open(), organs=path), "lung_nodule")
    assert not regated.present and regated.probability < 0.05


def test_masks_are_read_on_the_model_grid(volume: CTVolume, tmp_path: Path) -> None:
    from hilum.read.organ_masks import OrganMasks

    out = Standin().run(volume)
    model = OrganMasks.of_model(out.grid, out.organs)
    path = label_file(tmp_path / "seg.nii.gz", chest_labels(straight_grid()), straight_grid())
    masks = read_organs(path, volume, model)
    left = out.grid.to_mm(np.argwhere(masks.lobes["left lower lobe"]))
    grid = straight_grid()
    expected = grid.to_mm(np.argwhere(chest_labels(grid) == 11)).mean(axis=0)
    assert expected[0] < -70 and np.abs(left.mean(axis=0) - expected).max() < 1.0
