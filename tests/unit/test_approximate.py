"""Lists of a large index: how much they find, what came later, the same lists again, and what is refused."""

import hashlib
import json
import sys

import faiss
import numpy as np
import pytest
from test_vector_index import change, unit

from hilum.errors import OutputError, UsageError, WeightsError
from hilum.io.inverted_lists import FILE, open_lists, read_facts
from hilum.io.lock import output_lock
from hilum.io.vector_index import IndexModel, open_index, writing
from hilum.read import approximate
from hilum.read.approximate import build_lists
from hilum.read.search import nearest

ROWS, WIDTH = 3000, 24
MODEL = IndexModel("tiny", "a" * 64, {"report": WIDTH, "disease": 8})


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(approximate, "LEAST_ROWS", 2000)
    monkeypatch.setattr(approximate, "HELD_OUT", 100)


def clustered(count, width=WIDTH, seed=0):
    centres = unit(60, width, 99)
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(60, size=count)] + 0.1 * rng.normal(size=(count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def add(folder, count, seed):
    with writing(folder, MODEL) as writer:
        first = len(writer.index)
        vectors = {"report": clustered(count, seed=seed), "disease": unit(count, 8, seed)}
        writer.add([f"s{first + i}" for i in range(count)], vectors, {"half": [i % 2 for i in range(count)]})
    return open_index(folder)


@pytest.fixture
def folder(tmp_path):
    for seed, count in enumerate((1200, 3, ROWS - 1203)):
        add(tmp_path / "i", count, seed)
    return tmp_path / "i"


def test_what_is_promised_is_found(folder):
    facts = build_lists(folder, "report")
    index = open_index(folder)
    lists = open_lists(index, "report")
    lists.verify()
    assert lists.facts == facts == read_facts(index, "report") and read_facts(index, "disease") is None
    assert facts.rows == ROWS and facts.parts == 3 and 1 <= facts.probes < facts.lists == 72
    assert list(facts.recall) == ["rows"] and facts.recall["rows"] >= approximate.RECALL
    asked = clustered(200, seed=50)
    true, found = nearest(index, "report", asked), nearest(index, "report", asked, lists=lists)
    same = np.mean([len(set(a) & set(b)) for a, b in zip(true.rows, found.rows, strict=True)]) / 10
    assert same > 0.97
    # what is found has its own cosine
    vectors = np.concatenate(list(index.vectors("report")))
    assert np.allclose(found.scores, np.einsum("qe,qke->qk", asked, vectors[found.rows]), atol=1e-5)


def test_all_lists_are_all_rows(folder):
    facts = build_lists(folder, "report")
    index = open_index(folder)
    asked = unit(50, WIDTH, 5)
    rows, scores = open_lists(index, "report").search(asked, 10, probes=facts.lists)
    true = nearest(index, "report", asked)
    assert np.array_equal(rows, true.rows) and np.allclose(scores, true.scores, atol=1e-6)


def test_one_list_may_hold_fewer_rows_than_are_asked_for(folder):
    build_lists(folder, "report")
    rows, scores = open_lists(open_index(folder), "report").search(unit(3, WIDTH), 4000, probes=1)
    assert (rows[:, -1] == -1).all() and np.array_equal(rows < 0, np.isneginf(scores))


def test_questions_of_another_kind_decide_too(folder):
    facts = build_lists(folder, "report", {"texts": unit(100, WIDTH, 7), "none": unit(0, WIDTH)})
    assert list(facts.recall) == ["rows", "texts"] and min(facts.recall.values()) >= approximate.RECALL
    # texts far from all rows need more lists than rows do
    (folder / "approximate.json").unlink()
    assert build_lists(folder, "report").probes < facts.probes


def test_rows_that_came_later_are_found(folder):
    build_lists(folder, "report")
    before = open_index(folder)
    add(folder, 40, 77)
    index, asked = open_index(folder), clustered(40, seed=77)
    lists = open_lists(index, "report")
    assert lists.facts.rows == ROWS and len(index) == ROWS + 40
    hits = nearest(index, "report", asked, lists=lists)
    assert hits.rows[:, 0].tolist() == list(range(ROWS, ROWS + 40))
    # made anew, they are of all rows; a reader of the old ones has none
    assert build_lists(folder, "report").rows == ROWS + 40
    assert open_lists(before, "report") is None and open_lists(index, "report") is not None
    assert len([path for path in folder.iterdir() if FILE.fullmatch(path.name)]) == 1


def test_the_same_rows_and_seed_make_the_same_file(folder):
    first = build_lists(folder, "report", seed=3)
    assert build_lists(folder, "report", seed=4) == first, "whole lists of all rows stay"
    (folder / "approximate.json").unlink()
    again = build_lists(folder, "report", seed=3)
    assert again.sha256 == first.sha256 and again.probes == first.probes and again.recall == first.recall
    (folder / "approximate.json").unlink()
    assert build_lists(folder, "report", seed=4).sha256 != first.sha256


def test_two_spaces_have_their_own(folder):
    facts = {space: build_lists(folder, space) for space in ("report", "disease")}
    index = open_index(folder)
    assert {space: read_facts(index, space) for space in facts} == facts
    assert facts["report"].file != facts["disease"].file
    with pytest.raises(UsageError, match="OPTION_UNKNOWN"):
        build_lists(folder, "lobes")


def test_filtered_rows_are_searched_exactly(folder):
    build_lists(folder, "report")
    index = open_index(folder)
    with pytest.raises(UsageError, match=r"CONFIG_VALUE.*exactly"):
        nearest(index, "report", unit(1, WIDTH), 3, np.ones(ROWS, dtype=bool), open_lists(index, "report"))


def test_a_small_index_has_none(folder, monkeypatch):
    monkeypatch.setattr(approximate, "LEAST_ROWS", ROWS + 1)
    assert build_lists(folder, "report") is None
    assert open_lists(open_index(folder), "report") is None
    assert not (folder / "approximate.json").exists()


def test_there_is_one_writer(folder):
    with output_lock(folder), pytest.raises(OutputError, match="OUTPUT_LOCKED"):
        build_lists(folder, "report")


def test_without_faiss_the_extra_is_named(folder, monkeypatch):
    build_lists(folder, "report")
    monkeypatch.setitem(sys.modules, "faiss", None)
    for call in (lambda: build_lists(folder, "report"), lambda: open_lists(open_index(folder), "report")):
        with pytest.raises(UsageError, match=r"EXTRA_MISSING.*index"):
            call()


def test_damage_is_named_before_faiss_sees_it_and_made_good(folder, monkeypatch):
    facts = build_lists(folder, "report")
    index, path = open_index(folder), folder / facts.file
    whole = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(faiss, "read_index", lambda *_: pytest.fail("FAISS was asked"))
        for at in (0, 60, facts.head_bytes - 1):
            change(path, at, whole[at] ^ 1)
            with pytest.raises(WeightsError, match=r"WEIGHTS_HASH.*--exact"):
                open_lists(index, "report")
            path.write_bytes(whole)
        for raw in (whole[:-1], whole + b"\0", b""):
            path.write_bytes(raw)
            with pytest.raises(WeightsError, match="WEIGHTS_TRUNCATED"):
                open_lists(index, "report")
        path.unlink()
        with pytest.raises(WeightsError, match="WEIGHTS_TRUNCATED"):
            open_lists(index, "report")
    # behind the head: seen by verify, and a number of a row that cannot be one when it is met
    path.write_bytes(whole[:-8] + b"\x7f" * 8)
    lists = open_lists(index, "report")
    with pytest.raises(WeightsError, match="WEIGHTS_HASH"):
        lists.verify()
    with pytest.raises(WeightsError, match=r"WEIGHTS_HASH.*rows of their index"):
        lists.search(unit(1, WIDTH), ROWS, probes=facts.lists)
    made = build_lists(folder, "report")
    assert made.sha256 == facts.sha256 and made.file != facts.file
    open_lists(index, "report").verify()


def told(folder, **changes):
    path = folder / "approximate.json"
    data = json.loads(path.read_text())
    data["spaces"]["report"] |= changes
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"file": "../x.faiss"}, "CONFIG_FILE"),
        ({"file": 3}, "CONFIG_FILE"),
        ({"probes": 0}, "CONFIG_FILE"),
        ({"probes": 10**9}, "CONFIG_FILE"),
        ({"rows": -1}, "CONFIG_FILE"),
        ({"rows": True}, "CONFIG_FILE"),
        ({"recall": {"rows": float("nan")}}, "CONFIG_FILE"),
        ({"recall": []}, "CONFIG_FILE"),
        ({"other": 1}, "CONFIG_FILE"),
        ({"parts_sha256": "0" * 64}, "CACHE_STALE"),
        ({"parts": 2}, "CACHE_STALE"),
        ({"rows": ROWS - 1}, "WEIGHTS_HEADER"),
        ({"head_bytes": 10**12}, "WEIGHTS_HEADER"),
        ({"head_sha256": "0" * 64}, "WEIGHTS_HASH"),
    ],
)
def test_lists_that_are_not_of_this_index_are_refused(folder, changes, code):
    build_lists(folder, "report")
    told(folder, **changes)
    with pytest.raises(WeightsError, match=code):
        open_lists(open_index(folder), "report")
    assert build_lists(folder, "report").rows == ROWS
    assert open_lists(open_index(folder), "report") is not None


def test_what_is_no_json_of_lists_is_refused(folder):
    build_lists(folder, "report")
    path = folder / "approximate.json"
    facts = json.loads(path.read_text())
    for text, code in (
        ("no json", "CONFIG_FILE"),
        ("[]", "CONFIG_FILE"),
        (json.dumps(facts | {"spaces": []}), "CONFIG_FILE"),
        (json.dumps(facts | {"kind": "other"}), "CONFIG_FILE"),
        (json.dumps(facts | {"format": 2}), "FORMAT_NEWER"),
    ):
        path.write_text(text)
        with pytest.raises(WeightsError, match=code):
            open_lists(open_index(folder), "report")


def test_a_file_that_was_sealed_but_is_of_another_kind_is_refused(folder):
    path = folder / build_lists(folder, "report").file
    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(unit(100, WIDTH))
    faiss.write_index(flat, str(path))
    for raw in (path.read_bytes(), path.read_bytes()[:3000], b"\xff" * 9000):
        path.write_bytes(raw)
        rows = len(raw) // (4 * WIDTH + 8) - 1
        head = len(raw) - rows * (4 * WIDTH + 8)
        digest = hashlib.sha256(raw[:head]).hexdigest()
        told(folder, bytes=len(raw), head_bytes=head, head_sha256=digest, rows=rows)
        with pytest.raises(WeightsError, match=r"WEIGHTS_HEADER.*IVF-Flat"):
            open_lists(open_index(folder), "report")
