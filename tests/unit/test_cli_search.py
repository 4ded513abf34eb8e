"""`hilum index` and `hilum search`: a cohort in, its nearest scans out, for models of both kinds."""

import json
import shutil
import sys

import nibabel as nib
import numpy as np
import pytest
from _called import Called
from _cohort_layouts import plain_cohort
from _encoders import file_of, stand_in

from hilum.cli import run
from hilum.cli.index import index
from hilum.cli.search import search
from hilum.cohort.manifest import read_manifest
from hilum.cohort.prep_presets import Pipeline
from hilum.io.encoder_file import save_encoder
from hilum.io.vector_index import open_index, writing
from hilum.read import approximate, ask_index, embed

PREP = Pipeline(
    "tiny-joint", spacing_mm=(8.0, 8.0, 6.0), clip_first=True, values="unit", fit="pad-multiple",
    fit_vox=(32, 32, 16),
)  # fmt: skip
NET = {"patch": 8, "patch_z": 4, "rope_full": True, "slices": False, "qkv_bias": True, "registers": 0}
COUNT = 4


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort")
    reports = ("a nodule", "effusion", "nothing", "Rundherd links")
    plain_cohort(root / "data", COUNT, report=lambda i: reports[i], split=lambda i: "train" if i else "test")
    assert run(["prepare", str(root / "data"), "--out", str(root / "prepared")]) in (0, 4)
    return root


@pytest.fixture(params=["3d-joint", "3d-vlm"])
def model(request, tmp_path, monkeypatch):
    stand_in(monkeypatch)
    sizes = {"patch": [8, 8, 4], "field_vox": [32, 32, 16], "prep": PREP.facts(), "prep_2d": None, "net": NET}
    file = file_of(request.param, **(sizes if request.param == "3d-joint" else {}))
    save_encoder(tmp_path / "model", file)
    return tmp_path / "model"


def test_a_scan_finds_itself_and_words_find_an_order(cohort, model, tmp_path):
    told = Called(index).told(cohort / "prepared", "--model", model, "--out", tmp_path / "i")
    assert len(told["added"]) == told["rows"] == COUNT and told["refused"] == []
    # once more: nothing is read again
    again = Called(index).told(cohort / "prepared", "--model", model, "--out", tmp_path / "i")
    assert (again["added"], again["there"], again["rows"]) == ([], COUNT, COUNT)
    ask = Called(search)
    scan = cohort / "data/scans/002.nii.gz"
    found = ask.told(tmp_path / "i", "--model", model, "--scan", scan)
    assert found["rows"][0]["path"] == "scans/002.nii.gz" and found["rows"][0]["report"] == "nothing"
    assert found["rows"][0]["score"] == pytest.approx(1, abs=1e-4) and len(found["rows"]) == COUNT
    scores = [row["score"] for row in found["rows"]]
    assert scores == sorted(scores, reverse=True)
    words = ask.told(tmp_path / "i", "--model", model, "--text", "effusion", "--top", "2")
    assert len(words["rows"]) == 2 and (words["size"], words["asked"]) == (COUNT, COUNT)
    both = ask.told(tmp_path / "i", "--model", model, "--text", "effusion", "--scan", scan)
    assert len(both["rows"]) == COUNT and both["rows"][0]["score"] <= 2 / 61
    some = ask.told(tmp_path / "i", "--model", model, "--text", "effusion", "--filter", "split=train")
    assert some["asked"] == 3 and {row["split"] for row in some["rows"]} == {"train"}
    lines = ask(tmp_path / "i", "--model", model, "--text", "effusion").stdout.strip("\n").splitlines()
    assert len(lines) == COUNT + 1 and lines[-1].startswith("4 of 4 scans searched exactly")


def grown(folder, count=2500):
    """An index with stand-ins for more scans."""
    index = open_index(folder)
    with writing(folder, index.model) as writer:
        rng = np.random.default_rng(0)
        rows = {s: rng.normal(size=(count, e)).astype(np.float32) for s, e in index.model.spaces.items()}
        rows = {s: r / np.linalg.norm(r, axis=1, keepdims=True) for s, r in rows.items()}
        told = {"report": [f"nodule {i}" if i % 2 else "" for i in range(count)]}
        writer.add([f"more{i}" for i in range(count)], rows, told | {"split": ["train"] * count})


@pytest.mark.parametrize("model", ["3d-joint"], indirect=True)
def test_lists_are_made_on_request_and_said_to_be_used(cohort, model, tmp_path, monkeypatch):
    making = (cohort / "prepared", "--model", model, "--out", tmp_path / "i")
    ask, question = Called(search), (tmp_path / "i", "--model", model, "--text", "effusion")
    # too small for lists
    assert Called(index).told(*making, "--approximate")["approximate"] is None
    assert "No lists" in Called(index)(*making, "--approximate").stdout
    assert ask.refusal(*question, "--approximate").code == "OPTION_UNKNOWN"
    grown(tmp_path / "i")
    for module in (approximate, embed):
        monkeypatch.setattr(module, "LEAST_ROWS", 2000)
    made = Called(index).told(*making, "--approximate")
    assert made["added"] == [] and set(made["approximate"]["recall"]) == {"rows", "reports"}
    assert "lists, of which a search probes" in Called(index)(*making, "--approximate").stdout
    exact, found = (ask.told(*question, way) for way in ("--exact", "--approximate"))
    assert exact["search"] == {"how": "exact"} and found["search"]["how"] == "approximate"
    assert found["search"]["recall_at_10"] == made["approximate"]["recall"]
    assert len({r["key"] for r in exact["rows"]} & {r["key"] for r in found["rows"]}) >= 8
    assert ask.told(*question)["search"] == {"how": "exact"}, "not large"
    filtered = ask.told(*question, "--approximate", "--filter", "split=test")
    assert filtered["search"] == {"how": "exact"} and len(filtered["rows"]) == 1
    assert ask.told(*question, "--approximate", "--top", "101")["search"] == {"how": "exact"}
    monkeypatch.setattr(ask_index, "LARGE_ROWS", 2000)
    assert made["approximate"]["probes"] > made["approximate"]["lists"] / 4
    assert ask.told(*question)["search"] == {"how": "exact"}, "not worth it: rows without clusters"
    monkeypatch.setattr(ask_index, "FEW_LISTS", 1.0)
    assert ask.told(*question) == found
    assert "approximately (recall@10" in ask(*question).stdout
    # without FAISS a search is exact unless lists are asked for
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert ask.told(*question) == exact
    assert ask.refusal(*question, "--approximate").code == "EXTRA_MISSING"
    assert Called(index).refusal(*making, "--approximate").code == "EXTRA_MISSING"


def test_a_split_alone_and_a_scan_that_is_gone(cohort, model, tmp_path):
    told = Called(index).told(
        cohort / "prepared", "--model", model, "--out", tmp_path / "i", "--split", "test"
    )
    assert told["rows"] == 1
    shutil.copytree(cohort / "data", tmp_path / "data")
    (tmp_path / "data/scans/003.nii.gz").write_bytes(b"rubbish")
    result = Called(index)(
        cohort / "prepared", "--model", model, "--out", tmp_path / "i", "--root", tmp_path / "data", "--json"
    )
    told = json.loads(result.stdout)
    assert (len(told["added"]), told["there"], told["rows"]) == (2, 1, 3) and result.return_value == 4
    assert [r["code"] for r in told["refused"]] == ["NOT_AN_IMAGE"]
    assert len(open_index(tmp_path / "i")) == 3


def test_what_cannot_be_asked_is_refused(cohort, model, tmp_path):
    Called(index).told(cohort / "prepared", "--model", model, "--out", tmp_path / "i", "--split", "test")
    save_encoder(tmp_path / "other", file_of("3d-vlm", seed=3))
    save_encoder(tmp_path / "plain", file_of("3d"))
    ask = Called(search)
    for arguments, code in (
        ((tmp_path / "i", "--model", model), "OPTION_UNKNOWN"),
        ((tmp_path / "i", "--model", tmp_path / "other", "--text", "a"), "CACHE_STALE"),
        ((tmp_path / "i", "--model", tmp_path / "plain", "--text", "a"), "MODEL_INPUT"),
        ((tmp_path / "none", "--model", model, "--text", "a"), "CONFIG_FILE"),
        ((tmp_path / "i", "--model", model, "--text", "a", "--filter", "sex=f"), "COLUMN_MISSING"),
    ):
        assert ask.refusal(*arguments).code == code, arguments
    assert Called(index).refusal(
        cohort / "prepared", "--model", tmp_path / "other", "--out", tmp_path / "i"
    ).code == "CACHE_STALE"  # fmt: skip
    assert ask(tmp_path / "i", "--model", model, "--text", "a", "--filter", "sex").exit_code != 0


@pytest.fixture
def organs(cohort, tmp_path):
    """Masks of a left lung, in TotalSegmentator's numbers, for all scans but the last."""
    (tmp_path / "organs").mkdir()
    for row in read_manifest(cohort / "prepared").rows():
        path = cohort / "data" / row.record.path
        grid = nib.load(path)
        labels = np.zeros(grid.shape, dtype=np.uint8)
        middle = tuple(slice(n // 4, 3 * n // 4) for n in grid.shape)
        labels[middle] = 11
        key = tmp_path / "organs" / f"{row.record.key}.nii.gz"
        key.parent.mkdir(parents=True, exist_ok=True)
        if not path.name.startswith("003"):
            nib.save(nib.Nifti1Image(labels, grid.affine), key)
    return tmp_path / "organs"


def test_an_index_of_a_region_compares_that_region(cohort, model, organs, tmp_path):
    made = (cohort / "prepared", "--model", model, "--out", tmp_path / "i", "--region", "left lower lobe")
    assert Called(index).refusal(*made).code == "OPTION_UNKNOWN"
    # masks without a region would go unused
    assert Called(index).refusal(*made[:-2], "--organs", organs).code == "OPTION_UNKNOWN"
    assert not (tmp_path / "i").exists(), "a refused input writes nothing"
    result = Called(index)(*made, "--organs", organs, "--json")
    told = json.loads(result.stdout)
    assert result.return_value == 4 and len(told["added"]) == COUNT - 1
    assert [r["code"] for r in told["refused"]] == ["NOT_FOUND"]
    # of another region, or of whole scans, it has none
    for region in ((), ("--region", "lung")):
        asked = (cohort / "prepared", "--model", model, "--out", tmp_path / "i", *region)
        assert Called(index).refusal(*asked).code == "CACHE_STALE"
    # what lies outside the region may change
    data = nib.load(cohort / "data/scans/002.nii.gz")
    hu = np.asarray(data.dataobj).copy()
    hu[:2] = 300
    nib.save(nib.Nifti1Image(hu, data.affine), tmp_path / "changed.nii.gz")
    mask = next(organs.rglob("*002.nii.gz"))
    ask, scan = Called(search), ("--scan", tmp_path / "changed.nii.gz")
    found = ask.told(tmp_path / "i", "--model", model, *scan, "--organs", mask)
    assert found["rows"][0]["path"] == "scans/002.nii.gz" and found["model"]["region"] == "left lower lobe"
    assert found["rows"][0]["score"] == pytest.approx(1, abs=1e-4)
    assert "the left lower lobe alone" in ask(tmp_path / "i", "--model", model, "--text", "a").stdout
    for more in (scan, (*scan, "--organs", mask, "--organs", mask)):
        assert ask.refusal(tmp_path / "i", "--model", model, *more).code == "OPTION_UNKNOWN"
    Called(index).told(cohort / "prepared", "--model", model, "--out", tmp_path / "w", "--split", "test")
    asked = ask.refusal(tmp_path / "w", "--model", model, *scan, "--organs", mask)
    assert asked.code == "OPTION_UNKNOWN"
    assert json.loads((tmp_path / "w/index.json").read_text())["format"] == 1
    assert json.loads((tmp_path / "i/index.json").read_text())["format"] == 2
