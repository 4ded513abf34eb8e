"""The localisation suite: exact measures against slow twins and scikit-learn, cuts from validation alone,
affines instead of flips, cohorts in the layouts of ReXGroundingCT, COVID-19-CT-Seg, MosMed and phantoms."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from _cohort_layouts import AFFINE, SHAPE, chest, covid_seg, mosmed, rexgrounding, save
from sklearn.metrics import average_precision_score

from hilum.cli import run
from hilum.cohort.records import ScanRecord
from hilum.cohort.sources.base import SourceOptions
from hilum.cohort.sources.registry import source_named
from hilum.cohort.sources.rexgrounding import CATEGORIES
from hilum.errors import ContainerError, HeaderError, RunError, SeriesError, UsageError
from hilum.exam.levels import average_precision, levels_of
from hilum.exam.localize import UNION, MapScore, ScanScore, peak_distance_mm, score_map, score_scans
from hilum.exam.localize_cohorts import PROTOCOLS, REX_FINDINGS, masks_of, protocol_of
from hilum.exam.localize_cuts import NOTHING, RATIOS, THRESHOLDS, Cut, choose_cut, curve_of, dice_at
from hilum.exam.localize_maps import (
    ScanMaps,
    maps_of_folder,
    maps_of_model,
    nearest,
    on_grid,
    published_grid,
)
from hilum.exam.localize_table import MEASURES, as_markdown, as_text, choose_cuts, tabulate
from hilum.exam.metrics import dice
from hilum.geometry import Geometry, axis_map
from hilum.io.label_files import read_map
from hilum.show.scaled_nifti import write_probability
from hilum.text.vocabulary import INDEX, SLUGS
from hilum.volume import CTVolume, Provenance


def case(seed: int, shape=(14, 15, 16), digits: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """A map with many zeros and ties, and a mask that lies partly where the map is 0."""
    generator = np.random.default_rng(seed)
    truth = np.zeros(shape, dtype=bool)
    truth[3:8, 4:9, 5:9] = True
    heat = np.round(generator.random(shape) * 0.6 + 0.4 * truth, digits)
    return (heat * (generator.random(shape) < 0.6)).astype(np.float32), truth


# ---- measures and twins


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("digits", [1, 2, 6])
def test_average_precision_is_scikit_learns(seed, digits):
    heat, truth = case(seed, digits=digits)
    want = average_precision_score(truth.ravel(), heat.ravel())
    assert average_precision(heat, truth) == pytest.approx(want, rel=1e-12)


def test_average_precision_at_the_edges():
    heat, truth = case(0)
    assert np.isnan(average_precision(heat, np.zeros_like(truth)))
    assert average_precision(np.zeros_like(heat), truth) == pytest.approx(truth.mean())
    assert average_precision(truth.astype(np.float32), truth) == 1.0
    assert average_precision(heat, np.ones_like(truth)) == pytest.approx(1.0)


def test_millions_of_voxels_equal_the_sorted_twin():
    generator = np.random.default_rng(1)
    heat = generator.random((140, 140, 130), dtype=np.float32)
    heat[heat < 0.5] = 0
    truth = generator.random(heat.shape, dtype=np.float32) < 0.02 + 0.1 * heat
    got = average_precision(heat, truth)
    order = np.argsort(-heat.ravel(), kind="stable")
    ranked, hits = heat.ravel()[order], np.cumsum(truth.ravel()[order])
    last = np.append(ranked[1:] != ranked[:-1], True)
    found = hits[last]
    precision = found / (np.flatnonzero(last) + 1)
    assert got == pytest.approx(float((precision * np.diff(found, prepend=0)).sum() / truth.sum()), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_every_cut_has_the_dice_of_its_mask(seed):
    heat, truth = case(seed, digits=2)
    curve = curve_of(levels_of(heat, truth))
    above = np.sort(heat[heat > 0])[::-1]
    for t, r in [(0, 14), (0, 3), (20, 14), (30, 8), (60, 2), (len(THRESHOLDS) - 1, 14)]:
        absolute = heat >= np.float32(THRESHOLDS[t])
        top = above[max(1, int(np.ceil(RATIOS[r] * above.size))) - 1]
        mask = absolute & (heat >= top)
        assert curve[t, r] == pytest.approx(dice(mask, truth))
        assert Cut(float(THRESHOLDS[t]), float(RATIOS[r])).dice(levels_of(heat, truth)) == pytest.approx(
            curve[t, r]
        )


def test_both_sides_empty_is_one_and_a_false_alarm_is_zero():
    heat, _ = case(0)
    nothing = np.zeros(heat.shape, dtype=bool)
    assert (curve_of(levels_of(np.zeros_like(heat), nothing)) == 1.0).all()
    curve = curve_of(levels_of(heat, nothing))
    assert curve[0, -1] == 0.0 and curve[-1, -1] == 1.0  # nothing reaches 4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.2])
def test_maps_of_no_probabilities_are_refused(bad):
    heat, truth = case(0)
    heat[0, 0, 0] = bad
    with pytest.raises(RunError, match="OUTPUT_NONFINITE"):
        levels_of(heat, truth)


def test_the_peak_is_measured_in_millimetres():
    grid = Geometry((6, 6, 6), np.diag([-2.0, 3.0, 5.0, 1.0]))
    heat, truth = np.zeros((6, 6, 6), dtype=np.float32), np.zeros((6, 6, 6), dtype=bool)
    truth[2:4, 2, 2] = True
    assert peak_distance_mm(heat, truth, grid) == np.inf
    assert np.isnan(peak_distance_mm(heat, ~truth & truth, grid))
    heat[3, 2, 2] = 0.5
    assert peak_distance_mm(heat, truth, grid) == 0.0
    heat[5, 2, 3] = 0.9
    assert peak_distance_mm(heat, truth, grid) == pytest.approx(np.hypot(4.0, 5.0))


def test_a_cut_is_the_best_mean_and_survives_json():
    curves = [np.zeros((len(THRESHOLDS), len(RATIOS))) for _ in range(2)]
    curves[0][10, 3], curves[1][12, 3], curves[0][11, 5], curves[1][11, 5] = 0.9, 0.9, 0.6, 0.6
    curves[0][7, -1] = curves[1][7, -1] = 0.2
    curves[0][0, 9] = curves[1][0, 9] = 0.3
    both, absolute, relative = (choose_cut(curves, kind) for kind in ("both", "abs", "rel"))
    assert both == Cut(float(THRESHOLDS[11]), float(RATIOS[5])) and both.kind == "both"
    assert absolute == Cut(threshold=float(THRESHOLDS[7])) and absolute.kind == "abs"
    assert relative == Cut(ratio=float(RATIOS[9])) and relative.kind == "rel"
    assert choose_cut([]) is None and Cut().kind == "abs" and Cut().threshold == NOTHING
    for cut in (both, absolute, relative):
        again = Cut.of(json.loads(json.dumps(cut.as_dict())))
        assert again == cut and dice_at(curves[0], again) == dice_at(curves[0], cut)
    for bad in ({"threshold": 0.2}, {"threshold": -1, "ratio": 1}, {"threshold": 0.2, "ratio": 2}, "x"):
        with pytest.raises(UsageError, match="CONFIG_VALUE"):
            Cut.of(bad)
    with pytest.raises(UsageError, match="CONFIG_VALUE"):
        dice_at(curves[0], Cut(0.123456))


def test_published_thresholds_can_be_asked_for():
    for name in ("rexgroundingct", "covid-19-ct-seg", "mosmed"):
        assert PROTOCOLS[name].published in THRESHOLDS


# ---- grids


def blob(grid: Geometry, at_mm=(10.0, 20.0, -40.0), width_mm: float = 30.0) -> np.ndarray:
    """A smooth map about a point, on any grid."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1)
    away = np.linalg.norm(grid.to_mm(index.reshape(-1, 3)) - np.array(at_mm), axis=1).reshape(grid.shape)
    return np.clip(1 - away / width_mm, 0, None).astype(np.float32)


def turned(grid: Geometry, angle: float) -> Geometry:
    c, s = np.cos(angle), np.sin(angle)
    turn = np.eye(4)
    turn[:2, :2] = [[c, -s], [s, c]]
    return Geometry(grid.shape, turn @ grid.affine_ras)


@pytest.mark.parametrize("kind", ["same", "finer", "shifted", "flipped", "oblique"])
def test_maps_come_to_the_scans_grid_by_their_affine(kind):
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [-60.0, -50.0, -110.0]
    target = Geometry((32, 34, 36), affine)
    moved = affine.copy()
    moved[:3, 3] += 1.7
    flipped = np.diag([-4.0, -4.0, 4.0, 1.0])
    flipped[:3, 3] = target.to_mm(np.array([31.0, 33.0, 0.0]))[0]
    fine = affine @ np.diag([0.5, 0.5, 0.5, 1.0])
    grid = {
        "same": target,
        "finer": Geometry((64, 68, 72), fine),
        "shifted": Geometry((32, 34, 36), moved),
        "flipped": Geometry((32, 34, 36), flipped),
        "oblique": turned(target, 0.2),
    }[kind]
    got = on_grid(blob(grid), grid, target)
    want = blob(target)
    assert np.abs(got - want).max() < (1e-6 if kind in ("same", "flipped") else 0.12)
    assert dice(got > 0.3, want > 0.3) > 0.93
    if kind == "flipped":
        assert dice(blob(grid) > 0.3, want > 0.3) < 0.5  # without its affine it lies elsewhere


def test_the_published_grid_spans_the_field_of_view():
    scan = Geometry((60, 50, 40), np.diag([2.0, 3.0, 5.0, 1.0]))
    grid = published_grid(scan)
    assert grid.shape == (128, 128, 64) and grid.extent_mm == pytest.approx(scan.extent_mm)
    np.testing.assert_allclose(grid.centre_mm, scan.centre_mm)
    mask = np.zeros(scan.shape, dtype=bool)
    mask[10:20, 10:30, 5:15] = True
    squashed = nearest(mask, grid.shape)
    assert squashed.sum() * grid.voxel_ml == pytest.approx(mask.sum() * scan.voxel_ml, rel=0.1)
    centre = grid.to_mm(np.argwhere(squashed)).mean(0)
    np.testing.assert_allclose(centre, scan.to_mm(np.argwhere(mask)).mean(0), atol=1.5)


def test_joined_maps_are_summed_as_published_or_the_largest_is_taken():
    grid = Geometry((4, 4, 4), np.eye(4))
    held = {
        "atelectasis": np.full((4, 4, 4), 0.3, np.float32),
        "consolidation": np.full((4, 4, 4), 0.5, np.float32),
    }
    maps = ScanMaps(grid, held.get)
    names = ("atelectasis", "consolidation", "lung_nodule")
    assert maps.joined(names).max() == pytest.approx(0.8)
    assert maps.joined(names, "max").max() == pytest.approx(0.5)
    assert maps.joined(("lung_nodule",)).max() == 0


# ---- data of the protocols


def test_every_category_is_mapped_or_left_to_the_union():
    assert set(REX_FINDINGS) == set(CATEGORIES)
    named = {slug for p in PROTOCOLS.values() for slug in (*p.union, *sum(p.alone.values(), ()))}
    assert named <= set(SLUGS)
    assert REX_FINDINGS["2d"] == ("lung_nodule",) and REX_FINDINGS["2g"] == ()
    assert len(PROTOCOLS["rexgroundingct"].union) == 9 and len(PROTOCOLS["mosmed"].union) == 4
    with pytest.raises(UsageError, match="SOURCE_UNKNOWN"):
        protocol_of("ct-rate")


def records(name: str, root: Path) -> list[ScanRecord]:
    return list(source_named(name).records(root, SourceOptions()))


def truth_maps(root: Path, source: str, shift_vox: int = 0):
    """A model that knows the truth: the union list's first finding has the union's mask as its map."""
    from hilum.exam.localize import read_truths

    def read(record, volume):
        truths = read_truths(source, record, str(root), volume)
        protocol = protocol_of(source)
        held = {slugs[0]: truths[t].astype(np.float32) for t, slugs in protocol.alone.items() if t in truths}
        first = held.get(protocol.union[0], 0 * truths[UNION].astype(np.float32))
        held[protocol.union[0]] = np.maximum(first, truths[UNION]).astype(np.float32)
        held = {slug: np.roll(m, shift_vox, 0) for slug, m in held.items()}
        return ScanMaps(volume.geometry, held.get)

    return read


def test_rexgrounding_is_compared_by_union_and_by_category(tmp_path):
    root = rexgrounding(tmp_path)
    held = records("rexgroundingct", root)
    assert [t for _, t, _ in masks_of("rexgroundingct", held[0])] == [CATEGORIES["2d"], CATEGORIES["2e"]]
    (scan, refused) = score_scans(held, str(root), "rexgroundingct", truth_maps(root, "rexgroundingct"))
    assert refused.key == "valid_7_a_1" and refused.code == "SCAN_KNOWN_BROKEN"  # its volume is not there
    assert set(scan.targets) == {UNION, CATEGORIES["2d"], CATEGORIES["2e"]}
    assert scan.patient == "ct-rate:train_1741"
    union, nodule = scan.targets[UNION], scan.targets[CATEGORIES["2d"]]
    voxel_ml = 8.0 * 9.0 * 7.5 / 1000
    assert nodule.truth_ml == pytest.approx(voxel_ml) and union.truth_ml == pytest.approx(5 * voxel_ml)
    assert union.aupr == 1.0 and union.peak_mm == 0 and dice_at(union.curve, Cut(0.2)) == 1.0
    assert nodule.aupr == 1.0  # the nodule's own map is right although it is not in the union's list
    (off, _) = score_scans(held, str(root), "rexgroundingct", truth_maps(root, "rexgroundingct", 6))
    assert off.targets[UNION].aupr < 0.1 and off.targets[UNION].peak_mm == pytest.approx(24.0, abs=0.1)


@pytest.mark.parametrize("source", ["covid-19-ct-seg", "mosmed"])
def test_covid_cohorts_are_compared_by_union_where_lesions_are_outlined(tmp_path, source):
    from hilum.exam.localize import examined

    root = {"covid-19-ct-seg": covid_seg, "mosmed": mosmed}[source](tmp_path)
    held = [r for r in records(source, root) if examined(source, r)]
    assert [r.key for r in held] == [{"covid-19-ct-seg": "coronacases_001", "mosmed": "study_0255"}[source]]
    (scan,) = score_scans(held, str(root), source, truth_maps(root, source))
    assert set(scan.targets) == {UNION} and scan.targets[UNION].aupr == 1.0


# ---- from scores to figures


def scan_score(n: int, heat_scale: float, truth: bool = True, poison: bool = False) -> ScanScore:
    heat, mask = case(n)
    mask = mask if truth else np.zeros_like(mask)
    if poison:
        mask = ~mask & (heat > 0)
    grid = Geometry(heat.shape, np.eye(4))
    return ScanScore(
        f"s{n}", f"p{n // 2}", {UNION: score_map((heat * heat_scale).astype(np.float32), mask, grid)}
    )


FACTS = {
    "model": "m", "source": "made", "part": "test", "convention": "default", "join": "sum", "grid": "scan",
    "cuts_from": "validation",
}  # fmt: skip


def test_a_poisoned_test_part_moves_no_cut():
    validation = [scan_score(n, 1.0) for n in range(6)]
    cuts = choose_cuts(validation)
    clean, poisoned = (
        tabulate([scan_score(n, 1.0, poison=p) for n in range(10, 18)], cuts, FACTS, tolerance_mm=2, draws=50)
        for p in (False, True)
    )
    assert clean.rows[0].cut == poisoned.rows[0].cut == cuts[UNION]
    assert clean.rows[0].values["dice"].value > 0.5 > 0.35 > poisoned.rows[0].values["dice"].value


def test_figures_are_means_over_scans_with_truth_and_with_empties():
    scans = [scan_score(n, 1.0) for n in range(4)] + [scan_score(n, 1.0, truth=False) for n in range(4, 6)]
    cut = Cut(float(THRESHOLDS[40]))
    result = tabulate(scans, {UNION: cut}, FACTS, tolerance_mm=3.0, draws=200)
    (row,) = result.rows
    alone = [dice_at(s.targets[UNION].curve, cut) for s in scans]
    assert row.values["dice"].value == pytest.approx(np.mean(alone[:4]))
    assert row.values["dice_with_empties"].value == pytest.approx(np.mean(alone))
    assert row.values["aupr"].value == pytest.approx(np.mean([s.targets[UNION].aupr for s in scans[:4]]))
    assert row.values["hit5_dice"].value == np.mean([d >= 0.05 for d in alone[:4]])
    assert row.values["peak_inside"].value == np.mean([s.targets[UNION].peak_mm == 0 for s in scans[:4]])
    assert row.with_truth == 4 and row.scans == 6
    told = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert set(told["summary"]) == set(MEASURES) and told["chosen"][UNION]["kind"] == "abs"
    assert told["findings"][0]["target"] == UNION and told["patients"] == 3
    low, high = told["summary"]["dice"][1:]
    assert low <= told["summary"]["dice"][0] <= high
    for text in (as_text(result), as_markdown(result)):
        assert "union" in text and "nan" not in text
    bare = tabulate(scans, {}, FACTS, tolerance_mm=3.0, draws=20)
    assert bare.as_dict()["summary"]["dice"] is None and "no Dice" in as_text(bare)
    assert bare.as_dict()["summary"]["aupr"][0] == told["summary"]["aupr"][0]


def test_hits_count_from_five_and_ten_percent():
    grid_curve = np.full((len(THRESHOLDS), len(RATIOS)), 0.07)
    scans = [ScanScore("a", "a", {UNION: MapScore(1.0, grid_curve, 0.2, 0.0)}),
             ScanScore("b", "b", {UNION: MapScore(1.0, grid_curve * 0, 0.05, np.inf)})]  # fmt: skip
    values = tabulate(scans, {UNION: Cut()}, FACTS, tolerance_mm=5, draws=10).rows[0].values
    assert {k: v.value for k, v in values.items()} == pytest.approx({
        "dice": 0.035, "dice_with_empties": 0.035, "aupr": 0.125, "hit5_dice": 0.5, "hit10_dice": 0.0,
        "hit5_aupr": 1.0, "hit10_aupr": 0.5, "peak_inside": 0.5, "peak_near": 0.5,
    })  # fmt: skip


# ---- files and command


def write_map(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values.astype(np.float32), affine), path)


def test_maps_of_others_are_read_on_their_own_axes(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 24
    write_map(tmp_path / "a.nii.gz", values, np.diag([-2.0, 3.0, 4.0, 1.0]))
    got, grid = read_map(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(got, values)
    assert grid.axcodes == "LAS"
    write_probability(tmp_path / "b.nii.gz", values, grid, "as hilum read writes maps")
    np.testing.assert_allclose(read_map(tmp_path / "b.nii.gz")[0], values, atol=5.1e-4)
    unplaced = nib.Nifti1Image(values, None)
    unplaced.header["sform_code"] = unplaced.header["qform_code"] = 0
    nib.save(unplaced, tmp_path / "c.nii")
    with pytest.raises(HeaderError, match="ORIENTATION_UNKNOWN"):
        read_map(tmp_path / "c.nii")


def mosmed_cohort(root: Path, count: int = 8) -> Path:
    """MosMed's layout with a lesion in every study, at a place of its own."""
    for n in range(count):
        save(root / f"studies/CT-1/study_{n:04d}.nii.gz", seed=n)
        mask = np.zeros(SHAPE, dtype=np.uint8)
        mask[12 + n : 18 + n, 15:22, 12:18] = 1
        save(root / f"masks/study_{n:04d}_mask.nii.gz", mask)
    return root


def maps_for(root: Path, out: Path, nested: bool = False) -> Path:
    """Maps of half the resolution on turned axes, right but blurred, as another model might write them."""
    for path in sorted((root / "masks").glob("*.nii.gz")):
        mask = nib.load(path)
        scan = Geometry(SHAPE, mask.affine)
        axes = axis_map(scan)
        ras, grid = axes.apply(np.asarray(mask.dataobj, dtype=np.float32)), axes.geometry(scan)
        small = ras.reshape(24, 2, 20, 2, 16, 2).mean((1, 3, 5))
        affine = grid.affine_ras @ np.diag([2.0, 2.0, 2.0, 1.0])
        affine[:3, 3] = grid.to_mm(np.array([0.5, 0.5, 0.5]))[0]
        folder = out / path.name.removesuffix("_mask.nii.gz")
        folder = folder / "maps" if nested else folder
        write_map(folder / "lung_opacity.nii.gz", small * 0.6, affine)
        write_map(folder / "consolidation.nii.gz", small * 0.3, affine)
    return out


def test_a_folder_of_maps_is_checked(tmp_path):
    record = ScanRecord("s", "s.nii.gz", "p")
    scan = CTVolume.from_source(
        np.zeros((3, 3, 3), np.float32), Geometry((3, 3, 3), np.eye(4)), Provenance("nifti", "0" * 64)
    )
    source = maps_of_folder(tmp_path)
    (tmp_path / "s").mkdir()
    with pytest.raises(ContainerError, match="NOT_FOUND"):
        source(record, scan)
    write_map(tmp_path / "s/lung_nodule.nii.gz", np.ones((3, 3, 3)), np.eye(4))
    write_map(tmp_path / "s/emphysema.nii.gz", np.ones((3, 3, 4)), np.eye(4))
    held = source(record, scan)
    with pytest.raises(SeriesError, match="GRID_MISMATCH"):
        held.joined(("lung_nodule", "emphysema"))
    assert held.of("bronchiectasis") is None


@pytest.mark.parametrize("nested", [False, True])
def test_the_command_compares_maps_of_others(tmp_path, capsys, nested):
    root = mosmed_cohort(tmp_path / "mosmed")
    maps = maps_for(root, tmp_path / "maps", nested)
    base = ["exam", "--suite", "localize", "--cohort", str(root), "--source", "mosmed", "--maps", str(maps)]
    assert run([*base, "--out", str(tmp_path / "out")]) == 0
    assert "union" in capsys.readouterr().out
    told = json.loads((tmp_path / "out/localize.json").read_text())
    assert (tmp_path / "out/localize.md").read_text().startswith("maps in maps on")
    assert told["refused"] == {} and told["scans"] + int(told["cuts_from"].split()[0]) == 8
    assert told["summary"]["dice"][0] > 0.75 and told["summary"]["peak_inside"][0] == 1.0
    if nested:
        return
    assert (
        run([*base, "--chosen", str(tmp_path / "out/localize.json"), "--validation-part", "none", "--json"])
        == 0
    )
    again = json.loads(capsys.readouterr().out)
    assert again["chosen"] == told["chosen"] and "earlier run" in again["cuts_from"]
    assert again["summary"] == told["summary"]
    assert run([*base, "--convention", "paper", "--json"]) == 0
    paper = json.loads(capsys.readouterr().out)
    assert paper["chosen"][UNION]["threshold"] == 0.15 and paper["grid"] == "published"
    assert "Not comparable" in paper["text"] and paper["summary"]["dice"][0] > 0.6
    assert run([*base, "--convention", "fvlm"]) == 2
    assert run([*base, "--test-part", "val"]) == 2
    assert run([*base, "m"]) == 2


def test_a_models_maps_are_compared_on_the_scans_grid(tmp_path):
    """A reader that answers on a grid of its own, with the lesion where it is."""
    root = mosmed_cohort(tmp_path, 1)
    (record,) = records("mosmed", root)

    class Output:
        def __init__(self, grid, maps):
            self.grid, self.maps = grid, maps

    class Model:
        name = sha256 = trained_on = "test"
        calibrated = False
        thresholds, map_thresholds = {}, {}

        def run(self, volume):
            step = np.array([2.0, 2.0, 2.0])
            affine = volume.geometry.affine_ras @ np.diag([*step, 1.0])
            affine[:3, 3] = volume.geometry.to_mm((step - 1) / 2)[0]
            grid = Geometry(tuple(n // 2 for n in volume.shape), affine)
            mask = np.zeros(SHAPE, dtype=np.float32)
            mask[12:18, 15:22, 12:18] = 1
            small = volume.axes.apply(mask).reshape(24, 2, 20, 2, 16, 2).mean((1, 3, 5))
            maps = np.zeros((18, *grid.shape), dtype=np.float32)
            maps[INDEX["lung_opacity"]] = small
            return Output(grid, maps)

    (scan,) = score_scans([record], str(root), "mosmed", maps_of_model(Model()))
    union = scan.targets[UNION]
    assert union.peak_mm == 0 and union.aupr > 0.9
    assert max(dice_at(union.curve, Cut(float(t))) for t in THRESHOLDS) > 0.85


def test_phantoms_are_compared_finding_by_finding_and_healthy_ones_count(tmp_path):
    for n, slug in enumerate((None, "consolidation", "lung_nodule")):
        folder = tmp_path / f"synthetic-{n}"
        save(folder / "ct.nii.gz", seed=n)
        lesions = []
        if slug:
            mask = np.zeros(SHAPE, dtype=np.uint8)
            mask[14:17, 18:21, 14:17] = 1
            save(folder / f"lesions/{slug}.nii.gz", mask)
            lesions = [{"slug": slug, "path": f"lesions/{slug}.nii.gz"}]
        truth = {
            "synthetic": True, "format": 1, "key": f"k{n}", "plan": {"seed": n}, "labels": {},
            "image": {"path": "ct.nii.gz", "series_number": 2}, "lesions": lesions,
            "organs": {"path": "organs.nii.gz", "labels": {}, "channels": {}}, "reports": {"en": {}},
        }  # fmt: skip
        (folder / "truth.json").write_text(json.dumps(truth))
    held = records("phantom", tmp_path)
    scans = list(score_scans(held, str(tmp_path), "phantom", truth_maps(tmp_path, "phantom")))
    assert [len(s.targets) for s in scans] == [19, 19, 19]
    assert scans[0].targets[UNION].truth_ml == 0 and dice_at(scans[0].targets[UNION].curve, Cut(0.2)) == 1.0
    result = tabulate(scans, {UNION: Cut(0.2), "lung_nodule": Cut(0.2)}, FACTS, tolerance_mm=5, draws=20)
    rows = {row.target: row for row in result.rows}
    assert rows[UNION].with_truth == 1  # a nodule is not in the union's list
    assert rows["lung_nodule"].with_truth == 1 and rows["lung_nodule"].values["dice"].value == 1.0
    assert rows["emphysema"].as_dict()["aupr"] is None and rows["consolidation"].cut is None
    assert rows["lung_nodule"].name == "Lung nodule"


def test_the_scans_of_the_layout_lie_on_axes_that_are_not_ras():
    """Else the tests of affines above would show nothing."""
    assert Geometry(SHAPE, AFFINE).axcodes == "LAS" and chest(0).shape == SHAPE
